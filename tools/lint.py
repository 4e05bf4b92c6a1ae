"""What `make lint` looks at: code (ruff) and spelling (codespell).

    python -m tools.lint [ARGUMENTS FOR RUFF]      such as --fix

codespell knows common misspellings and nothing else, so that words of the subject pass. It reads
the prose, the code with its comments and docstrings, and of a notebook the cells' text: among the
letters of its pictures any word turns up. Words that it must let pass stand in pyproject.toml,
`[tool.codespell]`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent

PLACES = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile", "conftest.py",
    "pyproject.toml", "docs", "slam_edu", "tests", "tools", ".github",
)  # fmt: skip
SUFFIXES = {".md", ".py", ".cff", ".toml", ".yml", ".cfg", ".html", ".css", ""}


def texts(root: Path) -> dict[str, str]:
    """What is spelled, {where it stands: text}; a notebook's cells are named one by one."""
    paths = [root / name for name in PLACES] + sorted((root / "data").rglob("*.md"))
    found = {}
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            if file.is_file() and file.suffix in SUFFIXES and "__pycache__" not in file.parts:
                found[file.relative_to(root).as_posix()] = file.read_text(encoding="utf-8")
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells, start=1):
            found[f"notebooks/{path.name}/cell {number}"] = cell.source
    return found


def misspellings(found: dict[str, str], config: Path = ROOT / "pyproject.toml") -> list[str]:
    """codespell's findings, each as ``place:line: wrong ==> right``.

    Raises:
        RuntimeError: if codespell itself fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place, text in found.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "codespell_lib", "--toml", str(config), "--check-hidden"]
        done = subprocess.run(
            [*command, "."], cwd=folder, capture_output=True, text=True, encoding="utf-8"
        )
    lines = [line.removeprefix("./").replace("\\", "/") for line in done.stdout.splitlines()]
    # Exit status 65 means that something was found.
    if done.returncode not in (0, 65) or bool(done.returncode) != bool(lines):
        raise RuntimeError(f"codespell failed ({done.returncode}): {done.stderr.strip()}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Both checks, the second even after a failure of the first; 1 when something was found."""
    rest = sys.argv[1:] if arguments is None else list(arguments)
    command = [sys.executable, "-m", "ruff", "check", ".", *rest]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    found = misspellings(texts(ROOT))
    for line in found:
        print(line)
    print(f"spelling: {len(found)} misspelled" if found else "spelling: all well")
    return 1 if status or found else 0


if __name__ == "__main__":
    sys.exit(main())

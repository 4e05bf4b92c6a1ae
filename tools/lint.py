"""What `make lint` looks at: code (ruff) and spelling (codespell), notebooks included.

    python -m tools.lint [ARGUMENTS FOR RUFF]      such as --fix

codespell knows common misspellings and nothing else, so that words of the subject pass; what it
skips and lets pass stands in pyproject.toml, `[tool.codespell]`.
"""

from __future__ import annotations

import subprocess
import sys

from tools import ROOT

PLACES = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile", "conftest.py",
    "pyproject.toml", "docs", "notebooks", "slam_edu", "slam_course", "studies", "tests", "tools",
    ".github", *(str(path.relative_to(ROOT)) for path in (ROOT / "data").rglob("*.md")),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Both checks, the second even after a failure of the first; 1 when something was found."""
    python = [sys.executable, "-m"]
    places = [place for place in PLACES if (ROOT / place).exists()]
    commands = [[*python, "ruff", "check", ".", *arguments], [*python, "codespell_lib", *places]]
    return max(min(1, subprocess.call(command, cwd=ROOT)) for command in commands)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

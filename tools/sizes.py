"""How large each part of the repository is, beside its aim: ``python -m tools.sizes``."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from tools import ROOT

METHOD = ("schedule", "prediction", "solver", "subpath", "consistency", "losses", "distill",
          "embedding", "ema", "sampling", "training", "_validation")  # fmt: skip
# part: (lines before the course was split off, aim)
PARTS = {
    "method": (2450, 1500),
    "slam_edu": (31249, 8500),
    "slam_course": (0, 7000),
    "studies": (0, 2800),
    "tools": (3922, 1800),
    "tests": (30665, 13000),
}


def files_of(part: str) -> list[Path]:
    """The Python files of a part."""
    if part == "method":
        paths = [ROOT / "slam_edu" / f"{name}.py" for name in METHOD]
        return [path for path in paths if path.exists()]
    return sorted((ROOT / part).rglob("*.py"))


def split(path: Path) -> tuple[int, int, int]:
    """Lines of (code, docstrings and comments, blank) of a file; their sum is ``wc -l``."""
    text = path.read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    words = {number for number, line in enumerate(lines, 1) if line.startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                words |= set(range(node.lineno, node.end_lineno + 1))
    blank = sum(not line and number not in words for number, line in enumerate(lines, 1))
    return len(lines) - len(words) - blank, len(words), blank


def main(names: list[str]) -> None:
    """Print the table, and the files of the parts that are named, largest first."""
    print(f"{'part':<12}{'before':>8}{'aim':>8}{'now':>8}{'code':>8}{'text':>7}{'blank':>7}")
    for part, (before, aim) in PARTS.items():
        counts = [sum(column) for column in zip(*map(split, files_of(part)), strict=True)]
        code, words, blank = counts or (0, 0, 0)
        total = code + words + blank
        print(f"{part:<12}{before:>8,}{aim:>8,}{total:>8,}{code:>8,}{words:>7,}{blank:>7,}")
    for part in names:
        sizes = {path: sum(split(path)) for path in files_of(part)}
        for path in sorted(sizes, key=sizes.get, reverse=True):
            print(f"{sizes[path]:>6,}  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])

r"""The symbols of the lessons: meaning, name in the code, and the lesson that brings each in.

    >>> from slam_course import glossary
    >>> glossary.find("gamma")[0].code
    ('slam_edu.DistillOutput.gamma', 'slam_edu.interpolate(gamma)')

``glossary.show()`` prints the table in a notebook, ``python -m slam_course.glossary`` in a
terminal, with ``--lesson 4`` the rows of one lesson. The rows are in glossary.csv, formulas in
LaTeX; the website's page is made from :data:`SYMBOLS` as well.
"""

from __future__ import annotations

import argparse
import csv
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LESSONS = range(10)


@dataclass(frozen=True, kw_only=True)
class Symbol:
    """One symbol.

    ``code`` are full names in the library: ``slam_edu.Level.alpha`` is an attribute,
    ``slam_edu.interpolate(gamma)`` a function and its argument.
    """

    symbol: str  # in LaTeX, as the lessons write it
    plain: str  # for a terminal, in letters that every keyboard has
    meaning: str  # one or two phrases; formulas in LaTeX between dollar signs
    code: tuple[str, ...]
    lesson: int  # that defines it


def _symbol(row: dict[str, str]) -> Symbol:
    code = tuple(f"slam_edu.{name}" for name in row["code"].split("; ") if name)
    return Symbol(**{**row, "code": code, "lesson": int(row["lesson"])})


def _read(path: Path) -> tuple[Symbol, ...]:
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(map(_symbol, csv.DictReader(file)))


SYMBOLS = _read(Path(__file__).with_suffix(".csv"))


def find(plain: str) -> list[Symbol]:
    """The symbols with that plain name, of which some letters have several.

    Raises:
        ValueError: there is none.
    """
    found = [symbol for symbol in SYMBOLS if symbol.plain == plain]
    if not found:
        names = ", ".join(dict.fromkeys(symbol.plain for symbol in SYMBOLS))
        raise ValueError(f"there is no symbol {plain!r}; allowed: {names}")
    return found


class Table:
    """Symbols, shown as a table: rendered in a notebook, as text in a terminal."""

    def __init__(self, symbols: Sequence[Symbol]) -> None:
        self.symbols = tuple(symbols)

    def _repr_markdown_(self) -> str:
        lines = ["| symbol | meaning | in the code | lesson |", "|---|---|---|---|"]
        for symbol in self.symbols:
            code = ", ".join(f"`{_short(name)}`" for name in symbol.code)
            cells = (f"${symbol.symbol}$", symbol.meaning, code, f"{symbol.lesson:02d}")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def __repr__(self) -> str:
        blocks = []
        for symbol in self.symbols:
            code = ", ".join(map(_short, symbol.code)) or "(no name in the code)"
            text = f"{_plainly(symbol.meaning)}. {code}; lesson {symbol.lesson:02d}"
            # The name stands in the first 18 columns, the text beside it.
            indented = textwrap.indent(textwrap.fill(text, width=80), " " * 18)
            blocks.append(f"{symbol.plain:<18}{indented[18:]}")
        return "\n".join(blocks)


def _plainly(text: str) -> str:
    """A meaning without LaTeX's marks, for a terminal."""
    for latex, plain in ((r"\,", " "), (r"\tfrac12", "1/2"), (r"\leftarrow", "<-")):
        text = text.replace(latex, plain)
    return text.translate(str.maketrans({"$": "", "\\": "", "{": "(", "}": ")"}))


def _short(name: str) -> str:
    return name.removeprefix("slam_edu.")


def show(lesson: int | None = None) -> Table:
    """The table of all symbols, or of those that one lesson brings in.

    Raises:
        ValueError: for a lesson that does not exist.
    """
    if lesson is not None and lesson not in LESSONS:
        raise ValueError(f"lesson is {lesson!r}; allowed: 0 to {LESSONS[-1]}, or None for all")
    return Table([symbol for symbol in SYMBOLS if lesson in (None, symbol.lesson)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m slam_course.glossary", description="Print the table."
    )
    parser.add_argument("--lesson", type=int, choices=LESSONS, help="of one lesson alone")
    print(show(parser.parse_args().lesson))

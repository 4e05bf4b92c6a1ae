"""Where the exercises of a lesson are: read from tags, which JupyterLab's side panel can set.

An exercise begins with a markdown cell that has a heading `## Exercise N: …` and a folded hint.
Three tagged code cells follow, in this order:

| tag | the cell |
|---|---|
| `stub` | what the learner fills in: it holds `...` |
| `check`, `points:N` | ends with a call of a check, `checks.NAME(…)`, shown as its value |
| `solution` | defines an answer, then `verdict = checks.…`, `assert verdict.passed`, `verdict` |

One cell may be stub and check at once. Code cells between the heading and the stub belong to the
exercise. The arguments of the two calls correspond: where the lesson goes on with
`euler_solution`, a student's copy goes on with `euler_step` (tools/editions.py).
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import partial

from nbformat import NotebookNode

from tools.notebooks import tags

TAGS = ("stub", "check", "solution")
_HEADING = re.compile(r"^#{2,6}\s+Exercise\s+(\d+)\s*(?::\s*(.+?))?\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a check: its name, its arguments and all of it as written, its first line."""

    name: str
    arguments: tuple[str, ...]
    source: str
    line: int  # in the cell, from 1


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """An exercise's cells, as indices into the notebook's cells from 0, and what is in them."""

    number: int  # in the lesson, from 1
    title: str
    points: int
    heading: int
    given: tuple[int, ...]  # code cells that lead to the stub
    stub: int
    check: int
    solution: int
    call: Call  # of the check, with the learner's answers
    answers: tuple[tuple[str, str], ...]  # the learner's and the solution's, as written
    lines: tuple[str, ...]  # of the solution, without its check and what stands behind that

    @property
    def renamed(self) -> dict[str, str]:
        """{the solution's name: the learner's}, where both are names."""
        return {theirs: mine for mine, theirs in self.answers if theirs.endswith("_solution")}


def check_call(source: str, kind: type[ast.stmt]) -> Call | None:
    """The last `checks.NAME(…)` of a cell that is a statement of this kind, None without one."""
    for node in reversed(ast.parse(source).body):
        match node:
            case kind(value=ast.Call(func=ast.Attribute(ast.Name("checks"), name)) as call):
                text = partial(ast.get_source_segment, source)
                return Call(name=name, arguments=tuple(map(text, call.args)), source=text(call),
                            line=node.lineno)  # fmt: skip
    return None


def find_exercises(nb: NotebookNode) -> list[Exercise]:
    """The exercises of a lesson, in order; a ValueError has a sentence for each fault."""
    starts = [
        (index, match)
        for index, cell in enumerate(nb.cells)
        if cell.cell_type == "markdown"
        for match in _HEADING.finditer(cell.source)
    ]
    if not starts:
        raise ValueError("there is no heading `## Exercise 1: …`")
    ends = [index for index, _ in starts[1:]] + [len(nb.cells)]
    found, faults = [], []
    for count, ((start, match), end) in enumerate(zip(starts, ends, strict=True), start=1):
        try:
            if int(match[1]) != count:
                raise ValueError(f"should have number {count}")
            found.append(_read(nb, count, match[2] or "", start, end))
        except ValueError as error:
            faults.append(f"exercise {match[1]} (cell {start + 1}) {error}")
    if faults:
        raise ValueError("\n".join(faults))
    return found


def _read(nb: NotebookNode, number: int, title: str, start: int, end: int) -> Exercise:
    """The exercise between two headings; a ValueError's text goes on after its name."""

    def require(condition: bool, fault: str) -> None:
        if not condition:
            raise ValueError(fault)

    at = [[i for i in range(start, end) if tag in tags(nb.cells[i])] for tag in TAGS]
    for tag, cells in zip(TAGS, at, strict=True):
        require(len(cells) == 1, f"needs one cell with the tag {tag!r}, got {len(cells)}")
    stub, check, solution = (cells[0] for cells in at)
    require(
        check - stub in (0, 1) and solution == check + 1,
        f"needs stub, check and solution one after another, got cells {stub + 1}, {check + 1}, "
        f"{solution + 1}",
    )
    hinted = "<details>" in nb.cells[start].source
    require(hinted, "has no folded hint, `<details>`, at its heading")
    marks = [re.fullmatch(r"points:([1-9]\d*)", tag) for tag in tags(nb.cells[check])]
    points = [int(mark[1]) for mark in marks if mark]
    require(len(points) == 1, f"needs one tag such as 'points:4' at its check, got {points}")
    require("..." in nb.cells[stub].source, "has no `...` in its stub")
    source = nb.cells[solution].source
    call, solved = check_call(nb.cells[check].source, ast.Expr), check_call(source, ast.Assign)
    require(call is not None, "has a check cell that does not end with a call `checks.NAME(…)`")
    ends_well = solved is not None and source.endswith("\nverdict")
    require(ends_well, "has a solution that does not end with its check's `verdict`")
    same = (call.name, len(call.arguments)) == (solved.name, len(solved.arguments))
    require(same, f"checks the answer by {call.source}, the solution by {solved.source}")
    pairs = zip(call.arguments, solved.arguments, strict=True)
    answers = tuple((mine, theirs) for mine, theirs in pairs if mine != theirs)
    odd = [mine for mine, _ in answers if not mine.isidentifier()]
    require(bool(answers) and not odd, f"checks {odd or 'nothing of the learner'}; give it a name")
    lines = source.splitlines()[: solved.line - 1]
    return Exercise(
        number=number, title=title, points=points[0], heading=start, stub=stub, check=check,
        solution=solution, call=call, answers=answers,
        given=tuple(i for i in range(start, stub) if nb.cells[i].cell_type == "code"),
        lines=tuple(line for line in lines if not line.startswith("# One solution")),
    )  # fmt: skip


def exercise_minutes(nb: NotebookNode, count: int) -> list[int]:
    """Minutes for each of `count` exercises, from the budget card: "3 × 8 min, the clinic 10 min".

    A ValueError says that the card has other numbers than `count` exercises.
    """
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    card = re.search(r"^\| (?:\w+ )?exercises[^|]*\|(.+)\|$", text, re.MULTILINE)
    rows = re.findall(r"(?:(\d+) × )?(\d+) min", card[1] if card else "")
    minutes = [int(each) for times, each in rows for _ in range(int(times or 1))]
    if len(minutes) != count:
        raise ValueError(f"the budget card has minutes {minutes} for {count} exercises")
    return minutes

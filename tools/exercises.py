"""Where the exercises of a lesson are: read from tags, which JupyterLab's side panel can set.

An exercise begins with a markdown cell that has a heading `## Exercise N: …` and a folded hint.
Three tagged code cells follow, in this order:

| tag | the cell |
|---|---|
| `stub` | what the learner fills in: it holds `...` |
| `check`, `points:N` | ends with a call of a check of `slam_course.checks`, shown as its value |
| `solution` | defines an answer, then `verdict = checks.…`, `assert verdict.passed`, `verdict` |

One cell may be stub and check at once. Code cells between the heading and the stub belong to the
exercise. The names that the check and the solution's check are called with correspond: where the
lesson goes on with `euler_solution`, a student's copy goes on with `euler_step`
(tools/editions.py).
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from nbformat import NotebookNode

STUB, CHECK, SOLUTION = "stub", "check", "solution"
TAGS = (STUB, CHECK, SOLUTION)

_HEADING = re.compile(r"^#{2,6}\s+Exercise\s+(\d+)\s*(?::\s*(.+?))?\s*$", re.MULTILINE)
_POINTS = re.compile(r"points:(\d+)")
_COUNTED = re.compile(r"(\d+) × (\d+) min")
_MINUTES = re.compile(r"(\d+) min")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a check.

    Attributes:
        name: of the check, such as "euler_step".
        arguments: each as it is written.
        source: the whole call as it is written.
        first, last: its lines in the cell, from 1.
    """

    name: str
    arguments: tuple[str, ...]
    source: str
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """An exercise's cells, as indices into the notebook's cells from 0.

    Attributes:
        number: in the lesson, from 1.
        title: the words of its heading.
        points: what it is worth.
        heading, given, stub, check, solution: its cells; `given` are code cells that lead to it.
        call: of the check, with the learner's answers.
        answers: the learner's answers and the solution's, as they are written, pairwise.
        lines: of the solution cell, without its check and what stands behind that.
    """

    number: int
    title: str
    points: int
    heading: int
    given: tuple[int, ...]
    stub: int
    check: int
    solution: int
    call: Call
    answers: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]

    @property
    def renamed(self) -> dict[str, str]:
        """{the solution's name: the learner's}, where both are names."""
        return {theirs: mine for mine, theirs in self.answers if theirs.endswith("_solution")}


def tags(cell: NotebookNode) -> list[str]:
    """A cell's tags."""
    return cell.metadata.get("tags", [])


def check_call(cell: NotebookNode, *, assigned: bool = False) -> Call | None:
    """The call `checks.NAME(…)` that a cell ends with, or that it assigns; None without one."""
    for node in ast.parse(cell.source).body[:: 1 if assigned else -1]:
        value = node.value if isinstance(node, (ast.Assign, ast.Expr)) else None
        wanted = isinstance(node, ast.Assign if assigned else ast.Expr)
        if (
            wanted
            and isinstance(value, ast.Call)
            and isinstance(value.func, ast.Attribute)
            and isinstance(value.func.value, ast.Name)
            and value.func.value.id == "checks"
        ):
            arguments = [ast.get_source_segment(cell.source, each) for each in value.args]
            return Call(
                name=value.func.attr,
                arguments=tuple(arguments),
                source=ast.get_source_segment(cell.source, value),
                first=node.lineno,
                last=node.end_lineno,
            )
        if not assigned:
            return None  # the last statement is something else
    return None


def find_exercises(nb: NotebookNode) -> list[Exercise]:
    """The exercises of a lesson, in order.

    Raises:
        ValueError: the tags do not fit together; the message is one sentence per fault.
    """
    found, faults = [], []
    headings = [
        (index, match)
        for index, cell in enumerate(nb.cells)
        if cell.cell_type == "markdown"
        for match in _HEADING.finditer(cell.source)
    ]
    if not headings:
        return []
    ends = [index for index, _ in headings[1:]] + [len(nb.cells)]
    for count, ((start, match), end) in enumerate(zip(headings, ends, strict=True), start=1):
        where = f"exercise {match[1]} (cell {start + 1})"
        if int(match[1]) != count:
            faults.append(f"{where} should have number {count}")
        if "<details>" not in nb.cells[start].source:
            faults.append(f"{where} has no folded hint, `<details>`, in the cell of its heading")
        try:
            found.append(_read(nb, count, match[2] or "", start, end))
        except ValueError as error:
            faults.append(f"{where} {error}")
    before = enumerate(nb.cells[: headings[0][0]], start=1)
    strays = [number for number, cell in before if set(tags(cell)) & set(TAGS)]
    if strays:
        faults.append(f"cells {strays} have an exercise's tags before the first exercise")
    if faults:
        raise ValueError("\n".join(faults))
    return found


def _read(nb: NotebookNode, number: int, title: str, start: int, end: int) -> Exercise:
    """The exercise between two headings; a ValueError's text goes on after its name."""
    at = {}
    for tag in TAGS:
        cells = [index for index in range(start, end) if tag in tags(nb.cells[index])]
        if len(cells) != 1:
            raise ValueError(f"needs one cell with the tag {tag!r}, got {len(cells)}")
        [at[tag]] = cells
    stub, check, solution = (at[tag] for tag in TAGS)
    if not start < stub <= check < solution or check - stub > 1 or solution - check > 1:
        order = ", ".join(f"{tag} {index + 1}" for tag, index in at.items())
        raise ValueError(f"needs stub, check and solution one after another, got cells {order}")
    matches = [_POINTS.fullmatch(tag) for tag in tags(nb.cells[check])]
    points = [int(match[1]) for match in matches if match]
    if len(points) != 1 or points[0] < 1:
        raise ValueError(f"needs one tag such as 'points:4' at its check, got {points}")
    if not any(
        isinstance(node, ast.Constant) and node.value is ...
        for node in ast.walk(ast.parse(nb.cells[stub].source))
    ):
        raise ValueError("has no `...` in its stub")
    call = check_call(nb.cells[check])
    solved = check_call(nb.cells[solution], assigned=True)
    if call is None:
        raise ValueError("has a check cell that does not end with a call `checks.NAME(…)`")
    if solved is None or not nb.cells[solution].source.endswith("\nverdict"):
        raise ValueError("has a solution that does not end with its check's `verdict`")
    if (call.name, len(call.arguments)) != (solved.name, len(solved.arguments)):
        raise ValueError(f"checks the answer by {call.source}, the solution by {solved.source}")
    pairs = zip(call.arguments, solved.arguments, strict=True)
    answers = tuple((mine, theirs) for mine, theirs in pairs if mine != theirs)
    odd = [mine for mine, _ in answers if not mine.isidentifier()]
    if not answers or odd:
        raise ValueError(f"checks {odd or 'nothing of the learner'}; a name is needed")
    lines = nb.cells[solution].source.splitlines()[: solved.first - 1]
    return Exercise(
        number=number,
        title=title,
        points=points[0],
        heading=start,
        given=tuple(i for i in range(start, stub) if nb.cells[i].cell_type == "code"),
        stub=stub,
        check=check,
        solution=solution,
        call=call,
        answers=answers,
        lines=tuple(line for line in lines if not line.startswith("# One solution")),
    )


def exercise_minutes(nb: NotebookNode, count: int) -> list[int]:
    """Minutes for each of `count` exercises, from the budget card: "3 × 8 min, the clinic 10 min".

    Raises:
        ValueError: the card says nothing, or its numbers are not those of `count` exercises.
    """
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    card = re.search(r"^\| (?:\w+ )?exercises[^|]*\|(.+)\|$", text, re.MULTILINE)
    if card is None:
        raise ValueError("the budget card has no row '| exercises | … min |'")
    minutes = [int(m[2]) for m in _COUNTED.finditer(card[1]) for _ in range(int(m[1]))]
    minutes += [int(m[1]) for m in _MINUTES.finditer(_COUNTED.sub("", card[1]))]
    if len(minutes) != count:
        raise ValueError(f"the budget card has minutes {minutes} for {count} exercises")
    return minutes

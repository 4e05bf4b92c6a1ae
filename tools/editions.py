"""Make the editions of the lessons: for students, for instructors, and for nbgrader.

    python -m tools.editions             write editions/student and editions/instructor
    python -m tools.editions --check     write nothing; exit 1 if a committed edition is stale

`notebooks/` is the only source. The same source gives the same bytes.

- **Student edition** (committed): stubs with folded hints, locked checks that raise with the
  verdict's sentence, no solution and no output. Where a lesson goes on with a solution it goes on
  with the learner's answer. The last cell counts points. Cells carry nbgrader's metadata, so that
  a copy from anywhere can be handed in to a class.
- **Instructor edition** (not committed: it repeats every output of `notebooks/`): outputs,
  solutions unfolded, and a rubric behind each: points, minutes, what is graded, and the sentences
  that the check has for common mistakes, which editions/mistakes.json holds (tools/mistakes.py).
- **Source for nbgrader**: the student edition with the solutions between `### BEGIN SOLUTION` and
  `### END SOLUTION`, for `make class` (tools/classroom.py).

A passage of a markdown cell between `<!-- source -->` and `<!-- /source -->` is left out of the
student edition; what stands in `<!-- student: … -->` is to be read there alone.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools import ROOT, command_line
from tools.exercises import Exercise, exercise_minutes, find_exercises
from tools.notebooks import KERNELSPEC, SETUP_TAG, read_lessons, to_text

EDITIONS = ROOT / "editions"
MISTAKES = EDITIONS / "mistakes.json"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"

_SOURCE_ONLY = re.compile(r"<!-- source -->.*?<!-- /source -->", re.DOTALL)
_STUDENT_ONLY = re.compile(r"<!-- student:(.*?) -->", re.DOTALL)


def edition(cells: list[NotebookNode]) -> NotebookNode:
    """A notebook with the metadata that every edition has."""
    metadata = {"kernelspec": dict(KERNELSPEC), "language_info": {"name": "python"}}
    nb = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nb.nbformat_minor = 5
    return nb


def code_cell(id: str, source: str, metadata: dict | None = None) -> NotebookNode:
    """A code cell without outputs."""
    return nbformat.v4.new_code_cell(source, id=id, metadata=metadata or {})


def nbgrader_metadata(id: str, kind: str, points: int | None = None) -> dict:
    """A cell's metadata after nbgrader's schema 3; kind is "solution", "grade" or "locked"."""
    solution = kind == "solution"
    metadata = {
        "cell_type": "code", "grade": kind == "grade", "grade_id": id, "locked": not solution,
        "schema_version": 3, "solution": solution, "task": False,
    }  # fmt: skip
    if points is not None:
        metadata["points"] = points
    return {"deletable": False, "nbgrader": metadata} | ({} if solution else {"editable": False})


# -------------------- The student edition


def student_text(markdown: str) -> str:
    """A markdown cell as the student edition has it."""
    return _STUDENT_ONLY.sub(r"\1", _SOURCE_ONLY.sub("", markdown)).strip("\n")


def renamed(source: str, names: dict[str, str]) -> str:
    """Code with each of the solutions' names, whole words, replaced by the learner's."""
    for theirs, mine in names.items():
        source = re.sub(rf"\b{re.escape(theirs)}\b", mine, source)
    return source


def check_source(cell: NotebookNode, exercise: Exercise) -> str:
    """The check as a test: it raises with the verdict's sentence, and prints it when right."""
    both = exercise.check == exercise.stub
    before = [] if both else cell.source.splitlines()[: exercise.call.line - 1]
    test = ["assert verdict.passed, verdict", "print(verdict)"]
    return "\n".join([*before, f"verdict = {exercise.call.source}", *test])


def solution_source(exercise: Exercise, names: dict[str, str]) -> str:
    """The solution's code, binding the learner's names; `names` are those of the lesson so far."""
    code = renamed("\n".join(exercise.lines).strip("\n"), {**names, **exercise.renamed})
    rest = [f"{mine} = {name}" for mine, name in exercise.answers if name not in exercise.renamed]
    return "\n".join([*filter(None, [code]), *rest])


def student_edition(nb: NotebookNode, *, solved: bool = False) -> NotebookNode:
    """A lesson for students; with `solved`, what nbgrader makes it from.

    Raises ValueError where the lesson's exercises are not marked.
    """
    exercises = find_exercises(nb)
    stubs = {each.stub: each for each in exercises}
    checks = {each.check: each for each in exercises}
    solutions = {each.solution: each for each in exercises}
    given = {index for each in exercises for index in each.given}
    code = [index for index, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    names: dict[str, str] = {}  # of the solutions so far
    cells = []
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            text = student_text(cell.source)
            if text.strip():  # a cell may be for the source alone
                cells.append(nbformat.v4.new_markdown_cell(text, id=cell.id))
        elif index in solutions:
            names.update(solutions[index].renamed)
        elif index in stubs or index in checks:
            if index in stubs:
                each, source = stubs[index], cell.source
                if each.check == index:  # one cell is both
                    source = "\n".join(source.splitlines()[: each.call.line - 1]).rstrip()
                if solved:
                    source = "\n".join([source, BEGIN, solution_source(each, names), END])
                metadata = nbgrader_metadata(f"exercise-{each.number}", "solution")
                cells.append(code_cell(cell.id, source, metadata))
            if index in checks:
                each = checks[index]
                metadata = nbgrader_metadata(f"exercise-{each.number}-check", "grade", each.points)
                own_id = cell.id if each.stub != index else f"{cell.id}-check"
                cells.append(code_cell(own_id, check_source(cell, each), metadata))
        else:
            metadata = {}
            if index == code[0]:
                metadata = {**nbgrader_metadata("setup", "locked"), "tags": [SETUP_TAG]}
            elif index == code[1]:
                metadata = nbgrader_metadata("imports", "locked")
            elif index in given:
                metadata = nbgrader_metadata(f"given-{cell.id}", "locked")
            cells.append(code_cell(cell.id, renamed(cell.source, names), metadata))
    made = edition(cells + summary_cells(exercises))
    for cell in [cell for cell in made.cells if cell.cell_type == "code"][2:]:
        # "Run All" goes on behind a check that raises, up to the points.
        cell.metadata["tags"] = ["raises-exception"]
    if not solved:
        add_checksums(made)
    return made


def summary_cells(exercises: list[Exercise]) -> list[NotebookNode]:
    """The end of the student edition: which answers are right, and their points."""
    text = (
        "## Your points\n\nThe last verdict on each exercise since the kernel was started. Before "
        "you hand in: *Kernel, Restart Kernel and Run All Cells*, and save."
    )
    rows = "".join(f"    checks.{each.call.name}: {each.points},\n" for each in exercises)
    code = (
        f"from slam_course.checks import summary\n\npoints = {{\n{rows}}}\nprint(summary(points))"
    )
    return [
        nbformat.v4.new_markdown_cell(text, id="points"),
        code_cell("points-summary", code, nbgrader_metadata("summary", "locked")),
    ]


def add_checksums(nb: NotebookNode) -> None:
    """Give every cell that nbgrader knows its checksum, as a release has it."""
    from nbgrader.utils import compute_checksum  # only who makes editions needs nbgrader

    for cell in nb.cells:
        if "nbgrader" in cell.metadata:
            cell.metadata.nbgrader["checksum"] = compute_checksum(cell)


def leaks(student: NotebookNode, nb: NotebookNode) -> list[str]:
    """Lines of solutions, and their names, that a student's notebook holds anywhere.

    A line counts as the solution's own if the lesson has it in no other cell.
    """
    exercises = find_exercises(nb)
    hidden = {each.solution for each in exercises}
    lines: dict[bool, set[str]] = {True: set(), False: set()}
    for index, cell in enumerate(nb.cells):
        lines[index in hidden] |= {line.strip() for line in cell.source.splitlines()}
    names = {name: mine for each in exercises for name, mine in each.renamed.items()}
    own = lines[True] | {renamed(line, names) for line in lines[True]}
    # What solutions and the student edition's checks have in common.
    kept = {"assert verdict.passed"} | {f"verdict = {each.call.source}" for each in exercises}
    secret = {line for line in own - lines[False] - kept if len(line) > len("verdict")} | {*names}
    text = json.dumps(student, ensure_ascii=False)  # outputs and metadata too
    return sorted(line for line in secret if json.dumps(line, ensure_ascii=False)[1:-1] in text)


# -------------------- The instructor edition


def rubric(exercise: Exercise, minutes: int, praise: str, mistakes: list[str]) -> str:
    """The instructor's notes to one exercise, as markdown."""
    points = f"{exercise.points} point{'s' * (exercise.points > 1)}"
    return (
        f"### Rubric: exercise {exercise.number}, {exercise.title}\n\n"
        f"**{points}, {minutes} minutes.** Graded by `{exercise.call.source}`: all the points "
        f"when it passes, none otherwise. To a right answer it says:\n\n> {praise}\n\n"
        f"**Common mistakes**, in the words of the check ({len(mistakes)}):\n\n"
    ) + "\n".join(f"- {sentence}" for sentence in mistakes)


def lesson_notes(nb: NotebookNode, exercises: list[Exercise], minutes: list[int]) -> str:
    """The instructor's notes to a lesson: its exercises, points and times, as markdown."""
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    budget = re.findall(r"^\| (reading|running all cells|memory) \| (.+) \|$", text, re.M)
    rows = "\n".join(
        f"| {each.number}: {each.title} | {each.points} | {spent} min | `{each.call.source}` |"
        for each, spent in zip(exercises, minutes, strict=True)
    )
    return (
        "## For the instructor\n\nThis edition holds the solutions and is not for students. "
        f"`make editions` writes it.\n\n| exercise | points | time | check |\n|---|---|---|---|\n"
        f"{rows}\n"
        f"| all | {sum(each.points for each in exercises)} | {sum(minutes)} min | |\n\n"
        f"{'; '.join(f'{what}: {value}' for what, value in budget)}."
    )


def instructor_edition(nb: NotebookNode, mistakes: dict[str, list[str]]) -> NotebookNode:
    """A lesson for instructors; `mistakes` are its checks' sentences to wrong answers."""
    exercises = find_exercises(nb)
    minutes = exercise_minutes(nb, len(exercises))
    solved = {each.solution: (each, spent) for each, spent in zip(exercises, minutes, strict=True)}
    notes = nbformat.v4.new_markdown_cell(lesson_notes(nb, exercises, minutes), id="instructor")
    cells = []
    for index, cell in enumerate(copy.deepcopy(nb.cells)):
        if cell.cell_type == "markdown":
            cell.source = _STUDENT_ONLY.sub("", cell.source)
        cells += [cell, notes] if index == 0 else [cell]
        if index in solved:
            each, spent = solved[index]
            cell.metadata.pop("jupyter", None)  # unfolded
            praise = cell.outputs[-1].data["text/plain"].split(": right. ", 1)[1]
            text = rubric(each, spent, praise, mistakes[each.call.name])
            cells.append(nbformat.v4.new_markdown_cell(text, id=f"rubric-{each.number}"))
    made = edition(cells)
    if "widgets" in nb.metadata:
        made.metadata["widgets"] = copy.deepcopy(nb.metadata["widgets"])
    return made


def make_editions() -> dict[Path, str]:
    """{file: text} of both editions of all lessons; a ValueError names the lesson at fault."""
    mistakes = json.loads(MISTAKES.read_text("utf-8"))
    made = {}
    for name, nb in read_lessons().items():
        try:
            student = student_edition(nb)
            instructor = instructor_edition(nb, mistakes[f"lesson_{name[:2]}"])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        found = leaks(student, nb)
        if found:
            raise ValueError(f"{name}: the student edition would hold a solution, {found[0]}")
        made[EDITIONS / "student" / f"{name}.ipynb"] = to_text(student)
        made[EDITIONS / "instructor" / f"{name}.ipynb"] = to_text(instructor)
    return made


def worked_in(text: str) -> bool:
    """Whether somebody has run cells of a student edition; as it is written none has."""
    return any(cell.get("execution_count") for cell in json.loads(text)["cells"])


def main(arguments: list[str] | None = None) -> int:
    """Write the editions, or compare the committed one."""
    parser = command_line("editions", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    parser.add_argument("--force", action="store_true", help="overwrite notebooks with answers")
    options = parser.parse_args(arguments)
    try:
        made = make_editions()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    there = {path: path.read_text("utf-8") for path in EDITIONS.glob("*/*.ipynb")}
    stale = sorted(path for path in {*there, *made} if there.get(path) != made.get(path))
    if options.check:
        stale = [path for path in stale if path.parent.name == "student"]
        print("\n".join(f"STALE    {path.name}; run `make editions`" for path in stale) or "fresh")
        return 1 if stale else 0
    students = [path for path in stale if path in there and path.parent.name == "student"]
    answers = ", ".join(path.name for path in students if worked_in(there[path]))
    if answers and not options.force:
        where = "in editions/student would be overwritten, and somebody has worked in it"
        print(f"error: {answers} {where}; allowed: another place for it, --force", file=sys.stderr)
        return 2
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path in made:
            path.write_text(made[path], encoding="utf-8", newline="\n")
        what = "wrote" if path in made else "of no lesson, and left as it is:"
        print(f"{what} {path.relative_to(EDITIONS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
  that the check has for common mistakes, which editions/mistakes.json holds
  (tools/collect_answers.py).
- **Source for nbgrader**: the student edition with the solutions between `### BEGIN SOLUTION` and
  `### END SOLUTION`, for `make class` (tools/classroom.py).

A passage of a markdown cell between `<!-- source -->` and `<!-- /source -->` is left out of the
student edition; what stands in `<!-- student: … -->` is to be read there alone.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import re
import symtable
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from slam_edu.io import atomic_path
from tools.exercises import Exercise, exercise_minutes, find_exercises, tags
from tools.notebooks import KERNELSPEC, NOTEBOOKS, ROOT, SETUP_TAG, to_text

EDITIONS = ROOT / "editions"
MISTAKES = EDITIONS / "mistakes.json"

_SOURCE_ONLY = re.compile(r"<!-- source -->.*?<!-- /source -->", re.DOTALL)
_STUDENT_ONLY = re.compile(r"<!-- student:(.*?) -->", re.DOTALL)


# ---------------------------------------------------------------------------------------------
# What the editions share
# ---------------------------------------------------------------------------------------------


def read_lessons() -> dict[str, NotebookNode]:
    """{name without suffix: notebook} of all lessons."""
    return {
        path.stem: nbformat.reads(path.read_bytes().decode("utf-8"), as_version=4)
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    }


def checks_of(name: str) -> object:
    """The module with a lesson's checks: of "01_diffusion…" it is slam_course.lesson_01.checks."""
    return importlib.import_module(f"slam_course.checks.lesson_{name[:2]}")


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
    metadata = {
        "cell_type": "code",
        "grade": kind == "grade",
        "grade_id": id,
        "locked": kind != "solution",
        "schema_version": 3,
        "solution": kind == "solution",
        "task": False,
    }
    if points is not None:
        metadata["points"] = points
    found: dict = {"deletable": False, "nbgrader": metadata}
    if kind != "solution":
        found["editable"] = False
    return found


# ---------------------------------------------------------------------------------------------
# The student edition
# ---------------------------------------------------------------------------------------------


def student_text(markdown: str) -> str:
    """A markdown cell as the student edition has it."""
    return _STUDENT_ONLY.sub(r"\1", _SOURCE_ONLY.sub("", markdown)).strip("\n")


def renamed(source: str, names: dict[str, str]) -> str:
    """Code with each of the solutions' names, whole words, replaced by the learner's."""
    for theirs, mine in names.items():
        source = re.sub(rf"\b{re.escape(theirs)}\b", mine, source)
    return source


class _AsGenerators(ast.NodeTransformer):
    """Every comprehension as a generator: from Python 3.12 on only these keep their names."""

    def _generator(self, node: ast.ListComp | ast.SetComp | ast.DictComp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node, ast.DictComp):
            element = ast.Tuple([node.key, node.value], ast.Load())
        else:
            element = node.elt
        return ast.GeneratorExp(element, node.generators)

    visit_ListComp = visit_SetComp = visit_DictComp = _generator


def globals_of(source: str) -> tuple[set[str], set[str]]:
    """(names that a cell binds for later cells, global names that it reads at any depth)."""
    binds, reads = set(), set()
    tree = _AsGenerators().visit(ast.parse(source))
    code = ast.unparse(ast.fix_missing_locations(tree))
    top = symtable.symtable(code, "cell", "exec")
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            here = table is top
            if here and (symbol.is_assigned() or symbol.is_imported()):
                binds.add(symbol.get_name())
            if symbol.is_referenced() and (here or symbol.is_global()):
                reads.add(symbol.get_name())
    return binds, reads


def first_lines(source: str, kind: type) -> dict[str, int]:
    """{name: first line} where code reads (ast.Load) or binds (ast.Store) a plain name."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, kind):
            found[node.id] = min(node.lineno, found.get(node.id, node.lineno))
    return found


def check_names(nb: NotebookNode, exercises: list[Exercise]) -> None:
    """Be sure that a lesson can go on with the learner's answers in place of the solutions.

    Raises:
        ValueError: a later cell uses a name that only the solution cell binds, or gives the
            learner's name to something else.
    """
    own = {cell for each in exercises for cell in (each.stub, each.check, each.solution)}
    for each in exercises:
        alone = globals_of(nb.cells[each.solution].source)[0] - each.renamed.keys() - {"verdict"}
        for index in range(each.solution + 1, len(nb.cells)):
            cell = nb.cells[index]
            if cell.cell_type != "code" or index in own:
                continue
            binds, reads = globals_of(cell.source)
            read, bound = first_lines(cell.source, ast.Load), first_lines(cell.source, ast.Store)
            late = sorted(
                name
                for name in alone & reads
                if name not in binds or read.get(name, 0) < bound.get(name, 0)
            )
            taken = sorted(set(each.renamed.values()) & binds)
            if late:
                raise ValueError(
                    f"cell {index + 1} uses {', '.join(late)} of the solution of exercise "
                    f"{each.number}, which a learner's answer does not have"
                )
            if taken:
                raise ValueError(
                    f"cell {index + 1} binds {', '.join(taken)}, the learner's answer to exercise "
                    f"{each.number}; choose another name"
                )
            alone -= binds


def stub_source(cell: NotebookNode, exercise: Exercise) -> str:
    """The stub's code; where one cell is stub and check, without the check."""
    if exercise.check != exercise.stub:
        return cell.source
    lines = cell.source.splitlines()
    return "\n".join(lines[: exercise.call.first - 1]).rstrip()


def check_source(cell: NotebookNode, exercise: Exercise) -> str:
    """The check as a test: it raises with the verdict's sentence, and prints it when right."""
    lines = [f"verdict = {exercise.call.source}", "assert verdict.passed, verdict"]
    lines.append("print(verdict)")
    if exercise.check != exercise.stub:
        lines[:0] = cell.source.splitlines()[: exercise.call.first - 1]
    return "\n".join(lines)


def solution_source(exercise: Exercise, names: dict[str, str]) -> str:
    """The solution's code, binding the learner's names; `names` are those of the lesson so far."""
    code = renamed("\n".join(exercise.lines).strip("\n"), {**names, **exercise.renamed})
    rest = [
        f"{mine} = {theirs}"
        for mine, theirs in exercise.answers
        if theirs not in exercise.renamed
    ]
    return "\n".join([*filter(None, [code]), *rest])


BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


def student_edition(name: str, nb: NotebookNode, *, solved: bool = False) -> NotebookNode:
    """A lesson for students; with `solved`, what nbgrader makes it from.

    Raises:
        ValueError: the lesson's exercises are not marked, or cannot be replaced.
    """
    exercises = find_exercises(nb)
    check_names(nb, exercises)
    stubs = {each.stub: each for each in exercises}
    checks = {each.check: each for each in exercises}
    dropped = {each.solution for each in exercises}
    given = {index for each in exercises for index in each.given}
    names: dict[str, str] = {}
    cells = []
    first_code = True
    imports = True  # the set-up cell and the one behind it: the checks need both
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            text = student_text(cell.source)
            if text.strip():  # a cell may be for the source alone
                cells.append(nbformat.v4.new_markdown_cell(text, id=cell.id))
            continue
        if index in dropped:
            [each] = (each for each in exercises if each.solution == index)
            names.update(each.renamed)
            continue
        if index in stubs:
            each = stubs[index]
            source, id = stub_source(cell, each), f"exercise-{each.number}"
            if solved:
                source = "\n".join([source, BEGIN, solution_source(each, names), END])
            cells.append(code_cell(cell.id, source, nbgrader_metadata(id, "solution")))
        if index in checks:
            each = checks[index]
            id = f"exercise-{each.number}-check"
            metadata = nbgrader_metadata(id, "grade", each.points)
            own_id = cell.id if each.stub != each.check else f"{cell.id}-check"
            cells.append(code_cell(own_id, check_source(cell, each), metadata))
        if index in stubs or index in checks:
            continue
        metadata = {}
        if SETUP_TAG in tags(cell):
            metadata = {**nbgrader_metadata("setup", "locked"), "tags": [SETUP_TAG]}
        elif first_code is False and imports:
            metadata, imports = nbgrader_metadata("imports", "locked"), False
        elif index in given:
            metadata = nbgrader_metadata(f"given-{cell.id}", "locked")
        first_code = False
        cells.append(code_cell(cell.id, renamed(cell.source, names), metadata))
    cells += summary_cells(exercises)
    made = edition(cells)
    if not solved:
        add_checksums(made)
    return made


def summary_cells(exercises: list[Exercise]) -> list[NotebookNode]:
    """The end of the student edition: which answers are right, and their points."""
    text = (
        "## Your points\n\nThe last verdict on each exercise since the kernel was started. Before "
        "you hand in: *Kernel, Restart Kernel and Run All Cells*, and save."
    )
    rows = [f"    checks.{each.call.name}: {each.points}," for each in exercises]
    first = "from slam_course.checks import summary"
    code = "\n".join([first, "", "points = {", *rows, "}", "print(summary(points))"])
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
    """Lines of solutions that a student's notebook holds, each where it was found.

    A line counts as the solution's own if the lesson has it nowhere else: not in another cell of
    the source, and not in the stub. All of the file is searched, outputs and metadata too.
    """
    exercises = find_exercises(nb)
    hidden = {each.solution for each in exercises}
    elsewhere = {
        line.strip()
        for index, cell in enumerate(nb.cells)
        if index not in hidden
        for line in cell.source.splitlines()
    }
    names = {name: mine for each in exercises for name, mine in each.renamed.items()}
    own = set()
    for index in hidden:
        for line in nb.cells[index].source.splitlines():
            for form in (line.strip(), renamed(line.strip(), names)):
                if form not in elsewhere and len(form) > len("verdict"):
                    own.add(form)
    # What solutions and the student edition's checks have in common.
    kept = {"assert verdict.passed"} | {f"verdict = {each.call.source}" for each in exercises}
    texts = [("metadata", text) for text in strings(student.metadata)]
    for number, cell in enumerate(student.cells, start=1):
        texts += [(f"cell {number}", text) for text in strings(cell)]
    return [
        f"{where}: {line}"
        for where, text in texts
        for line in sorted(own - kept)
        if line in text
    ] + [f"{where}: {name}" for where, text in texts for name in names if name in text]


def strings(tree: object) -> Iterator[str]:
    """Every text in a part of a notebook, keys included."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield key
            yield from strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from strings(value)


# ---------------------------------------------------------------------------------------------
# The instructor edition
# ---------------------------------------------------------------------------------------------


def read_mistakes() -> dict[str, dict[str, list[str]]]:
    """{lesson's module: {check: sentences for wrong answers}}."""
    return json.loads(MISTAKES.read_text("utf-8"))


def praise(cell: NotebookNode) -> str:
    """What the check says to the solution, from the stored output."""
    text = cell.outputs[-1].data["text/plain"]
    return text.split(": right. ", 1)[1]


def rubric(exercise: Exercise, minutes: int, praised: str, mistakes: list[str]) -> str:
    """The instructor's notes to one exercise, as markdown."""
    points = f"{exercise.points} point{'s' * (exercise.points > 1)}"
    lines = [
        f"### Rubric: exercise {exercise.number}, {exercise.title}",
        "",
        f"**{points}, {minutes} minutes.** Graded by `{exercise.call.source}`: all the points "
        f"when it passes, none otherwise. To a right answer it says:",
        "",
        f"> {praised}",
        "",
        f"**Common mistakes**, in the words of the check ({len(mistakes)}):",
        "",
        *(f"- {sentence}" for sentence in mistakes),
    ]
    return "\n".join(lines)


def lesson_notes(nb: NotebookNode, exercises: list[Exercise], minutes: list[int]) -> str:
    """The instructor's notes to a lesson: its exercises, points and times, as markdown."""
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    budget = re.findall(r"^\| (reading|running all cells|memory) \| (.+) \|$", text, re.M)
    rows = [
        f"| {each.number}: {each.title} | {each.points} | {spent} min | `{each.call.source}` |"
        for each, spent in zip(exercises, minutes, strict=True)
    ]
    return "\n".join(
        [
            "## For the instructor",
            "",
            "This edition holds the solutions and is not for students. `make editions` writes it.",
            "",
            "| exercise | points | time | check |",
            "|---|---|---|---|",
            *rows,
            f"| all | {sum(each.points for each in exercises)} | {sum(minutes)} min | |",
            "",
            "; ".join(f"{what}: {value}" for what, value in budget) + ".",
        ]
    )


def instructor_edition(
    name: str, nb: NotebookNode, mistakes: dict[str, list[str]]
) -> NotebookNode:
    """A lesson for instructors.

    Args:
        name: of the lesson.
        nb: its notebook.
        mistakes: {check: sentences} of this lesson's checks.
    """
    exercises = find_exercises(nb)
    minutes = exercise_minutes(nb, len(exercises))
    solved = {
        each.solution: (each, spent) for each, spent in zip(exercises, minutes, strict=True)
    }
    cells = []
    for index, cell in enumerate(nb.cells):
        cell = copy.deepcopy(cell)
        if cell.cell_type == "markdown":
            cell.source = _STUDENT_ONLY.sub("", cell.source)
        cells.append(cell)
        if index == 0:
            notes = lesson_notes(nb, exercises, minutes)
            cells.append(nbformat.v4.new_markdown_cell(notes, id="instructor"))
        if index in solved:
            each, spent = solved[index]
            cell.metadata.pop("jupyter", None)  # unfolded
            text = rubric(each, spent, praise(cell), mistakes[each.call.name])
            id = f"rubric-{each.number}"
            cells.append(nbformat.v4.new_markdown_cell(text, id=id))
    made = edition(cells)
    if "widgets" in nb.metadata:
        made.metadata["widgets"] = copy.deepcopy(nb.metadata["widgets"])
    return made


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------


def make_editions() -> dict[str, dict[str, str]]:
    """{"student" | "instructor": {file name: text}}.

    Raises:
        ValueError: a lesson cannot be turned into an edition; the message names it.
    """
    mistakes = read_mistakes()
    made: dict[str, dict[str, str]] = {"student": {}, "instructor": {}}
    for name, nb in read_lessons().items():
        try:
            student = student_edition(name, nb)
            for_teacher = instructor_edition(name, nb, mistakes[f"lesson_{name[:2]}"])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        found = leaks(student, nb)
        if found:
            raise ValueError(f"{name}: the student edition would hold a solution, {found[0]}")
        made["student"][f"{name}.ipynb"] = to_text(student)
        made["instructor"][f"{name}.ipynb"] = to_text(for_teacher)
    return made


def stale(folder: Path, texts: dict[str, str]) -> list[str]:
    """Names of files in a folder that differ from `texts`, are missing, or should not be there."""
    there = {path.name: path.read_bytes().decode("utf-8") for path in folder.glob("*.ipynb")}
    return sorted(
        name for name in there.keys() | texts.keys() if there.get(name) != texts.get(name)
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the editions, or compare the committed one."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.editions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    options = parser.parse_args(arguments)
    try:
        made = make_editions()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        old = stale(EDITIONS / "student", made["student"])
        print("\n".join(f"STALE    {name}; run `make editions`" for name in old) or "fresh")
        return 1 if old else 0
    for kind, texts in made.items():
        folder = EDITIONS / kind
        folder.mkdir(parents=True, exist_ok=True)
        old = stale(folder, texts)
        for name in old:
            if name in texts:
                with atomic_path(folder / name) as path:
                    path.write_bytes(texts[name].encode("utf-8"))
            else:
                (folder / name).unlink()
        where = folder.relative_to(ROOT)
        print(f"{kind:<10} {len(texts)} lessons, {len(old)} written, in {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

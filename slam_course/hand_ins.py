"""Read what a class hands in, as it comes, and mend it for nbgrader.

    python -m slam_course.hand_ins [CLASS]     each hand-in: is it ready, mended, not gradable

``make class`` names :class:`HandIns` as the reader of ``nbgrader autograde``, which so mends what
it grades; ``submitted/`` stays as it was handed in, but that a notebook under another name gets a
copy under its lesson's.

What counts of a hand-in is the text of its cells. All else, the cells' metadata, ids and outputs
and the version of the format, is what editors lose, double and break; it is taken from the
release. A cell of the release that is locked is known by its text. Where that text is missing,
the released cell is put back, behind what was made of it; nothing that a student wrote is taken
out. An answer is known by the names that it defines, and a test stands behind the cells that
define what it tests.
"""

from __future__ import annotations

import contextlib
import copy
import glob
import json
import os
import re
import shutil
import symtable
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import nbformat
from nbconvert.exporters import NotebookExporter
from nbformat import NotebookNode

AGAIN = "ask for the notebook again, as JupyterLab saves it"
SUFFIXES = (".ipynb", ".json", ".txt")  # browsers append the last two


class NotGradable(ValueError):
    """A hand-in that cannot be graded; its sentence says why, and what to do."""


@dataclass(eq=False)
class Cell:
    """A cell of a hand-in, by its number from 1 (0: put back); ``mark`` is the release's cell."""

    kind: str
    source: str
    number: int = 0
    claims: frozenset[str] = frozenset()  # its own id and nbgrader's, for what they are worth
    attachments: dict = field(default_factory=dict)
    solution: bool = False  # of the course, in a notebook that is not for students
    mark: NotebookNode | None = None

    def node(self) -> NotebookNode:
        """The cell for nbgrader."""
        made = {"cell_type": self.kind, "id": f"hand-in-{self.number}", "metadata": {}}
        if self.kind == "code":
            made |= {"execution_count": None, "outputs": []}
        elif self.attachments:
            made["attachments"] = self.attachments
        return nbformat.from_dict(made | copy.deepcopy(self.mark or {}) | {"source": self.source})


# -------------------- Reading


def read_cells(path: Path) -> list[Cell]:
    """The cells of a notebook file of any version; raises NotGradable for what is none."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise NotGradable(f"{path.name} cannot be read ({error.strerror}); {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        what = "no JSON, or cut off" if path.stat().st_size else "empty"
        raise NotGradable(f"{path.name} is {what}; {AGAIN}") from error
    try:
        sheets = data["worksheets"] if "worksheets" in data else [data]  # before version 4
        found = [cell for sheet in sheets for cell in sheet["cells"]]
        return [_cell(number, cell) for number, cell in enumerate(found, start=1)]
    except (AttributeError, KeyError, TypeError) as error:
        raise NotGradable(f"{path.name} is JSON, but no notebook; {AGAIN}") from error


def _cell(number: int, raw: dict) -> Cell:
    text = "".join(raw["source"] if "source" in raw else raw["input"]).replace("\r\n", "\n")
    # Half of a surrogate pair is legal in JSON and in no file.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    metadata, attachments = (
        raw[key] if isinstance(raw.get(key), dict) else {} for key in ("metadata", "attachments")
    )
    mark = metadata.get("nbgrader")
    own = mark.get("grade_id") if isinstance(mark, dict) else None
    return Cell(
        kind=raw["cell_type"] if raw["cell_type"] in ("code", "raw") else "markdown",
        source=text,
        number=number,
        claims=frozenset(each for each in (own, raw.get("id")) if isinstance(each, str)),
        attachments=attachments,
        solution="'solution'" in str(metadata.get("tags")),
    )


def find_notebook(folder: Path) -> tuple[Path, list[str]]:
    """(the notebook STUDENT/LESSON/LESSON.ipynb of a hand-in's folder, remarks).

    The only notebook there, under whatever name and in whatever folder, is copied to that name.
    Raises NotGradable if there is none, or more than one and none of that name.
    """
    wanted = folder / f"{folder.name}.ipynb"
    own, others = b"", []
    with contextlib.suppress(OSError):
        own = wanted.read_bytes()
    for path in sorted(folder.rglob("*")):
        hidden = ".ipynb_checkpoints" in path.parts
        if path != wanted and path.suffix.lower() in SUFFIXES and path.is_file() and not hidden:
            with contextlib.suppress(NotGradable):
                read_cells(path)
                others += [path] if path.read_bytes() != own else []
    names = ", ".join(str(path.relative_to(folder)) for path in others)
    if os.path.lexists(wanted):
        remark = f"{names} is not graded; if it counts, rename it to {wanted.name}"
        return wanted, [remark] if others else []
    if not others:
        there = ", ".join(sorted(os.listdir(folder))) or "nothing"
        raise NotGradable(f"there is no notebook in its folder, but {there}; {AGAIN}")
    if len(others) > 1:
        raise NotGradable(f"{names}: rename the one that counts to {wanted.name}")
    from slam_edu.io import atomic_path

    try:
        with atomic_path(wanted) as path:
            shutil.copyfile(others[0], path)
    except OSError as error:
        raise NotGradable(f"rename {names} to {wanted.name} ({error.strerror})") from error
    return wanted, [f"{names} was handed in, and is copied to {wanted.name}"]


# -------------------- Mending


def defined(cell: Cell, names: set[str]) -> set[str]:
    """Which of the names a cell defines for the cells behind it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = symtable.symtable(cell.source, "cell", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a slip, or a line of IPython
        start = r"^\s*(?:(?:async )?def |class )?{}\s*[(:=,]"
        code = cell.source if cell.kind == "code" else ""
        return {name for name in names if re.search(start.format(re.escape(name)), code, re.M)}
    symbols = [each for each in table.get_symbols() if each.is_assigned() or each.is_imported()]
    return names & {each.get_name() for each in symbols}


def stub_names(stub: NotebookNode) -> set[str]:
    """The names that an exercise asks for."""
    return defined(Cell(stub.cell_type, stub.source), set(re.findall(r"\w+", stub.source)))


def find_answers(
    cells: list[Cell], theirs: NotebookNode, given: set[str], remarks: list[str]
) -> dict[Cell, set[str]]:
    """Mark the answer to an exercise; returns {cell: names of the answer that it defines}.

    ``theirs`` is the release's stub, ``given`` the texts of the release's cells. A stub beside an
    answer is taken out of ``cells``: run behind the answer, it would undo it.
    """
    id, text = theirs.metadata.nbgrader.grade_id, theirs.source.strip()
    names = stub_names(theirs)
    stubs = {each: names for each in cells if each.source.strip() == text}
    own = [each for each in cells if each.source.strip() not in given]
    if names:
        answers = {each: made for each in own if (made := defined(each, names))}
    else:  # a teacher's own question, answered in words
        answers = {each: names for each in own if id in each.claims}
    for name in sorted(names):
        several = {each.source: str(each.number) for each in answers if name in answers[each]}
        if len(several) > 1:
            remarks.append(
                f"{id}: cells {', '.join(several.values())} define {name}, and the last of them "
                "before the test counts; if another is meant, give its points by hand"
            )
    if answers and names <= set().union(*answers.values()):
        cells[:] = [each for each in cells if each not in stubs]
    else:
        answers |= stubs
    lost = sorted(names - set().union(*answers.values()))
    if lost or not answers:
        remarks.append(
            f"{id}: no cell defines {' and '.join(lost) or 'an answer'}; if the notebook has it "
            "under another name, give its points by hand"
        )
    for each in answers:
        each.kind = theirs.cell_type
    for each in [each for each in answers if each.mark is None][-1:]:
        each.mark = theirs
    return answers


def mend(cells: list[Cell], release: NotebookNode) -> tuple[NotebookNode, list[str]]:
    """The notebook to grade, with every locked cell of the release once, and what was mended.

    Raises NotGradable if it holds neither an answer to an exercise of the release nor its stub.
    """
    cells, remarks = list(cells), []
    shown = [str(cell.number) for cell in cells if cell.solution]
    if shown:
        remarks.append(
            f"it was made from notebooks/, which shows the solutions (cells {', '.join(shown)}); "
            "give out release/"
        )
    given = {cell.source.strip() for cell in release.cells}
    answers: dict[Cell, set[str]] = {}
    missing: set[str] = set()  # names that a test needs
    claims: set[str] = set()
    stubs, known = 0, False
    behind: Cell | None = None  # the last cell of the release that was found
    for theirs in release.cells:
        mark = theirs.metadata.get("nbgrader", {})
        text = (theirs.cell_type, theirs.source.strip())
        same = [each for each in cells if (each.kind, each.source.strip()) == text]
        if mark.get("solution"):
            answers, missing = find_answers(cells, theirs, given, remarks), stub_names(theirs)
            claims = {mark.grade_id, theirs.get("id")}
            known = known or bool(answers)
            stubs += 1
            continue
        if mark.get("grade"):
            done = []  # behind each of these all is defined
            for each in cells:
                missing = missing - answers.get(each, set())
                done += [each] if each in answers and not missing else []
            # The cell that was meant for the answer comes before drafts of it.
            done = [each for each in done if each.claims & claims] or done
            behind = (done[:1] or [*answers] or [behind])[-1]
            if done:
                same = [each for each in same if cells.index(each) > cells.index(behind)]
        elif mark and not same:
            claims = {mark.grade_id, theirs.get("id")}
            behind = ([each for each in cells if each.claims & claims] or [behind])[-1]
        if mark and not same:
            at = cells.index(behind) + 1 if behind in cells else 0
            where = f"behind cell {behind.number}" if at and behind.number else "in its place"
            remarks.append(
                f"{mark.grade_id} was missing, edited or out of place; the released cell is put "
                f"{where}"
            )
            same = [Cell(theirs.cell_type, theirs.source)]
            cells[at:at] = same
        if same:
            behind = same[-1]
            behind.mark = theirs if mark else None
    if stubs and not known:
        raise NotGradable(
            "it holds no exercise of this lesson, answered or not; if it is another lesson's, "
            "move it there, and ask for the right one"
        )
    made = nbformat.v4.new_notebook(
        cells=[each.node() for each in cells], metadata=copy.deepcopy(release.metadata)
    )
    made.nbformat_minor = 5
    return made, remarks


# -------------------- In nbgrader, and for the teacher


def read_release(course: Path, hand_in: Path) -> NotebookNode:
    """The release of a notebook LESSON/NOTEBOOK.ipynb in a class."""
    path = course / "release" / hand_in.parent.name / hand_in.name
    if not path.is_file():
        remedy = f"`nbgrader generate_assignment {hand_in.parent.name}` writes it"
        raise NotGradable(f"{path} is not there; {remedy}")
    return nbformat.read(path, as_version=4)


class HandIns(NotebookExporter):
    """Reads and mends what ``nbgrader autograde`` grades (its option ``exporter_class``)."""

    def __init__(self, **settings: object):
        super().__init__(**settings)
        course = self.parent.coursedir
        folders = course.submitted_directory, course.student_id, course.assignment_id
        # Folders without a notebook, too: nbgrader passes over them, and names what is not there.
        for folder in map(Path, glob.glob(course.format_path(*folders))):
            path, remarks = folder / f"{folder.name}.ipynb", []
            if not (Path(course.root) / "release" / folder.name / path.name).exists():
                continue  # a teacher's own assignment, of other notebooks
            try:
                path, remarks = find_notebook(folder)
            except NotGradable as error:
                remarks = [str(error)]
            self.parent.assignments[str(folder)] = [str(path)]
            for remark in remarks:
                self.log.warning("%s: %s.", folder, remark)

    def from_file(
        self, file_stream: TextIO, resources: dict | None = None, **settings: object
    ) -> tuple[str, dict]:
        """The mended text of a hand-in; a notebook that was mended before is taken as it is."""
        path = Path(file_stream.name).absolute()
        course = Path(self.parent.coursedir.root)
        if not path.is_relative_to(course / self.parent.coursedir.submitted_directory):
            return super().from_file(file_stream, resources=resources, **settings)
        nb, remarks = mend(read_cells(path), read_release(course, path))
        for remark in remarks:
            self.log.warning("%s: %s.", path.relative_to(course), remark)
        if remarks:
            text = "\n".join(f"- {remark}." for remark in remarks)
            nb.cells.insert(
                0, nbformat.v4.new_markdown_cell(f"**How it was handed in**\n\n{text}")
            )
        return self.from_notebook_node(nb, resources=resources)


def review(course: Path) -> list[tuple[str, bool, list[str]]]:
    """(hand-in, can it be graded, remarks) of all that lies in a class's ``submitted/``."""
    submitted = course / "submitted"
    lessons = {path.parent.name for path in course.glob("release/*/*.ipynb")}
    folders = {path for path in submitted.glob("*/*") if path.name in lessons and path.is_dir()}
    found = []
    for path in sorted(submitted.rglob("*.ipynb")):
        if not folders & {*path.parents}:
            remark = "it lies in no STUDENT/LESSON folder; move it, and name LESSON as in release/"
            found.append((str(path.relative_to(submitted)), False, [remark]))
    for folder in sorted(folders):
        try:
            path, remarks = find_notebook(folder)
            remarks += mend(read_cells(path), read_release(course, path))[1]
            found.append((str(folder.relative_to(submitted)), True, remarks))
        except NotGradable as error:
            found.append((str(folder.relative_to(submitted)), False, [str(error)]))
    return found


def main(arguments: list[str] | None = None) -> int:
    """One line a hand-in, remarks below it; exit status 1 if one cannot be graded."""
    course = Path(*(sys.argv[1:] if arguments is None else arguments)).resolve()
    if not (course / "release").is_dir():
        print(f"error: {course} is no class; name the folder of `make class`.", file=sys.stderr)
        return 2
    found = review(course)
    for name, good, remarks in found:
        print(f"{('mended' if remarks else 'ready') if good else 'NOT GRADABLE':<12} {name}")
        print("".join(f"    {remark}.\n" for remark in remarks), end="")
    bad = sum(not good for _, good, _ in found)
    print(f"{len(found)} handed in, {bad} cannot be graded")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

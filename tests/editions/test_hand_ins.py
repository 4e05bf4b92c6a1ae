"""A zoo of hand-ins: every lesson's, damaged in every way; none stops the others or loses points.

Nothing is trained: an answer is the string "right", and a test, in the world where the mended
notebook runs, gives its points when all that it is handed is right.
"""

import ast
import contextlib
import copy
import json
import re

import nbformat
import pytest
from nbgrader.nbgraderformat import MetadataValidator

from slam_course import hand_ins
from tests.editions.submissions import by_id
from tools.editions import EDITIONS
from tools.notebooks import read_lessons, to_text

RELEASES = {
    name: nbformat.read(EDITIONS / "student" / f"{name}.ipynb", as_version=4)
    for name in read_lessons()
}


def marked(nb, kind):
    """Cells that nbgrader knows as "solution", "grade" or "locked"."""
    return [cell for cell in nb.cells if cell.metadata.get("nbgrader", {}).get(kind)]


def answered(nb):
    """A release with right answers, each between two lines of its student's."""
    nb = copy.deepcopy(nb)
    for cell in marked(nb, "solution"):
        names = sorted(hand_ins.stub_names(cell))
        cell.source = "\n\n".join(f'{name} = "right"' for name in names)
    return nb


def points(nb, release):
    """{grade id: points} when only the student's cells and the tests are run."""
    world = {"distances": "right"}

    class Checks:
        def __getattr__(self, name):
            return lambda *answers: all(each == "right" for each in answers[:2])

    lesson = {cell.source for cell in release.cells}
    got = {}
    for cell in nb.cells:
        mark = cell.metadata.get("nbgrader", {})
        if mark.get("grade"):
            call = ast.get_source_segment(cell.source, ast.parse(cell.source).body[0].value)
            with contextlib.suppress(NameError):
                got[mark.grade_id] = mark.points * eval(call, {**world, "checks": Checks()})
        elif cell.cell_type == "code" and (cell.source not in lesson or mark.get("solution")):
            with contextlib.suppress(Exception):  # what a kernel shows and goes on from
                exec(re.sub(r"(?m)^%.*", "", cell.source), world)
    return got


# -------------------- Damage to cells


def without_metadata(nb):
    for cell in nb.cells:
        cell.metadata = {}
        del cell["id"]


def copied(nb):
    for cell in marked(nb, "solution") + marked(nb, "grade"):
        nb.cells.insert(nb.cells.index(cell) + 1, copy.deepcopy(cell))


def copied_to_the_end(nb):
    nb.cells += copy.deepcopy(marked(nb, "solution") + marked(nb, "grade"))


def stubs_pasted_again(nb, release):
    nb.cells += copy.deepcopy(marked(release, "solution"))


def answered_in_a_copy(nb, release):
    """The stub is left empty; a copy of it at the end of the notebook is filled in."""
    for stub in marked(release, "solution"):
        own = by_id(nb, stub.metadata.nbgrader.grade_id)
        nb.cells.append(copy.deepcopy(own))
        own.source = stub.source


def answered_in_new_cells(nb, release):
    for stub in marked(release, "solution"):
        own = by_id(nb, stub.metadata.nbgrader.grade_id)
        at = nb.cells.index(own)
        own.source, text = stub.source, own.source
        nb.cells.insert(at, nbformat.v4.new_code_cell(text, id=f"mine-{at}"))


def answered_in_the_test(nb, release):
    for stub in marked(release, "solution"):
        own = by_id(nb, stub.metadata.nbgrader.grade_id)
        test = by_id(nb, f"{stub.metadata.nbgrader.grade_id}-check")
        test.source = f"{own.source}\n{test.source}"
        own.source = stub.source


def split(nb):
    for cell in marked(nb, "solution"):
        at = nb.cells.index(cell)
        parts = (
            cell.source.split("\n\n") if "\n\n" in cell.source else ["import math", cell.source]
        )
        nb.cells[at : at + 1] = [{**copy.deepcopy(cell), "source": part} for part in parts]
    nb.cells = [nbformat.from_dict(cell) for cell in nb.cells]


def merged_with_the_test(nb):
    for cell in marked(nb, "solution"):
        test = nb.cells[nb.cells.index(cell) + 1]
        cell.source += f"\n\n{test.source}"
        nb.cells.remove(test)


def checks_deleted(nb):
    nb.cells = [cell for cell in nb.cells if cell not in marked(nb, "grade")]


def all_locked_deleted(nb):
    nb.cells = [cell for cell in nb.cells if cell not in marked(nb, "locked")]


def only_answers_left(nb):
    nb.cells = marked(nb, "solution")


def drafts_before_and_checks_deleted(nb):
    drafts = copy.deepcopy(marked(nb, "solution"))
    checks_deleted(nb)
    for number, draft in enumerate(drafts):
        draft.update(source=draft.source.replace("right", "wrong"), metadata={}, id=f"d-{number}")
    nb.cells = drafts + nb.cells


def checks_moved_up(nb):
    tests = marked(nb, "grade")
    nb.cells = tests + [cell for cell in nb.cells if cell not in tests]


def checks_edited(nb):
    for cell in marked(nb, "grade"):
        cell.source = cell.source.replace("assert verdict.passed", "assert True")
        cell.metadata.nbgrader.update(points=100, locked=False)


def answers_as_text(nb):
    for cell in marked(nb, "solution"):
        nb.cells[nb.cells.index(cell)] = nbformat.from_dict(
            {
                "cell_type": "markdown",
                "id": cell.id,
                "source": cell.source,
                "metadata": cell.metadata,
            }
        )


def odd_metadata(nb):
    odd = [None, [], "x", {"grade_id": 7}, {"schema_version": 9}]
    for number, cell in enumerate(nb.cells):
        cell.metadata = {"nbgrader": odd[number % len(odd)], "tags": None}


def magics_and_a_slip(nb):
    for cell in marked(nb, "solution"):
        cell.source = f"%time\n{cell.source}"
    nb.cells.insert(0, nbformat.v4.new_code_cell("def (", id="slip"))


def ids_of_another_course(nb):
    for cell in marked(nb, "solution") + marked(nb, "locked"):
        cell.metadata.nbgrader.grade_id = f"cell-{cell.id}"


CELLS = [
    lambda nb: None, without_metadata, copied, copied_to_the_end, stubs_pasted_again,
    answered_in_a_copy, answered_in_new_cells, answered_in_the_test, split, merged_with_the_test,
    checks_deleted, drafts_before_and_checks_deleted, all_locked_deleted, only_answers_left,
    checks_moved_up, checks_edited, answers_as_text, odd_metadata, magics_and_a_slip,
    ids_of_another_course,
]  # fmt: skip


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A class's folder with all releases."""
    folder = tmp_path_factory.mktemp("class")
    for name, nb in RELEASES.items():
        path = folder / "release" / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(to_text(nb), encoding="utf-8")
    return folder


def full(name):
    return {cell.metadata.nbgrader.grade_id: cell.metadata.nbgrader.points
            for cell in marked(RELEASES[name], "grade")}  # fmt: skip


@pytest.mark.parametrize("name", RELEASES)
def test_every_damage_to_cells_is_mended(name, tmp_path):
    """Right work keeps all its points, and nbgrader gets each locked cell once, as released."""
    release = RELEASES[name]
    path = tmp_path / "hand-in.ipynb"
    for damage in CELLS:
        nb = answered(release)
        damage(*[nb, release][: damage.__code__.co_argcount])
        path.write_text(json.dumps(nb), encoding="utf-8")
        made, remarks = hand_ins.mend(hand_ins.read_cells(path), release)
        what = f"{damage.__name__}: {remarks}"
        nbformat.validate(made)
        MetadataValidator().validate_nb(made)
        assert points(made, release) == full(name), what
        locked = {cell.id: cell.source.strip() for cell in marked(made, "locked")}
        assert locked == {cell.id: cell.source.strip() for cell in marked(release, "locked")}, what
        ids = [cell.metadata.nbgrader.grade_id for cell in marked(made, "solution")]
        assert len(ids) == len({*ids}), what
        # What nbgrader reads again, after it has cleared outputs, is mended.
        path.write_text(to_text(made), encoding="utf-8")
        again, _ = hand_ins.mend(hand_ins.read_cells(path), release)
        assert points(again, release) == full(name), what


# -------------------- Damage to files


def rewritten(**changes):
    """A file whose cells have other keys; a value of None takes one away."""

    def change(nb):
        for cell in nb.cells:
            for key, value in changes.items():
                cell.pop(key, None) if value is None else cell.update({key: value})
        return json.dumps(nb).encode()

    return change


def version_3(nb):
    cells = [
        {"cell_type": cell.cell_type, "metadata": {}, "input": [cell.source], "language": "python"}
        if cell.cell_type == "code"
        else {"cell_type": "heading", "level": 1, "source": [cell.source]}
        for cell in nb.cells
    ]
    return json.dumps({"nbformat": 3, "worksheets": [{"cells": cells}]}).encode()


def numbered(major, minor):
    return lambda nb: json.dumps({**nb, "nbformat": major, "nbformat_minor": minor}).encode()


def text(encoding):
    return lambda nb: json.dumps(nb, ensure_ascii=False).encode(encoding)


def of_another_lesson(nb):
    return to_text(answered(RELEASES["05_slam_in_2d"])).encode()


HUGE = [{"output_type": "stream", "name": "stdout", "text": "x" * 3_000_000}]
GOOD = {
    "UTF-8 with a mark": text("utf-8-sig"), "UTF-16": text("utf-16"), "version 3": version_3,
    "version 4.0": numbered(4, 0), "version 99": numbered(99, 0),
    "no version": numbered(None, None),
    "cleared": rewritten(outputs=None, execution_count=None, metadata=None, id=None),
    "odd outputs": rewritten(outputs=7, id=[], attachments=3), "one id": rewritten(id="same"),
    "odd metadata": rewritten(metadata=7), "odd tags": rewritten(metadata={"tags": 7}),
    "huge outputs": lambda nb: json.dumps(
        {**nb, "cells": [{**nb.cells[3], "outputs": HUGE}, *nb.cells]}).encode(),
    "half a pair": lambda nb: json.dumps(
        {**nb, "cells": [*nb.cells, {"cell_type": "code", "source": "'\ud83d'"}]}).encode(),
    "lines of Windows": lambda nb: json.dumps(nb).replace("\\n", "\\r\\n").encode(),
}  # fmt: skip
BAD = {
    "empty": b"", "blank": b" \n", "null": b"null", "list": b"[]", "object": b"{}",
    "zip": b"PK\3\4", "no cells": b'{"cells": 3}', "odd cells": b'{"cells": [1, null]}',
    "deep": b"[" * 100_000, "login page": b"<!doctype html>",
    "no source": b'{"cells": [{"cell_type": "code"}]}',
    "odd source": b'{"cells": [{"cell_type": "code", "source": 7}]}',
    "cut": lambda nb: to_text(nb).encode()[:-99],
    "Latin 1": lambda nb: b"\xe9" + to_text(nb).encode(),
    "conflict": lambda nb: b"<<<<<<< HEAD\n" + to_text(nb).encode(),
    "another lesson's": of_another_lesson, "no cell": b'{"cells": []}',
}  # fmt: skip
NAMES = {
    "hand-in.ipynb": True, "{} (1).ipynb": True, "{}.IPYNB": True, "{}.ipynb.txt": True,
    "{}.json": True, "a/b/{}.ipynb": True, "{}-checkpoint.ipynb": True,
    ".ipynb_checkpoints/{}.ipynb": False, "report.pdf": False, "{}.py": False,
}  # fmt: skip
REMEDIES = ("ask for ", "rename ", "move ", "by hand", "give out ", "is put ", "copied to")


def test_every_file_is_graded_or_named_with_a_remedy(course, capsys):
    """Written as many students' into submitted/, and reviewed in one go, as a teacher does."""
    lesson = "01_diffusion_and_the_pf_ode"
    expected = {}

    def hand_in(student, data, good, name="{}.ipynb"):
        path = course / "submitted" / student / lesson / name.format(lesson)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data(answered(RELEASES[lesson])) if callable(data) else data)
        expected[f"{student}/{lesson}"] = good

    right = text("utf-8")
    for student, data in GOOD.items():
        hand_in(student, data, True)
    for student, data in BAD.items():
        hand_in(student, data, False)
    for number, (name, good) in enumerate(NAMES.items()):
        hand_in(f"name {number}", right, good, name)
    for name in ("a.ipynb", "b.ipynb"):
        hand_in("two", right, False, name)
    for name in ("{}.ipynb", "{} (1).ipynb"):
        hand_in("twice", right, True, name)
    hand_in("folder", right, False, "{}.ipynb/a.txt")
    (course / "submitted" / "nothing" / lesson).mkdir(parents=True)
    (course / "submitted" / "link" / lesson).mkdir(parents=True)
    (course / "submitted" / "link" / lesson / f"{lesson}.ipynb").symlink_to("gone")
    stray = course / "submitted" / "stray" / "Lesson 1" / "x.ipynb"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"{}")
    expected |= dict.fromkeys([f"{s}/{lesson}" for s in ("nothing", "link")], False)
    expected["stray/Lesson 1/x.ipynb"] = False
    before = {path: path.read_bytes() for path in course.rglob("*") if path.is_file()}

    found = hand_ins.review(course)
    assert {name: good for name, good, _ in found} == expected
    for name, good, remarks in found:
        assert good or remarks, name
        assert all(any(word in remark for word in REMEDIES) for remark in remarks), remarks
        if good:
            path, _ = hand_ins.find_notebook(course / "submitted" / name)
            made, _ = hand_ins.mend(hand_ins.read_cells(path), RELEASES[lesson])
            made.nbformat = 4
            to_text(made).encode()
            assert points(made, RELEASES[lesson]) == full(lesson), name
    assert before.items() <= {p: p.read_bytes() for p in course.rglob("*") if p.is_file()}.items()
    assert hand_ins.main([str(course)]) == 1
    assert f"{list(expected.values()).count(False)} cannot be graded" in capsys.readouterr().out
    assert hand_ins.main([str(course / "submitted")]) == 2


@pytest.mark.parametrize("name", RELEASES)
def test_lost_work_is_named(name, tmp_path):
    """What cannot be mended is never 0 points without a word; an untouched release needs none."""
    release = RELEASES[name]
    path = tmp_path / "hand-in.ipynb"

    def remarks(nb):
        path.write_text(json.dumps(nb), encoding="utf-8")
        made, remarks = hand_ins.mend(hand_ins.read_cells(path), release)
        return sum(points(made, release).values()), remarks

    assert remarks(release) == (0, [])
    assert remarks(answered(release)) == (sum(full(name).values()), [])
    deleted, renamed = answered(release), answered(release)
    for nb in (deleted, renamed):
        gone = marked(nb, "solution")[0]
        if nb is deleted:
            nb.cells.remove(gone)
        else:
            gone.source = gone.source.replace(" = ", "_1 = ")
        got, said = remarks(nb)
        assert got == sum([*full(name).values()][1:])
        assert [line[:11] for line in said] == ["exercise-1:"]
    copied_wrong = answered(release)
    wrong = copy.deepcopy(marked(copied_wrong, "solution")[0])
    wrong.source = wrong.source.replace("right", "wrong")
    copied_wrong.cells.insert(0, wrong)
    assert "exercise-1: cells 1, " in remarks(copied_wrong)[1][0]
    # From notebooks/, the answers filled in.
    nb = read_lessons()[name]
    for cell in marked(answered(release), "solution"):
        [own] = [each for each in nb.cells if each.id == cell.id]
        own.source = (
            cell.source
            + "\n"
            + "\n".join(own.source.splitlines()[-1:] if "checks." in own.source else [])
        )
    got, said = remarks(nb)
    assert got == sum(full(name).values())
    assert "shows the solutions" in said[0]

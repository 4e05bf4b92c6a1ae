"""The editions: fresh, whole, without a solution where none may be, and of use to a learner."""

import ast
import csv
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest
from nbgrader.nbgraderformat import MetadataValidator
from nbgrader.utils import compute_checksum

from tools import editions
from tools.exercises import find_exercises
from tools.notebooks import KERNEL_ENV, ROOT, read_lessons, tags

LESSONS = read_lessons()
each_lesson = pytest.mark.parametrize("name", LESSONS)


@pytest.fixture(scope="module")
def made():
    return editions.make_editions()


def student(name):
    return nbformat.read(editions.EDITIONS / "student" / f"{name}.ipynb", as_version=4)


def test_the_committed_student_edition_is_fresh_and_repeats(made):
    assert editions.make_editions() == made
    kept = {path: text for path, text in made.items() if path.parent.name == "student"}
    there = editions.EDITIONS.glob("student/*.ipynb")
    assert {path: path.read_text("utf-8") for path in there} == kept, "run `make editions`"


@each_lesson
def test_student_edition_is_whole(name):
    nb, source = student(name), LESSONS[name]
    nbformat.validate(nb)
    MetadataValidator().validate_nb(nb)
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)
    graded = {}
    for cell in nb.cells:
        if "nbgrader" in cell.metadata:
            assert cell.metadata.nbgrader.checksum == compute_checksum(cell)
            assert graded.setdefault(cell.metadata.nbgrader.grade_id, cell) is cell
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            # "Run All" reaches the points, but for the set-up and the imports.
            first = cell.metadata.get("nbgrader", {}).get("grade_id") in ("setup", "imports")
            assert tags(cell) == ["raises-exception"] or first
        else:
            assert "<!--" not in cell.source
    for each in find_exercises(source):
        stub = graded[f"exercise-{each.number}"]
        check = graded[f"exercise-{each.number}-check"]
        assert nb.cells.index(check) == nb.cells.index(stub) + 1
        assert "..." in stub.source
        assert stub.metadata.nbgrader.solution
        assert not stub.metadata.nbgrader.locked
        assert check.metadata.nbgrader.locked
        assert check.metadata.nbgrader.points == each.points
        assert "assert verdict.passed, verdict" in check.source


def test_student_edition_has_no_undefined_name():
    """Where a lesson goes on with a solution, its copy goes on with the learner's answer.

    Ruff follows names from cell to cell, so it sees what only the solution's cell binds.
    """
    folder = str(editions.EDITIONS / "student")
    command = [sys.executable, "-m", "ruff", "check", "--select", "F821", folder]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def secrets(name):
    """A line that only a solution has, and a solution's name."""
    for each in find_exercises(LESSONS[name]):
        cells = LESSONS[name].cells
        others = [cell.source.splitlines() for i, cell in enumerate(cells) if i != each.solution]
        known = {line.strip() for lines in others for line in lines}
        yield from [line.strip() for line in each.lines if line.strip() not in known][:1]
        yield from each.renamed


@each_lesson
def test_no_solution_leaks(name):
    assert editions.leaks(student(name), LESSONS[name]) == []
    assert list(secrets(name))
    for secret in secrets(name):
        for place in (
            lambda nb, text: nb.cells[0].update(source=f"Look:\n\n    {text}"),
            lambda nb, text: nb.cells[-1].outputs.append(
                nbformat.v4.new_output("stream", text=f"{text}\n")
            ),
            lambda nb, text: nb.metadata.update({"old": [text]}),
        ):
            nb = student(name)
            place(nb, secret)
            assert editions.leaks(nb, LESSONS[name]), secret


def test_passages_for_one_edition():
    text = "Try.<!-- source --> The\nsolution is below.<!-- /source --><!-- student:  Go on. -->"
    assert editions.student_text(text) == "Try.  Go on."
    names = {"bend_solution": "bend"}
    code = 'print(f"{bend_solution(y)}", a_bend_solution)'
    assert editions.renamed(code, names) == 'print(f"{bend(y)}", a_bend_solution)'


@pytest.fixture(scope="module")
def outcomes():
    command = [sys.executable, "-m", "tests.editions.running"]
    env = {**os.environ, **KERNEL_ENV, "MPLBACKEND": "agg"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@each_lesson
def test_filled_in_solutions_pass_and_stubs_do_not(name, outcomes):
    """Each exercise with the cells that it needs; what a lesson trains and draws is left out."""
    exercises = find_exercises(LESSONS[name])
    for each, said in zip(exercises, outcomes[name]["solved"], strict=True):
        assert said.startswith(f"Exercise {each.number}, ")
        assert ": right. " in said
    assert outcomes[name]["stub"].startswith("AssertionError: Exercise 1, ")
    assert outcomes[name]["stub"].endswith("not yet. There is no answer yet: replace the `...`.")


def written(folder, module="checks.py"):
    """Pieces of sentences in the checks of a folder of slam_course, those of f-strings too."""
    tree = ast.parse((ROOT / "slam_course" / folder / module).read_text("utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    table = ROOT / "slam_course" / folder / "mistakes.csv"
    if table.exists():
        with table.open(newline="", encoding="utf-8") as file:
            texts |= {row["sentence"] for row in csv.DictReader(file)}
    return {text for text in texts if isinstance(text, str) and len(text) > 14}


@each_lesson
def test_instructor_edition_has_solutions_and_rubrics(name, made):
    text = made[editions.EDITIONS / "instructor" / f"{name}.ipynb"]
    nb = nbformat.reads(text, as_version=4)
    nbformat.validate(nb)
    mistakes = json.loads(editions.MISTAKES.read_text("utf-8"))[f"lesson_{name[:2]}"]
    words = written(f"lesson_{name[:2]}") | written("") | written("family", "contract.py")
    for each in find_exercises(LESSONS[name]):
        solution = LESSONS[name].cells[each.solution]
        [index] = [i for i, cell in enumerate(nb.cells) if cell.id == solution.id]
        assert nb.cells[index].source == solution.source
        assert nb.cells[index].outputs == solution.outputs
        assert "jupyter" not in nb.cells[index].metadata, "it is unfolded"
        rubric = nb.cells[index + 1].source
        assert re.search(rf"\*\*{each.points} points?, \d+ minutes\.\*\*", rubric)
        assert len(mistakes[each.call.name]) >= 2
        assert all(f"- {sentence}" in rubric for sentence in mistakes[each.call.name])
        said = mistakes[each.call.name]  # a sentence may begin with a small letter where it stands
        old = [each for each in said if not any(w.lower() in each.lower() for w in words)]
        assert old == [], "no check says so any more: run `python -m tools.mistakes`"


def test_a_lesson_that_is_not_marked_is_named(monkeypatch, capsys):
    name, nb = next(iter(read_lessons().items()))
    nb.cells[find_exercises(nb)[0].stub].metadata["tags"] = []
    monkeypatch.setattr(editions, "read_lessons", lambda: {name: nb})
    assert editions.main(["--check"]) == 2
    assert f"error: {name}: exercise 1" in capsys.readouterr().err


def test_a_notebook_with_answers_is_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(editions, "EDITIONS", tmp_path / "editions")
    path = editions.EDITIONS / "student" / "00.ipynb"
    monkeypatch.setattr(editions, "make_editions", lambda: {path: '{"cells": []}'})
    assert editions.main([]) == 0
    answered = '{"cells": [{"cell_type": "code", "execution_count": 3}]}'
    path.write_text(answered, "utf-8")
    assert editions.main([]) == 2
    assert "error: 00.ipynb in editions/student would be overwritten" in capsys.readouterr().err
    assert path.read_text("utf-8") == answered
    assert editions.main(["--force"]) == 0
    assert path.read_text("utf-8") == '{"cells": []}'

"""The editions: fresh, whole, without a solution where none may be, and of use to a learner."""

import json
import os
import re
import subprocess
import sys
import types

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbgrader.nbgraderformat import MetadataValidator
from nbgrader.utils import compute_checksum

from slam_course import checks as base
from slam_course.lesson_00.checks import noisy_points
from tests.editions.running import checks_of
from tests.editions.submissions import by_id, solutions
from tests.notebooks.made import made_notebook
from tools import collect_answers, editions
from tools.exercises import find_exercises, tags
from tools.notebooks import KERNEL_ENV, ROOT, SETUP_TAG, source_sha256, to_text

LESSONS = editions.read_lessons()
each_lesson = pytest.mark.parametrize("name", LESSONS)


def read_student(name):
    """The committed student edition of a lesson."""
    path = editions.EDITIONS / "student" / f"{name}.ipynb"
    return nbformat.reads(path.read_bytes().decode("utf-8"), as_version=4)


@pytest.fixture(scope="module")
def made():
    return editions.make_editions()


def test_the_committed_student_edition_is_fresh(made):
    old = editions.stale(editions.EDITIONS / "student", made["student"])
    assert old == [], "run `make editions`"


def test_editions_are_equal_to_the_byte(made):
    assert editions.make_editions() == made


def test_the_instructor_edition_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert "/editions/instructor/" in ignored
    assert "/class/" in ignored


def test_stale_names_what_differs(tmp_path):
    (tmp_path / "a.ipynb").write_text("old")
    (tmp_path / "b.ipynb").write_text("same")
    (tmp_path / "c.ipynb").write_text("left over")
    texts = {"a.ipynb": "new", "b.ipynb": "same", "d.ipynb": "missing"}
    assert editions.stale(tmp_path, texts) == ["a.ipynb", "c.ipynb", "d.ipynb"]


# ---------------------------------------------------------------------------------------------
# The student edition
# ---------------------------------------------------------------------------------------------


@each_lesson
def test_student_edition_is_well_formed(name):
    nb, source = read_student(name), LESSONS[name]
    nbformat.validate(nb)
    MetadataValidator().validate_nb(nb)
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)
    for cell in nb.cells:
        if "nbgrader" in cell.metadata:
            assert cell.metadata.nbgrader.checksum == compute_checksum(cell)
            assert cell.metadata.deletable is False
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert set(tags(cell)) <= {SETUP_TAG}
        else:
            assert "<!--" not in cell.source
    first = next(cell for cell in nb.cells if cell.cell_type == "code")
    [setup] = (cell for cell in source.cells if SETUP_TAG in tags(cell))
    assert first.source == setup.source


@each_lesson
def test_student_edition_has_every_exercise(name):
    nb, source = read_student(name), LESSONS[name]
    ids = [cell.metadata.nbgrader.grade_id for cell in nb.cells if "nbgrader" in cell.metadata]
    assert len(set(ids)) == len(ids)
    for each in find_exercises(source):
        stub = by_id(nb, f"exercise-{each.number}")
        check = by_id(nb, f"exercise-{each.number}-check")
        assert nb.cells.index(check) == nb.cells.index(stub) + 1
        assert stub.metadata.nbgrader.solution
        assert not stub.metadata.nbgrader.locked
        assert "..." in stub.source
        assert check.metadata.nbgrader.grade
        assert check.metadata.nbgrader.locked
        assert check.metadata.editable is False
        assert check.metadata.nbgrader.points == each.points
        assert "assert verdict.passed, verdict" in check.source
        heading = source.cells[each.heading].id
        [hint] = (cell for cell in nb.cells if cell.id == heading)
        assert "<details><summary>" in hint.source


@each_lesson
def test_no_solution_leaks(name):
    assert editions.leaks(read_student(name), LESSONS[name]) == []


def own_line(name, number=1):
    """A line that only the solution has."""
    each = find_exercises(LESSONS[name])[number - 1]
    source = LESSONS[name].cells[each.solution].source
    others = "\n".join(
        cell.source for i, cell in enumerate(LESSONS[name].cells) if i != each.solution
    )
    return next(
        line.strip()
        for line in source.splitlines()
        if line.startswith("    ") and line.strip() not in others
    )


LEAKS = {
    "a markdown cell": lambda nb, line: setattr(nb.cells[0], "source", f"Look:\n\n    {line}"),
    "a comment": lambda nb, line: setattr(nb.cells[-1], "source", f"# {line}"),
    "an output": lambda nb, line: nb.cells[-1].outputs.append(
        nbformat.v4.new_output("stream", text=f"{line}\n")
    ),
    "a cell's metadata": lambda nb, line: nb.cells[3].metadata.update({"old": line}),
    "the notebook's metadata": lambda nb, line: nb.metadata.update({"old": [line]}),
}


@pytest.mark.parametrize("where", LEAKS)
@each_lesson
def test_a_leak_is_found(name, where):
    """Whichever exercise it is from, and wherever it is."""
    exercises = find_exercises(LESSONS[name])
    for each in exercises:
        nb = read_student(name)
        single = (name[:2], each.number) in (("00", 2), ("03", 4))  # solutions without a function
        source = LESSONS[name].cells[each.solution].source.splitlines()
        line = source[1] if single else own_line(name, each.number)
        LEAKS[where](nb, line)
        assert editions.leaks(nb, LESSONS[name])


@each_lesson
def test_a_solutions_name_is_a_leak(name):
    for each in find_exercises(LESSONS[name]):
        for theirs in each.renamed:
            nb = read_student(name)
            nb.cells[-1].source += f"\n{theirs}(1)"
            assert editions.leaks(nb, LESSONS[name])


def test_make_editions_refuses_to_leak(monkeypatch):
    name = next(iter(LESSONS))
    monkeypatch.setattr(editions, "read_lessons", lambda: {name: LESSONS[name]})
    monkeypatch.setattr(editions, "check_source", lambda *_: f"# {own_line(name)}")
    with pytest.raises(ValueError, match="would hold a solution, cell 24"):
        editions.make_editions()


def test_passages_for_one_edition():
    text = "Try.<!-- source --> The\nsolution is below.<!-- /source --><!-- student:  Go on. -->"
    assert editions.student_text(text) == "Try.  Go on."


# ---------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------


def lesson_that_goes_on(code, solution=None):
    """The made notebook, with a cell behind its exercise."""
    nb = made_notebook()
    [each] = find_exercises(nb)
    if solution:
        cell = nb.cells[each.solution]
        cell.source = cell.source.replace("    return x * x\n", solution)
    cell = nbformat.v4.new_code_cell(code, id="later")
    nb.cells.insert(each.solution + 1, cell)
    nb.metadata.slam_edu["source_sha256"] = source_sha256(nb)
    return nb


def later(nb):
    return next(cell.source for cell in nb.cells if cell.id == "later")


def test_the_lesson_goes_on_with_the_learners_answer():
    nb = lesson_that_goes_on('y = bend_solution(2)\nprint(f"{bend_solution(y)}", a_bend_solution)')
    student = editions.student_edition("01_made", nb)
    assert later(student) == 'y = bend(2)\nprint(f"{bend(y)}", a_bend_solution)'


@pytest.mark.parametrize(
    ("code", "solution", "sentence"),
    [
        ("print(helper)", "    return x * x\n\n\nhelper = 3\n", "uses helper of the solution"),
        (
            "def later():\n    return helper",
            "    return x * x\n\n\nhelper = 3\n",
            "uses helper of the solution",
        ),
        (
            "print(helper)\nhelper = 4",
            "    return x * x\n\n\nhelper = 3\n",
            "uses helper of the solution",
        ),
        ("bend = 3", None, "binds bend, the learner's answer"),
        ("def bend():\n    pass", None, "binds bend, the learner's answer"),
    ],
)
def test_names_that_a_learner_does_not_have(code, solution, sentence):
    nb = lesson_that_goes_on(code, solution)
    with pytest.raises(ValueError, match=sentence):
        editions.student_edition("01_made", nb)


@pytest.mark.parametrize(
    "code", ["helper = 4\nprint(helper)", "def later(helper, bend):\n    return helper + bend"]
)
def test_names_of_a_cells_own_are_no_ones_elses(code):
    nb = lesson_that_goes_on(code, "    return x * x\n\n\nhelper = 3\n")
    assert later(editions.student_edition("01_made", nb)) == code


@pytest.mark.parametrize(
    ("code", "binds", "reads"),
    [
        ("a = [x * y for x in z]", "a", "y z"),
        ("a = {k: v + w for k, v in b.items()}", "a", "b w"),
        ("a = {x for x in b if x != c}; x = 2", "a x", "b c"),
        ("def f(p, q=r):\n    s = [m for m in p]\n    return g(s)", "f", "g r"),
        ("import a.b as c\nfrom d import e", "c e", ""),
        ("with a() as b:\n    c += b", "b c", "a b"),
        ("f = lambda x: x + y", "f", "y"),
        ("for i in range(n):\n    total = f'{i} {m}'", "i total", "i m n range"),
    ],
)
def test_globals_of_a_cell(code, binds, reads):
    """The same on every Python, although 3.12 took comprehensions into the scope around them."""
    assert editions.globals_of(code) == (set(binds.split()), set(reads.split()))


@each_lesson
def test_student_edition_has_no_undefined_name(name):
    """Ruff follows names from cell to cell, so it sees what a renamed cell would miss."""
    path = editions.EDITIONS / "student" / f"{name}.ipynb"
    command = [sys.executable, "-m", "ruff", "check", "--select", "F821", str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


# ---------------------------------------------------------------------------------------------
# Running it
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LESSONS if name[:2] in ("00", "01", "02")])
def test_it_runs_up_to_each_stub_and_on_with_an_answer(name, tmp_path):
    """In a kernel: every check stops the learner, and lets a right answer pass."""
    nb = read_student(name)
    answers = solutions(editions.student_edition(name, LESSONS[name], solved=True))
    for cell in nb.cells:
        if cell.cell_type == "code" and "explorers." in cell.source.splitlines()[-1]:
            cell.source = "pass"  # sliders cost the most, and are tested in a browser
    client = NotebookClient(nb, timeout=600, kernel_name="python3")
    env = {**os.environ, **KERNEL_ENV, "IPYTHONDIR": str(tmp_path)}
    stops = checks_of(nb)
    with client.setup_kernel(env=env):
        for index, cell in enumerate(nb.cells[: stops[-1] + 1]):
            if index not in stops:
                client.execute_cell(cell, index)
                continue
            with pytest.raises(CellExecutionError, match=r"There is no answer yet: replace the"):
                client.execute_cell(cell, index)
            stub = nb.cells[index - 1]
            stub.source = answers[stub.metadata.nbgrader.grade_id]
            client.execute_cell(stub, index - 1)
            client.execute_cell(cell, index)
            assert ": right. " in cell.outputs[0].text
        client.execute_cell(nb.cells[-1], len(nb.cells) - 1)
        total = sum(nb.cells[i].metadata.nbgrader.points for i in stops)
        assert f"{total} of {total} points" in nb.cells[-1].outputs[0].text


HEAVY = [name for name in LESSONS if name[:2] not in ("00", "01", "02")]


@pytest.fixture(scope="module")
def outcomes():
    command = [sys.executable, "-m", "tests.editions.running", *HEAVY]
    env = {**os.environ, **KERNEL_ENV, "MPLBACKEND": "agg"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", HEAVY)
def test_filled_in_solutions_pass_and_stubs_do_not(name, outcomes):
    """Each exercise with the cells that it needs; what a lesson trains and draws is left out."""
    exercises = find_exercises(LESSONS[name])
    assert len(outcomes[name]["solved"]) == len(exercises)
    for each, said in zip(exercises, outcomes[name]["solved"], strict=True):
        assert said.startswith(f"Exercise {each.number}, ")
        assert ": right. " in said
    assert outcomes[name]["stub"].startswith("AssertionError: Exercise 1, ")
    assert outcomes[name]["stub"].endswith("not yet. There is no answer yet: replace the `...`.")


# ---------------------------------------------------------------------------------------------
# The instructor edition
# ---------------------------------------------------------------------------------------------


@each_lesson
def test_instructor_edition_has_solutions_and_rubrics(name, made):
    nb = nbformat.reads(made["instructor"][f"{name}.ipynb"], as_version=4)
    nbformat.validate(nb)
    mistakes = editions.read_mistakes()[f"lesson_{name[:2]}"]
    text = "\n".join(cell.source for cell in nb.cells)
    for each in find_exercises(LESSONS[name]):
        solution = LESSONS[name].cells[each.solution]
        [index] = [i for i, cell in enumerate(nb.cells) if cell.id == solution.id]
        assert nb.cells[index].source == solution.source
        assert nb.cells[index].outputs == solution.outputs
        assert "jupyter" not in nb.cells[index].metadata, "it is unfolded"
        rubric = nb.cells[index + 1].source
        assert re.search(rf"\*\*{each.points} points?, \d+ minutes\.\*\*", rubric)
        assert len(mistakes[each.call.name]) >= 2
        for sentence in mistakes[each.call.name]:
            assert f"- {sentence}" in rubric
    assert "<!-- student:" not in text


def test_total_points():
    points = [each.points for nb in LESSONS.values() for each in find_exercises(nb)]
    assert (len(points), sum(points)) == (28, 104)


# ---------------------------------------------------------------------------------------------
# The answers that the checks are tried on
# ---------------------------------------------------------------------------------------------


def test_checks_are_tried_on_many_answers_and_their_sentences_are_fresh():
    answers = collect_answers.record()
    print(collect_answers.figures(answers))
    wrong = [each for each in answers if not each.passed]
    assert len(wrong) >= 100
    assert len(answers) - len(wrong) >= 30
    tried = {(each.lesson, each.check, each.passed) for each in answers}
    for name, nb in LESSONS.items():
        for each in find_exercises(nb):
            for passed in (True, False):
                assert (f"lesson_{name[:2]}", each.call.name, passed) in tried
    text = collect_answers.as_text(collect_answers.mistakes(answers))
    assert editions.MISTAKES.read_text("utf-8") == text, (
        "run `python -m tools.collect_answers --write` and `make editions`"
    )


def module_with(function):
    module = types.ModuleType("made")
    module.test_accepts = function
    return module


def test_a_check_that_errs_ends_the_count():
    @pytest.mark.parametrize("answer", [lambda *args: args[0]])
    def test_accepts(answer):
        assert noisy_points(answer).passed

    before = base._LAST
    with pytest.raises(RuntimeError, match=r"the test made.test_accepts\[0\] failed"):
        collect_answers.record([module_with(test_accepts)])
    assert base._LAST is before


def test_what_counts_as_an_answer():
    def right(x0, eps, alpha, sigma):
        return alpha * x0 + sigma * eps

    def raises(*args):
        raise TypeError("no")

    @pytest.mark.parametrize("twice", [1, 2])
    @pytest.mark.parametrize(
        ("one", "other"), [(right, right), (right, lambda *args: args[0]), (..., ...)]
    )
    def test_accepts(one, other, twice):
        noisy_points(one)
        noisy_points(other)

    @pytest.mark.parametrize("answer", [right, raises, lambda *args: args[0]])
    def test_one(answer):
        noisy_points(answer)

    answers = collect_answers.record([module_with(test_accepts), module_with(test_one)])
    assert [(each.test, each.passed) for each in answers] == [
        ("made.test_accepts[0]", True),
        ("made.test_accepts[1]", True),
        ("made.test_accepts[0]", True),
        ("made.test_accepts[1]", False),
        ("made.test_accepts[2]", False),
    ]
    sentence = answers[-1].message
    assert collect_answers.mistakes(answers) == {"lesson_00": {"noisy_points": [sentence]}}
    assert collect_answers.figures(answers).splitlines()[-1].split() == ["all", "2", "3"]
    assert json.loads(collect_answers.as_text({"a": {"b": ["ä"]}})) == {"a": {"b": ["ä"]}}


def test_command(monkeypatch, tmp_path, capsys, made):
    monkeypatch.setattr(editions, "make_editions", lambda: made)
    monkeypatch.setattr(editions, "EDITIONS", tmp_path / "editions")
    monkeypatch.setattr(editions, "ROOT", tmp_path)
    assert editions.main(["--check"]) == 1
    assert editions.main([]) == 0
    assert editions.main(["--check"]) == 0
    extra = tmp_path / "editions" / "student" / "10_gone.ipynb"
    extra.write_text("x")
    assert editions.main(["--check"]) == 1
    assert editions.main([]) == 0
    assert not extra.exists()
    assert "1 written" in capsys.readouterr().out
    name = next(iter(made["student"]))
    text = (tmp_path / "editions" / "student" / name).read_bytes().decode("utf-8")
    assert text == made["student"][name] == to_text(nbformat.reads(text, as_version=4))


def test_command_says_which_lesson_is_not_marked(monkeypatch, capsys):
    nb = made_notebook()
    nb.cells[-5].metadata["tags"] = []
    monkeypatch.setattr(editions, "read_lessons", lambda: {"01_made": nb})
    assert editions.main([]) == 2
    assert "error: 01_made: exercise 1" in capsys.readouterr().err

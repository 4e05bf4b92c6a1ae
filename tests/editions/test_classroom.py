"""A class of nbgrader: set up, released, graded, given feedback, exported."""

import csv
import os
import subprocess
import sysconfig
from pathlib import Path

import nbformat
import pytest

from tests.editions.submissions import LESSON, exercises_alone, hand_ins
from tools import classroom
from tools.editions import EDITIONS, read_lessons
from tools.notebooks import to_text

LESSONS = read_lessons()


def nbgrader(folder, *arguments):
    """Run nbgrader in a class, as a teacher does; returns (exit status, what it prints)."""
    command = Path(sysconfig.get_path("scripts")) / "nbgrader"
    run = subprocess.run(
        [str(command), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def notebook(folder, *parts):
    return folder.joinpath(*parts, parts[-1] + ".ipynb")


def same_cells(one, other):
    """Whether two notebooks are alike for a learner and for nbgrader.

    ClearSolutions of nbgrader leaves an empty line where the solution stood.
    """

    def view(nb):
        found = []
        for cell in nb.cells:
            metadata = dict(cell.metadata)
            if "nbgrader" in metadata:
                metadata["nbgrader"] = {
                    k: v
                    for k, v in metadata["nbgrader"].items()
                    if k != "checksum" or not metadata["nbgrader"]["solution"]
                }
            found.append((cell.id, cell.cell_type, cell.source.rstrip(), metadata))
        return found

    return view(one) == view(other)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A class of the whole course."""
    folder = tmp_path_factory.mktemp("class") / "all"
    assert classroom.set_up(folder) == list(LESSONS)
    return folder


@pytest.mark.parametrize("name", LESSONS)
def test_release_of_every_lesson_is_the_student_edition(course, name):
    released = nbformat.read(notebook(course, "release", name), as_version=4)
    committed = nbformat.read(EDITIONS / "student" / f"{name}.ipynb", as_version=4)
    assert same_cells(released, committed)
    committed.cells[0].source += " "
    committed.cells[-1].source += "x"
    assert not same_cells(released, committed)


def test_the_source_for_nbgrader_has_the_solutions(course):
    for name in LESSONS:
        text = notebook(course, "source", name).read_text("utf-8")
        assert "### BEGIN SOLUTION" in text
        assert "### BEGIN SOLUTION" not in notebook(course, "release", name).read_text("utf-8")


def test_a_second_call_keeps_students_and_the_edited_configuration(course, monkeypatch):
    from nbgrader.api import Gradebook

    monkeypatch.setattr(classroom, "read_lessons", lambda: {LESSON: LESSONS[LESSON]})
    config = course / classroom.CONFIG
    config.write_text(config.read_text() + "c.Execute.timeout = 77\n")
    with Gradebook(f"sqlite:///{course / classroom.GRADEBOOK}") as gradebook:
        gradebook.update_or_create_student("ada")
    assert classroom.set_up(course) == [LESSON]
    assert "timeout = 77" in config.read_text()
    with Gradebook(f"sqlite:///{course / classroom.GRADEBOOK}") as gradebook:
        assert [student.id for student in gradebook.students] == ["ada"]
        assert len(gradebook.assignments) == len(LESSONS)


def test_refuses_what_is_no_class(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(classroom.Refused, match="holds no class of this course"):
        classroom.set_up(tmp_path)
    with pytest.raises(classroom.Refused, match="is a file"):
        classroom.set_up(tmp_path / "thesis.txt")
    (tmp_path / classroom.CONFIG).write_text("c = get_config()")  # of another course
    with pytest.raises(classroom.Refused, match="holds no class of this course"):
        classroom.set_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [classroom.CONFIG, "thesis.txt"]


@pytest.mark.parametrize("made", ["submitted", "autograded", "feedback"])
def test_refuses_a_class_with_hand_ins(tmp_path, made):
    (tmp_path / classroom.CONFIG).write_text(classroom.CONFIG_TEXT)
    classroom.refuse_to_overwrite(tmp_path)
    (tmp_path / made).mkdir()
    classroom.refuse_to_overwrite(tmp_path)
    (tmp_path / made / "ada").mkdir()
    with pytest.raises(classroom.Refused, match=f"has submissions or grades \\({made}/\\)"):
        classroom.set_up(tmp_path)


def test_unknown_lessons_are_named(tmp_path, capsys):
    assert classroom.main([str(tmp_path / "new"), "--lessons", "01,11"]) == 2
    assert "no lesson 11; choose among 00, 01" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert classroom.choose(["00_a", "01_b", "02_c"], "02,00") == ["02_c", "00_a"]


def test_the_configuration_ends_what_does_not_end(course):
    from traitlets.config import PyFileConfigLoader

    config = PyFileConfigLoader(classroom.CONFIG, path=str(course)).load_config()
    assert 0 < config.Execute.timeout <= 600
    assert config.Execute.interrupt_on_timeout
    assert config.CourseDirectory.root == str(course)


# ---------------------------------------------------------------------------------------------
# A class, from release to grades
# ---------------------------------------------------------------------------------------------

# A cell may take this long: far more than the imports do, and an endless one costs it.
TIMEOUT = 60


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A class in which nine students handed in one small lesson, after all of nbgrader's steps."""
    folder = tmp_path_factory.mktemp("class") / "small"
    with pytest.MonkeyPatch.context() as patch:
        small = {LESSON: exercises_alone(LESSONS[LESSON])}
        patch.setattr(classroom, "read_lessons", lambda: small)
        classroom.set_up(folder)
    released = nbformat.read(notebook(folder, "release", LESSON), as_version=4)
    source = nbformat.read(notebook(folder, "source", LESSON), as_version=4)
    for student, make in hand_ins(source).items():
        path = notebook(folder, "submitted", student, LESSON)
        path.parent.mkdir(parents=True)
        path.write_text(to_text(make(released)), encoding="utf-8")
    status, log = nbgrader(folder, "autograde", LESSON, "--create", f"--Execute.timeout={TIMEOUT}")
    assert nbgrader(folder, "generate_feedback", LESSON)[0] == 0
    assert nbgrader(folder, "export")[0] == 0
    return folder, status, log


@pytest.fixture(scope="module")
def grades(graded):
    """{student: (score, maximum)}, from the exported file."""
    with open(graded[0] / "grades.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["assignment"] for row in rows} == {LESSON}
    return {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in rows}


@pytest.mark.parametrize(
    ("student", "score"),
    [
        ("perfect", 8),
        ("partial", 4),  # of it a right answer that prints to stderr and warns
        ("empty", 0),
        ("wrong", 0),
        ("crashing", 0),
        ("endless", 0),
        ("dying", 0),
        ("tampered", 0),
    ],
)
def test_grades(grades, student, score):
    assert grades[student] == (score, 8)


def test_code_that_rewrites_a_check_is_not_caught(grades):
    """docs/teaching.md says so, and what to do about it; here it stays true."""
    assert grades["cheating"] == (4, 8)


def feedback(graded, student):
    return graded[0].joinpath("feedback", student, LESSON, f"{LESSON}.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        ("perfect", "It equals the exact mean of x0 given x"),
        ("partial", "here\n"),
        ("partial", "There is no answer yet: replace the"),
        ("wrong", "This only undoes the scaling by alpha: the score has no say in it."),
        ("wrong", "This is x itself: no step has been taken."),
        ("crashing", "No module named"),
        ("crashing", "Your code raised SystemExit"),
        ("endless", "Your code did not end within 20 seconds"),
        ("endless", "KeyboardInterrupt"),
        ("tampered", "This only undoes the scaling by alpha: the score has no say in it."),
    ],
)
def test_feedback_has_the_verdicts(graded, student, sentence):
    assert sentence in feedback(graded, student)


def test_tampering_is_logged(graded):
    _, _, log = graded
    assert "Attribute 'points' for cell exercise-1-check has changed" in log
    assert "Attribute 'checksum' for cell exercise-1-check has changed" in log
    assert "Attribute 'checksum' for cell imports has changed" in log


def test_a_dead_kernel_is_reported_and_the_others_are_graded(graded):
    folder, status, log = graded
    assert status == 1
    assert f"error processing assignment '{LESSON}' for student 'dying'" in log
    assert not (folder / "autograded" / "dying" / LESSON).exists()
    assert log.count("There was an error processing assignment '") == 1


def test_a_graded_class_is_not_overwritten(graded):
    folder, _, _ = graded
    before = notebook(folder, "source", LESSON).read_bytes()
    with pytest.raises(classroom.Refused, match="has submissions or grades"):
        classroom.set_up(folder)
    for name in ("submitted", "autograded", "feedback"):
        (folder / name).rename(folder / f"{name} moved")  # the gradebook still knows
    with pytest.raises(classroom.Refused, match="has 9 submissions"):
        classroom.set_up(folder)
    assert notebook(folder, "source", LESSON).read_bytes() == before

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
from tools.editions import BEGIN, EDITIONS
from tools.notebooks import read_lessons, to_text

LESSONS = read_lessons()


def nbgrader(folder, *arguments):
    """Run nbgrader in a class, as a teacher does; returns (exit status, what it prints)."""
    command = Path(sysconfig.get_path("scripts")) / "nbgrader"
    run = subprocess.run(
        [str(command), *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


def read(folder, *parts):
    return nbformat.read(folder.joinpath(*parts, parts[-1] + ".ipynb"), as_version=4)


def for_learners(nb):
    """A notebook's cells as a learner and nbgrader see them.

    ClearSolutions of nbgrader leaves an empty line where the solution stood.
    """
    for cell in nb.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.metadata.nbgrader.pop("checksum", None)
    return [(c.id, c.cell_type, c.source.rstrip(), dict(c.metadata)) for c in nb.cells]


def test_a_class_of_the_whole_course(tmp_path, monkeypatch):
    """Every release is the student edition; a second call keeps students and configuration."""
    from nbgrader.api import Gradebook

    folder = tmp_path / "class"
    assert classroom.set_up(folder) == list(LESSONS)
    for name in LESSONS:
        edition = nbformat.read(EDITIONS / "student" / f"{name}.ipynb", as_version=4)
        released = read(folder, "release", name)
        assert for_learners(released) == for_learners(edition)
        assert BEGIN not in str(released)
        assert BEGIN in str(read(folder, "source", name))
    ignored = ["git", "check-ignore", "--no-index", str(folder / "source")]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert subprocess.run(ignored, cwd=tmp_path, check=False, stdout=-3).returncode == 0
    config = folder / classroom.CONFIG
    config.write_text(config.read_text() + "c.Execute.timeout = 77\n")
    with Gradebook(f"sqlite:///{folder / classroom.GRADEBOOK}") as gradebook:
        gradebook.update_or_create_student("ada")
    assert classroom.set_up(folder, "01") == [LESSON]
    assert "timeout = 77" in config.read_text()
    with Gradebook(f"sqlite:///{folder / classroom.GRADEBOOK}") as gradebook:
        assert [student.id for student in gradebook.students] == ["ada"]
        assert len(gradebook.assignments) == len(LESSONS)


def test_refuses_what_is_no_class_or_no_lesson(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / classroom.CONFIG).write_text("c = get_config()")  # of another course
    with pytest.raises(classroom.Refused, match="holds no class of this course"):
        classroom.set_up(tmp_path)
    with pytest.raises(classroom.Refused, match="is a file"):
        classroom.set_up(tmp_path / "thesis.txt")
    assert classroom.main([str(tmp_path / "new"), "--lessons", "01,11"]) == 2
    assert "no lesson 11; choose among 00, 01" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A class whose students handed in one small lesson, after all of nbgrader's steps."""
    folder = tmp_path_factory.mktemp("class") / "small"
    with pytest.MonkeyPatch.context() as patch:
        small = {LESSON: exercises_alone(LESSONS[LESSON])}
        patch.setattr(classroom, "read_lessons", lambda: small)
        classroom.set_up(folder)
    released = read(folder, "release", LESSON)
    for student, make in hand_ins(read(folder, "source", LESSON)).items():
        name = "my answers.ipynb" if student == "stripped" else f"{LESSON}.ipynb"
        path = folder / "submitted" / student / LESSON / name
        path.parent.mkdir(parents=True)
        path.write_text(to_text(make(released)), encoding="utf-8")
    (folder / "submitted" / "cut" / LESSON).mkdir(parents=True)
    (folder / "submitted" / "cut" / LESSON / f"{LESSON}.ipynb").write_text(to_text(released)[:99])
    (folder / "submitted" / "paper" / LESSON).mkdir(parents=True)
    (folder / "submitted" / "paper" / LESSON / "report.pdf").write_text("%PDF")
    status, log = nbgrader(folder, "autograde", LESSON, "--create")
    assert status == 1, log
    for student, line in zip(["cut", "paper"], log.splitlines()[-3:-1], strict=True):
        assert f"'{LESSON}' for student '{student}'" in line
    assert nbgrader(folder, "generate_feedback", LESSON)[0] == 0
    assert nbgrader(folder, "export")[0] == 0
    return folder, log


def test_grades(graded):
    with open(graded[0] / "grades.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scores = {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in rows}
    # The noisy answer of "partial" is right; "cut" and "paper" cannot be read.
    right = dict.fromkeys(["perfect", "copied", "stripped"], (8, 8))
    wrong = dict.fromkeys(["broken", "tampered", "cut", "paper"], (0, 8))
    assert scores == right | wrong | {"partial": (4, 8)}


@pytest.mark.parametrize(
    ("student", "sentences"),
    [
        ("perfect", ["It equals the exact mean of x0 given x"]),
        ("partial", ["here\n", "There is no answer yet: replace the"]),
        ("broken", ["Your code did not end within 1 seconds", "Your code raised SystemExit"]),
        ("tampered", ["This only undoes the scaling by alpha", "exercise-1-check was missing,"]),
        ("stripped", ["exercise-1-check was missing, edited", "It equals the exact"]),
    ],
)
def test_feedback_has_the_verdicts(graded, student, sentences):
    path = graded[0].joinpath("feedback", student, LESSON, f"{LESSON}.html")
    for sentence in sentences:
        assert sentence in path.read_text("utf-8")


def test_what_was_mended_is_logged(graded):
    folder, log = graded
    for cell in ("exercise-1-check", "exercise-2-check", "imports"):
        assert f"submitted/tampered/{LESSON}/{LESSON}.ipynb: {cell} was missing, edited" in log
    assert f"{LESSON}: my answers.ipynb was handed in, and is copied to {LESSON}.ipynb." in log
    assert f"{LESSON}: there is no notebook in its folder, but report.pdf; ask for" in log
    assert f"NotGradable: {LESSON}.ipynb is no JSON, or cut off; ask for" in log
    assert (folder / "submitted" / "stripped" / LESSON / "my answers.ipynb").exists()


def test_a_graded_class_is_not_overwritten(graded):
    folder, _ = graded
    before = to_text(read(folder, "source", LESSON))
    with pytest.raises(classroom.Refused, match="has submissions or grades"):
        classroom.set_up(folder)
    for name in ("submitted", "autograded", "feedback"):
        (folder / name).rename(folder / f"{name} moved")  # the gradebook still knows
    with pytest.raises(classroom.Refused, match="has submissions in its gradebook"):
        classroom.set_up(folder)
    assert to_text(read(folder, "source", LESSON)) == before

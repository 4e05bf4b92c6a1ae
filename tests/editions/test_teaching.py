"""The instructor's guide and the question bank say what the lessons say."""

import re

import pytest

from slam_course import checks
from tests.browser.test_lab import running_time
from tools import classroom
from tools.exercises import exercise_minutes, find_exercises
from tools.notebooks import NOTEBOOKS, ROOT, read_lessons, visible_text

LESSONS = read_lessons()
GUIDE = (ROOT / "docs" / "teaching.md").read_text("utf-8")
BANK = (ROOT / "docs" / "question_bank.md").read_text("utf-8")


def markdown(nb):
    return "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def reading(nb):
    return int(re.search(r"\| reading \| [^\d|]*(\d+) min", markdown(nb))[1])


def test_table_of_lessons():
    rows = re.findall(
        r"^\| (\d\d) \| .+ \| (\d+) min \| (\d+) min \| (\d+) \| (\d+) s \|", GUIDE, re.M
    )
    expected = []
    for name, nb in LESSONS.items():
        exercises = find_exercises(nb)
        points = sum(each.points for each in exercises)
        minutes = sum(exercise_minutes(nb, len(exercises)))
        seconds = running_time(NOTEBOOKS / f"{name}.ipynb")
        expected.append((int(name[:2]), reading(nb), minutes, points, seconds))
    assert [tuple(map(int, row)) for row in rows] == expected
    _, read, minutes, points, seconds = map(sum, zip(*expected, strict=True))
    assert f"| all | | {read} min | {minutes} min | {points} | {seconds} s | |" in GUIDE
    assert f"Grade by points ({points})" in GUIDE
    hours = 30 * seconds / 3600
    assert f"take {seconds} core-seconds a student, {hours:.1f} core-hours" in GUIDE


def test_limits_are_those_of_the_code():
    assert f"gives a learner's function {checks.LIMIT:g} seconds" in GUIDE
    timeout = re.search(r"Execute\.timeout = (\d+)", classroom.CONFIG_TEXT)[1]
    assert f"interrupted after {timeout} seconds" in GUIDE


def questions():
    """(lesson, question, answer) of the question bank."""
    for part in re.split(r"^## Lesson ", BANK, flags=re.M)[1:]:
        for block in re.split(r"^\*\*\d+\. ", part, flags=re.M)[1:]:
            question, answer = block.split("<details><summary>Answer</summary>")
            yield part[:2], question.strip(" *\n"), answer.split("</details>")[0].strip()


@pytest.mark.parametrize("name", LESSONS)
def test_answers_are_backed_by_their_lesson(name):
    """What stands in code type is in the lesson's text or outputs, and the sections exist."""
    prose = markdown(LESSONS[name])
    shown = (line for cell in LESSONS[name].cells for line in visible_text(cell))
    text = re.sub(r"[$\s\\]+", " ", " ".join([prose, *shown]))
    answers = [answer for lesson, _, answer in questions() if lesson == name[:2]]
    assert len(answers) >= 3
    for answer in answers:
        for quoted in re.findall(r"`([^`]+)`", answer):
            assert re.sub(r"\s+", " ", quoted) in text, quoted
        where = re.search(rf"\(Lesson {name[:2]}, (.+)\)$", re.sub(r"\s+", " ", answer))
        assert where, f"{answer} does not end with the place that backs it"
        headings = [re.escape(title) for title in re.findall(r'"([^"]+)"', where[1])]
        if "section" in where[1]:
            headings += [rf"{number}\. " for number in re.findall(r"\d+", where[1])]
        assert headings
        for heading in headings:
            assert re.search(rf"^#+ {heading}", prose, re.M), heading

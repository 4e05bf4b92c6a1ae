"""The instructor's guide and the question bank say what the lessons say."""

import re

import pytest

from tools import classroom, editions
from tools.exercises import exercise_minutes, find_exercises
from tools.notebooks import ROOT, visible_text

LESSONS = editions.read_lessons()
GUIDE = (ROOT / "docs" / "teaching.md").read_text("utf-8")
BANK = (ROOT / "docs" / "question_bank.md").read_text("utf-8")


def markdown(nb):
    return "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def card(nb, row):
    """The number of a row of a lesson's budget card, times in seconds and sizes in GB."""
    match = re.search(rf"^\| {row} \| [^\d|]*(\d+(?:\.\d+)?) (\w+)", markdown(nb), re.M)
    return float(match[1]) * {"min": 60, "s": 1, "seconds": 1, "GB": 1, "GiB": 1}[match[2]]


def test_table_of_lessons():
    rows = re.findall(
        r"^\| (\d\d) \| .+ \| (\d+) min \| (\d+) min \| (\d+) \| (\d+) s \| ([\d.]+) GB \|$",
        GUIDE,
        re.M,
    )
    assert len(rows) == len(LESSONS)
    totals = [0, 0, 0, 0]
    for (number, *values), (name, nb) in zip(rows, LESSONS.items(), strict=True):
        exercises = find_exercises(nb)
        expected = [
            card(nb, "reading") / 60,
            sum(exercise_minutes(nb, len(exercises))),
            sum(each.points for each in exercises),
            card(nb, "running all cells"),
        ]
        assert number == name[:2]
        assert [float(value) for value in values[:4]] == expected, name
        assert float(values[4]) == card(nb, "memory"), name
        totals = [total + value for total, value in zip(totals, expected, strict=True)]
    reading, exercises, points, running = totals
    assert f"| all | | {reading:g} min | {exercises:g} min | {points} | {running:g} s | |" in GUIDE
    assert f"Grade by points ({points})" in GUIDE
    hours = 30 * running / 3600
    assert f"take {running:g} core-seconds a student, {hours:.1f} core-hours" in GUIDE


@pytest.mark.parametrize(("lab", "lessons"), [("1", "01 02"), ("2", "03 04"), ("3", "05 07")])
def test_minutes_of_the_labs(lab, lessons):
    minutes = 0
    for name, nb in LESSONS.items():
        if name[:2] in lessons:
            count = len(find_exercises(nb))
            minutes += card(nb, "reading") / 60 + sum(exercise_minutes(nb, count))
    assert f"| {lab} | {lessons.replace(' ', ' and ')} | {minutes:g}" in GUIDE
    assert minutes <= 120


def test_limits_are_those_of_the_code():
    from slam_course.checks import LIMIT

    assert f"gives a learner's function {LIMIT:g} seconds" in GUIDE
    timeout = re.search(r"Execute\.timeout = (\d+)", classroom.CONFIG_TEXT)[1]
    assert f"interrupted after {timeout} seconds" in GUIDE


def test_links_lead_somewhere():
    for text in (GUIDE, BANK):
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / "docs" / target).exists(), target


def questions():
    """(lesson, question, answer) of the question bank."""
    for part in re.split(r"^## Lesson ", BANK, flags=re.M)[1:]:
        for block in re.split(r"^\*\*\d+\. ", part, flags=re.M)[1:]:
            question, answer = block.split("<details><summary>Answer</summary>")
            yield part[:2], question.strip(" *\n"), answer.split("</details>")[0].strip()


def test_every_lesson_has_questions():
    count = {name[:2]: 0 for name in LESSONS}
    for lesson, question, answer in questions():
        count[lesson] += 1
        assert question
        assert answer
    assert min(count.values()) >= 3
    assert BANK.count("**1. ") == len(LESSONS)


@pytest.mark.parametrize(
    ("lesson", "question", "answer"),
    list(questions()),
    ids=[f"{lesson}-{question[:30]}" for lesson, question, _ in questions()],
)
def test_an_answer_is_backed_by_its_lesson(lesson, question, answer):
    """What stands in code type is in the lesson's text or outputs, and the sections exist."""
    [nb] = (nb for name, nb in LESSONS.items() if name.startswith(lesson))
    prose = markdown(nb)
    text = " ".join([prose, *(line for cell in nb.cells for line in visible_text(cell))])
    text = re.sub(r"[$\s\\]+", " ", text)
    for quoted in re.findall(r"`([^`]+)`", answer):
        assert re.sub(r"\s+", " ", quoted) in text, quoted
    where = re.search(r"\(Lesson (\d\d), (.+)\)$", re.sub(r"\s+", " ", answer))
    assert where, "an answer ends with the place that backs it"
    assert where[1] == lesson
    named = re.findall(r'"([^"]+)"', where[2])
    numbered = re.findall(r"\d+", where[2]) if "section" in where[2] else []
    assert named or numbered
    for heading in named:
        assert re.search(rf"^#+ {re.escape(heading)}", prose, re.M), heading
    for number in numbered:
        assert re.search(rf"^## {number}\. ", prose, re.M), f"section {number}"

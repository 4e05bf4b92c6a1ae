"""Collect what the checks answer to wrong answers: ``python -m tools.mistakes``.

The answers are those of tests/course/test_lesson_*.py, which is run with every verdict noted. The
sentences about the subject go to editions/mistakes.json, for the instructors' rubrics.
"""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from slam_course import checks
from slam_edu.io import atomic_path
from tools import ROOT
from tools.editions import MISTAKES

# Said to any answer that fails, so that no rubric needs it.
GENERAL = ("There is no answer yet", "Your code raised", "Your code did not end",
           "The check was given", "The check cannot read", "What your function returns",
           "Your function changes", "Your function never calls", "Two calls with the same",
           "The values are right, but in", "The values are right, but no gradient")  # fmt: skip


def names() -> dict[str, tuple[str, str]]:
    """{an exercise's name: (its lesson, the name of its check)}."""
    lessons = sorted(path.name for path in (ROOT / "slam_course").glob("lesson_*"))
    return {
        value.exercise: (lesson, name)
        for lesson in lessons
        for name, value in vars(importlib.import_module(f"slam_course.{lesson}.checks")).items()
        if hasattr(value, "exercise")
    }


def main() -> int:
    """Run the tests and write the file, unless a test fails: its verdicts are worth nothing."""
    said, verdict = {}, checks.Verdict

    def noted(exercise: str, passed: bool, message: str) -> checks.Verdict:
        sentences = said.setdefault(exercise, [])
        if not passed and not message.startswith(GENERAL) and message not in sentences:
            sentences.append(message)
        return verdict(exercise, passed, message)

    checks.Verdict = noted
    paths = sorted(map(str, (ROOT / "tests" / "course").glob("test_lesson_*.py")))
    status = pytest.main(["-q", "-p", "no:cacheprovider", *paths])
    if status:
        return int(status)
    found = {}
    for exercise, (lesson, check) in names().items():  # not before: pytest wants to import first
        found.setdefault(lesson, {})[check] = said[exercise]
    lessons = {lesson: dict(sorted(each.items())) for lesson, each in sorted(found.items())}
    text = json.dumps(lessons, indent=1, ensure_ascii=False) + "\n"
    with atomic_path(MISTAKES) as path:
        path.write_bytes(text.encode("utf-8"))
    print(f"wrote {MISTAKES.relative_to(ROOT)}; now run `make editions`")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Count the answers that the checks are tried on, and collect what they say to wrong ones.

    python -m tools.collect_answers             print the figures
    python -m tools.collect_answers --write     and write editions/mistakes.json

tests/checks is run with this module as a plugin of pytest: it notes every verdict. An answer is
one case of a parametrised test. It counts as wrong or right by its verdict, which that test
asserts, so a check that errs makes the run fail. What is no answer, `...` or None, counts for
neither.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slam_edu.files import atomic_path
from tools.editions import MISTAKES
from tools.notebooks import ROOT

RECORD = "SLAM_EDU_VERDICTS"  # the file that the recorder writes to

NO_ANSWER = "There is no answer yet"
# Not about the subject: what is said to any function that fails.
GENERAL = (
    "Your code raised",
    "Your code did not end",
    "The check was given",
    "What your function returns is a",
    "What your function returns has",
)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """An answer that a check was tried on.

    Attributes:
        lesson: the module of the check, such as "lesson_01".
        check: its name.
        test: the case of a test that tries the answer.
        passed: whether the answer is right.
        message: what the check says.
    """

    lesson: str
    check: str
    test: str
    passed: bool
    message: str


def pytest_configure() -> None:
    """The hook of pytest: before the lessons' checks are imported, let each note its verdicts."""
    if RECORD not in os.environ:
        return
    from slam_edu.checks import base

    original = base.exercise

    def recording(name: str) -> Callable:
        decorate = original(name)

        def outer(check: Callable) -> Callable:
            guarded = decorate(check)

            @functools.wraps(guarded)
            def noted(*answers: object) -> base.Verdict:
                verdict = guarded(*answers)
                row = {
                    "lesson": check.__module__.rsplit(".", 1)[1],
                    "check": check.__name__,
                    "test": os.environ.get("PYTEST_CURRENT_TEST", "").rsplit(" ", 1)[0],
                    "passed": verdict.passed,
                    "message": verdict.message,
                }
                with open(os.environ[RECORD], "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                return verdict

            return noted

        return outer

    base.exercise = recording


def pytest_collection_modifyitems(items: list) -> None:
    """The hook of pytest: cases of parametrised tests alone are answers."""
    items[:] = [item for item in items if "[" in item.name]


def record(arguments: list[str] | None = None) -> list[Tried]:
    """Run the tests of the checks; what they tried, one entry an answer, in order.

    Args:
        arguments: for pytest, in place of tests/checks.

    Raises:
        RuntimeError: a test failed, so that the verdicts are worth nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdicts.jsonl"
        path.touch()
        env = {**os.environ, RECORD: str(path), "OMP_NUM_THREADS": "1"}
        env.pop("PYTEST_XDIST_WORKER", None)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-p", "tools.collect_answers", *(arguments or lesson_tests())]
        run = subprocess.run(
            command, cwd=ROOT, env=env, check=False, capture_output=True, text=True
        )
        if run.returncode:
            raise RuntimeError("the checks' tests failed:\n" + run.stdout[-3000:] + run.stderr)
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return tried(rows)


def lesson_tests() -> list[str]:
    """The files that try answers on the lessons' checks."""
    return [str(path) for path in sorted((ROOT / "tests" / "checks").glob("test_lesson_*.py"))]


def tried(rows: list[dict]) -> list[Tried]:
    """One entry per case: those whose verdicts are all alike, told apart from tests about more."""
    cases: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        cases.setdefault((row["test"], row["lesson"], row["check"]), []).append(row)
    return [
        Tried(**verdicts[0])
        for verdicts in cases.values()
        if len({row["passed"] for row in verdicts}) == 1
        and not verdicts[0]["message"].startswith(NO_ANSWER)
    ]


def mistakes(answers: list[Tried]) -> dict[str, dict[str, list[str]]]:
    """{lesson: {check: sentences to wrong answers}}, those about the subject, in order."""
    found: dict[str, dict[str, list[str]]] = {}
    for each in answers:
        sentences = found.setdefault(each.lesson, {}).setdefault(each.check, [])
        if not each.passed and not each.message.startswith(GENERAL):
            if each.message not in sentences:
                sentences.append(each.message)
    return {lesson: dict(sorted(checks.items())) for lesson, checks in sorted(found.items())}


def figures(answers: list[Tried]) -> str:
    """A table: wrong answers rejected and right ones accepted, for each check."""
    count = Counter((each.lesson, each.check, each.passed) for each in answers)
    lines = [f"{'check':<28}{'wrong, rejected':>16}{'right, accepted':>17}"]
    for lesson, check in sorted({(each.lesson, each.check) for each in answers}):
        wrong, right = count[lesson, check, False], count[lesson, check, True]
        lines.append(f"{lesson + '.' + check:<28}{wrong:>16}{right:>17}")
    wrong = sum(not each.passed for each in answers)
    lines.append(f"{'all':<28}{wrong:>16}{len(answers) - wrong:>17}")
    return "\n".join(lines)


def as_text(found: dict[str, dict[str, list[str]]]) -> str:
    """The text of editions/mistakes.json."""
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; with --write, write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.collect_answers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help="write editions/mistakes.json")
    options = parser.parse_args(arguments)
    try:
        answers = record()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(figures(answers))
    if options.write:
        MISTAKES.parent.mkdir(exist_ok=True)
        with atomic_path(MISTAKES) as path:
            path.write_bytes(as_text(mistakes(answers)).encode("utf-8"))
        print(f"wrote {MISTAKES.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

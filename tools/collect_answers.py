"""Count the answers that the checks are tried on, and collect what they say to wrong ones.

    python -m tools.collect_answers             print the figures
    python -m tools.collect_answers --write     and write editions/mistakes.json

An answer is one case of a parametrised test in tests/checks. The tests are called here as pytest
would call them, and every verdict is noted. An answer counts as wrong or right by its verdict,
which its test asserts, so a check that errs ends the count. What is no answer, `...` or None,
counts for neither.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType

import slam_course.checks
from slam_course.checks import Verdict, base
from slam_edu.io import atomic_path
from tools.editions import MISTAKES
from tools.notebooks import ROOT

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


class Noted(dict):
    """In the place of `base._LAST`: remembers all verdicts, and not only the last on each."""

    def __init__(self) -> None:
        super().__init__()
        self.verdicts: list[Verdict] = []

    def __setitem__(self, name: str, verdict: Verdict) -> None:
        super().__setitem__(name, verdict)
        self.verdicts.append(verdict)


def names_of_checks() -> dict[str, tuple[str, str]]:
    """{an exercise's name: (its lesson's module, its check)}, for all lessons."""
    found = {}
    for info in pkgutil.iter_modules(slam_course.checks.__path__):
        if info.name.startswith("lesson_"):
            module = importlib.import_module(f"slam_course.checks.{info.name}")
            for name, value in vars(module).items():
                if hasattr(value, "exercise"):
                    found[value.exercise] = (info.name, name)
    return found


def cases(function: Callable) -> Iterator[tuple[str, dict[str, object]]]:
    """(number, arguments) of every case of a test; nothing if it is not parametrised."""
    marks = [m for m in getattr(function, "pytestmark", []) if m.name == "parametrize"]
    if not marks:
        return
    rows = []
    for mark in marks:
        names, values = mark.args
        alone = isinstance(mark.args[0], str) and len(names.split(",")) == 1
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        # pytest.param(…, id=…) holds its values beside marks and id.
        each = (
            value.values if hasattr(value, "marks") else (value,) if alone else value
            for value in values
        )
        rows.append([dict(zip(names, value, strict=True)) for value in each])
    for number, parts in enumerate(itertools.product(*rows)):
        yield str(number), {key: value for part in parts for key, value in part.items()}


def record(modules: Iterable[ModuleType] | None = None) -> list[Tried]:
    """Call the tests of the checks; what they tried, one entry an answer, in order.

    Args:
        modules: with tests, in place of tests/checks.

    Raises:
        RuntimeError: a test failed, so that the verdicts are worth nothing.
    """
    checks, answers = names_of_checks(), []
    before = base._LAST
    try:
        for module in lesson_tests() if modules is None else modules:
            for name, function in list(vars(module).items()):
                if not name.startswith("test_"):
                    continue
                for number, arguments in cases(function):
                    base._LAST = noted = Noted()
                    case = f"{module.__name__}.{name}[{number}]"
                    try:
                        function(**arguments)
                    except AssertionError as error:
                        raise RuntimeError(f"the test {case} failed: {error}") from error
                    answers += tried(case, noted.verdicts, checks)
    finally:
        base._LAST = before
    return answers


def lesson_tests() -> Iterator[ModuleType]:
    """The modules that try answers on the lessons' checks."""
    for path in sorted((ROOT / "tests" / "checks").glob("test_lesson_*.py")):
        yield importlib.import_module(f"tests.checks.{path.stem}")


def tried(
    case: str, verdicts: list[Verdict], checks: dict[str, tuple[str, str]]
) -> list[Tried]:
    """The answers of a case: one for each check that gave it one kind of verdict."""
    found = []
    for name in dict.fromkeys(verdict.exercise for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.exercise == name]
        given = not own[0].message.startswith(base.NO_ANSWER)
        if given and len({verdict.passed for verdict in own}) == 1:
            lesson, check = checks[name]
            answer = Tried(
                lesson=lesson,
                check=check,
                test=case,
                passed=own[0].passed,
                message=own[0].message,
            )
            found.append(answer)
    return found


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

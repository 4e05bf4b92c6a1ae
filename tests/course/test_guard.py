"""Every check of every lesson stays whole, whatever the answer does to the process around it."""

import importlib
import random
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch

from slam_course import checks as base
from slam_course import guard, summary
from tools.editions import read_lessons
from tools.exercises import find_exercises


def all_checks():
    """(id, check, how many answers it takes, its other arguments) of every exercise."""
    found = []
    for name, nb in read_lessons().items():
        module = importlib.import_module(f"slam_course.checks.lesson_{name[:2]}")
        for each in find_exercises(nb):
            check = getattr(module, each.call.name)
            found.append((f"{name[:2]}-{each.call.name}", check, len(each.answers)))
    return found


CHECKS = all_checks()
# Two exercises ask for a value and not for a function.
VALUES = ("00-enough_steps", "03-diagnosis")
DISTANCES = {1: 0.9, 2: 0.05}


def ask(name, check, count, answer):
    """The verdict on one answer, given as often as the check takes answers."""
    return check(answer, DISTANCES) if name == "00-enough_steps" else check(*[answer] * count)


each_check = pytest.mark.parametrize(
    ("name", "check", "count"), CHECKS, ids=[name for name, *_ in CHECKS]
)
each_function = pytest.mark.parametrize(
    ("name", "check", "count"),
    [row for row in CHECKS if row[0] not in VALUES],
    ids=[name for name, *_ in CHECKS if name not in VALUES],
)


def test_every_exercise_is_tried():
    assert len(CHECKS) == 28
    assert len({check.exercise for _, check, _ in CHECKS}) == 28, "a summary tells them apart"


class Hostile:
    """Fails at whatever is done to it."""

    def __getattr__(self, name):
        raise RuntimeError("no")

    def __eq__(self, other):
        raise RuntimeError("no")

    __hash__ = None

    def __repr__(self):
        raise RuntimeError("no")

    __str__ = __repr__


class Unsayable(Exception):
    def __str__(self):
        raise RuntimeError("no")


TYPES = {
    "text": "x0",
    "number": 3.5,
    "complex": 1j,
    "yes": True,
    "list": [1.0, 2.0],
    "empty": (),
    "dictionary": {"a": 1},
    "object": object(),
    "class": type,
    "generator": (i for i in range(3)),
    "numpy": np.zeros((64, 2)),
    "no numbers": torch.tensor([]),
    "whole numbers": torch.zeros(64, 2, dtype=torch.long),
    "sparse": torch.zeros(64, 2).to_sparse(),
    "nan": float("nan"),
    "infinite": float("inf"),
}


@each_check
def test_a_value_of_the_wrong_type_gets_a_sentence(name, check, count):
    for kind, value in TYPES.items():
        for answer in (value, lambda *args, value=value, **kwargs: value):
            verdict = ask(name, check, count, answer)
            assert not verdict.passed, kind
            assert verdict.message.strip(), kind


@each_check
def test_an_object_that_fails_at_everything_gets_a_sentence(name, check, count):
    hostile = Hostile()
    for answer in (hostile, lambda *args, **kwargs: hostile):
        verdict = ask(name, check, count, answer)
        assert not verdict.passed
        assert verdict.message.strip()


def raises(error):
    def answer(*args, **kwargs):
        raise error

    return answer


def exits(*args, **kwargs):
    sys.exit(0)


def recurses(*args, **kwargs):
    return recurses(*args, **kwargs)


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (raises(ValueError("mine")), "raised ValueError: mine"),
        (raises(SystemExit(0)), "raised SystemExit: 0"),
        (exits, "raised SystemExit: 0"),
        (raises(GeneratorExit()), "raised GeneratorExit"),
        (raises(StopIteration()), "raised StopIteration"),
        (raises(MemoryError()), "raised MemoryError"),
        (raises(Unsayable()), "raised Unsayable: (its message cannot be shown)"),
        (recurses, "raised RecursionError"),
    ],
    ids=["value", "exit", "sys.exit", "generator", "stop", "memory", "unsayable", "recursion"],
)
@each_function
def test_whatever_is_raised_gets_a_sentence(name, check, count, answer, word):
    verdict = ask(name, check, count, answer)
    assert not verdict.passed
    assert word in verdict.message


@each_function
def test_the_stop_button_stops(name, check, count):
    with pytest.raises(KeyboardInterrupt):
        ask(name, check, count, raises(KeyboardInterrupt()))


@each_function
def test_printing_and_warning_do_not_look_like_a_failure(name, check, count, capsys):
    """nbgrader gives no points to a test that writes to stderr."""

    def talks(*args, **kwargs):
        print("here I am")
        print("still here", file=sys.stderr)
        warnings.warn("careful", stacklevel=1)

    def show(message, *args):
        print(message, file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show  # as outside of pytest
        verdict = ask(name, check, count, talks)
    assert verdict.message == base.NO_ANSWER or name == "03-average"
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "here I am" in printed.out
    assert "still here" in printed.out
    assert "careful" in printed.out


def state():
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "torch": torch.get_rng_state().sum().item(),
        "numpy": np.random.get_state()[1].sum(),  # noqa: NPY002
        "python": hash(random.getstate()),
    }


def upset():
    """Change every switch and every random state."""
    torch.set_default_dtype(torch.float16)
    torch.set_default_device("cpu:0")
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    random.seed(123)


@each_function
def test_global_state_is_put_back(name, check, count):
    before = state()

    def answer(*args, **kwargs):
        upset()
        assert all(state()[key] != before[key] for key in before), "this test changes nothing"
        raise ValueError("and it fails")

    assert "and it fails" in ask(name, check, count, answer).message
    assert state() == before


def test_a_right_answer_may_upset_everything():
    """The check goes on under its own switches; only the answer works under the others."""
    from slam_course.checks import lesson_01, lesson_03

    def denoiser(score, x, level):
        mean = (x + level.sigma**2 * score) / level.alpha
        upset()
        return mean

    def update_average(target, student, rate):
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), student.parameters(), strict=True):
                slow.mul_(rate).add_(fast, alpha=1 - rate)
        upset()

    before = state()
    assert lesson_01.denoiser(denoiser).passed, lesson_01.denoiser(denoiser)
    assert lesson_03.average(update_average).passed, lesson_03.average(update_average)
    assert state() == before


# Seconds after which an endless answer ends all the same, so that this test fails and not hangs.
PATIENCE = 10


def sleeps(*args, **kwargs):
    start = time.monotonic()
    while time.monotonic() < start + PATIENCE:
        time.sleep(0.01)


def counts_for_ever(*args, **kwargs):
    start, n = time.monotonic(), 0
    while n % 1000 or time.monotonic() < start + PATIENCE:
        n += 1


def catches_errors_for_ever(*args, **kwargs):
    start = time.monotonic()
    while time.monotonic() < start + PATIENCE:
        try:
            time.sleep(0.01)
        except Exception:
            pass


@pytest.mark.parametrize("answer", [sleeps, counts_for_ever, catches_errors_for_ever])
@each_function
def test_an_endless_answer_is_ended(name, check, count, answer, monkeypatch):
    monkeypatch.setattr(guard, "LIMIT", 0.03)
    before = signal.getsignal(guard._BELL)
    verdict = ask(name, check, count, answer)
    assert not verdict.passed
    assert "did not end within 0.03 seconds" in verdict.message
    assert signal.getsignal(guard._BELL) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_bell_that_is_swallowed_rings_again(monkeypatch):
    monkeypatch.setattr(guard, "_AGAIN", 0.02)
    rung = []

    def answer():
        for _ in range(3):
            try:
                time.sleep(PATIENCE / 3)
            except guard.TooSlow:
                rung.append(True)
                if len(rung) == 3:
                    raise

    with pytest.raises(guard.TooSlow), guard.time_limit(0.02):
        answer()
    assert len(rung) == 3


def test_what_ends_in_time_hears_no_bell():
    with guard.time_limit(0.05):
        late = signal.getsignal(guard._BELL)
    time.sleep(0.1)
    late(guard._BELL, None)  # a bell that rang in the very last moment


def test_a_limit_inside_a_limit_keeps_the_outer_handler():
    with guard.time_limit(5):
        outer = signal.getsignal(guard._BELL)
        with guard.time_limit(5):
            pass
        assert signal.getsignal(guard._BELL) is outer


def test_where_there_is_no_alarm_a_thread_rings(monkeypatch):
    """The way of Windows, on this machine: a thread that interrupts the main one."""
    monkeypatch.delattr(signal, "setitimer")
    monkeypatch.setattr(guard, "LIMIT", 0.05)
    count = threading.active_count()
    for answer in (sleeps, counts_for_ever):
        _, check, _ = CHECKS[2]
        assert "did not end within" in check(answer).message
    for _ in range(500):
        if threading.active_count() == count:
            break
        time.sleep(0.01)
    assert threading.active_count() == count, "the thread that rings stays behind"


def test_in_another_thread_there_is_no_limit_and_no_error():
    from slam_course.lesson_00.checks import noisy_points

    found = []
    answer = lambda x0, eps, alpha, sigma: alpha * x0 + sigma * eps  # noqa: E731
    thread = threading.Thread(target=lambda: found.append(noisy_points(answer)))
    thread.start()
    thread.join()
    assert found[0].passed


def test_summary_counts_the_last_verdicts(monkeypatch):
    from slam_course.lesson_00 import checks as checks

    monkeypatch.setattr(base, "_LAST", {})
    points = {checks.noisy_points: 2, checks.enough_steps: 1}
    assert summary(points).points == 0
    assert "not checked  0 of 2 points" in repr(summary(points))
    checks.noisy_points(lambda x0, eps, alpha, sigma: alpha * x0 + sigma * eps)
    checks.enough_steps(1, DISTANCES)
    text = repr(summary(points))
    assert "a noisy picture       right        2 of 2 points" in text
    assert "how many evaluations  not yet      0 of 1 points" in text
    assert text.splitlines()[-1].strip() == "in all       2 of 3 points"
    checks.noisy_points(...)
    assert summary(points).points == 0, "the last verdict counts"
    with pytest.raises(ValueError, match="is not a check"):
        summary({len: 1})

"""Every check of every lesson stays whole, whatever the answer does to the process around it."""

import importlib
import inspect
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from slam_course import checks as base
from slam_course.checks import (
    Asked,
    exercise,
    hold,
    require,
    require_close,
    require_shape,
    summary,
)
from slam_course.lesson_00 import checks as lesson_00

DISTANCES = {1: 0.9, 2: 0.05}


def all_checks():
    """{id: check} of every exercise."""
    found = {}
    for lesson in range(11):
        module = importlib.import_module(f"slam_course.lesson_{lesson:02d}.checks")
        for name, value in vars(module).items():
            if hasattr(value, "exercise"):
                found[f"{lesson:02d}-{name}"] = value
    return found


CHECKS = all_checks()


def ask(name, answer):
    """The verdict on one answer, given as often as the check has parameters for answers."""
    if name == "00-enough_steps":
        return CHECKS[name](answer, DISTANCES)
    parameters = inspect.signature(CHECKS[name]).parameters.values()
    return CHECKS[name](*[answer for each in parameters if each.default is each.empty])


def test_every_exercise_is_tried():
    assert len(CHECKS) == 32
    assert len({check.exercise for check in CHECKS.values()}) == 32, "a summary tells them apart"


# -------------------------------------------------------------------- one check


@exercise("Exercise 9, three")
def three(answer):
    value = require_shape(answer(), (1,), "The answer")
    require(value.item() > 0, "It should be positive.")
    require_close(value, torch.tensor([3.0]), "It should be three.")
    return "Three it is."


def raises(error):
    def answer(*args, **kwargs):
        raise error

    return answer


class Unsayable(Exception):
    def __str__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (..., "no answer yet"),
        (None, "no answer yet"),
        (lambda: ..., "no answer yet"),
        (lambda: 3.0, "is a float; it should be a torch.Tensor"),
        (lambda: torch.zeros(2), "shape (2,); it should have (1,)"),
        (lambda: torch.tensor([float("nan")]), "NaN or infinite"),
        (lambda: torch.tensor([-1.0]), "should be positive"),
        (lambda: torch.tensor([2.9]), "should be three"),
        (lambda: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda: sys.exit(0), "raised SystemExit: 0"),
        (raises(Unsayable()), "raised Unsayable: (its message cannot be shown)"),
    ],
)
def test_a_wrong_answer_gets_a_sentence(answer, sentence):
    verdict = three(answer)
    assert not verdict.passed
    assert sentence in verdict.message
    assert repr(verdict).startswith("Exercise 9, three: not yet. ")


@pytest.mark.parametrize(
    ("upset", "name"),
    [
        (lambda: torch.set_default_dtype(torch.float64), "the default dtype"),
        (lambda: torch.set_grad_enabled(False), "whether gradients are computed"),
        (lambda: torch.no_grad().__enter__(), "whether gradients are computed"),
        (lambda: torch.manual_seed(0), "the random seed"),
        (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "the number of threads"),
    ],
)
def test_a_right_answer_leaves_the_switches(upset, name):
    """The cells that follow would go on under them; the check itself does not."""

    def answer():
        upset()
        return torch.tensor([3.0], dtype=torch.float32)

    before = state()
    verdict = three(answer)
    assert not verdict.passed
    assert f"changes {name} for everything" in verdict.message
    assert state() == before


# -------------------------------------------------------------------- the contract


def linear(network, x, values):
    """A right function of everything that the contract looks at."""
    return network(x) * 2 + sum(values)


@exercise("Exercise 9, the contract")
def contract(answer: "Callable"):
    network = Asked(torch.nn.Linear(2, 2, dtype=torch.float64).requires_grad_(False).forward)
    inputs = {"network": network, "x": torch.ones(3, 2, dtype=torch.float64), "values": [1, 2]}
    hold(answer, linear, inputs, (), "Twice the network, and the sum.", waste="Ask once.")
    return "Right."


def pops(network, x, values):
    return network(x) * 2 + values.pop() + sum(values)


def raises_below(network, x, values):
    return torch.nn.functional.linear(x, OUTSIDE)


OUTSIDE = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda f, x, v: linear(f, x, v).float(), "The values are right, but in torch.float32"),
        (lambda f, x, v: linear(f, x, v).detach(), "comes back to x"),
        (torch.no_grad()(linear), "comes back to x"),
        (lambda f, x, v: torch.from_numpy(linear(f, x, v).numpy()), "comes back to x"),
        (lambda f, x, v: 2 * f(x).detach() + 3 + x - x.detach(), "a wrong one"),
        (lambda f, x, v: linear(f, x, v) + 0 * f(x), "shown 6 samples; 3 are enough. Ask once."),
        (lambda f, x, v: [f(x[:0]) for _ in range(10)] and linear(f, x, v), "called 11 times"),
        (lambda f, x, v: x + 3, "never calls `network`"),
        (lambda f, x, v: x + OUTSIDE[0], "It reads `OUTSIDE` of the notebook"),
        (raises_below, "(in raises_below, line"),
        (lambda f, x: f(x), "3 were given (when it was called: keep the stub's arguments)"),
        (pops, "changes values itself"),
        (lambda f, x, v: v.append(0) or linear(f, x, v), "changes v itself"),
        (lambda f, x, v: linear(f, x.requires_grad_(), v), "changes x itself"),
        (lambda f, x, v: f(x) * torch.rand(1), "fresh noise"),
        (lambda f, x, v: print(linear(f, x, v)), "is None: is a `return` missing?"),
        (lambda f, x, v: 2 * f(x), "Twice the network"),
        (lambda f, x, v: f(), "missing a required argument: 'input'"),
        (lambda f, x, v: linear(f, x, v).to_sparse(), "The check cannot read your answer"),
    ],
)
def test_the_contract(answer, sentence):
    verdict = contract(answer)
    assert not verdict.passed
    assert sentence in verdict.message


def test_unusual_and_right():
    for answer in (linear, lambda *all: linear(*all) + 0, lambda network, x, values: torch.cat(
        [linear(network, row[None], values) for row in x]
    )):  # fmt: skip
        assert contract(answer).passed


def test_numbers_of_any_kind():
    for value in (3, 3.0, np.float32(3), np.array(3.0), torch.tensor(3), torch.tensor(3.0)):
        assert base.number(value) == 3
    for value in (3, np.int64(3), torch.tensor(3), np.array(3)):
        assert base.whole(value) == 3
    for value in ([1, 2], (1, 2), range(1, 3), np.array([1, 2]), torch.tensor([1, 2])):
        assert base.listed(value, "", 2) == [1, 2]
    for value in (3.0, torch.tensor(3.0), True, "3", 1j, np.array([1, 2]), np.array([3])):
        with pytest.raises(base.Wrong):
            base.whole(value)
    for value in ("12", 12, {1: 2}, torch.tensor(12), [1, 2, 3]):
        with pytest.raises(base.Wrong, match="two"):
            base.listed(value, "two", 2)


# -------------------------------------------------------------------- all checks


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


@pytest.mark.parametrize("name", CHECKS)
def test_a_value_of_the_wrong_type_gets_a_sentence(name):
    values = ("x0", 1j, True, (), {"a": 1}, np.zeros((64, 2)), torch.tensor([]), float("nan"))
    values += (torch.zeros(64, 2, dtype=torch.long), torch.zeros(64, 2).to_sparse(), Hostile())
    for value in values:
        for answer in (value, lambda *args, value=value, **kwargs: value):
            verdict = ask(name, answer)
            assert not verdict.passed
            assert verdict.message.strip()


# -------------------------------------------------------------------- the guard


def test_the_stop_button_stops():
    with pytest.raises(KeyboardInterrupt):
        three(raises(KeyboardInterrupt()))


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


def test_global_state_is_put_back_and_nothing_looks_like_a_failure(capsys):
    """nbgrader gives no points to a test that writes to stderr."""
    before = state()

    def answer():
        print("here I am", file=sys.stderr)
        warnings.warn("careful", stacklevel=1)
        upset()
        assert all(state()[key] != before[key] for key in before), "this test changes nothing"
        raise ValueError("and it fails")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
        assert "and it fails" in three(answer).message
    assert state() == before
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "here I am" in printed.out
    assert "careful" in printed.out


# -------------------------------------------------------------------- time


def catches_errors_for_ever():
    """Ends all the same, so that the test fails and does not hang."""
    start = time.monotonic()
    while time.monotonic() < start + 10:
        try:
            time.sleep(0.01)
        except Exception:
            pass


def test_an_endless_answer_is_ended(monkeypatch):
    monkeypatch.setattr(base, "LIMIT", 0.03)
    before = signal.getsignal(base._BELL)
    assert "did not end within 0.03 seconds" in three(catches_errors_for_ever).message
    assert signal.getsignal(base._BELL) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_bell_that_is_swallowed_rings_again(monkeypatch):
    monkeypatch.setattr(base, "_AGAIN", 0.02)
    rung = []

    def answer():
        while True:
            try:
                time.sleep(10)
            except base.TooSlow:
                rung.append(True)
                if len(rung) == 3:
                    raise

    with pytest.raises(base.TooSlow), base.time_limit(0.02):
        answer()
    assert len(rung) == 3


def test_what_ends_in_time_hears_no_bell():
    with base.time_limit(5):
        late = signal.getsignal(base._BELL)
        with base.time_limit(5):
            pass
        assert signal.getsignal(base._BELL) is late  # a limit inside keeps the outer handler
    late(base._BELL, None)  # a bell that rang in the very last moment


def test_where_there_is_no_alarm_a_thread_rings(monkeypatch):
    """The way of Windows, on this machine: a thread that interrupts the main one."""
    monkeypatch.delattr(signal, "setitimer")
    monkeypatch.setattr(base, "LIMIT", 0.05)
    before = set(threading.enumerate())
    assert "did not end within" in three(catches_errors_for_ever).message
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
        assert not thread.is_alive(), "the thread that rings stays behind"


def test_in_another_thread_there_is_no_limit_and_no_error():
    found = []
    thread = threading.Thread(target=lambda: found.append(three(lambda: torch.tensor([3.0]))))
    thread.start()
    thread.join()
    assert found[0].passed


def test_summary_counts_the_last_verdicts(monkeypatch):
    monkeypatch.setattr(base, "_LAST", {})
    points = {lesson_00.noisy_points: 2, lesson_00.enough_steps: 1}
    assert "not checked  0 of 2 points" in repr(summary(points))
    lesson_00.noisy_points(lambda x0, eps, alpha, sigma: alpha * x0 + sigma * eps)
    lesson_00.enough_steps(1, DISTANCES)
    text = repr(summary(points))
    assert "a noisy picture       right        2 of 2 points" in text
    assert "how many evaluations  not yet      0 of 1 points" in text
    assert text.splitlines()[-1].strip() == "in all       2 of 3 points"
    lesson_00.noisy_points(...)
    assert summary(points).points == 0, "the last verdict counts"


def test_a_check_looks_at_gradients_where_a_notebook_has_none():
    with torch.no_grad():
        verdict = lesson_00.noisy_points(lambda x0, eps, alpha, sigma: alpha * x0 + sigma * eps)
        assert not torch.is_grad_enabled()
    assert verdict.passed, verdict

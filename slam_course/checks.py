"""What all checks share: the verdict, the comparison, and the guard around a learner's code.

The guard ends what takes too long and puts back what was changed. It protects from accidents: code
that means harm runs in the same process and can undo all of it (docs/teaching.md, "Untrusted
code").
"""

from __future__ import annotations

import _thread
import contextlib
import csv
import functools
import math
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LIMIT = 20.0  # seconds for one check; on two slow cores the slowest takes about one
NO_ANSWER = "There is no answer yet: replace the `...`."

_AGAIN = 1.0  # seconds after which a bell that was swallowed rings again
# A signal that nobody else needs: Windows has no alarm.
_BELL = getattr(signal, "SIGALRM", None) or getattr(signal, "SIGBREAK", None)


class Wrong(Exception):
    """Raised inside a check; its sentence becomes the verdict."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check."""

    exercise: str
    passed: bool
    message: str  # one or two sentences: what is right, or what is wrong and where to look

    def __repr__(self) -> str:
        return f"{self.exercise}: {'right' if self.passed else 'not yet'}. {self.message}"


# The last verdict on each exercise in this process, for `summary`.
_LAST: dict[str, Verdict] = {}


def exercise(name: str) -> Callable[[Callable[..., str]], Callable[..., Verdict]]:
    """Turn ``check(*answers) -> praise`` into a check that always returns a :class:`Verdict`.

    The check raises :class:`Wrong` for a wrong answer. Whatever the learner's code raises, an exit
    included, is reported by its type, message and line. An answer of ``...`` or None, or code that
    returns or raises ``NotImplementedError``, counts as not given yet. What does not end within
    :data:`LIMIT` seconds is broken off; Jupyter's stop button (``KeyboardInterrupt``) stops the
    cell as ever. Random states and PyTorch's switches are afterwards what they were. What the
    learner's code prints is shown, warnings too, but not as an error: nbgrader counts anything on
    stderr as a failure.
    """

    def decorate(check: Callable[..., str]) -> Callable[..., Verdict]:
        @functools.wraps(check)
        def guarded(*answers: object) -> Verdict:
            if any(answer is ... or answer is None for answer in answers):
                passed, message = False, NO_ANSWER
            else:
                stdout = contextlib.redirect_stderr(sys.stdout)
                with _random_states_kept(), _switches_kept(), stdout:
                    passed, message = _judge(check, [_tidy(answer) for answer in answers])
            _LAST[name] = Verdict(name, passed, message)
            return _LAST[name]

        guarded.exercise = name
        return guarded

    return decorate


def _judge(check: Callable[..., str], answers: Sequence[object]) -> tuple[bool, str]:
    """(passed, message) of a check, whatever the learner's code does."""
    limit = LIMIT
    try:
        with time_limit(limit):
            return True, check(*answers)
    except KeyboardInterrupt:
        raise
    except Wrong as wrong:
        return False, str(wrong)
    except NotImplementedError:
        return False, NO_ANSWER
    except TooSlow:
        return False, (
            f"Your code did not end within {limit:g} seconds, and was stopped. Is there a loop "
            f"that never ends, or far more work than the exercise asks for?"
        )
    except BaseException as error:  # the learner's code may raise anything, SystemExit as well
        frame = traceback.extract_tb(error.__traceback__)[-1]
        try:
            text = str(error)
        except Exception:
            text = "(its message cannot be shown)"
        return False, (
            f"Your code raised {type(error).__name__}: {text} (in {frame.name}, "
            f"line {frame.lineno}: {frame.line})."
        )


@dataclass(frozen=True)
class Summary:
    """How far a learner has come; its text is a table, for handing in."""

    # For each exercise its name, "right", "not yet" or "not checked", points, maximum.
    rows: tuple[tuple[str, str, float, float], ...]

    @property
    def points(self) -> float:
        """The points reached."""
        return sum(points for _, _, points, _ in self.rows)

    def __repr__(self) -> str:
        total = ("", "in all", self.points, sum(most for *_, most in self.rows))
        width = max(len(name) for name, *_ in (*self.rows, total))
        return "\n".join(
            f"{name:<{width}}  {word:<11}  {points:g} of {most:g} points"
            for name, word, points, most in (*self.rows, total)
        )


def summary(points: Mapping[Callable[..., Verdict], float]) -> Summary:
    """The last verdict on each exercise since the kernel started, with its points.

    ``points`` are those of each check, such as ``{checks.denoiser: 4, checks.euler_step: 4}``.
    """
    rows = []
    for check, most in points.items():
        verdict = _LAST.get(check.exercise)
        word = "not checked" if verdict is None else "right" if verdict.passed else "not yet"
        rows.append((check.exercise, word, most if word == "right" else 0, most))
    return Summary(tuple(rows))


def require(condition: bool, sentence: str) -> None:
    """Raise :class:`Wrong` with the sentence unless the condition holds."""
    if not condition:
        raise Wrong(sentence)


def require_function(answer: object) -> None:
    """Require something that can be called."""
    require(
        callable(answer),
        f"The check was given a {type(answer).__name__}; give it your function, by name alone.",
    )


def given(answer: Any) -> Any:
    """What the learner's function returned; ``...`` and None count as no answer yet."""
    if answer is ... or answer is None:
        raise NotImplementedError
    return answer


def unchanged(sentence: str, answer: Callable[..., Any], *inputs: object) -> Any:
    """What the learner's function returns; :class:`Wrong` with the sentence if inputs change."""
    before = [(value, value.clone()) for value in inputs if isinstance(value, Tensor)]
    returned = answer(*inputs)
    require(all(torch.equal(now, then) for now, then in before), sentence)
    return returned


def require_shape(
    answer: object, shape: tuple[int, ...], what: str = "What your function returns"
) -> Tensor:
    """Require a tensor of a shape with finite values, and return it."""
    given(answer)
    if not isinstance(answer, Tensor):
        raise Wrong(f"{what} is a {type(answer).__name__}; it should be a torch.Tensor.")
    if tuple(answer.shape) != tuple(shape):
        raise Wrong(f"{what} has shape {tuple(answer.shape)}; it should have {tuple(shape)}.")
    if not bool(torch.isfinite(answer).all()):
        raise Wrong(f"{what} has NaN or infinite values.")
    return answer


def call(answer: object, shape: tuple[int, ...], /, **inputs: object) -> Tensor:
    """What the learner's function returns for these inputs, given in this order and not by name.

    It must return a finite tensor of this shape and leave its inputs as they are.
    """
    require_function(answer)
    before = {k: value.clone() for k, value in inputs.items() if isinstance(value, Tensor)}
    returned = require_shape(answer(*inputs.values()), shape)
    for name, value in before.items():
        require(
            torch.equal(inputs[name], value),
            f"Your function changes {name} itself; make a new tensor, without `+=` or `*=`.",
        )
    return returned


def compare(
    answer: Tensor,
    right: Tensor,
    mistakes: Sequence[tuple[Tensor, str]],
    otherwise: str,
    **tolerance: float,
) -> None:
    """Hold an answer against the right one, and against what known mistakes give.

    Each of the ``mistakes`` is what it gives on the same inputs, and the sentence to say then;
    ``otherwise`` is the sentence for any other wrong answer.
    """
    refuse(answer, mistakes, **tolerance)
    require_close(answer, right, otherwise, **tolerance)


def _close(answer: Tensor, other: Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    return torch.allclose(answer.detach().to(other), other, rtol=rtol, atol=atol)


def refuse(answer: Tensor, mistakes: Sequence[tuple[Tensor, str]], **tolerance: float) -> None:
    """Raise :class:`Wrong` with the sentence of the mistake that gives exactly this answer."""
    for wrong, sentence in mistakes:
        require(not _close(answer, wrong, **tolerance), sentence)


def require_close(answer: Tensor, expected: Tensor, sentence: str, **tolerance: float) -> None:
    """Raise :class:`Wrong` with the sentence unless the two agree within the tolerance."""
    require(_close(answer, expected, **tolerance), sentence)


def number(answer: object, what: str = "What your function returns") -> float:
    """One finite number, from a number or a tensor of one element."""
    given(answer)
    if isinstance(answer, Tensor) and answer.numel() != 1:
        raise Wrong(f"{what} has shape {tuple(answer.shape)}; return one number.")
    value = answer.item() if hasattr(answer, "item") else answer
    if isinstance(value, complex):
        if abs(value.imag) > 1e-6 * (1 + abs(value.real)):
            raise Wrong(f"{what} is a complex number. A distance is real.")
        value = value.real
    if isinstance(value, bool) or not isinstance(value, Real):
        raise Wrong(f"{what} is a {type(value).__name__}; return one number.")
    require(math.isfinite(value), f"{what} is {value}; it should be finite.")
    return float(value)


def refuse_numbers(
    value: float, mistakes: Sequence[tuple[float, str]], *, rtol: float = 1e-6
) -> None:
    """Raise :class:`Wrong` with the sentence of the mistake that gives exactly this number."""
    for wrong, sentence in mistakes:
        require(not math.isclose(value, wrong, rel_tol=rtol), sentence)


def known_mistakes(checks: str) -> dict[str, list[tuple[str, str]]]:
    """The mistakes that a lesson's checks know, by part: (formula, sentence).

    They stand in ``mistakes.csv`` beside the file ``checks``. A formula gives what the mistake
    gives, in names that the check has (:func:`worked_out`); a test gives each as an answer.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    with Path(checks).with_name("mistakes.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["part"], []).append((row["formula"], row["sentence"]))
    return found


def worked_out(mistakes: Sequence[tuple[str, str]], **names: object) -> list[tuple[Any, str]]:
    """What each known mistake gives where its names have these values, and its sentence."""
    names = {"torch": torch, **names}
    return [(eval(formula, names), sentence) for formula, sentence in mistakes]


class TooSlow(BaseException):
    """Raised inside code that does not end; `except Exception` does not catch it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TooSlow` inside the block when it lasts longer than `seconds`.

    Python runs signal handlers in the main thread alone, which is where Jupyter runs cells; in
    any other thread there is no limit. One call into compiled code cannot be broken off: the
    limit has its effect when it returns. Code that catches everything, ``except:`` in an endless
    loop, cannot be stopped from inside its process.
    """
    if _BELL is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    running = True

    def ring(number: int, frame: object) -> None:
        if running:
            raise TooSlow

    before = signal.signal(_BELL, ring)
    stop = _start_bell(seconds)
    try:
        yield
    finally:
        running = False  # first: a bell that rings from here on is not heard
        stop()
        signal.signal(_BELL, before)


def _start_bell(seconds: float) -> Callable[[], None]:
    """Ring after `seconds` and then again and again; returns what ends it."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
        return lambda: signal.setitimer(signal.ITIMER_REAL, 0)
    over = threading.Event()

    def wait() -> None:
        delay = seconds
        while not over.wait(delay):
            _thread.interrupt_main(_BELL)
            delay = _AGAIN

    threading.Thread(target=wait, daemon=True).start()
    return over.set


# How PyTorch's switches are read and put back.
_SWITCHES = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device,
     lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
)  # fmt: skip


@contextlib.contextmanager
def _switches_kept() -> Iterator[None]:
    """Put PyTorch's switches back after the block.

    Nothing is written unless it changed: setting a default device, even the usual one, makes every
    later call slower.
    """
    before = [read() for read, _ in _SWITCHES]
    try:
        yield
    finally:
        for (read, put_back), then in zip(_SWITCHES, before, strict=True):
            if read() != then:
                put_back(then)


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Put the random states of torch (and its GPUs), numpy and Python back after the block."""
    own = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002 - the state of the functions that learners call
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy)  # noqa: NPY002


def _tidy(answer: object) -> object:
    """The learner's function with the switches put back after each call; other answers as is.

    After each call and not only at the end, because the rest of a check would otherwise compute
    under the learner's switches, and call a right answer wrong. The random states are not put
    back here: two calls that draw must differ, so that a check can see that something is drawn.
    """
    return _switches_kept()(answer) if callable(answer) else answer

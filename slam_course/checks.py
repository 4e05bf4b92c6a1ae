"""What all checks share: the verdict, and the guard around a learner's code."""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slam_course import guard


class Wrong(Exception):
    """Raised inside a check; its sentence becomes the verdict."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check.

    Attributes:
        exercise: the exercise's name.
        passed: whether the answer is right.
        message: one or two sentences: what is right, or what is wrong and where to look.
    """

    exercise: str
    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{self.exercise}: {'right' if self.passed else 'not yet'}. {self.message}"


# The last verdict on each exercise in this process, for `summary`.
_LAST: dict[str, Verdict] = {}


def exercise(name: str) -> Callable[[Callable[..., str]], Callable[..., Verdict]]:
    """Turn ``check(*answers) -> praise`` into a check that always returns a :class:`Verdict`.

    The check raises :class:`Wrong` for a wrong answer. Whatever the learner's code raises, an exit
    included, is reported by its type, message and line. An answer of ``...`` or None, or code that
    returns or raises ``NotImplementedError``, counts as not given yet. What does not end within
    ``guard.LIMIT`` seconds is broken off; Jupyter's stop button (``KeyboardInterrupt``) stops the
    cell as ever. Random states and PyTorch's switches are afterwards what they were. What the
    learner's code prints is shown, warnings too, but not as an error: nbgrader takes anything on
    stderr for a failure.
    """

    def decorate(check: Callable[..., str]) -> Callable[..., Verdict]:
        @functools.wraps(check)
        def guarded(*answers: object) -> Verdict:
            if any(answer is ... or answer is None for answer in answers):
                passed, message = False, NO_ANSWER
            else:
                stdout = contextlib.redirect_stderr(sys.stdout)
                with guard.random_states_kept(), guard.switches_kept(), stdout:
                    passed, message = _judge(check, [guard.tidy(answer) for answer in answers])
            _LAST[name] = Verdict(name, passed, message)
            return _LAST[name]

        guarded.exercise = name
        return guarded

    return decorate


NO_ANSWER = "There is no answer yet: replace the `...`."


def _judge(check: Callable[..., str], answers: Sequence[object]) -> tuple[bool, str]:
    """(passed, message) of a check, whatever the learner's code does."""
    limit = guard.LIMIT
    try:
        with guard.time_limit(limit):
            return True, check(*answers)
    except KeyboardInterrupt:
        raise
    except Wrong as wrong:
        return False, str(wrong)
    except NotImplementedError:
        return False, NO_ANSWER
    except guard.TooSlow:
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
    """How far a learner has come; its text is a table, for handing in.

    Attributes:
        rows: for each exercise its name, "right", "not yet" or "not checked", points, maximum.
    """

    rows: tuple[tuple[str, str, float, float], ...]

    @property
    def points(self) -> float:
        """The points reached."""
        return sum(points for _, _, points, _ in self.rows)

    def __repr__(self) -> str:
        width = max((len(name) for name, *_ in self.rows), default=0)
        lines = [
            f"{name:<{width}}  {word:<11}  {points:g} of {most:g} points"
            for name, word, points, most in self.rows
        ]
        total = sum(most for *_, most in self.rows)
        lines.append(f"{'':<{width}}  {'in all':<11}  {self.points:g} of {total:g} points")
        return "\n".join(lines)


def summary(points: Mapping[Callable[..., Verdict], float]) -> Summary:
    """The last verdict on each exercise since the kernel started, with its points.

    Args:
        points: the points of each check, such as ``{checks.denoiser: 4, checks.euler_step: 4}``.

    Raises:
        ValueError: a key is not a check.
    """
    rows = []
    for check, most in points.items():
        name = getattr(check, "exercise", None)
        if name is None:
            raise ValueError(f"{check!r} is not a check of an exercise")
        verdict = _LAST.get(name)
        word = "not checked" if verdict is None else "right" if verdict.passed else "not yet"
        rows.append((name, word, most if verdict and verdict.passed else 0, most))
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


def refuse(
    answer: Tensor,
    mistakes: Sequence[tuple[Tensor, str]],
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Raise :class:`Wrong` with the sentence of the mistake that gives exactly this answer."""
    for wrong, sentence in mistakes:
        if torch.allclose(answer.detach().to(wrong), wrong, rtol=rtol, atol=atol):
            raise Wrong(sentence)


def require_shape(answer: object, shape: tuple[int, ...], what: str) -> Tensor:
    """Require a tensor of a shape with finite values, and return it.

    An ``...`` that the learner's function returned counts as no answer yet.
    """
    if answer is ... or answer is None:
        raise NotImplementedError
    if not isinstance(answer, Tensor):
        raise Wrong(f"{what} is a {type(answer).__name__}; it should be a torch.Tensor.")
    if tuple(answer.shape) != tuple(shape):
        raise Wrong(f"{what} has shape {tuple(answer.shape)}; it should have {tuple(shape)}.")
    if not bool(torch.isfinite(answer).all()):
        raise Wrong(f"{what} has NaN or infinite values.")
    return answer


def require_close(
    answer: Tensor, expected: Tensor, sentence: str, *, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Raise :class:`Wrong` with the sentence unless the two agree within the tolerance."""
    if not torch.allclose(answer.to(expected), expected, rtol=rtol, atol=atol):
        raise Wrong(sentence)

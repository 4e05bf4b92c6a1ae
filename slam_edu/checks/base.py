"""What all checks share: the verdict, and the guard around a learner's code."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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


def exercise(name: str) -> Callable[[Callable[..., str]], Callable[..., Verdict]]:
    """Turn ``check(*answers) -> praise`` into a check that always returns a :class:`Verdict`.

    The check raises :class:`Wrong` for a wrong answer. Whatever the learner's code raises is
    reported by its type, message and line. An answer of ``...`` or None, or code that returns or
    raises ``NotImplementedError``, counts as not given yet.
    """

    def decorate(check: Callable[..., str]) -> Callable[..., Verdict]:
        @functools.wraps(check)
        def guarded(*answers: object) -> Verdict:
            if any(answer is ... or answer is None for answer in answers):
                return Verdict(name, False, "There is no answer yet: replace the `...`.")
            # An answer may draw or set the seed: the learner's own random state stays as it was.
            state = torch.get_rng_state()
            try:
                return Verdict(name, True, check(*answers))
            except Wrong as wrong:
                return Verdict(name, False, str(wrong))
            except NotImplementedError:
                return Verdict(name, False, "There is no answer yet: replace the `...`.")
            except Exception as error:  # the learner's code may raise anything
                frame = traceback.extract_tb(error.__traceback__)[-1]
                return Verdict(
                    name,
                    False,
                    f"Your code raised {type(error).__name__}: {error} (in {frame.name}, "
                    f"line {frame.lineno}: {frame.line}).",
                )
            finally:
                torch.set_rng_state(state)

        return guarded

    return decorate


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

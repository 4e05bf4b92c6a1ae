"""Checks of lesson 00: a noisy picture, and how many steps the teacher needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slam_course.checks import Wrong, exercise, require, require_close, require_shape
from slam_edu.prediction import add_noise
from slam_edu.schedule import NoiseSchedule


@exercise("Exercise 1, a noisy picture")
def noisy_points(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> str:
    """``answer(x0, eps, alpha, sigma) -> x`` of shape ``(B, 2)``; alpha and sigma are numbers."""
    generator = torch.Generator().manual_seed(11)
    x0 = torch.randn(64, 2, generator=generator)
    eps = torch.randn(64, 2, generator=generator)
    # Not t = 0 or T - 1: alpha and sigma are far from 0, 1 and each other.
    level = NoiseSchedule.stable_diffusion()(300)
    alpha, sigma = level.alpha, level.sigma
    before = x0.clone()
    x = require_shape(answer(x0, eps, alpha, sigma), (64, 2), "What your function returns")
    require(
        torch.equal(before, x0),
        "Your function changes x0 itself; make a new tensor, without `+=` or `*=`.",
    )
    mistakes = (
        (sigma * x0 + alpha * eps, "The two coefficients are swapped: alpha belongs to the data."),
        (x0 + sigma * eps, "The noise is there, but the data are not scaled: what is alpha for?"),
        (alpha * x0, "The data are scaled, but no noise is added."),
        (alpha * x0 + eps, "The noise is not scaled: at this level it should be weaker than eps."),
        (
            alpha * x0 + sigma**2 * eps,
            "sigma is a standard deviation already; you seem to multiply by the variance.",
        ),
        (
            alpha**2 * x0 + sigma**2 * eps,
            "alpha and sigma are used squared; use them as they are.",
        ),
        (alpha * x0 - sigma * eps, "The noise is subtracted; the formula adds it."),
        (x0 + eps, "Data and noise are both there; now give each its coefficient."),
    )
    for wrong, sentence in mistakes:
        if torch.allclose(x, wrong, rtol=1e-4, atol=1e-5):
            raise Wrong(sentence)
    require_close(
        x,
        add_noise(x0, eps, level),
        "The shape fits, the values do not: compare your line with x = alpha x0 + sigma eps.",
    )
    return "These are the points at the level (alpha, sigma)."


@exercise("Exercise 2, how many evaluations")
def enough_steps(answer: int, distances: Mapping[int, float], target: float = 0.1) -> str:
    """The smallest number of evaluations in ``distances`` whose distance is below ``target``.

    Args:
        answer: the learner's number.
        distances: measured distance for each number of evaluations.
        target: what counts as drawn well.
    """
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise Wrong(f"Your answer is a {type(answer).__name__}; it should be a whole number.")
    tried = sorted(distances)
    if answer not in distances:
        raise Wrong(f"{answer} was not measured; choose one of {', '.join(map(str, tried))}.")
    if distances[answer] >= target:
        raise Wrong(
            f"With {answer} evaluations the distance is {distances[answer]:.2f}, "
            f"not below {target:g} yet."
        )
    fewer = [n for n in tried if n < answer and distances[n] < target]
    if fewer:
        raise Wrong(f"{answer} is enough, but a smaller number of evaluations is as well.")
    return f"Below {answer} evaluations the picture is not there; the student will need 2."

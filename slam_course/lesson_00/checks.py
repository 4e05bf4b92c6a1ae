"""Checks of lesson 00: a noisy picture, and how many steps the teacher needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slam_course.checks import call, compare, exercise, require
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
    a, s = level.alpha, level.sigma
    mistakes = (
        (s * x0 + a * eps, "The two coefficients are swapped: alpha belongs to the data."),
        (x0 + s * eps, "The noise is there, but the data are not scaled: what is alpha for?"),
        (a * x0, "The data are scaled, but no noise is added."),
        (a * x0 + eps, "The noise is not scaled: at this level it should be weaker than eps."),
        (a * x0 + s**2 * eps, "sigma is a standard deviation already; you seem to multiply by the "
         "variance."),
        (a**2 * x0 + s**2 * eps, "alpha and sigma are used squared; use them as they are."),
        (a * x0 - s * eps, "The noise is subtracted; the formula adds it."),
        (x0 + eps, "Data and noise are both there; now give each its coefficient."),
    )  # fmt: skip
    compare(
        call(answer, (64, 2), x0=x0, eps=eps, alpha=a, sigma=s),
        add_noise(x0, eps, level),
        mistakes,
        "The shape fits, the values do not: compare your line with x = alpha x0 + sigma eps.",
    )
    return "These are the points at the level (alpha, sigma)."


@exercise("Exercise 2, how many evaluations")
def enough_steps(answer: int, distances: Mapping[int, float], target: float = 0.1) -> str:
    """The smallest number of evaluations in ``distances`` whose distance is below ``target``."""
    require(
        isinstance(answer, int) and not isinstance(answer, bool),
        f"Your answer is a {type(answer).__name__}; it should be a whole number.",
    )
    tried = sorted(distances)
    require(
        answer in distances,
        f"{answer} was not measured; choose one of {', '.join(map(str, tried))}.",
    )
    require(
        distances[answer] < target,
        f"With {answer} evaluations the distance is {distances[answer]:.2f}, "
        f"not below {target:g} yet.",
    )
    require(
        all(distances[n] >= target for n in tried if n < answer),
        f"{answer} is enough, but a smaller number of evaluations is as well.",
    )
    return f"Below {answer} evaluations the picture is not there; the student will need 2."

"""Checks of lesson 00: a noisy picture, and how many steps the teacher needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slam_course.checks import exercise, hold, known_mistakes, require, whole, worked_out

KNOWN = known_mistakes(__file__)


@exercise("Exercise 1, a noisy picture")
def noisy_points(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> str:
    """``answer(x0, eps, alpha, sigma) -> x`` of shape ``(B, 2)``; alpha and sigma are numbers."""
    x0, eps = 4 * torch.randn(2, 64, 2, generator=torch.Generator().manual_seed(11))
    a, s = torch.tensor(0.8125), torch.tensor(0.4375)  # off the circle: neither gives the other

    def right(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * x0 + sigma * eps

    inputs = {"x0": x0, "eps": eps, "alpha": a, "sigma": s}
    hold(
        answer, right, inputs, worked_out(KNOWN["noisy_points"], **locals()),
        "The shape fits, the values do not: compare your line with x = alpha x0 + sigma eps, and "
        "use alpha and sigma as they are given.",
    )  # fmt: skip
    few = {"x0": x0[:5], "eps": eps[:5], "alpha": s, "sigma": torch.tensor(1.5)}
    hold(answer, right, few, (), "Right for 64 points at one level, wrong for 5 at another.")
    return "These are the points at the level (alpha, sigma)."


@exercise("Exercise 2, how many evaluations")
def enough_steps(answer: int, distances: Mapping[int, float], target: float = 0.1) -> str:
    """The smallest number of evaluations in ``distances`` whose distance is below ``target``."""
    answer, tried = whole(answer, "Your answer"), sorted(distances)
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

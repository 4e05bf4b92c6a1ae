"""Checks of lesson 10: what an update costs, two jumps in one, and a method of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slam_course.checks import (
    NO_ANSWER,
    Wrong,
    exercise,
    hold,
    known_mistakes,
    number,
    require,
    worked_out,
)
from slam_course.family.base import Method
from slam_course.family.contract import Broken, check, setting_of
from slam_course.family.costs import cost

KNOWN = known_mistakes(__file__)
COUNTED = (
    "consistency distillation",
    "consistency distillation, Heun teacher",
    "progressive distillation",
)
"""The methods of exercise 1."""


@exercise("Exercise 1, what an update costs")
def costs(answer: Mapping[str, float]) -> str:
    """``{method: evaluations a sample}`` for the methods of ``COUNTED``."""
    require(
        isinstance(answer, Mapping) and set(answer) == set(COUNTED),
        f"Give a dictionary with the keys {', '.join(map(repr, COUNTED))}.",
    )
    for name in COUNTED:
        value, right = number(answer[name], f"The cost of {name}"), cost(name)
        known = worked_out(KNOWN["costs"], right=right)
        for wrong, sentence in known:
            require(value != wrong, f"{name}: {sentence}")
        require(
            value == right,
            f"{name}: {value:g} is not what is counted. Add up the teacher's calls for one "
            f"sample, the target's, and the student's forward and backward one.",
        )
    return "Counted at the networks, they are the same."


@exercise("Exercise 2, two jumps in one")
def mean_slope(answer: Callable[..., Tensor]) -> str:
    """``answer(first, second, rho_t, rho_u, rho_s)``: a slope of shape ``(B, D)``.

    The slopes have shape ``(B, D)``, the rho ``(B, 1)``.
    """

    def right(e_1: Tensor, e_2: Tensor, t: Tensor, u: Tensor, s: Tensor) -> Tensor:
        return ((t - u) * e_1 + (u - s) * e_2) / (t - s)

    generator = torch.Generator().manual_seed(101)
    for count, dim in ((16, 2), (5, 3)):
        e_1, e_2 = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
        drop = torch.rand(3, count, 1, generator=generator, dtype=torch.float64) + 0.1
        s, u, t = drop.cumsum(dim=0)
        names = {"e_1": e_1, "e_2": e_2, "t": t, "u": u, "s": s}
        hold(
            answer, right,
            {"first": e_1, "second": e_2, "rho_t": t, "rho_u": u, "rho_s": s},
            worked_out(KNOWN["mean_slope"], **names),
            "The shape fits, the values do not. Write down z at u, then z at s, both from z at t; "
            "the mean slope is the one that leads from z at t to the same z at s.",
        )  # fmt: skip
    return "Each slope counts for the stretch of rho on which it is followed."


@exercise("Exercise 3, a method of your own")
def own_method(answer: type) -> str:
    """A subclass of :class:`slam_course.family.base.Method` that keeps to the contract."""
    require(
        isinstance(answer, type) and issubclass(answer, Method),
        "Give the class itself, by name; it has to subclass Method.",
    )
    try:
        check(answer, setting_of(answer))
    except Broken as broken:
        if "loss is a ellipsis" in str(broken):
            raise Wrong(NO_ANSWER) from None
        raise Wrong(f"{str(broken)[0].upper()}{str(broken)[1:]}.") from None
    return "It trains the student alone, draws from the generator, and all it asks is counted."

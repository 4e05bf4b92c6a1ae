"""Checks of lesson 02: a DDIM step, and a Heun step that looks twice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slam_course.checks import call, compare, exercise, require
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.toy import two_moons

_SHAPE = (64, 2)
_CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # the inputs are float64, an answer may be float32


def _levels() -> tuple[Level, Level]:
    """Two levels whose alphas and sigmas are far from 0, 1 and each other."""
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    return schedule(600), schedule(250)


@exercise("Exercise 1, one DDIM step")
def ddim(answer: Callable[[Tensor, Tensor, Level, Level], Tensor]) -> str:
    """``answer(x, eps, level_t, level_s) -> x_s`` of shape ``(B, 2)``; levels of shape ``()``."""
    generator = torch.Generator().manual_seed(21)
    x = torch.randn(_SHAPE, generator=generator, dtype=torch.float64)
    eps = torch.randn(_SHAPE, generator=generator, dtype=torch.float64)
    t, s = _levels()
    x_s = call(answer, _SHAPE, x=x, eps=eps, level_t=t, level_s=s)
    require(
        torch.equal(x_s, answer(x, eps, t, s)),
        "Two calls with the same x gave two answers, so you draw fresh noise. DDIM draws none: "
        "the noise of the new sample is the predicted one, eps.",
    )
    x0 = (x - t.sigma * eps) / t.alpha
    z_s = x0 + s.rho * eps
    mistakes = (
        (x0, "This is the clean sample x0. One thing is left: noise it again, to level s."),
        (x, "This is x again. If you used one level throughout, nothing has moved: x is at level "
         "t, the new sample at level s."),
        (x + (s.sigma - t.sigma) * eps, "This is x + (sigma_s - sigma_t) eps: the alphas have "
         "cancelled. Divide by alpha_t to get x0, multiply it by alpha_s for the new sample."),
        (s.alpha * x0 + t.sigma * eps, "The new sample has sigma_t; it is at level s, so both of "
         "its coefficients are level s's."),
        (s.sigma * x0 + s.alpha * eps, "alpha_s and sigma_s are swapped in the new sample: alpha "
         "belongs to x0."),
        (s.alpha * (x - t.sigma * eps) + s.sigma * eps, "x0 is too small: after subtracting "
         "sigma_t eps, what is left is alpha_t x0, so one division is missing."),
        (s.alpha * (x - s.sigma * eps) / t.alpha + s.sigma * eps, "x0 subtracts sigma_s eps; x is "
         "at level t, so its noise is sigma_t eps."),
        (s.alpha * (x + t.sigma * eps) / t.alpha + s.sigma * eps, "x0 adds the noise; to undo x = "
         "alpha x0 + sigma eps it has to be subtracted."),
        (s.alpha * (x - t.sigma**2 * eps) / t.alpha + s.sigma * eps, "sigma_t is a standard "
         "deviation already; do not square it."),
        (s.alpha * (x - t.alpha * eps) / t.sigma + s.sigma * eps, "alpha_t and sigma_t are "
         "swapped in x0: sigma belongs to the noise."),
        (s.alpha * x0, "The new sample has no noise yet: sigma_s eps is missing."),
        (s.alpha * x0 - s.sigma * eps, "The noise of the new sample is subtracted; it should be "
         "added."),
        (s.alpha * x0 + s.sigma**2 * eps, "sigma_s is a standard deviation already; do not square "
         "it."),
        (z_s, "This is z_s = x_s / alpha_s. Right so far; go back to x."),
        (x + (s.rho - t.rho) * eps, "rho is used, but on x: the equation dz/drho = eps holds for "
         "z = x/alpha."),
    )  # fmt: skip
    compare(
        x_s,
        s.alpha * z_s,
        mistakes,
        "The shape fits, the values do not. Print your x0 first: alpha_t x0 + sigma_t eps must "
        "give x back.",
        **_CLOSE,
    )
    return "Same guess of the data, same guess of the noise, new level: that is DDIM."


@exercise("Exercise 2, one Heun step")
def heun(answer: Callable[[Callable[..., Tensor], Tensor, Level, Level], Tensor]) -> str:
    """``answer(slope, x, level_t, level_s) -> x_s``; ``slope(x, level) -> eps``."""
    generator = torch.Generator().manual_seed(22)
    x = torch.randn(_SHAPE, generator=generator, dtype=torch.float64)
    t, s = _levels()
    mixture, asked = two_moons(dtype=torch.float64), []

    def slope(x: Tensor, level: Level) -> Tensor:
        asked.append(level)
        return mixture.predict(x, level).eps

    x_s = call(answer, _SHAPE, slope=slope, x=x, level_t=t, level_s=s)
    calls = len(asked)

    def euler(start: Tensor, eps: Tensor, first: Level = t, last: Level = s) -> Tensor:
        return last.alpha * (start / first.alpha + (last.rho - first.rho) * eps)

    eps_t = slope(x, t)
    there = euler(x, eps_t)
    eps_s = slope(there, s)
    half = Level.from_rho((t.rho + s.rho) / 2)
    middle = slope(euler(x, eps_t, t, half), half)
    right = euler(x, (eps_t + eps_s) / 2)
    twice = (
        "The last step starts where the Euler step ended, so you walk the way twice. Start again "
        "at x, with the mean slope."
    )
    mistakes = (
        (there, "This is the Euler step. Look again where it ended, and average the slopes."),
        (euler(x, eps_s), "Only the slope at the end is used; Heun takes the mean of both."),
        (euler(x, eps_t + eps_s), "The two slopes are added but not averaged: the step is twice "
         "as long as it should be."),
        (euler(x, (eps_t - eps_s) / 2), "The slopes are subtracted; take their mean."),
        (euler(x, (eps_t + slope(x, s)) / 2), "The second look is at level s but still at x. Take "
         "the Euler step first, and look there."),
        (euler(x, (eps_t + slope(there, t)) / 2), "The second look is at the right place, but at "
         "level t; the Euler step ended at level s."),
        (euler(there, (eps_t + eps_s) / 2), twice),
        (euler(there, eps_s), twice),
        (euler(x, middle), "This is the midpoint method: order 2 as well, but it looks in the "
         "middle of the hop. Heun looks at its end."),
        (right / s.alpha, "This is z_s = x_s / alpha_s. Right so far; go back to x."),
        ((there + euler(there, eps_s)) / 2, "You average two positions. Average the two slopes, "
         "then take one step from x."),
    )  # fmt: skip
    compare(
        x_s,
        right,
        mistakes,
        "The shape fits, the values do not. Three lines are enough: the slope at x, the slope "
        "where the Euler step ends, and one step from x with their mean.",
        **_CLOSE,
    )
    require(
        calls == 2,
        f"The values are right, but the slope was evaluated {calls} times; two are enough. Keep "
        f"the first one in a variable.",
    )
    return "Two looks a hop, and the second one pays for an order: you will measure it below."

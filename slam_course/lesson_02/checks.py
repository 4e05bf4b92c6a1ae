"""Checks of lesson 02: a DDIM step, and a Heun step that looks twice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slam_course.checks import Asked, exercise, hold, known_mistakes, worked_out
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.toy.data import spiral

KNOWN = known_mistakes(__file__)
_ONLY = (
    "Right where alpha^2 + sigma^2 = 1, and only there. Use alpha, sigma and rho of each level as "
    "they are, and do not compute one from the other."
)


def _pairs() -> tuple[tuple[Level, Level], tuple[Level, Level]]:
    """Two levels whose alphas and sigmas are far from 0, 1 and each other; two off the circle."""
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    alpha, sigma = torch.tensor([[0.5, 0.8], [0.7, 0.4]], dtype=torch.float64)
    off = Level(alpha, sigma)
    return (schedule(600), schedule(250)), (off[0], off[1])


def _drawn(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 64, 2, generator=generator, dtype=torch.float64)


def _euler(x: Tensor, eps: Tensor, t: Level, s: Level) -> Tensor:
    return s.alpha * (x / t.alpha + (s.rho - t.rho) * eps)


@exercise("Exercise 1, one DDIM step")
def ddim(answer: Callable[[Tensor, Tensor, Level, Level], Tensor]) -> str:
    """``answer(x, eps, level_t, level_s) -> x_s`` of shape ``(B, 2)``; levels of shape ``()``."""
    (x, eps), ((t, s), off) = _drawn(21), _pairs()
    x0 = (x - t.sigma * eps) / t.alpha
    z_s = x0 + s.rho * eps
    for levels, known, otherwise in (
        ((t, s), worked_out(KNOWN["ddim"], **locals()),
         "The shape fits, the values do not. Print your x0 first: alpha_t x0 + sigma_t eps must "
         "give x back."),
        ((t, Level.clean(t.alpha)), (),
         "Right between two noisy levels, wrong for the last step, to alpha = 1, sigma = 0."),
        (off, (), _ONLY),
    ):  # fmt: skip
        inputs = dict(zip(("x", "eps", "level_t", "level_s"), (x, eps, *levels), strict=True))
        hold(answer, _euler, inputs, known, otherwise)
        x, eps = x[:40], eps[:40]
    return "Same guess of the data, same guess of the noise, new level: that is DDIM."


@exercise("Exercise 2, one Heun step")
def heun(answer: Callable[[Callable[..., Tensor], Tensor, Level, Level], Tensor]) -> str:
    """``answer(slope, x, level_t, level_s) -> x_s``; ``slope(x, level) -> eps``."""
    mixture = spiral(components=12, dtype=torch.float64)  # not the lesson's
    slope = Asked(lambda x, level: mixture.predict(x, level).eps)

    def right(slope: Callable[..., Tensor], x: Tensor, t: Level, s: Level) -> Tensor:
        first = slope(x, t)
        return _euler(x, (first + slope(_euler(x, first, t, s), s)) / 2, t, s)

    x, ((t, s), off) = _drawn(22)[0], _pairs()

    def step(x: Tensor, eps: Tensor, first: Level = t, last: Level = s) -> Tensor:
        return _euler(x, eps, first, last)

    eps_t = slope(x, t)
    there = step(x, eps_t)
    eps_s, half = slope(there, s), Level.from_rho((t.rho + s.rho) / 2)
    names = {
        "x": x, "t": t, "s": s, "slope": slope, "euler": step, "eps_t": eps_t, "eps_s": eps_s,
        "there": there, "middle": slope(step(x, eps_t, t, half), half),
        "right": right(slope, x, t, s),
    }  # fmt: skip
    inputs = {"slope": slope, "x": x, "level_t": t, "level_s": s}
    hold(
        answer, right, inputs, worked_out(KNOWN["heun"], **names),
        "The shape fits, the values do not. Three lines are enough: the slope at x, the slope "
        "where the Euler step ends, and one step from x with their mean.",
        waste="Keep the first slope in a variable.",
    )  # fmt: skip
    hold(answer, right, inputs | {"x": x[:7], "level_t": off[0], "level_s": off[1]}, (), _ONLY)
    return "Two looks a hop, and the second one pays for an order: you will measure it below."

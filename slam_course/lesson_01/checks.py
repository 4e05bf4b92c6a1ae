"""Checks of lesson 01: the denoiser from the score, and an Euler step in (z, rho)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slam_course.checks import exercise, hold, known_mistakes, require_shape, worked_out
from slam_edu.prediction import Prediction
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.solver import ddim_step
from slam_edu.toy.data import spiral

KNOWN = known_mistakes(__file__)
_F64 = torch.float64
# A level off the schedule, with alpha^2 + sigma^2 = 0.8 (the points of a sub-path are such).
_OFF = Level(torch.tensor(0.8, dtype=_F64), torch.tensor(0.4, dtype=_F64))


@exercise("Exercise 1, the denoiser from the score")
def denoiser(answer: Callable[[Tensor, Tensor, Level], Tensor]) -> str:
    r"""``answer(score, x, level) -> E[x0 | x]`` of shape ``(B, 2)``.

    Its score is exact, of a mixture that is not the lesson's.
    """
    mixture = spiral(components=12, dtype=_F64)

    def right(score: Tensor, x: Tensor, level: Level) -> Tensor:
        return (x + level.sigma**2 * score) / level.alpha

    def at(level: Level, count: int = 64) -> dict[str, object]:
        x = mixture.sample_at(level, count, torch.Generator().manual_seed(11))
        return {"score": mixture.score(x, level), "x": x, "level": level}

    # alpha, sigma, their squares and rho all differ here, so that mistakes can be told apart.
    level = NoiseSchedule.stable_diffusion(_F64)(300)
    score, x, _ = at(level).values()
    a, s, rho = level.alpha, level.sigma, level.rho
    nothing = require_shape(answer(torch.zeros_like(score), x, level), x.shape)
    hold(
        answer,
        right,
        at(level),
        worked_out(KNOWN["denoiser"], **locals()),
        "The shape fits, the values do not. Start from x = alpha * x0 + sigma * eps, take the "
        "mean of both sides given x, and use what the score says about the mean of eps.",
    )
    hold(
        answer,
        right,
        at(_OFF, 7),
        (),
        "Right where alpha^2 + sigma^2 = 1, and only there. Use level.alpha and level.sigma as "
        "they are, and do not compute one from the other: later lessons leave that circle.",
    )
    return "It equals the exact mean of x0 given x, at two levels of a mixture you had not seen."


@exercise("Exercise 2, one Euler step")
def euler_step(answer: Callable[[Tensor, Tensor, Level, Level], Tensor]) -> str:
    r"""``answer(x, eps, level_t, level_s) -> x_s`` of shape ``(B, 2)``.

    Held against :func:`slam_edu.solver.ddim_step`, which is the same step by other algebra.
    """
    schedule = NoiseSchedule.stable_diffusion(_F64)
    t, s = schedule(700), schedule(400)
    mixture = spiral(components=12, dtype=_F64)
    x = mixture.sample_at(t, 64, torch.Generator().manual_seed(11))
    inputs = {"x": x, "eps": mixture.predict(x, t).eps, "level_t": t, "level_s": s}

    def right(x: Tensor, eps: Tensor, t: Level, s: Level) -> Tensor:
        return ddim_step(Prediction((x - t.sigma * eps) / t.alpha, eps), s)

    eps, z, d_rho, d_sigma = inputs["eps"], x / t.alpha, s.rho - t.rho, s.sigma - t.sigma
    hold(
        answer, right, inputs, worked_out(KNOWN["euler_step"], **locals()),
        "The shape fits, the values do not. Three lines are enough: go from x to z, move z along "
        "its slope by the change of rho, go back to x.",
    )  # fmt: skip
    hold(
        answer, right, inputs | {"level_s": Level.clean(t.alpha)},  # a sampler's last step
        otherwise="Right between two noisy levels, wrong for a step to the clean level alpha = 1, "
        "sigma = 0.",
    )  # fmt: skip
    inputs |= {"x": x[:7], "eps": eps[:7]}
    for off in ({"level_t": _OFF, "level_s": schedule(100)}, {"level_s": _OFF}):
        hold(
            answer, right, inputs | off,
            otherwise="Right where alpha^2 + sigma^2 = 1, and only there. Use alpha, sigma and "
            "rho of each level as they are, and do not compute one from the other.",
        )  # fmt: skip
    return "One straight step along dz/drho. Lesson 02 asks how far such a step can be trusted."

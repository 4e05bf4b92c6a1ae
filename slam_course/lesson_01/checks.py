"""Checks of lesson 01: the denoiser from the score, and an Euler step in (z, rho)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slam_course.checks import call, compare, exercise, require_close
from slam_edu.prediction import Prediction
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.solver import ddim_step
from slam_edu.toy.data import spiral

_F64 = torch.float64
# A level off the schedule, with alpha^2 + sigma^2 = 0.8 (the points of a sub-path are such).
_OFF = Level(torch.tensor(0.8, dtype=_F64), torch.tensor(0.4, dtype=_F64))


@exercise("Exercise 1, the denoiser from the score")
def denoiser(answer: Callable[[Tensor, Tensor, Level], Tensor]) -> str:
    r"""``answer(score, x, level) -> E[x0 | x]`` of shape ``(B, 2)``.

    Held against the exact posterior mean of a mixture that is not the lesson's.
    """
    mixture = spiral(components=12, dtype=_F64)

    def ask(level: Level) -> tuple[Tensor, Tensor, Tensor]:
        x = mixture.sample_at(level, 64, torch.Generator().manual_seed(11))
        score = mixture.score(x, level)
        return x, score, call(answer, (64, 2), score=score, x=x, level=level)

    # alpha, sigma, their squares and rho all differ here, so that mistakes can be told apart.
    level = NoiseSchedule.stable_diffusion(_F64)(300)
    x, score, mean = ask(level)
    a, s, rho = level.alpha, level.sigma, level.rho
    nothing = call(answer, (64, 2), score=torch.zeros_like(score), x=x, level=level)
    mistakes = (
        (score, "This is the score itself, unchanged."),
        (x / a, "This only undoes the scaling by alpha: the score has no say in it."),
        ((x - s**2 * score) / a, "The sign of the score is wrong: this moves x away from where "
         "the density is high."),
        ((x + s * score) / a, "sigma multiplies the score once. Count again: once in what the "
         "score says about eps, and once where eps enters x."),
        ((x + score) / a, "The score is added as it is; sigma, the size of the noise at this "
         "level, has no say."),
        (x + s**2 * score, "The noise is gone, but the scale is still that of x: this is the mean "
         "of alpha * x0."),
        (a * (x + s**2 * score), "The result is multiplied by alpha; x = alpha * x0 + ... asks "
         "for the opposite."),
        ((x + s**2 * score) / a**2, "The result is divided by alpha twice."),
        (x / a + s**2 * score, "x is divided by alpha, the term with the score is not: the whole "
         "sum should be."),
        ((x + rho**2 * score) / a, "rho is used where sigma belongs: the formula is in x, not in "
         "z = x / alpha."),
        (x / a + rho**2 * score, "In z = x / alpha the score of z is alpha times the score of x; "
         "here it is the score of x."),
        (-s * score, "This is the mean of the noise eps. One more line turns it into the mean of "
         "x0."),
        ((x - s * score) / a, "The score is taken for the noise. Its sign and its size differ "
         "from those of eps."),
        (nothing, "The result does not change with the score your function is given; use it."),
    )  # fmt: skip
    compare(
        mean,
        mixture.denoise(x, level),
        mistakes,
        "The shape fits, the values do not. Start from x = alpha * x0 + sigma * eps, take the "
        "mean of both sides given x, and use what the score says about the mean of eps.",
    )
    x, _, mean = ask(_OFF)
    require_close(
        mean,
        mixture.denoise(x, _OFF),
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
    eps = mixture.predict(x, t).eps

    def step_to(level: Level) -> tuple[Tensor, Tensor]:
        step = call(answer, (64, 2), x=x, eps=eps, level_t=t, level_s=level)
        return step, ddim_step(Prediction((x - t.sigma * eps) / t.alpha, eps), level)

    z, d_rho, d_sigma = x / t.alpha, s.rho - t.rho, s.sigma - t.sigma
    swapped = (
        "The two levels are swapped: x is at level_t, the noisy end, and the step ends at level_s."
    )
    backwards = (
        "The step goes the wrong way: from t to s the noise shrinks, so what is the sign of the "
        "change of rho?"
    )
    sigma_time = (
        "sigma is used where rho belongs: the slope dz/drho is taken with respect to "
        "rho = sigma / alpha."
    )
    no_start = " It should start from z = x / alpha_t: the equation is one for z."
    not_x = " (And the result is z, not x.)"
    mistakes = (
        (x, "This is x itself: no step has been taken."),
        (eps, "This is eps, the slope; the step is still missing."),
        (s.alpha * (z - d_rho * eps), backwards),
        (z - d_rho * eps, backwards + not_x),
        (t.alpha * (x / s.alpha - d_rho * eps), swapped),
        (t.alpha * (x / s.alpha + d_rho * eps), swapped),
        (z + d_rho * eps, "This is z at level_s. Your function should return x: undo the change "
         "of coordinates."),
        (t.alpha * (z + d_rho * eps), "The step is right, the way back to x is not: x at level_s "
         "is scaled by which alpha?"),
        (x + d_rho * eps, "The change of coordinates is missing: this is a step for z, taken with "
         "x."),
        (s.alpha * (x + d_rho * eps), "The step starts from x." + no_start),
        (s.alpha * (x / s.alpha + d_rho * eps), "The step starts from x / alpha_s." + no_start),
        (x - d_rho * eps, "The change of coordinates is missing, and the step goes the wrong "
         "way."),
        (s.alpha * (z + d_sigma * eps), sigma_time),
        (z + d_sigma * eps, sigma_time + not_x),
        (x + d_sigma * eps, "The change of coordinates is missing, and sigma is used where rho "
         "belongs."),
        (s.alpha * (z + d_rho), "The change of rho is added by itself: how far z moves depends on "
         "the slope, too."),
        (s.alpha * (z + eps), "The slope is added by itself: how far z moves depends on the "
         "change of rho, too."),
        (s.alpha * z, "The coordinates change back and forth, but z does not move in between."),
        ((x - t.sigma * eps) / t.alpha, "This goes all the way to rho = 0: it is the denoiser's "
         "x0, not x at level_s."),
        (s.alpha * (z + s.rho * eps), "The step is as long as rho_s; it should be as long as the "
         "change of rho."),
    )  # fmt: skip
    x_s, right = step_to(s)
    compare(
        x_s,
        right,
        mistakes,
        "The shape fits, the values do not. Three lines are enough: go from x to z, move z along "
        "its slope by the change of rho, go back to x.",
    )
    # The last step of a sampler, to rho_s = 0.
    require_close(
        *step_to(Level.clean(t.alpha)),
        "Right between two noisy levels, wrong for a step to the clean level alpha = 1, sigma = "
        "0.",
    )
    require_close(
        *step_to(_OFF),
        "Right where alpha^2 + sigma^2 = 1, and only there. Use alpha, sigma and rho of each "
        "level as they are, and do not compute one from the other.",
    )
    return "One straight step along dz/drho. Lesson 02 asks how far such a step can be trusted."

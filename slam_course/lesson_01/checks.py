"""Checks of lesson 01: the denoiser from the score, and an Euler step in (z, rho)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slam_course.checks import (
    Wrong,
    exercise,
    require,
    require_close,
    require_function,
    require_shape,
)
from slam_edu.prediction import Prediction
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.solver import ddim_step
from slam_edu.toy.data import spiral
from slam_edu.toy.mixture import GaussianMixture

_F64 = torch.float64
_RETURNED = "What your function returns"


@exercise("Exercise 1, the denoiser from the score")
def denoiser(answer: Callable[[Tensor, Tensor, Level], Tensor]) -> str:
    r"""``answer(score, x, level) -> E[x0 | x]`` of shape ``(B, 2)``.

    Held against the exact posterior mean of a mixture that is not the lesson's.
    """
    require_function(answer)
    mixture = spiral(components=12, dtype=_F64)
    # alpha, sigma, their squares and rho all differ here, so that mistakes can be told apart.
    level = NoiseSchedule.stable_diffusion(_F64)(300)
    x, score = _noisy(mixture, level)
    mean = _call(answer, score=score, x=x, level=level)
    alpha, sigma = level.alpha, level.sigma
    mistakes = (
        (score, "This is the score itself, unchanged."),
        (x / alpha, "This only undoes the scaling by alpha: the score has no say in it."),
        (
            (x - sigma**2 * score) / alpha,
            "The sign of the score is wrong: this moves x away from where the density is high.",
        ),
        (
            (x + sigma * score) / alpha,
            "sigma multiplies the score once. Count again: once in what the score says about eps, "
            "and once where eps enters x.",
        ),
        (
            (x + score) / alpha,
            "The score is added as it is; sigma, the size of the noise at this level, has no say.",
        ),
        (
            x + sigma**2 * score,
            "The noise is gone, but the scale is still that of x: this is the mean of alpha * x0.",
        ),
        (
            alpha * (x + sigma**2 * score),
            "The result is multiplied by alpha; x = alpha * x0 + ... asks for the opposite.",
        ),
        (
            (x + sigma**2 * score) / alpha**2,
            "The result is divided by alpha twice.",
        ),
        (
            x / alpha + sigma**2 * score,
            "x is divided by alpha, the term with the score is not: the whole sum should be.",
        ),
        (
            (x + level.rho**2 * score) / alpha,
            "rho is used where sigma belongs: the formula is in x, not in z = x / alpha.",
        ),
        (
            x / alpha + level.rho**2 * score,
            "In z = x / alpha the score of z is alpha times the score of x; here it is the score "
            "of x.",
        ),
        (
            -sigma * score,
            "This is the mean of the noise eps. One more line turns it into the mean of x0.",
        ),
        (
            (x - sigma * score) / alpha,
            "The score is taken for the noise. Its sign and its size differ from those of eps.",
        ),
    )
    _diagnose(mean, mistakes)
    if torch.allclose(mean, _call(answer, score=torch.zeros_like(score), x=x, level=level)):
        raise Wrong("The result does not change with the score your function is given; use it.")
    require_close(
        mean,
        mixture.denoise(x, level),
        "The shape fits, the values do not. Start from x = alpha * x0 + sigma * eps, take the "
        "mean of both sides given x, and use what the score says about the mean of eps.",
    )
    # A level off the schedule, with alpha^2 + sigma^2 = 0.8 (the points of a sub-path are such).
    level = Level(torch.tensor(0.8, dtype=_F64), torch.tensor(0.4, dtype=_F64))
    x, score = _noisy(mixture, level)
    require_close(
        _call(answer, score=score, x=x, level=level),
        mixture.denoise(x, level),
        "Right where alpha^2 + sigma^2 = 1, and only there. Use level.alpha and level.sigma as "
        "they are, and do not compute one from the other: later lessons leave that circle.",
    )
    return "It equals the exact mean of x0 given x, at two levels of a mixture you had not seen."


@exercise("Exercise 2, one Euler step")
def euler_step(answer: Callable[[Tensor, Tensor, Level, Level], Tensor]) -> str:
    r"""``answer(x, eps, level_t, level_s) -> x_s`` of shape ``(B, 2)``.

    Held against :func:`slam_edu.solver.ddim_step`, which is the same step by other algebra.
    """
    require_function(answer)
    schedule = NoiseSchedule.stable_diffusion(_F64)
    t, s = schedule(700), schedule(400)
    mixture = spiral(components=12, dtype=_F64)
    x, _ = _noisy(mixture, t)
    eps = mixture.predict(x, t).eps
    x_s = _call(answer, x=x, eps=eps, level_t=t, level_s=s)
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
    no_start = (
        "The step starts from x. It should start from z = x / alpha_t: the equation is one for z."
    )
    mistakes = (
        (x, "This is x itself: no step has been taken."),
        (eps, "This is eps, the slope; the step is still missing."),
        (s.alpha * (z - d_rho * eps), backwards),
        (z - d_rho * eps, backwards + " (And the result is z, not x.)"),
        (t.alpha * (x / s.alpha - d_rho * eps), swapped),
        (t.alpha * (x / s.alpha + d_rho * eps), swapped),
        (
            z + d_rho * eps,
            "This is z at level_s. Your function should return x: undo the change of coordinates.",
        ),
        (
            t.alpha * (z + d_rho * eps),
            "The step is right, the way back to x is not: x at level_s is scaled by which alpha?",
        ),
        (
            x + d_rho * eps,
            "The change of coordinates is missing: this is a step for z, taken with x.",
        ),
        (s.alpha * (x + d_rho * eps), no_start),
        (s.alpha * (x / s.alpha + d_rho * eps), no_start.replace("from x.", "from x / alpha_s.")),
        (
            x - d_rho * eps,
            "The change of coordinates is missing, and the step goes the wrong way.",
        ),
        (s.alpha * (z + d_sigma * eps), sigma_time),
        (z + d_sigma * eps, sigma_time + " (And the result is z, not x.)"),
        (
            x + d_sigma * eps,
            "The change of coordinates is missing, and sigma is used where rho belongs.",
        ),
        (
            s.alpha * (z + d_rho),
            "The change of rho is added by itself: how far z moves depends on the slope, too.",
        ),
        (
            s.alpha * (z + eps),
            "The slope is added by itself: how far z moves depends on the change of rho, too.",
        ),
        (s.alpha * z, "The coordinates change back and forth, but z does not move in between."),
        (
            (x - t.sigma * eps) / t.alpha,
            "This goes all the way to rho = 0: it is the denoiser's x0, not x at level_s.",
        ),
        (
            s.alpha * (z + s.rho * eps),
            "The step is as long as rho_s; it should be as long as the change of rho.",
        ),
    )
    _diagnose(x_s, mistakes)
    require_close(
        x_s,
        _exact_step(x, eps, t, s),
        "The shape fits, the values do not. Three lines are enough: go from x to z, move z along "
        "its slope by the change of rho, go back to x.",
    )
    clean = Level.clean(t.alpha)  # the last step of a sampler: rho_s = 0
    require_close(
        _call(answer, x=x, eps=eps, level_t=t, level_s=clean),
        _exact_step(x, eps, t, clean),
        "Right between two noisy levels, wrong for a step to the clean level alpha = 1, sigma = "
        "0.",
    )
    off = Level(torch.tensor(0.8, dtype=_F64), torch.tensor(0.4, dtype=_F64))
    require_close(
        _call(answer, x=x, eps=eps, level_t=t, level_s=off),
        _exact_step(x, eps, t, off),
        "Right where alpha^2 + sigma^2 = 1, and only there. Use alpha, sigma and rho of each "
        "level as they are, and do not compute one from the other.",
    )
    return "One straight step along dz/drho. Lesson 02 asks how far such a step can be trusted."


def _noisy(mixture: GaussianMixture, level: Level) -> tuple[Tensor, Tensor]:
    """Samples at a level and their score, both ``(64, 2)``."""
    x = mixture.sample_at(level, 64, torch.Generator().manual_seed(11))
    return x, mixture.score(x, level)


def _exact_step(x: Tensor, eps: Tensor, level_t: Level, level_s: Level) -> Tensor:
    return ddim_step(Prediction((x - level_t.sigma * eps) / level_t.alpha, eps), level_s)


def _call(answer: Callable[..., Tensor], **given: Tensor | Level) -> Tensor:
    """The answer for these inputs, of the samples' shape; the inputs must stay as they are."""
    copies = {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in given.items()
    }
    result = answer(*copies.values())
    result = require_shape(result, tuple(given["x"].shape), _RETURNED)
    for name, value in given.items():
        if isinstance(value, Tensor):
            require(
                torch.equal(value, copies[name]),
                f"Your function changes {name} itself; make a new tensor, without `+=` or `*=`.",
            )
    return result


def _diagnose(answer: Tensor, mistakes: tuple[tuple[Tensor, str], ...]) -> None:
    for wrong, sentence in mistakes:
        if torch.allclose(answer.to(wrong), wrong, rtol=1e-4, atol=1e-5):
            raise Wrong(sentence)

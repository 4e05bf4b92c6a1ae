"""Checks of lesson 04: a point on the chord, its noise, asking there, and the target's error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slam_course.checks import (
    call,
    compare,
    exercise,
    number,
    refuse_numbers,
    require,
    require_function,
)
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.subpath import chord_point, sub_level
from slam_edu.toy import two_moons

_COUNT = 64
_CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # the inputs are float64, an answer may be float32


def _levels() -> tuple[Level, Level]:
    """Two levels so far apart that every wrong formula gives another value."""
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    return schedule(600), schedule(250)


@exercise("Exercise 1, a point on the chord")
def interpolate(answer: Callable[[Tensor, Tensor, Level, Level, Tensor], Tensor]) -> str:
    """``answer(x_t, x_s, level_t, level_s, gamma) -> x_gamma``; gamma of shape ``(B, 1)``."""
    generator = torch.Generator().manual_seed(41)
    x_t, x_s = torch.randn(2, _COUNT, 2, generator=generator, dtype=torch.float64)
    g = torch.rand(_COUNT, 1, generator=generator, dtype=torch.float64)
    t, s = _levels()
    x = call(answer, (_COUNT, 2), x_t=x_t, x_s=x_s, level_t=t, level_s=s, gamma=g)
    a = t.alpha / s.alpha
    right = g * x_t + (1 - g) * a * x_s
    scale = g * t.alpha + (1 - g) * s.alpha
    mistakes = (
        (g * x_t + (1 - g) * x_s, "The drift factor is missing: x_s has more data in it than "
         "x_t, so it has to be brought to x_t's alpha before the two are mixed."),
        (g * x_t + (1 - g) / a * x_s, "The drift factor is upside down: it makes x_s larger, "
         "but x_t has the smaller alpha."),
        (g * a * x_t + (1 - g) * x_s, "The drift factor is on the wrong end: x_t is at "
         "alpha_t already, x_s is not."),
        (a * (g * x_t + (1 - g) * x_s), "The drift factor is on both ends; only x_s needs "
         "it."),
        (g * x_t + (1 - g) * a**2 * x_s, "The drift factor is squared. A level's alpha is the "
         "square root of alpha-bar already."),
        (g * x_t + (1 - g) * t.sigma / s.sigma * x_s, "Your factor is the ratio of the "
         "sigmas. It is data, not noise, that both ends should have in the same amount."),
        (g * x_t + (1 - g) * t.rho / s.rho * x_s, "Your factor is the ratio of the rhos; it "
         "should bring x_s to x_t's alpha, so take the ratio of the alphas."),
        ((1 - g) * x_t + g * a * x_s, "gamma and 1 - gamma are swapped: gamma = 1 should give "
         "x_t."),
        (g * x_s + (1 - g) * a * x_t, "The two ends are swapped: gamma goes with the noisy "
         "end x_t, the drift factor with the clean end x_s."),
        ((1 - g) * x_t + g * x_s, "gamma and 1 - gamma are swapped, and the drift factor is "
         "missing."),
        (right / t.alpha, "This is z_gamma. Right so far; multiply by alpha_t to get "
         "x_gamma."),
        (right / a, "The point is on the line, but at x_s's alpha: you brought x_t to x_s. "
         "Bring x_s to x_t instead."),
        (scale * right / t.alpha, "The direction is right, but the scale changes with gamma; "
         "all points of the chord have alpha_t."),
        (g * x_t + a * x_s, "x_s is not weighted with 1 - gamma."),
        (x_t + (1 - g) * a * x_s, "x_t is not weighted with gamma."),
        (g * (x_t - a * x_s), "This is the way from a x_s to the point; add a x_s, where it "
         "starts."),
        (x_t, "This is x_t for every gamma."),
        (a * x_s, "This is a x_s for every gamma, the clean end of the chord."),
    )  # fmt: skip
    compare(
        x,
        right,
        mistakes,
        "The shape fits, the values do not. Try gamma = 1, which should give x_t, and gamma = 0, "
        "which should give x_s brought to alpha_t.",
        **_CLOSE,
    )
    return "One alpha along the whole chord: only the noise changes from point to point."


@exercise("Exercise 2, the noise in a chord point")
def chord_sigma(answer: Callable[[Level, Level, Tensor], Tensor]) -> str:
    """``answer(level_t, level_s, gamma) -> sigma_gamma`` of shape ``(n,)``; levels ``()``."""
    g = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    t, s = _levels()
    sigma = call(answer, (10,), level_t=t, level_s=s, gamma=g)
    a = t.alpha / s.alpha
    clean, noisy = a * s.sigma, t.sigma
    right = g * noisy + (1 - g) * clean
    markov = clean**2 + g**2 * (noisy**2 - clean**2)
    mistakes = (
        (g * noisy + (1 - g) * s.sigma, "The factor a is missing: the clean end of the chord "
         "is a x_s, and that holds a sigma_s of noise."),
        (g * noisy + (1 - g) * s.sigma / a, "The factor a is upside down: a x_s holds less "
         "noise than x_s."),
        (a * (g * noisy + (1 - g) * s.sigma), "a is on both ends; only x_s was multiplied by "
         "it."),
        (g * a * noisy + (1 - g) * s.sigma, "a is on the noisy end; it is x_s that was "
         "multiplied by it."),
        (g * noisy + (1 - g) * a**2 * s.sigma, "a is squared; you add standard deviations "
         "here, not variances."),
        (markov.sqrt(), "This is the other sigma: it holds if x_t was made from x_s with "
         "fresh noise. Here x_s is DDIM's step from x_t, and both hold the same noise."),
        (markov, "This is a variance, and of the other sigma: fresh noise between s and t. "
         "Here both ends hold the same noise."),
        (clean**2 + g * (noisy**2 - clean**2), "This mixes the two variances, and is one. "
         "The same noise is in both ends, so its amounts are mixed, not their squares."),
        ((clean**2 + g * (noisy**2 - clean**2)).sqrt(), "You mix the two variances. The same "
         "noise is in both ends, so its amounts are mixed, not their squares."),
        ((g**2 * noisy**2 + (1 - g) ** 2 * clean**2).sqrt(), "You add variances, as for two "
         "independent noises. The same noise is in both ends, so its amounts add."),
        ((g**2 * noisy**2 + (1 - g) ** 2 * s.sigma**2).sqrt(), "You add variances, as for two "
         "independent noises, and a is missing. The same noise is in both ends."),
        (right**2, "This is the variance; return sigma."),
        ((1 - g) * noisy + g * clean, "gamma and 1 - gamma are swapped: gamma = 1 is x_t, "
         "with sigma_t."),
        (right / t.alpha, "This is rho_gamma = sigma_gamma / alpha_t. Right so far; return "
         "sigma_gamma."),
        (g * t.rho + (1 - g) * s.rho, "This is rho_gamma. Right so far; multiply by alpha_t "
         "to get sigma_gamma."),
        (right / (t.alpha**2 + right**2).sqrt(), "This is sigma after rescaling to "
         "alpha^2 + sigma^2 = 1. The point itself has alpha_t; return its sigma."),
        ((1 - t.alpha**2).sqrt() * torch.ones_like(g), "This is sigma_t for every gamma; the "
         "noise shrinks along the chord."),
        ((1 - (g * t.alpha + (1 - g) * s.alpha) ** 2).sqrt(), "This point would have "
         "alpha^2 + sigma^2 = 1; a point inside the chord has less."),
        (a * g * noisy + (1 - a) * clean, "a and gamma are mixed up in the weights: they are "
         "gamma and 1 - gamma."),
    )  # fmt: skip
    compare(
        sigma,
        right,
        mistakes,
        "The shape fits, the values do not. Write x_t and x_s as data plus the same eps, put them "
        "into the formula for x_gamma, and collect what stands before eps.",
        **_CLOSE,
    )
    return "The same noise in both ends, so its amounts are mixed as the points are."


class _Denoiser:
    """``network(x, level) -> eps``, exact for two moons, for levels of the schedule alone.

    Attributes:
        calls: how often it was asked.
        refused: what it says of a level that is not on the unit circle.
    """

    refused = "the network knows levels with alpha^2 + sigma^2 = 1 only"

    def __init__(self) -> None:
        self.mixture = two_moons(dtype=torch.float64)
        self.calls = 0

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        self.calls += 1
        if not torch.allclose(level.norm, torch.ones_like(level.norm), atol=1e-5):
            raise ValueError(f"{self.refused}; this one has {level.norm.item() ** 2:.3f}")
        return self.mixture.predict(x, level).eps


@exercise("Exercise 3, ask about a chord point")
def data_guess(answer: Callable[[Callable[..., Tensor], Tensor, Level], Tensor]) -> str:
    """``answer(network, x_gamma, level_gamma) -> x0``; ``network(x, level) -> eps``."""
    t, s = _levels()
    generator = torch.Generator().manual_seed(43)
    x_t, x_s = torch.randn(2, _COUNT, 2, generator=generator, dtype=torch.float64)
    gamma = torch.tensor(0.4, dtype=torch.float64)
    x = chord_point(x_t, x_s, t, s, gamma)
    level = sub_level(t, s, gamma, "linear")
    network = _Denoiser()
    guess = call(answer, (_COUNT, 2), network=network, x_gamma=x, level_gamma=level)
    calls = network.calls
    n = level.norm
    unit = Level(level.alpha / n, level.sigma / n)
    eps = network(x / n, unit)
    right = (x - level.sigma * eps) / level.alpha
    circle = Level(level.alpha, (1 - level.alpha**2).sqrt())
    # What comes out when the network was not asked about x/n at its own level.
    askings = (
        (network(x, unit), "You rescale the level, but ask about x_gamma itself. Divide both by "
         "the same n."),
        (network(x / n, t), "You rescale the point, but ask at the level of t. The level of x / n "
         "is (alpha / n, sigma / n)."),
        (network(x, t), "You ask about x_gamma at level t, which holds more noise than x_gamma "
         "does."),
        (network(x, circle), "You keep alpha_t and take the sigma that belongs to it on the "
         "schedule. That is level t: it holds more noise than x_gamma does."),
        (network(x / n**2, unit), "You divide the point by n twice, or forgot the square root in "
         "n."),
        (network(x / level.alpha, unit), "You ask about z = x / alpha. The network knows points "
         "with alpha^2 + sigma^2 = 1: divide by n."),
        (network(x * n, unit), "You multiply the point by n; divide by it."),
    )  # fmt: skip
    mistakes = [
        (eps, "This is the noise. One line is missing: the data that belong to it."),
        (x / n, "This is the rescaled point; ask the network about it."),
        (unit.alpha * right, "This is alpha x0: the division by alpha is missing."),
        (level.alpha * right, "This is alpha x0: the division by alpha is missing."),
        ((x / n - level.sigma * eps) / level.alpha, "The point is divided by n, but the level in "
         "the last line is not. Use x_gamma with its own level, or x / n with its own."),
        ((x - unit.sigma * eps) / unit.alpha, "The level is divided by n, but the point in the "
         "last line is not. Use x_gamma with its own level, or x / n with its own."),
        ((x - t.sigma * eps) / level.alpha, "The noise in x_gamma is sigma_gamma, not sigma_t."),
        (right / n, "x0 does not depend on the scale of the point; do not divide it by n again."),
        (right * n, "x0 does not depend on the scale of the point; do not multiply it by n."),
        ((x + level.sigma * eps) / level.alpha, "The noise is added; subtract it."),
    ]  # fmt: skip
    for wrong, sentence in askings:
        mistakes.append(((x - level.sigma * wrong) / level.alpha, sentence))
        mistakes.append(((x / n - unit.sigma * wrong) / unit.alpha, sentence))
    compare(
        guess,
        right,
        mistakes,
        "The shape fits, the values do not. Three lines: n, the network's answer about x_gamma / "
        "n, and x0 from x_gamma = alpha x0 + sigma eps.",
        **_CLOSE,
    )
    require(
        calls == 1,
        f"The values are right, but the network was asked {calls} times; once is enough.",
    )
    return "The scale of a point is arithmetic; what it holds is decided by sigma over alpha."


@exercise("Exercise 4, where the target is exact")
def target_error(
    error: Callable[[Tensor, float], Tensor], exact_at: Callable[[float], float]
) -> str:
    r"""``error(gamma, gamma0)``, the target minus the truth in units of b; its zero above 0.

    ``gamma`` has shape ``(n,)``; the chord touches the true path at the number ``gamma0``.
    """
    g, touch = torch.linspace(0.05, 0.95, 10, dtype=torch.float64), 0.35
    delta = call(error, (10,), gamma=g, gamma0=touch)
    there, clean = -((g - touch) ** 2), torch.full_like(g, -(touch**2))  # chord minus path
    right = clean - there
    mistakes = (
        (-right, "The sign is wrong: this is the truth minus the target."),
        (there, "This is how far the chord is from the true path at gamma. The path through "
         "x_gamma keeps that distance; the target is wrong by how much x_s differs from it."),
        (-there, "This is how far the chord is from the true path at gamma. The deviation of "
         "x_s is missing."),
        (clean, "This is the deviation of x_s, for every gamma. The path that starts at x_gamma "
         "does not end on the path that the chord touches: subtract the deviation at gamma."),
        (clean + there, "The two deviations are added. The path through x_gamma keeps its "
         "distance, so the target is wrong by their difference."),
        (-((1 - touch) ** 2) - there, "You compare x_gamma with x_t, gamma = 1. The target is "
         "the end of x_s: take the chord's deviation at gamma = 0."),
        (-g * (2 - g), "This is the error with the slope of the end for every gamma0; put gamma0 "
         "in the place of 1 in the chord's deviation."),
        (-g * (1 - g), "This is the error with the slope of the middle for every gamma0."),
        (g - 2 * touch, "One power of gamma is missing: a deviation grows with the square of the "
         "distance from the point where the chord touches."),
        (right / 2, "The factor 1/2 is in b already."),
    )  # fmt: skip
    compare(
        delta,
        right,
        mistakes,
        "The shape fits, the values do not. The chord's deviation is -(gamma - gamma0)^2 b. Take "
        "it at x_s, and subtract the one at x_gamma.",
        **_CLOSE,
    )
    require_function(exact_at)
    zero, what = number(exact_at(touch), "What exact_at returns"), "exact_at gives"
    refuse_numbers(
        zero,
        (
            (touch, f"{what} the position where the chord touches. The target is x_s's end, and "
             "at x_s the chord has left the path."),
            (0.0, f"{what} 0, where the target is trivially correct; give the other zero."),
            (1.0, f"{what} 1 for every gamma0; that holds for one gamma0 alone."),
            (1 - touch, f"{what} 1 - gamma0. Where is the chord as far from the path as at x_s?"),
            (touch / 2, f"{what} gamma0 / 2. Where is the chord as far from the path as at x_s?"),
        ),
    )  # fmt: skip
    require(
        abs(zero - 2 * touch) < 1e-6,
        f"{what} {zero:.3g} for gamma0 = {touch}, where target_error does not vanish.",
    )
    return "A chord that touches in its middle makes the target exact at gamma = 1, to this order."

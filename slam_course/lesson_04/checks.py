"""Checks of lesson 04: a point on the chord, its noise, asking there, and the target's error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slam_course.checks import (
    Asked,
    exercise,
    hold,
    known_mistakes,
    number,
    refuse_numbers,
    require,
    worked_out,
)
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.subpath import chord_point, sub_level
from slam_edu.toy.data import spiral

KNOWN = known_mistakes(__file__)
_ONLY = (
    "Right where alpha^2 + sigma^2 = 1, and only there. Use alpha and sigma of each level as they "
    "are, and do not compute one from the other."
)


def _levels(off: bool = False) -> tuple[Level, Level]:
    """Two levels so far apart that every wrong formula gives another value; two off the circle."""
    if off:
        alpha, sigma = torch.tensor([[0.5, 0.8], [0.7, 0.4]], dtype=torch.float64)
        return Level(alpha[0], sigma[0]), Level(alpha[1], sigma[1])
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    return schedule(600), schedule(250)


def _points(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(41)
    return torch.randn(2, count, 2, generator=generator, dtype=torch.float64)


@exercise("Exercise 1, a point on the chord")
def interpolate(answer: Callable[[Tensor, Tensor, Level, Level, Tensor], Tensor]) -> str:
    """``answer(x_t, x_s, level_t, level_s, gamma) -> x_gamma``; gamma of shape ``(B, 1)``."""

    def right(x_t: Tensor, x_s: Tensor, t: Level, s: Level, gamma: Tensor) -> Tensor:
        return gamma * x_t + (1 - gamma) * t.alpha / s.alpha * x_s

    def at(count: int, off: bool) -> dict[str, Any]:
        (x_t, x_s), (t, s) = _points(count), _levels(off)
        gamma = torch.linspace(0.93, 0.05, count, dtype=torch.float64)[:, None]
        return {"x_t": x_t, "x_s": x_s, "level_t": t, "level_s": s, "gamma": gamma}

    x_t, x_s, t, s, g = at(64, off=False).values()
    names = {"x_t": x_t, "x_s": x_s, "t": t, "s": s, "g": g, "a": t.alpha / s.alpha}
    names |= {"right": right(x_t, x_s, t, s, g), "scale": g * t.alpha + (1 - g) * s.alpha}
    hold(
        answer, right, at(64, off=False), worked_out(KNOWN["interpolate"], **names),
        "The shape fits, the values do not. Try gamma = 1, which should give x_t, and gamma = 0, "
        "which should give x_s brought to alpha_t.",
    )  # fmt: skip
    hold(answer, right, at(7, off=True), (), _ONLY)
    return "One alpha along the whole chord: only the noise changes from point to point."


@exercise("Exercise 2, the noise in a chord point")
def chord_sigma(answer: Callable[[Level, Level, Tensor], Tensor]) -> str:
    """``answer(level_t, level_s, gamma) -> sigma_gamma`` of shape ``(n,)``; levels ``()``."""

    def right(t: Level, s: Level, gamma: Tensor) -> Tensor:
        return gamma * t.sigma + (1 - gamma) * t.alpha / s.alpha * s.sigma

    (t, s), g = _levels(), torch.linspace(0.05, 0.95, 10, dtype=torch.float64).roll(3)
    a, noisy = t.alpha / s.alpha, t.sigma
    clean = a * s.sigma
    names = {"t": t, "s": s, "g": g, "a": a, "clean": clean, "noisy": noisy}
    names |= {"right": right(t, s, g), "markov": clean**2 + g**2 * (noisy**2 - clean**2)}
    hold(
        answer, right, {"level_t": t, "level_s": s, "gamma": g},
        worked_out(KNOWN["chord_sigma"], **names),
        "The shape fits, the values do not. Write x_t and x_s as data plus the same eps, put them "
        "into the formula for x_gamma, and collect what stands before eps.",
    )  # fmt: skip
    t, s = _levels(off=True)
    hold(answer, right, {"level_t": t, "level_s": s, "gamma": g[:3]}, (), _ONLY)
    return "The same noise in both ends, so its amounts are mixed as the points are."


REFUSED = "the network knows levels with alpha^2 + sigma^2 = 1 only"
"""What exercise 3's network says of other levels."""


@exercise("Exercise 3, ask about a chord point")
def data_guess(answer: Callable[[Callable[..., Tensor], Tensor, Level], Tensor]) -> str:
    """``answer(network, x_gamma, level_gamma) -> x0``; ``network(x, level) -> eps``."""
    mixture = spiral(components=12, dtype=torch.float64)  # not the lesson's

    def eps_of(x: Tensor, level: Level) -> Tensor:
        if not torch.allclose(level.norm, torch.ones_like(level.norm), atol=1e-5):
            far = level.norm.reshape(-1)[(level.norm - 1).abs().argmax()].item() ** 2
            raise ValueError(f"{REFUSED}; this one has {far:.3f}")
        return mixture.predict(x, level).eps

    def right(network: Callable[..., Tensor], x: Tensor, level: Level) -> Tensor:
        n = level.norm
        eps = network(x / n, Level(level.alpha / n, level.sigma / n))
        return (x - level.sigma * eps) / level.alpha

    def at(count: int, gamma: float, t: Level, s: Level) -> dict[str, Any]:
        g, (x_t, x_s) = torch.tensor(gamma, dtype=torch.float64), _points(count)
        level = sub_level(t, s, g, "linear")
        x = chord_point(x_t, x_s, t, s, g)
        return {"network": Asked(eps_of), "x_gamma": x, "level_gamma": level}

    t, s = _levels()
    network, x, level = at(64, 0.4, t, s).values()
    n = level.norm
    unit = Level(level.alpha / n, level.sigma / n)
    names = {"network": network, "x": x, "level": level, "n": n, "unit": unit, "t": t}
    names |= {"circle": t, "eps": network(x / n, unit), "right": right(network, x, level)}
    mistakes = worked_out(KNOWN["data_guess"], **names)
    # What comes out when the network was not asked about x/n at its own level.
    for wrong, sentence in worked_out(KNOWN["askings"], **names):
        mistakes.append(((x - level.sigma * wrong) / level.alpha, sentence))
        mistakes.append(((x / n - unit.sigma * wrong) / unit.alpha, sentence))
    hold(
        answer, right, at(64, 0.4, t, s), mistakes,
        "The shape fits, the values do not. Three lines: n, the network's answer about x_gamma / "
        "n, and x0 from x_gamma = alpha x0 + sigma eps.",
    )  # fmt: skip
    otherwise = "Right at one level, wrong at another: use level_gamma's own alpha and sigma."
    hold(answer, right, at(7, 0.8, *_levels(off=True)), (), otherwise)
    return "The scale of a point is arithmetic; what it holds is decided by sigma over alpha."


@exercise("Exercise 4, where the target is exact")
def target_error(
    error: Callable[[Tensor, float], Tensor], exact_at: Callable[[float], float]
) -> str:
    r"""``error(gamma, gamma0)``, the target minus the truth in units of b; its zero above 0.

    ``gamma`` has shape ``(n,)``; the chord touches the true path at the number ``gamma0``.
    """

    def right(gamma: Tensor, gamma0: float) -> Tensor:
        return (gamma - gamma0) ** 2 - gamma0**2

    g, touch = torch.linspace(0.05, 0.95, 10, dtype=torch.float64).roll(3), 0.35
    there, clean = -((g - touch) ** 2), torch.full_like(g, -(touch**2))  # chord minus path
    names = {"g": g, "touch": touch, "there": there, "clean": clean, "right": clean - there}
    hold(
        error, right, {"gamma": g, "gamma0": touch}, worked_out(KNOWN["target_error"], **names),
        "The shape fits, the values do not. The chord's deviation is -(gamma - gamma0)^2 b. Take "
        "it at x_s, and subtract the one at x_gamma.",
    )  # fmt: skip
    hold(error, right, {"gamma": g[:3], "gamma0": 0.8}, (), f"Right at gamma0 = {touch} alone.")
    for touch, known in ((0.35, KNOWN["exact_at"]), (0.8, ())):
        zero = number(exact_at(touch), "What exact_at returns")
        refuse_numbers(zero, worked_out(known, touch=touch))
        require(
            abs(zero - 2 * touch) < 1e-6,
            f"exact_at gives {zero:.3g} for gamma0 = {touch}, where target_error does not vanish.",
        )
    return "A chord that touches in its middle makes the target exact at gamma = 1, to this order."

"""Explorer of lesson 04: a sub-path beside its chord, for any data set, t, length and slope."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import ipywidgets
import torch
from torch import Tensor

from slam_course.figures import (
    COLORS,
    CourseFigure,
    figure,
    on_circles,
    open_axes,
    paths,
    plane,
    points,
)
from slam_course.widgets import explorer
from slam_edu.distill import SLOPES
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.toy import chords, make
from slam_edu.toy.errors import exact_trajectory
from slam_edu.toy.mixture import GaussianMixture

T = (999, 799, 599, 399, 299, 199, 99, 39, 19)
K = (20, 50, 100, 250)
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)

_F64 = torch.float64
_SCHEDULE = NoiseSchedule.stable_diffusion(_F64)
_LIMIT, _TOL = 2.4, 1e-6
_SHARE = torch.linspace(0, 1, 13, dtype=_F64)  # of the way, at which a curve is drawn


@cache
def _exact(data_set: str) -> tuple[GaussianMixture, Tensor, Tensor, dict[int, Tensor]]:
    """A data set, samples of it, exact paths through the plane, and their points at each of T."""
    mixture = make(data_set, _F64)
    data = mixture.sample(1000, torch.Generator().manual_seed(0))
    times = sorted({*range(0, 1000, 25), *T}, reverse=True)
    levels = _SCHEDULE(torch.tensor(times))
    states = exact_trajectory(mixture, on_circles(12, 1.8, 0.9), levels, tol=_TOL)
    return mixture, data, states, {t: states[times.index(t)] for t in T}


@lru_cache(maxsize=64)
def _sub_path(
    data_set: str, t: int, k: int, slope: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What no gamma changes: rho from t to s, the true curve, the chord, where it touches, b."""
    mixture, _, _, at = _exact(data_set)
    level_t, level_s = _SCHEDULE(t), _SCHEDULE(max(t - k, 0))
    rho = torch.lerp(level_t.rho, level_s.rho, _SHARE)
    curve = chords.curve_below(mixture, at[t] / level_t.alpha, rho, tol=_TOL)
    touch = 0 if slope == "end" else len(rho) // 2
    level = chords.tangent_level(level_t, level_s, slope)
    x = level.alpha * curve[touch]
    chord = curve[touch] + (rho - level.rho)[:, None, None] * mixture.predict(x, level).eps
    return rho, curve, chord, x, chords.bend(mixture, x, level_t, level_s, slope)


def sub_path_figure(data_set: str, t: int, k: int, slope: str, gamma: float) -> CourseFigure:
    r"""Left, sub-paths in the plane with their chords; right, one of them as seen from its chord.

    The right panel is :math:`z` over :math:`\rho` for the path that bends most, in the direction
    of its bend, with the chord taken off: the chord is the horizontal line. The left panel has a
    ring around that path's point. The sub-path is from t of :data:`T` to
    :math:`s = \max(t - k, 0)`; its chord touches it at the noisy ``"end"`` or in the ``"middle"``.
    """
    mixture, data, whole, _ = _exact(data_set)
    s, g = max(t - k, 0), torch.tensor(gamma, dtype=_F64)
    level_t, level_s = _SCHEDULE(t), _SCHEDULE(s)
    rho, curve, chord, x, b = _sub_path(data_set, t, k, slope)
    error = chords.taught_errors(mixture, x, level_t, level_s, g[None], slope=slope, tol=_TOL)[0]
    touch = 1.0 if slope == "end" else 0.5
    mean, law = error.norm(dim=1).mean(), (gamma * (2 * touch - gamma) * b).norm(dim=1).mean()

    z_g, rho_g = torch.lerp(chord[-1], chord[0], g), torch.lerp(rho[-1], rho[0], g)
    name = data_set.replace("_", " ")
    fig, (left, right) = figure(
        2,
        size=(3.6, 3.85),
        alt=f"{name}, sub-path from {t} to {s}, slope of the {slope}, gamma = {gamma:g}: the "
        f"target at x_gamma is {_short(mean)} off the truth on average; the law says "
        f"{_short(law)}.",
    )
    # The k that was asked for is written too: near the data it may be longer than what is left.
    plane(left, f"{name}, k = {k}: from {t} to {s}", _LIMIT)
    points(left, data, "#d4d4d4", size=2, alpha=0.8)
    paths(left, whole, "path", width=0.8, alpha=0.45)
    alpha = Level.from_rho(rho).alpha[:, None, None]
    paths(left, alpha * curve, "path", width=3, alpha=1)
    paths(left, alpha * chord, "chord", width=1.4, alpha=1)
    x_g = Level.from_rho(rho_g).alpha * z_g
    points(left, x_g, "chord", size=12, alpha=1, zorder=4)

    sag = (curve[0] + curve[-1]) / 2 - curve[len(curve) // 2]  # of either slope the same path
    most = int(sag.norm(dim=1).argmax())
    left.plot(*x_g[most], "o", mfc="none", mec=COLORS["data"], ms=9, zorder=5)
    u, share = sag[most] / sag[most].norm(), g * (1 - _SHARE)  # from x_gamma down to x_s
    rho_below = torch.lerp(rho[-1], rho[0], share)
    below = chords.curve_below(mixture, z_g[most : most + 1], rho_below, tol=_TOL)[:, 0]
    below = (torch.lerp(chord[-1, most], chord[0, most], share[:, None]) - below) @ u
    through = (chord - curve)[:, most] @ u
    right.axhline(0, color=COLORS["chord"], lw=2, zorder=1)
    right.plot(rho, through, color=COLORS["path"], lw=2.2, label="true, where the chord touches")
    label = r"true, through $x_\gamma$"
    right.plot(rho_below, below, "--", color=COLORS["path"], lw=1.6, label=label)
    for at, color, size in (
        (rho[0] if slope == "end" else rho.mean(), "#7d7d7d", 6), (rho_g, COLORS["chord"], 8),
        (rho[-1], COLORS["teacher"], 6),
    ):  # fmt: skip
        right.plot(at, 0, "o", color=color, ms=size, zorder=4)
    right.vlines(rho[-1], 0, below[-1], color=COLORS["chord"], lw=5, alpha=0.6, zorder=2)
    top = 1.6 * max(through.abs().max().item(), below.abs().max().item())
    last, h = level_s.rho.item(), (level_t.rho - level_s.rho).item()
    open_axes(
        right, title=f"target at $x_\\gamma$: off by {_short(mean)} on average",
        xlim=(last + 1.1 * h, last - 0.12 * h), ylim=(-top, top), xlabel=r"$\rho$",
        ylabel="chord minus path, in z",
    )  # fmt: skip
    right.legend(frameon=False, fontsize=8.5, loc="upper left")
    return fig


def _short(value: Tensor) -> str:
    """A distance in words: two digits down to 0.001, and its size below."""
    number = value.item()
    return f"{number:.2g}" if number >= 1e-6 else "0"


def sub_paths(data_sets: Sequence[str]) -> ipywidgets.VBox:
    """Menus for data set and slope, sliders for t, the length k of the sub-path and gamma.

    The exact paths of all data sets are computed here, so that no redraw waits for them.
    """
    for name in data_sets:
        _exact(name)
    first = {"t": 199, "k": 100, "gamma": 0.5}
    return explorer(
        sub_path_figure, first=first, data_set=data_sets, t=T, k=K, slope=SLOPES, gamma=GAMMAS
    )

"""Explorer of lesson 04: a sub-path beside its chord, for any data set, t, length and gamma."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import ipywidgets
import torch
from torch import Tensor

from slam_course.figures import (
    COLORS,
    CourseFigure,
    arcs,
    figure,
    on_circles,
    open_axes,
    paths,
    plane,
    points,
)
from slam_course.widgets import explorer
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.toy import chords, make
from slam_edu.toy.errors import exact_trajectory
from slam_edu.toy.mixture import GaussianMixture

T = (999, 799, 599, 399, 299, 199, 99, 39, 19)
K = (20, 50, 100, 250)
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)

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
def _sub_path(data_set: str, t: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What no gamma changes: slope at x_t, b, rho from t to s, and the true curve there."""
    mixture, _, _, at = _exact(data_set)
    level_t, level_s, x_t = _SCHEDULE(t), _SCHEDULE(max(t - k, 0)), at[t]
    rho = torch.lerp(level_t.rho, level_s.rho, _SHARE)
    slope, b = mixture.predict(x_t, level_t).eps, chords.bend(mixture, x_t, level_t, level_s)
    return slope, b, rho, chords.curve_below(mixture, x_t / level_t.alpha, rho, tol=_TOL)


def sub_path_figure(data_set: str, t: int, k: int, gamma: float) -> CourseFigure:
    r"""Left, sub-paths in the plane with their chords; right, one of them as seen from its chord.

    The right panel is :math:`z` over :math:`\rho` for the path that bends most, in the direction
    of its bend, with the chord taken off: the chord is the horizontal line. The left panel has a
    ring around that path's point. The sub-path is from t of :data:`T` to
    :math:`s = \max(t - k, 0)`.
    """
    mixture, data, whole, at = _exact(data_set)
    s, x_t, g = max(t - k, 0), at[t], torch.tensor(gamma, dtype=_F64)
    level_t, level_s = _SCHEDULE(t), _SCHEDULE(s)
    slope, b, rho, curve = _sub_path(data_set, t, k)
    error = chords.taught_errors(mixture, x_t, level_t, level_s, g[None], tol=_TOL)[0]
    mean, law = error.norm(dim=1).mean(), (gamma * (2 - gamma) * b).norm(dim=1).mean()

    # Rows: noise to data; the chord runs from x_gamma if that lies beyond x_t.
    z_t, rho_g = x_t / level_t.alpha, g * level_t.rho + (1 - g) * level_s.rho
    z_g = z_t + (rho_g - level_t.rho) * slope
    name = data_set.replace("_", " ")
    fig, (left, right) = figure(
        2,
        size=(3.6, 3.85),
        alt=f"{name}, sub-path from {t} to {s}, gamma = {gamma:g}: what is taught at x_gamma is "
        f"{_short(mean)} off the truth on average; the law says {_short(law)}.",
    )
    # The k that was asked for is written too: near the data it may be longer than what is left.
    plane(left, f"{name}, k = {k}: from {t} to {s}", _LIMIT)
    points(left, data, "#d4d4d4", size=2, alpha=0.8)
    paths(left, whole, "path", width=0.8, alpha=0.45)
    paths(left, Level.from_rho(rho).alpha[:, None, None] * curve, "path", width=3, alpha=1)
    ends = Level.from_rho(torch.stack([torch.maximum(level_t.rho, rho_g), level_s.rho]))
    z = z_t + (ends.rho - level_t.rho)[:, None, None] * slope
    paths(left, arcs(ends.alpha[:, None, None] * z, ends), "chord", width=1.4, alpha=1)
    x_g = Level.from_rho(rho_g).alpha * z_g
    points(left, x_g, "chord", size=12, alpha=1, zorder=4)

    most = int(b.norm(dim=1).argmax())
    left.plot(*x_g[most], "o", mfc="none", mec=COLORS["data"], ms=9, zorder=5)
    u = b[most] / b[most].norm()

    def off(z: Tensor, rho: Tensor) -> Tensor:
        return (z - z_t[most] - (rho - level_t.rho)[:, None] * slope[most]) @ u

    rho_below = torch.lerp(rho_g, level_s.rho, _SHARE)
    below = chords.curve_below(mixture, z_g[most : most + 1], rho_below, tol=_TOL)[:, 0]
    through_t, below = off(curve[:, most], rho), off(below, rho_below)
    right.axhline(0, color=COLORS["chord"], lw=2, zorder=1)
    right.plot(rho, through_t, color=COLORS["path"], lw=2.2, label="true, through $x_t$")
    label = r"true, through $x_\gamma$"
    right.plot(rho_below, below, "--", color=COLORS["path"], lw=1.6, label=label)
    right.plot(level_t.rho, 0, "o", color="#7d7d7d", ms=6, zorder=3)
    right.plot(rho_g, 0, "o", color=COLORS["chord"], ms=8, zorder=4)
    right.plot(level_s.rho, 0, "o", color=COLORS["teacher"], ms=6, zorder=3)
    right.vlines(level_s.rho, 0, below[-1], color=COLORS["chord"], lw=5, alpha=0.6, zorder=2)
    top = 1.35 * max(through_t.abs().max().item(), below.abs().max().item())
    last, h = level_s.rho.item(), (level_t.rho - level_s.rho).item()
    open_axes(
        right, title=f"taught at $x_\\gamma$: off by {_short(mean)} on average",
        xlim=(last + 2.1 * h, last - 0.12 * h), ylim=(-top, top), xlabel=r"$\rho$",
        ylabel="off the chord, in z",
    )  # fmt: skip
    right.legend(frameon=False, fontsize=8.5, loc="lower left")
    return fig


def _short(value: Tensor) -> str:
    """A distance in words: two digits down to 0.001, and its size below."""
    number = value.item()
    return f"{number:.2g}" if number >= 1e-6 else "0"


def sub_paths(data_sets: Sequence[str]) -> ipywidgets.VBox:
    """Menu for the data set, sliders for t, the length k of the sub-path and gamma.

    The exact paths of all data sets are computed here, so that no redraw waits for them.
    """
    for name in data_sets:
        _exact(name)
    first = {"t": 199, "k": 100, "gamma": 0.5}
    return explorer(sub_path_figure, first=first, data_set=data_sets, t=T, k=K, gamma=GAMMAS)

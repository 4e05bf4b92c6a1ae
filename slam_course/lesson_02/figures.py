r"""Figures of lesson 02: few-step trajectories and samples, orders, where errors are made.

Time runs as sampling does: noise is on the left and data on the right. A solver's hop is a
straight line in :math:`z` over :math:`\rho`; in the plane of :math:`x` it is drawn as the arc it
is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter
from torch import Tensor

from slam_course.figures import (
    COLORS,
    SOLVER_NAMES,
    CourseFigure,
    arcs,
    evaluations,
    figure,
    legend_below,
    legend_lines,
    open_axes,
    paths,
    plane,
    points,
)
from slam_edu.schedule import Level

# One colour says "a solver"; line, marker and shade say which.
_STYLES = {
    "ddim": {"color": COLORS["teacher"], "ls": "-", "marker": "o"},
    "heun": {"color": "#7a3600", "ls": "--", "marker": "s"},
    "dpmpp_2m": {"color": "#f0a35e", "ls": "-.", "marker": "D"},
    "rk4": {"color": "#4d2200", "ls": ":", "marker": "^"},
}


def hops_and_path(
    fine: Level, exact: Tensor, levels: Level, starts: Tensor, reached: Tensor, path: Tensor
) -> CourseFigure:
    r"""First coordinate of z over :math:`\rho`: hops from the exact curve, and a solver's path.

    Exact trajectories are given at many levels, ``(m, B, 2)``, and as ``starts`` at the solver's,
    ``(n + 1, B, 2)``; ``reached`` is where one hop from each start ends, ``(n, B, 2)``, and
    ``path`` are the solver's own trajectories, ``(n + 1, B, 2)``.
    """
    rho_max = 3.2  # noisier levels are left out
    fig, (left, right) = figure(
        2,
        size=(4.3, 3.5),
        alt=f"Two panels, z over rho from {rho_max:g} down to 0, with green exact curves that "
        "bend more and more towards the right. Left: orange hops of DDIM start on the curves "
        "along their slope and end beside them; purple bars show the errors. Right: orange paths "
        "made of such hops leave the curves, and the errors at the end are longer.",
    )
    rho, last = levels.rho, len(levels) - 1
    z_starts, z_path = _first_z(starts, levels), _first_z(path, levels)
    z_reached = _first_z(reached, levels[1:])
    for ax in (left, right):
        ax.plot(fine.rho, _first_z(exact, fine), color=COLORS["path"], lw=1.5)
    for i in range(last):
        hop = torch.stack([z_starts[i], z_reached[i]])
        left.plot(rho[i : i + 2], hop, color=COLORS["teacher"], lw=1.5)
        left.plot(rho[i].expand_as(z_starts[i]), z_starts[i], "o", color=COLORS["path"], ms=5)
        _error_bars(left, rho[i + 1], z_reached[i], z_starts[i + 1])
    right.plot(rho, z_path, "o-", color=COLORS["teacher"], lw=1.5, ms=4)
    _error_bars(right, rho[last], z_path[last], z_starts[last])
    titles = "every hop starts on the exact curve", "every hop starts where the last one ended"
    for ax, title in zip((left, right), titles, strict=True):
        limits = {"xlim": (rho_max, -0.05 * rho_max), "ylim": (-4.2, 4.2)}
        open_axes(ax, title=title, xlabel=r"$\rho$", **limits)
    left.set_ylabel("z, first coordinate")
    _legend(left, {"exact": "path", "one hop of DDIM": "teacher", "its error": "chord"})
    _legend(right, {"exact": "path", "DDIM": "teacher", "error at the end": "chord"})
    return fig


def _first_z(x: Tensor, levels: Level) -> Tensor:
    """First coordinate of z = x/alpha, ``(n, B)``."""
    return x[..., 0] / levels.alpha[:, None]


def _error_bars(ax: Axes, rho: Tensor, reached: Tensor, truth: Tensor) -> None:
    ax.vlines(rho.expand_as(truth), reached, truth, color=COLORS["chord"], lw=4, zorder=3)


def sample_strip(samples: Mapping[str, Tensor], data: Tensor, alt: str) -> CourseFigure:
    """Samples ``(B, 2)`` by title in a row of panels, each over the data ``(n, 2)`` in grey."""
    fig, axes = figure(len(samples), size=(1.95, 2.2), alt=alt)
    for ax, (title, x) in zip(axes, samples.items(), strict=True):
        plane(ax, title, limit=2.6)
        points(ax, data, "#cfcfcf", size=1.5, alpha=0.8)
        points(ax, x, "teacher", size=1.5, alpha=0.6)
    return fig


def few_step_paths(
    solved: Mapping[int, tuple[Tensor, Level]], exact: Tensor, data: Tensor
) -> CourseFigure:
    """DDIM's trajectories in the plane over the exact ones, one panel per number of steps.

    ``solved`` has the states ``(n + 1, B, 2)`` and their levels; ``exact`` is ``(m, B, 2)``.
    """
    fig, axes = figure(
        len(solved),
        size=(2.75, 3.25),
        alt=f"Panels for {', '.join(map(str, solved))} evaluations. Green exact trajectories end "
        f"on the data. The orange ones of DDIM follow them ever more loosely as evaluations get "
        f"fewer; with one they all run to the centre. Purple lines join the two ends.",
    )
    for ax, (steps, (trajectory, levels)) in zip(axes, solved.items(), strict=True):
        plane(ax, evaluations(steps), limit=2.4)
        draw_paths(ax, trajectory, levels, exact, data)
    entries = {"exact": "path", "DDIM": "teacher", "error at the end": "chord"}
    legend_below(fig, legend_lines(entries), 3)
    return fig


def draw_paths(ax: Axes, trajectory: Tensor, levels: Level, exact: Tensor, data: Tensor) -> None:
    """Into prepared axes: data, exact trajectories, a solver's over them, the gap at the end."""
    points(ax, data, "#cfcfcf", size=1.5, alpha=0.8)
    paths(ax, exact, "path", width=1.1, alpha=0.8)
    paths(ax, arcs(trajectory, levels), "teacher", width=1.1, alpha=0.9)
    gap = torch.stack([trajectory[-1], exact[-1]])
    paths(ax, gap, "chord", width=1.1, alpha=0.8, linestyles=":")
    points(ax, exact[0], "noise", size=9, alpha=1, zorder=3)
    points(ax, exact[-1], "path", size=12, alpha=1, zorder=3)
    points(ax, trajectory[-1], "teacher", size=12, alpha=1, zorder=4)


def orders(
    hops: Sequence[int],
    one_hop: Mapping[str, Sequence[float]],
    whole_way: Mapping[str, Sequence[float]],
    slopes: Mapping[str, tuple[float, float]],
) -> CourseFigure:
    """Local and global error by method over the number of hops, and minus the slopes of both."""
    exponents = ", ".join(f"{SOLVER_NAMES[m]} {a:.1f} and {b:.1f}" for m, (a, b) in slopes.items())
    fig, axes = figure(
        2,
        size=(4.3, 3.5),
        alt=f"Two logarithmic plots of error over the number of hops, with falling lines. "
        f"Left, one hop; right, the whole way. Minus their slopes, left and right: {exponents}.",
    )
    panels = (("one hop: local error", one_hop), ("the whole way: global error", whole_way))
    for side, (ax, (title, errors)) in enumerate(zip(axes, panels, strict=True)):
        for method, values in errors.items():
            label = f"{SOLVER_NAMES[method]}: {slopes[method][side]:.1f}"
            ax.plot(hops, values, ms=5, lw=1.5, label=label, **_STYLES[method])
        xlabel = "number of hops from t = 999 to 0"
        open_axes(ax, title=title, xscale="log", yscale="log", xlabel=xlabel)
        ax.set_xticks(hops, [str(n) for n in hops])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.legend(frameon=False, fontsize=9, loc="lower left", title="measured exponent")
    axes[0].set_ylabel("distance in z, median")
    return fig


def error_along_the_path(
    t: Tensor, change: Tensor, local: Tensor, predicted: Tensor, effect: Tensor
) -> CourseFigure:
    r"""What each hop of DDIM meets, misses, and costs at the end; all of shape ``(n,)``.

    ``change`` of slope per unit of :math:`\rho` (the curvature) over the hop from ``t``; ``local``
    error; ``predicted``, half of the squared hop times the curvature; ``effect``, the error at the
    end when this hop alone is DDIM's.
    """
    fig, axes = figure(
        3,
        size=(3.35, 3.1),
        alt="Three plots over t from 999 to 0. Left, logarithmic: the curvature rises a "
        "thousandfold and more. Middle: the local error of a hop is level, then rises at the end; "
        "Taylor's formula is close to it. Right: the error at the end due to each hop grows "
        "towards the data, and the last hop stands far above all others.",
    )
    axes[0].plot(t, change, color=COLORS["path"], lw=1.6)
    axes[0].set(yscale="log", ylim=(3e-4, 10))
    axes[1].plot(t, local, "o", color=COLORS["teacher"], ms=3.5, label="measured")
    taylor = r"$\frac{1}{2} h^2 \Vert z'' \Vert$"
    axes[1].plot(t, predicted, color=COLORS["chord"], lw=1.4, label=taylor)
    axes[1].set(yscale="log", ylim=(3e-4, 0.1))
    axes[1].legend(frameon=False, fontsize=9, loc="upper left")
    axes[2].bar(t.numpy(), effect.numpy(), width=13, color=COLORS["teacher"])
    axes[2].set_ylim(bottom=0)
    titles = ("curvature of the exact path", "local error of the hop from t",
              "what it costs at the end")  # fmt: skip
    for ax, title in zip(axes, titles, strict=True):
        open_axes(ax, title=title, xlim=(1010, -10), xlabel="timestep t")
    return fig


def distance_by_evaluations(
    curves: Mapping[str, Mapping[int, float]], floor: Sequence[float]
) -> CourseFigure:
    """Sliced Wasserstein distance to the data by method over evaluations, both logarithmic.

    ``floor`` are distances between samples of the data.
    """
    fig, (ax,) = figure(
        size=(6.4, 3.9),
        alt="Distance to the data over network evaluations, 1 to 50, both logarithmic. All "
        "solvers start together at 1 evaluation, far above the grey band of the floor, fall, and "
        "reach it only with many evaluations.",
    )
    _floor(ax, floor, 1.03, (min(floor) * max(floor)) ** 0.5)
    twice = 2 * sum(floor) / len(floor)
    ax.axhline(twice, color="#8c8c8c", lw=1, ls=":", zorder=0)
    ax.text(1.03, 1.03 * twice, "twice the floor", fontsize=9, va="bottom", color="#555555")
    for method, curve in curves.items():
        style = {**_STYLES[method], "label": SOLVER_NAMES[method]}
        ax.plot(list(curve), list(curve.values()), ms=5, lw=1.5, **style)
    open_axes(
        ax, title="fewer evaluations, further from the data", legend="upper right",
        xscale="log", yscale="log", xlim=(0.95, 60), ylim=(0.03, 1.3),
        xlabel="evaluations of the network", ylabel="sliced Wasserstein distance",
    )  # fmt: skip
    ax.set_xticks([1, 2, 3, 4, 6, 8, 12, 16, 25, 50])
    ax.set_yticks([0.05, 0.1, 0.2, 0.5, 1])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
    return fig


def middle_level(
    t: Sequence[int], curves: Mapping[str, Sequence[float]], floor: Sequence[float]
) -> CourseFigure:
    """Distance to the data, by method, of two evaluations over the timestep t of the second one.

    ``floor`` are distances between samples of the data.
    """
    fig, (ax,) = figure(
        size=(6.4, 3.4),
        alt="Distance to the data of two evaluations over the timestep of the second one. Each "
        "solver's curve has a valley, and its bottom lies far above the grey band of the floor.",
    )
    _floor(ax, floor, 985, max(floor) + 0.035)
    for name, values in curves.items():
        style = {**_STYLES[name], "marker": ""}
        ax.plot(t, values, lw=1.8, label=SOLVER_NAMES[name], **style)
        low = min(range(len(t)), key=values.__getitem__)
        ax.plot(t[low], values[low], _STYLES[name]["marker"], color=style["color"], ms=6)
    open_axes(
        ax, title="two evaluations: the first at t = 999, the second at t", legend="upper center",
        xlim=(1000, 0), ylim=(0, 1.05), xlabel="timestep t of the second evaluation",
        ylabel="sliced Wasserstein distance",
    )  # fmt: skip
    return fig


def _floor(ax: Axes, floor: Sequence[float], x: float, y: float) -> None:
    ax.axhspan(min(floor), max(floor), color="#d9d9d9", zorder=0, lw=0)
    ax.text(x, y, "floor: two samples of the data", fontsize=9, va="center", color="#555555")


def _legend(ax: Axes, entries: Mapping[str, str]) -> None:
    style = {"fontsize": 8, "loc": "upper right", "edgecolor": "none", "framealpha": 0.85}
    ax.legend(handles=legend_lines(entries), **style)

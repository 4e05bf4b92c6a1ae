r"""Figures of lesson 03: the map to learn, how knowledge travels, what errors add up to.

Timesteps run as sampling does, noise on the left and data on the right, wherever they are the
horizontal axis. Where updates are, time runs to the right as usual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Circle
from matplotlib.ticker import NullLocator, ScalarFormatter
from torch import Tensor

from slam_course.figures import (
    COLORS,
    CourseFigure,
    field,
    figure,
    legend_below,
    legend_lines,
    open_axes,
    paths,
    plane,
    points,
)

_ERROR = {"cmap": "magma", "norm": LogNorm(0.03, 1.5)}  # of every error that is shown as a colour
_TICKS = (0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True, kw_only=True)
class Health:
    """What a training run wrote down, at n looks; ``loss`` and ``grad_norm`` are means since."""

    update: Sequence[int]
    loss: Sequence[float]
    grad_norm: Sequence[float]
    error: Tensor  # mean distance to f*, (n, len(t))
    t: Sequence[int]  # increasing


def guesses_along_path(t: Tensor, x: Tensor, guess: Tensor, data: Tensor) -> CourseFigure:
    """Exact paths, ``(n, B, 2)`` at falling t; beside them the denoiser's guess and f* on the way.

    The guess has the paths' shape.
    """
    fig, (left, right) = figure(
        2,
        size=(4.4, 3.5),
        alt="Left: a few green exact paths from grey noise to the two moons. Right: first "
        "coordinate of the end over t. The green answers of f* are flat lines, one a path; the "
        "orange guesses of the denoiser all start near the middle and reach them late.",
        width_ratios=(1, 1.35),
    )
    plane(left, "exact paths", limit=2.6)
    points(left, data, "#cfcfcf", size=1.5, alpha=0.8)
    paths(left, x, "path", width=1.4, alpha=0.9)
    points(left, x[0], "noise", size=22, alpha=1, zorder=3)
    points(left, x[-1], "path", size=22, alpha=1, zorder=3)
    for b in range(x.shape[1]):
        end = x[-1, b, 0].item()
        right.plot(t, torch.full_like(t, end, dtype=torch.float), color=COLORS["path"], lw=1.6)
        right.plot(t, guess[:, b, 0], color=COLORS["teacher"], lw=1.4, ls="--")
    low, high = x[-1, :, 0].min().item(), x[-1, :, 0].max().item()
    room = 0.32 * (high - low)  # for the legend, above all lines
    open_axes(
        right, title="asked on the way: where does this path end?", xlim=(1010, -10),
        ylim=(low - 0.2, high + room), xlabel="timestep t", ylabel="first coordinate of the end",
    )  # fmt: skip
    entries = {"the solution map f*": "path", "the denoiser's guess": ("teacher", "--")}
    style = {"fontsize": 9, "loc": "upper left", "edgecolor": "none", "framealpha": 0.85}
    right.legend(handles=legend_lines(entries), **style)
    return fig


def boundary(t: Tensor, scalings: Mapping[str, tuple[Tensor, Tensor]]) -> CourseFigure:
    r"""The boundary scalings :math:`(c_\text{skip}, c_\text{out})`, by name, over t > 0."""
    fig, (ax,) = figure(
        size=(6.8, 3.2),
        alt="Two curves over t on a logarithmic axis. c_skip falls from 1 to 0 and c_out rises "
        "from 0 to 1; with the usual scaling both have done so before the first timestep.",
    )
    for (name, (skip, out)), style in zip(scalings.items(), ("-", "--", ":"), strict=False):
        ax.plot(t, skip, ls=style, lw=1.8, color=COLORS["data"], label=f"$c_{{skip}}$, {name}")
        ax.plot(t, out, ls=style, lw=1.8, color=COLORS["student"], label=f"$c_{{out}}$, {name}")
    for where, text in ((1, "t = 1"), (19, "t = 19")):
        ax.axvline(where, ymax=0.87, color="#8c8c8c", lw=1, ls=":")
        ax.text(where, 1.1, text, ha="center", va="center", fontsize=9)
    open_axes(
        ax, title="who speaks: x itself, or the network", legend="center left", xscale="log",
        xlim=(t.max().item(), t.min().item()), ylim=(-0.03, 1.18), xlabel="timestep t",
    )  # fmt: skip
    return fig


def knowledge_front(runs: Mapping[str, Health]) -> CourseFigure:
    """Error to f* over updates and t as a colour, one panel a run; all with the same timesteps."""
    fig, axes = figure(
        len(runs),
        size=(max(3.3, 6.6 / len(runs)), 3.1),
        alt="Colour maps of the error to the exact map, updates to the right and t upwards: "
        f"{', '.join(runs)}. Bright is wrong. A dark region, where the error is small, grows from "
        "t = 0 upwards.",
    )
    for ax, (title, run) in zip(axes, runs.items(), strict=True):
        image = ax.pcolormesh(run.update, run.t, run.error.T, shading="nearest", **_ERROR)
        ax.set_title(title, fontsize=10)
        ax.tick_params(labelsize=9)
        ax.set(xlabel="updates", yticks=run.t[::2])
    axes[0].set_ylabel("timestep t")
    _colorbar(fig, image, axes[-1], "mean distance to f*")
    return fig


def health(runs: Mapping[str, Health], healthy: Health) -> CourseFigure:
    """Loss, gradient norm, error to f* over updates, a column a run; the healthy one in grey."""
    alt = (
        f"Three rows of curves over updates, a column for each of {', '.join(runs)}: loss, "
        "gradient norm, and the error to the exact map at t = 99, 499 and 999, all logarithmic."
    )
    fig, axes = figure(len(runs), 3, size=(2.25, 1.75), alt=alt, sharex=True, sharey="row")
    grid = axes.reshape(3, len(runs))
    rows = ("loss", (1e-6, 1e3)), ("gradient norm", (1e-4, 1e3)), ("distance to f*", (0.03, 30))
    for column, (title, run) in zip(grid.T, runs.items(), strict=True):
        column[0].set_title(title, fontsize=10)
        for ax, key in zip(column, ("loss", "grad_norm"), strict=False):
            ax.plot(healthy.update, getattr(healthy, key), color=COLORS["noise"], lw=1.2)
            ax.plot(run.update, getattr(run, key), color=COLORS["student"], lw=1.3)
        for style, t in ((":", 99), ("--", 499), ("-", 999)):
            line = {"color": COLORS["chord"], "ls": style, "lw": 1.4, "label": f"t = {t}"}
            column[2].plot(run.update, run.error[:, list(run.t).index(t)], **line)
        column[2].set_xlabel("updates", fontsize=9)
    for row, (name, limit) in zip(grid, rows, strict=True):
        row[0].set_ylabel(name, fontsize=9)
        for ax in row:
            open_axes(ax, 8, yscale="log", ylim=limit)
            ax.yaxis.set_minor_locator(NullLocator())
    handles = grid[2, 0].get_legend_handles_labels()[0]
    legend_below(fig, handles + legend_lines({"healthy run": "noise"}, 1.4), 4)
    return fig


def sample_rows(
    rows: Mapping[str, Mapping[str, Tensor]], data: Tensor, colors: Sequence[str]
) -> CourseFigure:
    """Samples ``(B, 2)`` by row and title over the data in light grey, a colour for each row."""
    titles = list(next(iter(rows.values())))
    alt = (
        f"Rows of samples over the data in light grey: {', '.join(rows)}; "
        f"columns: {', '.join(titles)}."
    )
    fig, axes = figure(len(titles), len(rows), size=(2.1, 2.25), alt=alt)
    grid = axes.reshape(len(rows), len(titles))
    for panels, color, (name, row) in zip(grid, colors, rows.items(), strict=True):
        for ax, (title, x) in zip(panels, row.items(), strict=True):
            plane(ax, title, limit=2.6)
            points(ax, data, "#cfcfcf", size=1.5, alpha=0.8)
            points(ax, x, color, size=1.5, alpha=0.6)
        panels[0].set_ylabel(name, fontsize=10)
    return fig


def error_maps(maps: Mapping[str, Tensor], steep: Tensor) -> CourseFigure:
    """Errors to f* by title over a grid of starts, ``(n * n,)``, and how steep f* is there.

    Two circles hold 50 % and 95 % of standard normal noise.
    """
    fig, axes = figure(
        len(maps) + 1,
        size=(2.9, 3.15),
        alt=f"Maps over the plane of noise: {', '.join(maps)}, bright is wrong. What is left of "
        "the error after training is largest along an S-shaped line. Right: f* is steep along it.",
    )
    for ax, (title, values) in zip(axes, maps.items(), strict=False):
        image = field(plane(ax, title), values, **_ERROR)
    field(plane(axes[-1], "stretching of f*"), steep, cmap="Greens", norm=LogNorm(0.3, 30))
    for ax in axes:
        color = "white" if ax is not axes[-1] else COLORS["data"]
        for share, style in ((0.5, ":"), (0.95, "--")):
            radius = math.sqrt(-2 * math.log(1 - share))  # of a standard normal in the plane
            ax.add_patch(Circle((0, 0), radius, fill=False, ec=color, lw=1.1, ls=style))
    _colorbar(fig, image, axes[-2], "distance to f*")
    return fig


def accounts(
    runs: Mapping[str, tuple[Tensor, Tensor, Tensor]], bias: Mapping[str, float]
) -> CourseFigure:
    """What the defects of the hops add up to on the way from t = 0 to noise.

    ``runs`` has by title the hops' noisy ends, increasing, the size of each hop's defect and that
    of the sum up to there, ``(N,)``; ``bias`` the mean distance of N exact hops from f*.
    """
    fig, axes = figure(
        len(runs),
        size=(4.2, 3.3),
        alt="For each student three curves over t: the defect of each single hop is small, the "
        "size of their sum grows over the lowest hops and then stays level, where that of "
        "independent ones would go on growing. A line marks the hops' own error.",
        sharey=True,
    )
    for ax, (title, (t, defect, total)) in zip(axes, runs.items(), strict=True):
        root = (defect**2).cumsum(0).sqrt()
        ax.plot(t, defect.cumsum(0), color=COLORS["noise"], lw=1.4, ls="--", label="if all agreed")
        ax.plot(t, root, color=COLORS["chord"], lw=1.4, ls="--", label="if independent")
        ax.plot(t, total, color=COLORS["student"], lw=2, label="sum of defects, measured")
        ax.plot(t, defect, "o", color=COLORS["student"], ms=3, label="defect of one hop")
        ax.axhline(bias[title], color=COLORS["teacher"], lw=1.4, ls=":", label="the hops' own")
        limits = {"ylim": (2e-3, 1), "xlim": (1010, -10)}
        open_axes(ax, title=title, yscale="log", xlabel="timestep t", **limits)
    axes[0].set_ylabel("mean distance")
    legend_below(fig, axes[0].get_legend_handles_labels()[0], 3)
    return fig


def hop_tradeoff(
    exact: Mapping[int, float], students: Mapping[str, Mapping[int, float]]
) -> CourseFigure:
    """Error to f* at t = 999 over N, of N exact hops and of two trainings' students by title."""
    fig, (ax,) = figure(
        size=(6.2, 3.5),
        alt="Error at t = 999 over the number of hops N, both logarithmic. What N exact hops "
        "leave falls steadily. The trained students lie on it at small N and far above it at "
        "large N, more so the shorter the training.",
    )
    label, blue = "N exact hops: perfect learning", COLORS["student"]
    ax.plot(list(exact), list(exact.values()), color=COLORS["teacher"], lw=1.6, label=label)
    for (title, by_n), (line, fill) in zip(
        students.items(), ((":", "white"), ("-", blue)), strict=True
    ):
        style = {"marker": "s", "ls": line, "mfc": fill, "ms": 6, "lw": 1.6}
        ax.plot(list(by_n), list(by_n.values()), color=blue, label=title, **style)
    open_axes(
        ax, title="fewer hops arrive sooner, and at the wrong place", legend="lower left",
        xscale="log", yscale="log", ylim=(2e-3, 2), xlabel="number of hops N",
        ylabel="distance to f* at t = 999",
    )  # fmt: skip
    ax.set_xticks(list(exact), [str(n) for n in exact])
    ax.xaxis.set_minor_locator(NullLocator())
    return fig


def _colorbar(fig: CourseFigure, image: object, ax: Axes, label: str) -> None:
    bar = fig.colorbar(image, ax=ax, shrink=0.85, ticks=_TICKS)
    bar.ax.yaxis.set_major_formatter(ScalarFormatter())
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=9)

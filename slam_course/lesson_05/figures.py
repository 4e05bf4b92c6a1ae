r"""Figures of lesson 05: distilled students and the study in the plane.

Students keep their colour and marker in all figures: consistency distillation light blue, SLAM
blue, SLAM with the chord continued purple, the random hop black; solvers of the exact teacher are
vermilion, as everywhere. An error is the distance between the student's end
:math:`f_\theta(x, t)` and the exact one, :math:`f^*(x, t)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter
from torch import Tensor

from slam_course.figures import (
    COLORS,
    Animation,
    CourseFigure,
    band,
    field,
    figure,
    legend_below,
    open_axes,
    plane,
    points,
    ratio_plot,
)
from slam_course.lesson_05.students import CHECKPOINTS
from slam_course.results import STEPS, TIMES, Ratio, ToyResults, ToySetting

LABELS = {
    "CD": "consistency distillation",
    "SLAM": r"SLAM, $\gamma \leq 1$",
    "SLAM, gamma = 2": r"SLAM, $\gamma = 2$",
    "SLAM, gamma in [1.5, 3]": r"SLAM, $\gamma \in [1.5, 3]$",
    "random hop": "random hop",
    "DDIM": "exact teacher, DDIM",
    "DPM-Solver++": "exact teacher, DPM-Solver++",
    "DPM-Solver++, even in log rho": r"exact teacher, DPM-Solver++, even $\log\rho$",
}
"""How methods are called in figures; others by their own name."""

_SKY = "#56B4E9"
STYLES: dict[str, dict[str, Any]] = {
    "CD": {"color": _SKY, "marker": "o", "ls": "--"},
    "SLAM": {"color": COLORS["student"], "marker": "s", "ls": "-"},
    "SLAM, gamma = 2": {"color": COLORS["chord"], "marker": "D", "ls": "-"},
    "SLAM, gamma in [1.5, 3]": {"color": "#8a3a66", "marker": "v", "ls": ":"},
    "random hop": {"color": COLORS["data"], "marker": "x", "ls": ":"},
    "DDIM": {"color": COLORS["teacher"], "marker": "o", "ls": "-"},
    "DPM-Solver++": {"color": "#f0a35e", "marker": "D", "ls": "-."},
    "DPM-Solver++, even in log rho": {"color": "#7a3600", "marker": "^", "ls": ":"},
}
"""Colour, marker and line of every method."""

_METRICS = {
    **{f"sw_{n}": f"distance to the data, {n} step{'s' * (n > 1)}" for n in STEPS},
    **{f"map_{t}": f"error to f* at t = {t}" for t in TIMES},
}

_LIMIT = 2.6
_GREY = "#cfcfcf"


def sample_grid(
    samples: Mapping[str, Mapping[int, Tensor]],
    data: Tensor,
    notes: Mapping[str, Mapping[int, float]],
) -> CourseFigure:
    """Samples of several methods at several numbers of steps, over the data in light grey.

    ``samples`` and ``notes``, the distances to the data ``(n, 2)``, are by method, then by steps.
    """
    steps = list(next(iter(samples.values())))
    best = min((row[steps[0]], name) for name, row in notes.items())
    fig, axes = figure(
        len(steps),
        len(samples),
        size=(2.05, 2.2),
        alt=f"A grid of scatter plots: {', '.join(samples)} in rows, {steps} steps in columns. "
        f"With one step {best[1]} is closest to the data, at {best[0]:.2f}.",
    )
    grid = axes.reshape(len(samples), len(steps))
    for row, (name, by_steps) in zip(grid, samples.items(), strict=True):
        color = style_of(name)["color"]
        for ax, (n, x) in zip(row, by_steps.items(), strict=True):
            title = f"{n} step{'s' * (n > 1)}" if ax in grid[0] else ""
            points(plane(ax, title, _LIMIT), data, _GREY, size=1.2, alpha=0.8)
            points(ax, x, color, size=1.2, alpha=0.6)
            ax.set_xlabel(f"distance {notes[name][n]:.3f}", fontsize=8.5)
        row[0].set_ylabel(_two_lines(LABELS.get(name, name)), fontsize=9, color=color)
    return fig


def _two_lines(name: str) -> str:
    """A label broken at the space or comma next to its middle."""
    cuts = [i for i, c in enumerate(name) if c == " " and name.count("$", 0, i) % 2 == 0]
    if not cuts or len(name) < 16:
        return name
    cut = min(cuts, key=lambda i: abs(i - len(name) / 2))
    return name[:cut] + "\n" + name[cut + 1 :]


# -------------------------------------------------------------------- errors


def error_maps(
    maps: Mapping[str, Tensor], data: Tensor, t: int, *, limit: float, most: float
) -> CourseFigure:
    r"""The error to f* at timestep t over the plane of :math:`x_t`, one panel per student.

    Args:
        maps: for each student, errors on :func:`slam_course.figures.grid_points`, ``(n * n,)``.
        data: samples at timestep t, shape ``(B, 2)``.
        t: timestep.
        limit: half-width of the plane, as of the grid.
        most: error at the end of the colour scale.
    """
    said = ", ".join(f"{name} {values.mean():.2f}" for name, values in maps.items())
    fig, axes = figure(
        len(maps),
        size=(2.9, 3.2),
        alt=f"Error to the exact solution map at t = {t} over the plane, darker where it is "
        f"larger: thin lines where neighbouring points go to different ends. Mean errors: {said}.",
    )
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        plane(ax, LABELS.get(name, name), limit)
        image = field(ax, values, limit=limit, cmap="magma_r", interpolation="nearest", vmin=0,
                      vmax=most)  # fmt: skip
        points(ax, data[:300], COLORS["noise"], size=1.5, alpha=0.9)
        ax.set_xlabel(f"mean error {values.mean():.2f}", fontsize=9)
    bar = fig.colorbar(image, ax=list(axes), shrink=0.75, pad=0.01)
    bar.set_label("distance to the exact end", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return fig


def errors_along(
    per_t: Mapping[str, Mapping[int, float]],
    per_gamma: Mapping[str, Mapping[float, float]],
    t: int,
) -> CourseFigure:
    """Mean error to f* over the timestep, and over gamma along the chords from t."""
    fig, (left, right) = figure(
        2,
        size=(4.3, 3.4),
        alt="Two plots of the error to the exact solution map. Left, over the timestep: it grows "
        "with t, for all students alike. Right, along one chord over gamma: nearly level.",
    )
    for ax, curves in ((left, per_t), (right, per_gamma)):
        for name, curve in curves.items():
            x, y = list(curve), list(curve.values())
            ax.plot(x, y, ms=4, lw=1.6, label=LABELS.get(name, name), **style_of(name))
        ax.set_ylim(bottom=0)
    title = "over the timestep"
    open_axes(left, 8.5, title=title, xlim=(1010, -10), xlabel="timestep t")
    left.set_ylabel("mean distance to the exact end")
    right.axvline(1, color=_GREY, lw=1, zorder=0)
    open_axes(right, 8.5, title=f"along the chords from t = {t}", xlabel=r"$\gamma$")
    left.legend(frameon=False, fontsize=8.5, loc="lower left")
    return fig


# -------------------------------------------------------------------- learning


def learning_figure(
    samples: Tensor, errors: Mapping[int, float], data: Tensor, update: int, name: str
) -> CourseFigure:
    """One moment of a student's training: samples (B, 2) in one step, its error by timestep."""
    fig, (left, right) = figure(
        2,
        size=(2.7, 2.7),
        alt=f"{name} after {update} updates: samples in one step, and the error to the exact "
        f"solution map over the timestep, {errors[max(errors)]:.2f} at the noisy end.",
    )
    style = style_of(name)
    points(plane(left, f"one step, after {update} updates", _LIMIT), data, _GREY, size=1.2)
    points(left, samples, style["color"], size=1.4, alpha=0.6)
    right.plot(list(errors), list(errors.values()), ms=4, lw=1.6, **style)
    title = "error to the exact end"
    open_axes(right, 8.5, title=title, xlim=(1010, -10), ylim=(0, 1.3), xlabel="timestep t")
    return fig


def learning(
    moments: Mapping[int, tuple[Tensor, Mapping[int, float]]],
    data: Tensor,
    name: str,
    *,
    milliseconds: int = 350,
) -> Animation:
    """An animation of a student that learns: :func:`learning_figure` by number of updates."""
    frames = [learning_figure(x, e, data, update, name) for update, (x, e) in moments.items()]
    ends = [errors[max(errors)] for _, errors in moments.values()]
    return Animation(
        frames,
        milliseconds=milliseconds,
        alt=f"{name} learns: its error at the noisy end falls from {ends[0]:.1f} to "
        f"{ends[-1]:.1f}; low timesteps become right first, and the noisy end last.",
    )


def arrival(
    errors: Mapping[str, Mapping[int, Sequence[float]]], times: Sequence[int], alt: str
) -> CourseFigure:
    """Error to f* over updates, a line per student, a panel for each timestep of ``times``."""
    fig, axes = figure(len(times), size=(8.8 / len(times), 3.3), alt=alt)
    for i, (ax, t) in enumerate(zip(axes, times, strict=True)):
        for name, curve in errors.items():
            style = {**STYLES.get(name, style_of(name)), "marker": ""}
            y = [values[i] for values in curve.values()]
            ax.plot(list(curve), y, lw=1.7, label=LABELS.get(name, name), **style)
        open_axes(ax, 8.5, title=f"t = {t}", xlabel="updates", ylim=(0, None))
    axes[0].set_ylabel("mean distance to the exact end")
    axes[-1].legend(frameon=False, fontsize=8.5, loc="upper right")
    return fig


def steps_against_quality(
    results: ToyResults,
    settings: Mapping[str, ToySetting],
    data: Sequence[str],
    floor: Mapping[str, float],
) -> CourseFigure:
    """Sliced Wasserstein distance over the number of steps, one panel per data set.

    A line is the geometric mean over the seeds, the band around it their smallest and largest;
    ``floor`` is the distance between two samples of each data set.
    """
    fig, axes = figure(
        len(data),
        size=(2.7, 3.5),
        sharey=True,
        alt="Distance to the data over 1, 2, 4 and 8 steps, one panel per data set. The solvers "
        "of the exact teacher start far above and fall; the students lie near the floor at every "
        "number of steps.",
    )
    for ax, name in zip(axes, data, strict=True):
        for method, setting in settings.items():
            found = [results.values(setting, [name], f"sw_{n}") for n in STEPS]
            each = [list(values.values()) for values in found]
            curve = dict(zip(STEPS, each, strict=True))
            band(ax, curve, LABELS.get(method, method), lw=1.6, **style_of(method))
        ax.axhline(floor[name], color="#8c8c8c", lw=1, ls="-", zorder=0)
        ax.set(xscale="log", yscale="log", xlabel="steps")
        ax.set_xticks(STEPS, [str(n) for n in STEPS])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(name.replace("_", " "), fontsize=10)
        _numbers(ax, (0.02, 0.05, 0.1, 0.2, 0.5, 1))
        open_axes(ax, 8.5)
    axes[0].set_ylabel("sliced Wasserstein distance")
    axes[0].text(1, 0.96 * floor[data[0]], "floor", fontsize=8, va="top", color="#555555")
    legend_below(fig, axes[0].get_legend_handles_labels()[0], 3)
    return fig


# -------------------------------------------------------------------- ratios


def ratios(found: Mapping[str, Mapping[str, Ratio]], title: str = "") -> CourseFigure:
    """Ratios with their intervals, a row for each comparison, a panel for each metric."""
    return ratio_plot(
        found,
        {metric: _short(metric) for row in found.values() for metric in row},
        lambda name: style_of(name.split(";")[0].split(" / ")[0])["color"],
        LABELS,
        title=title,
    )


def _short(metric: str) -> str:
    kind, number = metric.split("_")
    if kind == "sw":
        return f"distance,\n{number} step{'s' * (number != '1')}"
    return f"error to f*,\nt = {number}"


# -------------------------------------------------------------------- a quantity that is swept


def _over(
    curves: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    xlabel: str,
    alt: str,
    ticks: Sequence[float],
    floor: Mapping[str, float],
) -> CourseFigure:
    """Metrics over a quantity: ``curves`` by metric, by method, by x, the values of the seeds."""
    level = float(np.exp(np.mean(np.log(list(floor.values())))))
    fig, axes = figure(len(curves), size=(8.8 / len(curves), 3.6), alt=alt)
    for ax, (metric, by_method) in zip(axes, curves.items(), strict=True):
        for method, values in by_method.items():
            band(ax, values, LABELS.get(method, method), lw=1.6, **style_of(method))
        if metric.startswith("sw"):
            ax.axhline(level, color="#8c8c8c", lw=1, zorder=0)
            ax.text(ticks[0], 0.97 * level, "floor", fontsize=8, va="top", color="#555555")
        ax.set(xscale="log", yscale="log", xlabel=xlabel)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(_METRICS[metric], fontsize=10)
        _numbers(ax, (0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1))
        open_axes(ax, 8.5)
    legend_below(fig, axes[0].get_legend_handles_labels()[0], 3)
    return fig


def over_subpaths(
    results: ToyResults,
    settings: Mapping[str, ToySetting],
    data: Sequence[str],
    floor: Mapping[str, float],
) -> CourseFigure:
    """Distances and error over the number of sub-paths, of settings such as ``SUBPATHS``."""
    curves: dict[str, dict[str, dict[float, list[float]]]] = {}
    for metric in ("sw_1", "sw_4", "map_999"):
        curves[metric] = {}
        for name, setting in settings.items():
            values = results.by_seed(setting, data, metric)
            curves[metric].setdefault(name.split(";")[0], {})[setting.subpaths] = values
    return _over(
        curves,
        "number N of sub-paths",
        "Three plots over the number of sub-paths: distance at 1 and 4 steps and error to the "
        "exact solution map. With few sub-paths all methods are worse, and the continued chord "
        "least so.",
        sorted({setting.subpaths for setting in settings.values()}),
        floor,
    )


def over_updates(
    results: ToyResults,
    settings: Mapping[str, ToySetting],
    data: Sequence[str],
    floor: Mapping[str, float],
) -> CourseFigure:
    """Distances and error over the number of updates, of settings such as ``BUDGET``."""
    times = (*CHECKPOINTS, next(iter(settings.values())).updates)
    curves = {
        metric: {
            name: {after: results.by_seed(setting, data, metric, after) for after in times}
            for name, setting in settings.items()
        }
        for metric in ("sw_1", "sw_4", "map_999")
    }
    return _over(
        curves,
        "updates",
        "Three plots over the number of updates: distance at 1 and 4 steps and error to the exact "
        "solution map. The continued chord falls first, then consistency distillation, then SLAM "
        "with gamma up to 1; in the end the curves come close.",
        times[::2],
        floor,
    )


# -------------------------------------------------------------------- parts


def style_of(method: str) -> dict[str, Any]:
    """The style of a method, of its first word for a variant, else that of any student."""
    if method in STYLES:
        return STYLES[method]
    family = method.split(",")[0]
    return STYLES.get(family, {"color": COLORS["student"], "marker": "o", "ls": "-"})


def _numbers(ax: Axes, ticks: Sequence[float]) -> None:
    low, high = ax.get_ylim()
    ax.set_yticks([tick for tick in ticks if low <= tick <= high])
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_locator(NullLocator())

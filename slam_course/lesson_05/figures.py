r"""Figures of lesson 05: distilled students and the study in the plane.

Students keep their colour and marker in all figures: consistency distillation light blue, SLAM
(paper) blue, SLAM with the slope of the middle purple; the exact teacher is vermilion, as
everywhere. An error is the distance between the student's end
:math:`f_\theta(x, t)` and the exact one, :math:`f^*(x, t)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter
from torch import Tensor

from slam_course.family.results import Choice, Results
from slam_course.family.training import STEPS, TIMES
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
from slam_course.results import Ratio

_SKY = "#56B4E9"
STYLES: dict[str, dict[str, Any]] = {
    "consistency distillation": {"color": _SKY, "marker": "o", "ls": "--"},
    "SLAM (paper)": {"color": COLORS["student"], "marker": "s", "ls": "-"},
    "SLAM, level-conditioned": {"color": "#004b7a", "marker": "^", "ls": ":"},
    "SLAM, middle slope": {"color": COLORS["chord"], "marker": "D", "ls": "-"},
    "exact teacher, DDIM": {"color": COLORS["teacher"], "marker": "o", "ls": "-"},
}
"""Colour, marker and line of every method that the lesson draws."""

_METRICS = {
    **{f"sw_{n}": f"distance to the data, {n} step{'s' * (n > 1)}" for n in STEPS},
    **{f"off_{n}": f"share off the support, {n} step{'s' * (n > 1)}" for n in STEPS},
    **{f"map_{t}": f"error to f* at t = {t}" for t in TIMES},
}

_LIMIT = 2.6
_GREY = "#cfcfcf"


def sample_grid(
    samples: Mapping[str, Mapping[int, Tensor]],
    data: Tensor,
    notes: Mapping[str, Mapping[int, tuple[float, float]]],
) -> CourseFigure:
    """Samples of several methods at several numbers of steps, over the data in light grey.

    ``samples`` and ``notes``, their distances to the data ``(n, 2)`` and shares off the support,
    are by method, then by steps.
    """
    steps = list(next(iter(samples.values())))
    best = min((row[steps[0]], name) for name, row in notes.items())
    fig, axes = figure(
        len(steps),
        len(samples),
        size=(2.05, 2.2),
        alt=f"A grid of scatter plots: {', '.join(samples)} in rows, {steps} steps in columns. "
        f"With one step {best[1]} is closest to the data, at {best[0][0]:.2f}.",
    )
    grid = axes.reshape(len(samples), len(steps))
    for row, (name, by_steps) in zip(grid, samples.items(), strict=True):
        color = style_of(name)["color"]
        for ax, (n, x) in zip(row, by_steps.items(), strict=True):
            title = f"{n} step{'s' * (n > 1)}" if ax in grid[0] else ""
            points(plane(ax, title, _LIMIT), data, _GREY, size=1.2, alpha=0.8)
            points(ax, x, color, size=1.2, alpha=0.6)
            distance, off = notes[name][n]
            ax.set_xlabel(f"distance {distance:.2f}, off {100 * off:.0f} %", fontsize=8.5)
        row[0].set_ylabel(_two_lines(name), fontsize=9, color=color)
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
    # Rounded to what another processor gives as well.
    about = {name: round(20 * values.mean().item()) / 20 for name, values in maps.items()}
    said = ", ".join(f"{name} {error:.2f}" for name, error in about.items())
    fig, axes = figure(
        len(maps),
        size=(2.9, 3.2),
        alt=f"Error to the exact solution map at t = {t} over the plane, darker where it is "
        f"larger: thin lines where neighbouring points go to different ends. Mean errors, about: "
        f"{said}.",
    )
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        plane(ax, name, limit)
        image = field(ax, values, limit=limit, cmap="magma_r", interpolation="nearest", vmin=0,
                      vmax=most)  # fmt: skip
        points(ax, data[:300], COLORS["noise"], size=1.5, alpha=0.9)
        ax.set_xlabel(f"mean error {values.mean():.2f}", fontsize=9)
    bar = fig.colorbar(image, ax=list(axes), shrink=0.75, pad=0.01)
    bar.set_label("distance to the exact end", fontsize=9)
    bar.ax.tick_params(labelsize=8)
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
            ax.plot(list(curve), y, lw=1.7, label=name, **style)
        open_axes(ax, 8.5, title=f"t = {t}", xlabel="updates", ylim=(0, None))
    axes[0].set_ylabel("mean distance to the exact end")
    axes[-1].legend(frameon=False, fontsize=8.5, loc="upper right")
    return fig


# -------------------------------------------------------------------- ratios


def ratios(found: Mapping[str, Mapping[str, Ratio]], title: str = "") -> CourseFigure:
    """Ratios with their intervals, a row for each comparison, a panel for each metric."""
    shown = {metric: _short(metric) for row in found.values() for metric in row}
    return ratio_plot(found, shown, lambda name: style_of(name.split(";")[0])["color"], {},
                      title=title)  # fmt: skip


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
            band(ax, values, method, lw=1.6, **style_of(method))
        if metric.startswith("sw"):
            ax.axhline(level, color="#8c8c8c", lw=1, zorder=0)
            ax.text(ticks[0], 1.02 * level, "floor", fontsize=8, va="bottom", color="#555555")
        ax.set(xscale="log", yscale="log", xlabel=xlabel)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(_METRICS[metric], fontsize=10)
        _numbers(ax, (0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1))
        open_axes(ax, 8.5)
    legend_below(fig, axes[0].get_legend_handles_labels()[0], 3)
    return fig


def over(
    field: str,
    results: Results,
    settings: Sequence[Choice],
    data: Sequence[str],
    floor: Mapping[str, float],
    metrics: Sequence[str] = ("sw_1", "off_1", "map_999"),
) -> CourseFigure:
    """Measures over ``"subpaths"`` or ``"cost"``, a line a method: mean of seeds, band of all."""
    curves: dict[str, dict[str, dict[float, list[float]]]] = {}
    for metric in metrics:
        curves[metric] = {}
        for setting in settings:
            values = results.by_seed(setting, data, metric)
            if values:
                curves[metric].setdefault(setting.method, {})[getattr(setting, field)] = values
    ticks = sorted({getattr(setting, field) for setting in settings})
    first = {m: {x: np.mean(v) for x, v in c.items()} for m, c in curves[metrics[0]].items()}
    said = "; ".join(
        f"{m} from {curve[min(curve)]:.2f} at {min(curve):g} to {curve[max(curve)]:.2f} at "
        f"{max(curve):g}" for m, curve in first.items()
    )  # fmt: skip
    xlabel = {"subpaths": "number N of sub-paths", "cost": "evaluations over the batch"}[field]
    alt = f"Plots over the {xlabel}. {_METRICS[metrics[0]]}: {said}."
    return _over(curves, xlabel, alt, ticks, floor)


# -------------------------------------------------------------------- parts


def style_of(method: str) -> dict[str, Any]:
    """The style of a method, that of any student for one that the lesson does not draw."""
    return STYLES.get(method, {"color": COLORS["student"], "marker": "o", "ls": "-"})


def _numbers(ax: Axes, ticks: Sequence[float]) -> None:
    low, high = ax.get_ylim()
    ax.set_yticks([tick for tick in ticks if low <= tick <= high])
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_locator(NullLocator())

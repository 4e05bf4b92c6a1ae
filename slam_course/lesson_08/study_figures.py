r"""Figures of the distilled digits (lessons 07 and 08, the report of the students' study).

Students keep their colour, marker and line in all figures: consistency distillation light blue,
its random hop black, SLAM with levels blue, the chord continued to gamma = 2 purple, the students
that are told gamma dark; solvers of the teacher are vermilion, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator, NullLocator

from slam_course.figures import COLORS, CourseFigure, figure
from slam_course.lesson_05.study_figures import ratios
from slam_course.lesson_08.digit_figures import SAMPLER_NAMES
from slam_edu.digits.students.plan import (
    CD,
    CONTINUED,
    HALF_ONE,
    OFFICIAL,
    RANDOM_HOP,
    SLAM,
    SMOOTH,
    START,
)
from slam_edu.toy.study.report import Ratio

_GREY = "#8c8c8c"

STYLES: dict[str, dict[str, Any]] = {
    START: {"color": _GREY, "marker": "+", "ls": ":"},
    CD: {"color": "#56B4E9", "marker": "o", "ls": "--"},
    RANDOM_HOP: {"color": COLORS["data"], "marker": "x", "ls": ":"},
    SLAM: {"color": COLORS["student"], "marker": "s", "ls": "-"},
    CONTINUED: {"color": COLORS["chord"], "marker": "D", "ls": "-"},
    OFFICIAL: {"color": "#5b2c83", "marker": "v", "ls": "-."},
    HALF_ONE: {"color": "#8a3a66", "marker": "^", "ls": ":"},
    SMOOTH: {"color": "#0b3d5c", "marker": "P", "ls": "--"},
    "ddim": {"color": COLORS["teacher"], "marker": "o", "ls": "-"},
    "dpmpp_2m": {"color": "#f0a35e", "marker": "D", "ls": "-."},
}
"""Colour, marker and line of every student and solver."""

LABELS = {
    **{name: f"teacher, {label}" for name, label in SAMPLER_NAMES.items()},
    HALF_ONE: "the same, half of the gammas at 1",
    CONTINUED: r"SLAM, $\gamma = 2$",
}
"""How they are called in figures; others by their own name."""

Curves = Mapping[str, Mapping[float, Sequence[float]]]


def style_of(name: str) -> dict[str, Any]:
    """Colour, marker and line of a student or solver, or those of any student."""
    return STYLES.get(name, {"color": COLORS["student"], "marker": "o", "ls": "-"})


# -------------------------------------------------------------------- quality


def over_calls(
    panels: Mapping[str, Curves], teacher: Mapping[str, float], alt: str
) -> CourseFigure:
    """Quality over network calls for students and solvers; logarithmic, lower is better.

    A line is the geometric mean over seeds, the band around it their smallest and largest.

    Args:
        panels: for each title, for each student or solver, its values over seeds by the number of
            calls an image; all above 0.
        teacher: for each title the teacher's value at 50 steps, a broad grey line.
        alt: what is to be seen.
    """
    fig, axes = figure(len(panels), size=(9.0 / len(panels), 4.4), alt=alt)
    calls = sorted({n for curves in panels.values() for curve in curves.values() for n in curve})
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, curve in curves.items():
            _with_band(ax, name, curve)
        ax.axhline(teacher[title], color="#c0c0c0", lw=2, zorder=0, label="teacher, 50 steps")
        ax.set(xscale="log", yscale="log", xlabel="network calls an image")
        ax.set_xticks(calls, [f"{n:g}" for n in calls])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(title, fontsize=9.5)
        _plain(ax.yaxis)
        _open(ax)
    _legend_below(fig, axes[0])
    return fig


def map_errors(panels: Mapping[str, Curves], alt: str) -> CourseFigure:
    """Errors to the teacher's solution map over the timestep, noisy to clean.

    Args:
        panels: for each title, for each student, its values over seeds by timestep.
        alt: what is to be seen.
    """
    fig, axes = figure(len(panels), size=(9.0 / len(panels), 4.2), alt=alt)
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, curve in curves.items():
            _with_band(ax, name, curve)
        times = sorted({t for curve in curves.values() for t in curve}, reverse=True)
        ax.set(xlim=(times[0] + 40, times[-1] - 40), yscale="log", xlabel="timestep t")
        ax.set_xticks(times, [f"{t:g}" for t in times])
        ax.set_title(title, fontsize=9.5)
        _plain(ax.yaxis)
        _open(ax)
    _legend_below(fig, axes[0])
    return fig


def student_ratios(
    found: Mapping[str, Mapping[str, Ratio]], panels: Mapping[str, str], title: str = ""
) -> CourseFigure:
    """Ratios to consistency distillation with 95 % intervals; see :func:`study.ratios`.

    Args:
        found: for each comparison its ratio by metric, the same metrics in every row.
        panels: what the metrics are called.
        title: of the figure.
    """
    every = [ratio for row in found.values() for ratio in row.values()]
    ends = [end for r in every for end in (r.value, r.low, r.high)]
    wide = np.nanmax(ends) / np.nanmin(ends)
    return ratios(
        {LABELS.get(name, name): row for name, row in found.items()},
        title,
        "ratio; below 1: better than consistency distillation; filled: the 95 % interval is clear "
        "of 1",
        panels=panels,
        color=lambda label: _by_label(label)["color"],
        ticks=(0.5, 0.7, 1, 1.4, 2) if wide < 5 else (0.1, 1, 10, 100),
    )


def _by_label(label: str) -> dict[str, Any]:
    names = {LABELS.get(name, name): name for name in STYLES}
    return style_of(names.get(label, label))


# -------------------------------------------------------------------- why gamma = 1 breaks


def at_gamma_one(
    cosines: Mapping[float, float], told: Mapping[str, Curves], alt: str
) -> CourseFigure:
    r"""The embedding near :math:`\gamma = 1`, and students that are told other gammas.

    Args:
        cosines: between the features of gamma and those of 1, by gamma below 1.
        told: for each title, for each student, errors over seeds by the gamma it is told.
        alt: what is to be seen.
    """
    fig, axes = figure(1 + len(told), size=(9.0 / (1 + len(told)), 3.9), alt=alt)
    left, others = axes[0], axes[1:]
    away = [1 - gamma for gamma in cosines]
    left.plot(away, list(cosines.values()), color=style_of(OFFICIAL)["color"], lw=1.5)
    left.axhline(0, color="#d0d0d0", lw=1, zorder=0)
    left.set(xscale="log", xlabel=r"$1 - \gamma$", ylim=(None, 1.05))
    left.set_title(r"cosine of $e(10 - 10\gamma)$ with $e(0)$", fontsize=9.5)
    left.invert_xaxis()
    _open(left)
    for ax, (title, curves) in zip(others, told.items(), strict=True):
        gammas = sorted({g for curve in curves.values() for g in curve})
        for name, curve in curves.items():
            _with_band(ax, name, {gammas.index(g): values for g, values in curve.items()})
        ax.set_xticks(range(len(gammas)), [f"{g:g}" for g in gammas], rotation=45)
        ax.set(yscale="log", xlabel=r"$\gamma$ that the student is told")
        ax.set_title(title, fontsize=9.5)
        _plain(ax.yaxis)
        _open(ax)
    if len(others):
        _legend_below(fig, others[0])
    return fig


# -------------------------------------------------------------------- learning


def training_curves(
    logs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], alt: str = ""
) -> CourseFigure:
    """Loss and gradient norm over updates, the rows of ``log.csv``.

    Args:
        logs: for each student, for each seed, the rows with ``update``, ``loss`` and
            ``grad_norm``.
        alt: what is to be seen; empty to say what the figure holds.
    """
    said = "; ".join(
        f"{name} from {runs[0][0]['loss']:.2g} to {runs[0][-1]['loss']:.2g}"
        for name, runs in logs.items()
    )
    fig, axes = figure(
        2, size=(4.5, 4.2), alt=alt or f"Training loss and gradient norm over updates: {said}."
    )
    columns = {"loss": "loss", "grad_norm": "norm of the gradient"}
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        for name, runs in logs.items():
            curve: dict[float, list[float]] = {}
            for rows in runs:
                for row in rows:
                    curve.setdefault(row["update"], []).append(row[column])
            _with_band(ax, name, curve, marker="")
        ax.set(yscale="log", xlabel="updates")
        ax.set_title(title, fontsize=9.5)
        _plain(ax.yaxis)
        _open(ax)
    _legend_below(fig, axes[0])
    return fig


# -------------------------------------------------------------------- parts


def _with_band(
    ax: Axes, name: str, curve: Mapping[float, Sequence[float]], **changes: object
) -> None:
    """A student's line through the geometric means, with a band from least to most."""
    style = {**style_of(name), **changes}
    x = sorted(curve)
    with np.errstate(divide="ignore"):
        middle = [float(np.exp(np.mean(np.log(curve[at])))) for at in x]
    ax.plot(x, middle, ms=4.5, lw=1.5, label=LABELS.get(name, name), **style)
    low, high = [min(curve[at]) for at in x], [max(curve[at]) for at in x]
    ax.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)


def _legend_below(fig: CourseFigure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(
        handles, labels, loc="outside lower center", ncols=2 if len(labels) < 7 else 3,
        frameon=False, fontsize=8.5,
    )  # fmt: skip


def _plain(axis: Axis, most: int = 7) -> None:
    """Round ticks of a logarithmic axis as plain numbers, as many as fit."""
    low, high = axis.get_view_interval()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * power for power in powers for step in steps]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) <= most:
            break
    if len(shown) < 2:  # all values are nearly alike
        shown = [tick for tick in MaxNLocator(3).tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(shown, [f"{tick:.4g}" for tick in shown])
    axis.set_minor_locator(NullLocator())


def _open(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8.5)

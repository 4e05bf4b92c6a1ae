r"""Figures of lesson 08: measures of few images, the teacher's table, the students' study.

Real images are near-black, the teacher vermilion, students blue, as everywhere. In the study's
figures students keep their colour, marker and line: consistency distillation light blue, its
random hop black, SLAM with levels blue, the chord continued to gamma = 2 purple, the students that
are conditioned on gamma dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import NullLocator
from torch import Tensor

from slam_course.figures import (
    COLORS,
    SOLVER_NAMES,
    CourseFigure,
    band,
    figure,
    legend_below,
    open_axes,
    plain_ticks,
    ratio_plot,
)
from slam_course.lesson_08.students import (
    CD,
    CONTINUED,
    HALF_ONE,
    OFFICIAL,
    RANDOM_HOP,
    SLAM,
    SMOOTH,
    START,
    STEPS,
    TEACHER_STEPS,
    TIMES,
    DigitResults,
    best_slam,
    cosines_to_one,
    errors_given,
)
from slam_course.results import Ratio
from slam_edu.digits.evaluate import Scores, Setting

_GREY = "#8c8c8c"
#: Shades of blue for students in one, two and more steps.
_SHADES = ("#56B4E9", COLORS["student"], "#0b3d5c")

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
    **{name: f"teacher, {label}" for name, label in SOLVER_NAMES.items()},
    HALF_ONE: "the same, half of the gammas at 1",
    CONTINUED: r"SLAM, $\gamma = 2$",
}
"""How they are called in figures; others by their own name."""


def style_of(name: str) -> dict[str, Any]:
    """Colour, marker and line of a student or solver, or those of any student."""
    return STYLES.get(name, {"color": COLORS["student"], "marker": "o", "ls": "-"})


# -------------------------------------------------------------------- measures


def over_images(panels: Mapping[str, Mapping[int, Sequence[float]]], alt: str) -> CourseFigure:
    """A measure over the number of images: each small set a dot, their mean a line.

    ``panels`` holds, by measure, by number of images, the value of each set.
    """
    fig, axes = figure(len(panels), size=(4.2, 3.2), alt=alt)
    for ax, (title, found) in zip(axes, panels.items(), strict=True):
        counts = sorted(found)
        for n in counts:
            ax.plot([n] * len(found[n]), found[n], ".", color=COLORS["noise"], ms=5)
        means = [float(np.mean(found[n])) for n in counts]
        ax.plot(counts, means, "-o", color=COLORS["data"], ms=4.5, lw=1.6)
        ax.axhline(0, color="#d0d0d0", lw=1, zorder=0)
        ax.set(xscale="log", xlabel="real images")
        ax.set_xticks(counts, [f"{n:,}" for n in counts])
        ax.xaxis.set_minor_locator(NullLocator())
        open_axes(ax, 8.5, title=title)
    return fig


def spreads(
    found: Mapping[str, Sequence[float]], count: int, measure: str, limits: tuple[float, float]
) -> CourseFigure:
    """Values of a measure on many sets of ``count`` images, one row for each source of images."""
    said = "; ".join(
        f"{name} {np.mean(values):.3g}"
        + (f", spread {np.std(values, ddof=1):.2g}" if len(values) > 1 else "")
        for name, values in found.items()
    )
    fig, (ax,) = figure(
        size=(7.2, 0.95 + 0.52 * len(found)), alt=f"{measure}, sets of {count} images: {said}."
    )
    students = [name for name in found if "student" in name]
    for y, (name, values) in enumerate(found.items()):
        color = COLORS["data"]
        if name in students:
            color = _SHADES[min(students.index(name), len(_SHADES) - 1)]
        # Up and down by turns, so that equal numbers do not hide each other.
        lift = [y + 0.09 * ((i % 5) - 2) for i in range(len(values))]
        ax.plot(values, lift, ".", color=color, ms=6, alpha=0.6)
        ax.plot(np.mean(values), y, "|", color=color, ms=24, mew=2)
    ax.set_yticks(range(len(found)), list(found), fontsize=9)
    ax.set(ylim=(len(found) - 0.4, -0.6), xlim=limits)
    sets = {len(values) for values in found.values()}
    ax.tick_params(axis="y", length=0)
    open_axes(ax, 8.5, title=f"{measure}: {max(sets)} sets of {count} images each")
    return fig


def confusion(counts: Tensor, title: str, alt: str) -> CourseFigure:
    """How often each digit is read as each other one: counts (10, 10), asked for by read."""
    fig, (ax,) = figure(size=(4.4, 4.1), alt=alt)
    wrong = counts.double().clone()
    wrong.fill_diagonal_(0)
    ax.imshow(wrong.numpy(), cmap="Blues", vmin=0, vmax=max(float(wrong.max()), 1.0))
    for i, row in enumerate(counts.tolist()):
        for j, n in enumerate(row):
            if n and i != j:
                dark = n > 0.6 * float(wrong.max())
                ax.text(j, i, f"{n:.0f}", ha="center", va="center", fontsize=8.5,
                        color="white" if dark else COLORS["data"])  # fmt: skip
            elif i == j:
                ax.text(j, i, "·", ha="center", va="center", color=_GREY)
    ax.set_xticks(range(10), range(10))
    ax.set_yticks(range(10), range(10))
    ax.set(xlabel="read", ylabel="asked for")
    ax.set_title(title, fontsize=10)
    ax.tick_params(length=0, labelsize=9)
    return fig


# -------------------------------------------------------------------- the teacher's table


def trade_off(rows: Sequence[tuple[Setting, Scores]], floor: Scores) -> CourseFigure:
    """What guidance gives and takes: rates that are right, and the distance to real images.

    The settings of ``rows`` differ in guidance alone; ``floor`` has the scores of real images.
    """
    rows = sorted(rows, key=lambda row: row[0].guidance)
    w = [setting.guidance for setting, _ in rows]
    nearest = min(rows, key=lambda row: row[1].frechet)
    alt = (
        f"Left: with guidance more images are as asked for. Right: the distance to real images is "
        f"smallest at w = {nearest[0].guidance:g}, {nearest[1].frechet / floor.frechet:.1f} times "
        f"that of other real images, and grows with more guidance."
    )
    fig, (left, right) = figure(2, size=(4.2, 3.2), alt=alt)
    kinds = {"all right": ("all_right", "-", "o"), "digit": ("digit", "--", "s")}
    for name, (field, line, marker) in kinds.items():
        values = [100 * getattr(scores, field) for _, scores in rows]
        left.plot(w, values, line, marker=marker, color=COLORS["teacher"], label=name)
    left.axhline(100 * floor.all_right, color=COLORS["data"], linestyle=":", label="real images")
    left.set_ylabel("as asked for, %")
    left.set_title("What was asked for", fontsize=10)
    right.plot(w, [s.frechet for _, s in rows], "-o", color=COLORS["teacher"], label="teacher")
    right.axhline(floor.frechet, color=COLORS["data"], linestyle=":", label="real images")
    right.axhline(
        5 * floor.frechet, color=COLORS["noise"], linestyle="--", label="five times real images'"
    )
    plain_log(right.yaxis, (0.2, 0.3, 0.5, 1, 2, 3, 5))
    right.set_ylabel("Fréchet distance")
    right.set_title("Distance to held-out real images", fontsize=10)
    for ax in (left, right):
        ax.set_xlabel("guidance w")
        ax.legend(fontsize=8, frameon=False)
        ax.grid(alpha=0.2)
    return fig


# -------------------------------------------------------------------- the study


def calls_figure(results: DigitResults) -> CourseFigure:
    """Quality over network calls for students and solvers; logarithmic, lower is better.

    A broad grey line is the teacher at 50 steps.
    """
    measures = {
        "not as asked for, %": ("wrong", 100),
        "Fréchet distance to the teacher's samples": ("frechet_teacher", 1),
        "Fréchet distance to real images": ("frechet_real", 1),
    }
    best = best_slam(results) or CD
    fig, axes = figure(
        3,
        size=(3.0, 4.4),
        alt=f"Three plots over network calls: images that are not as asked for, distance to the "
        f"teacher's samples, distance to real images. Solvers of the teacher start far above and "
        f"fall; {best} has {100 * results.mean(best, 'wrong_4'):.1f} % wrong at 4 calls.",
    )
    for ax, (title, (metric, scale)) in zip(axes, measures.items(), strict=True):
        curves = {
            name: {
                n: [scale * v for v in results.values(name, f"{metric}_{n}").values()]
                for n in STEPS
            }
            for name in results.names
        }
        for setting, row in results.solvers():
            value = scale * results.number(row, f"{metric}_{setting.calls}")
            if setting.steps == TEACHER_STEPS:
                teacher = value
            else:
                curves.setdefault(setting.sampler, {})[setting.calls] = [value]
        for name, curve in curves.items():
            with_band(ax, name, curve)
        ax.axhline(teacher, color="#c0c0c0", lw=2, zorder=0, label="teacher, 50 steps")
        ax.set(yscale="log", xlabel="network calls an image")
        plain_log(ax.xaxis, sorted({n for curve in curves.values() for n in curve}))
        _study_axes(ax, title)
    study_legend(fig, axes[0])
    return fig


def map_figure(results: DigitResults) -> CourseFigure:
    """Errors to the teacher's solution map over the timestep."""
    top = {name: results.mean(name, f"latent_{TIMES[0]}") for name in results.names}
    least = min(top, key=top.__getitem__)
    fig, axes = figure(
        2,
        size=(4.5, 4.2),
        alt=f"Root mean square errors to the teacher's guided solution map over the timestep, in "
        f"latents and in pixels: they grow with t. At t = {TIMES[0]} the least is "
        f"{top[least]:.2f}, of {least}.",
    )
    for ax, kind in zip(axes, ("latent", "pixel"), strict=True):
        for name in results.names:
            with_band(
                ax, name, {t: list(results.values(name, f"{kind}_{t}").values()) for t in TIMES}
            )
        ax.set(xlim=(TIMES[0] + 40, TIMES[-1] - 40), yscale="log", xlabel="timestep t")
        ax.set_xticks(TIMES, [f"{t:g}" for t in TIMES])
        _study_axes(ax, f"error to the solution map, {kind}s")
    study_legend(fig, axes[0])
    return fig


def student_ratios(
    found: Mapping[str, Mapping[str, Ratio]], panels: Mapping[str, str], title: str = ""
) -> CourseFigure:
    """Ratios to consistency distillation: by student, by metric; ``panels`` names the metrics."""
    every = [ratio for row in found.values() for ratio in row.values()]
    ends = [end for r in every for end in (r.value, r.low, r.high)]
    wide = np.nanmax(ends) / np.nanmin(ends)
    colors = {LABELS.get(name, name): style_of(name)["color"] for name in found}
    return ratio_plot(
        {LABELS.get(name, name): row for name, row in found.items()},
        panels,
        colors.__getitem__,
        {},
        title=title,
        unit="ratio; below 1: better than consistency distillation; filled: the 95 % interval is "
        "clear of 1",
        ticks=(0.5, 0.7, 1, 1.4, 2) if wide < 5 else (0.1, 1, 10, 100),
    )


def gamma_figure(results: DigitResults) -> CourseFigure:
    """Cosines of gamma's features with those of 1, and errors of students given other gammas."""
    curves = {}
    for name in results.names:
        rows = list(results.student(name).values())
        if rows and all(row.gamma for row in rows):
            gammas = [float(g) for g in rows[0].gamma["told"]]
            curves[name] = {g: errors_given(rows, g) for g in sorted(gammas)}
    gammas = (1 - 10.0 ** torch.linspace(-5, 0, 400, dtype=torch.float64)).tolist()
    cosines = cosines_to_one(gammas)
    far = min(g for g, c in zip(gammas, cosines, strict=True) if c > 0.9)
    alt = (
        f"Left: the cosine between the official features of gamma and those of 1 falls below .9 "
        f"at 1 - gamma = {1 - far:.1g}."
    )
    if curves:
        alt += " Right: errors to the solution map by the gamma that a trained student is told."
    panels = 1 + bool(curves)
    fig, (left, *others) = figure(panels, size=(9.0 / panels, 3.9), alt=alt)
    left.plot([1 - gamma for gamma in gammas], cosines, color=style_of(OFFICIAL)["color"], lw=1.5)
    left.axhline(0, color="#d0d0d0", lw=1, zorder=0)
    left.set(xscale="log", xlabel=r"$1 - \gamma$", ylim=(None, 1.05))
    left.set_title(r"cosine of $e(10 - 10\gamma)$ with $e(0)$", fontsize=9.5)
    left.invert_xaxis()
    open_axes(left, 8.5)
    for ax in others:
        given = sorted({g for curve in curves.values() for g in curve})
        for name, curve in curves.items():
            with_band(ax, name, {given.index(g): values for g, values in curve.items()})
        ax.set_xticks(range(len(given)), [f"{g:g}" for g in given], rotation=45)
        ax.set(yscale="log", xlabel=r"$\gamma$ that the student is told")
        _study_axes(ax, "error to the solution map, latents")
        study_legend(fig, ax)
    return fig


# -------------------------------------------------------------------- parts


def with_band(ax: Axes, name: str, curve: Mapping[float, Sequence[float]], **changes: str) -> None:
    """A student's line and band in its own style."""
    band(ax, curve, LABELS.get(name, name), lw=1.5, **{**style_of(name), **changes})


def _study_axes(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=9.5)
    plain_ticks(ax.yaxis)
    open_axes(ax, 8.5)


def study_legend(fig: CourseFigure, ax: Axes) -> None:
    """One legend under the panels, of the first of them."""
    handles, labels = ax.get_legend_handles_labels()
    legend_below(fig, handles, 2 if len(labels) < 7 else 3, 8.5)


def plain_log(axis: Axis, ticks: Sequence[float]) -> None:
    """A logarithmic axis with these ticks, as plain numbers."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())

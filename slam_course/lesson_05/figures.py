r"""Figures of distilled students: samples, errors to the exact solution map, learning (lesson 05).

Students keep the colours that :mod:`slam_course.lesson_05.study_figures` gives them. An error is the distance
between the student's end :math:`f_\theta(x, t)` and the exact one, :math:`f^*(x, t)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from torch import Tensor

from slam_course.figures import COLORS, Animation, CourseFigure, field, figure, plane, points
from slam_course.lesson_05.study_figures import LABELS, STYLES, style_of
from slam_edu._validation import check_count

_LIMIT = 2.6
_GREY = "#cfcfcf"


def sample_grid(
    samples: Mapping[str, Mapping[int, Tensor]],
    data: Tensor,
    notes: Mapping[str, Mapping[int, float]],
) -> CourseFigure:
    """Samples of several methods at several numbers of steps, over the data in light grey.

    Args:
        samples: for each method, for each number of steps, samples of shape ``(B, 2)``.
        data: clean samples, shape ``(n, 2)``.
        notes: for each of them, the distance to the data, written under the panel.
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
        maps: for each student, errors on :func:`slam_course.grid_points`, ``(n * n,)``.
        data: samples at timestep t, shape ``(B, 2)``: where students are asked.
        t: timestep.
        limit: half-width of the plane shown, as of the grid.
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
    r"""Mean error to f* over the timestep, and along the chord of one sub-path over gamma.

    Args:
        per_t: for each student, the error by timestep.
        per_gamma: for each student, the error by gamma.
        t: noisy end of that sub-path.
    """
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
        _open(ax)
    left.set(xlim=(1010, -10), xlabel="timestep t")
    left.set_ylabel("mean distance to the exact end")
    left.set_title("over the timestep", fontsize=10)
    right.set_xlabel(r"$\gamma$")
    right.axvline(1, color=_GREY, lw=1, zorder=0)
    right.set_title(f"along the chords from t = {t}", fontsize=10)
    left.legend(frameon=False, fontsize=8.5, loc="lower left")
    return fig


# -------------------------------------------------------------------- learning


def learning_figure(
    samples: Tensor, errors: Mapping[int, float], data: Tensor, update: int, name: str
) -> CourseFigure:
    """One moment of a student's training: its samples in one step, its error over the timestep.

    Args:
        samples: drawn in one step, shape ``(B, 2)``.
        errors: mean error to f* by timestep.
        data: clean samples, shape ``(n, 2)``.
        update: number of updates so far.
        name: of the student.
    """
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
    right.set(xlim=(1010, -10), ylim=(0, 1.3), xlabel="timestep t")
    right.set_title("error to the exact end", fontsize=10)
    _open(right)
    return fig


def learning(
    moments: Mapping[int, tuple[Tensor, Mapping[int, float]]],
    data: Tensor,
    name: str,
    *,
    milliseconds: int = 350,
) -> Animation:
    """An animation of a student that learns: :func:`learning_figure` at several moments.

    Args:
        moments: for each number of updates, samples in one step and errors by timestep.
        data: clean samples, shape ``(n, 2)``.
        name: of the student.
        milliseconds: that a picture stays.
    """
    check_count(len(moments), "the number of moments")
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
    """Error to f* over updates, a panel per timestep, a line per student.

    Args:
        errors: for each student, for each number of updates, the error at each of ``times``.
        times: timesteps, one panel each.
        alt: what is to be seen.
    """
    fig, axes = figure(len(times), size=(8.8 / len(times), 3.3), alt=alt)
    for i, (ax, t) in enumerate(zip(axes, times, strict=True)):
        for name, curve in errors.items():
            style = {**STYLES.get(name, style_of(name)), "marker": ""}
            y = [values[i] for values in curve.values()]
            ax.plot(list(curve), y, lw=1.7, label=LABELS.get(name, name), **style)
        ax.set_title(f"t = {t}", fontsize=10)
        ax.set(xlabel="updates", ylim=(0, None))
        _open(ax)
    axes[0].set_ylabel("mean distance to the exact end")
    axes[-1].legend(frameon=False, fontsize=8.5, loc="upper right")
    return fig


def _open(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8.5)

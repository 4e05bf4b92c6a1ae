r"""Figures of lesson 08: what measures say of few images, and which digits are mistaken.

Real images are near-black, the teacher vermilion, students blue, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Tensor

from slam_course.figures import COLORS, CourseFigure, figure

_GREY = "#8c8c8c"
#: Shades of blue for students in one, two and more steps.
_SHADES = ("#56B4E9", COLORS["student"], "#0b3d5c")


def over_images(panels: Mapping[str, Mapping[int, Sequence[float]]], alt: str) -> CourseFigure:
    """A measure over the number of images: each small set a dot, their mean a line.

    Args:
        panels: for each measure, for each number of images, what it says of sets of as many.
        alt: what is to be seen.
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
        ax.set_title(title, fontsize=10)
        _open(ax)
    return fig


def spreads(
    found: Mapping[str, Sequence[float]], count: int, measure: str, limits: tuple[float, float]
) -> CourseFigure:
    """What a measure says of many small sets, one row for each source of images.

    Args:
        found: for each source, one number for each of its small sets.
        count: images of a small set.
        measure: its name.
        limits: of the horizontal axis.
    """
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
    ax.set_title(f"{measure}: {max(sets)} sets of {count} images each", fontsize=10)
    ax.tick_params(axis="y", length=0)
    _open(ax)
    return fig


def confusion(counts: Tensor, title: str, alt: str) -> CourseFigure:
    """How often each digit is read as each other one.

    Args:
        counts: of shape (10, 10), rows: asked for, columns: read.
        title: above it.
        alt: what is to be seen.
    """
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


def _open(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8.5)

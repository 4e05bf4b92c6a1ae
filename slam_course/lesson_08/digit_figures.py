"""Figures of drawn digits: grids of images, and the teacher's table as curves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import NullLocator
from torch import Tensor

from slam_course.figures import COLORS, CourseFigure, figure
from slam_edu.digits.evaluate.scores import Scores
from slam_edu.digits.evaluate.table import Setting

#: Names of the samplers in figures and tables.
SAMPLER_NAMES = {"ddim": "DDIM", "dpmpp_2m": "DPM-Solver++ 2M"}


def mosaic(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Images side by side on white, of shape (rows (H + gap) + gap, columns (W + gap) + gap, 3).

    Args:
        images: of shape (B, 3, H, W), in [-1, 1].
        columns: images in a row.
        gap: white pixels between them.

    Returns:
        one picture with values in [0, 1], as matplotlib's ``imshow`` takes it.
    """
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i, image in enumerate((images.float().clamp(-1, 1) + 1) / 2):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, y : y + height, x : x + width] = image
    return sheet.permute(1, 2, 0)


def show_mosaic(ax: Axes, images: Tensor, columns: int, title: str = "") -> Axes:
    """A mosaic on axes without ticks.

    Args:
        ax: where to.
        images: of shape (B, 3, H, W), in [-1, 1].
        columns: images in a row.
        title: above it.
    """
    ax.imshow(mosaic(images, columns).numpy(), interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title, fontsize=10)
    return ax


def prompt_grid(images: Tensor, rows: Sequence[str], columns: Sequence[str]) -> CourseFigure:
    """One image for each pair of a row and a column, their names at the edges.

    Args:
        images: of shape (len(rows) * len(columns), 3, H, W), row by row, in [-1, 1].
        rows: names of the rows.
        columns: names of the columns, two words each at most.
    """
    n, m = len(rows), len(columns)
    names = [name.replace("\n", " ") for name in columns]
    alt = f"{n} by {m} drawn digits: {', '.join(rows)} by {', '.join(names)}."
    fig, (ax,) = figure(size=(0.78 * m + 0.1 * max(map(len, rows)), 0.78 * n + 0.7), alt=alt)
    gap, size = 2, images.shape[-1]
    ax.imshow(mosaic(images, m, gap).numpy(), interpolation="nearest")
    ax.set_xticks([gap + (size + gap) * i + (size - 1) / 2 for i in range(m)], columns, fontsize=8)
    ax.set_yticks([gap + (size + gap) * i + (size - 1) / 2 for i in range(n)], rows, fontsize=9)
    ax.xaxis.tick_top()
    ax.set_anchor("E")  # what equal scales leave over goes to the names on the left
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return fig


def trade_off(rows: Sequence[tuple[Setting, Scores]], floor: Scores) -> CourseFigure:
    """What guidance gives and takes: rates that are right, and the distance to real images.

    Args:
        rows: settings that differ in guidance alone, with their scores.
        floor: the scores of real images.
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
    _plain_log(right.yaxis, (0.2, 0.3, 0.5, 1, 2, 3, 5))
    right.set_ylabel("Fréchet distance")
    right.set_title("Distance to held-out real images", fontsize=10)
    for ax in (left, right):
        ax.set_xlabel("guidance w")
        ax.legend(fontsize=8, frameon=False)
        ax.grid(alpha=0.2)
    return fig


def steps_curve(rows: Sequence[tuple[Setting, Scores]], floor: Scores) -> CourseFigure:
    """Few steps: network calls against images that are as asked for, and against the distance.

    Args:
        rows: settings with their scores, of several samplers.
        floor: the scores of real images.
    """
    alt = "With 16 or fewer network calls, both samplers lose digits and leave the distribution."
    fig, (left, right) = figure(2, size=(4.2, 3.2), alt=alt)
    styles = {"ddim": ("-", "o"), "dpmpp_2m": ("--", "s")}
    for sampler, (line, marker) in styles.items():
        of = sorted((r for r in rows if r[0].sampler == sampler), key=lambda r: r[0].calls)
        calls = [setting.calls for setting, _ in of]
        style = {"color": COLORS["teacher"], "marker": marker, "label": SAMPLER_NAMES[sampler]}
        left.plot(calls, [100 * s.all_right for _, s in of], line, **style)
        right.plot(calls, [s.frechet for _, s in of], line, **style)
    left.set_ylabel("all right, %")
    right.set_ylabel("Fréchet distance")
    right.axhline(floor.frechet, color=COLORS["data"], linestyle=":", label="real images")
    _plain_log(right.yaxis, (0.3, 1, 3, 10, 30))
    for ax in (left, right):
        _plain_log(ax.xaxis, (2, 4, 8, 16, 32, 100))
        ax.set_xlabel("network calls (guidance takes two a step)")
        ax.legend(fontsize=8, frameon=False)
        ax.grid(alpha=0.2)
    return fig


def _plain_log(axis: Axis, ticks: Sequence[float]) -> None:
    """A logarithmic axis with these ticks, as plain numbers."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())

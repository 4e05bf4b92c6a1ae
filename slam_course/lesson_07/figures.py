r"""Figures of lesson 07: a batch's errors over the timestep, a run's log, its grids, rates.

The rows of a log are those of ``log.csv`` (:class:`slam_edu.sd.tracking.RunLog`): dictionaries
with ``update``, ``loss``, ``grad_norm`` and ``loss_bin0`` to ``loss_bin9``, the mean squared error
in each tenth of the timesteps, cleanest first, NaN where a tenth had no sample.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from PIL import Image
from torch import Tensor

from slam_course.figures import (
    COLORS,
    CourseFigure,
    figure,
    legend_below,
    open_axes,
    plain_ticks,
)
from slam_edu.sd.tracking import BIN_COLUMNS

Rows = Sequence[Mapping[str, float]]

_DPI = 96
_STEPS = ((1, 2, 5), (1, 3), (1,))
_GREY = "#8c8c8c"
#: One's own run first; what is wrong with others is said by their names.
_LINES: tuple[dict[str, Any], ...] = (
    {"color": COLORS["student"], "ls": "-"},
    {"color": COLORS["teacher"], "ls": "--"},
    {"color": COLORS["data"], "ls": ":"},
)
#: Colour, line and marker of each kind of network in :func:`rates`, by how its name begins.
_KINDS: dict[str, dict[str, Any]] = {
    "teacher": {"color": COLORS["teacher"], "ls": "-", "marker": "o"},
    "before": {"color": _GREY, "ls": ":", "marker": "v"},
    "after": {"color": COLORS["student"], "ls": "-", "marker": "s"},
    "shipped": {"color": COLORS["data"], "ls": "--", "marker": "D"},
}


# -------------------------------------------------------------------- one batch


def errors_by_timestep(t: Tensor, error: Tensor, alt: str) -> CourseFigure:
    """Each sample's error over its timestep, noise on the left, and the mean of each tenth."""
    fig, (ax,) = figure(size=(6.2, 3.1), alt=alt)
    x, y = t.detach().cpu().double().numpy(), error.detach().cpu().double().numpy()
    ax.scatter(x, y, s=16, color=COLORS["student"], alpha=0.6, linewidths=0, label="one sample")
    edges = np.linspace(0, 1000, 11)
    for i, (low, high) in enumerate(pairwise(edges)):
        inside = y[(x >= low) & (x < high)]
        if len(inside):
            ax.hlines(
                inside.mean(), low, high, color=COLORS["data"], lw=2.2,
                label="mean of a tenth" if not i else None,
            )  # fmt: skip
    title = "squared error between student and target, mean over the latent"
    ax.set(xlim=(1010, -10), yscale="log", xlabel="timestep t")
    plain_ticks(ax.yaxis, 6, _STEPS)
    open_axes(ax, title=title, legend="upper right")
    return fig


# -------------------------------------------------------------------- logs


def beside(
    logs: Mapping[str, Rows], references: Sequence[Rows] = (), alt: str = ""
) -> CourseFigure:
    """Logs of runs beside those of healthy ones: loss, gradient norm, error by timestep.

    The references are one grey band from the least to the most of them. What is not finite is
    left out; its place on the line stays empty. One's own log comes first.
    """
    said = f"Loss, gradient norm and error by timestep of {', '.join(logs)}"
    if len(references) == 1:
        said += ", beside a healthy run in grey"
    elif references:
        said += f", over a grey band of {len(references)} healthy runs"
    fig, axes = figure(3, size=(3.25, 3.4), alt=alt or f"{said}.")
    for ax, column in zip(axes, ("loss", "grad_norm"), strict=False):
        if references:
            curves = np.array([[row[column] for row in rows] for rows in references])
            _band(ax, [row["update"] for row in references[0]], curves)
        for line, rows in zip(_styles(logs), logs.values(), strict=True):
            ax.plot([r["update"] for r in rows], [r[column] for r in rows], lw=1.6, **line)
        ax.set(xscale="log", yscale="log", xlabel="updates")
        plain_ticks(ax.xaxis, 6, _STEPS)
    middles = (np.arange(len(BIN_COLUMNS)) + 0.5) * 1000 / len(BIN_COLUMNS)
    if references:
        _band(axes[2], middles, np.array([late_errors(rows) for rows in references]))
    for line, rows in zip(_styles(logs), logs.values(), strict=True):
        axes[2].plot(middles, late_errors(rows), marker="o", ms=3, lw=1.6, **line)
    axes[2].set(yscale="log", xlabel="timestep t", xlim=(1000, 0))
    titles = ("loss", "norm of the gradient", "squared error, the last third of the log")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=9.5)
        plain_ticks(ax.yaxis, 6, _STEPS)
        open_axes(ax)
    handles, labels = axes[0].get_legend_handles_labels()
    legend_below(fig, handles, len(labels))
    return fig


def late_errors(rows: Rows) -> np.ndarray:
    """Mean squared error in each tenth of the timesteps over a log's last third, cleanest first.

    A tenth that had no sample there is NaN.
    """
    late = rows[len(rows) - -(-len(rows) // 3) :]
    values = np.array([[row[name] for name in BIN_COLUMNS] for row in late])
    finite = np.isfinite(values)
    counts = finite.sum(0)
    sums = np.where(finite, values, 0.0).sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def _styles(logs: Mapping[str, Rows]) -> list[dict[str, Any]]:
    return [{**_LINES[i % len(_LINES)], "label": name} for i, name in enumerate(logs)]


def _band(ax: Axes, x: Sequence[float] | np.ndarray, curves: np.ndarray) -> None:
    """From the least to the most of some curves, of shape (curves, points)."""
    there = np.isfinite(curves).any(0)
    x, curves = np.asarray(x)[there], curves[:, there]
    low, high = np.nanmin(curves, 0), np.nanmax(curves, 0)
    ax.fill_between(x, low, high, color=COLORS["noise"], alpha=0.45, lw=0)
    middle = np.exp(np.nanmean(np.log(curves), 0))
    label = "healthy run" if len(curves) == 1 else "healthy runs"
    ax.plot(x, middle, color=_GREY, lw=1.3, label=label)


# -------------------------------------------------------------------- what was asked for


def rates(curves: Mapping[str, Mapping[int, float]], alt: str) -> CourseFigure:
    """The share of images that are as asked for, by network, by network calls an image.

    A name that begins with "teacher", "before", "after" or "shipped" has its own colour.
    """
    fig, (ax,) = figure(size=(6.2, 3.2), alt=alt)
    for name, curve in curves.items():
        style = next((s for kind, s in _KINDS.items() if name.startswith(kind)), _KINDS["after"])
        ax.plot(
            list(curve), [100 * rate for rate in curve.values()], ms=6, lw=1.7, label=name, **style
        )
    calls = sorted({n for curve in curves.values() for n in curve})
    ax.set(xscale="log", xlabel="network calls an image", ylim=(-3, 104))
    ax.set_xticks(calls, [f"{n:g}" for n in calls])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_title("as asked for: digit, colour and background, per cent", fontsize=10)
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    open_axes(ax)
    return fig


# -------------------------------------------------------------------- grids of a run


def sample_grids(
    paths: Sequence[str | os.PathLike[str]], alt: str, width: int = 900
) -> CourseFigure:
    """Pictures that a run drew on its way (``samples/00000250.png``), one below the other."""
    pictures = []
    for path in map(Path, paths):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        if picture.width > width:
            size = (width, round(picture.height * width / picture.width))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        pictures.append((path.stem, picture))
    wide, title = max(picture.width for _, picture in pictures), 26
    high = sum(picture.height + title for _, picture in pictures)
    fig = CourseFigure(figsize=(wide / _DPI, high / _DPI), dpi=_DPI, alt=alt)
    top = high
    for stem, picture in pictures:
        top -= title + picture.height
        box = (0, top / high, picture.width / wide, picture.height / high)
        ax = fig.add_axes(box)
        ax.imshow(np.asarray(picture), interpolation="nearest")
        ax.set_axis_off()
        ax.set_title(f"after {int(stem):,} updates", fontsize=10, loc="left")
    return fig

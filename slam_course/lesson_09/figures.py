"""Figures of lesson 09: who draws which samples, memory by part, operations, days and money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from slam_course.figures import COLORS, CourseFigure, figure, legend_below, open_axes

if TYPE_CHECKING:
    from slam_course.cost import RunCost
    from slam_edu.sd.plan import MemoryPlan

_GIB = 2**30
_AVERAGE, _GREY = "#56B4E9", "#8c8c8c"
#: Of processes, by rank; a fifth has the first's again.
RANKS = (COLORS["student"], "#E69F00", COLORS["path"], COLORS["chord"])
LIGHT = RANKS[1:]  # white numbers on these have a contrast below 4.5

#: Groups of a plan's parts: their names in the figure, colour, and the parts' names.
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "frozen weights": (COLORS["teacher"], ("teacher's UNet", "base UNet")),
    "student": (COLORS["student"], ("student's UNet", "adapters")),
    "moving average": (_AVERAGE, ("target's UNet", "their average")),
    "optimiser's state": (_GREY, ("optimiser's state",)),
    "gradients": (
        "#c4c4c4", ("gradients", "gradients on their way to other processes"),
    ),
    "activations and copies": (
        COLORS["chord"],
        (
            "activations", "half-precision copies of weights", "autoencoder", "text encoders",
            "working memory",
        ),
    ),
    "libraries (assumed)": ("#ebe3d3", ("libraries and allocator (assumed)",)),
}  # fmt: skip

#: Colours of a sample's parts, as :func:`slam_course.cost.sample_parts` names them.
PARTS = {
    "autoencoder": "#E69F00",
    "text encoders": "#F0E442",
    "teacher": COLORS["teacher"],
    "target": _AVERAGE,
    "student, forward": COLORS["student"],
    "student, backward": "#0b3d5c",
}


# -------------------------------------------------------------------- processes


def who_draws(owners: Mapping[str, Sequence[int]], update: int, alt: str) -> CourseFigure:
    """Which process draws which sample, one row of numbers for each way to divide an update.

    ``owners`` has, by title, the rank that draws sample 0, 1, 2, ...; a line stands between two
    updates.
    """
    [count] = {len(ranks) for ranks in owners.values()}
    fig, (ax,) = figure(size=(9.0, 0.42 * len(owners) + 1.1), alt=alt)
    for row, ranks in enumerate(owners.values()):
        for number, rank in enumerate(ranks):
            color = RANKS[rank % len(RANKS)]
            ax.add_patch(Rectangle((number, row + 0.08), 0.94, 0.84, color=color, lw=0))
            ax.text(
                number + 0.47, row + 0.5, str(rank), ha="center", va="center", fontsize=9,
                color="black" if color in LIGHT else "white",
            )  # fmt: skip
    for edge in range(update, count, update):
        ax.axvline(edge - 0.03, color=COLORS["data"], lw=1.6)
    ax.set(xlim=(-0.1, count), ylim=(len(owners), 0), xlabel="number of the sample")
    ax.set_xticks(np.arange(count) + 0.47, [str(n) for n in range(count)])
    ax.set_yticks(np.arange(len(owners)) + 0.5, list(owners))
    ax.set_title("the process that draws it; a line between two updates", fontsize=10)
    ax.tick_params(length=0, labelsize=9)
    ax.spines[:].set_visible(False)
    return fig


# -------------------------------------------------------------------- memory and operations


def grouped(parts: Mapping[str, int]) -> dict[str, float]:
    """A plan's parts, bytes by name, as GiB by the groups of :data:`GROUPS`."""
    group_of = {part: group for group, (_, names) in GROUPS.items() for part in names}
    sums = dict.fromkeys(GROUPS, 0.0)
    for name, size in parts.items():
        sums[group_of[name]] += size / _GIB
    return sums


def memory_bars(
    plans: Mapping[str, MemoryPlan], cards: Mapping[str, float], alt: str
) -> CourseFigure:
    """Memory of an update's fullest moment by part, one bar a plan, beside what cards have.

    A diamond stands where another phase of the run, encoding or decoding, needs more than that;
    the number is the larger of the two. ``cards`` have their memory in GiB.
    """
    fig, (ax,) = figure(size=(9.2, 0.46 * len(plans) + 1.9), alt=alt)
    for row, plan in enumerate(plans.values()):
        update = plan.update()
        left = 0.0
        for group, size in grouped(update.parts).items():
            ax.barh(row, size, 0.66, left=left, color=GROUPS[group][0], label=group)
            left += size
        most = plan.total() / _GIB
        if most > left:
            ax.plot(most, row, "D", color=COLORS["data"], ms=5, zorder=5)
        label = ax.text(most + 0.8, row, f"{most:.0f}", va="center", fontsize=9, color="#444444")
        label.set_bbox({"fc": "white", "ec": "none", "pad": 1})  # a card's line may be behind it
    for name, gib in cards.items():
        ax.axvline(gib, color=COLORS["data"], lw=1, ls="--", zorder=0)
        ax.text(gib, -0.62, name, ha="center", va="bottom", fontsize=8.5)
    ax.set(ylim=(len(plans) - 0.5, -0.6), xlabel="GiB")
    ax.set_yticks(range(len(plans)), list(plans))
    open_axes(ax)
    _legend_below(fig, ax, 4)
    return fig


def operation_shares(rows: Mapping[str, Mapping[str, float]], alt: str) -> CourseFigure:
    """Where a sample's operations go, in per cent, one bar a row; its sum stands behind it."""
    fig, (ax,) = figure(size=(9.2, 0.46 * len(rows) + 1.5), alt=alt)
    for row, parts in enumerate(rows.values()):
        total, left = sum(parts.values()), 0.0
        for name, count in parts.items():
            share = 100 * count / total
            ax.barh(row, share, 0.66, left=left, color=PARTS[name], label=name)
            if share >= 5:
                ax.text(
                    left + share / 2, row, f"{share:.0f}", ha="center", va="center", fontsize=9,
                    color="#222222" if name in ("autoencoder", "target") else "white",
                )  # fmt: skip
            left += share
        ax.text(101, row, f"{total / 1e12:.1f} TFLOP", va="center", fontsize=9)
    ax.set(xlim=(0, 116), ylim=(len(rows) - 0.5, -0.5), xlabel="per cent of a sample's operations")
    ax.set_xticks(range(0, 101, 20))
    ax.set_yticks(range(len(rows)), list(rows))
    open_axes(ax)
    ax.spines["bottom"].set_bounds(0, 100)
    _legend_below(fig, ax, 4)
    return fig


# -------------------------------------------------------------------- days and money


def run_chart(
    cost: RunCost, flops: float, speed: float, update: int, *, title: str, reference: float = 6.0
) -> CourseFigure:
    """A run among all runs of a model: GPU-days over samples, and its numbers beside them.

    A sample takes ``flops`` operations, a card does ``speed`` of them a second; the dotted lines
    are for half and twice of it. ``update`` are the samples of an update; ``reference``, a line
    across, the paper's GPU-days.
    """
    numbers = {
        "samples an update": _short(update),
        "samples in all": _short(cost.samples),
        "days": _short(cost.days),
        "GPU-days": _short(cost.gpu_days),
        "money": _short(cost.money),
    }
    said = ", ".join(f"{name} {value}" for name, value in numbers.items())
    fig, (ax, table) = figure(2, size=(4.4, 3.3), width_ratios=(1.45, 1), alt=f"{title}: {said}.")
    samples = np.array([1e3, 1e10])
    for factor, style in ((1.0, "-"), (0.5, ":"), (2.0, ":")):
        days = samples * flops / (factor * speed) / 86_400
        ax.plot(samples, days, style, color=COLORS["student"], lw=1.8 if factor == 1 else 1.1)
    ax.axhline(reference, color=COLORS["teacher"], lw=1.2, ls="--")
    ax.text(
        1.15e4, reference * 1.15, f"the paper's {reference:g} GPU-days", fontsize=8.5,
        color=COLORS["teacher"], va="bottom",
    )  # fmt: skip
    ax.plot(
        np.clip(cost.samples, 1e4, 1e9), np.clip(cost.gpu_days, 1e-2, 1e4), "o",
        color=COLORS["data"], ms=9, zorder=5,
    )  # fmt: skip
    ax.set(
        xscale="log", yscale="log", xlim=(1e4, 1e9), ylim=(1e-2, 1e4), xlabel="samples",
        ylabel="GPU-days",
    )  # fmt: skip
    ax.set_yticks([1e-2, 1, 1e2, 1e4], ["0.01", "1", "100", "10,000"])
    ax.set_xticks([1e4, 1e5, 1e6, 1e7, 1e8, 1e9], ["10k", "100k", "1M", "10M", "100M", "1G"])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    open_axes(ax, title=title)
    table.set_axis_off()
    for row, (name, value) in enumerate(numbers.items()):
        y = 0.86 - 0.17 * row
        table.text(0.56, y, value, ha="right", fontsize=14, transform=table.transAxes)
        table.text(0.62, y, name, fontsize=10, color="#555555", transform=table.transAxes)
    return fig


def _short(value: float) -> str:
    """Three digits at most, and a word for thousands and more."""
    for factor, word in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{word}"
    return f"{value:.3g}" if value >= 0.01 or not value else f"{value:.1g}"


# -------------------------------------------------------------------- parts of a figure


def _legend_below(fig: CourseFigure, ax: Axes, columns: int) -> None:
    first: dict[str, Artist] = {}
    for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
        first.setdefault(name, handle)
    legend_below(fig, list(first.values()), columns, 8.5, handlelength=1.1, columnspacing=1.4)

"""Figures of the study in the plane (lesson 05 and the study's report).

Students keep their colour and marker in all figures: consistency distillation light blue, SLAM
blue, SLAM with the chord continued purple, the random hop black; solvers of the exact teacher are
vermilion, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from slam_course.figures import COLORS, CourseFigure, figure
from slam_edu.toy.study.plan import METHODS, Group
from slam_edu.toy.study.run import STEPS, TIMES, Setting

if TYPE_CHECKING:  # the report draws with this module
    from slam_edu.toy.study.report import Ratio, Results

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


# -------------------------------------------------------------------- quality over steps


def steps_against_quality(
    results: Results,
    settings: Mapping[str, Setting],
    data: Sequence[str],
    floor: Mapping[str, float],
    after: int | None = None,
) -> CourseFigure:
    """Sliced Wasserstein distance over the number of steps, one panel per data set.

    A line is the geometric mean over the seeds, the band around it their smallest and largest.

    Args:
        results: of the study.
        settings: by name.
        data: names of the data sets.
        floor: for each of them, the distance between two samples of the data.
        after: updates after which students were measured; None: the end.
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
            found = [results.values(setting, [name], f"sw_{n}", after) for n in STEPS]
            each = [list(values.values()) for values in found]
            style = style_of(method)
            middle = [np.exp(np.mean(np.log(values))) for values in each]
            ax.plot(STEPS, middle, ms=4.5, lw=1.6, label=LABELS.get(method, method), **style)
            low, high = [min(v) for v in each], [max(v) for v in each]
            ax.fill_between(STEPS, low, high, color=style["color"], alpha=0.15, lw=0)
        ax.axhline(floor[name], color="#8c8c8c", lw=1, ls="-", zorder=0)
        ax.set(xscale="log", yscale="log", xlabel="steps")
        ax.set_xticks(STEPS, [str(n) for n in STEPS])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(name.replace("_", " "), fontsize=10)
        _numbers(ax, (0.02, 0.05, 0.1, 0.2, 0.5, 1))
        _open(ax)
    axes[0].set_ylabel("sliced Wasserstein distance")
    axes[0].text(1, 0.96 * floor[data[0]], "floor", fontsize=8, va="top", color="#555555")
    fig.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center", ncols=3, frameon=False, fontsize=9,
    )  # fmt: skip
    return fig


# -------------------------------------------------------------------- ratios


def ratios(
    found: Mapping[str, Mapping[str, Ratio]],
    title: str = "",
    unit: str = "below 1: better",
    *,
    panels: Mapping[str, str] | None = None,
    color: Callable[[str], str] | None = None,
    ticks: Sequence[float] | None = None,
) -> CourseFigure:
    """Ratios with their intervals, a row for each comparison, a panel for each metric.

    Args:
        found: for each comparison, its ratio by metric; the same metrics in every row.
        title: of the figure.
        unit: what the horizontal axis says.
        panels: what the metrics are called; None for those of the study, ``sw_n`` and ``map_t``.
        color: of a comparison, by its name; None for the study's colours.
        ticks: of the horizontal axis; None to choose.
    """
    color = color or (lambda name: style_of(name.split(";")[0].split(" / ")[0])["color"])
    metrics = list(next(iter(found.values())))
    best = {name: min(row.values(), key=lambda r: r.value).value for name, row in found.items()}
    lowest = min(best, key=best.__getitem__)
    fig, axes = figure(
        len(metrics),
        size=(8.6 / len(metrics), 0.9 + 0.3 * len(found)),
        sharey=True,
        sharex=True,
        alt=f"Ratios with 95 % intervals, {len(found)} comparisons by {len(metrics)} measures; a "
        f"line marks 1. The lowest ratio is {best[lowest]:.2f}, of {lowest}.",
    )
    names = list(found)
    for ax, metric in zip(axes, metrics, strict=True):
        for y, name in enumerate(names):
            ratio = found[name][metric]
            its, clear = color(name), ratio.high < 1 or ratio.low > 1
            ax.plot([ratio.low, ratio.high], [y, y], color=its, lw=2.2)
            ax.plot(ratio.value, y, "o", color=its, ms=6, mfc=its if clear else "white")
        ax.axvline(1, color="#8c8c8c", lw=1, zorder=0)
        ax.set(xscale="log", ylim=(len(names) - 0.5, -0.5))
        ax.set_yticks(range(len(names)), [LABELS.get(n, n) for n in names], fontsize=8.5)
        ax.set_title(panels[metric] if panels else _short(metric), fontsize=9)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        _open(ax)
    low, high = axes[0].get_xlim()
    if ticks is None:
        ticks = [0.25, 0.5, 1, 2, 4, 8] if high / low > 2.5 else [0.7, 1, 1.4]
    for ax in axes:
        ax.xaxis.set_major_locator(FixedLocator(ticks))
    fig.suptitle(title, fontsize=10)
    fig.supxlabel(unit, fontsize=9)
    return fig


def _short(metric: str) -> str:
    kind, number = metric.split("_")
    if kind == "sw":
        return f"distance,\n{number} step{'s' * (number != '1')}"
    return f"error to f*,\nt = {number}"


# -------------------------------------------------------------------- a quantity that is swept


def over(
    curves: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    xlabel: str,
    alt: str,
    ticks: Sequence[float],
    floor: float | None = None,
) -> CourseFigure:
    """Metrics over a quantity, both axes logarithmic, with the spread over data sets removed.

    Args:
        curves: for each metric, for each method, for each x the values of the seeds (each a
            geometric mean over the data sets).
        xlabel: what x is.
        alt: what is to be seen.
        ticks: of the horizontal axis.
        floor: of the sliced Wasserstein distance.
    """
    fig, axes = figure(len(curves), size=(8.8 / len(curves), 3.6), alt=alt)
    for ax, (metric, by_method) in zip(axes, curves.items(), strict=True):
        for method, values in by_method.items():
            style = style_of(method)
            x = list(values)
            middle = [np.exp(np.mean(np.log(v))) for v in values.values()]
            ax.plot(x, middle, ms=4.5, lw=1.6, label=LABELS.get(method, method), **style)
            low, high = [min(v) for v in values.values()], [max(v) for v in values.values()]
            ax.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
        if floor is not None and metric.startswith("sw"):
            ax.axhline(floor, color="#8c8c8c", lw=1, zorder=0)
            ax.text(ticks[0], 0.97 * floor, "floor", fontsize=8, va="top", color="#555555")
        ax.set(xscale="log", yscale="log", xlabel=xlabel)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(_METRICS[metric], fontsize=10)
        _numbers(ax, (0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1))
        _open(ax)
    fig.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center", ncols=3, frameon=False, fontsize=9,
    )  # fmt: skip
    return fig


def by_seed(
    results: Results, setting: Setting, data: Sequence[str], metric: str, after: int | None = None
) -> list[float]:
    """For each seed the geometric mean over the data sets, of the seeds that ran on all."""
    values = results.values(setting, data, metric, after)
    seeds = sorted({seed for _, seed in values if all((d, seed) in values for d in data)})
    return [float(np.exp(np.mean([np.log(values[d, seed]) for d in data]))) for seed in seeds]


# -------------------------------------------------------------------- the report's figures


def figures(
    results: Results, group: Group, data: Sequence[str], floor: Mapping[str, float]
) -> dict[str, CourseFigure]:
    """The figures of a group of the study, by the name of their file.

    Args:
        results: of the study.
        group: which.
        data: names of the data sets that are shown.
        floor: for each of them, the distance between two samples of the data.
    """
    return _FIGURES.get(group.name, _only_ratios)(results, group, data, floor)


def _main(
    results: Results, group: Group, data: Sequence[str], floor: Mapping[str, float]
) -> dict[str, CourseFigure]:
    solvers = ("DDIM", "DPM-Solver++", "DPM-Solver++, even in log rho")
    shown = {n: s for n, s in group.settings.items() if n in METHODS or n in solvers}
    drawn = {f"{group.name}_steps": steps_against_quality(results, shown, data, floor)}
    return drawn | _only_ratios(results, group, data, floor)


def _only_ratios(
    results: Results, group: Group, data: Sequence[str], _floor: Mapping[str, float]
) -> dict[str, CourseFigure]:
    found = {}
    for above, below in group.pairs:
        a, b = group.settings[above], group.settings[below]
        name = above if below == "CD" or ";" in below else f"{above} / {below}"
        metrics = ("sw_1", "sw_2", "sw_4", "map_999", "map_499")
        found[name] = {metric: results.ratio(a, b, data, metric) for metric in metrics}
    title = f"{group.title}: ratio to consistency distillation, unless said"
    return {f"{group.name}_ratios": ratios(found, title)}


def _subpaths(
    results: Results, group: Group, data: Sequence[str], floor: Mapping[str, float]
) -> dict[str, CourseFigure]:
    curves: dict[str, dict[str, dict[float, list[float]]]] = {}
    for metric in ("sw_1", "sw_4", "map_999"):
        curves[metric] = {}
        for name, setting in group.settings.items():
            values = by_seed(results, setting, data, metric)
            curves[metric].setdefault(name.split(";")[0], {})[setting.subpaths] = values
    numbers = sorted({setting.subpaths for setting in group.settings.values()})
    drawn = over(
        curves,
        "number N of sub-paths",
        "Three plots over the number of sub-paths: distance at 1 and 4 steps and error to the "
        "exact solution map. With few sub-paths all methods are worse, and the continued chord "
        "least so.",
        numbers,
        float(np.exp(np.mean(np.log(list(floor.values()))))),
    )
    return {"subpaths": drawn}


def _budget(
    results: Results, group: Group, data: Sequence[str], floor: Mapping[str, float]
) -> dict[str, CourseFigure]:
    updates = next(iter(group.settings.values())).updates
    times = (*group.checkpoints, updates)
    curves = {
        metric: {
            name: {after: by_seed(results, setting, data, metric, after) for after in times}
            for name, setting in group.settings.items()
        }
        for metric in ("sw_1", "sw_4", "map_999")
    }
    drawn = over(
        curves,
        "updates",
        "Three plots over the number of updates: distance at 1 and 4 steps and error to the exact "
        "solution map. The continued chord falls first, then consistency distillation, then SLAM "
        "with gamma up to 1; in the end the curves come close.",
        times[::2] if len(times) > 6 else times,
        float(np.exp(np.mean(np.log(list(floor.values()))))),
    )
    return {"budget": drawn}


_Draw = Callable[..., dict[str, CourseFigure]]
_FIGURES: dict[str, _Draw] = {
    "main": _main, "quick": _main, "subpaths": _subpaths, "budget": _budget,
}  # fmt: skip


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


def _open(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8.5)

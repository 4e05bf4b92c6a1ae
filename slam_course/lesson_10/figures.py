r"""Figures of lesson 10: the jumps of nine methods, and the family in the study.

Consistency distillation is light blue, SLAM with the slope of the middle purple, a learner's own
method vermilion, all others blue.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.ticker import NullLocator

from slam_course.family.results import Choice, Results, mean_of
from slam_course.family.training import STEPS
from slam_course.figures import (
    COLORS,
    CourseFigure,
    figure,
    legend_below,
    legend_lines,
    open_axes,
    plain_ticks,
    ratio_plot,
)
from slam_course.results import Ratio
from slam_edu.schedule import Level
from slam_edu.toy import solution_map
from slam_edu.toy.mixture import GaussianMixture

CD, MIDDLE = "consistency distillation", "SLAM, middle slope"
SHORT = {
    CD: "consistency distillation",
    "consistency distillation, hop curriculum": "CD, hop curriculum",
    "consistency distillation, random hop": "CD, random hop",
    "consistency distillation, Heun teacher": "CD, Heun teacher",
    "SLAM, middle slope, gamma uniform": r"SLAM, middle, $\gamma$ uniform",
    "SLAM, middle slope, half of gamma at 1": r"SLAM, middle, half $\gamma$ = 1",
    "SLAM, middle slope, off the grid": "SLAM, middle, off the grid",
    "phased consistency (PCM)": "PCM",
    "piecewise rectified flow (PeRFlow)": "PeRFlow",
    "consistency trajectory (CTM / TCD)": "CTM / TCD",
    "continuous-time consistency (sCM)": "sCM",
}
"""Short names of methods for axes; others are called by their own."""


def color_of(method: str, own: str = "") -> str:
    """The colour of a method by its name."""
    known = {CD: "#56B4E9", MIDDLE: COLORS["chord"], own: COLORS["teacher"]}
    return known.get(method, COLORS["student"])


# -------------------------------------------------------------------- jumps

_T, _M, _S, _P = 2.6, 1.9, 1.2, 0.5  # rho of a hop's ends and middle, and of a phase's end
_START = 0.9  # z at _T
_LINES = {
    "exact trajectory": ("path", "-"),
    "teacher": ("teacher", "-"),
    "target: a copy of the student": ("#7a7a7a", "--"),
    "what the student is taught": ("student", "-"),
}
_MIXTURE = GaussianMixture(torch.tensor([[-1.0], [1.1]], dtype=torch.float64), 0.12)


def _end(rho: float, z: float, until: float = 0.0) -> float:
    """Where the trajectory of two Gaussians on a line through z at rho is at ``until``."""
    at, to = (Level.from_rho(torch.tensor(r, dtype=torch.float64)) for r in (rho, until))
    x = (at.alpha * z).reshape(1, 1)
    return (solution_map(_MIXTURE, x, at, to, tol=1e-6).x / to.alpha).item()


def _slope(rho: float, z: float) -> float:
    """dz/drho there: the teacher's eps."""
    level = Level.from_rho(torch.tensor(rho, dtype=torch.float64))
    return _MIXTURE.predict((level.alpha * z).reshape(1, 1), level).eps.item()


def _jumps() -> dict[str, list[tuple[str, tuple[float, float], tuple[float, float]]]]:
    """By method: who draws a straight line in z, from which (rho, z), to which."""
    teacher, target, student = list(_LINES)[1:]
    t = (_T, _START)
    u, s, p = ((rho, _end(*t, rho)) for rho in (_M, _S, _P))

    def euler(start: tuple[float, float], rho: float) -> tuple[float, float]:
        return rho, start[1] + (rho - start[0]) * _slope(*start)

    def ends(start: tuple[float, float], rho: float = 0.0) -> tuple[float, float]:
        return rho, _end(*start, rho)

    hop, half = euler(t, _S), euler(t, _M)
    fold = euler(half, _S)
    middle = [(rho, u[1] + (rho - _M) * _slope(*u)) for rho in (_T, _S)]
    touch = euler(t, _T - 0.35)
    window = [ends(t, float(rho)) for rho in np.linspace(_T, _P, 9)]
    return {
        "consistency distillation": [
            (teacher, t, hop), (target, hop, ends(hop)), (student, t, ends(hop)),
        ],
        "SLAM, middle slope": [
            (teacher, *middle), (target, middle[1], ends(middle[1])),
            (student, middle[0], ends(middle[1])),
        ],
        "PCM: to the end of a phase": [
            (teacher, t, hop), (target, hop, ends(hop, _P)), (student, t, ends(hop, _P)),
        ],
        "PeRFlow: straight in a window": [
            *((teacher, a, b) for a, b in itertools.pairwise(window)),
            (student, t, window[-1]),
        ],
        "CTM / TCD: from any t to any s": [
            (teacher, t, hop), (target, hop, ends(hop, _P)), (student, t, ends(hop, _P)),
        ],
        "progressive: two steps in one": [
            (teacher, t, half), (teacher, half, fold), (student, t, fold),
        ],
        "shortcut: two jumps in one": [(target, t, s), (target, s, p), (student, t, p)],
        "MeanFlow: slope and its change": [(teacher, t, touch), (student, t, p)],
        "sCM: the hop's limit 0": [(teacher, t, touch), (student, t, ends(t))],
    }  # fmt: skip


def jumps() -> CourseFigure:
    """What teacher, target and student do in nine methods, on one trajectory in z over rho."""
    fig, axes = figure(
        3,
        3,
        size=(2.9, 2.0),
        sharex=True,
        sharey=True,
        alt="Nine panels with the same trajectory in z over rho. Straight lines show where the "
        "teacher is called, what the target adds, and the jump that the student is taught: to "
        "the end of the trajectory, of a phase, of a window, or to any level.",
    )
    rho = np.linspace(0, _T, 60)
    path = [_end(_T, _START, float(r)) for r in rho]
    for ax, (name, lines) in zip(axes, _jumps().items(), strict=True):
        ax.plot(rho, path, color=COLORS["path"], lw=4, alpha=0.35)
        for who, a, b in lines:
            color, style = _LINES[who]
            ax.annotate(
                "", b, a,
                arrowprops={"arrowstyle": "-|>", "color": COLORS.get(color, color), "ls": style,
                            "lw": 1.5, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9},
            )  # fmt: skip
        open_axes(ax, 8, title=name, xlim=(_T + 0.15, -0.1), ylim=(0.42, 1.06))
    for ax in axes[-3:]:
        ax.set_xlabel(r"$\rho$")
    for ax in axes[::3]:
        ax.set_ylabel("z")
    legend_below(fig, legend_lines(_LINES), 4)
    return fig


# -------------------------------------------------------------------- the study


def board(
    results: Results,
    settings: Mapping[str, Choice],
    data: Sequence[str],
    *,
    below: str = CD,
    metrics: Sequence[str] = tuple(f"sw_{n}" for n in STEPS),
    own: str = "",
    title: str = "",
) -> CourseFigure:
    """Paired ratios of all settings to that of ``below``, best mean first."""
    found: dict[str, dict[str, Ratio]] = {}
    for name, setting in settings.items():
        if name != below:
            found[name] = {m: results.ratio(setting, settings[below], data, m) for m in metrics}
    found = dict(sorted(found.items(), key=lambda item: mean_of(
        [ratio.value for ratio in item[1].values()], "ratio")))  # fmt: skip
    panels = {m: _measure(m) for m in metrics}
    return ratio_plot(found, panels, lambda name: color_of(name, own), SHORT, title=title,
                      unit=f"ratio to {SHORT.get(below, below)}; below 1: better")  # fmt: skip


def _measure(metric: str) -> str:
    kind, number = metric.split("_")
    return (
        f"{number} step{'s' * (number != '1')}" if kind == "sw" else f"error to f*, t = {number}"
    )


def over_steps(
    results: Results, settings: Mapping[str, Choice], data: Sequence[str], floor: float,
    kinds: Mapping[str, Sequence[str]],
) -> CourseFigure:  # fmt: skip
    """Distance to the data over the number of steps, a panel for each of ``kinds`` of methods."""
    curves = {
        name: [results.mean(setting, data, f"sw_{n}") for n in STEPS]
        for name, setting in settings.items()
    }
    said = "; ".join(f"{name} from {c[0]:.2f} to {c[-1]:.2f}" for name, c in curves.items())
    fig, axes = figure(
        len(kinds), size=(8.8 / len(kinds), 3.6), sharey=True,
        alt=f"Distance to the data at 1, 2, 4 and 8 steps: {said}.",
    )  # fmt: skip
    for ax, (title, names) in zip(axes, kinds.items(), strict=True):
        for marker, name in zip("osD^vPX*<>", [n for n in names if n in curves], strict=False):
            ax.plot(STEPS, curves[name], marker=marker, ms=5, lw=1.5, label=SHORT.get(name, name),
                    color=color_of(name) if name in (CD, MIDDLE) else None)  # fmt: skip
        ax.axhline(floor, color="#8c8c8c", lw=1, zorder=0)
        ax.annotate("floor", (1, floor), (0, -3), textcoords="offset points", va="top", fontsize=8,
                    color="#6c6c6c")  # fmt: skip
        ax.set(xscale="log", yscale="log")
        ax.set_xticks(STEPS, [str(n) for n in STEPS])
        ax.xaxis.set_minor_locator(NullLocator())
        open_axes(ax, 8.5, title=title, xlabel="steps")
        ax.set_ylim(top=3 * max(map(max, curves.values())))  # room for the names
        ax.legend(frameon=False, fontsize=8, loc="upper right")
        plain_ticks(ax.yaxis)
    axes[0].set_ylabel("distance to the data")
    return fig

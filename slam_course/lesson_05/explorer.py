"""Explorers of lesson 05: students while they learn, and ablations to run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import torch
from torch import Tensor

from slam_course.family import METHODS
from slam_course.family.results import Choice, chosen
from slam_course.family.training import TIMES, reference
from slam_course.figures import CourseFigure, figure, plane, points
from slam_course.lesson_05.figures import learning_figure, style_of
from slam_course.lesson_05.students import Moment, draw, error, follow, off_support
from slam_course.widgets import experiment, explorer
from slam_edu.metrics import sliced_wasserstein
from slam_edu.toy.data import DATASETS


def learning(moments: Mapping[str, Mapping[int, Moment]], data: Tensor) -> ipywidgets.VBox:
    """A menu of students and a slider of updates: samples in one step, and the error over t.

    ``moments`` are by student, then by number of updates, the same for all; ``data`` (n, 2) clean.
    """

    def drawn(student: str, updates: int) -> CourseFigure:
        moment = moments[student][updates]
        return learning_figure(moment.samples, moment.errors, data, updates, student)

    first = next(iter(moments.values()))
    return explorer(drawn, student=tuple(moments), updates=tuple(first))


# -------------------------------------------------------------------- ablations

CD = "consistency distillation"
CHANGES: dict[str, dict[str, object]] = {
    "nothing else": {},
    "5 sub-paths": {"subpaths": 5},
    "50 sub-paths": {"subpaths": 50},
    "100 sub-paths": {"subpaths": 100},
    "EMA rate 0": {"ema_rate": 0.0},
    "EMA rate 0.98": {"ema_rate": 0.98},
    "pseudo-Huber loss": {"loss": "huber"},
    "a learned teacher": {"teacher": "learned"},
}
"""What an ablation changes, by its name in the menu."""


def setting_of(method: str, change: str, updates: int) -> Choice:
    """The chosen setting of a method at N = 10, with one change."""
    found = chosen()[method].replace(subpaths=10, cost=0.0, updates=updates)
    return found.replace(**CHANGES[change])


def ablation_figure(
    on_progress: Callable[[float], None],
    data_set: str,
    method: str,
    change: str,
    updates: int,
    steps: int = 1,
    seed: int = 0,
) -> CourseFigure:
    """Train consistency distillation and a method with one of :data:`CHANGES`, and draw both.

    ``on_progress`` is called with the share that is done, from 0 to 1; each makes ``updates``.
    """
    compared = {
        CD: setting_of(CD, "nothing else", updates),
        f"{method}, {change}": setting_of(method, change, updates),
    }
    points_of = reference(data_set, seed)
    fig, axes = figure(3, size=(2.9, 3.2))
    said = []
    styles = style_of(CD), {**style_of(method if method != CD else "SLAM (paper)"), "ls": "-"}
    for i, ((name, setting), style) in enumerate(zip(compared.items(), styles, strict=True)):
        student, _ = follow(
            setting, data_set, seed,
            on_update=lambda done, i=i: on_progress((i + done / updates) / 2),
        )  # fmt: skip
        x = draw(student, points_of.noise[:4000], steps, seed)
        distance = sliced_wasserstein(x, points_of.data[:4000], projections=64)
        off, errors = off_support(x, points_of), {t: error(student, points_of, t) for t in TIMES}
        title = f"distance {distance:.3f}, off {100 * off:.0f} %"
        points(plane(axes[i], title, 2.6), points_of.data[:2000], "#cfcfcf", size=1.2, alpha=0.8)
        points(axes[i], x[:2000], style["color"], size=1.2, alpha=0.6)
        axes[i].set_xlabel(name.replace(", ", ",\n", 1), fontsize=9, color=style["color"])
        axes[2].plot(list(errors), list(errors.values()), ms=4, lw=1.6, **style)
        said.append(f"{name}: distance {distance:.3f}, error at t = 999 {errors[999]:.2f}")
    axes[2].set(xlim=(1010, -10), ylim=(0, None), xlabel="timestep t")
    axes[2].set_title("error to the exact end", fontsize=10)
    axes[2].spines[["top", "right"]].set_visible(False)
    fig.alt = f"{data_set.replace('_', ' ')}, {steps} step(s). " + "; ".join(said) + "."
    return fig


def ablation(
    data_sets: Sequence[str] = tuple(DATASETS),
    updates: Sequence[int] = (500, 1000, 2000, 4000),
    steps: Sequence[int] = (1, 2, 4, 8),
) -> ipywidgets.VBox:
    """Choose a data set, a method and one change; a button trains it beside the baseline."""
    torch.set_num_threads(1)  # small networks are fastest so
    methods = [name for name in METHODS if name in chosen() and name != CD]
    return experiment(
        ablation_figure, data_set=tuple(data_sets), method=(*methods, CD), change=tuple(CHANGES),
        updates=updates, steps=steps,
    )  # fmt: skip

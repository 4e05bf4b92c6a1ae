"""Explorers of lesson 00: a picture along its PF-ODE, a student beside its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets
from torch import Tensor, nn

from slam_course.figures import CourseFigure, figure, plane, points, snapshots
from slam_course.figures import evaluations as count_evaluations
from slam_course.widgets import explorer
from slam_edu.sampling import SampleState
from slam_edu.training import TrainState


def becoming(states: Sequence[SampleState]) -> ipywidgets.VBox:
    """All states of a sampler, ``(B, 2)`` each, from noise to the finished sample, beside its
    guess of the end.
    """

    def draw(evaluations: int) -> CourseFigure:
        state = states[evaluations]
        fig, (here, guess) = figure(
            2,
            size=(3.3, 3.5),
            alt=f"The points at evaluation {evaluations}, and where they point.",
        )
        where = "finished" if state.t is None else f"t = {state.t}"
        points(plane(here, f"the points: {where}", limit=3.0), state.x, "path", size=1.6)
        plane(guess, "the denoiser's guess of the end", limit=3.0)
        if state.x0 is None:
            guess.text(0, 0, "not asked yet", ha="center", color="#777777")
        else:
            points(guess, state.x0, "teacher", size=1.6)
        return fig

    return explorer(draw, evaluations=range(len(states)))


def few_steps(
    teacher: Callable[[int], Tensor], student: Callable[[int], Tensor]
) -> ipywidgets.VBox:
    """Teacher and student side by side, each as ``draw(evaluations) -> samples (B, 2)``."""
    # Sampled once and here, so that moving the slider only draws.
    samples = {n: (teacher(n), student(n)) for n in (1, 2, 4, 8)}

    def draw(evaluations: int) -> CourseFigure:
        many = count_evaluations(evaluations)
        return snapshots(
            samples[evaluations],
            [f"teacher, {many}", f"student, {many}"],
            colors=["teacher", "student"],
            size=3.3,
            limit=2.6,
            alt=f"Teacher and student with {many} each.",
        )

    return explorer(draw, evaluations=tuple(samples))


class LiveStudent:
    """Watches students while they are distilled: a bar and a picture of their samples.

    It is the ``on_update`` of :func:`slam_course.demo.run`; show ``.box`` first. The samples
    ``draw(name, student)``, ``(B, 2)``, are shown at a student's first update, its last, and
    ``every`` so many.
    """

    def __init__(
        self, draw: Callable[[str, nn.Module], Tensor], updates: int, every: int
    ) -> None:  # fmt: skip
        self._draw, self._every = draw, every
        self._bar = ipywidgets.IntProgress(max=updates, layout=ipywidgets.Layout(width="420px"))
        self._label = ipywidgets.Label("not started")
        self._picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width="360px"))
        self._picture.add_class("slam-live-figure")
        self.box = ipywidgets.VBox([ipywidgets.HBox([self._bar, self._label]), self._picture])

    def __call__(self, name: str, state: TrainState, student: nn.Module) -> None:
        """Draw, if it is time to; the arguments are those of ``on_update``."""
        if state.update % self._every and state.update not in (1, self._bar.max):
            return
        self._bar.value = state.update
        self._label.value = f"{name}: {state.update} of {self._bar.max} updates"
        title = f"{name}, 2 evaluations, after {state.update} updates"
        look = {"colors": "student", "size": 3.6, "limit": 2.6, "alt": title}
        self._picture.value = snapshots([self._draw(name, student)], [title], **look).png()

"""Explorers of lesson 00: a picture along its PF-ODE, and a student beside its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets
from torch import Tensor

from slam_course.figures import CourseFigure, figure, plane, points, snapshots
from slam_course.widgets import explorer
from slam_edu.sampling import SampleState


def becoming(states: Sequence[SampleState]) -> ipywidgets.VBox:
    """Walk through a sampler's states, from noise to the finished sample, beside its guess of the
    end.

    Args:
        states: all states of a sampler, samples of shape ``(B, 2)``.
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
    teacher: Callable[[int], Tensor],
    student: Callable[[int], Tensor],
    steps: Sequence[int] = (1, 2, 4, 8),
) -> ipywidgets.VBox:
    """Teacher and student side by side for a number of evaluations.

    Args:
        teacher: ``teacher(evaluations) -> samples`` of shape ``(B, 2)``.
        student: the same for the student.
        steps: numbers of evaluations to choose from.
    """
    # Sampled once and here, so that moving the slider only draws.
    samples = {n: (teacher(n), student(n)) for n in steps}

    def draw(evaluations: int) -> CourseFigure:
        many = f"{evaluations} evaluation{'s' * (evaluations > 1)}"
        return snapshots(
            samples[evaluations],
            [f"teacher, {many}", f"student, {many}"],
            colors=["teacher", "student"],
            size=3.3,
            limit=2.6,
            alt=f"Teacher and student with {many} each.",
        )

    return explorer(draw, evaluations=steps)

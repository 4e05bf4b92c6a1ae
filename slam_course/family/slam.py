r"""SLAM: students that are trained all along the chord of a sub-path.

Source: Xu et al. 2024 (SPLAM, arXiv 2404.13903); the slope of the middle is this project's,
see :mod:`slam_edu.distill`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from slam_course.ablations import GAMMA_LAWS
from slam_course.family.base import Counted, Method, Networks
from slam_edu.distill import DistillConfig, SubPathDistiller, SubPathSample


class SlamLevel(Method):
    """The paper's chord; the student is conditioned on its point's own level."""

    name = "SLAM, level-conditioned"
    tuned = ("subpaths",)
    settings: ClassVar[dict[str, object]] = {"conditioning": "level", "coupling": "linear"}

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.distiller = SubPathDistiller(self.schedule, DistillConfig(
            subpaths=self.subpaths, loss=self.loss_name, teacher_prediction_type=self.teacher_type,
            student_prediction_type="v_prediction", **self.settings,
        ))  # fmt: skip

    def draw(self, x0: Tensor, generator: torch.Generator) -> SubPathSample:
        """A sub-path, a position on it, and noise for every sample."""
        return self.distiller.draw(x0, generator)

    def loss(self, x0: Tensor, batch: SubPathSample, networks: Networks) -> Tensor:
        """Of :class:`slam_edu.distill.SubPathDistiller`."""
        return self.distiller.step(
            x0, batch, teacher=networks.teacher, student=networks.student, target=networks.target
        ).loss

    def solve(self, student: Counted, x: Tensor, t: Tensor) -> Tensor:
        """The consistency function."""
        return self.distiller.predict(student, x, t)


class SlamPaper(SlamLevel):
    """As released: an embedding of gamma, and the Markov coupling."""

    name = "SLAM (paper)"
    gamma_input = "official"
    settings: ClassVar[dict[str, object]] = {"conditioning": "gamma", "coupling": "markov"}


class SlamMiddle(SlamLevel):
    """The slope of the middle, gamma = 1."""

    name = "SLAM, middle slope"
    settings: ClassVar[dict[str, object]] = SlamLevel.settings | {
        "slope": "middle",
        "gammas": "one",
    }


class SlamMiddleUniform(SlamLevel):
    """The slope of the middle, gamma uniform."""

    name = "SLAM, middle slope, gamma uniform"
    settings: ClassVar[dict[str, object]] = SlamLevel.settings | {"slope": "middle"}


class SlamMiddleHalf(SlamLevel):
    """The slope of the middle, half of the gammas at 1."""

    name = "SLAM, middle slope, half of gamma at 1"
    settings: ClassVar[dict[str, object]] = SlamLevel.settings | {
        "slope": "middle",
        "gammas": GAMMA_LAWS["half_one"],
    }


class SlamMiddleOffGrid(SlamLevel):
    """The slope of the middle, gamma = 1, sub-paths drawn off the grid."""

    name = "SLAM, middle slope, off the grid"
    settings: ClassVar[dict[str, object]] = SlamMiddle.settings | {"off_grid": True}

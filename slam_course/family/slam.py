r"""SLAM: students that are trained all along the chord of a sub-path.

Source: Xu et al. 2024 (SPLAM, arXiv 2404.13903); the slope of the middle is this project's,
see :mod:`slam_edu.distill`.
"""

from __future__ import annotations

from typing import ClassVar

from slam_course.ablations import GAMMA_LAWS
from slam_course.family.base import ByDistiller
from slam_edu.distill import OFFICIAL


class SlamLevel(ByDistiller):
    """The paper's chord; the student is conditioned on its point's own level."""

    name = "SLAM, level-conditioned"
    tuned = ("subpaths",)
    settings: ClassVar[dict[str, object]] = {"slope": "end", "gammas": "uniform"}


class SlamPaper(SlamLevel):
    """As released: an embedding of gamma, and the Markov coupling."""

    name = "SLAM (paper)"
    gamma_input = "official"
    settings: ClassVar[dict[str, object]] = OFFICIAL


class SlamMiddle(SlamLevel):
    """The slope of the middle, gamma = 1: the library's defaults."""

    name = "SLAM, middle slope"
    settings: ClassVar[dict[str, object]] = {}


class SlamMiddleUniform(SlamLevel):
    """The slope of the middle, gamma uniform."""

    name = "SLAM, middle slope, gamma uniform"
    settings: ClassVar[dict[str, object]] = {"gammas": "uniform"}


class SlamMiddleHalf(SlamLevel):
    """The slope of the middle, half of the gammas at 1."""

    name = "SLAM, middle slope, half of gamma at 1"
    settings: ClassVar[dict[str, object]] = {"gammas": GAMMA_LAWS["half_one"]}


class SlamMiddleOffGrid(SlamLevel):
    """The slope of the middle, gamma = 1, sub-paths drawn off the grid."""

    name = "SLAM, middle slope, off the grid"
    settings: ClassVar[dict[str, object]] = {"off_grid": True}

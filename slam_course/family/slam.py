r"""SLAM: students that are trained all along the chord of a sub-path.

Source: Xu et al. 2024 (SPLAM, arXiv 2404.13903); the slope of the middle is this project's,
see :mod:`slam_edu.distill`.
"""

from __future__ import annotations

from typing import ClassVar

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

"""The family of few-step methods, in the same coordinates and on the same problem.

Each module has one method, or one with its variants, and knows no other: :mod:`.consistency`,
:mod:`.slam`, :mod:`.middle`, :mod:`.phased`, :mod:`.rectified`, :mod:`.trajectory`,
:mod:`.progressive`, :mod:`.shortcut`, :mod:`.meanflow`, :mod:`.continuous`. :mod:`.base` has what
they share, :mod:`.training` trains and measures one.
"""

from slam_course.family.base import Calls, Counted, Method, Trio
from slam_course.family.consistency import (
    ConsistencyDistillation,
    HeunTeacher,
    HopCurriculum,
    RandomHop,
)
from slam_course.family.continuous import ContinuousConsistency
from slam_course.family.meanflow import MeanFlow
from slam_course.family.middle import (
    SlamMiddleCurriculum,
    SlamMiddleHalf,
    SlamMiddleLogGrid,
    SlamMiddleOffGrid,
    SlamMiddleParabola,
    SlamMiddleUniform,
)
from slam_course.family.phased import PhasedConsistency
from slam_course.family.progressive import Progressive
from slam_course.family.rectified import PiecewiseRectified
from slam_course.family.shortcut import Shortcut
from slam_course.family.slam import SlamLevel, SlamMiddle, SlamPaper
from slam_course.family.trajectory import ConsistencyTrajectory

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ConsistencyDistillation, HopCurriculum, RandomHop, HeunTeacher,
        SlamPaper, SlamLevel, SlamMiddle, SlamMiddleUniform, SlamMiddleHalf, SlamMiddleOffGrid,
        SlamMiddleCurriculum, SlamMiddleLogGrid, SlamMiddleParabola,
        PhasedConsistency, PiecewiseRectified, ConsistencyTrajectory, Progressive,
        Shortcut, MeanFlow, ContinuousConsistency,
    )
}  # fmt: skip
"""All methods by name."""

__all__ = ["METHODS", "Calls", "Counted", "Method", "Trio"]

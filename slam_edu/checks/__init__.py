"""Checks of the exercises: each tells a wrong answer what is wrong and where to look, never the
solution.

A check is called with the learner's answer and shows a :class:`Verdict`. It does not stop the
notebook: an answer that raises, returns the wrong type or is not there yet gets a sentence too.

There is one module per lesson, ``lesson_00`` and so on, and in it one function per exercise.
"""

from slam_edu.checks.base import (
    Summary,
    Verdict,
    Wrong,
    exercise,
    require,
    require_close,
    require_shape,
    summary,
)

__all__ = [
    "Summary",
    "Verdict",
    "Wrong",
    "exercise",
    "require",
    "require_close",
    "require_shape",
    "summary",
]

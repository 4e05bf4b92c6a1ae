"""One run of the study: a student of one setting, data set and seed, trained and measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

from slam_course.lesson_05.students import (
    Reference,
    Student,
    distances,
    draw,
    error,
    reference,
    teacher_samples,
    train,
)
from slam_course.results import BETWEEN, STEPS, TIMES, ToySetting, toy_columns
from slam_edu._validation import check_choice
from slam_edu.toy.data import DATASETS


def measure(student: Student, points: Reference, seed: int) -> dict[str, float]:
    """Distances of the student's samples to the data, and its errors to f*.

    Returns:
        ``sw_n`` and ``ed_n``, sliced Wasserstein and energy distance at n of ``STEPS``; ``map_t``,
        mean of :math:`\\|f_\\theta(x_t, t) - f^*(x_t, t)\\|` at t of ``TIMES`` and ``BETWEEN``.
    """
    found = {}
    for steps in STEPS:
        samples = draw(student, points.noise, steps, seed)
        found |= distances(samples, points.data, steps)
    return found | {f"map_{t}": error(student, points, t) for t in (*TIMES, *BETWEEN)}


def measure_teacher(setting: ToySetting, points: Reference) -> dict[str, float]:
    """Distances to the data of the exact teacher's samples with the setting's solver."""
    drawn, found = teacher_samples(setting, points.mixture, points.noise), {}
    for steps in STEPS:
        found |= distances(drawn(steps), points.data, steps)
    return found


def run(
    setting: ToySetting, data: str, seed: int, checkpoints: Iterable[int] = ()
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train (unless the setting is a solver) and measure, at the end and at checkpoints.

    Yields:
        Number of updates; the measured numbers, NaN where there is none, ``seconds`` of training
        so far and ``skipped`` updates.

    Raises:
        ValueError: for an unknown data set.
    """
    check_choice(data, DATASETS, "data")
    torch.set_num_threads(1)  # small networks are fastest so, and other runs need the cores
    points = reference(data, seed)
    nothing = dict.fromkeys(toy_columns(), math.nan)
    if setting.solver is not None:
        found = measure_teacher(setting, points)
        yield setting.updates, nothing | found | {"seconds": 0.0, "skipped": 0}
        return
    for after, student in train(setting, data, seed):
        if after in checkpoints or after == setting.updates:
            found = measure(student, points, seed)
            yield after, nothing | found | {"seconds": student.seconds, "skipped": student.skipped}

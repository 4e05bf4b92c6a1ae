"""Runs of the family study: a student trained and measured, and the file of rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from slam_course.family import METHODS
from slam_course.family.results import Choice, Row, read_rows, rows_text
from slam_course.family.training import Reference, Student, measure, reference, train_one
from studies.harness import run_all, write_text


@dataclass(frozen=True)
class Job:
    """A setting on a data set with a seed, measured at its end and after some updates."""

    setting: Choice
    data: str
    seed: int
    after: tuple[int, ...] = ()

    @property
    def keys(self) -> list[tuple]:
        """Of its rows."""
        return [(self.setting, self.data, self.seed, after) for after in (*self.after, 0)]


@cache
def points(data: str, seed: int) -> Reference:
    """The measuring points, once a process."""
    return reference(data, seed)


def run(job: Job) -> list[Row]:
    """The rows of one run."""
    torch.set_num_threads(1)  # small networks are fastest so, and other runs need the cores
    method, rows, start = METHODS[job.setting.method], [], time.perf_counter()
    students = train_one(method, job.data, job.seed, **job.setting.options())
    held = points(job.data, job.seed)
    for student in students:
        if student.updates in job.after:
            rows.append(_row(job, student, held, start, last=False))
    return [*rows, _row(job, student, held, start, last=True)]


def _row(job: Job, student: Student, held: Reference, start: float, *, last: bool) -> Row:
    seconds = time.perf_counter() - start
    found = measure(student, held, job.seed)
    return Row(
        job.setting, job.data, job.seed, student.updates, last, found, student.cost, seconds
    )


def run_missing(
    wanted: Callable[[list[Row]], Iterable[Job]], path: Path, workers: int
) -> list[Row]:
    """Run the jobs whose rows are not in the file yet; it is whole after every one.

    ``wanted`` says which, from the rows that are there; it is asked again after each.
    """
    rows, asked = {row.key: row for row in read_rows(path)}, set()

    def further() -> list[Job]:
        found = [
            job for job in dict.fromkeys(wanted(list(rows.values())))
            if job not in asked and not all(key in rows for key in job.keys)
        ]  # fmt: skip
        asked.update(found)
        return found

    def keep(new: list[Row]) -> list[Job]:
        rows.update({row.key: row for row in new})
        write_text(path, rows_text(rows.values()))
        return further()

    if missing := further():
        run_all(missing, run, keep, workers=workers)
    return list(rows.values())

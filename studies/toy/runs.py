"""One run of the study: a student of one setting, data set and seed, trained and measured."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from slam_course.results import (
    BETWEEN,
    STEPS,
    TIMES,
    ToyRow,
    ToySetting,
    read_toy_rows,
    toy_columns,
    toy_header,
)
from studies.harness import run_all, write_text
from studies.toy.groups import Group


@dataclass(frozen=True)
class Job:
    """A setting on a data set with a seed, measured at its end and after some updates."""

    setting: ToySetting
    data: str
    seed: int
    checkpoints: tuple[int, ...] = ()

    def is_done(self, keys: Container[tuple]) -> bool:
        """Whether all of its rows are among these keys of rows."""
        wanted = {*self.checkpoints, self.setting.updates}
        return all((self.setting, self.data, self.seed, after) in keys for after in wanted)


def jobs(groups: Sequence[Group], seeds: int) -> list[Job]:
    """All runs of the groups, each once, in the groups' order, seeds 0 ... seeds - 1."""
    found: dict[tuple, Job] = {}
    for group in groups:
        for data in group.data:
            for seed in range(min(seeds, group.seeds)):
                for setting in group.settings.values():
                    key = (setting, data, seed)
                    known = found[key].checkpoints if key in found else ()
                    found[key] = Job(*key, tuple(sorted({*known, *group.checkpoints})))
    return list(found.values())


def run(job: Job) -> list[ToyRow]:
    """The rows of one run."""
    torch.set_num_threads(1)  # small networks are fastest so, and other runs need the cores
    setting, data, seed = job.setting, job.data, job.seed
    points, nothing = reference(data, seed), dict.fromkeys(toy_columns(), math.nan)
    if setting.solver is not None:
        drawn, found = teacher_samples(setting, points.mixture, points.noise), nothing
        for steps in STEPS:
            found = found | distances(drawn(steps), points.data, steps)
        return [ToyRow(setting, data, seed, setting.updates, found)]
    rows = []
    for after, student in train(setting, data, seed):
        if after in job.checkpoints or after == setting.updates:
            found = nothing | measure(student, points, seed)
            rows.append(
                ToyRow(setting, data, seed, after, found, student.seconds, student.skipped)
            )
    return rows


def measure(student: Student, points: Reference, seed: int) -> dict[str, float]:
    r"""``sw_n`` and ``ed_n``, distances of samples to the data, and ``map_t``, errors to f*.

    The last is the mean of :math:`\|f_\theta(x_t, t) - f^*(x_t, t)\|`.
    """
    found = {}
    for steps in STEPS:
        found |= distances(draw(student, points.noise, steps, seed), points.data, steps)
    return found | {f"map_{t}": error(student, points, t) for t in (*TIMES, *BETWEEN)}


def run_missing(wanted: Sequence[Job], path: Path, workers: int) -> None:
    """Run the jobs whose rows are not in the file yet; it is whole after every one."""
    rows = {row.key: row for row in read_toy_rows(path)}

    def keep(new: list[ToyRow]) -> None:
        rows.update({row.key: row for row in new})
        write(path, rows.values())

    run_all([job for job in wanted if not job.is_done(rows)], run, keep, workers=workers)


def write(path: Path, rows: Iterable[ToyRow]) -> None:
    """Replace the file of rows as a whole, in a fixed order."""
    text = io.StringIO()
    out = csv.DictWriter(text, toy_header(), lineterminator="\n")
    out.writeheader()
    for row in sorted(rows, key=lambda row: (row.data, str(row.setting), row.seed, row.after)):
        settings = {k: "" if v is None else v for k, v in dataclasses.asdict(row.setting).items()}
        measured = {k: "" if math.isnan(v) else f"{v:.5g}" for k, v in row.measured.items()}
        out.writerow(
            {"data": row.data, "seed": row.seed, "after": row.after, **settings, **measured,
             "seconds": f"{row.seconds:.1f}", "skipped": row.skipped}
        )  # fmt: skip
    write_text(path, text.getvalue())

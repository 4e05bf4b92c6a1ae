"""One row of the study of students: a student trained and measured, or a solver measured."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from slam_course.lesson_08.students import CD, START, DigitRow
from slam_edu.digits.evaluate import Evaluator, Setting
from slam_edu.distill import SubPathDistiller
from slam_edu.io import read_rows
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.cache import make_cache
from slam_edu.sd.networks import build_networks
from slam_edu.sd.run import LoadedRun, distill, load_run
from slam_edu.sd.tracking import LOG
from studies.digits.measure import (
    errors_by_gamma,
    measure_real,
    measure_solver,
    measure_student,
    shift_at_one,
)
from studies.digits.reference import (
    MAP,
    SAMPLES,
    TeacherReference,
    fingerprint,
    make_reference,
    solution_map,
    teacher_model,
    teacher_samples,
)
from studies.digits.students import CACHE, DISTILLERS, StudentPlan, identity
from studies.harness import Failure, ResultsFile, results_of, run_all

FILE = "students.json"


def key(row: Mapping[str, Any]) -> tuple[str, int, str]:
    """What identifies a row."""
    return row["name"], row["seed"], json.dumps(row["settings"], sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class RowJob:
    """One row to be made: of a student of a seed, or of a solver, in the study's folder."""

    plan: StudentPlan
    out: Path
    what: str | Setting
    seed: int = 0

    @property
    def key(self) -> tuple[str, int, str]:
        """Of the row that it makes."""
        if isinstance(self.what, Setting):
            name, settings = self.what.sampler, dataclasses.asdict(self.what)
        else:
            name, settings = self.what, self.plan.settings(self.what)
        return key({"name": name, "seed": self.seed, "settings": settings})


def jobs(plan: StudentPlan, out: Path) -> list[RowJob]:
    """All rows of a study: the solvers, then all students of a seed, seed by seed."""
    wanted = [RowJob(plan=plan, out=out, what=setting) for setting in plan.solvers]
    for seed in range(plan.seeds):
        names = (START, *plan.names)
        wanted += [RowJob(plan=plan, out=out, what=name, seed=seed) for name in names]
    return wanted


def run_job(job: RowJob) -> dict[str, Any] | Failure:
    """The row, trained if need be; or a failure, for a training whose losses were not finite.

    Raises:
        KeyboardInterrupt: if the training was asked to stop; it is saved, and goes on from there.
    """
    torch.set_num_threads(1)
    made = _solver if isinstance(job.what, Setting) else _start if job.what == START else _student
    row = made(job)
    return row if isinstance(row, Failure) else dataclasses.asdict(row)


def _solver(job: RowJob) -> DigitRow:
    reference, start = _reference(job.plan, job.out), time.perf_counter()
    return DigitRow(
        name=job.what.sampler, settings=dataclasses.asdict(job.what),
        measured=measure_solver(job.what, reference), measuring=time.perf_counter() - start,
    )  # fmt: skip


def _start(job: RowJob) -> DigitRow:
    config, reference = job.plan.config(CD, job.seed), _reference(job.plan, job.out)
    start = time.perf_counter()
    # Its networks are copies of the UNet, and that is frozen already.
    networks = build_networks(config, reference.model.pipeline.unet)
    measured = measure_student(networks, config, reference, job.seed)
    return DigitRow(
        name=START, seed=job.seed, settings=job.plan.settings(START), measured=measured,
        measuring=time.perf_counter() - start,
    )  # fmt: skip


def _student(job: RowJob) -> DigitRow | Failure:
    config = job.plan.config(job.what, job.seed, job.out)
    found = _finished(config)
    if found is None:
        distiller = DISTILLERS.get(job.what, SubPathDistiller)
        run = distill(config, show=lambda _line: None, distiller=distiller)
        try:
            for _ in run:
                pass
        except FloatingPointError as error:
            return Failure(f"{job.what}, seed {job.seed}: {error}")
        if run.stopped is not None:
            raise KeyboardInterrupt
        found = _finished(config)
    reference, start = _reference(job.plan, job.out), time.perf_counter()
    measured = measure_student(found.networks, config, reference, job.seed)
    gamma: dict[str, Any] = {}
    if config.gamma_conditioned:
        gamma = {
            "shift": shift_at_one(found.networks, config.gamma_input),
            "told": errors_by_gamma(found.networks, config, reference.model, reference.map),
        }
    return DigitRow(
        name=job.what, seed=job.seed, settings=job.plan.settings(job.what), measured=measured,
        gamma=gamma, training=read_rows(Path(config.out) / LOG)[-1]["seconds"],
        measuring=time.perf_counter() - start, skipped=found.skipped,
    )  # fmt: skip


def _finished(config: SDConfig) -> LoadedRun | None:
    """The run in a configuration's folder, if it is this one and has made all of its updates."""
    try:
        found = load_run(config.out, show=lambda _line: None)
    except FileNotFoundError:
        return None
    same = identity(found.config) == identity(config) and found.config.seed == config.seed
    return found if same and found.update >= config.training.updates else None


@lru_cache(maxsize=1)
def _reference(plan: StudentPlan, out: Path) -> TeacherReference:
    """The study's reference, once a process."""
    return make_reference(teacher_model(plan), Evaluator(plan.prompts), plan, out)


# -------------------------------------------------------------------- all of them


def results_file(plan: StudentPlan, out: Path, weights: str) -> ResultsFile:
    """The study's file of results, for a teacher whose weights have this fingerprint."""
    about = {
        "changes": list(plan.changes), "prompts": plan.prompts, "points": plan.points,
        "solver_steps": plan.solver_steps, "weights": weights,
    }  # fmt: skip
    return ResultsFile(out / FILE, {"about": about}, key, exact=("settings", "about"))


def run_missing(plan: StudentPlan, out: Path, workers: int) -> list[str]:
    """Make the rows that the results file lacks; a sentence for every training that failed.

    What all rows need comes first: the cache of the data, and the reference.

    Raises:
        ValueError: for a results file of another study.
        RuntimeError: if a process was killed.
    """
    torch.set_num_threads(1)
    model = teacher_model(plan)
    file = results_file(plan, out, fingerprint(model))
    file.read()
    make_cache(
        plan.config(plan.names[0], 0), model.pipeline, out / CACHE,
        show=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    print(
        f"the teacher's samples for {plan.prompts:,} prompts, and its solution map: made once, "
        f"unless they are there",
        file=sys.stderr,
    )
    for _ in results_of(_make_part, [(plan, out, part) for part in (SAMPLES, MAP)], workers):
        pass
    content = file.read()
    if "floor" not in content or "change" not in content:
        reference = _reference(plan, out)
        change = {str(t): value for t, value in reference.map.change.items()}
        file.write({**content, "floor": measure_real(reference), "change": change})
    there = {key(row) for row in content["rows"]}
    missing = [job for job in jobs(plan, out) if job.key not in there]
    return run_all(missing, run_job, file.add, workers=workers, unit="row")


def _make_part(task: tuple[StudentPlan, Path, str]) -> None:
    """A part of the reference, as a file."""
    torch.set_num_threads(1)
    plan, out, part = task
    make = {SAMPLES: teacher_samples, MAP: solution_map}[part]
    make(teacher_model(plan), Evaluator(plan.prompts), plan, out / part)

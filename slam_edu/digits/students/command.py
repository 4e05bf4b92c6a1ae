"""``python -m slam_edu.digits.students``: run what is missing, then write the report."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slam_edu.digits.evaluate.scores import Evaluator
from slam_edu.digits.evaluate.table import Setting, fingerprint
from slam_edu.digits.students import results
from slam_edu.digits.students.gamma import errors_by_gamma, shift_at_one
from slam_edu.digits.students.measure import measure_real, measure_solver, measure_student
from slam_edu.digits.students.plan import (
    CACHE,
    CD,
    QUICK,
    SEEDS,
    SETTINGS,
    START,
    Plan,
    identity,
    short_names,
)
from slam_edu.digits.students.reference import (
    MAP,
    SAMPLES,
    Reference,
    make_part,
    make_reference,
    teacher_model,
)
from slam_edu.digits.students.results import FILE, Row, key_of

if TYPE_CHECKING:
    from slam_edu.sd.config import SDConfig
    from slam_edu.sd.run import LoadedRun

Show = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row to be made.

    Attributes:
        plan: of the study.
        out: the study's folder.
        what: the student's name, or the solver's setting.
        seed: of the student's run; 0 for a solver.
    """

    plan: Plan
    out: Path
    what: str | Setting
    seed: int = 0

    @property
    def key(self) -> tuple[str, int, str]:
        """Of the row that it makes."""
        if isinstance(self.what, Setting):
            return key_of(self.what.sampler, 0, identity(self.what))
        return key_of(self.what, self.seed, self.plan.settings(self.what))


def jobs(plan: Plan, out: Path) -> list[Job]:
    """All rows of a study: the solvers, then all students of a seed, seed by seed."""
    wanted = [Job(plan=plan, out=out, what=setting) for setting in plan.solvers]
    for seed in range(plan.seeds):
        names = (START, *plan.names)
        wanted += [Job(plan=plan, out=out, what=name, seed=seed) for name in names]
    return wanted


def run_job(job: Job) -> Row | str:
    """Train if need be, and measure.

    Returns:
        the row; or, for a training that failed because its losses were not finite, a sentence.

    Raises:
        KeyboardInterrupt: if the training was asked to stop; it is saved, and goes on from there.
    """
    torch.set_num_threads(1)
    if isinstance(job.what, Setting):
        reference = _reference(job.plan, job.out)
        start = time.perf_counter()
        measured = measure_solver(job.what, reference)
        seconds = time.perf_counter() - start
        return Row(
            name=job.what.sampler, settings=identity(job.what), measured=measured,
            measuring=seconds,
        )  # fmt: skip
    return _not_distilled(job) if job.what == START else _run_student(job)


def _not_distilled(job: Job) -> Row:
    from slam_edu.sd.networks import build_networks

    config, reference = job.plan.config(CD, job.seed), _reference(job.plan, job.out)
    start = time.perf_counter()
    # Its networks are copies of the UNet, and that is frozen already.
    networks = build_networks(config, reference.model.pipeline.unet)
    measured = measure_student(networks, config, reference, job.seed)
    return Row(
        name=START, seed=job.seed, settings=job.plan.settings(START), measured=measured,
        measuring=time.perf_counter() - start,
    )  # fmt: skip


def _run_student(job: Job) -> Row | str:
    from slam_edu.io import read_rows
    from slam_edu.sd.run import distill
    from slam_edu.sd.tracking import LOG

    config = job.plan.config(job.what, job.seed, job.out)
    found = _finished(config)
    if found is None:
        run = distill(config, show=lambda _line: None)
        try:
            for _ in run:
                pass
        except FloatingPointError as error:
            return f"{job.what}, seed {job.seed}: {error}"
        if run.stopped is not None:
            raise KeyboardInterrupt
        found = _finished(config)
    reference = _reference(job.plan, job.out)
    start = time.perf_counter()
    measured = measure_student(found.networks, config, reference, job.seed)
    gamma: dict[str, Any] = {}
    if config.gamma_conditioned:
        told = errors_by_gamma(found.networks, config, reference.model, reference.map)
        gamma = {
            "shift": shift_at_one(found.networks, config.gamma_input),
            "told": {f"{g:g}": errors for g, errors in told.items()},
        }
    return Row(
        name=job.what, seed=job.seed, settings=job.plan.settings(job.what), measured=measured,
        gamma=gamma,
        training=read_rows(Path(config.out) / LOG)[-1]["seconds"],
        measuring=time.perf_counter() - start, skipped=found.skipped,
    )  # fmt: skip


def _finished(config: SDConfig) -> LoadedRun | None:
    """The run in a configuration's folder, if it is this one and has made all of its updates."""
    from slam_edu.sd.run import load_run

    try:
        found = load_run(config.out, show=lambda _line: None)
    except FileNotFoundError:
        return None
    same = identity(found.config) == identity(config) and found.config.seed == config.seed
    return found if same and found.update >= config.training.updates else None


@lru_cache(maxsize=1)
def _reference(plan: Plan, out: Path) -> Reference:
    """The study's reference, once a process."""
    return make_reference(teacher_model(plan), Evaluator(plan.prompts), plan, out)


# -------------------------------------------------------------------- all of them


def prepare(plan: Plan, out: Path, workers: int, show: Show) -> dict[str, Any]:
    """Make what all rows need: the cache of the data, the reference, the results file.

    Returns:
        what the results file is about.

    Raises:
        ValueError: for a results file of another study.
    """
    from slam_edu.sd.data.cache import make_cache

    torch.set_num_threads(1)
    model = teacher_model(plan)
    path, wanted = out / FILE, results.about(plan, fingerprint(model))
    results.read(path, wanted)
    make_cache(plan.config(plan.names[0], 0), model.pipeline, out / CACHE, show=show)
    show(
        f"the teacher's samples for {plan.prompts:,} prompts, and its solution map: made once, "
        f"unless they are there"
    )
    for _ in _made(_make_part, [(plan, out, part) for part in (SAMPLES, MAP)], min(workers, 2)):
        pass
    content = results.read(path, wanted)
    if "floor" not in content or "change" not in content:
        reference = _reference(plan, out)
        content["floor"] = measure_real(reference)
        content["change"] = {str(t): value for t, value in reference.map.change.items()}
        results.write(path, content)
    return wanted


def _make_part(task: tuple[Plan, Path, str]) -> None:
    """A part of the reference, as a file."""
    torch.set_num_threads(1)
    plan, out, part = task
    model, evaluator = teacher_model(plan), Evaluator(plan.prompts)
    make_part(model, evaluator, plan, part, out)


def run_all(
    plan: Plan,
    out: Path,
    workers: int,
    *,
    on_job: Callable[[int, int], None] = lambda done, total: None,
    show: Show = lambda text: None,
) -> list[str]:
    """Make the rows that the results file lacks; it is whole after every one.

    Args:
        plan: of the study.
        out: its folder, which exists.
        workers: processes, of one thread each.
        on_job: called as ``on_job(done, total)`` after every row, and once at the start.
        show: is told what is done.

    Returns:
        a sentence for every student whose training failed.

    Raises:
        ValueError: for a results file of another study.
        RuntimeError: if a process was killed.
    """
    wanted = prepare(plan, out, workers, show)
    there = {Row(**row).key for row in results.read(out / FILE, wanted)["rows"]}
    missing = [job for job in jobs(plan, out) if job.key not in there]
    on_job(0, len(missing))
    failed = []
    with contextlib.closing(_made(run_job, missing, workers)) as made:
        for done, row in enumerate(made, 1):
            if isinstance(row, Row):
                results.add(out / FILE, wanted, [row])
            else:
                failed.append(row)
            on_job(done, len(missing))
    return failed


def _made(make: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    """What is made of each task as it ends, in any order."""
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(make, tasks)
        return
    # Spawned, because a fork of a process whose torch has started threads may hang.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = [pool.submit(make, task) for task in tasks]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # a training saves what it has, then ends
            if isinstance(error, BrokenProcessPool):
                raise RuntimeError(
                    f"one of {workers} processes was killed, perhaps for want of memory; the same "
                    f"command goes on, with fewer --workers if need be"
                ) from error
            raise


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _options(argv)
    out = Path(options.out)
    # A termination ends the workers too, as an interrupt does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.ship:
            return _ship(options, out)
        from slam_edu.digits.students.report import write_report  # needs matplotlib

        plan, failed = _plan(options), []
        out.mkdir(parents=True, exist_ok=True)
        if not options.report_only:
            with _Bar() as bar:
                failed = run_all(plan, out, options.workers, on_job=bar, show=bar.say)
        write_report(results.Results(results.read(out / FILE)), out)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"slam_edu.digits.students: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nslam_edu.digits.students: interrupted; what is finished is in {out / FILE}, the "
            f"same command goes on from there",
            file=sys.stderr,
        )
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"report: {out / 'report.md'}")
    for sentence in failed:
        print(f"slam_edu.digits.students: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m slam_edu.digits.students",
        description=f"Students of the shipped digits model at equal cost. Trains and measures "
        f"what is missing in OUT/{FILE}, then writes OUT/report.md and its figures.",
    )
    parser.add_argument(
        "--out", default="runs/students", help="the study's folder (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true",
        help="a small form of the study, a few minutes; its numbers mean nothing",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", metavar="NAME",
        help=f"which students, by name or a part of it (default: all of {'; '.join(SETTINGS)})",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, help=f"of each student (default: {SEEDS})")
    parser.add_argument("--prompts", type=int, help="images a measurement (default: 1,000)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", dest="changes",
        help="settings of all students (see `slam-edu distill --help-config`), for trials in a "
        "folder of their own",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1,
        help="processes, of one thread each (default: all cores)",
    )  # fmt: skip
    parser.add_argument(
        "--report-only", action="store_true", help="write the report of the rows that are there"
    )
    parser.add_argument(
        "--ship", nargs=2, metavar=("NAME", "SEED"),
        help="write this student's UNet and scheduler to --to, in half precision",
    )  # fmt: skip
    parser.add_argument("--to", type=Path, help="with --ship; default: data/digits-student")
    options = parser.parse_args(argv)
    for name in ("seeds", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; allowed: an integer >= 1")
    return options


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else Plan()
    changes: dict[str, Any] = {"changes": (*plan.changes, *options.changes)}
    if options.only is not None:
        changes["names"] = short_names(options.only)
    for name in ("seeds", "prompts"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    return plan.replace(**changes)


def _ship(options: argparse.Namespace, out: Path) -> int:
    from slam_edu.digits.students.ship import ship

    [name], seed = short_names(options.ship[:1]), options.ship[1]
    if not seed.isdigit():
        raise ValueError(f"the seed is {seed!r}; allowed: 0, 1, 2, ...")
    found = results.Results(results.read(out / FILE))
    folder = ship(found, out, name, int(seed), options.to)
    print(f"shipped: {folder}")
    return 0


class _Bar:
    """A bar of finished rows on standard error."""

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        self._bar = tqdm(desc="rows", unit="row", smoothing=0.02)
        return self

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def __exit__(self, *_error: object) -> None:
        self._bar.close()

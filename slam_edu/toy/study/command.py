"""``python -m slam_edu.toy.study``: run what is missing, then write the report."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from slam_course.results import ToyRow, read_toy_rows
from slam_edu.toy.study.plan import GROUPS, QUICK, Group, Job, jobs
from slam_edu.toy.study.report import record, write_report
from slam_edu.toy.study.results import write
from slam_edu.toy.study.run import run

RESULTS = "runs.csv"


def run_job(job: Job) -> list[ToyRow]:
    """Rows of one run; called in a process of its own."""
    rows = []
    for after, found in run(job.setting, job.data, job.seed, job.checkpoints):
        seconds, skipped = found.pop("seconds"), int(found.pop("skipped"))
        rows.append(ToyRow(job.setting, job.data, job.seed, after, found, seconds, skipped))
    return rows


def run_all(
    wanted: Sequence[Job],
    path: Path,
    workers: int,
    on_job: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Run the jobs whose rows are not in the results file yet; it is whole after every one.

    Args:
        wanted: the jobs.
        path: the results file.
        workers: processes.
        on_job: called as ``on_job(done, total)`` after every job, and once at the start.

    Raises:
        ValueError: for a results file that cannot be read.
    """
    rows = {row.key: row for row in read_toy_rows(path)}
    missing = [job for job in wanted if not job.done(rows)]
    on_job(0, len(missing))
    for done, new in enumerate(_results(missing, workers), 1):
        rows |= {row.key: row for row in new}
        write(path, rows.values())
        on_job(done, len(missing))


def _results(missing: Sequence[Job], workers: int) -> Iterator[list[ToyRow]]:
    """Rows of each job as it ends, in any order."""
    if workers == 1:
        yield from map(run_job, missing)
        return
    # Spawned, because a fork of a process whose torch has started threads may hang.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Leaving the block terminates the workers, whatever it was that ended it.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(run_job, missing)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m slam_edu.toy.study",
        description="Consistency distillation and SLAM against the exact solution map. Runs what "
        "is missing in OUT/runs.csv, then writes OUT/report.md and its figures.",
    )
    parser.add_argument("--out", default="study", help="folder (default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="a small form of the study, a few minutes"
    )
    parser.add_argument(
        "--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="GROUP",
        help=f"which comparisons (default: all of {', '.join(GROUPS)})",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=8, help="at most (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="write the report of the runs that are there"
    )
    options = parser.parse_args(argv)
    for name in ("seeds", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; allowed: an integer >= 1")
    groups: list[Group] = [QUICK] if options.quick else [GROUPS[name] for name in options.groups]
    out = Path(options.out)
    # A termination ends the workers too, as an interrupt does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        out.mkdir(parents=True, exist_ok=True)
        path = out / RESULTS
        if not options.report_only:
            wanted = jobs(groups, options.seeds)
            start = time.perf_counter()
            try:
                with _Bar() as bar:
                    run_all(wanted, path, min(options.workers, len(wanted)), bar)
            finally:
                record(out, time.perf_counter() - start, options.workers)
        write_report(read_toy_rows(path), groups, out)
    except (ValueError, OSError, ImportError) as error:
        print(f"slam_edu.toy.study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nslam_edu.toy.study: interrupted; the finished runs are in {out / RESULTS}, the "
            f"same command goes on from there",
            file=sys.stderr,
        )
        return 130
    print(f"report: {out / 'report.md'}")
    return 0


class _Bar:
    """A bar of finished runs on standard error."""

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        self._bar = tqdm(desc="runs", unit="run", smoothing=0.02)
        return self

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_error: object) -> None:
        self._bar.close()

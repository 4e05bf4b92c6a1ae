"""What all studies share: jobs in parallel, results that come in one by one, and a report.

A study is a list of jobs, each a picklable description of one measurement. Those whose results are
missing are run in processes of one thread each, and what a job gives is written before the next
one's is looked at, in one move. So a study can be stopped at any time, and the same command goes
on from there. Results are tidy: one row a measurement, with what was measured and how.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import signal
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from slam_edu.io import atomic_path

REPORT = "report.md"


@dataclass(frozen=True)
class Failure:
    """Why a job gave no result, in a sentence."""

    why: str


# -------------------------------------------------------------------- jobs


def run_all(
    jobs: Sequence[Any],
    run: Callable[[Any], Any],
    keep: Callable[[Any], Iterable[Any] | None],
    *,
    workers: int,
    unit: str = "run",
) -> list[str]:
    """Run jobs in parallel and keep what each gives; a bar on standard error counts them.

    Args:
        jobs: those that are missing.
        run: a module's function of a job, called in a process of its own.
        keep: is called in this process with each result, in the order in which they come; it may
            return further jobs.
        workers: processes, of one thread each.
        unit: what a job is called.

    Returns:
        a sentence for every :class:`Failure`.

    Raises:
        RuntimeError: if a process was killed.
    """
    from tqdm import tqdm

    failed, jobs = [], deque(jobs)
    bar = tqdm(total=len(jobs), desc=f"{unit}s", unit=unit, smoothing=0.02)
    with bar, closing(results_of(run, jobs, workers)) as results:
        for result in results:
            if isinstance(result, Failure):
                failed.append(result.why)
            elif further := list(keep(result) or ()):
                jobs.extend(further)
                bar.total += len(further)
            bar.update()
    return failed


def results_of(run: Callable[[Any], Any], jobs: Collection[Any], workers: int) -> Iterator[Any]:
    """What ``run`` gives of each job as it ends, in any order.

    A ``deque`` of jobs is emptied, and may be given further ones on the way.
    """
    jobs = jobs if isinstance(jobs, deque) else deque(jobs)
    if workers <= 1:
        while jobs:
            yield run(jobs.popleft())
        return
    # Spawned, because a fork of a process whose torch has started threads may hang.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: set[Future] = set()
        try:
            while jobs or waiting:
                while jobs:
                    waiting.add(pool.submit(run, jobs.popleft()))
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
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


# -------------------------------------------------------------------- a file of results


@dataclass(frozen=True)
class ResultsFile:
    """Results as JSON: what all rows share, by name, and ``rows``.

    Attributes:
        path: of the file.
        shared: what the file must say of itself to be this study's; empty allows any.
        key: of a row, by which rows are told apart and put in order.
        exact: names whose values are not rounded to six digits.
    """

    path: Path
    shared: Mapping[str, Any]
    key: Callable[[Mapping[str, Any]], Any]
    exact: tuple[str, ...] = ()

    def read(self) -> dict[str, Any]:
        """The file's content; without a file, one without rows.

        Raises:
            FileNotFoundError: without a file, where any is allowed.
            ValueError: for a file that cannot be read, or of another study.
        """
        if not self.path.exists():
            if not self.shared:
                raise FileNotFoundError(f"there is no {str(self.path)!r} yet; run the study")
            return {**self.shared, "rows": []}
        try:
            content = json.loads(self.path.read_text("utf-8"))
            for row in content["rows"]:
                self.key(row)
            there = _flat({name: content[name] for name in self.shared})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{str(self.path)!r} cannot be read ({error!r}); allowed: a file that the study "
                f"wrote; move it away to measure anew"
            ) from error
        wanted = _flat(self.shared)
        names = sorted(there.keys() | wanted.keys())
        odd = [name for name in names if there.get(name) != wanted.get(name)]
        if odd:
            differ = "; ".join(f"{n}: {there.get(n)!r} there, {wanted.get(n)!r} here" for n in odd)
            raise ValueError(
                f"{str(self.path)!r} is of another study ({differ}); allowed: the same, or "
                f"another folder"
            )
        return content

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the file as a whole, its rows in order."""
        whole = {**content, "rows": sorted(content["rows"], key=self.key)}
        rounded = _rounded(whole, self.exact)
        write_text(self.path, json.dumps(rounded, indent=1, ensure_ascii=False) + "\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, or replace the one with its key.

        The file is read again: another process may have added some.
        """
        content = self.read()
        rows = {self.key(each): each for each in content["rows"]} | {self.key(row): row}
        self.write({**content, "rows": list(rows.values())})


def _flat(shared: Mapping[str, Any]) -> dict[str, Any]:
    """The names of a dictionary in a dictionary count as names."""
    flat: dict[str, Any] = {}
    for name, value in shared.items():
        flat |= value if isinstance(value, Mapping) else {name: value}
    return flat


def _rounded(value: Any, exact: Sequence[str]) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {k: v if k in exact else _rounded(v, exact) for k, v in value.items()}
    return [_rounded(v, exact) for v in value] if isinstance(value, list) else value


# -------------------------------------------------------------------- the report


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one move."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def machine() -> dict[str, Any]:
    """On what a result was made."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


# -------------------------------------------------------------------- the command


def parser(prog: str, description: str, out: str, seeds: int) -> argparse.ArgumentParser:
    """The options that studies share; ``out`` and ``seeds`` are defaults."""
    made = argparse.ArgumentParser(prog=prog, description=description)
    made.add_argument("--out", type=Path, default=Path(out), help="folder (default: %(default)s)")
    made.add_argument("--quick", action="store_true", help="a small form of it, a few minutes")
    made.add_argument("--seeds", type=positive, default=seeds, help="(default: %(default)s)")
    made.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1,
        help="processes, of one thread each (default: all cores)",
    )  # fmt: skip
    made.add_argument(
        "--report-only", action="store_true", help="write the report of the results there are"
    )
    return made


def positive(text: str) -> int:
    """An option that is an integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: an integer >= 1")
    return int(text)


def command(prog: str, body: Callable[[], int]) -> int:
    """Run a command's body; an error is a line on standard error and a status.

    A termination ends the workers too, as an interrupt does.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return body()
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\n{prog}: interrupted; what is finished is kept, the same command goes on",
            file=sys.stderr,
        )
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)

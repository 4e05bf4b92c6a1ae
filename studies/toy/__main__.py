"""``python -m studies.toy``: run what is missing, then write the report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from slam_course.results import read_toy_rows
from studies.harness import REPORT, command, machine, parser, write_text
from studies.toy.groups import GROUPS, QUICK
from studies.toy.report import write_report
from studies.toy.runs import jobs, run_missing

PROG = "python -m studies.toy"
ROWS, STRETCHES = "runs.csv", "study.json"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    made = parser(
        PROG,
        f"Consistency distillation and SLAM against the exact solution map. Runs what is missing "
        f"in OUT/{ROWS}, then writes OUT/{REPORT} and its figures.",
        out="study",
        seeds=8,
    )
    made.add_argument(
        "--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="GROUP",
        help=f"which comparisons (default: all of {', '.join(GROUPS)})",
    )  # fmt: skip
    options = made.parse_args(argv)
    groups = [QUICK] if options.quick else [GROUPS[name] for name in options.groups]
    out: Path = options.out

    def body() -> int:
        out.mkdir(parents=True, exist_ok=True)
        if not options.report_only:
            start = time.perf_counter()
            try:
                run_missing(jobs(groups, options.seeds), out / ROWS, options.workers)
            finally:
                record(out / STRETCHES, time.perf_counter() - start, options.workers)
        write_report(read_toy_rows(out / ROWS), groups, out)
        print(f"report: {out / REPORT}")
        return 0

    return command(PROG, body)


def record(path: Path, seconds: float, workers: int) -> None:
    """Add a stretch of running to a file: wall time, versions, machine."""
    stretches = json.loads(path.read_text("utf-8")) if path.exists() else []
    stretches.append({"seconds": round(seconds), "workers": workers, **machine()})
    write_text(path, json.dumps(stretches, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

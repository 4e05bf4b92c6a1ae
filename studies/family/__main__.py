"""``python -m studies.family``: run what is missing, then write the report.

``--mine FILE`` places a method of your own (``--mine FILE --help``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from slam_course.family import METHODS
from slam_course.family.results import chosen, read_rows
from studies.family import mine
from studies.family.groups import NAMES, groups
from studies.family.report import write_report
from studies.family.runs import run_missing
from studies.family.tune import tune
from studies.harness import REPORT, command, parser

PROG = "python -m studies.family"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if any(word.split("=")[0] in ("--mine", "--leaderboard") for word in argv):
        return mine.main(argv)
    made = parser(PROG, __doc__, out="family", seeds=8)
    made.add_argument("what", nargs="?", choices=("run", "tune"), default="run")
    made.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD",
        help="which methods (default: all)",
    )  # fmt: skip
    made.add_argument(
        "--groups", nargs="+", choices=NAMES, default=NAMES, metavar="GROUP",
        help=f"which comparisons (default: all of {', '.join(NAMES)})",
    )  # fmt: skip
    options = made.parse_args(argv)
    out: Path = options.out

    def body() -> int:
        out.mkdir(parents=True, exist_ok=True)
        picked = out / "chosen.json"
        if options.what == "tune":
            tune(out / "tuning.csv", options.methods, options.workers, picked)
            return 0
        settings = chosen(picked)
        wanted = groups({name: s for name, s in settings.items() if name in options.methods})
        jobs = [job for name in options.groups for job in wanted[name].jobs(options.seeds)]
        if options.report_only:
            rows = read_rows(out / "runs.csv")
        else:
            rows = run_missing(lambda _rows: jobs, out / "runs.csv", options.workers)
        write_report(rows, settings, groups(settings), out)
        print(f"report: {out / REPORT}")
        return 0

    return command(PROG, body)


if __name__ == "__main__":
    sys.exit(main())

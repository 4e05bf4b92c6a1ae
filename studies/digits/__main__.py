"""``python -m studies.digits``: run what is missing, then write the report; or ship a student."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from studies.digits.jobs import FILE, key, run_missing
from studies.digits.report import write_report
from studies.digits.ship import ship
from studies.digits.students import QUICK, SEEDS, SETTINGS, StudentPlan, short_names
from studies.harness import REPORT, ResultsFile, command, parser, positive

PROG = "python -m studies.digits"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    made = parser(
        PROG,
        f"Students of the shipped digits model at equal cost. Trains and measures what is missing "
        f"in OUT/{FILE}, then writes OUT/{REPORT} and its figures.",
        out="runs/students",
        seeds=SEEDS,
    )
    made.add_argument(
        "--only", nargs="+", metavar="NAME",
        help=f"which students, by name or a part of it (default: all of {'; '.join(SETTINGS)})",
    )  # fmt: skip
    made.add_argument("--prompts", type=positive, help="images a measurement (default: 400)")
    made.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", dest="changes",
        help="settings of all students (see `slam-edu distill --help-config`), for trials in a "
        "folder of their own",
    )  # fmt: skip
    made.add_argument(
        "--ship", nargs=2, metavar=("NAME", "SEED"),
        help="write this student's UNet and scheduler to --to, in half precision",
    )  # fmt: skip
    made.add_argument("--to", type=Path, help="with --ship; default: data/digits-student")
    options = made.parse_args(argv)
    out: Path = options.out

    def body() -> int:
        file = ResultsFile(out / FILE, {}, key)
        if options.ship:
            [name], seed = short_names(options.ship[:1]), options.ship[1]
            if not seed.isdigit():
                raise ValueError(f"the seed is {seed!r}; allowed: 0, 1, 2, ...")
            print(f"shipped: {ship(file.read(), out, name, int(seed), options.to)}")
            return 0
        plan = QUICK if options.quick else StudentPlan()
        plan = plan.replace(
            changes=(*plan.changes, *options.changes),
            names=short_names(options.only) if options.only else plan.names,
            seeds=min(options.seeds, plan.seeds) if options.quick else options.seeds,
            prompts=options.prompts or plan.prompts,
        )
        out.mkdir(parents=True, exist_ok=True)
        failed = [] if options.report_only else run_missing(plan, out, options.workers)
        write_report(file.read(), out)
        print(f"report: {out / REPORT}")
        for why in failed:
            print(f"{PROG}: {why}", file=sys.stderr)
        return 1 if failed else 0

    return command(PROG, body)


if __name__ == "__main__":
    sys.exit(main())

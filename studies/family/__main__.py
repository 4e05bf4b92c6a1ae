"""``python -m studies.family``: run what is missing, then write the report.

``--mine FILE`` places a method of your own (``--mine FILE --help``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from slam_course.family import METHODS
from studies.family import mine
from studies.family.tune import tune
from studies.harness import command, parser

PROG = "python -m studies.family"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if any(word.split("=")[0] in ("--mine", "--leaderboard") for word in argv):
        return mine.main(argv)
    made = parser(PROG, __doc__, out="family", seeds=8)
    made.add_argument("what", nargs="?", choices=("run", "tune"), default="run")
    made.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = made.parse_args(argv)

    def body() -> int:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.what == "tune":
            tune(options.out / "tuning.csv", options.methods, options.workers,
                 options.out / "chosen.json")  # fmt: skip
        return 0

    return command(PROG, body)


if __name__ == "__main__":
    sys.exit(main())

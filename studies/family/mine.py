"""Place a method of your own in the family's table and on its board, in a few minutes.

cp slam_course/family/template.py my_method.py
python -m studies.family --mine my_method.py       check, train and compare it
python -m studies.family --leaderboard             list the board
python -m studies.family --leaderboard "my method" run an entry again, and compare
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shlex import join
from typing import Any

from slam_course.family.contract import Broken, load, setting_of
from slam_course.family.placing import Placement, place
from slam_course.family.results import HELD_OUT, chosen, read_rows
from slam_course.family.training import HARD
from slam_edu.io import sha256_of
from slam_edu.toy.data import DATASETS
from studies.harness import ResultsFile, command, machine, positive, results_of

PROG, CONFIG = "python -m studies.family", ("lr", "ema_rate", "subpaths", "pieces", "loss", "cost")
STUDY = Path(__file__).resolve().parents[2] / "data" / "family"


def main(argv: Sequence[str]) -> int:
    """The command, for arguments with ``--mine`` or ``--leaderboard``; returns its exit status."""
    made = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--mine", type=Path, metavar="FILE")
    what.add_argument("--leaderboard", nargs="?", const="", metavar="NAME")
    made.add_argument("--seeds", type=positive, default=4, help="(default: %(default)s)")
    made.add_argument("--data", nargs="+", choices=[*DATASETS, *HARD], default=list(HELD_OUT))
    made.add_argument("--workers", type=positive, default=2, help="(default: %(default)s)")
    made.add_argument("--stored", type=Path, default=STUDY, help="folder of the study's rows")
    made.add_argument("--board", type=Path, default=Path("leaderboard.json"))
    for name in CONFIG:
        kind = {"subpaths": int, "pieces": int, "loss": str}.get(name, float)
        made.add_argument(f"--{name.replace('_', '-')}", type=kind, help="over the class's own")
    options = made.parse_args(argv)
    board = ResultsFile(
        options.board, {"of": "methods of one's own in studies.family"}, lambda row: row["name"]
    )

    def body() -> int:
        if options.mine:
            return mine(board, options, join([PROG.split()[0], *PROG.split()[1:], *argv]))
        return again(board, options)

    return command(PROG, body)


def mine(board: ResultsFile, options: argparse.Namespace, line: str) -> int:
    """Place a file's method, print the table, and write its entry."""
    config = {name: getattr(options, name) for name in CONFIG}
    name = setting_of(load(options.mine), **config).method
    for row in board.read()["rows"]:
        if row["name"] == name and Path(row["file"]).resolve() != options.mine.resolve():
            raise Broken(
                f"name is {name!r}, taken by {row['file']} on the board; allowed: another"
            )
    placement = _placed(options.mine, options, config)
    print(placement)
    board.add({
        "name": name, "file": str(options.mine), "sha256": sha256_of(options.mine),
        "config": {key: getattr(placement.setting, key) for key in CONFIG},
        "data": list(options.data), "seeds": options.seeds,
        "figures": _figures(placement), "cost": placement.rows[0].cost,
        "updates": placement.rows[0].after, "versions": machine(), "command": line,
    })  # fmt: skip
    print(f"Written to {options.board}; --leaderboard {name!r} runs it again.")
    return 0


def again(board: ResultsFile, options: argparse.Namespace) -> int:
    """List the board, or run an entry again: status 1 if a figure leaves its interval."""
    rows = {row["name"]: row for row in board.read()["rows"]}
    if not options.leaderboard:
        for row in sorted(rows.values(), key=lambda row: row["figures"]["sw_4"]):
            value, low, high = row["figures"]["sw_4"]
            print(f"sw 4 {value:.4f} [{low:.4f}, {high:.4f}], cost {row['cost']:g}: {row['name']}")
        return 0
    if options.leaderboard not in rows:
        raise Broken(f"entry is {options.leaderboard!r}; allowed: {', '.join(rows) or 'none yet'}")
    row = rows[options.leaderboard]
    file = Path(row["file"])
    load(file)
    if sha256_of(file) != row["sha256"]:
        raise Broken(f"{file} has changed since; allowed: the file that the entry was made with")
    options.data, options.seeds = row["data"], row["seeds"]
    there, outside = row["figures"], 0
    config = {k: v for k, v in row["config"].items() if k != "pieces" or v}
    for metric, (value, *_) in _figures(_placed(file, options, config)).items():
        was, low, high = there[metric]
        inside = low <= value <= high
        outside += not inside
        print(f"{metric:8} {value:.5f}, was {was:.5f} [{low:.5f}, {high:.5f}]"
              f"{'' if inside else ' OUTSIDE'}")  # fmt: skip
    return int(outside > 0)


def _placed(file: Path, options: argparse.Namespace, config: dict[str, Any]) -> Placement:
    from tqdm import tqdm

    def run(function: Callable, jobs: Sequence) -> Iterator:
        found = results_of(function, jobs, options.workers)
        return tqdm(found, total=len(jobs), desc="runs", unit="run")

    picked = options.stored / "chosen.json"
    return place(
        file, read_rows(options.stored / "runs.csv"), chosen(picked) if picked.exists() else {},
        data=options.data, seeds=options.seeds, run=run, **config,
    )  # fmt: skip


def _figures(placement: Placement) -> dict[str, list[float]]:
    return {k: [r.value, r.low, r.high] for k, r in placement.figures().items()}

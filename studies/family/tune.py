"""Choosing rate, moving average, loss and N of every method, by one rule for all.

On one data set, with three seeds, the score of a setting is the geometric mean of its sliced
Wasserstein distances at 1, 2, 4 and 8 steps. From a common start the axes are taken in turn: the
neighbours of the present value are run, and the search moves while one of them is better. It ends
when no axis moves any more, so that the choice is inside its grid on every axis. A neighbour whose
first seed is worse by a quarter, several times the seeds' spread, is not run with the others.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from slam_course.family import METHODS
from slam_course.family.results import TUNED_ON, Choice, Results, Row
from slam_course.family.training import STEPS
from studies.family.runs import Job, run_missing
from studies.harness import write_text

SEEDS, ROUNDS, HOPELESS = 3, 3, 1.25

LR = tuple(1e-3 * 2.0**k for k in range(-6, 6))
EMA = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
N = (1, 2, 4, 5, 10, 20, 50, 100, 200)
PIECES = (1, 2, 4, 8)
AXES = {"lr": LR, "ema_rate": EMA, "loss": ("l2", "huber"), "subpaths": N, "pieces": PIECES}


def axes(name: str) -> list[str]:
    """The axes of a method."""
    method = METHODS[name]
    has = [axis for axis in ("subpaths", "pieces") if axis in method.tuned]
    return ["lr", "loss", "ema_rate", *has, "lr"]


def start(name: str) -> Choice:
    """Where every method's search begins."""
    return Choice(method=name, pieces=4 if "pieces" in METHODS[name].tuned else 0)


def score(results: Results, setting: Choice, best: Choice) -> float | None:
    """Geometric mean of the distances over seeds and steps; infinite if one is not finite.

    None if not all is run that is needed to compare with ``best``.
    """

    def mean(of: Choice, seeds: int) -> float | None:
        found = [results.by_seed(of, [TUNED_ON], f"sw_{n}")[:seeds] for n in STEPS]
        if min(map(len, found)) < seeds:
            return None
        value = math.exp(sum(math.log(v) for each in found for v in each) / len(STEPS) / seeds)
        return value if math.isfinite(value) else math.inf

    first, least = mean(setting, 1), mean(best, 1)
    if first is not None and least is not None and first > HOPELESS * least:
        return first
    return mean(setting, SEEDS)


def search(
    name: str, score_of: Callable[[Choice, Choice], float | None]
) -> tuple[Choice, list[Choice]]:
    """The best setting so far, and those to run before the search can go on; none at its end."""
    best = start(name)
    for _ in range(ROUNDS):
        before = best
        for axis in axes(name):
            values = AXES[axis]
            while True:
                i = values.index(getattr(best, axis))
                near = [best.replace(**{axis: v}) for v in values[max(i - 1, 0) : i + 2]]
                scores = {setting: score_of(setting, best) for setting in near}
                missing = [setting for setting, value in scores.items() if value is None]
                if missing:
                    return best, missing
                lowest = min(near, key=scores.__getitem__)
                if scores[lowest] >= scores[best]:
                    break
                best = lowest
        if best == before:
            break
    return best, []


def tune(path: Path, names: Iterable[str], workers: int, out: Path) -> None:
    """Run every search to its end, and write what was chosen."""

    def wanted(rows: list[Row]) -> list[Job]:
        begun = {row.setting for row in rows if row.seed == 0}
        return [
            Job(setting, TUNED_ON, seed)
            for name in names for setting in _search(name, rows)[1]
            for seed in range(SEEDS if setting in begun else 1)
        ]  # fmt: skip

    rows = run_missing(wanted, path, workers)
    save(out, {name: _search(name, rows)[0] for name in names})


def _search(name: str, rows: list[Row]) -> tuple[Choice, list[Choice]]:
    results = Results(row for row in rows if row.setting.method == name)
    return search(name, lambda setting, best: score(results, setting, best))


def save(out: Path, settings: dict[str, Choice]) -> None:
    """The choices as JSON; those of methods that were not tuned now stay."""
    there = json.loads(out.read_text("utf-8")) if out.exists() else {}
    fields = ("subpaths", "pieces", "loss", "lr", "ema_rate")
    for name, setting in settings.items():
        there[name] = {k: v for k, v in dataclasses.asdict(setting).items() if k in fields}
    write_text(out, json.dumps(there, indent=1) + "\n")

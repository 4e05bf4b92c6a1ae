"""A learner's method in the table: :func:`place` checks it, trains it, and compares.

Its students see the data, noise and initial weights of the stored ones with the same data set and
seed, at the same cost, so that ratios are paired; :mod:`slam_course.results` has their formula.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from slam_course.family import METHODS
from slam_course.family.base import Method
from slam_course.family.contract import Broken, check, load, setting_of
from slam_course.family.results import HELD_OUT, Choice, Results, Row
from slam_course.family.training import STEPS, measure, reference, train_one
from slam_course.results import Ratio, paired_ratio

SHOWN = tuple(f"sw_{n}" for n in STEPS)
Job = tuple[type[Method] | Path, Choice, str, int]


@dataclass(frozen=True)
class Placement:
    """A method's own rows, and the stored rows of ``others`` on the same data sets and seeds."""

    setting: Choice
    rows: Sequence[Row]
    data: Sequence[str]
    others: Mapping[str, Choice]
    results: Results

    def figures(self) -> dict[str, Ratio]:
        """Geometric means with 95 % intervals over the seeds, by metric."""
        names = [name for name in self.rows[0].measured if not name.startswith("off")]
        mine = {name: self.results.values(self.setting, self.data, name) for name in names}
        return {k: paired_ratio(v, dict.fromkeys(v, 1.0), self.data) for k, v in mine.items()}

    def ratio(self, name: str, metric: str) -> str:
        """Of this method to another; a dash where too few rows are stored."""
        try:
            return str(self.results.ratio(self.setting, self.others[name], self.data, metric))
        except ValueError:
            return "-"

    def __str__(self) -> str:
        """The table, best at 1 step first, and what it lacks."""
        lines = []
        for name, its in {**self.others, self.setting.method: self.setting}.items():
            means = [self.results.mean(its, self.data, metric) for metric in SHOWN]
            pairs = len(self.results.values(its, self.data, "sw_1"))
            own = its == self.setting
            ratios = ["" if own else self.ratio(name, metric) for metric in ("sw_1", "sw_4")]
            cells = [f"{name}{' <-' * own}", str(its.subpaths), f"{pairs}/{len(self.rows)}"]
            lines.append((means, [*cells, *(f"{mean:.4f}" for mean in means), *ratios]))
        head = ["method", "N", "runs", *(f"sw {n}" for n in STEPS), "ratio at 1", "ratio at 4"]
        text = _aligned([head, *(cells for _, cells in sorted(lines, key=lambda line: line[0]))])
        missing = [name for name in METHODS if name not in self.others]
        if missing:
            names = "; ".join(missing) if self.others else "any method"
            text += (f"\nNo rows are stored at cost {self.setting.cost:g} on these data sets "
                     f"and seeds for {names}.")  # fmt: skip
        return text + "\nRatios are of your method to the row's; below 1, yours is better."


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def place(
    source: type[Method] | Path, stored: Iterable[Row], chosen: Mapping[str, Choice], *,
    data: Sequence[str] = HELD_OUT, seeds: int = 4,
    run: Callable[[Callable[[Job], Row], Sequence[Job]], Iterable[Row]] = map, **options: object,
) -> Placement:  # fmt: skip
    """Check a method, train it on every data set and seed, and compare it with stored rows.

    Args:
        source: a subclass of Method, or a file with one, which is what other processes can read.
        stored: rows of the study, :func:`.results.read_rows`.
        chosen: which settings of the study to compare with; of a method that is not in it, the
            one with most rows.
        run: how a function is mapped over jobs.
        options: over those of the class: lr, ema_rate, subpaths, pieces, loss, cost, teacher.

    Raises:
        slam_course.family.contract.Broken: for a method that does not keep to the contract.
    """
    method_type = load(source) if isinstance(source, Path) else source
    setting = setting_of(method_type, **options)
    check(method_type, setting)
    jobs = [(source, setting, name, seed) for seed in range(seeds) for name in data]
    rows = list(run(run_one, jobs))
    alike = [
        row for row in stored
        if row.last and row.data in data and row.seed < seeds and not row.setting.updates
        and (row.setting.cost, row.setting.teacher) == (setting.cost, setting.teacher)
    ]  # fmt: skip
    counts, others = Counter(row.setting for row in alike), {}
    for its, _ in counts.most_common():
        best = chosen.get(its.method, its).replace(cost=its.cost, teacher=its.teacher)
        others.setdefault(its.method, best if best in counts else its)
    return Placement(setting, rows, data, others, Results([*alike, *rows]))


def run_one(job: Job) -> Row:
    """One student, trained and measured.

    Raises:
        Broken: if it cost more than the first update foretold.
    """
    source, setting, data, seed = job
    method_type = load(source) if isinstance(source, Path) else source
    torch.set_num_threads(1)
    start = time.perf_counter()
    for student in train_one(method_type, data, seed, **setting.options()):
        if student.cost > setting.cost * (1 + 1 / student.updates):
            raise Broken(
                f"update {student.updates} makes the cost {student.cost:g}; allowed: "
                f"{setting.cost:g}, for which every update must cost as much as the first"
            )
    found = measure(student, reference(data, seed), seed)
    seconds = time.perf_counter() - start
    return Row(setting, data, seed, student.updates, True, found, student.cost, seconds)

"""Results of the family study: what was run, and paired ratios of what was measured.

``data/family/runs.csv`` has a row a measurement: the fields of :class:`Choice`, data set, seed,
the updates ``after`` which it was measured, what was measured, network evaluations and seconds.
:mod:`slam_course.results` has the ratio's formula.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slam_course.results import Ratio, paired_ratio
from slam_edu.io import data_path

TUNED_ON = "spiral"
"""The data set on which rates, losses and N were chosen."""

HELD_OUT = ("ring", "two_moons", "pinwheel", "checkerboard")
"""Data sets that had no part in any choice, as those of :data:`.training.HARD`."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method with all that was chosen for it.

    ``cost`` is the budget in evaluations over the batch, 0 if it is a number of ``updates``;
    ``subpaths`` and ``pieces`` (phases, windows) count where a method has them.
    """

    method: str
    subpaths: int = 50
    pieces: int = 0
    loss: str = "l2"
    lr: float = 2e-3
    ema_rate: float = 0.95
    cost: float = 10_000.0
    updates: int = 0
    teacher: str = "exact"

    def replace(self, **changes: object) -> Choice:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def options(self) -> dict[str, object]:
        """The keywords of :func:`slam_course.family.training.train_one`."""
        options = dataclasses.asdict(self)
        del options["method"]
        if not self.pieces:
            del options["pieces"]
        return options | {"updates": self.updates or None}


@dataclass(frozen=True)
class Row:
    """One measured student."""

    setting: Choice
    data: str
    seed: int
    after: int  # updates
    last: bool  # whether the run ended there
    measured: Mapping[str, float]
    cost: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> tuple[Choice, str, int, int]:
        """What identifies the row."""
        return self.setting, self.data, self.seed, 0 if self.last else self.after


_FIELDS = {field.name: field for field in dataclasses.fields(Choice)}
_KINDS = {"int": int, "float": float, "str": str}


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, none without one.

    Raises:
        ValueError: for a row that cannot be read; it names file and line.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines, rows = csv.DictReader(file), []
        for line in lines:
            try:
                rows.append(_row(line))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {lines.line_num}: {error!r}") from error
    return rows


def _row(line: dict[str, str]) -> Row:
    setting = Choice(**{n: _KINDS[f.type](line.pop(n)) for n, f in _FIELDS.items()})
    names = ("data", "seed", "after", "last", "calls", "seconds")
    data, seed, after, last, calls, seconds = (line.pop(name) for name in names)
    measured = {name: float(value) for name, value in line.items() if value}
    return Row(setting, data, int(seed), int(after), last == "1", measured, float(calls),
               float(seconds))  # fmt: skip


def rows_text(rows: Iterable[Row]) -> str:
    """Rows as the file's text, in a fixed order."""
    rows = sorted(rows, key=lambda r: (r.setting.method, r.data, str(r.setting), r.seed, r.after))
    names = list(dict.fromkeys(name for row in rows for name in row.measured))
    text = io.StringIO()
    head = ["data", "seed", "after", "last", *_FIELDS, "calls", "seconds", *names]
    out = csv.DictWriter(text, head, lineterminator="\n")
    out.writeheader()
    for row in rows:
        out.writerow(
            {"data": row.data, "seed": row.seed, "after": row.after, "last": int(row.last)}
            | dataclasses.asdict(row.setting)
            | {"calls": f"{row.cost:g}", "seconds": f"{row.seconds:.1f}"}
            | {name: f"{value:.4g}" for name, value in row.measured.items()}
        )
    return text.getvalue()


class Results:
    """Rows looked up by what was run."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._by_key = {row.key: row.measured for row in rows}

    def values(
        self, setting: Choice, data: Sequence[str], metric: str, after: int = 0
    ) -> dict[tuple[str, int], float]:
        """A metric by data set and seed, at the end or ``after`` some updates."""
        return {
            (name, seed): measured[metric]
            for (its, name, seed, when), measured in self._by_key.items()
            if its == setting and name in data and when == after and metric in measured
        }

    def mean(self, setting: Choice, data: Sequence[str], metric: str, after: int = 0) -> float:
        """Mean over data sets and seeds, geometric but for shares; NaN if nothing is there."""
        return mean_of(list(self.values(setting, data, metric, after).values()), metric)

    def by_seed(
        self, setting: Choice, data: Sequence[str], metric: str, after: int = 0
    ) -> list[float]:
        """For each seed that ran on all data sets the mean over them."""
        values = self.values(setting, data, metric, after)
        seeds = sorted({seed for _, seed in values if all((d, seed) in values for d in data)})
        return [mean_of([values[d, seed] for d in data], metric) for seed in seeds]

    def seeds(self, setting: Choice, data: Sequence[str]) -> int:
        """On how many seeds it ran on all of the data sets."""
        return len(self.by_seed(setting, data, "sw_1"))

    def ratio(
        self,
        above: Choice,
        below: Choice,
        data: Sequence[str],
        metric: str,
        after: int = 0,
    ) -> Ratio:
        """The paired ratio of two settings; see :func:`slam_course.results.paired_ratio`."""
        a, b = (self.values(setting, data, metric, after) for setting in (above, below))
        return paired_ratio(a, b, data)


def mean_of(values: Sequence[float], metric: str) -> float:
    """Geometric; of shares, which may be 0, and of the bias, which has a sign, arithmetic."""
    if not values:
        return math.nan
    if metric.startswith(("off", "bias")):
        return float(np.mean(values))
    return float(np.exp(np.mean(np.log(values))))


def family_results() -> Results:
    """The study that comes with the course."""
    return Results(read_rows(data_path("family/runs.csv")))


def chosen(path: Path | None = None) -> dict[str, Choice]:
    """What was chosen for each method on ``TUNED_ON``, by the method's name."""
    path = path or data_path("family/chosen.json")
    found = json.loads(path.read_text("utf-8"))
    return {name: Choice(method=name, **values) for name, values in found.items()}

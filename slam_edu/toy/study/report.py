r"""Paired ratios, tables and figures of the study.

Two settings are compared on the same data sets and seeds: for data set d and seed i, with measured
numbers :math:`a_{di}` and :math:`b_{di}`,

.. math:: L_i = \frac1D \sum_d \log\frac{a_{di}}{b_{di}},

and the ratio is :math:`\exp \bar L` with the 95 % interval of Student's t over the seeds,
:math:`\exp(\bar L \pm t_{n-1}\, s_L/\sqrt n)`. Pairing removes what the seeds share: initial
weights, batches, noise. The data sets are taken as given: the interval says how sure the ratio is
for these, not how it would be for others, and the ratio of each is reported beside it.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy import stats

from slam_edu.io import atomic_path
from slam_edu.toy.study.plan import CHOSEN_ON, Group
from slam_edu.toy.study.results import Row
from slam_edu.toy.study.run import STEPS, TIMES, Setting, floor

_SW = tuple(f"sw_{n}" for n in STEPS)
_MAP = tuple(f"map_{t}" for t in TIMES)


@dataclass(frozen=True)
class Ratio:
    """A paired ratio of two settings; below 1, the first is better.

    Attributes:
        value: geometric mean over data sets and seeds.
        low: lower end of the 95 % interval; NaN with a single seed.
        high: upper end.
        seeds: number of seeds.
        by_data: geometric mean over the seeds for each data set.
    """

    value: float
    low: float
    high: float
    seeds: int
    by_data: dict[str, float]

    def __str__(self) -> str:
        """The ratio with its interval, such as ``0.82 [0.78, 0.86]``."""
        if math.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Results:
    """The rows of a study, looked up by what was run.

    Args:
        rows: as :func:`slam_edu.toy.study.results.read` returns them.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._by_key = {row.key: row.measured for row in rows}

    def values(
        self, setting: Setting, data: Sequence[str], metric: str, after: int | None = None
    ) -> dict[tuple[str, int], float]:
        """The metric by data set and seed, of the runs that are there.

        Args:
            setting: what was run.
            data: names of data sets.
            metric: a name of :func:`slam_edu.toy.study.run.columns`.
            after: updates; None: the end of the run.
        """
        after = setting.updates if after is None else after
        return {
            (name, seed): measured[metric]
            for (its, name, seed, when), measured in self._by_key.items()
            if its == setting and name in data and when == after
        }

    def mean(
        self, setting: Setting, data: Sequence[str], metric: str, after: int | None = None
    ) -> float:
        """Geometric mean of the metric over data sets and seeds; NaN if nothing is there."""
        values = list(self.values(setting, data, metric, after).values())
        return float(np.exp(np.mean(np.log(values)))) if values else math.nan

    def ratio(
        self,
        above: Setting,
        below: Setting,
        data: Sequence[str],
        metric: str,
        after: int | None = None,
    ) -> Ratio:
        """The paired ratio of two settings; see the module.

        Raises:
            ValueError: if no seed was run for both on all of these data sets.
        """
        a = self.values(above, data, metric, after)
        b = self.values(below, data, metric, after)
        return paired_ratio(a, b, data)


def paired_ratio(
    above: Mapping[tuple[str, int], float], below: Mapping[tuple[str, int], float],
    data: Sequence[str],
) -> Ratio:  # fmt: skip
    """The paired ratio of two sets of numbers by data set and seed; see the module.

    Args:
        above: the numerators, positive.
        below: the denominators, positive.
        data: names of the data sets.

    Raises:
        ValueError: if no seed has both on all of these data sets.
    """
    seeds = sorted(
        {seed for _, seed in above if all((d, seed) in above and (d, seed) in below for d in data)}
    )
    if not seeds:
        raise ValueError(
            f"no seed was run for both settings on all of {', '.join(data)}; run the study"
        )
    logs = np.array([[math.log(above[d, i] / below[d, i]) for i in seeds] for d in data])  # (D, n)
    each = logs.mean(axis=0)
    half = math.nan
    if len(seeds) > 1:
        half = stats.t.ppf(0.975, len(seeds) - 1) * each.std(ddof=1) / len(seeds) ** 0.5
    by_data = dict(zip(data, np.exp(logs.mean(axis=1)).tolist(), strict=True))
    value = each.mean()
    low, high = math.exp(value - half), math.exp(value + half)
    return Ratio(math.exp(value), low, high, len(seeds), by_data)


def held_out(group: Group) -> tuple[str, ...]:
    """The group's data sets without the one on which settings were chosen, unless it is alone."""
    return tuple(name for name in group.data if name != CHOSEN_ON) or group.data


# -------------------------------------------------------------------- the report


def write_report(rows: Sequence[Row], groups: Sequence[Group], out: Path) -> None:
    """Write ``report.md`` and its figures into a folder that exists.

    Comparisons whose runs are not there are left out, and said so.
    """
    from slam_course.lesson_05 import study_figures as plots

    results = Results(rows)
    parts = [_head(rows)]
    for group in groups:
        text = [f"## {group.title}\n", _about(results, group)]
        shown = [name for name in group.settings if _seeds(results, group, name)]
        if not shown:
            parts.append("\n".join([*text, "Not run.\n"]))
            continue
        text.append(_means(results, group, shown))
        pairs = [(a, b) for a, b in group.pairs if a in shown and b in shown]
        text.append(_ratios(results, group, pairs))
        if len(shown) < len(group.settings):
            missing = ", ".join(name for name in group.settings if name not in shown)
            text.append(f"Still to run: {missing}.\n")
            parts.append("\n".join(text))
            continue
        data = held_out(group)
        for name, drawn in plots.figures(results, group, data, _floors(data)).items():
            drawn.save(out / f"{name}.png")
            text.append(f"![{drawn.alt}]({name}.png)\n")
        parts.append("\n".join(text))
    with atomic_path(out / "report.md") as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _head(rows: Sequence[Row]) -> str:
    hours = sum({row.key[:3]: row.seconds for row in rows}.values()) / 3600
    runs = len({row.key[:3] for row in rows})
    skipped = sum(row.skipped for row in rows)
    return f"""# Consistency distillation and SLAM in the plane

Written by `python -m slam_edu.toy.study`; every number comes from `runs.csv` beside this file.
{runs} runs, {hours:.1f} hours of training in all, {skipped} updates that were not finite.
Settings were chosen on `{CHOSEN_ON}` alone; means and ratios are over the other data sets unless
a comparison has no other.

- **sw n**: sliced Wasserstein distance to the data at n steps; **f\\* t**: mean distance to the
  exact end of the PF-ODE from timestep t. Geometric means over data sets and seeds.
- A **ratio** below 1 says that the first is better. In brackets the 95 % interval over the paired
  seeds; `slam_edu/toy/study/report.py` has the formula.
"""


def _about(results: Results, group: Group) -> str:
    seeds = max((_seeds(results, group, name) for name in group.settings), default=0)
    return f"Data sets: {', '.join(held_out(group))}; {seeds} seeds.\n"


def _seeds(results: Results, group: Group, name: str) -> int:
    data = held_out(group)
    metric = "sw_1"
    return len(results.values(group.settings[name], data, metric)) // len(data)


def _means(results: Results, group: Group, shown: Sequence[str]) -> str:
    columns = (*_SW, *_MAP)
    lines = [_line("", *map(_spoken, columns)), _line("---", *["---:"] * len(columns))]
    data = held_out(group)
    for name in shown:
        numbers = [results.mean(group.settings[name], data, column) for column in columns]
        lines.append(_line(name, *("" if math.isnan(v) else f"{v:.3f}" for v in numbers)))
    values = list(_floors(data).values())
    lines.append(_line("two samples of the data", f"{np.exp(np.mean(np.log(values))):.3f}"))
    return "\n".join(lines) + "\n"


def _ratios(results: Results, group: Group, pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    columns = (*_SW, *_MAP)
    data = held_out(group)
    lines = [_line("ratio", *map(_spoken, columns)), _line("---", *["---:"] * len(columns))]
    for a, b in pairs:
        cells = []
        for column in columns:
            missing = math.isnan(results.mean(group.settings[a], data, column))
            ratio = None if missing else results.ratio(
                group.settings[a], group.settings[b], data, column
            )  # fmt: skip
            cells.append("" if ratio is None else str(ratio))
        lines.append(_line(f"{a} / {b}", *cells))
    return "\n".join(lines) + "\n"


@cache
def _floors(data: tuple[str, ...]) -> dict[str, float]:
    """For each data set the distance between two of its samples, over four seeds."""
    logs = {name: [math.log(floor(name, seed)["sw_1"]) for seed in range(4)] for name in data}
    return {name: math.exp(float(np.mean(values))) for name, values in logs.items()}


def _spoken(column: str) -> str:
    kind, number = column.split("_")
    return {"sw": "sw ", "map": "f\\* "}[kind] + number


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


# -------------------------------------------------------------------- how it was made


def record(out: Path, seconds: float, workers: int) -> None:
    """Add a stretch of running to ``study.json``: versions, machine, wall time.

    Args:
        out: the study's folder.
        seconds: wall time of this stretch.
        workers: processes it used.
    """
    path = out / "study.json"
    stretches = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    stretches.append(
        {
            "seconds": round(seconds),
            "workers": workers,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "machine": f"{platform.system()} {platform.machine()}",
        }
    )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(stretches, indent=2) + "\n", encoding="utf-8")

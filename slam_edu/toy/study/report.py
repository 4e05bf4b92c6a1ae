"""Paired ratios, tables and figures of the study."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import scipy
import torch

from slam_course.figures import CourseFigure
from slam_course.lesson_05 import figures as plots
from slam_course.lesson_05.students import floor
from slam_course.results import CHOSEN_ON, METHODS, STEPS, TIMES, ToyResults, ToyRow
from slam_edu.io import atomic_path
from slam_edu.toy.study.plan import Group

_SW = tuple(f"sw_{n}" for n in STEPS)
_MAP = tuple(f"map_{t}" for t in TIMES)


def held_out(group: Group) -> tuple[str, ...]:
    """The group's data sets without the one on which settings were chosen, unless it is alone."""
    return tuple(name for name in group.data if name != CHOSEN_ON) or group.data


# -------------------------------------------------------------------- the report


def write_report(rows: Sequence[ToyRow], groups: Sequence[Group], out: Path) -> None:
    """Write ``report.md`` and its figures into a folder that exists.

    Comparisons whose runs are not there are left out, and said so.
    """
    results = ToyResults(rows)
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
        for name, drawn in _figures(results, group, data).items():
            drawn.save(out / f"{name}.png")
            text.append(f"![{drawn.alt}]({name}.png)\n")
        parts.append("\n".join(text))
    with atomic_path(out / "report.md") as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _figures(results: ToyResults, group: Group, data: Sequence[str]) -> dict[str, CourseFigure]:
    """The figures of a group, by the name of their file."""
    floor = _floors(tuple(data))
    if group.name == "subpaths":
        return {"subpaths": plots.over_subpaths(results, group.settings, data, floor)}
    if group.name == "budget":
        return {"budget": plots.over_updates(results, group.settings, data, floor)}
    drawn, found = {}, {}
    if group.name in ("main", "quick"):
        solvers = ("DDIM", "DPM-Solver++", "DPM-Solver++, even in log rho")
        shown = {n: s for n, s in group.settings.items() if n in METHODS or n in solvers}
        drawn[f"{group.name}_steps"] = plots.steps_against_quality(results, shown, data, floor)
    for above, below in group.pairs:
        a, b = group.settings[above], group.settings[below]
        name = above if below == "CD" or ";" in below else f"{above} / {below}"
        metrics = ("sw_1", "sw_2", "sw_4", "map_999", "map_499")
        found[name] = {metric: results.ratio(a, b, data, metric) for metric in metrics}
    title = f"{group.title}: ratio to consistency distillation, unless said"
    return drawn | {f"{group.name}_ratios": plots.ratios(found, title)}


def _head(rows: Sequence[ToyRow]) -> str:
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
  seeds; `slam_course/results.py` has the formula.
"""


def _about(results: ToyResults, group: Group) -> str:
    seeds = max((_seeds(results, group, name) for name in group.settings), default=0)
    return f"Data sets: {', '.join(held_out(group))}; {seeds} seeds.\n"


def _seeds(results: ToyResults, group: Group, name: str) -> int:
    data = held_out(group)
    metric = "sw_1"
    return len(results.values(group.settings[name], data, metric)) // len(data)


def _means(results: ToyResults, group: Group, shown: Sequence[str]) -> str:
    columns = (*_SW, *_MAP)
    lines = [_line("", *map(_spoken, columns)), _line("---", *["---:"] * len(columns))]
    data = held_out(group)
    for name in shown:
        numbers = [results.mean(group.settings[name], data, column) for column in columns]
        lines.append(_line(name, *("" if math.isnan(v) else f"{v:.3f}" for v in numbers)))
    values = list(_floors(data).values())
    lines.append(_line("two samples of the data", f"{np.exp(np.mean(np.log(values))):.3f}"))
    return "\n".join(lines) + "\n"


def _ratios(results: ToyResults, group: Group, pairs: Sequence[tuple[str, str]]) -> str:
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

"""The study's report: for each group its means, its paired ratios and its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slam_course.lesson_05.students import floor
from slam_course.results import CHOSEN_ON, METHODS, STEPS, TIMES, ToyResults, ToyRow
from studies.harness import REPORT, table, write_text
from studies.toy.groups import Group

if TYPE_CHECKING:
    from slam_course.figures import CourseFigure

COLUMNS = {f"sw_{n}": f"sw {n}" for n in STEPS} | {f"map_{t}": f"f\\* {t}" for t in TIMES}
SOLVERS = ("DDIM", "DPM-Solver++", "DPM-Solver++, even in log rho")


def write_report(rows: Sequence[ToyRow], groups: Sequence[Group], out: Path) -> None:
    """Write ``report.md`` and its figures into a folder that exists.

    Comparisons whose runs are not there are left out, and said so.
    """
    results = ToyResults(rows)
    parts = [_head(rows)]
    for group in groups:
        seeds = {name: _seeds(results, group, name) for name in group.settings}
        text = [
            f"## {group.title}\n",
            f"Data sets: {', '.join(group.held_out)}; {max(seeds.values())} seeds.\n",
        ]
        shown = [name for name, count in seeds.items() if count]
        if not shown:
            parts.append("\n".join([*text, "Not run.\n"]))
            continue
        text += [_means(results, group, shown), _ratios(results, group, shown)]
        if len(shown) < len(group.settings):
            missing = ", ".join(name for name in group.settings if name not in shown)
            text.append(f"Still to run: {missing}.\n")
        else:
            for name, drawn in figures(results, group).items():
                drawn.save(out / f"{name}.png")
                text.append(f"![{drawn.alt}]({name}.png)\n")
        parts.append("\n".join(text))
    write_text(out / REPORT, "\n".join(parts))


def _head(rows: Sequence[ToyRow]) -> str:
    hours = sum({row.key[:3]: row.seconds for row in rows}.values()) / 3600
    runs = len({row.key[:3] for row in rows})
    skipped = sum(row.skipped for row in rows)
    return f"""# Consistency distillation and SLAM in the plane

Written by `python -m studies.toy`; every number comes from `runs.csv` beside this file.
{runs} runs, {hours:.1f} hours of training in all, {skipped} updates that were not finite.
Settings were chosen on `{CHOSEN_ON}` alone; means and ratios are over the other data sets unless
a comparison has no other.

- **sw n**: sliced Wasserstein distance to the data at n steps; **f\\* t**: mean distance to the
  exact end of the PF-ODE from timestep t. Geometric means over data sets and seeds.
- A **ratio** below 1 says that the first is better. In brackets the 95 % interval over the paired
  seeds; `slam_course/results.py` has the formula.
"""


def _seeds(results: ToyResults, group: Group, name: str) -> int:
    return len(results.values(group.settings[name], group.held_out, "sw_1")) // len(group.held_out)


def _means(results: ToyResults, group: Group, shown: Sequence[str]) -> str:
    lines = []
    for name in shown:
        found = [results.mean(group.settings[name], group.held_out, c) for c in COLUMNS]
        lines.append([name, *("" if math.isnan(v) else f"{v:.3f}" for v in found)])
    values = list(floors(group.held_out).values())
    lines.append(["two samples of the data", f"{np.exp(np.mean(np.log(values))):.3f}"])
    return table(["", *COLUMNS.values()], lines)


def _ratios(results: ToyResults, group: Group, shown: Sequence[str]) -> str:
    lines = []
    for above, below in group.pairs:
        if above in shown and below in shown:
            a, b, data = group.settings[above], group.settings[below], group.held_out
            there = [not math.isnan(results.mean(a, data, c)) for c in COLUMNS]
            cells = [
                str(results.ratio(a, b, data, c)) if is_there else ""
                for c, is_there in zip(COLUMNS, there, strict=True)
            ]
            lines.append([f"{above} / {below}", *cells])
    return table(["ratio", *COLUMNS.values()], lines) if lines else ""


@cache
def floors(data: tuple[str, ...]) -> dict[str, float]:
    """For each data set the distance between two of its samples, over four seeds."""
    logs = {name: [math.log(floor(name, seed)["sw_1"]) for seed in range(4)] for name in data}
    return {name: math.exp(float(np.mean(values))) for name, values in logs.items()}


def figures(results: ToyResults, group: Group) -> dict[str, CourseFigure]:
    """The figures of a group, by the name of their file."""
    from slam_course.lesson_05 import figures as plots

    settings, data = group.settings, group.held_out
    if group.name == "subpaths":
        return {"subpaths": plots.over_subpaths(results, settings, data, floors(data))}
    if group.name == "budget":
        return {"budget": plots.over_updates(results, settings, data, floors(data))}
    drawn, found = {}, {}
    if group.name in ("main", "quick"):
        shown = {n: s for n, s in settings.items() if n in METHODS or n in SOLVERS}
        steps = plots.steps_against_quality(results, shown, data, floors(data))
        drawn[f"{group.name}_steps"] = steps
    for above, below in group.pairs:
        name = above if below == "CD" or ";" in below else f"{above} / {below}"
        found[name] = {
            metric: results.ratio(settings[above], settings[below], data, metric)
            for metric in ("sw_1", "sw_2", "sw_4", "map_999", "map_499")
        }
    title = f"{group.title}: ratio to consistency distillation, unless said"
    return drawn | {f"{group.name}_ratios": plots.ratios(found, title)}

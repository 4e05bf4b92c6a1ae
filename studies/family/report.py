"""The family study's report: for each group its means and its paired ratios."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from slam_course.family.results import TUNED_ON, Choice, Results, Row, mean_of
from slam_course.family.training import STEPS, floor
from studies.family.groups import Group
from studies.harness import REPORT, table, write_text

COLUMNS = {f"sw_{n}": f"sw {n}" for n in STEPS} | {
    "off_1": "off 1", "off_4": "off 4", "map_999": "f\\* 999", "map_499": "f\\* 499",
}  # fmt: skip
RATIOS = [c for c in COLUMNS if not c.startswith("off")]


def write_report(rows: list[Row], chosen: Mapping[str, Choice], groups: Mapping[str, Group],
                 out: Path) -> None:  # fmt: skip
    """Write ``report.md`` into a folder that exists; what is still to run is said so."""
    results = Results(rows)
    parts = [_head(rows), _choices(chosen), *(_group(results, g) for g in groups.values())]
    write_text(out / REPORT, "\n".join(parts))


def _head(rows: list[Row]) -> str:
    hours = sum(row.seconds for row in rows if row.last) / 3600
    return f"""# The family of few-step methods in the plane

Written by `python -m studies.family`; every number comes from `runs.csv` beside this file.
{sum(row.last for row in rows)} runs, {hours:.1f} hours of training.

- Evaluations are counted at the networks: forward 1, backward 2, a tangent 1. Unless a group says
  otherwise, every student may cost 10,000 evaluations of its batch of 256, which are 2,000 updates
  of consistency distillation.
- **sw n**: sliced Wasserstein distance to the data at n steps; **off n**: share of points off the
  support, where the data's density is below its 0.1 % quantile; **f\\* t**: mean distance to the
  exact end of the PF-ODE from timestep t. Means over data sets and seeds, geometric but for
  shares.
- A **ratio** below 1 says that the first is better. In brackets the 95 % interval over the paired
  seeds; `slam_course/results.py` has the formula.
"""


def _choices(chosen: Mapping[str, Choice]) -> str:
    lines = [
        [name, f"{s.lr:g}", f"{s.ema_rate:g}", s.loss, str(s.subpaths), str(s.pieces or "")]
        for name, s in chosen.items()
    ]
    head = ["", "rate", "EMA", "loss", "N", "pieces"]
    return f"## Chosen on `{TUNED_ON}` alone, by `tune`\n\n{table(head, lines)}"


def _group(results: Results, group: Group) -> str:
    text = [f"## {group.title}\n\nData sets: {', '.join(group.data)}.\n"]
    seeds = {label: results.seeds(s, group.data) for label, s in group.settings.items()}
    shown = [label for label, count in seeds.items() if count]
    lines, ratios = [], []
    for label in shown:
        setting, below = group.settings[label], group.below[label]
        means = [results.mean(setting, group.data, c) for c in COLUMNS]
        lines.append([label, str(seeds[label]), *(f"{v:.3f}" for v in means)])
        if below in shown and below != label:
            found = [results.ratio(setting, group.settings[below], group.data, c) for c in RATIOS]
            ratios.append([f"{label} / {below}", *map(str, found)])
    if lines:
        low = floors(tuple(group.data))
        cells = [f"{low[c]:.3f}" if c in low else "" for c in COLUMNS]
        lines.append(["two samples of the data", "4", *cells])
        text.append(table(["", "seeds", *COLUMNS.values()], lines))
    if ratios:
        text.append(table(["ratio", *(COLUMNS[c] for c in RATIOS)], ratios))
    missing = [label for label in group.settings if label not in shown]
    if missing:
        text.append(f"Still to run: {', '.join(missing)}.\n")
    return "\n".join(text)


@cache
def floors(data: tuple[str, ...]) -> dict[str, float]:
    """What a second sample of the data has, means over the data sets and four seeds."""
    found = [floor(name, seed) for name in data for seed in range(4)]
    return {
        column: mean_of([each[kind] for each in found], column)
        for column in COLUMNS if (kind := column.split("_")[0]) in found[0]
    }  # fmt: skip

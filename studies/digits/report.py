"""The report on students: tables and figures, from the results and the folders of the runs.

Means are over seeds. Ratios are paired over the seeds (:mod:`slam_course.results`), which removes
what these share: data, draws and noise. Rates carry the binomial standard error of all images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slam_course.figures import SOLVER_NAMES
from slam_course.lesson_08.students import (
    CD,
    HALF_ONE,
    MEASURES,
    OFFICIAL,
    START,
    STEPS,
    TEACHER_STEPS,
    TIMES,
    DigitResults,
    ahead_of_solvers,
    best_slam,
    calls_table,
    embedding_at_one,
    errors_given,
)
from slam_edu.digits.captions import FULL, caption
from slam_edu.digits.evaluate import Setting, teacher_latents
from slam_edu.io import read_rows
from slam_edu.sd.components import text_condition
from slam_edu.sd.run import load_run
from slam_edu.sd.sampling import student_latents
from slam_edu.sd.tracking import LOG
from studies.digits.measure import study_noise
from studies.digits.reference import teacher_model
from studies.digits.students import PAIRS, SETTINGS, StudentPlan
from studies.harness import REPORT, table, write_text

if TYPE_CHECKING:
    from slam_course.figures import CourseFigure
    from slam_course.results import Ratio

RATIOS = {
    "Ratios of errors to the teacher's solution map": [
        f"{kind}_{t}" for kind in ("latent", "pixel") for t in TIMES
    ],
    "Ratios of distances to the teacher's samples": [
        f"{kind}_teacher_{n}" for kind in ("frechet", "kernel") for n in STEPS
    ],
    "Ratios of the fraction that is not as asked for, and of distances to real images": [
        f"{kind}_{n}" for kind in ("wrong", "frechet_real", "kernel_real") for n in STEPS
    ],
}
_METRICS = {
    "latent": "latents, t = ", "pixel": "pixels, t = ", "frechet_teacher": "Fréchet ",
    "kernel_teacher": "kernel ", "frechet_real": "real, Fréchet ",
    "kernel_real": "real, kernel ", "wrong": "wrong ",
}  # fmt: skip


def plan_of(content: Mapping[str, Any]) -> StudentPlan:
    """The study that a results file is of."""
    about = content["about"]
    return StudentPlan(
        changes=tuple(about["changes"]), prompts=about["prompts"], points=about["points"],
        solver_steps=about["solver_steps"],
    )  # fmt: skip


def write_report(content: Mapping[str, Any], out: Path) -> None:
    """Write ``report.md`` and its figures into the study's folder.

    Figures of samples and of losses need the runs that lie in it, and are left out where they are
    not there.
    """
    plan, results = plan_of(content), DigitResults(dict(content))
    drawn = draw_figures(plan, results, out)
    for name, fig in drawn.items():
        fig.save(out / f"{name}.png")
    shown = {name: f"![{fig.alt}]({name}.png)\n" for name, fig in drawn.items()}
    parts = [
        _head(plan, results),
        targets(results),
        "## Quality over network calls\n",
        shown.get("calls", ""),
        *(calls_table(results, measure) for measure in MEASURES),
        shown.get("grid", ""),
        "## Errors to the teacher's guided solution map\n",
        map_table(results),
        shown.get("map", ""),
        "## Paired ratios\n",
        "Numerator / denominator. Where an unbiased kernel distance is not above 0 there is no "
        "ratio. The fraction that is not as asked for is (wrong + 1/2)/(prompts + 1).\n",
        *(ratio_table(results, title, metrics) for title, metrics in RATIOS.items()),
        shown.get("ratios", ""),
        "## Is gamma = 1 the place where the official student fails?\n",
        gamma_tables(results),
        shown.get("gamma", ""),
        "## Training\n",
        cost_table(results),
        shown.get("loss", ""),
    ]
    write_text(out / REPORT, "\n".join(part for part in parts if part))


def _head(plan: StudentPlan, results: DigitResults) -> str:
    names = results.names
    seeds = [len(results.student(name)) for name in names]
    least, most = min(seeds, default=0), max(seeds, default=0)
    missing = [name for name in (START, *SETTINGS) if name not in names]
    changes = f" Changed for all: {', '.join(plan.changes)}." if plan.changes else ""
    config = plan.config(CD, 0)
    training, guidance = config.training, config.distillation.guidance
    lines = [
        "# Students of the digits teacher at equal cost\n",
        f"Written by `python -m studies.digits`; every number comes from "
        f"`students.json`. {training.updates:,} updates of {training.batch} samples, learning "
        f"rate {training.lr:g}, EMA rate {training.ema_rate:g}, guidance w = {guidance:g}."
        f"{changes}",
        f"{least}{f' to {most}' if most > least else ''} seeds; {plan.prompts:,} prompts a "
        f"measurement; {plan.points} points at each timestep of the solution map.\n",
        "- One step of a student is one network call; a guided step of a solver is two. 1 call is "
        "a step without guidance.",
        f"- **{START}**: the teacher without guidance, sampled as a student is; all students "
        f"begin there.",
        f"- The **teacher's samples** are {TEACHER_STEPS} DDIM steps from noise of their own; the "
        f"teacher's row at {2 * TEACHER_STEPS} calls is their distance to other samples of the "
        f"teacher, the floor.",
    ]
    if results.change:
        errors = (results.mean(name, f"latent_{t}") for name in names for t in TIMES)
        lines.append(
            f"- The solution map is followed in {plan.solver_steps} steps of DPM-Solver++ 2M; "
            f"twice as many change its ends by {max(results.change.values()):.2g} (root mean "
            f"square, latents) at most, where the smallest of the students' errors is "
            f"{min(errors, default=math.nan):.2g}."
        )
    if missing:
        lines.append(f"- Still to run: {'; '.join(missing)}.")
    return "\n".join(lines) + "\n"


# -------------------------------------------------------------------- tables


def map_table(results: DigitResults) -> str:
    """Errors to the solution map, root mean square, in latents and in pixels."""
    columns = [(kind, t) for kind in ("latent", "pixel") for t in TIMES]
    rows = []
    for name in results.names:
        values = [results.mean(name, f"{kind}_{t}") for kind, t in columns]
        rows.append([name, *(f"{v:.3f}" for v in values)])
    for setting, row in results.solvers():
        steps = f"{setting.steps} step{'s' * (setting.steps > 1)}"
        unguided = "" if setting.guidance else ", unguided"
        cells = [
            f"{row.measured[f'{kind}_{t}']:.3f}" if t == TIMES[0] else "" for kind, t in columns
        ]
        rows.append([f"teacher, {SOLVER_NAMES[setting.sampler]}, {steps}{unguided}", *cells])
    return table(["root mean square", *(f"{kind}s, t = {t}" for kind, t in columns)], rows)


def ratio_table(results: DigitResults, title: str, metrics: Sequence[str]) -> str:
    """Paired ratios with their intervals, a column for each metric."""
    rows = []
    for above, below in PAIRS:
        if above in results.names and below in results.names:
            found = [results.ratio(above, below, metric) for metric in metrics]
            cells = ["" if ratio is None else str(ratio) for ratio in found]
            rows.append([f"{above} / {below}", *cells])
    return table([f"**{title}**", *map(_title, metrics)], rows) if rows else ""


def _title(metric: str) -> str:
    kind, _, number = metric.rpartition("_")
    return _METRICS[kind] + number


def gamma_tables(results: DigitResults) -> str:
    """What the embedding is at gamma = 1, and what trained students do there."""
    intro = (
        "Distances and leverages (squared Mahalanobis distances) to the mean over gammas below 1; "
        "in brackets their 99 % quantile. *Seen*: how many of 8,000 drawn gammas have features "
        "whose cosine with those of gamma = 1 is above .9.\n"
    )
    head = ("", "distance at 1", "below 1", "nearest at 1", "below 1", "leverage at 1",
            "at 0", "below 1", "seen")  # fmt: skip
    rows = []
    for name, kind in (
        ("e(10 - 10 gamma), official", "official"), ("smooth features", "smooth"),
    ):  # fmt: skip
        found = embedding_at_one(kind)
        seen = "" if math.isnan(found["seen"]) else f"{found['seen']:.0f}"
        rows.append([name, *_place(found), seen])
    by_name = {name: list(results.student(name).values()) for name in results.names}
    given = {name: all_ for name, all_ in by_name.items() if all(row.gamma for row in all_)}
    for name, all_ in given.items():
        shifts = [row.gamma["shift"] for row in all_]
        mean = {key: float(np.mean([shift[key] for shift in shifts])) for key in shifts[0]}
        rows.append([f"shift of: {name}", *_place(mean), ""])
    parts = [intro, table(head, rows)]
    if given:
        parts.append(
            f"Errors to the solution map (latents, mean over t = {', '.join(map(str, TIMES))}) "
            f"of students that are told another gamma of the same point:\n"
        )
        gammas = sorted({float(g) for all_ in given.values() for g in all_[0].gamma["told"]})
        rows = [
            [name, *(f"{float(np.mean(errors_given(all_, g))):.3f}" for g in gammas)]
            for name, all_ in given.items()
        ]
        parts.append(table(["", *(f"{g:g}" for g in gammas)], rows))
    return "\n".join(parts)


def _place(found: Mapping[str, float]) -> list[str]:
    short = {name: f"{value:.3g}" for name, value in found.items()}
    return [
        short["distance_one"],
        f"{short['distance_mean']} ({short['distance_p99']})",
        short["nearest_one"],
        short["nearest_median"],
        short["leverage_one"],
        short["leverage_zero"],
        f"{short['leverage_mean']} ({short['leverage_p99']})",
    ]


def cost_table(results: DigitResults) -> str:
    """Seconds of training and measuring, and updates that were not finite."""
    lines = []
    for name in results.names:
        rows = list(results.student(name).values())
        means = [
            np.mean([getattr(row, kind) for row in rows]) for kind in ("training", "measuring")
        ]
        skipped = sum(row.skipped for row in rows)
        lines.append([name, str(len(rows)), *(f"{mean:.0f}" for mean in means), str(skipped)])
    return table(["", "seeds", "training, s", "measuring, s", "updates not finite"], lines)


def targets(results: DigitResults) -> str:
    """Whether the study's targets are met, a line each, with the numbers."""
    teacher = [row for setting, row in results.solvers() if setting.steps == TEACHER_STEPS]
    if not teacher or CD not in results.names:
        return ""
    right = teacher[0].measured[f"right_{2 * TEACHER_STEPS}"]
    best = best_slam(results)
    names = [name for name in dict.fromkeys((best, CD)) if name is not None]
    lines = ["## Targets\n", f"SLAM's variant with the smallest error to the map: {best}.\n"]
    for steps, allowed in ((4, 0.01), (2, 0.04)):
        for name in names:
            found = results.mean(name, f"right_{steps}")
            lines.append(
                f"- {_verdict(found >= right - allowed)}: {name}, {steps} steps, "
                f"{found:.1%} as asked for; the teacher's {TEACHER_STEPS} steps {right:.1%} "
                f"(within {allowed:.0%})."
            )
    for name in names:
        ahead = ahead_of_solvers(results, name)
        where = ", ".join(f"{n}: {'yes' if is_ahead else 'no'}" for n, is_ahead in ahead.items())
        lines.append(
            f"- {_verdict(all(ahead.values()))}: {name} is ahead of every solver at as many "
            f"calls ({where})."
        )
    if best is not None:
        metrics = [f"latent_{t}" for t in TIMES]
        metrics += [f"frechet_teacher_{n}" for n in STEPS if n <= 4]
        ratios = {m: results.ratio(best, CD, m) for m in metrics}
        clear = [r is not None and r.high < 1 for r in ratios.values()]
        said = ", ".join(f"{_title(m)} {r}" for m, r in ratios.items())
        lines.append(
            f"- {_verdict(all(clear))}: {best} against consistency distillation, paired "
            f"ratios clearly below 1 in {sum(clear)} of {len(clear)}: {said}."
        )
    if {OFFICIAL, HALF_ONE} <= set(results.names):
        for name in (OFFICIAL, HALF_ONE):
            rates = ", ".join(f"{results.mean(name, f'right_{n}'):.1%}" for n in STEPS)
            lines.append(f"- The gamma path: {name}, as asked for at {STEPS} steps: {rates}.")
    return "\n".join(lines) + "\n"


def _verdict(met: bool) -> str:
    return "met" if met else "not met"


# -------------------------------------------------------------------- figures


def draw_figures(plan: StudentPlan, results: DigitResults, out: Path) -> dict[str, CourseFigure]:
    """All figures of the report for which there are data, by name."""
    from slam_course.lesson_08 import figures as plots
    from studies.digits.figures import training_curves

    if not results.names:
        return {}
    found = {"map": plots.map_figure(results), "gamma": plots.gamma_figure(results)}
    if any(setting.steps == TEACHER_STEPS for setting, _ in results.solvers()):
        found["calls"] = plots.calls_figure(results)
    ratios = _ratios_to_cd(results)
    if ratios:
        title = "Students of the digits teacher, ratio to consistency distillation"
        found["ratios"] = plots.student_ratios(ratios, _PANELS, title)
    logs = training_logs(plan, results, out)
    if logs:
        found["loss"] = training_curves(logs)
    grid = draw_grid(plan, results, out)
    return found if grid is None else found | {"grid": grid}


_PANELS = {
    "latent_999": "error to the map,\nt = 999",
    "latent_499": "error to the map,\nt = 499",
    "frechet_teacher_1": "distance to\nteacher, 1 step",
    "frechet_teacher_2": "2 steps",
    "frechet_teacher_4": "4 steps",
}


def _ratios_to_cd(results: DigitResults) -> dict[str, dict[str, Ratio]]:
    found = {}
    for above, below in PAIRS:
        if below == CD and {above, below} <= set(results.names):
            row = {metric: results.ratio(above, below, metric) for metric in _PANELS}
            if all(ratio is not None for ratio in row.values()):
                found[above] = row
    return found


def training_logs(
    plan: StudentPlan, results: DigitResults, out: Path
) -> dict[str, list[list[dict[str, float]]]]:
    """The rows of ``log.csv`` of all runs that lie in the study's folder: by student, by seed."""
    logs = {}
    for name in (name for name in results.names if name != START):
        found = [
            read_rows(Path(plan.config(name, seed, out).out) / LOG)
            for seed in results.student(name)
        ]
        if any(found):
            logs[name] = [rows for rows in found if rows]
    return logs


def draw_grid(
    plan: StudentPlan, results: DigitResults, out: Path, seed: int = 0
) -> CourseFigure | None:
    """The same eight prompts from the same noise: teacher, solver, students; steps in brackets.

    None where the runs of consistency distillation and of SLAM's best variant are not there.
    """
    from slam_course.images import prompt_grid
    from studies.digits.figures import COLUMNS

    best = best_slam(results)
    if best is None or CD not in results.names:
        return None
    shown = {"CD": CD, best.replace("gamma =", "γ ="): best}
    if best != OFFICIAL and OFFICIAL in results.names:
        shown["official"] = OFFICIAL
    configs = {label: plan.config(name, seed, out) for label, name in shown.items()}
    try:
        runs = {k: load_run(c.out, show=lambda _line: None) for k, c in configs.items()}
    except FileNotFoundError:
        return None
    model = teacher_model(plan)
    prompts = [caption(FULL[0], digit, *pair) for digit, pair in enumerate(COLUMNS)]
    cond, noise = text_condition(model.pipeline, prompts), study_noise(model, len(prompts), seed)
    rows = {}
    for label, steps in (("teacher", TEACHER_STEPS), ("DDIM", 2), ("DDIM", 4)):
        setting = Setting(steps=steps, guidance=plan.guidance)
        rows[f"{label} ({steps})"] = teacher_latents(model, cond.states, noise, setting)
    for label, run in runs.items():
        for steps in (1, 2, 4) if label != "official" else (4,):
            rows[f"{label} ({steps})"] = student_latents(
                run.networks, configs[label], model, cond, noise, steps, seed
            )
    columns = [f"{stroke} {i}\non {ground}" for i, (stroke, ground) in enumerate(COLUMNS)]
    images = torch.cat([model.decode(latents) for latents in rows.values()])
    return prompt_grid(images, list(rows), columns)

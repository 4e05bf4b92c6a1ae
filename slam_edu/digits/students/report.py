r"""Tables and figures of the study, from its results file and the folders of its runs.

Means are over seeds. A ratio of two students is the geometric mean over the seeds of their
ratios, with the 95 % interval of Student's t of the logarithms
(:func:`slam_edu.toy.study.report.paired_ratio`): pairing removes what the seeds share, the data,
the draws and the noise. Rates carry the binomial standard error of all images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from slam_course.results import Ratio
from slam_edu.digits.captions import FULL, caption
from slam_edu.digits.evaluate.table import Setting
from slam_edu.digits.students.gamma import cosines_to_one, embedding_at_one
from slam_edu.digits.students.measure import study_noise
from slam_edu.digits.students.plan import (
    CD,
    HALF_ONE,
    OFFICIAL,
    PAIRS,
    START,
    STEPS,
    TEACHER_STEPS,
    TIMES,
    Plan,
    slam_names,
)
from slam_edu.digits.students.results import Results, Row
from slam_edu.io import atomic_path

if TYPE_CHECKING:
    from slam_course.figures import CourseFigure

REPORT = "report.md"
SOLVER_NAMES = {"ddim": "DDIM", "dpmpp_2m": "DPM-Solver++ 2M"}
#: Prompts of the grid of images: digits 0 to 7, each in another pair of colours.
COLOURS = (
    ("red", "yellow"), ("white", "blue"), ("cyan", "black"), ("yellow", "purple"),
    ("blue", "white"), ("black", "cyan"), ("purple", "green"), ("green", "red"),
)  # fmt: skip

#: Measures by network calls: title, number of decimals, and what the numbers are multiplied with.
MEASURES = {
    "right": ("As asked for, %", 1, 100),
    "frechet_teacher": ("Fréchet distance to the teacher's samples", 2, 1),
    "kernel_teacher": ("Kernel distance to the teacher's samples, times 1000", 1, 1000),
    "frechet_real": ("Fréchet distance to held-out real images", 2, 1),
    "kernel_real": ("Kernel distance to held-out real images, times 1000", 1, 1000),
}
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


def write_report(results: Results, out: Path, figures: bool = True) -> Path:
    """Write ``report.md`` and its figures into the study's folder.

    Args:
        results: of the study.
        out: its folder; figures of samples and of losses need the runs that lie in it, and are
            left out where they are not there.
        figures: whether to draw.

    Returns:
        the report's path.
    """
    drawn = draw_figures(results, out) if figures else {}
    for name, fig in drawn.items():
        fig.save(out / f"{name}.png")
    shown = {name: f"![{fig.alt}]({name}.png)\n" for name, fig in drawn.items()}
    parts = [
        _head(results),
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
    with atomic_path(out / REPORT) as temporary:
        temporary.write_text("\n".join(part for part in parts if part), "utf-8")
    return out / REPORT


def _head(results: Results) -> str:
    plan, names = results.plan, results.names
    seeds = {name: len(results.student(name)) for name in names}
    least, most = min(seeds.values(), default=0), max(seeds.values(), default=0)
    missing = [name for name in (START, *Plan().names) if name not in names]
    changes = f" Changed for all: {', '.join(plan.changes)}." if plan.changes else ""
    config = plan.config(CD, 0)
    training = config.training
    lines = [
        "# Students of the digits teacher at equal cost\n",
        f"Written by `python -m slam_edu.digits.students`; every number comes from "
        f"`students.json`. {training.updates:,} updates of {training.batch} samples, learning "
        f"rate {training.lr:g}, EMA rate {training.ema_rate:g}, guidance w = "
        f"{config.distillation.guidance:g}.{changes}",
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
        worst = max(results.change.values())
        least_error = min(
            (results.mean(name, f"latent_{t}") for name in names for t in TIMES),
            default=math.nan,
        )
        lines.append(
            f"- The solution map is followed in {plan.solver_steps} steps of DPM-Solver++ 2M; "
            f"twice as many change its ends by {worst:.2g} (root mean square, latents) at most, "
            f"where the smallest of the students' errors is {least_error:.2g}."
        )
    if missing:
        lines.append(f"- Still to run: {'; '.join(missing)}.")
    return "\n".join(lines) + "\n"


# -------------------------------------------------------------------- tables


def calls_table(results: Results, measure: str) -> str:
    """A measure by network calls: students, solvers, real images.

    Args:
        results: of the study.
        measure: a name of :data:`MEASURES`.
    """
    title, digits, scale = MEASURES[measure]
    solvers = _by_sampler(results)
    calls = sorted({*STEPS, *(n for row in solvers.values() for n in row)})

    def cell(values: Sequence[float]) -> str:
        if not values:
            return ""
        mean = float(np.mean(values))
        text = f"{scale * mean:.{digits}f}"
        if measure == "right":
            n = results.plan.prompts * len(values)
            text += f" ± {scale * math.sqrt(mean * (1 - mean) / n):.{digits}f}"
        return text

    lines = [_line(f"**{title}**", *map(str, calls)), _line("---", *["---:"] * len(calls))]
    for name in results.names:
        found = [list(results.values(name, f"{measure}_{n}").values()) for n in calls]
        lines.append(_line(name, *map(cell, found)))
    for sampler, by_calls in solvers.items():
        found = [[by_calls[n].measured[f"{measure}_{n}"]] if n in by_calls else [] for n in calls]
        lines.append(_line(f"teacher, {SOLVER_NAMES[sampler]}", *map(cell, found)))
    if f"{measure}_0" in results.floor:
        real = [results.floor[f"{measure}_0"]]
        lines.append(_line("real images", cell(real), *[""] * (len(calls) - 1)))
    return "\n".join(lines) + "\n"


def map_table(results: Results) -> str:
    """Errors to the solution map, root mean square, in latents and in pixels."""
    columns = [(kind, t) for kind in ("latent", "pixel") for t in TIMES]
    head = [f"{kind}s, t = {t}" for kind, t in columns]
    lines = [_line("root mean square", *head), _line("---", *["---:"] * len(head))]
    for name in results.names:
        values = [results.mean(name, f"{kind}_{t}") for kind, t in columns]
        lines.append(_line(name, *(f"{v:.3f}" for v in values)))
    top = TIMES[0]
    for setting, row in results.solvers():
        cells = [f"{row.measured[f'{kind}_{t}']:.3f}" if t == top else "" for kind, t in columns]
        lines.append(_line(f"teacher, {_solver_name(setting)}", *cells))
    return "\n".join(lines) + "\n"


def ratio_table(results: Results, title: str, metrics: Sequence[str]) -> str:
    """Paired ratios with their intervals.

    Args:
        results: of the study.
        title: of the table.
        metrics: its columns.
    """
    lines = [
        _line(f"**{title}**", *map(_spoken, metrics)), _line("---", *["---:"] * len(metrics))
    ]  # fmt: skip
    for above, below in PAIRS:
        if above in results.names and below in results.names:
            found = [results.ratio(above, below, metric) for metric in metrics]
            cells = ["" if ratio is None else str(ratio) for ratio in found]
            lines.append(_line(f"{above} / {below}", *cells))
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def gamma_tables(results: Results) -> str:
    """What the embedding is at gamma = 1, and what trained students do there."""
    parts = [
        "Distances and leverages (squared Mahalanobis distances) to the mean over gammas below 1; "
        "in brackets their 99 % quantile. *Seen*: how many of 8,000 drawn gammas have features "
        "whose cosine with those of gamma = 1 is above .9.\n"
    ]
    names = ("e(10 - 10 gamma), official", "smooth features")
    head = ("", "distance at 1", "below 1", "nearest at 1", "below 1", "leverage at 1",
            "at 0", "below 1", "seen")  # fmt: skip
    lines = [_line(*head), _line("---", *["---:"] * (len(head) - 1))]
    for name, kind in zip(names, ("official", "smooth"), strict=True):
        found = embedding_at_one(kind)
        seen = "" if math.isnan(found["seen"]) else f"{found['seen']:.0f}"
        lines.append(_line(name, *_among(found), seen))
    rows = {name: results.student(name) for name in results.names}
    told = {name: list(by_seed.values()) for name, by_seed in rows.items()}
    told = {name: found for name, found in told.items() if all(row.gamma for row in found)}
    for name, found in told.items():
        mean = _mean_of([row.gamma["shift"] for row in found])
        lines.append(_line(f"shift of: {name}", *_among(mean), ""))
    parts.append("\n".join(lines) + "\n")
    if told:
        times = " and ".join(f"{t}" for t in TIMES)
        parts.append(
            f"Errors to the solution map (latents, mean over t = {times.replace(' and ', ', ')}) "
            f"of students that are told another gamma of the same point:\n"
        )
        gammas = sorted({float(g) for found in told.values() for g in found[0].gamma["told"]})
        lines = [_line("", *(f"{g:g}" for g in gammas)), _line("---", *["---:"] * len(gammas))]
        for name, found in told.items():
            cells = [f"{float(np.mean(_told(found, g))):.3f}" for g in gammas]
            lines.append(_line(name, *cells))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _among(found: Mapping[str, float]) -> list[str]:
    def short(x: float) -> str:
        return f"{x:.3g}"

    return [
        short(found["distance_one"]),
        f"{short(found['distance_mean'])} ({short(found['distance_p99'])})",
        short(found["nearest_one"]),
        short(found["nearest_median"]),
        short(found["leverage_one"]),
        short(found["leverage_zero"]),
        f"{short(found['leverage_mean'])} ({short(found['leverage_p99'])})",
    ]


def _told(rows: Sequence[Row], gamma: float) -> list[float]:
    """For each seed the mean over timesteps of the error in latents."""
    found = [row.gamma["told"][f"{gamma:g}"] for row in rows]
    return [float(np.mean([errors[f"latent_{t}"] for t in TIMES])) for errors in found]


def _mean_of(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in numbers])) for name in numbers[0]}


def cost_table(results: Results) -> str:
    """Seconds of training and measuring, and updates that were not finite."""
    head = ("", "seeds", "training, s", "measuring, s", "updates not finite")
    lines = [_line(*head), _line("---", *["---:"] * 4)]
    for name in results.names:
        rows = list(results.student(name).values())
        kinds = ("training", "measuring")
        seconds = [float(np.mean([getattr(row, kind) for row in rows])) for kind in kinds]
        skipped = sum(row.skipped for row in rows)
        lines.append(_line(name, str(len(rows)), *(f"{s:.0f}" for s in seconds), str(skipped)))
    return "\n".join(lines) + "\n"


# -------------------------------------------------------------------- targets


def best_slam(results: Results) -> str | None:
    """The variant of SLAM with the smallest error to the solution map; None without any.

    By the geometric mean over the timesteps, in latents.
    """
    names = slam_names(results.names)

    def error(name: str) -> float:
        return sum(math.log(results.mean(name, f"latent_{t}")) for t in TIMES)

    return min(names, key=error, default=None)


def ahead_of_solvers(results: Results, name: str, most: int = 8) -> dict[int, bool]:
    """Whether a student is ahead of every solver with as many network calls, or fewer.

    Ahead in the fraction as asked for and in the Fréchet distance to the teacher's samples, both
    as means over seeds.

    Args:
        results: of the study.
        name: of the student.
        most: network calls.

    Returns:
        for each number of the student's steps up to ``most``.
    """
    found = {}
    for n in (n for n in STEPS if n <= most):
        right, frechet = (results.mean(name, f"{m}_{n}") for m in ("right", "frechet_teacher"))
        found[n] = all(
            right > row.measured[f"right_{s.calls}"]
            and frechet < row.measured[f"frechet_teacher_{s.calls}"]
            for s, row in results.solvers()
            if s.calls <= n
        )
    return found


def targets(results: Results) -> str:
    """Whether the study's targets are met, a line each, with the numbers."""
    teacher = [row for setting, row in results.solvers() if setting.steps == TEACHER_STEPS]
    if not teacher or CD not in results.names:
        return ""
    right = teacher[0].measured[f"right_{2 * TEACHER_STEPS}"]
    best = best_slam(results)
    lines = ["## Targets\n", f"SLAM's variant with the smallest error to the map: {best}.\n"]
    for steps, allowed in ((4, 0.01), (2, 0.04)):
        for name in dict.fromkeys((best, CD)):
            if name is not None:
                found = results.mean(name, f"right_{steps}")
                lines.append(
                    f"- {_verdict(found >= right - allowed)}: {name}, {steps} steps, "
                    f"{found:.1%} as asked for; the teacher's {TEACHER_STEPS} steps {right:.1%} "
                    f"(within {allowed:.0%})."
                )
    for name in dict.fromkeys((best, CD)):
        if name is not None:
            found = ahead_of_solvers(results, name)
            where = ", ".join(f"{n}: {_yes(ahead)}" for n, ahead in found.items())
            lines.append(
                f"- {_verdict(all(found.values()))}: {name} is ahead of every solver at as many "
                f"calls ({where})."
            )
    if best is not None:
        metrics = [f"latent_{t}" for t in TIMES]
        metrics += [f"frechet_teacher_{n}" for n in STEPS if n <= 4]
        found = {m: results.ratio(best, CD, m) for m in metrics}
        clear = {m: r is not None and r.high < 1 for m, r in found.items()}
        said = ", ".join(f"{_spoken(m)} {r}" for m, r in found.items())
        lines.append(
            f"- {_verdict(all(clear.values()))}: {best} against consistency distillation, paired "
            f"ratios clearly below 1 in {sum(clear.values())} of {len(clear)}: {said}."
        )
    if {OFFICIAL, HALF_ONE} <= set(results.names):
        for name in (OFFICIAL, HALF_ONE):
            rates = ", ".join(f"{results.mean(name, f'right_{n}'):.1%}" for n in STEPS)
            lines.append(f"- The gamma path: {name}, as asked for at {STEPS} steps: {rates}.")
    return "\n".join(lines) + "\n"


def _verdict(met: bool) -> str:
    return "met" if met else "not met"


def _yes(ahead: bool) -> str:
    return "yes" if ahead else "no"


# -------------------------------------------------------------------- figures


def draw_figures(results: Results, out: Path) -> dict[str, CourseFigure]:
    """All figures of the report for which there are data, by name."""
    from slam_course.lesson_08 import figures as plots

    found: dict[str, CourseFigure] = {}
    names = results.names
    if not names:
        return found
    if any(setting.steps == TEACHER_STEPS for setting, _ in results.solvers()):
        found["calls"] = _calls_figure(results)
    panels = {
        f"error to the solution map, {kind}s": {
            name: {t: list(results.values(name, f"{kind}_{t}").values()) for t in TIMES}
            for name in names
        }
        for kind in ("latent", "pixel")
    }
    top = {name: results.mean(name, f"latent_{TIMES[0]}") for name in names}
    least = min(top, key=top.__getitem__)
    found["map"] = plots.map_errors(
        panels,
        f"Root mean square errors to the teacher's guided solution map over the timestep, in "
        f"latents and in pixels: they grow with t. At t = {TIMES[0]} the least is "
        f"{top[least]:.2f}, of {least}.",
    )
    found |= _ratios_figure(results) | _gamma_figure(results) | _loss_figure(results, out)
    grid = draw_grid(results, out)
    return found if grid is None else found | {"grid": grid}


def _calls_figure(results: Results) -> CourseFigure:
    from slam_course.lesson_08 import figures as plots

    measures = {
        "not as asked for, %": ("wrong", 100),
        "Fréchet distance to the teacher's samples": ("frechet_teacher", 1),
        "Fréchet distance to real images": ("frechet_real", 1),
    }
    panels, teacher, n = {}, {}, results.plan.prompts
    for title, (metric, scale) in measures.items():
        curves = {
            name: {
                k: [scale * v for v in results.values(name, f"{metric}_{k}").values()]
                for k in STEPS
            }
            for name in results.names
        }
        for setting, row in results.solvers():
            k = setting.calls
            if metric == "wrong":
                value = (n * (1 - row.measured[f"right_{k}"]) + 0.5) / (n + 1)
            else:
                value = row.measured[f"{metric}_{k}"]
            if setting.steps == TEACHER_STEPS:
                teacher[title] = scale * value
            else:
                curves.setdefault(setting.sampler, {})[k] = [scale * value]
        panels[title] = curves
    best = best_slam(results) or CD
    return plots.over_calls(
        panels,
        teacher,
        f"Three plots over network calls: images that are not as asked for, distance to the "
        f"teacher's samples, distance to real images. Solvers of the teacher start far above and "
        f"fall; {best} has {100 * results.mean(best, 'wrong_4'):.1f} % wrong at 4 calls.",
    )


def _ratios_figure(results: Results) -> dict[str, CourseFigure]:
    from slam_course.lesson_08 import figures as plots

    panels = {
        "latent_999": "error to the map,\nt = 999",
        "latent_499": "error to the map,\nt = 499",
        "frechet_teacher_1": "distance to\nteacher, 1 step",
        "frechet_teacher_2": "2 steps",
        "frechet_teacher_4": "4 steps",
    }
    found: dict[str, dict[str, Ratio]] = {}
    for above, below in PAIRS:
        if below == CD and {above, below} <= set(results.names):
            row = {metric: results.ratio(above, below, metric) for metric in panels}
            if all(ratio is not None for ratio in row.values()):
                found[above] = row
    title = "Students of the digits teacher, ratio to consistency distillation"
    return {"ratios": plots.student_ratios(found, panels, title)} if found else {}


def _gamma_figure(results: Results) -> dict[str, CourseFigure]:
    from slam_course.lesson_08 import figures as plots

    curves = {}
    for name in results.names:
        rows = list(results.student(name).values())
        if rows and all(row.gamma for row in rows):
            gammas = [float(g) for g in rows[0].gamma["told"]]
            curves[name] = {g: _told(rows, g) for g in sorted(gammas)}
    told = {"error to the solution map, latents": curves} if curves else {}
    gammas = (1 - 10.0 ** torch.linspace(-5, 0, 400, dtype=torch.float64)).tolist()
    cosines = dict(zip(gammas, cosines_to_one(gammas), strict=True))
    far = min(g for g, c in cosines.items() if c > 0.9)
    alt = (
        f"Left: the cosine between the official features of gamma and those of 1 falls below .9 "
        f"at 1 - gamma = {1 - far:.1g}."
    )
    if curves:
        alt += " Right: errors to the solution map by the gamma that a trained student is told."
    return {"gamma": plots.at_gamma_one(cosines, told, alt)}


def _loss_figure(results: Results, out: Path) -> dict[str, CourseFigure]:

    logs = training_logs(results, out)
    return {"loss": training_curves(logs)} if logs else {}


def training_logs(results: Results, out: Path) -> dict[str, list[list[dict[str, float]]]]:
    """The rows of ``log.csv`` of all runs that lie in the study's folder: by student, by seed."""
    from slam_edu.io import read_rows
    from slam_edu.sd.tracking import LOG

    logs = {}
    for name in (name for name in results.names if name != START):
        found = [
            read_rows(Path(results.plan.config(name, seed, out).out) / LOG)
            for seed in results.student(name)
        ]
        if any(found):
            logs[name] = [rows for rows in found if rows]
    return logs


def draw_grid(results: Results, out: Path, seed: int = 0) -> CourseFigure | None:
    """The same eight prompts from the same noise: teacher, solver, students; steps in brackets.

    Args:
        results: of the study.
        out: its folder, with the runs of consistency distillation and of SLAM's best variant.
        seed: of the runs and the noise.

    Returns:
        None where those runs are not there.
    """
    from slam_course.images import prompt_grid
    from slam_edu.digits.students.measure import student_latents
    from slam_edu.digits.students.reference import teacher_latents, teacher_model
    from slam_edu.sd.components import text_condition
    from slam_edu.sd.run import load_run

    best, plan = best_slam(results), results.plan
    slam = best.replace("gamma =", "γ =")
    shown = {"CD": CD, slam: best} | ({"official": OFFICIAL} if best != OFFICIAL else {})
    configs = {k: plan.config(v, seed, out) for k, v in shown.items() if v in results.names}
    folders = {label: Path(config.out) for label, config in configs.items()}
    if not {"CD", slam} <= folders.keys():
        return None
    try:
        runs = {k: load_run(folder, show=lambda _line: None) for k, folder in folders.items()}
    except FileNotFoundError:
        return None
    model = teacher_model(plan)
    prompts = [caption(FULL[0], digit, *pair) for digit, pair in enumerate(COLOURS)]
    cond, noise = text_condition(model.pipeline, prompts), study_noise(model, len(prompts), seed)
    rows = {}
    for label, steps in (("teacher", TEACHER_STEPS), ("DDIM", 2), ("DDIM", 4)):
        setting = Setting(sampler="ddim", steps=steps, guidance=plan.guidance)
        drawn = model.decode(teacher_latents(model, cond, noise, setting))
        rows[f"{label} ({steps})"] = drawn
    for label, run in runs.items():
        for steps in (1, 2, 4) if label != "official" else (4,):
            latents = student_latents(
                run.networks, configs[label], model, cond, noise, steps, seed
            )
            rows[f"{label} ({steps})"] = model.decode(latents)
    columns = [f"{stroke} {i}\non {ground}" for i, (stroke, ground) in enumerate(COLOURS)]
    return prompt_grid(torch.cat(list(rows.values())), list(rows), columns)


# -------------------------------------------------------------------- words


def _by_sampler(results: Results) -> dict[str, dict[int, Row]]:
    found: dict[str, dict[int, Row]] = {}
    for setting, row in results.solvers():
        found.setdefault(setting.sampler, {})[setting.calls] = row
    return found


def _solver_name(setting: Setting) -> str:
    steps = f"{setting.steps} step{'s' * (setting.steps > 1)}"
    return f"{SOLVER_NAMES[setting.sampler]}, {steps}{'' if setting.guidance else ', unguided'}"


def _spoken(metric: str) -> str:
    kind, _, number = metric.rpartition("_")
    words = {
        "latent": "latents, t = ", "pixel": "pixels, t = ", "frechet_teacher": "Fréchet ",
        "kernel_teacher": "kernel ", "frechet_real": "real, Fréchet ",
        "kernel_real": "real, kernel ", "wrong": "wrong ",
    }  # fmt: skip
    return words[kind] + number


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


# -------------------------------------------------------------------- learning


def training_curves(
    logs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], alt: str = ""
) -> CourseFigure:
    """Loss and gradient norm over updates, the rows of ``log.csv``.

    Args:
        logs: for each student, for each seed, the rows with ``update``, ``loss`` and
            ``grad_norm``.
        alt: what is to be seen; empty to say what the figure holds.
    """
    said = "; ".join(
        f"{name} from {runs[0][0]['loss']:.2g} to {runs[0][-1]['loss']:.2g}"
        for name, runs in logs.items()
    )
    from slam_course.figures import figure, open_axes, plain_ticks
    from slam_course.lesson_08 import figures as plots

    fig, axes = figure(
        2, size=(4.5, 4.2), alt=alt or f"Training loss and gradient norm over updates: {said}."
    )
    columns = {"loss": "loss", "grad_norm": "norm of the gradient"}
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        for name, runs in logs.items():
            curve: dict[float, list[float]] = {}
            for rows in runs:
                for row in rows:
                    curve.setdefault(row["update"], []).append(row[column])
            plots.with_band(ax, name, curve, marker="")
        ax.set(yscale="log", xlabel="updates")
        ax.set_title(title, fontsize=9.5)
        plain_ticks(ax.yaxis)
        open_axes(ax, 8.5)
    plots.study_legend(fig, axes[0])
    return fig

"""``python -m studies.digits.teacher``: the shipped model's scores by sampler, steps and guidance.

Without ``--run`` it prints the table of ``data/digits-results/teacher.json``; with it, it measures
the rows that a file of results lacks (about an hour on two cores).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from slam_course.figures import SOLVER_NAMES
from slam_edu.digits import load_pipeline
from slam_edu.digits.captions import FULL, WORDS, caption
from slam_edu.digits.data import CaptionedDigits
from slam_edu.digits.evaluate import (
    HELD_OUT_SEED,
    SAMPLERS,
    Evaluator,
    Scores,
    Setting,
    draw_images,
)
from slam_edu.io import data_path
from slam_edu.sd.components import LatentDiffusion
from studies.digits.measure import NOISE_SEED
from studies.digits.reference import fingerprint
from studies.digits.train.parts import psnr
from studies.harness import ResultsFile, command, positive, run_all

PROG = "python -m studies.digits.teacher"
RESULTS = "digits-results/teacher.json"
#: Guidance w of the trade-off at 50 DDIM steps; diffusers' guidance_scale is w + 1.
GUIDANCES = (0.0, 0.5, 1.0, 2.0, 3.0)
STEPS, TABLE_GUIDANCE = (1, 2, 4, 8, 16), 2.0


def settings() -> list[Setting]:
    """The table's rows: the trade-off over guidance, then few steps of both samplers."""
    few = [
        Setting(sampler=sampler, steps=steps, guidance=TABLE_GUIDANCE)
        for sampler in SAMPLERS
        for steps in STEPS
    ]
    return [*(Setting(guidance=w) for w in GUIDANCES), *few]


@dataclass(frozen=True)
class TeacherJob:
    """A setting that is measured on a number of images of a pipeline; None: the shipped one."""

    setting: Setting
    count: int
    folder: Path | None = None


def run_job(job: TeacherJob) -> dict[str, Any]:
    """A row of the table."""
    model, evaluator = _model(job.folder, job.count)
    started = time.perf_counter()
    noise = model.draw_noise(job.count, torch.Generator().manual_seed(NOISE_SEED))
    scores = evaluator.score(draw_images(model, evaluator.prompts, job.setting, noise))
    return {
        "setting": dataclasses.asdict(job.setting),
        "scores": dataclasses.asdict(scores),
        "seconds": round(time.perf_counter() - started, 1),
    }


@lru_cache(maxsize=1)
def _model(folder: Path | None, count: int) -> tuple[LatentDiffusion, Evaluator]:
    return LatentDiffusion(load_pipeline(folder)), Evaluator(count)


def key(row: Mapping[str, Any]) -> str:
    """What identifies a row."""
    return json.dumps(row["setting"], sort_keys=True)


def measure(path: Path, count: int, folder: Path | None, workers: int) -> None:
    """Measure the settings that the results file lacks, on ``count`` images each.

    Raises:
        ValueError: if the file holds results of another number of images or of other weights.
    """
    model, evaluator = _model(folder, count)
    file = ResultsFile(path, {"count": count, "weights": fingerprint(model)}, key)
    content = file.read()
    if "floor" not in content or "parts" not in content:
        floor = dataclasses.asdict(evaluator.floor())
        content |= {"floor": floor, "parts": part_scores(model, evaluator)}
        file.write(content)
    there = {key(row) for row in content["rows"]}
    wanted = [TeacherJob(setting, count, folder) for setting in settings()]
    missing = [job for job in wanted if key({"setting": vars(job.setting)}) not in there]
    run_all(missing, run_job, file.add, workers=workers, unit="row")


def part_scores(model: LatentDiffusion, evaluator: Evaluator) -> dict[str, float]:
    """What the parts do alone, on held-out images in other colours than the evaluator's.

    ``psnr`` of 500 images that the autoencoder takes to latents and back, in dB, and ``digit``,
    the fraction of all 4,000 that the classifier reads rightly.
    """
    data = CaptionedDigits("test")
    held_out = data.batch(range(len(data)), HELD_OUT_SEED + 1)
    right = evaluator.classifier.read(held_out.images) == held_out.digit
    return {
        "psnr": psnr(model.pipeline.vae, held_out.images[:500]),
        "digit": float(right.double().mean()),
    }


def rows_of(results: Mapping[str, Any]) -> list[tuple[Setting, Scores]]:
    """Settings with their scores: 50 steps first, then by sampler, steps and guidance."""
    rows = [(Setting(**r["setting"]), Scores(**r["scores"])) for r in results["rows"]]
    order = {sampler: i for i, sampler in enumerate(SAMPLERS)}
    rows.sort(key=lambda r: (-(r[0].steps == 50), order[r[0].sampler], -r[0].steps, r[0].guidance))
    return rows


def as_text(results: Mapping[str, Any]) -> str:
    """The table for a terminal, in Markdown."""
    columns = ("digit", "stroke", "background", "all_right")
    floor, parts = Scores(**results["floor"]), results["parts"]
    lines = [
        f"{results['count']:,} images for as many prompts; distances to as many held-out real "
        f"images.",
        f"The autoencoder alone: {parts['psnr']:.1f} dB PSNR on 500 held-out images. "
        f"The classifier alone: {parts['digit']:.4f} of 4,000 held-out digits right.",
        "",
        "| drawn by | steps | guidance w | network calls | digit | stroke | background "
        "| all right | Fréchet | over floor | kernel x 1000 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def line(head: Sequence[str], scores: Scores) -> str:
        rates = [f"{getattr(scores, name):.4f}" for name in columns]
        distances = [
            f"{scores.frechet:.2f}",
            f"{scores.frechet / floor.frechet:.1f}",
            f"{1000 * scores.kernel:.1f} ± {1000 * scores.kernel_std:.1f}",
        ]
        return "| " + " | ".join([*head, *rates, *distances]) + " |"

    lines.append(line(("real images (floor)", "", "", ""), floor))
    for s, scores in rows_of(results):
        head = (SOLVER_NAMES[s.sampler], str(s.steps), f"{s.guidance:g}", str(s.calls))
        lines.append(line(head, scores))
    return "\n".join(lines)


def write_figures(model: LatentDiffusion, results: Mapping[str, Any], folder: Path) -> None:
    """Draw ``grid``, ``few_steps``, ``trade_off`` and ``steps`` as PNG files."""
    from slam_course.images import prompt_grid
    from slam_course.lesson_08.figures import trade_off
    from studies.digits.figures import COLUMNS, steps_curve

    folder.mkdir(parents=True, exist_ok=True)
    prompts = [caption(FULL[0], d, *pair) for d in range(10) for pair in COLUMNS]
    noise = model.draw_noise(len(prompts), torch.Generator().manual_seed(1))
    grid = draw_images(model, prompts, Setting(guidance=TABLE_GUIDANCE), noise)
    n = len(COLUMNS)
    diagonal = [n * i + i for i in range(n)]  # the digits 0 to 7, each in another pair of colours
    few = {}
    for name, sampler, steps in (
        ("DDIM, 50 steps", "ddim", 50), ("DDIM, 8", "ddim", 8), ("DDIM, 4", "ddim", 4),
        ("DDIM, 2", "ddim", 2), ("DPM++ 2M, 4", "dpmpp_2m", 4),
    ):  # fmt: skip
        setting = Setting(sampler=sampler, steps=steps, guidance=TABLE_GUIDANCE)
        few[name] = draw_images(model, [prompts[i] for i in diagonal], setting, noise[diagonal])
    rows, floor = rows_of(results), Scores(**results["floor"])
    columns = [f"{stroke} on\n{background}" for stroke, background in COLUMNS]
    asked = [f"{stroke} {i}\non {background}" for i, (stroke, background) in enumerate(COLUMNS)]
    figures = {
        "grid": prompt_grid(grid, WORDS, columns),
        "few_steps": prompt_grid(torch.cat(list(few.values())), list(few), asked),
        "trade_off": trade_off([r for r in rows if r[0].steps == 50], floor),
        "steps": steps_curve([r for r in rows if r[0].guidance == TABLE_GUIDANCE], floor),
    }
    for name, fig in figures.items():
        fig.save(folder / f"{name}.png")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    made = argparse.ArgumentParser(
        prog=PROG,
        description="Print the teacher's table from its results; with --run, measure it first.",
    )
    made.add_argument(
        "--run", action="store_true", help="measure the rows that the file of --results lacks"
    )
    made.add_argument(
        "--results", type=Path, help=f"the results file; default the shipped data/{RESULTS}"
    )
    made.add_argument("--pipeline", type=Path, help="its folder; default the shipped one")
    made.add_argument("--count", type=int, default=2000, help="images (2 to 2,000)")
    made.add_argument("--figures", type=Path, help="folder to write the table's figures to")
    made.add_argument("--workers", type=positive, default=1, help="processes of one thread each")
    options = made.parse_args(argv)
    if options.run and options.results is None:
        made.error("--run needs --results with a file of your own, new or unfinished")

    def body() -> int:
        path = options.results or data_path(RESULTS)
        if options.run:
            measure(path, options.count, options.pipeline, options.workers)
        results = ResultsFile(path, {}, key).read()
        print(as_text(results))
        if options.figures is not None:
            model = LatentDiffusion(load_pipeline(options.pipeline))
            write_figures(model, results, options.figures)
        return 0

    return command(PROG, body)


if __name__ == "__main__":
    sys.exit(main())

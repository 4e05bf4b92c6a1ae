"""``slam-edu evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from slam_edu.io import atomic_path

DIGITS_COLUMNS = ("all_right", "digit", "stroke", "background", "frechet", "kernel")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
    from slam_edu.sd import evaluate

    evaluate.add_arguments(parser)
    parser.add_argument(
        "--count", type=int, default=500, help="of the digits: images (2 to 2,000; default: 500)"
    )


def run(options: argparse.Namespace) -> int:
    """Measure; a run on the shipped digits by what its images show, others by CLIP."""
    from slam_edu.sd import evaluate
    from slam_edu.sd.run import CONFIG, load_run

    if (Path(options.model) / CONFIG).is_file():
        found = load_run(options.model)
        if found.config.teacher == "digits":
            return _digits(found, options)
        raise ValueError(
            f"{options.model!r} is the run of another teacher than the digits'; allowed: a "
            f"pipeline's folder (`slam-edu export {options.model} --out DIR` writes it)"
        )
    return evaluate.run(options)


def _digits(found: object, options: argparse.Namespace) -> int:
    """A table of the student's scores by steps."""
    from slam_edu.digits.evaluate import Evaluator
    from slam_edu.digits.students.measure import student_latents, study_noise
    from slam_edu.sd.components import LatentDiffusion, text_condition

    evaluator = Evaluator(options.count)
    model = LatentDiffusion(found.pipeline)
    cond = text_condition(found.pipeline, evaluator.prompts)
    noise = study_noise(model, len(cond), 0)
    rows = []
    print(f"update {found.update:,}; {options.count:,} prompts of held-out images, at gamma = 1")
    print("steps  " + "  ".join(f"{name:>10}" for name in DIGITS_COLUMNS))
    for steps in options.steps:
        latents = student_latents(found.networks, found.config, model, cond, noise, steps)
        scores = dataclasses.asdict(evaluator.score(model.decode(latents)))
        rows.append({"steps": steps, **scores})
        print(
            f"{steps:>5}  " + "  ".join(f"{scores[name]:>10.4f}" for name in DIGITS_COLUMNS),
            flush=True,
        )
    if options.out is not None:
        with atomic_path(options.out) as temporary:
            text = json.dumps({"update": found.update, "rows": rows}, indent=1)
            temporary.write_text(text + "\n", "utf-8")
    return 0

"""``slam-edu sample``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument(
        "model", help="folder of a run, folder of a pipeline, or 'digits' for the shipped teacher"
    )
    parser.add_argument("prompts", nargs="+", help="one image each")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 2, 4], help="a row each (default: 1 2 4)"
    )
    parser.add_argument(
        "--guidance-scale", type=float, default=1.0,
        help="of a pipeline that is not distilled; a student has its guidance in its weights "
        "(default: 1, no guidance)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="the picture")


def run(options: argparse.Namespace) -> int:
    """Draw the picture: a column a prompt, a row a number of steps."""
    from slam_edu.sd.run import CONFIG
    from slam_edu.sd.tracking import save_grid

    for steps in options.steps:
        if not 1 <= steps <= 1000:
            raise ValueError(f"--steps is {steps}; allowed: from 1 to 1000")
    draw = _student if (Path(options.model) / CONFIG).is_file() else _pipeline
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_grid(draw(options), options.out)
    print(f"wrote {options.out}: rows of {', '.join(map(str, options.steps))} steps")
    return 0


def _student(options: argparse.Namespace) -> list[Tensor]:
    """Rows of a run's student."""
    from slam_edu.sd.components import empty_condition, text_condition
    from slam_edu.sd.run import load_run
    from slam_edu.sd.tracking import Sampler, grid_shape

    if options.guidance_scale != 1:
        raise ValueError(
            f"--guidance-scale is {options.guidance_scale:g} for a student; allowed: 1, because "
            f"its guidance is in its weights"
        )
    found = load_run(options.model)
    sampler = Sampler(
        found.config.replace(seed=options.seed), found.schedule, found.pipeline.vae,
        found.networks, text_condition(found.pipeline, options.prompts),
        empty_condition(found.pipeline),
        prediction_type=found.pipeline.scheduler.config.prediction_type,
        shape=grid_shape(found.pipeline, found.config.resolution),
    )  # fmt: skip
    return [sampler.student(steps) for steps in options.steps]


def _pipeline(options: argparse.Namespace) -> list[Tensor]:
    """Rows of a pipeline, by its own call."""
    from slam_edu.sd.teacher import load_pipeline_folder

    pipeline = load_pipeline_folder(options.model)
    rows = []
    for steps in options.steps:
        generators = [
            torch.Generator().manual_seed(options.seed + i) for i in range(len(options.prompts))
        ]
        images = pipeline(
            list(options.prompts), num_inference_steps=steps, output_type="pt",
            guidance_scale=options.guidance_scale, generator=generators,
        ).images  # fmt: skip
        rows.append(images.float().cpu() * 2 - 1)
    return rows

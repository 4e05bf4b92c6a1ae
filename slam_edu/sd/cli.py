"""The command ``slam-edu``: distil a Stable Diffusion, and what comes before and after.

    slam-edu distill     train a student; the same command goes on with a run that was stopped
    slam-edu cache       encode a data set, or draw one from the teacher, before the training
    slam-edu sample      draw images with a run's student, or any pipeline, as one picture
    slam-edu evaluate    figures of a run's student, or of a pipeline
    slam-edu export      a stock diffusers folder, or a LoRA file, of a run's student
    slam-edu plan        parameters, memory and time, before anything is loaded
    slam-edu doctor      what this machine can run

With several GPUs: ``accelerate launch --num_processes 4 -m slam_edu.sd distill ...``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from slam_edu.io import atomic_path, check_output
from slam_edu.sd.config import add_config_arguments, chosen_config, describe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    argv = [_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torchvision, we do not
    parser = argparse.ArgumentParser(
        prog="slam-edu",
        description="Distil a Stable Diffusion into a student that draws in 2 to 4 steps.",
        epilog="`slam-edu COMMAND --help` says more of each.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (what, add) in COMMANDS.items():
        sub = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        if name in argv[:1]:  # the others' modules, and what they import, are not needed
            if add is None:
                module = importlib.import_module(f"slam_edu.sd.{name}")
                module.add_arguments(sub)
                run = module.run
            else:
                run = add(sub)
    chosen = commands.choices.get(argv[0]) if argv else None
    if chosen is None:
        parser.parse_args(argv)  # says what is wrong, or helps
    options = chosen.parse_intermixed_args(argv[1:])
    try:
        return run(options)
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError, MemoryError) as error:
        print(f"slam-edu: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("slam-edu: interrupted", file=sys.stderr)
        return 130


def _home(word: str) -> str:
    """``out=~/run`` and ``--out=~/run`` as one means them: no shell reads a tilde there."""
    name, equals, value = word.rpartition("=")
    return name + equals + os.path.expanduser(value) if value.startswith("~/") else word


# -------------------------------------------------------------------- distill


def _distill_command(parser: argparse.ArgumentParser):
    add_config_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="print no settings and no bar")
    return _distill


def _distill(options: argparse.Namespace) -> int:
    """Train to the end, or until asked to stop."""
    from tqdm import tqdm

    from slam_edu.sd.run import DistillRun

    config = chosen_config(options)
    main_process = os.environ.get("RANK", "0") == "0"
    if not options.quiet and main_process:
        print(describe(config, documented=False), flush=True)
    run = DistillRun(config, show=lambda line: tqdm.write(line, file=sys.stdout))
    bar = tqdm(
        total=config.training.updates, desc="distilling", unit="update", mininterval=0.5,
        smoothing=0.05, disable=None if main_process and not options.quiet else True,
    )  # fmt: skip
    with bar:
        for state in run:
            bar.update(state.update - bar.n)
            if run.row:
                bar.set_postfix_str(
                    f"loss {run.row['loss']:.4f}, grad {run.row['grad_norm']:.2f}, "
                    f"{run.row['samples_per_second']:.1f} samples/s, {state.skipped} skipped",
                    refresh=False,
                )
    if run.stopped is not None:
        return 128 + run.stopped
    if main_process:
        print(
            f"done: {config.training.updates:,} updates in {str(run.folder)!r}. Next: `slam-edu "
            f"export {run.folder} --out DIR`, `slam-edu evaluate {run.folder}`"
        )
    return 0


# -------------------------------------------------------------------- cache


def _cache_command(parser: argparse.ArgumentParser):
    add_config_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="the cache's folder; then data=cache data_path=OUT"
    )
    return _cache


def _cache(options: argparse.Namespace) -> int:
    """Make the cache, or finish one that was stopped."""
    from slam_edu.sd.data import check_inputs, make_cache
    from slam_edu.sd.teacher import load_teacher

    config = chosen_config(options)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    check_inputs(config)
    pipeline = load_teacher(config)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(automatic if config.device == "auto" else config.device)
    cache = make_cache(config, pipeline, options.out)
    print(
        f"{len(cache):,} latents of shape {tuple(cache.latent_shape)} in {str(options.out)!r}; "
        f"train with data=cache data_path={options.out}"
    )
    return 0


# -------------------------------------------------------------------- sample


def _sample_command(parser: argparse.ArgumentParser):
    add = parser.add_argument
    add("model", help="folder of a run, folder of a pipeline, or 'digits' for the shipped teacher")
    add("prompts", nargs="+", help="one image each")
    add("--steps", type=int, nargs="+", default=[1, 2, 4], help="a row each (default: 1 2 4)")
    add(
        "--guidance-scale", type=float, default=1.0,
        help="of a pipeline that is not distilled; a student has its guidance in its weights "
        "(default: 1, no guidance)",
    )  # fmt: skip
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("samples.png"), help="the picture")
    return _sample


def _sample(options: argparse.Namespace) -> int:
    """Draw the picture: a column a prompt, a row a number of steps."""
    from slam_edu.sd.run import CONFIG
    from slam_edu.sd.tracking import save_grid

    for steps in options.steps:
        if not 1 <= steps <= 1000:
            raise ValueError(f"--steps is {steps}; allowed: from 1 to 1000")
    of_run = (Path(options.model) / CONFIG).is_file()
    check_output(options.out)
    save_grid((_student_rows if of_run else _pipeline_rows)(options), options.out)
    print(f"wrote {options.out}: rows of {', '.join(map(str, options.steps))} steps")
    return 0


def _student_rows(options: argparse.Namespace) -> list[Tensor]:
    from slam_edu.sd.components import empty_condition, text_condition
    from slam_edu.sd.run import load_run
    from slam_edu.sd.tracking import Sampler

    if options.guidance_scale != 1:
        raise ValueError(
            f"--guidance-scale is {options.guidance_scale:g} for a student; allowed: 1, because "
            f"its guidance is in its weights"
        )
    found = load_run(options.model)
    sampler = Sampler(
        found.config.replace(seed=options.seed), found.pipeline, found.networks, found.schedule,
        text_condition(found.pipeline, options.prompts), empty_condition(found.pipeline),
    )  # fmt: skip
    return [sampler.student(steps) for steps in options.steps]


def _pipeline_rows(options: argparse.Namespace) -> list[Tensor]:
    from slam_edu.sd.teacher import load_pipeline_folder

    pipeline, rows = load_pipeline_folder(options.model), []
    for steps in options.steps:
        seeds = range(options.seed, options.seed + len(options.prompts))
        images = pipeline(
            list(options.prompts), num_inference_steps=steps, output_type="pt",
            guidance_scale=options.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images  # fmt: skip
        rows.append(images.float().cpu() * 2 - 1)
    return rows


# -------------------------------------------------------------------- evaluate

#: Scores that are printed of a shipped model's student, and the seed of its noise.
SCORES, NOISE_SEED = ("all_right", "digit", "stroke", "background", "frechet", "kernel"), 2024


def _evaluate_command(parser: argparse.ArgumentParser):
    from slam_edu.sd import evaluate

    evaluate.add_arguments(parser)
    parser.add_argument(
        "--count", type=int, default=500, help="of the digits: images (2 to 2,000; default: 500)"
    )
    return _evaluate


def _evaluate(options: argparse.Namespace) -> int:
    """Measure; a run on a shipped model by its own judge, a pipeline by CLIP."""
    from slam_edu.sd import evaluate
    from slam_edu.sd.components import LatentDiffusion, text_condition
    from slam_edu.sd.run import CONFIG, load_run
    from slam_edu.sd.sampling import student_latents
    from slam_edu.seeding import sample_generator
    from slam_edu.shipped import shipped

    if not (Path(options.model) / CONFIG).is_file():
        return evaluate.run(options)
    if options.out is not None:
        check_output(options.out)
    found = load_run(options.model)
    judge = shipped(found.config.teacher)
    if judge is None:
        raise ValueError(
            f"{options.model!r} is the run of another teacher than the digits'; allowed: a "
            f"pipeline's folder (`slam-edu export {options.model} --out DIR` writes it)"
        )
    model, rows = LatentDiffusion(found.pipeline), []

    def draw(prompts: Sequence[str], steps: int) -> Tensor:
        cond = text_condition(found.pipeline, prompts)
        noise = model.draw_noise(len(cond), sample_generator(NOISE_SEED, 0))
        latents = student_latents(found.networks, found.config, model, cond, noise, steps)
        return model.decode(latents)

    print(f"update {found.update:,}; {options.count:,} prompts of held-out images, at gamma = 1")
    print("steps", *(f"{name:>10}" for name in SCORES), sep="  ")
    for row in judge.evaluate(draw, options.steps, options.count):
        rows.append(row)
        print(
            f"{row['steps']:>5}", *(f"{row[name]:>10.4f}" for name in SCORES), sep="  ", flush=True
        )
    if options.out is not None:
        with atomic_path(options.out) as temporary:
            text = json.dumps({"update": found.update, "rows": rows}, indent=1)
            temporary.write_text(text + "\n", "utf-8")
    return 0


#: Name to (what it does, what adds its arguments to a parser and returns what runs); None: a
#: module of its name does.
COMMANDS = {
    "distill": ("train a student", _distill_command),
    "cache": ("encode a data set before the training", _cache_command),
    "sample": ("draw images, as one picture", _sample_command),
    "evaluate": ("figures of a student or a pipeline", _evaluate_command),
    "export": ("write a stock diffusers folder, or a LoRA file", None),
    "plan": ("parameters, memory and time, before anything is loaded", None),
    "doctor": ("what this machine can run", None),
}

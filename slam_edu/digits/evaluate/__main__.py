"""``python -m slam_edu.digits.evaluate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from slam_edu.digits.evaluate.scores import Evaluator
from slam_edu.digits.evaluate.table import Setting, as_text, measure, read_results, settings
from slam_edu.digits.pipeline import load_pipeline
from slam_edu.io import data_path
from slam_edu.sd.components import LatentDiffusion

RESULTS = "digits-results/teacher.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m slam_edu.digits.evaluate",
        description="Print the teacher's table from its results; with --run, measure it first.",
    )
    parser.add_argument(
        "--run", action="store_true", help="measure the rows that the file of --results lacks"
    )
    parser.add_argument(
        "--results", type=Path, help=f"the results file; default the shipped data/{RESULTS}"
    )
    parser.add_argument("--pipeline", type=Path, help="its folder; default the shipped one")
    parser.add_argument("--count", type=int, default=2000, help="images (2 to 2,000)")
    parser.add_argument("--guidance", type=float, nargs="*", help="measure these at --steps only")
    parser.add_argument("--steps", type=int, default=50, help="with --guidance")
    parser.add_argument("--sampler", default="ddim", help="with --guidance: ddim or dpmpp_2m")
    parser.add_argument("--figures", type=Path, help="folder to write the table's figures to")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: all cores")
    options = parser.parse_args(arguments)
    if options.run and options.results is None:
        parser.error("--run needs --results with a file of your own, new or unfinished")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        path = options.results if options.results is not None else data_path(RESULTS)
        if options.run:
            _measure(options, path)
        if not path.exists():
            raise FileNotFoundError(f"there is no {str(path)!r}; --run measures it")
        results = read_results(path)
        print(as_text(results))
        if options.figures is not None:
            _figures(options, results)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(options: argparse.Namespace, path: Path) -> None:
    model = LatentDiffusion(load_pipeline(options.pipeline))
    wanted = settings()
    if options.guidance:
        wanted = [
            Setting(sampler=options.sampler, steps=options.steps, guidance=w)
            for w in options.guidance
        ]
    for setting, scores in measure(model, Evaluator(options.count), wanted, path):
        print(
            f"{setting.sampler} {setting.steps} w={setting.guidance:g}: all right "
            f"{scores.all_right:.4f}, Fréchet {scores.frechet:.2f}",
            file=sys.stderr,
            flush=True,
        )


def _figures(options: argparse.Namespace, results: dict) -> None:
    from slam_edu.digits.evaluate.figures import write_figures  # needs matplotlib

    write_figures(LatentDiffusion(load_pipeline(options.pipeline)), results, options.figures)


if __name__ == "__main__":
    sys.exit(main())

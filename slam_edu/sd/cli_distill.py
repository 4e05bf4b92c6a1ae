"""``slam-edu distill``."""

from __future__ import annotations

import argparse
import sys

from slam_edu.sd.cli import add_config_arguments, chosen_config
from slam_edu.sd.config import describe
from slam_edu.sd.run import DistillRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
    add_config_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="print no settings and no bar")


def run(options: argparse.Namespace) -> int:
    """Train to the end, or until asked to stop; returns the exit status."""
    from tqdm import tqdm

    config = chosen_config(options)
    if not options.quiet and _main_process():
        print(describe(config, documented=False), flush=True)
    distillation = DistillRun(config, show=_say)
    bar = tqdm(
        total=config.training.updates, desc="distilling", unit="update", mininterval=0.5,
        smoothing=0.05,
        disable=True if options.quiet or not _main_process() else None,
    )  # fmt: skip
    with bar:
        for state in distillation:
            bar.update(state.update - bar.n)
            row = distillation.row
            if row:
                bar.set_postfix_str(
                    f"loss {row['loss']:.4f}, grad {row['grad_norm']:.2f}, "
                    f"{row['samples_per_second']:.1f} samples/s, {state.skipped} skipped",
                    refresh=False,
                )
    if distillation.stopped is not None:
        return 128 + distillation.stopped
    if _main_process():
        print(
            f"done: {config.training.updates:,} updates in {str(distillation.folder)!r}. Next: "
            f"`slam-edu export {distillation.folder} --out DIR`, "
            f"`slam-edu evaluate {distillation.folder}`"
        )
    return 0


def _say(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)


def _main_process() -> bool:
    """Whether this is the first, or the only, of the launched processes."""
    import os

    return os.environ.get("RANK", "0") == "0"

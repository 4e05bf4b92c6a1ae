"""``slam-edu cache``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from slam_edu.sd.cli import add_config_arguments, chosen_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
    add_config_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="the cache's folder; then data=cache data_path=OUT"
    )


def run(options: argparse.Namespace) -> int:
    """Make the cache, or finish one that was stopped."""
    from slam_edu.sd.data import make_cache
    from slam_edu.sd.teacher import load_teacher

    config = chosen_config(options)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    pipeline = load_teacher(config)
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(name)
    cache = make_cache(config, pipeline, options.out)
    print(
        f"{len(cache):,} latents of shape {tuple(cache.latent_shape)} in {str(options.out)!r}; "
        f"train with data=cache data_path={options.out}"
    )
    return 0

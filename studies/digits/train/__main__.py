"""``python -m studies.digits.train vae | diffusion | classifier | export``."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from studies.digits.train.export import export
from studies.digits.train.parts import (
    ClassifierConfig,
    DiffusionConfig,
    VAEConfig,
    train_classifier,
    train_diffusion,
    train_vae,
)
from studies.digits.train.training import PartConfig, finished
from studies.harness import command, positive

PROG = "python -m studies.digits.train"
CONFIGS = {"vae": VAEConfig, "diffusion": DiffusionConfig, "classifier": ClassifierConfig}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    made = argparse.ArgumentParser(
        prog=PROG,
        description="Train the digits' Stable Diffusion from scratch. Stop it at any time: the "
        "same command goes on from the last checkpoint.",
    )
    made.add_argument("part", choices=[*CONFIGS, "export"])
    made.add_argument(
        "settings", nargs="*", metavar="NAME=VALUE", help="a setting of the part, as updates=100"
    )
    made.add_argument(
        "--runs", type=Path, default=Path("runs/digits"), help="folder of the run folders"
    )
    made.add_argument(
        "--out", type=Path, default=Path("data"), help="where export writes its two folders"
    )
    made.add_argument("--threads", type=positive, help="of torch; default: all cores")
    options = made.parse_args(argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    def body() -> int:
        part, folder = options.part, options.runs / options.part
        if part == "export":
            export(options.runs, options.out)
            return 0
        config = configured(CONFIGS[part], options.settings)
        if part == "vae":
            train_vae(folder, config)
        elif part == "classifier":
            train_classifier(folder, config)
        else:
            vae_run = options.runs / "vae"
            train_diffusion(folder, train_vae(vae_run, finished(vae_run, VAEConfig)), config)
        return 0

    return command(PROG, body)


def configured(kind: type[PartConfig], settings: Sequence[str]) -> PartConfig:
    """A configuration with ``name=value`` settings; a tuple's values are parted by commas.

    Raises:
        ValueError: for an unknown name or a value of another type.
    """
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    values = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in fields or not text:
            raise ValueError(
                f"{setting!r} is no setting; allowed: {', '.join(fields)}, as name=value"
            )
        default = fields[name]
        try:
            value = text if isinstance(default, str) else ast.literal_eval(text)
            value = float(value) if isinstance(default, float) else value
            if type(value) is not type(default):
                raise ValueError(f"a {type(value).__name__}")
            values[name] = value
        except (ValueError, TypeError, SyntaxError) as error:
            raise ValueError(
                f"{setting!r} cannot be read; allowed: {name} as {type(default).__name__}, "
                f"such as {default!r}"
            ) from error
    return kind(**values)


if __name__ == "__main__":
    sys.exit(main())

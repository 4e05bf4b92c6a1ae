"""``python -m slam_edu.digits.train vae | diffusion | classifier | export``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from slam_edu.digits.train.classifier import ClassifierConfig, train_classifier
from slam_edu.digits.train.diffusion import DiffusionConfig, train_diffusion
from slam_edu.digits.train.vae import VAEConfig, train_vae

CONFIGS = {"vae": VAEConfig, "diffusion": DiffusionConfig, "classifier": ClassifierConfig}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m slam_edu.digits.train",
        description="Train the digits' Stable Diffusion from scratch. Stop it at any time: the "
        "same command goes on from the last checkpoint.",
    )
    parser.add_argument("part", choices=[*CONFIGS, "export"])
    parser.add_argument(
        "settings", nargs="*", metavar="NAME=VALUE", help="a setting of the part, as updates=100"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/digits"), help="folder of the run folders"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data"), help="where export writes its two folders"
    )
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: all cores")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        _run(options)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    runs: Path = options.runs
    if options.part == "export":
        if options.settings:
            raise ValueError(f"export takes no settings; got {options.settings[0]!r}")
        _export(runs, options.out)
        return
    config = configured(CONFIGS[options.part], options.settings)
    folder = runs / options.part
    if options.part == "vae":
        train_vae(folder, config)
    elif options.part == "classifier":
        train_classifier(folder, config)
    else:
        train_diffusion(folder, train_vae(*_finished(runs, "vae")), config)


def configured(kind: type, settings: list[str]) -> Any:
    """A configuration with ``name=value`` settings read as the type of their default.

    Args:
        kind: a dataclass with defaults.
        settings: each ``name=value``; a tuple's values are parted by commas.

    Raises:
        ValueError: for an unknown name or a value of another type.
    """
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in fields:
            raise ValueError(
                f"{setting!r} is no setting; allowed: {', '.join(fields)}, as name=value"
            )
        default = fields[name]
        try:
            if isinstance(default, tuple):
                values[name] = tuple(int(part) for part in text.split(","))
            else:
                values[name] = type(default)(text)
        except ValueError as error:
            raise ValueError(
                f"{setting!r} cannot be read; allowed: {name} as {type(default).__name__}, "
                f"such as {default!r}"
            ) from error
    return kind(**values)


def _finished(runs: Path, part: str) -> tuple[Path, Any]:
    """Folder and configuration of a part that was trained before."""
    import json

    from slam_edu.digits.train.run import CONFIG, updates_done

    folder = runs / part
    missing = FileNotFoundError(
        f"there is no finished run in {str(folder)!r}; first run "
        f"`python -m slam_edu.digits.train {part} --runs {runs}` to its end"
    )
    if not (folder / CONFIG).exists():
        raise missing
    saved = json.loads((folder / CONFIG).read_text("utf-8"))["config"]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    config = CONFIGS[part](**values)
    if updates_done(folder) < config.updates:
        raise missing
    return folder, config


def _export(runs: Path, out: Path) -> None:
    from slam_edu.digits.pipeline import CLASSIFIER, PIPELINE
    from slam_edu.digits.train.export import build_pipeline, export_classifier, export_pipeline

    vae = train_vae(*_finished(runs, "vae"))
    folder, config = _finished(runs, "diffusion")
    network = train_diffusion(folder, vae, config)
    pipeline = build_pipeline(vae, network, config.prediction_type)
    export_pipeline(pipeline, out / PIPELINE, {"vae": runs / "vae", "diffusion": folder})
    folder, config = _finished(runs, "classifier")
    export_classifier(train_classifier(folder, config), out / CLASSIFIER, folder)
    print(f"wrote {out / PIPELINE} and {out / CLASSIFIER}")


if __name__ == "__main__":
    sys.exit(main())

"""Writes the shipped folders from the training runs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from slam_edu.digits.pipeline import CLASSIFIER, PIPELINE
from slam_edu.io import replaced_folder
from slam_edu.sd.layouts import classic_layout
from slam_edu.sd.teacher import quiet
from studies.digits.train.networks import build_pipeline
from studies.digits.train.parts import (
    ClassifierConfig,
    DiffusionConfig,
    VAEConfig,
    train_classifier,
    train_diffusion,
    train_vae,
)
from studies.digits.train.training import CONFIG, LOG, finished

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def export(runs: Path, out: Path) -> None:
    """Write both folders from finished runs.

    Raises:
        FileNotFoundError: if a part was not trained to its end.
    """
    vae_run, run, judge_run = (runs / name for name in ("vae", "diffusion", "classifier"))
    vae = train_vae(vae_run, finished(vae_run, VAEConfig))
    config = finished(run, DiffusionConfig)
    network = train_diffusion(run, vae, config)
    pipeline = build_pipeline(vae, network, config.prediction_type)
    export_pipeline(pipeline, out / PIPELINE, {"vae": vae_run, "diffusion": run})
    classifier = train_classifier(judge_run, finished(judge_run, ClassifierConfig))
    export_classifier(classifier, out / CLASSIFIER, judge_run)


def export_pipeline(pipeline: StableDiffusionPipeline, out: Path, runs: dict[str, Path]) -> None:
    """Write the pipeline's folder in half precision, with its runs' settings and logs, by name.

    An earlier one is replaced when all is written; the model card, written by hand, stays. The
    pipeline is in float32, and left in it.
    """
    with replaced_folder(out) as folder:
        networks = (pipeline.vae, pipeline.unet, pipeline.text_encoder)
        with quiet():
            for network in networks:
                nn.Module.to(network, torch.float16)  # diffusers' own `to` warns about nothing
            pipeline.save_pretrained(folder)
            for network in networks:
                nn.Module.to(network, torch.float32)
        # transformers 5 loads a text encoder in the dtype that its file names, diffusers the other
        # parts in float32: with "float32" in the file, from_pretrained alone gives one dtype.
        config = folder / "text_encoder" / "config.json"
        settings = json.loads(config.read_text("utf-8"))
        settings["dtype"] = "float32"
        config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
        classic_layout(folder, {"tokenizer": pipeline.tokenizer})
        _copy_runs(folder, runs)


def export_classifier(classifier: nn.Module, out: Path, run: Path) -> None:
    """Write the classifier's folder in half precision, with its run's settings and log."""
    from safetensors.torch import save_file

    with replaced_folder(out) as folder:
        weights = {
            name: value.half() if value.is_floating_point() else value
            for name, value in classifier.state_dict().items()
        }
        save_file(weights, folder / "classifier.safetensors")
        _copy_runs(folder, {"classifier": run})


def _copy_runs(folder: Path, runs: dict[str, Path]) -> None:
    """``training/NAME.json`` and ``.csv``: what made this, and how long it took."""
    (folder / "training").mkdir()
    for name, run in runs.items():
        about = json.loads((run / CONFIG).read_text("utf-8"))
        with (run / LOG).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        about["minutes"] = round(float(rows[-1]["seconds"]) / 60, 1)
        text = json.dumps(about, indent=2) + "\n"
        (folder / "training" / f"{name}.json").write_text(text, "utf-8")
        shutil.copyfile(run / LOG, folder / "training" / f"{name}.csv")

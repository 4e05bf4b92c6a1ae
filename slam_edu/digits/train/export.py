"""Writes the shipped folders from the training runs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from slam_edu.digits.networks import TextToLatents, build_tokenizer
from slam_edu.digits.pipeline import quiet, write_checksums
from slam_edu.digits.train.run import CONFIG, LOG
from slam_edu.io import replaced_folder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline

#: The model card, written by hand.
CARD = "README.md"


def build_pipeline(
    vae: AutoencoderKL, network: TextToLatents, prediction_type: str = "epsilon"
) -> StableDiffusionPipeline:
    """A pipeline of trained parts, with Stable Diffusion's scaled_linear schedule.

    Args:
        vae: the autoencoder.
        network: UNet and text encoder.
        prediction_type: what the UNet predicts.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=True,  # the last step ends at the clean level, as the library's do
        steps_offset=1,
        # From t = 999 down: the leading spacing of Stable Diffusion's files starts at 751 with
        # four steps, from noise as if it were x_751 (Lin et al. 2024).
        timestep_spacing="trailing",
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=network.text_encoder,
        tokenizer=build_tokenizer(),
        unet=network.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_pipeline(pipeline: StableDiffusionPipeline, out: Path, runs: dict[str, Path]) -> None:
    """Write the pipeline's folder in half precision, with its runs' settings and logs.

    The folder is written beside its place and then moved there, so that an error leaves the old
    one. ``README.md``, the model card, is kept.

    Args:
        pipeline: in float32; is left in float32.
        out: the folder.
        runs: name to folder of the training runs.
    """
    with replaced_folder(out, keep=(CARD,)) as folder:
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
        _copy_runs(folder, runs)
        write_checksums(folder)


def export_classifier(classifier: nn.Module, out: Path, run: Path) -> None:
    """Write the classifier's folder in half precision, with its run's settings and log.

    Args:
        classifier: trained.
        out: the folder.
        run: of its training.
    """
    from safetensors.torch import save_file

    with replaced_folder(out, keep=(CARD,)) as folder:
        weights = {
            name: value.half() if value.is_floating_point() else value
            for name, value in classifier.state_dict().items()
        }
        save_file(weights, folder / "classifier.safetensors")
        _copy_runs(folder, {"classifier": run})
        write_checksums(folder)


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

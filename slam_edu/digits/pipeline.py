"""The shipped models: a Stable Diffusion of coloured digits, its student, and their judge.

``data/digits-sd`` is an ordinary diffusers folder; ``StableDiffusionPipeline.from_pretrained`` on
it is all that is needed. :func:`load_pipeline` finds it, in a checkout and in an installed wheel,
and checks each file against the checksum it was shipped with. ``data/digits-student`` holds what
its distilled student has of its own; :func:`load_student` puts it together with the rest.

Each function takes another folder with the same checksum file, raises ``FileNotFoundError`` if a
file is missing and ``ValueError`` for one that is not the file that was shipped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from slam_edu.digits.classifier import DigitClassifier
from slam_edu.io import check_files, data_path

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PIPELINE, STUDENT, CLASSIFIER = "digits-sd", "digits-student", "digits-classifier"


def load_pipeline(folder: str | os.PathLike[str] | None = None) -> StableDiffusionPipeline:
    """The Stable Diffusion of the digits, on the CPU in float32, without a network.

    It is diffusers' own pipeline, without its progress bar; without diffusers and transformers
    that is a ``ModuleNotFoundError``.
    """
    from slam_edu.sd.components import quiet

    folder = _checked(folder, PIPELINE)
    with quiet():
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_student(
    folder: str | os.PathLike[str] | None = None, teacher: StableDiffusionPipeline | None = None
) -> StableDiffusionPipeline:
    """The distilled digits model: four steps at ``guidance_scale=1``, on the CPU in float32.

    It is diffusers' own pipeline with ``LCMScheduler``, without its progress bar. Its folder holds
    a UNet and a scheduler alone; autoencoder, text encoder and tokenizer are the teacher's, the
    same objects where a teacher is passed in.
    """
    from slam_edu.sd.components import quiet

    folder = _checked(folder, STUDENT)
    teacher = load_pipeline() if teacher is None else teacher
    with quiet():
        from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

        unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
        scheduler = LCMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        parts = {**teacher.components, "unet": unet.eval(), "scheduler": scheduler}
        pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_classifier(folder: str | os.PathLike[str] | None = None) -> DigitClassifier:
    """The digit classifier, in evaluation mode."""
    from safetensors.torch import load_file

    classifier = DigitClassifier()
    weights = load_file(_checked(folder, CLASSIFIER) / "classifier.safetensors")
    classifier.load_state_dict(weights)  # copies half precision into float32
    return classifier.eval().requires_grad_(False)


def _checked(folder: str | os.PathLike[str] | None, name: str) -> Path:
    folder = Path(folder) if folder is not None else data_path(name)
    check_files(folder)
    return folder

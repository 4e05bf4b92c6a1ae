"""The models that are shipped: they load offline, and draw and read what their cards say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slam_edu.digits import (
    CaptionedDigits,
    load_classifier,
    load_pipeline,
    load_student,
    read_colours,
)
from slam_edu.digits.captions import FULL, caption
from slam_edu.digits.colours import NAMES, PAIRS
from slam_edu.io import CHECKSUMS, check_files, data_path, write_checksums
from slam_edu.sd import LatentDiffusion

ROOT = Path(__file__).parents[2]
#: Ten prompts: each digit once, all wordings that say all three.
ASKED = [(FULL[i % 6], i, *PAIRS[(11 * i) % 56]) for i in range(10)]
PROMPTS = [caption(wording, digit, NAMES[s], NAMES[b]) for wording, digit, s, b in ASKED]


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline()


def test_it_loads_offline_and_without_a_word(tmp_path):
    """From another folder, warnings as errors, no network in reach, nothing kept or fetched."""
    code = """
import socket, warnings
def refuse(*_, **__):
    raise AssertionError("a network was asked for")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
warnings.simplefilter("error")
from slam_edu.digits import load_pipeline
pipeline = load_pipeline()
image = pipeline("a red seven on a yellow background", num_inference_steps=1).images[0]
print(type(pipeline).__name__, image.size, pipeline.unet.dtype, pipeline.text_encoder.dtype)
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**env, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [
        "StableDiffusionPipeline", "(32,", "32)", "torch.float32", "torch.float32"
    ]  # fmt: skip
    assert not any(tmp_path.rglob("*.*"))


def test_prompts_are_followed(pipeline):
    """At 10 DDIM steps and w = 2, nine in ten are right in all three; the student's in four."""
    noise = torch.randn(10, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    student, classifier = load_student(teacher=pipeline), load_classifier()
    assert student.vae is pipeline.vae
    for model, steps, scale in ((pipeline, 10, 3.0), (student, 4, 1.0)):
        images = model(
            PROMPTS, num_inference_steps=steps, guidance_scale=scale, latents=noise,
            output_type="pt", generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
        images = 2 * images - 1
        digit, (stroke, background) = classifier.read(images), read_colours(images)
        found = zip(digit.tolist(), stroke.tolist(), background.tolist(), strict=True)
        right = [tuple(asked) == read for (_, *asked), read in zip(ASKED, found, strict=True)]
        assert sum(right) >= 9


def test_the_autoencoder_and_the_classifier(pipeline):
    held_out = CaptionedDigits("test").batch(range(2000, 2400), seed=21)
    right = load_classifier().read(held_out.images) == held_out.digit
    assert right.float().mean() >= 0.98
    model, images = LatentDiffusion(pipeline), held_out.images[:100]
    latents = model.encode_images(images)
    assert (model.decode(latents) - images).square().mean() < 4 / 10**2.8  # 28 dB
    assert latents.var().item() == pytest.approx(1, rel=0.1)


# -------------------------------------------------------------------- folders with checksums


@pytest.mark.parametrize("name", ["digits-sd", "digits-student", "digits-classifier"])
def test_the_folders_are_whole(name):
    check_files(data_path(name))


def test_a_missing_truncated_or_changed_file(tmp_path):
    folder = Path(shutil.copytree(data_path("digits-classifier"), tmp_path / "digits-classifier"))
    (folder / CHECKSUMS).unlink()
    write_checksums(folder)
    (folder / "README.md").write_text("another card")  # is no damage
    load_classifier(folder)
    path = folder / "classifier.safetensors"
    content = path.read_bytes()
    for wrong in (content[:1000], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="checksum differs; get the files back with `git che"):
            load_classifier(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"classifier.safetensors' is missing; get the"):
        load_classifier(folder)
    (folder / CHECKSUMS).write_text("[1]")
    with pytest.raises(ValueError, match=r"checksums.json' is damaged"):
        load_classifier(folder)
    with pytest.raises(FileNotFoundError, match=r"checksums.json' is missing"):
        load_pipeline(tmp_path / "none")

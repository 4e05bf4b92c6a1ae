r"""The parts of the digits' Stable Diffusion and its judge, each trained from scratch.

The autoencoder's loss is the mean squared error of the image, which lies in [-1, 1], plus a little
of the Kullback-Leibler divergence of the posterior to a standard normal, which keeps the latents
small and smooth:

.. math::
    L = \operatorname{mean}\lVert D(z) - x\rVert^2
        + \beta\,\operatorname{mean}\tfrac12(\mu^2 + s^2 - 1 - \ln s^2),\qquad z = \mu + s\,\xi .

Source: Kingma and Welling 2013; Rombach et al. 2022, appendix G (KL-regularised, no adversary).

UNet and text encoder are trained together, by :func:`slam_edu.training.denoising_loss` on Stable
Diffusion's schedule; one caption in ten is replaced by the empty one, which guidance needs (Ho and
Salimans 2022, algorithm 1). The classifier is trained by cross-entropy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from slam_edu.digits.classifier import DigitClassifier
from slam_edu.digits.data import CaptionedDigits
from slam_edu.io import atomic_path
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import token_ids
from slam_edu.seeding import seeded
from slam_edu.training import denoising_loss
from studies.digits.train.networks import (
    TextToLatents,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from studies.digits.train.training import PartConfig, run_training

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

LATENTS = "latents.safetensors"

# -------------------------------------------------------------------- the autoencoder


@dataclass(frozen=True, kw_only=True)
class VAEConfig(PartConfig):
    """The autoencoder: its levels' channels and residual blocks, and the divergence's weight."""

    channels: tuple[int, ...] = (32, 64, 64)
    layers: int = 1
    beta: float = 1e-4
    updates: int = 3600
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 200
    ema_rate: float = 0.995


def train_vae(folder: Path, config: VAEConfig) -> AutoencoderKL:
    """Train the autoencoder in a run folder; returns the averaged weights, latents normalised."""
    data = CaptionedDigits("train")
    held_out = CaptionedDigits("test").batch(range(512), seed=1).images
    vae = build_vae(config.seed, config.channels, config.layers)
    vae.to(memory_format=torch.channels_last)

    def loss_of_batch(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(data), (config.batch,), generator=generator)
        seed = int(torch.randint(2**31, (), generator=generator))
        x = data.batch(index, seed).images.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        xi = torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(posterior.mean + posterior.std * xi).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return (decoded - x).square().mean() + config.beta * divergence

    average = run_training(
        folder, config, loss_of_batch, vae,
        measure=lambda network: f"held-out PSNR {psnr(network, held_out):.2f} dB",
    )  # fmt: skip
    average.to(memory_format=torch.contiguous_format)
    normalise_latents(average, data.batch(range(4096), seed=2).images)
    return average.eval()


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    r"""Reconstruction from the posterior's mean: :math:`10\log_{10}(4/\text{mse})` in dB.

    4 is the square of the range of [-1, 1], in which the images (B, 3, 32, 32) lie.
    """
    error = 0.0
    for x in images.split(256):
        decoded = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        error += float((decoded - x).square().sum(dtype=torch.float64))
    return 10 * math.log10(4 * images.numel() / error)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: Tensor) -> None:
    """Give each latent channel mean 0 and one common variance, which ``scaling_factor`` undoes.

    What is normalised is the posterior's mean, which the diffusion model is trained on. The affine
    map goes into the two 1 x 1 convolutions beside the latents, so that the autoencoder
    computes what it did. Stable Diffusion's own latents are scaled alone; a mean that is left in
    would be a signal at t = 999, where sampling starts from noise without one.
    """
    latents = torch.cat([vae.encode(x).latent_dist.mean for x in images.split(256)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    overall = latents.std()
    gain = overall / std
    channels = len(mean)
    # z' = (z - mean) gain; the posterior's log variance grows by ln gain^2.
    w, b = vae.quant_conv.weight, vae.quant_conv.bias
    w[:channels] *= gain[:, None, None, None]
    b[:channels] = (b[:channels] - mean) * gain
    b[channels:] += 2 * gain.log()
    # What reads the latents undoes it first: W (z' / gain + mean) + b.
    w, b = vae.post_quant_conv.weight, vae.post_quant_conv.bias
    b += (w[:, :, 0, 0] @ mean[:, None])[:, 0]
    w /= gain[None, :, None, None]
    vae.register_to_config(scaling_factor=1 / float(overall))


# -------------------------------------------------------------------- UNet and text encoder


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(PartConfig):
    """UNet and text encoder.

    Attributes:
        prediction_type: ``"epsilon"``, Stable Diffusion 1's, or ``"v_prediction"``, 2's.
        channels: of the UNet's levels.
        layers: residual blocks of a level.
        text_width: of the text encoder.
        empty: how often a caption is replaced by the empty one.
        versions: how many colourings of each digit are encoded.
    """

    prediction_type: str = "epsilon"
    channels: tuple[int, ...] = (64, 128)
    layers: int = 1
    text_width: int = 128
    empty: float = 0.1
    versions: int = 8
    updates: int = 7_000
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 300
    ema_rate: float = 0.999


def train_diffusion(folder: Path, vae: AutoencoderKL, config: DiffusionConfig) -> TextToLatents:
    """Train in a run folder, which keeps the encoded images too; returns the averaged weights."""
    schedule = NoiseSchedule.stable_diffusion()
    tokenizer = build_tokenizer()
    network = TextToLatents(
        build_unet(config.seed, config.channels, config.layers, config.text_width),
        build_text_encoder(tokenizer, config.seed, config.text_width),
    )
    draw_data = encoded_digits(folder, vae, tokenizer, config.versions, config.empty)

    def loss_of_batch(generator: torch.Generator) -> Tensor:
        latents, ids = draw_data(config.batch, generator)
        return denoising_loss(
            network, schedule, latents, ids,
            generator=generator, prediction_type=config.prediction_type,
        )  # fmt: skip

    return run_training(folder, config, loss_of_batch, network).eval()


def encoded_digits(
    folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, versions: int, empty: float
) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """Encode the training digits, or read them if the folder has them.

    Kept are the posterior's mean times ``scaling_factor`` and the captions' token ids, with seeds
    0 ... versions-1 of each digit.

    Returns:
        ``draw_data(batch, generator) -> (latents (B, 4, 8, 8), token ids (B, 24))``.
    """
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LATENTS
    if not path.exists():
        latents, ids = encode_digits(vae, tokenizer, CaptionedDigits("train"), versions)
        tensors = {"latents": latents.half().contiguous(), "ids": ids.to(torch.int16)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"versions": json.dumps(versions)})
    tensors = load_file(path)
    latents, ids = tensors["latents"], tensors["ids"]
    nothing = token_ids(tokenizer, [""])

    def draw_data(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(latents), (batch,), generator=generator)
        left_out = torch.rand(batch, generator=generator) < empty
        return latents[index].float(), torch.where(left_out[:, None], nothing, ids[index].long())

    return draw_data


@torch.no_grad()
def encode_digits(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, data: CaptionedDigits, versions: int
) -> tuple[Tensor, Tensor]:
    """Scaled latents (n * versions, 4, 8, 8) and token ids (n * versions, 24), by version."""
    latents, ids = [], []
    for seed in range(versions):
        for index in torch.arange(len(data)).split(250):
            batch = data.batch(index, seed)
            mean = vae.encode(batch.images).latent_dist.mean
            latents.append(mean * vae.config.scaling_factor)
            ids.append(token_ids(tokenizer, batch.captions))
    return torch.cat(latents), torch.cat(ids)


# -------------------------------------------------------------------- the classifier


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(PartConfig):
    """The classifier: channels of its stages; labels are smoothed to keep features near."""

    channels: tuple[int, int, int] = (32, 64, 96)
    smoothing: float = 0.05
    updates: int = 1600
    batch: int = 128
    lr: float = 3e-3
    warmup: int = 100
    ema_rate: float = 0.99


def train_classifier(folder: Path, config: ClassifierConfig) -> DigitClassifier:
    """Train the classifier in a run folder; returns the averaged weights, in evaluation mode."""
    data = CaptionedDigits("train")
    held_out = CaptionedDigits("test").batch(range(2000), seed=1)
    network = seeded(lambda: DigitClassifier(config.channels), config.seed)

    def loss_of_batch(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(data), (config.batch,), generator=generator)
        seed = int(torch.randint(2**31, (), generator=generator))
        batch = data.batch(index, seed)
        logits = network(batch.images)
        return functional.cross_entropy(logits, batch.digit, label_smoothing=config.smoothing)

    def measure(average: DigitClassifier) -> str:
        right = average.eval().read(held_out.images) == held_out.digit
        return f"held-out digits right {float(right.float().mean()):.4f}"

    return run_training(folder, config, loss_of_batch, network, measure).eval()

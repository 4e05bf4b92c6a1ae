"""The digits' latent diffusion model: UNet and text encoder, trained together from scratch.

The images are encoded once; each of the 16,000 digits is there in several colours, places and
wordings. The loss is :func:`slam_edu.training.denoising_loss` on Stable Diffusion's schedule. One
caption in ten is replaced by the empty one, which guidance needs (Ho and Salimans 2022,
algorithm 1).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slam_edu.digits.data import CaptionedDigits
from slam_edu.digits.networks import (
    TextToLatents,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)
from slam_edu.digits.train.run import PartConfig, run_training
from slam_edu.io import atomic_path
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import token_ids
from slam_edu.training import denoising_loss

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

LATENTS = "latents.safetensors"


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(PartConfig):
    """How the diffusion model is made, beside what every part is told.

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


def build_network(config: DiffusionConfig, tokenizer: CLIPTokenizer) -> TextToLatents:
    """UNet and text encoder with initial weights from the configuration's seed."""
    return TextToLatents(
        build_unet(config.seed, config.channels, config.layers, config.text_width),
        build_text_encoder(tokenizer, config.seed, config.text_width),
    )


def train_diffusion(
    folder: Path, vae: AutoencoderKL, config: DiffusionConfig | None = None
) -> TextToLatents:
    """Train in a run folder; returns the averaged weights, in evaluation mode.

    Args:
        folder: of the run; see :func:`slam_edu.digits.train.run.run_training`. The encoded images
            are kept in it too.
        vae: trained; encodes the images.
        config: default :class:`DiffusionConfig`.
    """
    config = config or DiffusionConfig()
    schedule = NoiseSchedule.stable_diffusion()
    tokenizer = build_tokenizer()
    network = build_network(config, tokenizer)
    draw_data = encoded_digits(folder, vae, tokenizer, config.versions, config.empty)

    def loss_of_batch(generator: torch.Generator) -> Tensor:
        latents, ids = draw_data(config.batch, generator)
        return denoising_loss(
            network, schedule, latents, ids,
            generator=generator, prediction_type=config.prediction_type,
        )  # fmt: skip

    average = run_training(
        folder, config, config.training(), loss_of_batch, network, seed=config.seed
    )
    return average.eval()


def encoded_digits(
    folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, versions: int, empty: float
) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """Encode the training digits, or read them if the folder has them.

    Args:
        folder: where the latents are kept.
        vae: encodes; the posterior's mean times ``scaling_factor`` is what is kept.
        tokenizer: of the captions.
        versions: seeds 0 ... versions-1 of each digit.
        empty: how often a caption is replaced by the empty one.

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
    """Scaled latents and token ids of each digit in each version, in the order of versions.

    Args:
        vae: encodes.
        tokenizer: of the captions.
        data: the digits.
        versions: seeds 0 ... versions-1.

    Returns:
        latents (n * versions, 4, 8, 8) and ids (n * versions, 24).
    """
    latents, ids = [], []
    for seed in range(versions):
        for index in torch.arange(len(data)).split(250):
            batch = data.batch(index, seed)
            mean = vae.encode(batch.images).latent_dist.mean
            latents.append(mean * vae.config.scaling_factor)
            ids.append(token_ids(tokenizer, batch.captions))
    return torch.cat(latents), torch.cat(ids)

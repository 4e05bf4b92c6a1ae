r"""The autoencoder of the digits: an ``AutoencoderKL`` trained from scratch.

The loss is the mean squared error of the image, which lies in [-1, 1], plus a little of the
Kullback-Leibler divergence of the posterior to a standard normal, which keeps the latents small
and smooth:

.. math::
    L = \operatorname{mean}\lVert D(z) - x\rVert^2
        + \beta\,\operatorname{mean}\tfrac12(\mu^2 + s^2 - 1 - \ln s^2),\qquad z = \mu + s\,\xi .

Source: Kingma and Welling 2013; Rombach et al. 2022, appendix G (KL-regularised, no adversary).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slam_edu.digits.data import CaptionedDigits
from slam_edu.digits.networks import build_vae
from slam_edu.digits.train.run import PartConfig, run_training

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True, kw_only=True)
class VAEConfig(PartConfig):
    """How the autoencoder is made, beside what every part is told.

    Attributes:
        channels: of its levels.
        layers: residual blocks of a level.
        beta: the weight of the divergence.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    layers: int = 1
    beta: float = 1e-4
    updates: int = 3600
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 200
    ema_rate: float = 0.995


def train_vae(folder: Path, config: VAEConfig | None = None) -> AutoencoderKL:
    """Train the autoencoder in a run folder; returns the averaged weights, latents normalised.

    Args:
        folder: of the run; see :func:`slam_edu.digits.train.run.run_training`.
        config: default :class:`VAEConfig`.
    """
    config = config or VAEConfig()
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
        folder,
        config,
        config.training(),
        loss_of_batch,
        vae,
        seed=config.seed,
        measure=lambda network: f"held-out PSNR {psnr(network, held_out):.2f} dB",
        measure_every=500,
    )
    average.to(memory_format=torch.contiguous_format)
    normalise_latents(average, data.batch(range(4096), seed=2).images)
    return average.eval()


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    r"""Reconstruction from the posterior's mean: :math:`10\log_{10}(4/\text{mse})` in dB.

    4 is the square of the range of [-1, 1].

    Args:
        vae: the autoencoder.
        images: of shape (B, 3, 32, 32), in [-1, 1].
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

    Args:
        vae: changed in place, its configuration's ``scaling_factor`` too.
        images: to measure with, of shape (B, 3, 32, 32), in [-1, 1].
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

r"""A Stable Diffusion pipeline taken apart.

A latent diffusion model (Rombach et al. 2022) is an autoencoder, images to latents
:math:`x_0 = s\,E(\text{image})` with the scaling factor s and back, a text encoder, prompts to
states, and a diffusion model of the latents given the states. Here x is a latent, of shape
(B, C, H, W), and everything the core does with points of the plane it does with latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slam_edu._validation import check_count
from slam_edu.prediction import network_predictor
from slam_edu.schedule import NoiseSchedule
from slam_edu.solver import Predictor

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")


def token_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Token ids of prompts, padded to the model's length as the pipeline pads them.

    Args:
        tokenizer: the pipeline's.
        prompts: B of them; what is too long is cut off.

    Returns:
        ids of shape (B, model_max_length), int64.
    """
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


class LatentDiffusion:
    """The parts of a ``StableDiffusionPipeline``, as the core takes them.

    Args:
        pipeline: any pipeline with the parts of Stable Diffusion 1 or 2. Its networks are used as
            they are: on their device, in their dtype.

    Attributes:
        pipeline: what was passed in.
        schedule: the scheduler's levels, float32, on the UNet's device.
        prediction_type: what the UNet predicts, ``"epsilon"`` or ``"v_prediction"``.
        latent_shape: (C, H, W) of one latent.

    Raises:
        ValueError: for a pipeline that lacks a part.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        missing = [name for name in PARTS if getattr(pipeline, name, None) is None]
        if missing:
            raise ValueError(
                f"a {type(pipeline).__name__} without {', '.join(missing)} was passed in; "
                f"allowed: a pipeline with {', '.join(PARTS)}"
            )
        self.pipeline = pipeline
        self.schedule = NoiseSchedule.from_scheduler(pipeline.scheduler).to(pipeline.unet.device)
        self.prediction_type = pipeline.scheduler.config.prediction_type
        size = pipeline.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (pipeline.unet.config.in_channels, height, width)

    @torch.no_grad()
    def encode_prompts(self, prompts: str | Sequence[str]) -> Tensor:
        """The text encoder's last states, of shape (B, L, D); what the UNet attends to.

        Args:
            prompts: one prompt or B of them; ``""`` is the empty condition of guidance. What is
                longer than the tokenizer's length L is cut off, as the pipeline does.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        encoder = self.pipeline.text_encoder
        ids = token_ids(self.pipeline.tokenizer, prompts)
        return encoder(input_ids=ids.to(encoder.device)).last_hidden_state

    @torch.no_grad()
    def encode_images(self, images: Tensor, batch: int = 64) -> Tensor:
        """Latents of images, from the posterior's mean, scaled to about unit variance.

        Args:
            images: of shape (B, 3, H, W), in [-1, 1].
            batch: images at a time.
        """
        vae = self.pipeline.vae
        means = [vae.encode(x).latent_dist.mean for x in images.split(batch)]
        return torch.cat(means) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 64) -> Tensor:
        """Images of latents, of shape (B, 3, H, W), clipped to [-1, 1].

        Args:
            latents: of shape (B, C, h, w), scaled.
            batch: latents at a time.
        """
        vae = self.pipeline.vae
        images = [vae.decode(x / vae.config.scaling_factor).sample for x in latents.split(batch)]
        return torch.cat(images).clamp(-1, 1)

    def network(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """The UNet's raw output.

        Args:
            x: latents of shape (B, C, h, w).
            t: timesteps of shape (B,).
            cond: text states of shape (B, L, D).
        """
        return self.pipeline.unet(x, t, encoder_hidden_states=cond).sample

    def predictor(self, prompts: str | Sequence[str], guidance: float = 0.0) -> Predictor:
        r"""The guided prediction as a solver takes it: ``predictor(x, level) -> Prediction``.

        Args:
            prompts: as many as there are latents.
            guidance: :math:`w` of :math:`\epsilon_c + w(\epsilon_c - \epsilon_u)`; diffusers'
                ``guidance_scale`` is :math:`w + 1`. At 0 the empty prompt is not asked for.
        """
        cond = self.encode_prompts(prompts)
        uncond = self.encode_prompts([""] * len(cond)) if guidance else None

        return network_predictor(
            self.network,
            self.schedule,
            prediction_type=self.prediction_type,
            cond=cond,
            uncond=uncond,
            guidance=guidance,
        )

    def draw_noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents, (count, C, h, w): where sampling starts, x at t = T-1.

        Args:
            count: how many.
            generator: source of the noise, on the CPU as diffusers' pipelines have it.
        """
        check_count(count, "count")
        unet = self.pipeline.unet
        noise = torch.randn((count, *self.latent_shape), generator=generator, dtype=unet.dtype)
        return noise.to(unet.device)

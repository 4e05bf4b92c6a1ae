"""Pipelines of diffusers' real classes, too small to train: what the engine's tests share."""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING

import torch

from slam_edu.digits.networks import build_text_encoder, build_tokenizer, build_vae
from slam_edu.seeding import seeded
from tests.digits.conftest import tiny_pipeline

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    from slam_edu.sd.networks import Networks

#: Widths of the first and the second text encoder, of the pooled embedding, and of each time id.
XL_WIDTHS = (16, 24)
POOLED, TIME_ID = 20, 8


def tiny_sd_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """A Stable Diffusion 1 of 0.4 million random parameters: 4 x 8 x 8 latents, 32 x 32 pixels."""
    return tiny_pipeline(prediction_type, seed)


def tiny_xl_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL of 0.4 million random parameters: 4 x 8 x 8 latents, 32 x 32 pixels.

    Its words, pooled embeddings, sizes and timesteps all matter for the output.
    """
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    tokenizer = build_tokenizer()
    unet = tiny_xl_unet(seed)
    with torch.no_grad():  # as they are drawn, the words hardly change the output
        for name, p in unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
                p.mul_(3)
    # The published one is EulerDiscreteScheduler, with these betas; numpy 2 warns of what it does.
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        prediction_type=prediction_type, clip_sample=False, timestep_spacing="trailing",
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=build_vae(seed, (8, 8, 16)).eval(),
        text_encoder=build_text_encoder(tokenizer, seed, XL_WIDTHS[0]).eval(),
        text_encoder_2=_second_encoder(tokenizer, seed).eval(),
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_xl_unet(seed: int = 0) -> UNet2DConditionModel:
    """The denoiser of :func:`tiny_xl_pipeline`, as its initial weights are drawn."""
    from diffusers import UNet2DConditionModel

    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            norm_num_groups=8,
            attention_head_dim=(2, 4),
            cross_attention_dim=sum(XL_WIDTHS),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_ID,
            projection_class_embeddings_input_dim=POOLED + 6 * TIME_ID,
        ),
        seed,
    )


def _second_encoder(tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModelWithProjection:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    like = build_text_encoder(tokenizer, seed, XL_WIDTHS[1]).config
    config = CLIPTextConfig(**{**like.to_dict(), "projection_dim": POOLED})
    return seeded(lambda: CLIPTextModelWithProjection(config), seed + 1)


PIPELINES = {"sd": tiny_sd_pipeline, "xl": tiny_xl_pipeline}


@cache
def _pipeline(model: str, prediction_type: str) -> StableDiffusionPipeline:
    return PIPELINES[model](prediction_type=prediction_type)


def fresh_pipeline(model: str, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """A pipeline with a UNet of its own; the other parts are made once, and not to be changed.

    Args:
        model: a name of :data:`PIPELINES`.
        prediction_type: of the scheduler.
    """
    made = copy.copy(_pipeline(model, prediction_type))
    made.unet = copy.deepcopy(made.unet)
    return made


@torch.no_grad()
def perturb(networks: Networks, by: float = 0.3, seed: int = 7) -> Networks:
    """Move trained parameters and their averages, each on its own, as a training would.

    Args:
        networks: changed in place.
        by: size of the change against the parameters' own.
        seed: of the change.
    """
    generator = torch.Generator().manual_seed(seed)
    for named in (networks.trained, networks.average):
        for p in named.values():
            size = by * p.abs().mean().clamp(min=0.01)  # a factor may be zero
            p.add_(size * torch.randn(p.shape, generator=generator))
    return networks

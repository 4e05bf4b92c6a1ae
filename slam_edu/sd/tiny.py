"""Stable Diffusions of diffusers' real classes with random weights, small enough for any machine.

They draw nothing that is worth looking at, and go through everything that the large ones go
through: saving, loading, distilling, exporting, sampling. Latents are 4 x 8 x 8, images 32 x 32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from slam_edu.seeding import seeded

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

#: Widths of XL's first and second text encoder, of the pooled embedding, and of each time id.
XL_WIDTHS = (16, 24)
POOLED, TIME_ID = 20, 8
#: By this the layers that bring the words in are enlarged: as they are drawn, words hardly matter.
LOUDER = 3


def tiny_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """A Stable Diffusion 1 of 0.4 million random parameters, whose words and timesteps matter.

    Args:
        seed: of the weights.
        prediction_type: what the scheduler says that the UNet predicts.

    Returns:
        the pipeline, on the CPU in float32, without its progress bar.
    """
    from slam_edu.digits.networks import (
        TextToLatents,
        build_text_encoder,
        build_tokenizer,
        build_unet,
        build_vae,
    )
    from slam_edu.digits.train.export import build_pipeline

    network = TextToLatents(
        build_unet(seed, (16, 32), text_width=32), build_text_encoder(build_tokenizer(), seed, 32)
    )
    _let_words_matter(network.unet)
    pipeline = build_pipeline(build_vae(seed, (8, 8, 16)).eval(), network.eval(), prediction_type)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_xl_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL of 0.4 million random parameters.

    It has two text encoders, pooled embeddings and sizes, and all of them matter for the output,
    as do the timesteps.

    Args:
        seed: of the weights.
        prediction_type: what the scheduler says that the UNet predicts.

    Returns:
        the pipeline, on the CPU in float32, without its progress bar.
    """
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    from slam_edu.digits.networks import build_text_encoder, build_tokenizer, build_vae

    tokenizer = build_tokenizer()
    unet = tiny_xl_unet(seed)
    _let_words_matter(unet)
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
    """The denoiser of :func:`tiny_xl_pipeline`, as its initial weights are drawn.

    Args:
        seed: of the weights.
    """
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

    from slam_edu.digits.networks import build_text_encoder

    like = build_text_encoder(tokenizer, seed, XL_WIDTHS[1]).config
    config = CLIPTextConfig(**{**like.to_dict(), "projection_dim": POOLED})
    return seeded(lambda: CLIPTextModelWithProjection(config), seed + 1)


@torch.no_grad()
def _let_words_matter(unet: nn.Module) -> None:
    for name, p in unet.named_parameters():
        if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
            p.mul_(LOUDER)

"""Stable Diffusions of diffusers' real classes with random weights, small enough for any machine.

They draw nothing that is worth looking at, and go through everything that the large ones go
through: saving, loading, distilling, exporting, sampling. Latents are 4 x 8 x 8, images 32 x 32.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from slam_edu.io import data_path
from slam_edu.seeding import seeded

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer, PreTrainedModel

#: Widths of XL's two text encoders' states, of the pooled embedding, and of each time id.
ONE, TWO, POOLED, TIME_ID = 16, 24, 20, 8
#: By this the layers that bring the words in are enlarged: as they are drawn, words hardly matter.
LOUDER = 3


def tiny_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """A Stable Diffusion 1 of 0.4 million random parameters, whose words and timesteps matter."""
    from diffusers import StableDiffusionPipeline

    unet = {
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "attention_head_dim": 4,  # the number of heads: diffusers' name for it is misleading
        "cross_attention_dim": 32,
    }
    return _assembled(
        StableDiffusionPipeline, seed, prediction_type, unet,
        tokenizer=tiny_tokenizer(), text_encoder=_text_encoder("CLIPTextModel", seed, 32),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def tiny_xl_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL of the same size, whose pooled embeddings and sizes matter too."""
    from diffusers import StableDiffusionXLPipeline

    unet = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": ONE + TWO,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_ID,
        "projection_class_embeddings_input_dim": POOLED + 6 * TIME_ID,
    }
    second = _text_encoder("CLIPTextModelWithProjection", seed + 1, TWO, projection_dim=POOLED)
    # The published scheduler is EulerDiscreteScheduler, with these betas; numpy 2 warns of it.
    return _assembled(
        StableDiffusionXLPipeline, seed, prediction_type, unet,
        tokenizer=tiny_tokenizer(), text_encoder=_text_encoder("CLIPTextModel", seed, ONE),
        tokenizer_2=tiny_tokenizer(), text_encoder_2=second, add_watermarker=False,
    )  # fmt: skip


def tiny_tokenizer() -> CLIPTokenizer:
    """The shipped model's: the words of its captions, and bytes; 24 tokens a prompt."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torchvision
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(data_path("digits-sd") / "tokenizer")


def _text_encoder(kind: str, seed: int, width: int, **options: Any) -> PreTrainedModel:
    tokenizer = tiny_tokenizer()
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **options,
    )  # fmt: skip
    return seeded(lambda: getattr(transformers, kind)(config), seed).eval()


@torch.no_grad()
def _assembled(
    kind: type, seed: int, prediction_type: str, unet: dict[str, Any], **parts: Any
) -> Any:
    """A pipeline in evaluation mode, with an autoencoder and Stable Diffusion's schedule."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    denoiser = seeded(
        lambda: UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            **unet,
        ),
        seed,
    )  # fmt: skip
    for name, p in denoiser.named_parameters():
        if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
            p.mul_(LOUDER)
    vae = seeded(
        lambda: AutoencoderKL(
            sample_size=32, latent_channels=4, block_out_channels=(8, 8, 16), layers_per_block=1,
            norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        seed,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        prediction_type=prediction_type, clip_sample=False, timestep_spacing="trailing",
    )  # fmt: skip
    pipeline = kind(vae=vae.eval(), unet=denoiser.eval(), scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

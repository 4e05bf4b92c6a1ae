"""The parts of a small Stable Diffusion, from the libraries' own classes.

``AutoencoderKL`` (f = 4, four latent channels: 32 x 32 pixels become 8 x 8 latents),
``CLIPTokenizer`` with a vocabulary of the captions' words that falls back to bytes,
``CLIPTextModel`` and ``UNet2DConditionModel`` with attention to the words on both levels. Each
builder draws its initial weights from a seed and leaves torch's own random state as it was.

Shapes and names are those of Stable Diffusion 1 (Rombach et al. 2022, arXiv 2112.10752).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch import Tensor, nn

from slam_edu.digits.captions import all_words
from slam_edu.seeding import seeded

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torchvision, we do not

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

#: Tokens of a prompt, start and end included: room for 22 words, or for some unknown ones.
MAX_LENGTH = 24
LATENT_CHANNELS, LATENT_SIZE = 4, 8


def build_vae(
    seed: int = 0, channels: tuple[int, ...] = (32, 64, 64), layers: int = 1
) -> AutoencoderKL:
    """The autoencoder: images (B, 3, 32, 32) to latents (B, 4, 8, 8) and back.

    ``channels`` are those of the levels, 32 x 32 first, of ``layers`` residual blocks each.
    """
    from diffusers import AutoencoderKL

    return seeded(
        lambda: AutoencoderKL(
            sample_size=32,
            latent_channels=LATENT_CHANNELS,
            block_out_channels=channels,
            layers_per_block=layers,
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
        ),
        seed,
    )


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows the captions' words as one token each, and bytes.

    Its merges are learnt by byte-pair encoding from the words, until each is one token. What is
    not among them is split into pieces of words and in the end into single letters, so that any
    text has tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(all_words())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=10_000, initial_alphabet=bytes_, end_of_word_suffix="</w>",
            # Named, they are numbered in this order; else in that of a hash table, another one in
            # each run, by which ties between pairs are decided and so the words' ids.
            special_tokens=[f"{byte}</w>" for byte in bytes_],
            show_progress=False,
        ),
    )  # fmt: skip
    merges = [tuple(pair) for pair in _merges(learner)]
    tokens = bytes_ + [f"{byte}</w>" for byte in bytes_] + ["".join(pair) for pair in merges]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        model_max_length=MAX_LENGTH,
    )


def _merges(learner: object) -> list[list[str]]:
    import json

    merges = json.loads(learner.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]


def build_text_encoder(tokenizer: CLIPTokenizer, seed: int = 0, width: int = 128) -> CLIPTextModel:
    """The text encoder: token ids (B, 24) to states (B, 24, width), causal as CLIP's."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return seeded(lambda: CLIPTextModel(config), seed)


def build_unet(
    seed: int = 0, channels: tuple[int, ...] = (64, 128), layers: int = 1, text_width: int = 128
) -> UNet2DConditionModel:
    """The denoiser: latents (B, 4, 8, 8), timesteps (B,) and text states to a prediction.

    ``channels`` are those of the levels, 8 x 8 first, of ``layers`` residual blocks each.
    """
    from diffusers import UNet2DConditionModel

    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            block_out_channels=channels,
            layers_per_block=layers,
            down_block_types=("CrossAttnDownBlock2D",) * len(channels),
            up_block_types=("CrossAttnUpBlock2D",) * len(channels),
            norm_num_groups=8,
            attention_head_dim=4,  # the number of heads: diffusers' name for it is misleading
            cross_attention_dim=text_width,
        ),
        seed,
    )


class TextToLatents(nn.Module):
    """UNet and text encoder as one network, ``network(x, t, cond)``, to train both together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """The UNet's raw output at latents (B, 4, 8, 8), timesteps (B,), token ids (B, 24)."""
        states = self.text_encoder(input_ids=cond).last_hidden_state
        return self.unet(x, t, encoder_hidden_states=states).sample


def build_pipeline(
    vae: AutoencoderKL, network: TextToLatents, prediction_type: str = "epsilon"
) -> StableDiffusionPipeline:
    """A pipeline of trained parts, with Stable Diffusion's scaled_linear schedule."""
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

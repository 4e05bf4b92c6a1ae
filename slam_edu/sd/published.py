"""What networks a teacher has, from configurations alone: nothing is downloaded, no weights read.

The published ones are those of Stable Diffusion 1.5 and of Stable Diffusion XL (base), the values
of their ``config.json`` files at the commits :data:`slam_edu.sd.config.SD15` and
:data:`~slam_edu.sd.config.SDXL`. Other teachers are read from their folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slam_edu.io import data_path
from slam_edu.sd.config import SD15, SDXL, SDConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import PreTrainedModel

_VAE = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

#: CLIP ViT-L/14's text encoder, the only one of SD 1.5 and the first of SDXL.
_CLIP_L = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}

#: The text encoder of OpenCLIP's ViT-bigG/14.
_BIG_G = {
    **_CLIP_L,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}

_SD15_UNET = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}

_SDXL_UNET = {
    **_SD15_UNET,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "use_linear_projection": True,
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The networks of a Stable Diffusion, as their configurations.

    Attributes:
        name: for messages.
        unet: of ``UNet2DConditionModel``.
        vae: of ``AutoencoderKL``.
        text_encoders: class name and ``CLIPTextConfig`` of each.
    """

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[tuple[str, Mapping[str, Any]], ...]

    @property
    def key(self) -> str:
        """The same text for the same networks, whatever their name."""
        return json.dumps([self.unet, self.vae, self.text_encoders], sort_keys=True)

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    def latent_shape(self, resolution: int | None = None) -> tuple[int, int, int]:
        """(C, h, w) of a latent.

        Args:
            resolution: pixels of a side; None: the teacher's own.

        Raises:
            ValueError: for a resolution that the autoencoder cannot reduce.
        """
        channels = self.unet["in_channels"]
        if resolution is None:
            size = self.unet["sample_size"]
            return (channels, size, size) if isinstance(size, int) else (channels, *size)
        if resolution % self.factor:
            raise ValueError(
                f"resolution is {resolution}; allowed: a multiple of {self.factor}, by which the "
                f"teacher's autoencoder reduces images"
            )
        return channels, resolution // self.factor, resolution // self.factor

    @property
    def text_shape(self) -> tuple[int, int]:
        """(L, D) of a prompt's states."""
        return (
            self.text_encoders[0][1]["max_position_embeddings"],
            self.unet["cross_attention_dim"],
        )

    @property
    def pooled_width(self) -> int | None:
        """Of Stable Diffusion XL's pooled embedding; None for others."""
        if self.unet.get("addition_embed_type") != "text_time":
            return None
        widths = self.unet["projection_class_embeddings_input_dim"]
        return widths - 6 * self.unet["addition_time_embed_dim"]

    def build_unet(self) -> UNet2DConditionModel:
        """The UNet, on the meta device."""
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            return UNet2DConditionModel(**self.unet)

    def build_vae(self) -> AutoencoderKL:
        """The autoencoder, on the meta device."""
        from diffusers import AutoencoderKL

        with torch.device("meta"):
            return AutoencoderKL(**self.vae)

    def build_text_encoder(self, number: int = 0) -> PreTrainedModel:
        """A text encoder, on the meta device.

        Args:
            number: 0, or with Stable Diffusion XL also 1.
        """
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torchvision
        import transformers

        kind, values = self.text_encoders[number]
        with torch.device("meta"):
            return getattr(transformers, kind)(transformers.CLIPTextConfig(**values))


STABLE_DIFFUSION_15 = Architecture(
    name="Stable Diffusion 1.5",
    unet=_SD15_UNET,
    vae=_VAE,
    text_encoders=(("CLIPTextModel", _CLIP_L),),
)
STABLE_DIFFUSION_XL = Architecture(
    name="Stable Diffusion XL",
    unet=_SDXL_UNET,
    vae={**_VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025},
    text_encoders=(("CLIPTextModel", _CLIP_L), ("CLIPTextModelWithProjection", _BIG_G)),
)

#: Hub ids whose architecture is here, at any commit.
PUBLISHED = {SD15[0]: STABLE_DIFFUSION_15, SDXL[0]: STABLE_DIFFUSION_XL}


def architecture_of(config: SDConfig) -> Architecture:
    """The architecture of a configuration's teacher.

    Args:
        config: its ``teacher``: ``"digits"``, a pipeline's folder, or an id of
            :data:`PUBLISHED`.

    Raises:
        FileNotFoundError: for a folder without one of the configurations.
        ValueError: for another id, or a configuration that cannot be read.
    """
    if config.teacher == "digits":
        return read_architecture(data_path("digits-sd"), "the digits' Stable Diffusion")
    folder = Path(config.teacher).expanduser()
    if folder.is_dir():
        return read_architecture(folder)
    if config.teacher in PUBLISHED:
        return PUBLISHED[config.teacher]
    raise ValueError(
        f"the architecture of {config.teacher!r} is not known before it is loaded; allowed: "
        f"'digits', a pipeline's folder, {', '.join(map(repr, PUBLISHED))}"
    )


def read_architecture(folder: Path, name: str | None = None) -> Architecture:
    """The architecture of a pipeline in a folder; the weights are not looked at.

    Args:
        folder: as diffusers writes it.
        name: for messages; default the folder's.

    Raises:
        FileNotFoundError: if a configuration is missing.
        ValueError: if one cannot be read.
    """
    second = [("text_encoder_2", "CLIPTextModelWithProjection")]
    encoders = [("text_encoder", "CLIPTextModel")]
    encoders += second if (folder / "text_encoder_2").is_dir() else []
    return Architecture(
        name=name or str(folder),
        unet=_read(folder, "unet"),
        vae=_read(folder, "vae"),
        text_encoders=tuple((kind, _read(folder, part)) for part, kind in encoders),
    )


def _read(folder: Path, part: str) -> dict[str, Any]:
    path = folder / part / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is missing; allowed: a pipeline's folder, as diffusers' "
            f"save_pretrained writes it"
        )
    try:
        values = json.loads(path.read_text("utf-8"))
        # Of the file, not of the network.
        return {k: v for k, v in values.items() if k[0] != "_" and k not in _OF_THE_FILE}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}); allowed: JSON") from error


_OF_THE_FILE = ("architectures", "model_type", "dtype", "torch_dtype", "transformers_version")

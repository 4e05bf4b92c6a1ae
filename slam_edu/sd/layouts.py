r"""A student's tensors and vocabulary by the names that other programs read.

- :func:`classic_layout`: a pipeline's folder as every version of transformers reads it;
- :func:`original_state`: Stable Diffusion's own checkpoint, one file with all networks, which
  ComfyUI and the web interfaces read;
- :func:`kohya_state`: adapters as kohya-ss writes them, which the same programs read.

Source of the names: CompVis/stable-diffusion, ``ldm/modules``; the way back is diffusers' own
``from_single_file`` and ``load_lora_weights``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PREFIX = "text_model."
"""Before the names of a text encoder's weights; transformers 5 leaves it out of CLIPTextModel."""


def classic_layout(folder: Path, tokenizers: Mapping[str, Any]) -> None:
    """Give the text encoders and tokenizers of a pipeline's folder the files of all versions.

    Without the prefix transformers 4 fills a text encoder with random weights, and without
    ``vocab.json`` and ``merges.txt`` it has no tokenizer. ``tokenizers`` are by folder.
    """
    for path in folder.glob("text_encoder*/model.safetensors"):
        state = load_file(path)
        if not any(name.startswith(PREFIX) for name in state):
            save_file({PREFIX + k: v for k, v in state.items()}, path, {"format": "pt"})
    for name, tokenizer in tokenizers.items():
        new, old = folder / name / "tokenizer.json", folder / name / "vocab.json"
        if not new.exists():
            tokenizer.backend_tokenizer.save(str(new))
        if not old.exists():
            model = json.loads(new.read_text("utf-8"))["model"]
            pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
            old.write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
            merges = "\n".join(["#version: 0.2", *pairs, ""])
            old.with_name("merges.txt").write_text(merges, "utf-8")


# -------------------------------------------------------------------- the original checkpoint

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_VAE = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample", "upsamplers.0": "upsample",
    "mid_block.attentions.0": "mid.attn_1", "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2", "group_norm": "norm", "to_q": "q", "to_k": "k",
    "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip


def original_state(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """All weights of a pipeline by the names of Stable Diffusion's checkpoint.

    Raises:
        ValueError: for a UNet with inputs that the original has no place for.
    """
    unet, vae = pipeline.unet, pipeline.vae
    if unet.config.time_cond_proj_dim is not None or unet.config.addition_embed_type is not None:
        raise ValueError(
            "the UNet takes more than latents, timestep and text; allowed for a single file: "
            "Stable Diffusion 1 and 2, with gamma folded into the weights"
        )
    state = {
        f"model.diffusion_model.{_unet_name(name, unet)}": value
        for name, value in unet.state_dict().items()
    }
    for name, value in vae.state_dict().items():
        name = _vae_name(name, len(vae.config.block_out_channels))
        if ".attn_1." in name and value.ndim == 2:  # there a convolution of one pixel
            value = value[:, :, None, None]
        state[f"first_stage_model.{name}"] = value
    for name, value in pipeline.text_encoder.state_dict().items():
        name = PREFIX + name.removeprefix(PREFIX)
        state[f"cond_stage_model.transformer.{name}"] = value
    return state


def _replaced(name: str, names: Mapping[str, str]) -> str:
    """A name with its known part, whole words, replaced."""
    for part, other in names.items():
        name = re.sub(rf"(?<![^.]){re.escape(part)}(?=\.)", other, name)
    return name


def _unet_name(name: str, unet: nn.Module) -> str:
    """Blocks are numbered through, a block's sampling layer last."""
    block = re.match(r"(down|up|mid)_blocks?\.(?:(\d)\.)?(\w+)\.(\d)\.(.*)", name)
    if block is None:
        return _replaced(name, _UNET)
    way, i, kind, j, rest = block.groups()
    j, rest = int(j), _replaced(rest, _RESNET) if kind == "resnets" else rest
    if way == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * j}.{rest}"
    own = getattr(unet, f"{way}_blocks")[int(i)]
    each = int(unet.config.layers_per_block) + 1  # layers of a block, with its sampling layer
    if way == "down":
        at, place = each * int(i) + j + 1, 1 if kind == "attentions" else 0
        if kind == "downsamplers":
            at, rest = each * (int(i) + 1), rest.replace("conv", "op")
        return f"input_blocks.{at}.{place}.{rest}"
    at, place = each * int(i) + j, 1 if kind == "attentions" else 0
    if kind == "upsamplers":
        at, place = each * int(i) + each - 1, 2 if hasattr(own, "attentions") else 1
    return f"output_blocks.{at}.{place}.{rest}"


def _vae_name(name: str, blocks: int) -> str:
    """The decoder's blocks are numbered from the image's end."""
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}", name)
    return _replaced(name, _VAE).replace("resnets.", "block.")


# -------------------------------------------------------------------- adapters


def kohya_state(adapters: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Adapters in peft's names by those of kohya-ss, each with its alpha."""
    from diffusers.utils import convert_state_dict_to_kohya

    state = convert_state_dict_to_kohya({f"unet.{k}": v for k, v in adapters.items()})
    # diffusers writes the rank there, which is another scale unless alpha is the rank.
    return {k: torch.tensor(alpha) if k.endswith(".alpha") else v for k, v in state.items()}

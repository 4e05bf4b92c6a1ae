"""Images and captions as the teacher's own parts encode them, at the size of a configuration."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slam_edu.sd.components import (
    TextCondition,
    empty_condition,
    encode_images,
    is_xl,
    latent_shape,
    text_condition,
)
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.counts import RejectedError, Rejection
from slam_edu.sd.data.images import Fitted, fit
from slam_edu.sd.data.sources import Entry

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

#: Captions that go through the text encoders at a time.
CAPTIONS = 64
#: Pixels that go through the autoencoder at a time: 4 images of 512 x 512; at most 32 images.
PIXELS = 2**20
#: Values of a weight that its fingerprint looks at.
PROBES = 64


@dataclass(frozen=True)
class Sample:
    """An image of the wanted size and its caption.

    Attributes:
        name: for messages.
        caption: one line.
        fitted: the image.
    """

    name: str
    caption: str
    fitted: Fitted


def image_size(config: SDConfig, pipeline: Pipeline) -> tuple[int, int]:
    """(H, W) in pixels of the images that a distillation uses.

    Raises:
        ValueError: for a resolution that the autoencoder cannot reduce.
    """
    factor = pipeline.vae_scale_factor
    if config.resolution is None:
        height, width = latent_shape(pipeline)[1:]
        return height * factor, width * factor
    if config.resolution % factor:
        raise ValueError(
            f"resolution is {config.resolution}; allowed: a multiple of {factor}, by which the "
            f"teacher's autoencoder reduces images"
        )
    return config.resolution, config.resolution


def wanted_shape(config: SDConfig, pipeline: Pipeline) -> tuple[int, int, int]:
    """(C, h, w) of the latents that a distillation uses."""
    height, width = image_size(config, pipeline)
    factor = pipeline.vae_scale_factor
    return latent_shape(pipeline)[0], height // factor, width // factor


def load(entry: Entry, size: tuple[int, int]) -> Sample | Rejection:
    """Read an entry's image; may run in any thread."""
    if isinstance(entry, Rejection):
        return entry
    try:
        return Sample(entry.name, entry.caption, fit(entry.picture, size))
    except RejectedError as error:
        return Rejection(entry.name, error.reason, error.detail)


def loading_pool() -> ThreadPoolExecutor:
    """Threads that read images; Pillow lets several run at a time."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="images")


@contextmanager
def vae_in_float32(pipeline: Pipeline) -> Iterator[None]:
    """Within the block the autoencoder computes in float32; in half precision some overflow."""
    dtype = pipeline.vae.dtype
    cast(pipeline.vae, torch.float32)
    try:
        yield
    finally:
        cast(pipeline.vae, dtype)


def cast(vae: nn.Module, dtype: torch.dtype) -> None:
    """Put an autoencoder into a dtype; diffusers' own ``to`` warns where there is no need."""
    if vae.dtype != dtype:
        nn.Module.to(vae, dtype)


def latents_of(samples: Sequence[Sample], config: SDConfig, pipeline: Pipeline) -> Tensor:
    """Scaled latents of images, of shape (B, C, h, w), float32 on the autoencoder's device.

    Raises:
        ValueError: if the autoencoder gives latents of another size than the UNet takes.
    """
    height, width = size = image_size(config, pipeline)
    images = torch.stack([sample.fitted.image for sample in samples])
    batch = max(1, min(32, PIXELS // (height * width)))
    latents = encode_images(pipeline.vae, images, batch).float()
    wanted = wanted_shape(config, pipeline)
    if tuple(latents.shape[1:]) != wanted:
        raise ValueError(
            f"the autoencoder makes latents of shape {tuple(latents.shape[1:])} of images of "
            f"{size[0]} x {size[1]} pixels; allowed: what the UNet takes, {wanted}"
        )
    return latents


def states_of(captions: Sequence[str], pipeline: Pipeline) -> TextCondition:
    """Text states of captions, and XL's pooled embeddings, without time ids; float32."""
    groups = [captions[i : i + CAPTIONS] for i in range(0, len(captions), CAPTIONS)]
    made = TextCondition.cat([text_condition(pipeline, group) for group in groups])
    return TextCondition(
        made.states.float(), None if made.pooled is None else made.pooled.float()
    )


def empty_of(config: SDConfig, pipeline: Pipeline) -> TextCondition:
    """The empty condition for images of the configuration's size, one row, float32."""
    empty = empty_condition(pipeline).to(dtype=torch.float32)
    if not is_xl(pipeline):
        return empty
    ids = torch.tensor([whole_image(image_size(config, pipeline))], device=empty.states.device)
    return TextCondition(empty.states, empty.pooled, ids)


def whole_image(size: tuple[int, int]) -> tuple[float, ...]:
    """Stable Diffusion XL's time ids of an image that was neither resized nor cropped."""
    return tuple(map(float, (*size, 0, 0, *size)))


def fingerprint(pipeline: Pipeline, *more: str) -> dict[str, str]:
    """What tells a teacher's parts from another's: a hash of some values of each weight.

    The values are rounded to half precision, so that a copy in float16 is the same teacher.

    Args:
        pipeline: with the parts.
        more: names of parts besides the autoencoder and the text encoders.
    """
    names = ("vae", "text_encoder", "text_encoder_2", *more)
    parts = {name: getattr(pipeline, name, None) for name in names}
    return {name: _hash(part) for name, part in parts.items() if part is not None}


def _hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        flat = value.detach().reshape(-1)
        probes = flat[:: max(1, len(flat) // PROBES)].to("cpu", torch.float16).contiguous()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(probes.numpy().tobytes())
    return digest.hexdigest()[:16]


def teacher_identity(config: SDConfig, pipeline: Pipeline) -> dict[str, Any]:
    """What latents and text conditions depend on of the teacher."""
    return {
        **fingerprint(pipeline),
        "scaling_factor": float(pipeline.vae.config.scaling_factor),
        "latent_shape": list(wanted_shape(config, pipeline)),
    }

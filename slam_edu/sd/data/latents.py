"""Images and captions as the teacher's own parts encode them, and what a cache is filled with.

A source of latents has ``shard``, the samples of a shard of the cache; ``position``, how much was
read; ``seek(position)``; ``read(most)``, the next samples, none at the end; ``total()``, how many
there will be, where that is known; and ``identity()``, what its latents depend on besides the
teacher and the settings that all have.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slam_edu.images import RejectedError, read_image
from slam_edu.io import weights_digest
from slam_edu.sampling import last, sample_pf_ode
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import (
    TextCondition,
    empty_condition,
    encode_images,
    is_xl,
    latent_shape,
    text_condition,
    unet_output,
)
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.entries import Entry, Position, hash_of
from slam_edu.sd.data.shards import ShardSource
from slam_edu.sd.data.sources import MapSource, default_prompts, open_source, read_prompts
from slam_edu.sd.engine import make_autocast
from slam_edu.seeding import sample_generator

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

#: Tells the generators of drawn latents from others of the same seed and number; not 0, which a
#: seed sequence does not see.
DRAWN = 11
#: Captions that go through the text encoders at a time.
CAPTIONS = 64
#: Pixels that go through the autoencoder at a time: 4 images of 512 x 512; at most 32 images.
PIXELS = 2**20
#: An image that would have to be enlarged by more than this is rejected: it has no detail.
LARGEST_ENLARGEMENT = 4.0


@dataclass(frozen=True)
class Sample:
    """An image (3, H, W) in [-1, 1], or its latent, with its caption and XL's time ids.

    Time ids are height and width before resizing, top and left of the crop in the resized image, H
    and W; in pixels.
    """

    name: str
    caption: str
    values: Tensor
    time_ids: tuple[float, ...]


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


def fit(picture: bytes | Path | Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[float, ...]]:
    """An image (3, H, W) in [-1, 1] of a size, and its time ids.

    It is resized so that it just covers the size, and the middle is cut out.

    Raises:
        RejectedError: if it cannot be read, or is far too small.
    """
    from PIL import Image

    if not isinstance(picture, Tensor):
        image = read_image(picture)
    elif tuple(picture.shape[1:]) == size:
        return picture, whole_image(size)
    else:
        values = ((picture + 1) * 127.5).round().clamp(0, 255).byte()
        image = Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
    (height, width), (old_width, old_height) = size, image.size
    scale = max(height / old_height, width / old_width)
    if scale > LARGEST_ENLARGEMENT:
        raise RejectedError(
            "a very small image",
            f"{old_width} x {old_height} pixels; allowed: enlarged to {width} x {height} by at "
            f"most {LARGEST_ENLARGEMENT:g}",
        )
    # The part that is kept, in the old image's pixels: only that is resized.
    left = max(0.0, (old_width - width / scale) / 2)
    top = max(0.0, (old_height - height / scale) / 2)
    box = (left, top, old_width - left, old_height - top)
    image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    corner = (round(top * scale), round(left * scale))
    return values.contiguous(), (old_height, old_width, *corner, height, width)


def whole_image(size: tuple[int, int]) -> tuple[float, ...]:
    """Stable Diffusion XL's time ids of an image that was neither resized nor cropped."""
    return tuple(map(float, (*size, 0, 0, *size)))


def load(found: Entry, size: tuple[int, int]) -> Sample | RejectedError:
    """Read an entry's image; may run in any thread."""
    if isinstance(found, RejectedError):
        return found
    try:
        return Sample(found.name, found.caption, *fit(found.picture, size))
    except RejectedError as error:
        error.name = found.name
        return error


def loading_pool() -> ThreadPoolExecutor:
    """Threads that read images; Pillow lets several run at a time."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="images")


def latents_of(samples: Sequence[Sample], config: SDConfig, pipeline: Pipeline) -> Tensor:
    """Scaled latents of images, of shape (B, C, h, w), float32 on the autoencoder's device.

    The autoencoder is put into float32 and stays so; in half precision some overflow.
    """
    height, width = image_size(config, pipeline)
    if pipeline.vae.dtype != torch.float32:  # diffusers' own `to` would warn
        nn.Module.float(pipeline.vae)
    images = torch.stack([sample.values for sample in samples])
    batch = max(1, min(32, PIXELS // (height * width)))
    return encode_images(pipeline.vae, images, batch).float()


def states_of(captions: Sequence[str], pipeline: Pipeline) -> TextCondition:
    """Text states of captions, and XL's pooled embeddings, without time ids; float32."""
    groups = [captions[i : i + CAPTIONS] for i in range(0, len(captions), CAPTIONS)]
    made = TextCondition.cat([text_condition(pipeline, group) for group in groups])
    return TextCondition(made.states, made.pooled).to(torch.float32)


def empty_of(config: SDConfig, pipeline: Pipeline) -> TextCondition:
    """The empty condition for images of the configuration's size, one row, float32."""
    empty = empty_condition(pipeline).to(dtype=torch.float32)
    if not is_xl(pipeline):
        return empty
    ids = torch.tensor([whole_image(image_size(config, pipeline))], device=empty.states.device)
    return TextCondition(empty.states, empty.pooled, ids)


def teacher_identity(config: SDConfig, pipeline: Pipeline) -> dict[str, Any]:
    """What latents and text conditions depend on of the teacher."""
    parts = {n: getattr(pipeline, n, None) for n in ("vae", "text_encoder", "text_encoder_2")}
    return {
        **{name: weights_digest(part) for name, part in parts.items() if part is not None},
        "scaling_factor": float(pipeline.vae.config.scaling_factor),
        "latent_shape": list(wanted_shape(config, pipeline)),
    }


# -------------------------------------------------------------------- for a cache


def open_latents(config: SDConfig, pipeline: Pipeline) -> LatentSource:
    """What the configuration's ``data`` fills a cache with; raises as :func:`open_source`."""
    if config.data == "prompts":
        return DrawnLatents(config, pipeline)
    return EncodedLatents(config, pipeline, open_source(config))


def _finite(sample: Sample, latent: Tensor) -> Sample | RejectedError:
    if latent.isfinite().all():
        return replace(sample, values=latent)
    return RejectedError("a latent that is not finite", name=sample.name)


class EncodedLatents:
    """Images of a source, encoded."""

    shard = 1024
    #: Images that are read and encoded at a time.
    batch = 32

    def __init__(
        self, config: SDConfig, pipeline: Pipeline, source: MapSource | ShardSource
    ) -> None:
        self.config, self.pipeline, self.source = config, pipeline, source
        self.size = image_size(config, pipeline)
        self._pool = loading_pool()
        self.position, self._items = source.start, source.items(source.start)

    def identity(self) -> dict[str, Any]:
        """The source's content, and how it is read."""
        return self.source.identity()

    def total(self) -> int | None:
        """The number of entries, or ``max_samples``."""
        known = [n for n in (self.config.max_samples, self.source.total()) if n is not None]
        return min(known, default=None)

    def seek(self, position: Position) -> None:
        """Go on from a position; shards are not opened again where that is where it is."""
        if position != self.position:
            self.position, self._items = position, self.source.items(position)

    def read(self, most: int) -> list[Sample | RejectedError]:
        """The next images, read by several threads and encoded; the rejected ones come last."""
        found = list(islice(self._items, min(self.batch, most)))
        if not found:
            return []
        self.position = found[-1][0]
        loaded = list(self._pool.map(lambda pair: load(pair[1], self.size), found))
        rejected = [one for one in loaded if isinstance(one, RejectedError)]
        samples = [one for one in loaded if not isinstance(one, RejectedError)]
        if not samples:
            return rejected
        latents = latents_of(samples, self.config, self.pipeline).cpu()
        return rejected + list(map(_finite, samples, latents))


class DrawnLatents:
    r"""Latents that the teacher draws for a list of prompts: no images are needed.

    Sample n has prompt n modulo their number, and its noise comes from a generator that belongs to
    (seed, n). It is drawn by DPM-Solver++(2M) with the guidance :math:`w`.
    """

    shard = 64  # few, because each may take seconds
    position = 0

    def __init__(self, config: SDConfig, pipeline: Pipeline) -> None:
        self.config, self.pipeline = config, pipeline
        path = config.data_path
        self.prompts = default_prompts(config.teacher) if path is None else read_prompts(path)
        self.guidance = config.draw_guidance
        if self.guidance is None:
            self.guidance = config.distillation.guidance
        self.prediction_type = pipeline.scheduler.config.prediction_type
        schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
        self.schedule = schedule.to(pipeline.unet.device)

    def identity(self) -> dict[str, Any]:
        """Prompts, solver, guidance, seed and the UNet."""
        return {
            "prompts": hash_of(self.prompts),
            "draw_steps": self.config.draw_steps,
            "draw_count": self.config.draw_count,
            "draw_guidance": float(self.guidance),
            "seed": self.config.seed,
            "unet": weights_digest(self.pipeline.unet),
            "prediction_type": self.prediction_type,
        }

    def total(self) -> int:
        """Prompts times ``draw_count``, or ``max_samples``."""
        total = len(self.prompts) * self.config.draw_count
        return min(total, self.config.max_samples or total)

    def seek(self, position: Position) -> None:
        """Go on from a position."""
        self.position = position

    def read(self, most: int) -> list[Sample | RejectedError]:
        """The next samples, as many as the run's batch has."""
        end = min(self.position + min(most, self.config.training.batch), self.total())
        numbers = range(self.position, end)
        self.position = end
        if not numbers:
            return []
        prompts = [self.prompts[n % len(self.prompts)] for n in numbers]
        ids = whole_image(image_size(self.config, self.pipeline))
        return [
            _finite(Sample(f"sample {n}", prompt, latent, ids), latent)
            for n, prompt, latent in zip(numbers, prompts, self.draw(numbers), strict=True)
        ]

    @torch.no_grad()
    def draw(self, numbers: range) -> Tensor:
        """Latents of some samples, of shape (n, C, h, w), float32 on the CPU."""
        unet, shape = self.pipeline.unet, wanted_shape(self.config, self.pipeline)
        prompts = [self.prompts[n % len(self.prompts)] for n in numbers]
        noise = torch.stack([
            torch.randn(shape, generator=sample_generator(self.config.seed, n, DRAWN))
            for n in numbers
        ]).to(unet.device)  # fmt: skip
        empty = empty_of(self.config, self.pipeline).expand(len(prompts))
        cond = text_condition(self.pipeline, prompts, empty.time_ids)
        autocast = make_autocast(self.config, unet.device)

        def network(x: Tensor, t: Tensor, cond: TextCondition) -> Tensor:
            with autocast():
                return unet_output(unet, x, t, cond)

        states = sample_pf_ode(
            network, noise, self.schedule, self.config.draw_steps, method="dpmpp_2m",
            prediction_type=self.prediction_type, cond=cond, guidance=self.guidance,
            uncond=empty if self.guidance else None,
        )  # fmt: skip
        return last(states).float().cpu()


LatentSource = EncodedLatents | DrawnLatents

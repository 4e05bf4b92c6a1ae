"""Images and captions as the teacher's own parts encode them, and what a cache is filled with.

A source of latents is read as a source of entries is. It has ``shard``, the samples of a shard of
the cache; ``total``, how many there will be, where that is known; ``unused``, counts of what is no
sample; and ``identity(kept)``, what its latents depend on besides the teacher and the settings
that all have. In the file ``kept`` it keeps checksums of the data's files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from slam_edu.sd.data.entries import Entry, Item, Position, attempt, hash_of
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
ENCODERS = ("vae", "text_encoder", "text_encoder_2")


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
        return picture, (*size, 0, 0, *size)
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


class Encoder:
    """A teacher's autoencoder and text encoders, for images of a configuration's size.

    Attributes:
        latent_shape: (C, h, w) of one latent.
        size: (H, W) of the images, in pixels.
        whole: Stable Diffusion XL's time ids of an image that was neither resized nor cropped.

    Raises:
        ValueError: for a resolution that the autoencoder cannot reduce.
    """

    def __init__(self, config: SDConfig, pipeline: Pipeline) -> None:
        self.config, self.pipeline = config, pipeline
        self.latent_shape = latent_shape(pipeline, config.resolution)
        self.size = tuple(pipeline.vae_scale_factor * side for side in self.latent_shape[1:])
        self.whole = (*self.size, 0, 0, *self.size)
        # Pillow lets several threads read at a time.
        threads = min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")

    def identity(self) -> dict[str, Any]:
        """What latents and text conditions depend on of the teacher."""
        parts = {name: getattr(self.pipeline, name, None) for name in ENCODERS}
        about = {name: weights_digest(part) for name, part in parts.items() if part is not None}
        about["scaling_factor"] = float(self.pipeline.vae.config.scaling_factor)
        if self.pipeline.vae.config.get("latents_mean") is not None:
            about |= {
                name: self.pipeline.vae.config[name] for name in ("latents_mean", "latents_std")
            }
        about["latent_shape"] = list(self.latent_shape)
        return {f"teacher: {name}": value for name, value in about.items()}

    def load(self, entries: Iterable[Entry]) -> list[Entry]:
        """Read the images of entries, several at a time."""

        def read(one: Entry) -> Entry:
            if isinstance(one, RejectedError):
                return one
            return attempt(lambda n: Item(n, one.caption, *fit(one.picture, self.size)), one.name)

        return list(self._pool.map(read, entries))

    def latents(self, samples: Sequence[Item]) -> Tensor:
        """Scaled latents of images, of shape (B, C, h, w), float32 on the autoencoder's device.

        The autoencoder is put into float32 and stays so; in half precision some overflow.
        """
        vae, (height, width) = self.pipeline.vae, self.size
        if vae.dtype != torch.float32:  # diffusers' own `to` would warn
            nn.Module.float(vae)
        images = torch.stack([sample.picture for sample in samples])
        return encode_images(vae, images, max(1, min(32, PIXELS // (height * width)))).float()

    def condition(self, captions: Sequence[str], time_ids: Any = None) -> TextCondition:
        """Text states of captions, and XL's pooled embeddings, float32; XL's time ids if given."""
        groups = [captions[i : i + CAPTIONS] for i in range(0, len(captions), CAPTIONS)]
        made = TextCondition.cat([text_condition(self.pipeline, group) for group in groups])
        return self._with_ids(made, time_ids)

    def empty(self) -> TextCondition:
        """The empty condition for images of the size, one row, float32."""
        return self._with_ids(empty_condition(self.pipeline), [self.whole])

    def _with_ids(self, made: TextCondition, time_ids: Any) -> TextCondition:
        if time_ids is not None:
            time_ids = torch.tensor(time_ids) if is_xl(self.pipeline) else None
        return replace(made, time_ids=time_ids).to(made.states.device, torch.float32)


# -------------------------------------------------------------------- for a cache


def open_latents(config: SDConfig, pipeline: Pipeline) -> LatentSource:
    """What the configuration's ``data`` fills a cache with; raises as :func:`open_source`."""
    encoder = Encoder(config, pipeline)
    if config.data == "prompts":
        return DrawnLatents(encoder)
    return EncodedLatents(encoder, open_source(config))


def _finite(sample: Item, latent: Tensor) -> Entry:
    if latent.isfinite().all():
        return replace(sample, picture=latent)
    return RejectedError("a latent that is not finite", name=sample.name)


class EncodedLatents:
    """Images of a source, encoded."""

    shard = 1024
    #: Images that are read and encoded at a time.
    batch = 32

    def __init__(self, encoder: Encoder, source: MapSource | ShardSource) -> None:
        self.encoder, self.source = encoder, source
        self.start, self.identity = source.start, source.identity

    @property
    def unused(self) -> Mapping[str, int]:
        """The source's."""
        return self.source.unused

    @property
    def total(self) -> int | None:
        """The number of entries, or ``max_samples``."""
        length = len(self.source) if isinstance(self.source, MapSource) else None
        known = (self.encoder.config.max_samples, length)
        return min((n for n in known if n is not None), default=None)

    def read(self, position: Position, most: int) -> tuple[list[Entry], Position]:
        """The next images, encoded, the rejected ones first."""
        entries, position = self.source.read(position, min(self.batch, most))
        loaded = self.encoder.load(entries)
        rejected = [one for one in loaded if isinstance(one, RejectedError)]
        samples = [one for one in loaded if not isinstance(one, RejectedError)]
        if samples:
            rejected += map(_finite, samples, self.encoder.latents(samples).cpu())
        return rejected, position


class DrawnLatents:
    r"""Latents that the teacher draws for a list of prompts: no images are needed.

    Sample n has prompt n modulo their number, and its noise comes from a generator that belongs to
    (seed, n). It is drawn by DPM-Solver++(2M) with the guidance :math:`w`.
    """

    shard = 64  # few, because each may take seconds
    start = 0
    unused: Mapping[str, int] = {}

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, config, pipeline = encoder, encoder.config, encoder.pipeline
        path = config.data_path
        self.prompts = default_prompts(config.teacher) if path is None else read_prompts(path)
        own, shared = config.draw_guidance, config.distillation.guidance
        self.guidance = shared if own is None else own
        self.prediction_type = pipeline.scheduler.config.prediction_type
        self.schedule = NoiseSchedule.from_scheduler(pipeline.scheduler).to(pipeline.unet.device)
        total = len(self.prompts) * config.draw_count
        self.total = min(total, config.max_samples or total)

    def identity(self, _kept: Path) -> dict[str, Any]:
        """Prompts, solver, guidance, seed and the UNet."""
        config = self.encoder.config
        return {
            "prompts": hash_of(self.prompts),
            "draw_steps": config.draw_steps,
            "draw_count": config.draw_count,
            "draw_guidance": float(self.guidance),
            "seed": config.seed,
            "unet": weights_digest(self.encoder.pipeline.unet),
            "prediction_type": self.prediction_type,
        }

    def read(self, position: int, most: int) -> tuple[list[Entry], int]:
        """The next samples, as many as the run's batch has."""
        most = min(most, self.encoder.config.training.batch, self.total - position)
        if not most:
            return [], position
        numbers = range(position, position + most)
        whole = self.encoder.whole
        return [
            _finite(Item(f"sample {n}", self._prompt(n), latent, whole), latent)
            for n, latent in zip(numbers, self.draw(numbers), strict=True)
        ], numbers.stop

    def _prompt(self, number: int) -> str:
        return self.prompts[number % len(self.prompts)]

    @torch.no_grad()
    def draw(self, numbers: Sequence[int]) -> Tensor:
        """Latents of some samples, of shape (n, C, h, w), float32 on the CPU."""
        config, unet = self.encoder.config, self.encoder.pipeline.unet
        generators = [sample_generator(config.seed, n, DRAWN) for n in numbers]
        noise = [torch.randn(self.encoder.latent_shape, generator=one) for one in generators]
        empty = self.encoder.empty().expand(len(numbers))
        prompts = list(map(self._prompt, numbers))
        cond = text_condition(self.encoder.pipeline, prompts, empty.time_ids)
        autocast = make_autocast(config, unet.device)

        def network(x: Tensor, t: Tensor, cond: TextCondition) -> Tensor:
            with autocast():
                return unet_output(unet, x, t, cond)

        states = sample_pf_ode(
            network, torch.stack(noise).to(unet.device), self.schedule, config.draw_steps,
            method="dpmpp_2m", prediction_type=self.prediction_type, cond=cond,
            guidance=self.guidance, uncond=empty if self.guidance else None,
        )  # fmt: skip
        return last(states).float().cpu()


LatentSource = EncodedLatents | DrawnLatents

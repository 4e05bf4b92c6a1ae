"""What a cache is filled with: images that are encoded, or latents that the teacher draws."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slam_edu.prediction import PREDICTION_TYPES
from slam_edu.sampling import last, sample_pf_ode
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import (
    TextCondition,
    empty_condition,
    is_xl,
    text_condition,
    unet_output,
)
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.counts import Counts, Rejection
from slam_edu.sd.data.encode import (
    Sample,
    fingerprint,
    image_size,
    latents_of,
    load,
    loading_pool,
    wanted_shape,
    whole_image,
)
from slam_edu.sd.data.prompts import default_prompts, read_prompts
from slam_edu.sd.data.sources import Position, Source, hash_of, open_source, take
from slam_edu.sd.engine import make_autocast
from slam_edu.seeding import sample_generator

if TYPE_CHECKING:
    from slam_edu.sd.data.encode import Pipeline

#: Tells the generators of drawn latents from others of the same seed and number; not 0, which a
#: seed sequence does not see.
DRAWN = 11


@dataclass
class Part:
    """Samples for one shard.

    Attributes:
        latents: of shape (n, C, h, w), float32.
        captions: n of them.
        time_ids: n times six numbers, see :class:`slam_edu.sd.components.TextCondition`.
        position: how much was read.
        done: whether that is all.
        counts: what was read for it.
    """

    latents: Tensor
    captions: list[str]
    time_ids: list[tuple[float, ...]]
    position: Position
    done: bool
    counts: Counts = field(default_factory=Counts)


class Feed(abc.ABC):
    """Makes the shards of a cache, one after the other, from any position on."""

    start: Position = 0

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the latents depend on, besides the configuration's common settings."""

    @abc.abstractmethod
    def total(self) -> int | None:
        """How many samples there will be, where it is known."""

    @abc.abstractmethod
    def part(
        self, position: Position, before: Counts, advance: Callable[[int], Any]
    ) -> Part:
        """The next shard's samples.

        Args:
            position: after the last shard.
            before: of all shards before.
            advance: told how many samples were read, as they are.

        Raises:
            ValueError: if too many are rejected.
        """


def open_feed(config: SDConfig, pipeline: Pipeline) -> Feed:
    """What the configuration says that a cache is filled with.

    Raises:
        FileNotFoundError: if the data are not there.
        ValueError: if they cannot be what the configuration says.
        ModuleNotFoundError: if a library that they need is not installed.
    """
    if config.data == "prompts":
        return DrawnFeed(config, pipeline)
    return EncodedFeed(config, pipeline, open_source(config))


class EncodedFeed(Feed):
    """Images of a source, encoded."""

    #: Samples of a shard; images read, encoded and counted at a time.
    SHARD, BATCH = 1024, 32

    def __init__(self, config: SDConfig, pipeline: Pipeline, source: Source) -> None:
        self.config, self.pipeline, self.source = config, pipeline, source
        self.size = image_size(config, pipeline)
        self.start = source.start

    def identity(self) -> dict[str, Any]:
        """What the latents depend on: the source's content, and how it is read."""
        names = {
            "datasets": ("image_column", "caption_column"),
            "folder": ("caption_column",),
            "webdataset": ("caption_column",),
        }.get(self.config.data, ())
        return {**{name: getattr(self.config, name) for name in names}, **self.source.identity()}

    def total(self) -> int | None:
        """The number of entries, or ``max_samples``."""
        known = [n for n in (self.config.max_samples, self.source.total()) if n is not None]
        return min(known, default=None)

    def part(
        self, position: Position, before: Counts, advance: Callable[[int], Any]
    ) -> Part:
        """The next shard's images, read by several threads and encoded."""
        most = self.config.max_samples
        room = self.SHARD if most is None else min(self.SHARD, most - before.accepted)
        counts, done = Counts(), False
        kept: list[Sample] = []
        latents: list[Tensor] = []
        items = self.source.items(position)
        with loading_pool() as pool:
            while len(kept) < room:
                taken = take(items, min(self.BATCH, room - len(kept)))
                if not taken:
                    done = True
                    break
                position = taken[-1][0]
                loaded = pool.map(lambda pair: load(pair[1], self.size), taken)
                good = self._finite(loaded, counts)
                kept += [sample for sample, _ in good]
                latents += [latent for _, latent in good]
                counts.accepted = len(kept)
                before.plus(counts).check(self.config.max_rejected)
                advance(len(taken))
        total = self.source.total()
        done = done or (most is not None and before.accepted + len(kept) >= most)
        done = done or (total is not None and position >= total)
        made = torch.stack(latents) if latents else torch.empty(0)
        ids = [sample.fitted.time_ids for sample in kept]
        return Part(made, [s.caption for s in kept], ids, position, done, counts)

    def _finite(self, loaded: Any, counts: Counts) -> list[tuple[Sample, Tensor]]:
        """The samples that can be used, with their latents; the others are counted."""
        samples = []
        for entry in loaded:
            if isinstance(entry, Rejection):
                counts.reject(entry)
            else:
                samples.append(entry)
        if not samples:
            return []
        latents = latents_of(samples, self.config, self.pipeline).cpu()
        good = []
        for sample, latent in zip(samples, latents, strict=True):
            if bool(latent.isfinite().all()):
                good.append((sample, latent))
            else:
                counts.reject(Rejection(sample.name, "a latent that is not finite"))
        return good


class DrawnFeed(Feed):
    r"""Latents that the teacher draws for a list of prompts: no images are needed.

    Sample n has prompt n modulo their number, and its noise comes from a generator that belongs to
    (seed, n). It is drawn by DPM-Solver++(2M) with the guidance :math:`w`.
    """

    #: Samples of a shard: few, because each may take seconds.
    SHARD = 64

    def __init__(self, config: SDConfig, pipeline: Pipeline) -> None:
        self.config, self.pipeline = config, pipeline
        path = config.data_path
        self.prompts = default_prompts(config.teacher) if path is None else read_prompts(path)
        self.guidance = (
            config.distillation.guidance if config.draw_guidance is None else config.draw_guidance
        )
        self.shape = wanted_shape(config, pipeline)
        self.prediction_type = pipeline.scheduler.config.prediction_type
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"the teacher's prediction_type is {self.prediction_type!r}; allowed: "
                f"{', '.join(PREDICTION_TYPES)}"
            )
        unet = pipeline.unet
        self.schedule = NoiseSchedule.from_scheduler(pipeline.scheduler).to(unet.device)

    def identity(self) -> dict[str, Any]:
        """What the latents depend on: prompts, solver, guidance, seed and the UNet."""
        return {
            "prompts": hash_of(self.prompts),
            "draw_steps": self.config.draw_steps,
            "draw_count": self.config.draw_count,
            "draw_guidance": float(self.guidance),
            "seed": self.config.seed,
            "unet": fingerprint(self.pipeline, "unet")["unet"],
            "prediction_type": self.prediction_type,
        }

    def total(self) -> int | None:
        """Prompts times ``draw_count``, or ``max_samples``."""
        total = len(self.prompts) * self.config.draw_count
        return min(total, self.config.max_samples or total)

    def part(
        self, position: Position, before: Counts, advance: Callable[[int], Any]
    ) -> Part:
        """The next shard's latents."""
        end, counts = min(position + self.SHARD, self.total()), Counts()
        captions: list[str] = []
        latents: list[Tensor] = []
        for first in range(position, end, self.config.training.batch):
            numbers = range(first, min(first + self.config.training.batch, end))
            prompts = [self.prompts[n % len(self.prompts)] for n in numbers]
            for n, prompt, latent in zip(numbers, prompts, self.draw(numbers), strict=True):
                if bool(latent.isfinite().all()):
                    captions.append(prompt)
                    latents.append(latent)
                else:
                    counts.reject(Rejection(f"sample {n}", "a latent that is not finite"))
            counts.accepted = len(captions)
            before.plus(counts).check(self.config.max_rejected)
            advance(len(numbers))
        size = image_size(self.config, self.pipeline)
        made = torch.stack(latents) if latents else torch.empty(0)
        ids = [whole_image(size)] * len(captions)
        return Part(made, captions, ids, end, end >= self.total(), counts)

    @torch.no_grad()
    def draw(self, numbers: range | list[int]) -> Tensor:
        """Latents of some samples, of shape (n, C, h, w), float32 on the CPU."""
        unet = self.pipeline.unet
        prompts = [self.prompts[n % len(self.prompts)] for n in numbers]
        noise = torch.stack([
            torch.randn(self.shape, generator=sample_generator(self.config.seed, n, DRAWN))
            for n in numbers
        ]).to(unet.device)  # fmt: skip
        ids = None
        if is_xl(self.pipeline):
            ids = torch.tensor([whole_image(image_size(self.config, self.pipeline))])
            ids = ids.expand(len(prompts), 6)
        cond = text_condition(self.pipeline, prompts, ids)
        uncond = None
        if self.guidance:
            empty = empty_condition(self.pipeline).expand(len(prompts))
            uncond = TextCondition(empty.states, empty.pooled, cond.time_ids)
        autocast = make_autocast(self.config, unet.device)

        def network(x: Tensor, t: Tensor, cond: TextCondition) -> Tensor:
            with autocast():
                return unet_output(unet, x, t, cond)

        x = last(
            sample_pf_ode(
                network,
                noise,
                self.schedule,
                self.config.draw_steps,
                method="dpmpp_2m",
                prediction_type=self.prediction_type,
                cond=cond,
                uncond=uncond,
                guidance=self.guidance,
            )
        )
        return x.float().cpu()

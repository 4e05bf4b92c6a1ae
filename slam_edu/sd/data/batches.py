"""Batches for training: sample number n of a run is always the same, whoever asks for it.

The numbers n = 0, 1, 2, ... of a run's samples go through the data epoch by epoch, each epoch in
an order of its own that belongs to (seed, epoch): what sample n is depends on nothing else, so
that a run that goes on, with any number of processes, needs to know no more than n.

A stream of shards that is not cached can only be read from front to end. There each process reads
shards of its own, and a run that goes on skips what the process has seen before.
"""

from __future__ import annotations

import abc
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slam_edu._validation import check_count
from slam_edu.sd.components import TextCondition, is_xl
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.cache import LatentCache, make_cache
from slam_edu.sd.data.counts import Counts, Rejection
from slam_edu.sd.data.encode import (
    Sample,
    cast,
    empty_of,
    image_size,
    latents_of,
    load,
    loading_pool,
    states_of,
    wanted_shape,
)
from slam_edu.sd.data.shards import ShardSource
from slam_edu.sd.data.sources import Item, MapSource, open_source
from slam_edu.seeding import sample_generator

if TYPE_CHECKING:
    from slam_edu.sd.data.encode import Pipeline

#: Tell the generators of orders from others of the same seed and number; not 0, which a seed
#: sequence does not see.
ORDER, SHARD_ORDER = 12, 13
#: So many captions are looked up where they are not in a cache.
CAPTIONS = 64


class Batches(abc.ABC):
    """Latents and text conditions of numbered samples.

    Attributes:
        latent_shape: (C, h, w) of one latent.
        empty: the empty condition, one row, float32.
        counts: of the samples that were used and rejected so far.
        captions: of the data, or of some of them; none for a stream.
    """

    captions: Sequence[str] = ()
    latent_shape: tuple[int, int, int]
    empty: TextCondition
    counts: Counts

    @abc.abstractmethod
    def get(self, numbers: Sequence[int]) -> tuple[Tensor, TextCondition]:
        """Some samples of the run.

        Args:
            numbers: of the samples, from 0 without end.

        Returns:
            latents of shape (B, C, h, w) and B rows of conditions; float32, on the device where
            they were made, the CPU for those of a cache.

        Raises:
            ValueError: if too many samples were rejected.
        """


def place_in_epoch(number: int, length: int, seed: int) -> int:
    """Which of ``length`` entries sample ``number`` is: an order of its own each epoch."""
    epoch, place = divmod(number, length)
    return int(_order(length, seed, epoch)[place])


@lru_cache(maxsize=2)  # an epoch and the one that follows
def _order(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=sample_generator(seed, epoch, ORDER))


# -------------------------------------------------------------------- from a cache


class CachedBatches(Batches):
    """Samples of a finished cache.

    Args:
        cache: of latents and text conditions.
        seed: of the orders.
    """

    def __init__(self, cache: LatentCache, seed: int) -> None:
        self.cache, self.seed = cache, seed
        self.latent_shape, self.empty, self.counts = cache.latent_shape, cache.empty, cache.counts

    @property
    def captions(self) -> list[str]:
        """The caption of each sample."""
        return self.cache.captions

    def get(self, numbers: Sequence[int]) -> tuple[Tensor, TextCondition]:
        """Some samples of the run."""
        length = len(self.cache)
        return self.cache.batch([place_in_epoch(n, length, self.seed) for n in numbers])


# -------------------------------------------------------------------- encoded as they are needed


class _Encoding(Batches):
    """What encodes images and captions at each call.

    The pipeline's autoencoder is put into float32 and stays so.
    """

    def __init__(self, config: SDConfig, pipeline: Pipeline) -> None:
        self.config, self.pipeline = config, pipeline
        self.size = image_size(config, pipeline)
        self.latent_shape = wanted_shape(config, pipeline)
        self.empty = empty_of(config, pipeline)
        self.counts = Counts()
        self._pool = loading_pool()
        cast(pipeline.vae, torch.float32)

    def _encode(self, samples: list[Sample]) -> tuple[Tensor, TextCondition]:
        latents = latents_of(samples, self.config, self.pipeline)
        cond = states_of([sample.caption for sample in samples], self.pipeline)
        if is_xl(self.pipeline):
            ids = torch.tensor([s.fitted.time_ids for s in samples], dtype=torch.float32)
            cond = TextCondition(cond.states, cond.pooled, ids.to(cond.states.device))
        return latents, cond

    def _use(self, loaded: Sample | Rejection) -> Sample | None:
        """Count what was read; None if it cannot be used."""
        if isinstance(loaded, Rejection):
            self.counts.reject(loaded)
        else:
            self.counts.accepted += 1
        self.counts.check(self.config.max_rejected)
        return None if isinstance(loaded, Rejection) else loaded


class EncodedBatches(_Encoding):
    """Images and captions of a source, encoded at each call.

    In place of one that is rejected comes the next of the source that is not. With ``max_samples``
    the source's first entries alone are used, the rejected among them.

    Args:
        source: whose entries can be read in any order.
        pipeline: the teacher; its autoencoder is put into float32.
        seed: of the orders.
        config: its section data.

    Raises:
        ValueError: for an empty source.
    """

    def __init__(
        self, source: MapSource, pipeline: Pipeline, seed: int, config: SDConfig
    ) -> None:
        super().__init__(config, pipeline)
        self.source, self.seed = source, seed
        self.length = min(len(source), config.max_samples or len(source))
        if not self.length:
            raise ValueError("the data are empty; allowed: at least one image")

    @property
    def captions(self) -> list[str]:
        """The captions of the first entries; their images are not read."""
        entries = (self.source[place] for place in range(min(self.length, CAPTIONS)))
        return [entry.caption for entry in entries if isinstance(entry, Item)]

    def get(self, numbers: Sequence[int]) -> tuple[Tensor, TextCondition]:
        """Some samples of the run."""
        places = [place_in_epoch(n, self.length, self.seed) for n in numbers]
        entries = [self.source[place] for place in places]  # not every source likes threads
        loaded = self._pool.map(lambda entry: load(entry, self.size), entries)
        return self._encode([
            self._use(one) or self._next(place) for place, one in zip(places, loaded, strict=True)
        ])  # fmt: skip

    def _next(self, place: int) -> Sample:
        for step in range(1, self.length):
            entry = self.source[(place + step) % self.length]
            sample = self._use(load(entry, self.size))
            if sample is not None:
                return sample
        self.counts.check(self.config.max_rejected, final=True)
        raise ValueError(f"no sample can be used: {self.counts}; allowed: at least one")


class StreamBatches(_Encoding):
    """Samples of shards that are streamed: read once an epoch from front to end, and not kept.

    In each epoch the shards are put into an order that belongs to (seed, epoch) and dealt to the
    processes in turn; within a shard the order is the shard's own. Each process has its own
    samples, so that :meth:`get` takes no heed of the numbers but how many there are. A sample
    whose image cannot be read is replaced by the next that can, which then comes twice: so the
    number of samples alone tells where the stream is.

    Args:
        config: its section data.
        pipeline: the teacher; its autoencoder is put into float32.
        seed: of the orders.
        rank: this process's number, from 0.
        world: number of processes.
        start: samples that this process has had before; they are skipped, images not decoded.

    Raises:
        ValueError: for fewer shards than processes, or with ``max_samples``.
    """

    def __init__(
        self, config: SDConfig, pipeline: Pipeline, seed: int, rank: int = 0, world: int = 1,
        start: int = 0,
    ) -> None:  # fmt: skip
        check_count(world, "world")
        check_count(rank, "rank", low=0, high=world - 1)
        check_count(start, "start", low=0)
        source = open_source(config)
        if not isinstance(source, ShardSource):
            raise ValueError(f"data is {config.data!r}; allowed in a stream: 'webdataset'")
        if config.max_samples is not None:
            raise ValueError(
                f"max_samples is {config.max_samples} with cache=False and data='webdataset'; "
                f"allowed: none (the stream has no fixed first samples), or cache=True"
            )
        if len(source.shards) < world:
            raise ValueError(
                f"there are {len(source.shards)} shards for {world} processes; allowed: at least "
                f"one for each. Cut the data into more shards, or set cache=True"
            )
        super().__init__(config, pipeline)
        self.source, self.seed, self.rank, self.world = source, seed, rank, world
        self._sizes: dict[int, int] = {}
        self._ahead: deque[Item] = deque()
        self._items = self._from(start)

    def get(self, numbers: Sequence[int]) -> tuple[Tensor, TextCondition]:
        """The next samples of this process, as many as there are numbers."""
        items = [self._take(place) for place in range(len(numbers))]
        loaded = self._pool.map(lambda item: load(item, self.size), items)
        samples = [
            self._use(one) or self._next(place + 1) for place, one in enumerate(loaded)
        ]
        for _ in numbers:
            self._ahead.popleft()
        return self._encode(samples)

    def _take(self, place: int) -> Item:
        """The sample that comes after ``place`` others; it stays in the stream."""
        while len(self._ahead) <= place:
            self._ahead.append(next(self._items))
        return self._ahead[place]

    def _next(self, place: int) -> Sample:
        """The first sample from a place on that can be read."""
        while True:
            sample = self._use(load(self._take(place), self.size))
            if sample is not None:
                return sample
            place += 1

    def _from(self, start: int) -> Iterator[Item]:
        """The samples from number ``start`` on, epoch by epoch."""
        epoch, skip = 0, start
        while True:
            given = 0
            order = torch.randperm(
                len(self.source.shards), generator=sample_generator(self.seed, epoch, SHARD_ORDER)
            )
            for shard in order[self.rank :: self.world].tolist():
                # A shard that was counted is not read again only to be skipped.
                if self._sizes.get(shard, skip + 1) <= skip:
                    skip -= self._sizes[shard]
                    given += self._sizes[shard]
                    continue
                size = 0
                for entry in self.source.shard(shard):
                    if isinstance(entry, Rejection):
                        self._use(entry)
                        continue
                    size += 1
                    if skip:
                        skip -= 1
                        self.counts.accepted += 1
                    else:
                        yield entry
                self._sizes[shard] = size
                given += size
            if not given:
                self.counts.check(self.config.max_rejected, final=True)
                raise ValueError(
                    f"the shards of process {self.rank} hold no sample in epoch {epoch}: "
                    f"{self.counts}; allowed: at least one"
                )
            epoch += 1


# -------------------------------------------------------------------- what the engine asks for


def open_batches(
    config: SDConfig,
    pipeline: Pipeline,
    folder: str | os.PathLike[str],
    *,
    rank: int = 0,
    world: int = 1,
    start_update: int = 0,
    is_main: bool | None = None,
    wait: Callable[[], None] = lambda: None,
    show: Callable[[str], None] = print,
) -> Batches:
    """The batches of a run, from a cache that is made first, from one that is there, or encoded.

    Args:
        config: its section data.
        pipeline: the teacher.
        folder: of the cache, unless ``cache_folder`` is set.
        rank: this process's number, from 0.
        world: number of processes.
        start_update: number of updates that are done, from which a stream goes on.
        is_main: whether this process makes the cache; the others wait for it. None: that of rank
            0.
        wait: returns when all processes have called it.
        show: told what is done, a line at a time.

    Raises:
        FileNotFoundError: if the data or the cache are not there.
        ValueError: if they cannot be used with this teacher and these settings.
        ConnectionError: if they cannot be fetched.
    """
    if config.data == "cache":
        return _checked(config, pipeline, Path(config.data_path))
    if config.cache:
        path = Path(config.cache_folder or folder)
        try:
            if rank == 0 if is_main is None else is_main:
                make_cache(config, pipeline, path, show=show)
        finally:
            wait()  # also after an error, so that the other processes end with one of their own
        return _checked(config, pipeline, path)
    if config.data == "webdataset":
        start = start_update * config.training.batch * config.training.accumulate
        return StreamBatches(config, pipeline, config.seed, rank, world, start)
    return EncodedBatches(open_source(config), pipeline, config.seed, config)


def _checked(config: SDConfig, pipeline: Pipeline, folder: Path) -> CachedBatches:
    cache = LatentCache(folder)
    cache.check(config, pipeline)
    return CachedBatches(cache, config.seed)

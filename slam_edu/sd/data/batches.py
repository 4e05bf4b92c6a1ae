"""Batches for training: sample number n of a run is always the same, whoever asks for it.

The numbers n = 0, 1, 2, ... of a run's samples go through the data epoch by epoch, each epoch in
an order of its own that belongs to (seed, epoch): what sample n is depends on nothing else, so
that a run that goes on, with any number of processes, needs to know no more than n.

A stream of shards that is not cached can only be read from front to end. There each process reads
shards of its own, and a run that goes on skips what the process has seen before.

All have ``get(numbers)``, which gives latents (B, C, h, w) and B rows of conditions, float32, on
the device where they were made; and ``latent_shape``, (C, h, w), ``empty``, the empty condition,
``counts`` of the samples so far, and ``captions`` of the data or of some of them.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slam_edu._validation import check_count
from slam_edu.images import RejectedError
from slam_edu.sd.components import TextCondition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.cache import LatentCache, make_cache
from slam_edu.sd.data.entries import Entry, Item, SampleCounts, by_count
from slam_edu.sd.data.latents import Encoder
from slam_edu.sd.data.shards import ShardSource
from slam_edu.sd.data.sources import MapSource, open_source
from slam_edu.seeding import sample_generator

if TYPE_CHECKING:
    from slam_edu.sd.data.latents import Pipeline

    Batch = tuple[Tensor, TextCondition]

#: Tell the generators of orders from others of the same seed and number; not 0, which a seed
#: sequence does not see.
ORDER, SHARD_ORDER = 12, 13
#: So many captions are looked up where they are not in a cache.
CAPTIONS = 64


def place_in_epoch(number: int, length: int, seed: int) -> int:
    """Which of ``length`` entries sample ``number`` is: an order of its own each epoch."""
    epoch, place = divmod(number, length)
    return int(_order(length, seed, epoch)[place])


@lru_cache(maxsize=2)  # an epoch and the one that follows
def _order(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=sample_generator(seed, epoch, ORDER))


class CachedBatches:
    """Samples of a finished cache."""

    def __init__(self, cache: LatentCache, seed: int) -> None:
        self.cache, self.seed = cache, seed
        self.latent_shape, self.empty, self.counts = cache.latent_shape, cache.empty, cache.counts
        self.captions = cache.captions

    def get(self, numbers: Sequence[int]) -> Batch:
        """Some samples of the run."""
        return self.cache.batch([place_in_epoch(n, len(self.cache), self.seed) for n in numbers])


class _Encoding:
    """Encodes images and captions at each call; the autoencoder is put into float32.

    ``show`` is told what is not used, the first time that there is a reason.
    """

    captions: Sequence[str] = ()

    def __init__(
        self, config: SDConfig, pipeline: Pipeline, source: MapSource | ShardSource,
        show: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.config, self.encoder = config, Encoder(config, pipeline)
        self.latent_shape, self.empty = self.encoder.latent_shape, self.encoder.empty()
        self.counts, self.source, self._show = SampleCounts(), source, show
        self.counts.unused |= source.unused
        if source.unused:
            show(f"data: not used: {by_count(source.unused)}")

    def _encode(self, entries: Sequence[Entry], after: Callable[[int], Iterable[Entry]]) -> Batch:
        """Encode entries; for one that is rejected the first that is not of ``after(place)``."""
        loaded = self.encoder.load(entries)
        samples = [self._use(one) or self._first(after(k)) for k, one in enumerate(loaded)]
        captions, ids = zip(*((one.caption, one.time_ids) for one in samples), strict=True)
        return self.encoder.latents(samples), self.encoder.condition(captions, ids)

    def _use(self, loaded: Entry) -> Item | None:
        """Count what was read; None if it cannot be used."""
        rejected = isinstance(loaded, RejectedError)
        if rejected:
            if self.counts.reject(loaded):
                self._show(f"data: rejected: {loaded}; others for this reason are not named")
        else:
            self.counts.accepted += 1
        self.counts.check(self.config.max_rejected)
        return None if rejected else loaded

    def _first(self, entries: Iterable[Entry]) -> Item:
        for entry in entries:
            if sample := self._use(*self.encoder.load([entry])):
                return sample
        self.counts.check(self.config.max_rejected, final=True)
        raise ValueError(f"no sample can be used: {self.counts}; allowed: at least one")


class EncodedBatches(_Encoding):
    """Images and captions of a source that can be read in any order, encoded at each call.

    In place of one that is rejected comes the next of the source that is not. With ``max_samples``
    the source's first entries alone are used, the rejected among them.
    """

    def __init__(
        self, source: MapSource, pipeline: Pipeline, seed: int, config: SDConfig,
        show: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        super().__init__(config, pipeline, source, show)
        self.seed = seed
        self.length = min(len(source), config.max_samples or len(source))
        if not self.length:
            raise ValueError("the data are empty; allowed: at least one image")
        first = source[range(min(self.length, CAPTIONS))]
        self.captions = [entry.caption for entry in first if isinstance(entry, Item)]

    def get(self, numbers: Sequence[int]) -> Batch:
        """Some samples of the run."""
        places = [place_in_epoch(n, self.length, self.seed) for n in numbers]

        def after(k: int) -> Iterator[Entry]:
            others = range(places[k] + 1, places[k] + self.length)
            return (self.source[[place % self.length]][0] for place in others)

        return self._encode(self.source[places], after)


class StreamBatches(_Encoding):
    """Samples of shards that are streamed: read once an epoch from front to end, and not kept.

    In each epoch the shards are put into an order that belongs to (seed, epoch) and dealt to the
    processes in turn; within a shard the order is the shard's own. Each process has its own
    samples, so that of the numbers :meth:`get` only counts how many there are. A sample whose
    image cannot be read is replaced by the next that can, which then comes twice: so the number of
    samples alone tells where the stream is.

    Args:
        rank: this process's number, from 0, of ``world``.
        start: samples that this process has had before; they are skipped, images not decoded.

    Raises:
        ValueError: for fewer shards than processes, or with ``max_samples``.
    """

    def __init__(
        self, config: SDConfig, pipeline: Pipeline, seed: int, rank: int = 0, world: int = 1,
        start: int = 0, show: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        check_count(rank, "rank", low=0, high=world - 1)
        if config.data != "webdataset":
            raise ValueError(f"data is {config.data!r}; allowed in a stream: 'webdataset'")
        if config.max_samples is not None:
            raise ValueError(
                f"max_samples is {config.max_samples} with cache=False and data='webdataset'; "
                f"allowed: none (the stream has no fixed first samples), or cache=True"
            )
        source = ShardSource(config)
        if len(source.shards) < world:
            raise ValueError(
                f"there are {len(source.shards)} shards for {world} processes; allowed: at least "
                f"one for each. Cut the data into more shards, or set cache=True"
            )
        super().__init__(config, pipeline, source, show)
        self.seed, self.rank, self.world = seed, rank, world
        self._sizes: dict[int, int] = {}
        self._ahead: deque[Item] = deque()
        self._items = self._from(start)

    def get(self, numbers: Sequence[int]) -> Batch:
        """The next samples of this process, as many as there are numbers."""
        items = [self._peek(place) for place in range(len(numbers))]
        batch = self._encode(items, lambda k: map(self._peek, itertools.count(k + 1)))
        for _ in numbers:
            self._ahead.popleft()
        return batch

    def _peek(self, place: int) -> Item:
        """The sample that comes after ``place`` others; it stays in the stream."""
        while len(self._ahead) <= place:
            self._ahead.append(next(self._items))
        return self._ahead[place]

    def _from(self, start: int) -> Iterator[Item]:
        """The samples from number ``start`` on, epoch by epoch."""
        skip = start
        for epoch in itertools.count():
            given = 0
            generator = sample_generator(self.seed, epoch, SHARD_ORDER)
            order = torch.randperm(len(self.source.shards), generator=generator)
            for shard in order[self.rank :: self.world].tolist():
                size = self._sizes.get(shard)
                if size is not None and size <= skip:  # counted: not read only to be skipped
                    skip -= size
                else:
                    size = 0
                    for entry in self.source.shard(shard):
                        if isinstance(entry, RejectedError):
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


def open_batches(
    config: SDConfig,
    pipeline: Pipeline,
    folder: str | os.PathLike[str],
    *,
    rank: int = 0,
    world: int = 1,
    start_update: int = 0,
    wait: Callable[[], None] = lambda: None,
    show: Callable[[str], None] = print,
) -> CachedBatches | EncodedBatches | StreamBatches:
    """The batches of a run, from a cache that is made first, from one that is there, or encoded.

    Args:
        folder: of the cache, unless ``cache_folder`` is set.
        rank: this process's number, of ``world``; that of rank 0 makes the cache.
        start_update: number of updates that are done, from which a stream goes on.
        wait: returns when all processes have called it.

    Raises:
        FileNotFoundError: if the data or the cache are not there.
        ValueError: if they cannot be used with this teacher and these settings.
        ConnectionError: if they cannot be fetched.
    """
    if config.data == "cache" or config.cache:
        path = Path(config.data_path if config.data == "cache" else config.cache_folder or folder)
        cache = None
        try:
            if rank == 0 and config.data != "cache":
                cache = make_cache(config, pipeline, path, show=show)
        finally:
            wait()  # also after an error, so that the other processes end with one of their own
        if cache is None:
            cache = LatentCache(path)
            cache.check(config, pipeline)
        return CachedBatches(cache, config.seed)
    if config.data == "webdataset":
        start = start_update * config.training.batch * config.training.accumulate
        return StreamBatches(config, pipeline, config.seed, rank, world, start, show)
    return EncodedBatches(open_source(config), pipeline, config.seed, config, show)

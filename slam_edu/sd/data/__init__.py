"""The data of a distillation: images with captions, or no data at all.

What a configuration names (:mod:`~slam_edu.sd.data.sources`, :mod:`~slam_edu.sd.data.shards`,
:mod:`~slam_edu.sd.data.prompts`) is encoded by the teacher's own parts, once, into a cache
(:mod:`~slam_edu.sd.data.cache`) or at each call, and given out by the sample's number
(:mod:`~slam_edu.sd.data.batches`).
"""

from slam_edu.sd.data.batches import (
    Batches,
    CachedBatches,
    EncodedBatches,
    StreamBatches,
    open_batches,
)
from slam_edu.sd.data.cache import LatentCache, make_cache
from slam_edu.sd.data.counts import Counts
from slam_edu.sd.data.prompts import default_prompts, read_prompts
from slam_edu.sd.data.sources import open_source

__all__ = [
    "Batches",
    "CachedBatches",
    "Counts",
    "EncodedBatches",
    "LatentCache",
    "StreamBatches",
    "default_prompts",
    "make_cache",
    "open_batches",
    "open_source",
    "read_prompts",
]

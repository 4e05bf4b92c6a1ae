"""The data of a distillation: images with captions, or no data at all.

What a configuration names (``sources``, ``shards``) is encoded by the teacher's own parts
(``latents``), once, into a cache (``cache``) or at each call, and given out by the sample's number
(``batches``).
"""

from slam_edu.sd.data.batches import CachedBatches, EncodedBatches, StreamBatches, open_batches
from slam_edu.sd.data.cache import LatentCache, make_cache
from slam_edu.sd.data.entries import SampleCounts
from slam_edu.sd.data.sources import check_inputs, default_prompts, open_source, read_prompts

__all__ = [
    "CachedBatches",
    "EncodedBatches",
    "LatentCache",
    "SampleCounts",
    "StreamBatches",
    "check_inputs",
    "default_prompts",
    "make_cache",
    "open_batches",
    "open_source",
    "read_prompts",
]

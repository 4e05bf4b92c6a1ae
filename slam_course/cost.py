r"""What a distillation costs: operations of a sample by part, days and money of a run.

Operations are counted on the true networks without their weights (:mod:`slam_edu.sd.plan`); a
multiplication and an addition are two. For one sample,

.. math:: F = 2 F_\text{teacher} + F_\text{target} + F_\text{forward} + F_\text{backward}

with two calls of the teacher where there is guidance, and gradient checkpointing's second forward
pass within the backward pass. What is not cached comes on top: the autoencoder and the text
encoders.

How fast a card works is not counted but assumed: its **sustained speed** v in operations a second,
about a third of what its maker publishes. With G cards that take b samples each, and U updates, a
run has G b U samples and takes

.. math:: \text{days} = \frac{b\,U\,F}{86400\,v}, \qquad \text{GPU-days} = G \cdot \text{days}.

The days do not depend on G: more cards with the same b make the batch larger, not the run shorter.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from slam_edu._validation import check_count
from slam_edu.sd.plan import MemoryPlan
from slam_edu.sd.published import Architecture
from slam_edu.sd.trace import LiveBytes, trace_coding

TERA = 1e12
DAY = 86_400.0

#: Names of a sample's parts, in the order in which they are computed.
AUTOENCODER, TEXT = "autoencoder", "text encoders"
TEACHER, TARGET = "teacher", "target"
FORWARD, BACKWARD = "student, forward", "student, backward"


def sample_parts(plan: MemoryPlan) -> dict[str, int]:
    """Operations of one sample by part: encoding, the teacher's calls, target, student.

    A run with a cache computes the autoencoder's and the text encoders' once for each image and
    caption, not for each sample.
    """
    config, step = plan.config, plan.trace.flops
    calls = config.distillation.teacher_steps * (2 if config.distillation.guidance else 1)
    _, encode = trace_coding(plan.architecture, "encode", 1, config.resolution)
    return {
        AUTOENCODER: encode,
        TEXT: text_flops(plan.architecture),
        TEACHER: calls * step["teacher"],
        TARGET: step["target"],
        FORWARD: step["forward"],
        BACKWARD: step["backward"],
    }


@functools.lru_cache(maxsize=16)
def text_flops(architecture: Architecture) -> int:
    """Operations of one caption in all text encoders."""
    live = LiveBytes()
    for number, (_, values) in enumerate(architecture.text_encoders):
        encoder = architecture.build_text_encoder(number)
        shape = (1, values["max_position_embeddings"])
        with torch.no_grad(), live:
            encoder(input_ids=torch.zeros(shape, dtype=torch.int64, device="meta"))
    return live.flops


def reduced_bytes(parameters: int, processes: int, size: int = 4) -> float:
    """Bytes that each process sends, and receives, to sum gradients once.

    Around a ring of W processes each sends (W-1)/W of the gradient to have its sum, and as much
    again so that all have it (Patarasuk and Yuan 2009).

    Raises:
        ValueError: for a number below 1.
    """
    for value, name in ((parameters, "parameters"), (processes, "processes"), (size, "size")):
        check_count(value, name)
    return 2 * (processes - 1) / processes * parameters * size


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What a run takes."""

    samples: int  # of all updates
    days: float  # from its begin to its end
    gpu_days: float  # of all cards together
    money: float  # in the currency of the price


def run_cost(
    flops: float, *, gpus: int, batch: int, updates: int, speed: float, price: float = 0.0
) -> RunCost:
    """Days and money of a run, in the formulas' F, G, b, U and v; ``price`` of a card and hour.

    Raises:
        ValueError: for a number that is not positive; the price may be 0.
    """
    for value, name in ((gpus, "gpus"), (batch, "batch"), (updates, "updates")):
        check_count(value, name)
    for value, name, least in (
        (flops, "flops", ">"),
        (speed, "speed", ">"),
        (price, "price", ">="),
    ):
        if not (0 <= value < math.inf) or (value == 0 and least == ">"):
            raise ValueError(f"{name} is {value!r}; allowed: a finite number {least} 0")
    days = flops * batch * updates / speed / DAY
    return RunCost(
        samples=gpus * batch * updates, days=days, gpu_days=gpus * days,
        money=gpus * days * 24 * price,
    )  # fmt: skip


def samples_bought(flops: float, gpu_days: float, speed: float) -> float:
    """Samples that some GPU-days are enough for, at v = ``speed`` and F = ``flops`` a sample."""
    return gpu_days * DAY * speed / flops

"""Samples of a distilled student, as latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slam_edu.sampling import last, sample_consistency
from slam_edu.sd.components import TextCondition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import Networks
from slam_edu.seeding import sample_generator

#: Seed of the noise that students add between steps.
FRESH_NOISE = 3_000_000


@torch.no_grad()
def student_latents(
    networks: Networks,
    config: SDConfig,
    model: Any,
    cond: TextCondition,
    noise: Tensor,
    steps: int,
    seed: int = 0,
    batch: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Samples of a student's moving average at gamma = 1, of the noise's shape.

    ``noise`` is x at t = T-1; the noise that is added between steps is of the generator, or else
    of ``seed``, the same for all students. The model has
    ``schedule`` and ``prediction_type``.
    """
    generator, drawn = generator or sample_generator(FRESH_NOISE, seed, steps), []
    for i in range(0, len(noise), batch):
        states = sample_consistency(
            networks.target, noise[i : i + batch], model.schedule, steps, generator=generator,
            subpaths=config.distillation.subpaths, conditioning=config.distillation.conditioning,
            prediction_type=model.prediction_type, cond=cond[i : i + batch],
            timestep_scaling=config.distillation.timestep_scaling,
        )  # fmt: skip
        drawn.append(last(states))
    return torch.cat(drawn)

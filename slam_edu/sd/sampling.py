"""Samples of a distilled student, as latents."""

from __future__ import annotations

import torch
from torch import Tensor

from slam_edu.sampling import last, sample_consistency
from slam_edu.sd.components import LatentDiffusion, TextCondition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import Networks
from slam_edu.seeding import sample_generator

FRESH_NOISE = 3_000_000
"""Seed of the noise that students add between steps."""


@torch.no_grad()
def student_latents(
    networks: Networks,
    config: SDConfig,
    model: LatentDiffusion,
    cond: TextCondition,
    noise: Tensor,
    steps: int,
    seed: int = 0,
    batch: int = 100,
) -> Tensor:
    """A student's samples as latents, of the noise's shape.

    Args:
        networks: their moving average draws, at gamma = 1.
        config: of the run.
        model: the teacher, for its levels.
        cond: conditions, one for each latent.
        noise: x at t = T-1.
        steps: of consistency sampling.
        seed: of the fresh noise, the same for all students.
        batch: latents at a time.
    """
    generator, drawn = sample_generator(FRESH_NOISE, seed, steps), []
    for i in range(0, len(noise), batch):
        states = sample_consistency(
            networks.target, noise[i : i + batch], model.schedule, steps, generator=generator,
            subpaths=config.distillation.subpaths, conditioning=config.distillation.conditioning,
            prediction_type=model.prediction_type, cond=cond[i : i + batch],
            timestep_scaling=config.distillation.timestep_scaling,
        )  # fmt: skip
        drawn.append(last(states))
    return torch.cat(drawn)

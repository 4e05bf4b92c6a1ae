"""Tiny pipelines, and networks that look trained: what the engine's tests share."""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING

import torch

from slam_edu.sd.tiny import tiny_pipeline as tiny_sd_pipeline
from slam_edu.sd.tiny import tiny_xl_pipeline
from slam_edu.training import TrainState

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from slam_edu.sd.networks import Networks

PIPELINES = {"sd": tiny_sd_pipeline, "xl": tiny_xl_pipeline}


@cache
def _pipeline(model: str, prediction_type: str) -> StableDiffusionPipeline:
    return PIPELINES[model](prediction_type=prediction_type)


def fresh_pipeline(model: str, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """A pipeline with a UNet of its own; the other parts are made once, and not to be changed."""
    made = copy.copy(_pipeline(model, prediction_type))
    made.unet = copy.deepcopy(made.unet)
    return made


@torch.no_grad()
def perturb(networks: Networks, by: float = 0.3, seed: int = 7) -> Networks:
    """Move trained parameters and their averages, each on its own, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    for named in (networks.trained, networks.average):
        for p in named.values():
            size = by * p.abs().mean().clamp(min=0.01)  # a factor may be zero
            p.add_(size * torch.randn(p.shape, generator=generator))
    return networks


def train_state(optimizer: torch.optim.Optimizer, update: int, **counts: int) -> TrainState:
    """What a loop yields after an update, of which a checkpoint keeps counts and optimiser."""
    rest = {"loss": 0.0, "grad_norm": 0.0, "lr": 0.0, "skipped": 0, "in_a_row": 0, "scaler": {}}
    return TrainState(optimizer=optimizer, update=update, **{**rest, **counts})

"""What an update of each method costs, counted at small networks."""

from __future__ import annotations

import torch

from slam_course.family import METHODS
from slam_course.family.base import Calls, Counted, Trio
from slam_course.family.training import make
from slam_edu.schedule import NoiseSchedule
from slam_edu.toy.networks import LevelMLP

BATCH = 64


def counted(name: str, subpaths: int = 50, pieces: int = 0) -> dict[str, Calls]:
    """Evaluations of teacher, student and target in one update of a batch of ``BATCH``."""
    schedule, mixture = NoiseSchedule.stable_diffusion(), make("ring")
    generator = torch.Generator().manual_seed(0)
    method = METHODS[name](schedule, subpaths=subpaths, **{"pieces": pieces} if pieces else {})
    networks = Trio(**{
        role: Counted(
            mixture.network(schedule) if role == "teacher"
            else LevelMLP(8, 1, gamma=method.gamma_input, generator=generator),
            role, frozen=role != "student",
        )
        for role in ("teacher", "student", "target")
    })  # fmt: skip
    x0 = mixture.sample(BATCH, generator)
    method.loss(x0, method.draw(x0, generator), networks).backward()
    return {role: getattr(networks, role).calls for role in vars(networks) if role != "used"}


def cost(name: str, subpaths: int = 50, pieces: int = 0) -> float:
    """Evaluations of an update for each sample of its batch: forward 1, backward 2, tangent 1."""
    return sum(calls.cost() for calls in counted(name, subpaths, pieces).values()) / BATCH

"""Students of lesson 05: trained with a loss that the learner wrote, and looked at on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from slam_course.family import METHODS
from slam_course.family.base import Method, Trio
from slam_course.family.results import Choice
from slam_course.family.training import TIMES, Reference, Student, reference, train_one
from slam_edu.distill import SubPathSample
from slam_edu.sampling import last, sample_ddim
from slam_edu.schedule import NoiseSchedule

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Moment:
    """A student in training: samples (B, 2) in one step, mean errors to f* at ``TIMES``."""

    samples: Tensor
    errors: dict[int, float]


def with_loss(method_type: type[Method], loss: Loss) -> type[Method]:
    """A method of the consistency kind, with the loss of exercise 1 in place of the library's.

    ``loss(student, target, x_t, x_s, x_gamma, level_t, level_s, level_gamma)``; student and target
    are called as ``f(x, level)``.
    """

    class WithLoss(method_type):
        def loss(self, x0: Tensor, batch: SubPathSample, networks: Trio) -> Tensor:
            path = self.distiller.sub_path(x0, batch, teacher=networks.teacher)
            f, ones = self.distiller.consistency, torch.ones_like(path.gamma)
            return loss(
                lambda x, level: f(networks.student, x, path.t, level, None, path.gamma),
                lambda x, level: f(networks.target, x, path.s, level, None, ones),
                path.x_t, path.x_s, path.x_gamma, path.level_t, path.level_s, path.level_gamma,
            )  # fmt: skip

    return WithLoss


def follow(
    setting: Choice,
    data: str,
    seed: int,
    at: Iterable[int] = (),
    *,
    loss: Loss | None = None,
    on_update: Callable[[int], None] = lambda update: None,
    samples: int = 1500,
) -> tuple[Student, dict[int, Moment]]:
    """Train a student and look at it after some updates.

    ``on_update`` is called with the number of updates, after each. Returns the student, and what
    was seen by number of updates.
    """
    method_type = METHODS[setting.method]
    if loss is not None:
        method_type = with_loss(method_type, loss)
    points, at = reference(data, seed), set(at)
    moments: dict[int, Moment] = {}
    for student in train_one(method_type, data, seed, **setting.options()):
        on_update(student.updates)
        if student.updates in at:
            drawn = draw(student, points.noise[:samples], 1, seed)
            moments[student.updates] = Moment(drawn, {t: error(student, points, t) for t in TIMES})
    return student, moments


@torch.no_grad()
def draw(student: Student, noise: Tensor, steps: int, seed: int) -> Tensor:
    """Samples of a student in ``steps`` steps from initial noise ``(B, 2)``."""
    generator = torch.Generator().manual_seed(3_000_000 + seed)
    return student.method.sample(student.network, noise, steps, generator)


@torch.no_grad()
def ends(student: Student, x: Tensor, t: int) -> Tensor:
    r"""Where the student says that the trajectories through x ``(B, 2)`` end, from timestep t."""
    return student.method.solve(student.network, x, torch.full((len(x),), t))


def error(student: Student, points: Reference, t: int) -> float:
    r"""Mean of :math:`\|f_\theta(x_t, t) - f^*(x_t, t)\|` at t of ``TIMES``."""
    return (ends(student, points.x[t], t) - points.end[t]).norm(dim=1).mean().item()


def off_support(samples: Tensor, points: Reference) -> float:
    """Share of samples ``(B, 2)`` where the data's density is below its 0.1 % quantile."""
    return (points.mixture.log_density(samples) < points.least).double().mean().item()


def teacher_draw(points: Reference, noise: Tensor, steps: int) -> Tensor:
    """Samples of the exact teacher with DDIM in as many evaluations."""
    schedule = NoiseSchedule.stable_diffusion()
    return last(sample_ddim(points.mixture.network(schedule), noise, schedule, steps))

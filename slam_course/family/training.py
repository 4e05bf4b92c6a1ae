r"""One student of the family: trained at a stated cost, and measured.

All start as the same diffusion model of a data set and seed, and see noise and data of the seed's
generator. What is measured is the moving average of the weights.

- ``sw_n``: sliced Wasserstein distance of samples in n steps to the data,
- ``off_n``: their share off the support, where the data's density is below its 0.1 % quantile,
- ``map_t``: mean distance of the student's answer to the exact solution map f* from timestep t;
- ``bias`` and ``rest``, of methods with a grid: the error at the noisiest timestep is split into
  a multiple of the error that DDIM over the same N hops makes, and what is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from slam_course.family.base import Counted, Method, Trio
from slam_course.family.guidance import GUIDED, Guided
from slam_edu.ema import ema_copy
from slam_edu.metrics import sliced_wasserstein
from slam_edu.prediction import add_noise
from slam_edu.schedule import NoiseSchedule
from slam_edu.toy import data as data_sets
from slam_edu.toy.mixture import GaussianMixture
from slam_edu.toy.networks import LevelMLP
from slam_edu.toy.solution import solution_map
from slam_edu.training import TrainConfig, train, train_teacher

INIT = TrainConfig(updates=3000, batch=256, lr=5e-3)
"""How the diffusion model from which students start is trained."""

STEPS = (1, 2, 4, 8)
TIMES = (999, 799, 499, 299, 99)
"""Numbers of steps in which samples are drawn, and timesteps from which f* is."""

POINTS, MAP_POINTS, PROJECTIONS, OFF = 10_000, 500, 64, 1e-3
TOL = 1e-4  # of f*, far below every error measured here
WIDTH, DEPTH = 128, 3


def harder_mixture(components: int = 30, dim: int = 8) -> GaussianMixture:
    """Gaussians at normal places in a space of many dimensions, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(components, dim, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, 0.15).standardized().float()


HARD: dict[str, Callable[[], GaussianMixture]] = {
    "fine_checkerboard": lambda: data_sets.checkerboard(squares=8, per_side=4),
    "galaxy": lambda: data_sets.picture("galaxy"),
    "mixture_8d": harder_mixture,
}
"""Data sets beside :data:`slam_edu.toy.data.DATASETS`."""


@cache
def make(name: str) -> GaussianMixture:
    """A data set by name."""
    own = HARD | GUIDED
    return own[name]() if name in own else data_sets.make(name)


@dataclass(frozen=True)
class Reference:
    """What the students of a data set and seed are measured with.

    Clean samples ``data`` and initial ``noise`` have shape (POINTS, D); ``x`` and ``end`` are, by
    timestep, samples there of shape (MAP_POINTS, D) and their exact ends at t = 0, f*.
    """

    mixture: GaussianMixture
    data: Tensor
    noise: Tensor
    x: dict[int, Tensor]
    end: dict[int, Tensor]
    least: float  # log density below which a point is off the support


def reference(data: str, seed: int) -> Reference:
    """The measuring points of a data set and a seed; f* alone is the same for all seeds."""
    mixture, generator = make(data), torch.Generator().manual_seed(2_000_000 + seed)
    draw = mixture.guided_samples if isinstance(mixture, Guided) else mixture.sample
    clean = draw(POINTS, generator)
    noise = torch.randn(clean.shape, generator=generator)
    return Reference(mixture, clean, noise, *_solved(data))


@cache
def _solved(data: str) -> tuple[dict[int, Tensor], dict[int, Tensor], float]:
    mixture, schedule = make(data), NoiseSchedule.stable_diffusion()
    generator = torch.Generator().manual_seed(1_000_000)
    x, end = {}, {}
    for t in TIMES:
        x0 = mixture.sample(MAP_POINTS, generator)
        noise = torch.randn(x0.shape, generator=generator)
        x[t] = add_noise(x0, noise, schedule(t))
        end[t] = solution_map(mixture, x[t], schedule(t), schedule(0), tol=TOL).x.float()
    density = mixture.log_density(mixture.sample(100_000, generator))
    return x, end, density.quantile(OFF).item()


@cache
def diffusion_model(data: str, seed: int, updates: int = 0) -> LevelMLP:
    """The network, which predicts v, from which the students of a data set and seed start.

    After fewer ``updates`` (0: those of ``INIT``) it is a teacher with a larger error.
    """
    mixture, schedule = make(data), NoiseSchedule.stable_diffusion()
    generator = torch.Generator().manual_seed(5_000_000 + seed)
    network = LevelMLP(WIDTH, DEPTH, dim=mixture.dim, generator=generator)
    average = ema_copy(network)
    for _ in train_teacher(
        schedule, mixture.sample, network=network, average=average, generator=generator,
        prediction_type="v_prediction",
        config=dataclasses.replace(INIT, updates=updates or INIT.updates),
    ):  # fmt: skip
        pass
    return average


@dataclass(frozen=True, kw_only=True)
class Restarted(TrainConfig):
    """A learning rate that falls ``restarts`` times."""

    restarts: int = 1

    def lr_at(self, update: int) -> float:
        """Of the same moment of each stretch."""
        return super().lr_at(update * self.restarts % self.updates)


@dataclass(frozen=True)
class Student:
    """A student on its way: its moving average, its method, what it has cost so far."""

    network: Counted
    method: Method
    updates: int
    cost: float  # evaluations in all, over the batch


def train_one(
    method_type: type[Method], data: str, seed: int, *,
    cost: float = 10_000, updates: int | None = None, batch: int = 256,
    lr: float = 1e-3, ema_rate: float = 0.95, teacher: str = "exact", **options: object,
) -> Iterator[Student]:  # fmt: skip
    """Train a student until it has cost so much; yields it after every update.

    Args:
        method_type: of the method.
        data: name of the data set.
        seed: of batches, noise and whatever else is drawn.
        cost: evaluations, weighted by :meth:`slam_course.family.base.Calls.cost`, over ``batch``.
            10,000 are 2,000 updates of consistency distillation.
        updates: their number, in place of a cost.
        batch: samples of an update, less where the method takes a share.
        lr: learning rate, which falls to 0 as a cosine.
        ema_rate: of the moving average, once an update.
        teacher: ``"exact"``; ``"learned"``, the diffusion model from which the student starts; or
            ``"learned 300"``, one after so many updates.
        options: of the method.
    """
    mixture, schedule = make(data), NoiseSchedule.stable_diffusion()
    model, generator = diffusion_model(data, seed), torch.Generator().manual_seed(seed)
    learned, guide = teacher != "exact", model
    if teacher.startswith("learned "):
        guide = diffusion_model(data, seed, int(teacher.split()[1]))
    method = method_type(
        schedule, teacher_type="v_prediction" if learned else "epsilon", **options
    )
    student = LevelMLP(
        WIDTH, DEPTH, dim=mixture.dim, gamma=method.gamma_input, generator=generator
    )
    student.load_state_dict(model.state_dict(), strict=False)  # an input for gamma starts at zero
    average = ema_copy(student)
    networks = Trio(
        teacher=Counted(guide if learned else mixture.network(schedule), "teacher", frozen=True),
        student=Counted(student, "student"),
        target=Counted(average, "target", frozen=True),
    )
    size = round(batch * method.share)

    def loss() -> tuple[Tensor, None]:
        x0 = mixture.sample(size, generator)
        return method.loss(x0, method.draw(x0, generator), networks), None

    if updates is None:
        updates = _affordable(method, networks, mixture, size, cost * batch)
    config = Restarted(
        updates=updates, batch=size, lr=lr, ema_rate=ema_rate, restarts=method.restarts
    )
    outside = 0  # evaluations by whoever measures the student
    for state in train(loss, student, average, config=config):
        networks.used, spent = state.update / updates, networks.cost()
        yield Student(networks.target, method, state.update, (spent - outside) / batch)
        outside += networks.cost() - spent


def _affordable(
    method: Method, networks: Trio, mixture: GaussianMixture, size: int, cost: float
) -> int:
    """Number of updates that cost so much: one is made on the side and counted."""
    generator = torch.Generator().manual_seed(0)
    x0 = mixture.sample(size, generator)
    before = networks.cost()
    method.loss(x0, method.draw(x0, generator), networks).backward()
    each = networks.cost() - before
    for network in (networks.teacher, networks.student, networks.target):
        network.calls.clear()
    return max(round(cost / each), 1)


@torch.no_grad()
def measure(student: Student, points: Reference, seed: int) -> dict[str, float]:
    """``sw_n``, ``off_n`` and ``map_t`` of a student."""
    found, method, network = {}, student.method, student.network
    for n in STEPS:
        generator = torch.Generator().manual_seed(3_000_000 + seed)
        drawn = method.sample(network, points.noise, n, generator)
        found[f"sw_{n}"] = sliced_wasserstein(drawn, points.data, projections=PROJECTIONS)
        density = points.mixture.log_density(drawn)
        found[f"off_{n}"] = (density < points.least).double().mean().item()
    for t in TIMES:
        at = torch.full((len(points.x[t]),), t)
        error = method.solve(network, points.x[t], at) - points.end[t]
        found[f"map_{t}"] = error.norm(dim=1).mean().item()
        if t == TIMES[0] and "subpaths" in method.tuned:
            bias = _hops(points, method.subpaths) - points.end[t]
            share = ((error * bias).sum() / (bias * bias).sum()).item()
            found["bias"], found["rest"] = share, (error - share * bias).norm(dim=1).mean().item()
    return found


def _hops(points: Reference, subpaths: int) -> Tensor:
    """Where DDIM over the grid's N hops ends, with the exact teacher."""
    schedule = NoiseSchedule.stable_diffusion()
    grid = schedule.subpaths(subpaths)
    x = points.x[TIMES[0]]
    for t, s in zip(grid.t.flip(0), grid.s.flip(0), strict=True):
        prediction = points.mixture.predict(x, schedule.at(t))
        x = schedule.at(s).mix(prediction.x0, prediction.eps)
    return x


@cache
def floor(data: str, seed: int) -> dict[str, float]:
    """``sw`` and ``off`` of a second sample of the data: below them no student can be expected."""
    mixture, least = make(data), _solved(data)[2]
    points = [
        mixture.sample(POINTS, torch.Generator().manual_seed(first + seed))
        for first in (2_000_000, 4_000_000)
    ]
    density = mixture.log_density(points[1])
    return {
        "sw": sliced_wasserstein(points[1], points[0], projections=PROJECTIONS),
        "off": (density < least).double().mean().item(),
    }

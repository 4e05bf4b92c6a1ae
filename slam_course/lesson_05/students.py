r"""Students in the plane: trained, sampled, held against the exact solution map.

Every setting sees the same initial weights, clean batches, noise, sub-path indices and draws of
gamma of its seed, calls the teacher as often and makes as many updates, and is measured on the
same noise. As in practice, the student begins as a diffusion model, a network trained by denoising
score matching (``init="teacher"``); the teacher itself is exact, so that no error is its. The
moving average of the weights is what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor, nn

from slam_course.ablations import RandomHopDistiller
from slam_course.results import (
    BETWEEN,
    CD,
    CONTINUED,
    METHODS,
    SLAM,
    SPREAD,
    TIMES,
    ToySetting,
)
from slam_edu.distill import SubPathDistiller
from slam_edu.ema import ema_copy
from slam_edu.metrics import energy_distance, sliced_wasserstein
from slam_edu.prediction import add_noise, network_predictor
from slam_edu.sampling import last, sample_consistency, sample_pf_ode
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.solver import pf_ode_trajectory
from slam_edu.toy.data import make
from slam_edu.toy.errors import geometric_levels
from slam_edu.toy.mixture import GaussianMixture
from slam_edu.toy.networks import LevelMLP
from slam_edu.toy.solution import solution_map
from slam_edu.training import TrainConfig, train_student, train_teacher

INIT_TRAINING = TrainConfig(updates=3000, batch=256, lr=5e-3)
"""How the network from which students begin is trained."""

POINTS, ENERGY_POINTS, MAP_POINTS, PROJECTIONS = 10_000, 2000, 1000, 64
"""Samples per sliced Wasserstein distance, per energy distance, and per error to f*; lines."""

# -------------------------------------------------------------------- what is compared

_GAMMA = {"conditioning": "gamma", "gamma_input": "official"}

MAIN = {
    "DDIM": ToySetting(solver="ddim"),
    "DPM-Solver++": ToySetting(solver="dpmpp_2m"),
    "DPM-Solver++, even in log rho": ToySetting(solver="dpmpp_2m", levels="log_rho"),
    **METHODS,
    "CD, N = 25": CD.replace(subpaths=25),
    "CD, N = 100": CD.replace(subpaths=100),
    "CD, N = 200": CD.replace(subpaths=200),
    "SLAM, level + markov": SLAM.replace(coupling="markov"),
    "SLAM, gamma + linear": SLAM.replace(**_GAMMA),
    "SLAM, gamma + markov": SLAM.replace(coupling="markov", **_GAMMA),
    "SLAM, smooth gamma + linear": SLAM.replace(conditioning="gamma", gamma_input="smooth"),
    "CD, 4 teacher steps": CD.replace(teacher_steps=4),
    "SLAM, 4 teacher steps": SLAM.replace(teacher_steps=4),
}
"""All methods at equal cost."""

SUBPATHS = {
    f"{name}; subpaths = {n}": METHODS[name].replace(subpaths=n)
    for n in (10, 20, 50, 100)
    for name in ("CD", "SLAM", "SLAM, gamma = 2", "random hop")
}
"""The number N of sub-paths."""

GAMMAS = {
    "CD": CD,
    "uniform on [0, 1]": SLAM,
    "half at 1": SLAM.replace(gammas="half_one"),
    "toward 1": SLAM.replace(gammas="toward_one"),
    "toward 0": SLAM.replace(gammas="toward_zero"),
    "uniform on [0, 2]": SLAM.replace(reach=2.0),
    "uniform on [1, 2]": SLAM.replace(reach=2.0, gammas="upper_half"),
    "all at 2": CONTINUED,
    "uniform on [1.5, 3]": SPREAD,
    "all at 3": CD.replace(reach=3.0),
}
"""How gamma is drawn."""

BUDGET = {
    name: METHODS[name].replace(updates=16000, lr=1e-3, final_lr=1.0)
    for name in ("CD", "SLAM", "SLAM, gamma = 2", "random hop")
}
"""The number of updates, at a constant learning rate."""

CHECKPOINTS = (125, 250, 500, 1000, 2000, 4000, 8000)
"""Updates after which the students of :data:`BUDGET` are measured besides their end."""

# -------------------------------------------------------------------- what they are held against


@dataclass(frozen=True)
class Reference:
    """What the students of a data set and seed are measured with.

    Clean samples ``data`` and initial ``noise`` have shape (POINTS, 2); ``x`` and ``end`` are, by
    timestep, samples there of shape (MAP_POINTS, 2) and their exact ends at t = 0, f*.
    """

    mixture: GaussianMixture
    data: Tensor
    noise: Tensor
    x: dict[int, Tensor]
    end: dict[int, Tensor]


def reference(data: str, seed: int) -> Reference:
    """The measuring points of a data set and a seed; f* alone is the same for all seeds."""
    return Reference(*_draws(data, seed), *_solved(data))


def _draws(data: str, seed: int) -> tuple[GaussianMixture, Tensor, Tensor]:
    mixture, generator = make(data), torch.Generator().manual_seed(2_000_000 + seed)
    clean = mixture.sample(POINTS, generator)
    return mixture, clean, torch.randn(POINTS, 2, generator=generator)


@cache
def _solved(data: str) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    mixture, schedule = make(data), NoiseSchedule.stable_diffusion()
    generator = torch.Generator().manual_seed(1_000_000)
    x, end = {}, {}
    for t in (*TIMES, *BETWEEN):
        x0 = mixture.sample(MAP_POINTS, generator)
        noise = torch.randn(x0.shape, generator=generator)
        x[t] = add_noise(x0, noise, schedule(t))
        end[t] = solution_map(mixture, x[t], schedule(t), schedule(0)).x.float()
    return x, end


@dataclass(frozen=True)
class Student:
    """A trained student: the moving average of its weights, and the step it was trained with."""

    network: nn.Module
    distiller: SubPathDistiller
    seconds: float
    skipped: int


@lru_cache(maxsize=2)
def diffusion_model(
    data: str, seed: int, width: int, depth: int, prediction_type: str
) -> LevelMLP:
    """The network from which the students of a data set and seed begin."""
    mixture, schedule = make(data), NoiseSchedule.stable_diffusion()
    generator = torch.Generator().manual_seed(5_000_000 + seed)
    network = LevelMLP(width, depth, generator=generator)
    average = ema_copy(network)
    for _ in train_teacher(
        schedule, mixture.sample, network=network, average=average, generator=generator,
        prediction_type=prediction_type, config=INIT_TRAINING,
    ):  # fmt: skip
        pass
    return average


def train(setting: ToySetting, data: str, seed: int) -> Iterator[tuple[int, Student]]:
    """Train a student; yields the number of updates and the student, after every update.

    The generator of batches, noise, indices and gammas depends on the seed alone.
    """
    mixture, schedule = make(data), NoiseSchedule.stable_diffusion()
    generator = torch.Generator().manual_seed(seed)
    size = (setting.width, setting.depth)
    student = LevelMLP(*size, gamma=setting.gamma_input, generator=generator)
    teacher, config = mixture.network(schedule), setting.distill
    if setting.init == "teacher" or setting.teacher == "learned":
        model = diffusion_model(data, seed, *size, setting.student_prediction_type)
        if setting.init == "teacher":
            # A gamma input is not among the model's weights: it starts at zero.
            student.load_state_dict(model.state_dict(), strict=False)
        if setting.teacher == "learned":
            teacher = model
            config = config.replace(teacher_prediction_type=setting.student_prediction_type)
    target = ema_copy(student)
    distiller = (RandomHopDistiller if setting.hop == "random" else SubPathDistiller)(
        schedule, config
    )
    start = time.perf_counter()
    for state in train_student(
        distiller, mixture.sample, teacher=teacher, student=student, target=target,
        generator=generator, config=setting.train,
    ):  # fmt: skip
        seconds = time.perf_counter() - start
        yield state.update, Student(target, distiller, seconds, state.skipped)


@torch.no_grad()
def draw(student: Student, noise: Tensor, steps: int, seed: int) -> Tensor:
    """Samples of a student in ``steps`` steps from initial noise ``(B, 2)``."""
    config = student.distiller.config
    return last(
        sample_consistency(
            student.network, noise, student.distiller.schedule, steps,
            generator=torch.Generator().manual_seed(3_000_000 + seed), subpaths=config.subpaths,
            conditioning=config.conditioning, prediction_type=config.output_type,
        )
    )  # fmt: skip


@torch.no_grad()
def error(student: Student, points: Reference, t: int) -> float:
    r"""Mean of :math:`\|f_\theta(x_t, t) - f^*(x_t, t)\|` at t of ``TIMES`` or ``BETWEEN``."""
    f = student.distiller.predict(student.network, points.x[t], t)
    return (f - points.end[t]).norm(dim=1).mean().item()


@dataclass(frozen=True)
class Moment:
    """A student in training: samples (B, 2) in one step, mean errors to f* at ``TIMES``."""

    samples: Tensor
    errors: dict[int, float]


def follow(
    setting: ToySetting,
    data: str,
    seed: int,
    at: Iterable[int],
    on_update: Callable[[int], None] = lambda update: None,
    samples: int = 1500,
) -> tuple[Student, dict[int, Moment]]:
    """Train a student and look at it after some updates.

    ``on_update`` is called with the number of updates, after each. Returns the student, and what
    was seen by number of updates.
    """
    points, at = reference(data, seed), set(at)
    moments: dict[int, Moment] = {}
    for update, student in train(setting, data, seed):
        on_update(update)
        if update in at:
            drawn = draw(student, points.noise[:samples], 1, seed)
            moments[update] = Moment(drawn, {t: error(student, points, t) for t in TIMES})
    return student, moments


def teacher_samples(
    setting: ToySetting, mixture: GaussianMixture, noise: Tensor
) -> Callable[[int], Tensor]:
    """The exact teacher with the setting's solver: a function of the number of evaluations."""
    schedule = NoiseSchedule.stable_diffusion()
    network = mixture.network(schedule)

    def drawn(steps: int) -> Tensor:
        if setting.levels == "t":
            return last(sample_pf_ode(network, noise, schedule, steps, method=setting.solver))
        # The last of the evaluations is spent on the hop from t = 0 to clean.
        levels = schedule(torch.tensor([999]))
        if steps > 1:
            levels = geometric_levels(schedule(999), schedule(0), steps - 1)
        levels = Level.cat([levels, Level.clean(levels.alpha[:1])])
        predictor = network_predictor(network, schedule)
        return pf_ode_trajectory(predictor, noise, levels, setting.solver)[-1]

    return drawn


def distances(samples: Tensor, data: Tensor, steps: int) -> dict[str, float]:
    """``sw_n`` and ``ed_n``: sliced Wasserstein and energy distance of samples in n steps."""
    return {
        f"sw_{steps}": sliced_wasserstein(samples, data, projections=PROJECTIONS),
        f"ed_{steps}": energy_distance(samples[:ENERGY_POINTS], data[:ENERGY_POINTS]),
    }


@cache
def floor(data: str, seed: int) -> dict[str, float]:
    """``sw_1`` and ``ed_1`` of a second sample of the data: no method can be expected below."""
    mixture, clean, _ = _draws(data, seed)
    other = mixture.sample(POINTS, torch.Generator().manual_seed(4_000_000 + seed))
    return distances(other, clean, 1)

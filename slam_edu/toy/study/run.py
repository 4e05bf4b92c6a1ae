r"""One run of the study: a student of one setting, data set and seed, trained and measured.

Every setting sees the same initial weights, clean batches, noise, sub-path indices and draws of
gamma of its seed, calls the teacher as often and makes as many updates, and is measured on the
same noise. As in practice, the student begins as a diffusion model, a network trained by denoising
score matching (``init="teacher"``); the teacher itself is exact, so that no error is its. The
moving average of the weights is what is measured.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor, nn

from slam_edu._validation import check_choice, check_count
from slam_edu.distill import DistillConfig, SubPathDistiller
from slam_edu.ema import ema_copy
from slam_edu.metrics import energy_distance, sliced_wasserstein
from slam_edu.prediction import add_noise, network_predictor
from slam_edu.sampling import last, sample_consistency, sample_pf_ode
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.solver import METHODS, pf_ode_trajectory
from slam_edu.toy.data import DATASETS, make
from slam_edu.toy.errors import geometric_levels
from slam_edu.toy.mixture import GaussianMixture
from slam_edu.toy.networks import GAMMA_INPUTS, LevelMLP
from slam_edu.toy.solution import solution_map
from slam_edu.training import TrainConfig, train_student, train_teacher

STEPS = (1, 2, 4, 8)
"""Numbers of steps at which samples are measured."""

TIMES = (999, 799, 499, 299, 99)
BETWEEN = (987, 787, 487, 287, 87)
"""Timesteps at which the student is held against the exact solution map f*: noisy ends of every
grid of the study, and timesteps that are on none of them."""

INITS, TEACHERS = ("teacher", "random"), ("exact", "learned")
INIT_TRAINING = TrainConfig(updates=3000, batch=256, lr=5e-3)
"""How the network from which students begin is trained."""

LEVELS = ("t", "log_rho")
POINTS, ENERGY_POINTS, MAP_POINTS, PROJECTIONS = 10_000, 2000, 1000, 64
"""Samples per sliced Wasserstein distance, per energy distance, and per error to f*; lines."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    r"""What is compared: a distillation, or with ``solver`` the exact teacher itself.

    Fields with a name of :class:`slam_edu.distill.DistillConfig` or
    :class:`slam_edu.training.TrainConfig` mean what they mean there. The default is consistency
    distillation (``gammas="one"``) at N = 50.

    Attributes:
        solver: None for a student; a solver of :data:`slam_edu.solver.METHODS` for the teacher.
        levels: of the solver: ``"t"``, evenly spaced timesteps, or ``"log_rho"``.
        init: where the student's weights begin: ``"teacher"``, a trained diffusion model, or
            ``"random"``.
        teacher: whom it learns from: ``"exact"``, or ``"learned"``, the same diffusion model.
        gamma_input: of :class:`slam_edu.toy.networks.LevelMLP`, for ``conditioning="gamma"``.
        width: units of a hidden layer.
        depth: hidden layers.

    Raises:
        ValueError: for a value that is not allowed; it names the value and the allowed set.
    """

    solver: str | None = None
    levels: str = "t"
    subpaths: int = 50
    gammas: str = "one"
    hop: str = "full"
    reach: float = 1.0
    conditioning: str = "level"
    coupling: str = "linear"
    gamma_input: str | None = None
    student_prediction_type: str = "v_prediction"
    teacher_steps: int = 1
    loss: str = "l2"
    init: str = "teacher"
    teacher: str = "exact"
    updates: int = 2000
    batch: int = 256
    lr: float = 7e-3
    final_lr: float = 0.0
    ema_rate: float = 0.9
    width: int = 128
    depth: int = 3

    def __post_init__(self) -> None:
        check_choice(self.solver, (None, *METHODS), "solver")
        check_choice(self.levels, LEVELS, "levels")
        check_choice(self.init, INITS, "init")
        check_choice(self.teacher, TEACHERS, "teacher")
        check_choice(self.gamma_input, (None, *GAMMA_INPUTS), "gamma_input")
        check_count(self.width, "width")
        check_count(self.depth, "depth")
        if (self.gamma_input is not None) != (self.conditioning == "gamma"):
            raise ValueError(
                f"gamma_input is {self.gamma_input!r} with conditioning={self.conditioning!r}; "
                f"allowed: None with 'level', one of {', '.join(GAMMA_INPUTS)} with 'gamma'"
            )
        self.distill, self.train  # noqa: B018 - both validate their fields

    @property
    def distill(self) -> DistillConfig:
        """The distillation step of this setting."""
        return DistillConfig(**_common(self, DistillConfig))

    @property
    def train(self) -> TrainConfig:
        """The training of this setting."""
        return TrainConfig(**_common(self, TrainConfig))

    def replace(self, **changes: object) -> Setting:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


def _common(setting: Setting, kind: type) -> dict[str, object]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {k: v for k, v in dataclasses.asdict(setting).items() if k in names}


@dataclass(frozen=True)
class Reference:
    """What the students of a data set and seed are measured with.

    Attributes:
        mixture: the data.
        data: clean samples, shape ``(POINTS, 2)``.
        noise: initial noise, shape ``(POINTS, 2)``.
        x: for each of ``TIMES`` and ``BETWEEN``, samples there, shape ``(MAP_POINTS, 2)``.
        end: f* of those, the exact solution map to t = 0.
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
    """A trained student.

    Attributes:
        network: the moving average of its weights.
        distiller: the step it was trained with.
        seconds: wall time of the training.
        skipped: updates that were not finite.
    """

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


def train(setting: Setting, data: str, seed: int) -> Iterator[tuple[int, Student]]:
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
    distiller = SubPathDistiller(schedule, config)
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
    """A student at one moment of its training.

    Attributes:
        samples: drawn in one step, shape ``(B, 2)``.
        errors: mean error to f* at each of ``TIMES``.
    """

    samples: Tensor
    errors: dict[int, float]


def follow(
    setting: Setting,
    data: str,
    seed: int,
    at: Iterable[int],
    on_update: Callable[[int], None] = lambda update: None,
    samples: int = 1500,
) -> tuple[Student, dict[int, Moment]]:
    """Train a student and look at it now and then.

    Args:
        setting: what to train.
        data: name of the data set.
        seed: of everything random.
        at: numbers of updates after which to look.
        on_update: called with the number of updates, after each.
        samples: to draw at each look.

    Returns:
        The student, and what was seen by number of updates.
    """
    points, at = reference(data, seed), set(at)
    moments: dict[int, Moment] = {}
    for update, student in train(setting, data, seed):
        on_update(update)
        if update in at:
            drawn = draw(student, points.noise[:samples], 1, seed)
            moments[update] = Moment(drawn, {t: error(student, points, t) for t in TIMES})
    return student, moments


def measure(student: Student, points: Reference, seed: int) -> dict[str, float]:
    """Distances of the student's samples to the data, and its errors to f*.

    Returns:
        ``sw_n`` and ``ed_n``, sliced Wasserstein and energy distance at n of ``STEPS``; ``map_t``,
        mean of :math:`\\|f_\\theta(x_t, t) - f^*(x_t, t)\\|` at t of ``TIMES`` and ``BETWEEN``.
    """
    found = {}
    for steps in STEPS:
        samples = draw(student, points.noise, steps, seed)
        found |= _distances(samples, points.data, steps)
    return found | {f"map_{t}": error(student, points, t) for t in (*TIMES, *BETWEEN)}


def teacher_samples(
    setting: Setting, mixture: GaussianMixture, noise: Tensor
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


def measure_teacher(setting: Setting, points: Reference) -> dict[str, float]:
    """Distances to the data of the exact teacher's samples with the setting's solver."""
    drawn, found = teacher_samples(setting, points.mixture, points.noise), {}
    for steps in STEPS:
        found |= _distances(drawn(steps), points.data, steps)
    return found


def _distances(samples: Tensor, data: Tensor, steps: int) -> dict[str, float]:
    return {
        f"sw_{steps}": sliced_wasserstein(samples, data, projections=PROJECTIONS),
        f"ed_{steps}": energy_distance(samples[:ENERGY_POINTS], data[:ENERGY_POINTS]),
    }


@cache
def floor(data: str, seed: int) -> dict[str, float]:
    """``sw_1`` and ``ed_1`` of a second sample of the data: no method can be expected below."""
    mixture, clean, _ = _draws(data, seed)
    other = mixture.sample(POINTS, torch.Generator().manual_seed(4_000_000 + seed))
    return _distances(other, clean, 1)


def columns() -> list[str]:
    """Names of the measured numbers, in order."""
    return [f"{metric}_{n}" for metric in ("sw", "ed") for n in STEPS] + [
        f"map_{t}" for t in (*TIMES, *BETWEEN)
    ]


def run(
    setting: Setting, data: str, seed: int, checkpoints: Iterable[int] = ()
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train (unless the setting is a solver) and measure, at the end and at checkpoints.

    Yields:
        Number of updates; the measured numbers, NaN where there is none, ``seconds`` of training
        so far and ``skipped`` updates.

    Raises:
        ValueError: for an unknown data set.
    """
    check_choice(data, DATASETS, "data")
    torch.set_num_threads(1)  # small networks are fastest so, and other runs need the cores
    points = reference(data, seed)
    nothing = dict.fromkeys(columns(), math.nan)
    if setting.solver is not None:
        found = measure_teacher(setting, points)
        yield setting.updates, nothing | found | {"seconds": 0.0, "skipped": 0}
        return
    for after, student in train(setting, data, seed):
        if after in checkpoints or after == setting.updates:
            found = measure(student, points, seed)
            yield after, nothing | found | {"seconds": student.seconds, "skipped": student.skipped}

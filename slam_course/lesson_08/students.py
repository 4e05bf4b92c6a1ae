r"""The study of distilled digits that comes with the course: students, solvers, their numbers.

All students begin as the teacher, get the same samples in the same order with the same draws, and
make as many updates of as many network calls; they differ in one setting. A measured number's name
ends with the number of network calls an image takes, n (a student's step is one call, a guided
step of a solver two), or with a timestep t:

- ``right_n``: fraction of images that are as asked for; ``digit_n``, ``stroke_n`` and
  ``background_n``, its parts;
- ``frechet_teacher_n``, ``kernel_teacher_n``: distances to the teacher's samples from other noise;
  ``frechet_real_n``, ``kernel_real_n``: to held-out real images;
- ``latent_t``, ``pixel_t``: root mean square of :math:`f_\theta(x_t, t) - f^*(x_t, t)` over all
  elements, in latents and in the pixels they decode to (from -1 to 1). :math:`f^*(x_t, t)` is the
  end of the teacher's guided PF-ODE (:func:`solved`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slam_course.figures import SOLVER_NAMES
from slam_course.results import Ratio, paired_ratio
from slam_edu.digits.evaluate import Setting
from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.io import data_path
from slam_edu.prediction import network_predictor
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.sd.components import LatentDiffusion
from slam_edu.seeding import sample_generator
from slam_edu.solver import solve_pf_ode

STEPS = (1, 2, 4, 8)
"""Numbers of steps at which students are measured; a step is one network call."""

TIMES = (999, 759, 499, 259)
"""Timesteps at which students are held against the teacher's solution map: those that sampling
in four steps asks about."""

TEACHER_STEPS = 50
"""DDIM steps of the teacher that the students' samples are held against."""

START = "not distilled"
"""The teacher itself, sampled as a student is: where all students begin. It is not trained."""

CD = "consistency distillation"
RANDOM_HOP = "consistency distillation, random hop"
OFFICIAL = "SLAM, gamma + markov (official)"
HALF_ONE = "SLAM, gamma + markov, half of the gammas at 1"
SMOOTH = "SLAM, smooth gamma + linear"
SLAM = "SLAM, level + linear"
CONTINUED = "SLAM, gamma = 2"

NAMES = (START, CD, RANDOM_HOP, SLAM, CONTINUED, OFFICIAL, HALF_ONE, SMOOTH)
"""The students, in the order of tables and figures."""

DRAWS = 8000
"""Gammas below 1 that :func:`embedding_at_one` compares with: as many as 250 updates of 32."""

_PAIRED = 1000  # points whose neighbours are looked for
_RIDGE = 1e-3  # of the mean variance, so that flat directions count for nothing

# -------------------------------------------------------------------- results


@dataclass(frozen=True, kw_only=True)
class DigitRow:
    """A measured student, or a solver of the teacher under its sampler's name.

    ``gamma`` is empty but for students that are conditioned on gamma: ``shift``, where what they
    add to the timestep's embedding at gamma = 1 lies among the others (:func:`place_among`), and
    ``told``, their errors by the gamma they are given. ``training`` and ``measuring`` are seconds.
    """

    name: str
    settings: dict[str, Any]
    measured: dict[str, float]
    seed: int = 0
    gamma: dict[str, Any] = field(default_factory=dict)
    training: float = 0.0
    measuring: float = 0.0
    skipped: int = 0


class DigitResults:
    """Measured students and solvers, looked up by name.

    Attributes:
        prompts: images a measurement.
        floor: what real images score, with ``_0`` behind the names.
        change: what twice the solver's steps change of the solution map's ends, by timestep.
        names: the students that were measured, in the order of :data:`NAMES`.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.prompts: int = content["about"]["prompts"]
        self.floor: dict[str, float] = content.get("floor", {})
        self.change = {int(t): value for t, value in content.get("change", {}).items()}
        self.rows = [DigitRow(**row) for row in content["rows"]]
        self.names = [name for name in NAMES if self.student(name)]

    def student(self, name: str) -> dict[int, DigitRow]:
        """The rows of a student by seed."""
        found = {row.seed: row for row in self.rows if row.name == name}
        return dict(sorted(found.items()))

    def settings(self, name: str) -> dict[str, Any]:
        """The settings of a student's runs."""
        return next(iter(self.student(name).values())).settings

    def solvers(self) -> list[tuple[Setting, DigitRow]]:
        """The measured solvers of the teacher: first at 50 steps, then by sampler and calls."""
        found = [(Setting(**r.settings), r) for r in self.rows if "sampler" in r.settings]
        return sorted(found, key=lambda s: (s[0].steps != TEACHER_STEPS, s[0].sampler, s[0].calls))

    def number(self, row: DigitRow, metric: str) -> float | None:
        """A measured number of a row; None if there is none.

        The metric ``wrong_n`` is the fraction of images that are not as asked for, counted as
        (wrong + 1/2)/(prompts + 1) so that it has a logarithm.
        """
        if not metric.startswith("wrong_"):
            return row.measured.get(metric)
        right, n = row.measured[metric.replace("wrong", "right")], self.prompts
        return (n * (1 - right) + 0.5) / (n + 1)

    def values(self, name: str, metric: str) -> dict[int, float]:
        """A number of a student by seed."""
        found = {seed: self.number(row, metric) for seed, row in self.student(name).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, name: str, metric: str) -> float:
        """Mean of a number over the seeds; NaN if there is none."""
        values = list(self.values(name, metric).values())
        return float(np.mean(values)) if values else math.nan

    def ratio(self, above: str, below: str, metric: str) -> Ratio | None:
        """The paired ratio of two students over the seeds that both have.

        None where a value is not positive, as an unbiased kernel distance near 0 may be, or no
        seed is shared.
        """
        a, b = self.values(above, metric), self.values(below, metric)
        shared = [seed for seed in a if seed in b]
        if not shared or any(a[i] <= 0 or b[i] <= 0 for i in shared):
            return None
        data = "digits"
        return paired_ratio(
            {(data, i): a[i] for i in shared}, {(data, i): b[i] for i in shared}, [data]
        )


def shipped() -> DigitResults:
    """The results that come with the course."""
    return DigitResults(json.loads(data_path("digits-results/students.json").read_text("utf-8")))


def best_slam(results: DigitResults) -> str | None:
    """The variant of SLAM with the smallest error to the solution map; None without any.

    By the geometric mean over the timesteps, in latents.
    """
    names = [name for name in results.names if name.startswith("SLAM")]

    def error(name: str) -> float:
        return sum(math.log(results.mean(name, f"latent_{t}")) for t in TIMES)

    return min(names, key=error, default=None)


def ahead_of_solvers(results: DigitResults, name: str, most: int = 8) -> dict[int, bool]:
    """Whether a student is ahead of every solver with as many network calls, or fewer.

    Ahead in the fraction as asked for and in the Fréchet distance to the teacher's samples, by
    number of steps up to ``most``.
    """
    found = {}
    for n in (n for n in STEPS if n <= most):
        right, frechet = (results.mean(name, f"{m}_{n}") for m in ("right", "frechet_teacher"))
        found[n] = all(
            right > row.measured[f"right_{s.calls}"]
            and frechet < row.measured[f"frechet_teacher_{s.calls}"]
            for s, row in results.solvers()
            if s.calls <= n
        )
    return found


def errors_given(rows: Sequence[DigitRow], gamma: float) -> list[float]:
    """For each row of a student given this gamma, the mean over timesteps of its latent error."""
    found = [row.gamma["told"][f"{gamma:g}"] for row in rows]
    return [float(np.mean([errors[f"latent_{t}"] for t in TIMES])) for errors in found]


# -------------------------------------------------------------------- a table

#: Measures by network calls: title, number of decimals, and what the numbers are multiplied with.
MEASURES = {
    "right": ("As asked for, %", 1, 100),
    "frechet_teacher": ("Fréchet distance to the teacher's samples", 2, 1),
    "kernel_teacher": ("Kernel distance to the teacher's samples, times 1000", 1, 1000),
    "frechet_real": ("Fréchet distance to held-out real images", 2, 1),
    "kernel_real": ("Kernel distance to held-out real images, times 1000", 1, 1000),
}


def calls_table(results: DigitResults, measure: str) -> str:
    """A measure by network calls: students, solvers, real images; see :data:`MEASURES`."""
    title, digits, scale = MEASURES[measure]
    solvers: dict[str, dict[int, DigitRow]] = {}
    for setting, row in results.solvers():
        solvers.setdefault(setting.sampler, {})[setting.calls] = row
    calls = sorted({*STEPS, *(n for row in solvers.values() for n in row)})

    def cell(values: Sequence[float]) -> str:
        if not values:
            return ""
        mean = float(np.mean(values))
        text = f"{scale * mean:.{digits}f}"
        if measure == "right":
            n = results.prompts * len(values)
            text += f" ± {scale * math.sqrt(mean * (1 - mean) / n):.{digits}f}"
        return text

    rows = [[f"**{title}**", *map(str, calls)], ["---", *["---:"] * len(calls)]]
    for name in results.names:
        found = [list(results.values(name, f"{measure}_{n}").values()) for n in calls]
        rows.append([name, *map(cell, found)])
    for sampler, by_calls in solvers.items():
        found = [[by_calls[n].measured[f"{measure}_{n}"]] if n in by_calls else [] for n in calls]
        rows.append([f"teacher, {SOLVER_NAMES[sampler]}", *map(cell, found)])
    if f"{measure}_0" in results.floor:
        real = [results.floor[f"{measure}_0"]]
        rows.append(["real images", cell(real), *[""] * (len(calls) - 1)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


# -------------------------------------------------------------------- the teacher's solution map


def even_levels(schedule: NoiseSchedule, t: int, steps: int) -> Level:
    r"""``steps + 2`` levels: from timestep t > 0 to 0, even in :math:`\log\rho`, then clean."""
    ends = schedule(torch.tensor([t, 0], device=schedule.device)).rho.double().log()
    log_rho = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, steps + 1).double()
    rho = log_rho.exp().to(schedule.dtype)
    rho[0], rho[-1] = schedule.rho[t], schedule.rho[0]  # the table's own, to the last bit
    return Level.cat([Level.from_rho(rho), Level.clean(rho[:1])])


@torch.no_grad()
def solved(
    model: LatentDiffusion,
    x: Tensor,
    t: int,
    cond: Tensor,
    guidance: float,
    steps: int,
    batch: int = 100,
) -> Tensor:
    """The ends of the teacher's guided PF-ODE from latents x at timestep t, of x's shape.

    Text states ``cond`` have shape (n, L, D). The solver is DPM-Solver++(2M) with ``steps`` from t
    to 0; a last one goes to the clean level.
    """
    levels, ends = even_levels(model.schedule, t, steps), []
    empty = model.encode_prompts("") if guidance else None
    for part, states in zip(x.split(batch), cond.split(batch), strict=True):
        predictor = network_predictor(
            model.network, model.schedule, prediction_type=model.prediction_type, cond=states,
            uncond=None if empty is None else empty.expand_as(states), guidance=guidance,
        )  # fmt: skip
        for state in solve_pf_ode(predictor, part, levels, "dpmpp_2m"):
            end = state.x
        ends.append(end)
    return torch.cat(ends)


# -------------------------------------------------------------------- the embedding of gamma at 1


def drawn_gammas(draws: int = DRAWS, seed: int = 0) -> Tensor:
    """Gammas uniform on [0, 1), of shape (draws,), float64."""
    return torch.rand(draws, generator=sample_generator(seed), dtype=torch.float64)


def embedding_at_one(
    gamma_input: str = "official", draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    r"""Where the features of :math:`\gamma = 1` lie among those of drawn gammas.

    Returns:
        the numbers of :func:`place_among`, and ``seen``, how many of the draws have features whose
        cosine with those at 1 is above .9 (NaN where the features at 1 are zero).
    """
    features = GAMMA_INPUTS[gamma_input]
    below = features(drawn_gammas(draws, seed))
    one, zero = features(torch.tensor([1.0, 0.0], dtype=torch.float64))
    cosine = torch.cosine_similarity(below, one[None])
    seen = float((cosine > 0.9).sum()) if one.any() else float("nan")
    return place_among(below, one, zero) | {"seen": seen}


def cosines_to_one(gammas: Sequence[float]) -> list[float]:
    r"""Cosines between the official features of :math:`\gamma = 1` and of others."""
    given = torch.tensor([1.0, *gammas], dtype=torch.float64)
    e = GAMMA_INPUTS["official"](given)
    return torch.cosine_similarity(e[1:], e[:1]).tolist()


def place_among(below: Tensor, one: Tensor, zero: Tensor) -> dict[str, float]:
    """Where the vectors ``one`` and ``zero`` lie among the rows of ``below``, (n, F), float64.

    Lengths (``norm_*``); distances to the mean of all below, of these their mean and 99 % quantile
    (``distance_*``); distances to the nearest neighbour (``nearest_*``); squared Mahalanobis
    distances to the mean, how far a linear layer fitted below may be off (``leverage_*``).
    """
    mean = below.mean(0)
    away = (below - mean).norm(dim=1)
    # Each of some points against all others; its distance to itself is left out.
    some = torch.cdist(below[:_PAIRED], below)
    some[torch.arange(len(some)), torch.arange(len(some))] = float("inf")
    covariance = torch.cov(below.T)
    ridge = _RIDGE * covariance.trace() / len(covariance) + torch.finfo(below.dtype).tiny
    inverse = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance), dtype=below.dtype))

    def leverage(x: Tensor) -> Tensor:
        return torch.einsum("bi,ij,bj->b", x - mean, inverse, x - mean)

    below_1 = leverage(below)
    numbers = {
        "norm_one": one.norm(),
        "norm_mean": below.norm(dim=1).mean(),
        "distance_one": (one - mean).norm(),
        "distance_mean": away.mean(),
        "distance_p99": away.quantile(0.99),
        "nearest_one": (below - one).norm(dim=1).min(),
        "nearest_median": some.amin(1).median(),
        "leverage_one": leverage(one[None])[0],
        "leverage_zero": leverage(zero[None])[0],
        "leverage_mean": below_1.mean(),
        "leverage_p99": below_1.quantile(0.99),
    }
    return {name: float(value) for name, value in numbers.items()}

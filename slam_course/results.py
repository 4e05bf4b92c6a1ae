r"""Results that come with the course, and paired ratios of what was measured.

Two settings are compared on the same data sets and seeds: for data set d and seed i, with measured
numbers :math:`a_{di}` and :math:`b_{di}`,

.. math:: L_i = \frac1D \sum_d \log\frac{a_{di}}{b_{di}},

and the ratio is :math:`\exp \bar L` with the 95 % interval of Student's t over the seeds,
:math:`\exp(\bar L \pm t_{n-1}\, s_L/\sqrt n)`. Pairing removes what the seeds share: initial
weights, batches, noise. The data sets are taken as given: the interval says how sure the ratio is
for these, not how it would be for others.

The rows of the study in the plane are in ``data/study/runs.csv``: every field of
:class:`ToySetting`, data set, seed, number of updates ``after`` which was measured, the measured
numbers (empty where there is none), seconds.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from slam_course.ablations import GAMMA_LAWS
from slam_edu._validation import check_choice
from slam_edu.distill import DistillConfig
from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.io import data_path
from slam_edu.solver import METHODS as SOLVERS
from slam_edu.training import TrainConfig


@dataclass(frozen=True)
class Ratio:
    """A paired ratio with its 95 % interval (NaN with a single seed); below 1: a is better."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The ratio with its interval, such as ``0.82 [0.78, 0.86]``."""
        if math.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(
    above: Mapping[tuple[str, int], float], below: Mapping[tuple[str, int], float],
    data: Sequence[str],
) -> Ratio:  # fmt: skip
    """The paired ratio of two sets of positive numbers by data set and seed; see the module.

    Raises:
        ValueError: if no seed has both on all of these data sets.
    """
    seeds = sorted(
        {seed for _, seed in above if all((d, seed) in above and (d, seed) in below for d in data)}
    )
    if not seeds:
        raise ValueError(
            f"no seed was run for both settings on all of {', '.join(data)}; run the study"
        )
    logs = np.array([[math.log(above[d, i] / below[d, i]) for i in seeds] for d in data])  # (D, n)
    each = logs.mean(axis=0)
    half = math.nan
    if len(seeds) > 1:
        half = stats.t.ppf(0.975, len(seeds) - 1) * each.std(ddof=1) / len(seeds) ** 0.5
    value = each.mean()
    return Ratio(math.exp(value), math.exp(value - half), math.exp(value + half))


# -------------------------------------------------------------------- the study in the plane

STEPS = (1, 2, 4, 8)
"""Numbers of steps at which samples are measured."""

TIMES = (999, 799, 499, 299, 99)
BETWEEN = (987, 787, 487, 287, 87)
"""Timesteps at which the student is held against the exact solution map f*: noisy ends of every
grid of the study, and timesteps that are on none of them."""

CHOSEN_ON = "spiral"
"""The data set on which settings were chosen; all figures are of the others."""

HELD_OUT = ("ring", "two_moons", "pinwheel", "checkerboard")
"""The data sets that had no part in any choice."""


@dataclass(frozen=True, kw_only=True)
class ToySetting:
    r"""What is compared in the plane: a distillation, or with ``solver`` the exact teacher itself.

    Fields with a name of :class:`slam_edu.distill.DistillConfig` or
    :class:`slam_edu.training.TrainConfig` mean what they mean there; ``gammas`` may also be a name
    of :data:`slam_course.ablations.GAMMA_LAWS`. The default is consistency distillation
    (``gammas="one"``) at N = 50.

    Attributes:
        solver: None for a student; a solver of :data:`slam_edu.solver.METHODS` for the teacher.
        levels: of the solver: ``"t"``, evenly spaced timesteps, or ``"log_rho"``.
        hop: ``"full"``, or ``"random"``: :class:`slam_course.ablations.RandomHopDistiller`.
        init: where the student's weights begin: ``"teacher"``, a trained diffusion model, or
            ``"random"``.
        teacher: whom it learns from: ``"exact"``, or ``"learned"``, the same diffusion model.
        gamma_input: of :class:`slam_edu.toy.networks.LevelMLP`, for ``conditioning="gamma"``.

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
        check_choice(self.solver, (None, *SOLVERS), "solver")
        check_choice(self.levels, ("t", "log_rho"), "levels")
        check_choice(self.hop, ("full", "random"), "hop")
        check_choice(self.gammas, ("uniform", "one", *GAMMA_LAWS), "gammas")
        check_choice(self.init, ("teacher", "random"), "init")
        check_choice(self.teacher, ("exact", "learned"), "teacher")
        check_choice(self.gamma_input, (None, *GAMMA_INPUTS), "gamma_input")
        if (self.gamma_input is not None) != (self.conditioning == "gamma"):
            raise ValueError(
                f"gamma_input is {self.gamma_input!r} with conditioning={self.conditioning!r}; "
                f"allowed: None with 'level', one of {', '.join(GAMMA_INPUTS)} with 'gamma'"
            )
        self.distill, self.train  # noqa: B018 - both validate their fields

    @property
    def distill(self) -> DistillConfig:
        """The distillation step of this setting."""
        shared = self._shared(DistillConfig)
        return DistillConfig(**shared | {"gammas": GAMMA_LAWS.get(self.gammas, self.gammas)})

    @property
    def train(self) -> TrainConfig:
        """The training of this setting."""
        return TrainConfig(**self._shared(TrainConfig))

    def _shared(self, kind: type) -> dict[str, object]:
        names = {field.name for field in dataclasses.fields(kind)}
        return {k: v for k, v in dataclasses.asdict(self).items() if k in names}

    def replace(self, **changes: object) -> ToySetting:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


CD = ToySetting()
"""Consistency distillation, N = 50; learning rate and EMA rate were chosen as its best."""

SLAM = CD.replace(gammas="uniform")
"""The paper's interpolation in this project's form: level conditioning, linear coupling."""

CONTINUED = CD.replace(reach=2.0)
r"""The chord continued past x_t to :math:`\gamma = 2`: its slope is that of the hop's middle."""

SPREAD = CD.replace(reach=3.0, gammas="upper_half")
"""The chord continued, gamma uniform on [1.5, 3]."""

RANDOM_HOP = CD.replace(gammas="uniform", hop="random")
"""Consistency distillation whose hop is drawn from 1 ... k timesteps."""

METHODS = {
    "CD": CD,
    "SLAM": SLAM,
    "SLAM, gamma = 2": CONTINUED,
    "SLAM, gamma in [1.5, 3]": SPREAD,
    "random hop": RANDOM_HOP,
}
"""The students that every sweep compares."""


@dataclass(frozen=True)
class ToyRow:
    """One measured student in the plane.

    ``after`` is the number of updates after which it was measured, ``setting.updates`` at the end
    of a run; ``measured`` has NaN where there is no number; ``seconds`` are those of training, and
    ``skipped`` updates were not finite.
    """

    setting: ToySetting
    data: str
    seed: int
    after: int
    measured: dict[str, float]
    seconds: float = 0.0
    skipped: int = 0

    @property
    def key(self) -> tuple[ToySetting, str, int, int]:
        """What identifies the row."""
        return self.setting, self.data, self.seed, self.after


def toy_columns() -> list[str]:
    """Names of the measured numbers, in order: ``sw_n``, ``ed_n``, ``map_t``."""
    return [f"{metric}_{n}" for metric in ("sw", "ed") for n in STEPS] + [
        f"map_{t}" for t in (*TIMES, *BETWEEN)
    ]


_FIELDS = {field.name: field for field in dataclasses.fields(ToySetting)}
_KINDS = {"int": int, "float": float, "str": str, "str | None": lambda word: word or None}


def toy_header() -> list[str]:
    """The header of the file of rows."""
    return ["data", "seed", "after", *_FIELDS, *toy_columns(), "seconds", "skipped"]


def read_toy_rows(path: Path) -> list[ToyRow]:
    """All rows of a results file; none if the file is not there.

    Raises:
        ValueError: for another header, or a row that cannot be read; it names file and line.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if lines.fieldnames != toy_header():
            odd = sorted(set(lines.fieldnames or ()) ^ set(toy_header()))
            raise ValueError(f"{path} differs in the columns {odd}; allowed: {toy_header()}")
        rows = []
        for line in lines:
            try:
                rows.append(_toy_row(line))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {lines.line_num}: {error}") from error
    return rows


def _toy_row(line: Mapping[str, str]) -> ToyRow:
    setting = ToySetting(**{name: _KINDS[f.type](line[name]) for name, f in _FIELDS.items()})
    measured = {name: float(line[name] or "nan") for name in toy_columns()}
    return ToyRow(
        setting, line["data"], int(line["seed"]), int(line["after"]), measured,
        float(line["seconds"]), int(line["skipped"]),
    )  # fmt: skip


def toy_results() -> ToyResults:
    """The study in the plane that comes with the course."""
    return ToyResults(read_toy_rows(data_path("study/runs.csv")))


class ToyResults:
    """Rows looked up by what was run."""

    def __init__(self, rows: Iterable[ToyRow]) -> None:
        self._by_key = {row.key: row.measured for row in rows}

    def values(
        self, setting: ToySetting, data: Sequence[str], metric: str, after: int | None = None
    ) -> dict[tuple[str, int], float]:
        """A metric by data set and seed, after some updates or at the end of the run."""
        after = setting.updates if after is None else after
        return {
            (name, seed): measured[metric]
            for (its, name, seed, when), measured in self._by_key.items()
            if its == setting and name in data and when == after
        }

    def mean(
        self, setting: ToySetting, data: Sequence[str], metric: str, after: int | None = None
    ) -> float:
        """Geometric mean of the metric over data sets and seeds; NaN if nothing is there."""
        values = list(self.values(setting, data, metric, after).values())
        return float(np.exp(np.mean(np.log(values)))) if values else math.nan

    def by_seed(
        self, setting: ToySetting, data: Sequence[str], metric: str, after: int | None = None
    ) -> list[float]:
        """For each seed that ran on all data sets the geometric mean over them."""
        values = self.values(setting, data, metric, after)
        seeds = sorted({seed for _, seed in values if all((d, seed) in values for d in data)})
        return [float(np.exp(np.mean([np.log(values[d, seed]) for d in data]))) for seed in seeds]

    def ratio(
        self, above: ToySetting, below: ToySetting, data: Sequence[str], metric: str,
        after: int | None = None,
    ) -> Ratio:  # fmt: skip
        """The paired ratio of two settings; see :func:`paired_ratio`."""
        a = self.values(above, data, metric, after)
        b = self.values(below, data, metric, after)
        return paired_ratio(a, b, data)

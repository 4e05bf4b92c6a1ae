"""What the study compares: named settings in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slam_course.lesson_05.students import BUDGET, CHECKPOINTS, GAMMAS, MAIN, SUBPATHS
from slam_course.results import CHOSEN_ON, HELD_OUT, METHODS, ToySetting

SWEPT = ("CD", "SLAM", "SLAM, gamma = 2")
TWO = ("two_moons", "checkerboard")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that are compared with each other.

    Attributes:
        name: of the group, as the command takes it.
        title: what is compared, for the report.
        settings: by name, in the order of the report.
        pairs: which ratios are reported: names of numerator and denominator.
        data: names of the data sets.
        seeds: most seeds that it runs with.
        checkpoints: updates after which every student is measured besides its end.
    """

    name: str
    title: str
    settings: Mapping[str, ToySetting]
    pairs: Sequence[tuple[str, str]]
    data: tuple[str, ...] = TWO
    seeds: int = 4
    checkpoints: tuple[int, ...] = ()

    @property
    def held_out(self) -> tuple[str, ...]:
        """The data sets without the one on which settings were chosen, unless it is alone."""
        return tuple(name for name in self.data if name != CHOSEN_ON) or self.data


def _to_cd(names: Sequence[str]) -> list[tuple[str, str]]:
    """The ratios of all to consistency distillation with the same settings."""
    family = {name: "; ".join(["CD", *name.split("; ")[1:]]) for name in names}
    return [(name, cd) for name, cd in family.items() if name != cd]


def _sweep(name: str, title: str, field: str, values: Sequence[object]) -> Group:
    settings = {
        f"{method}; {field} = {value}": METHODS[method].replace(**{field: value})
        for value in values
        for method in SWEPT
    }
    return Group(name=name, title=title, settings=settings, pairs=_to_cd(list(settings)))


_CHOSEN = {
    f"{name}; lr = {lr}, EMA {rate}": METHODS[name].replace(lr=lr, ema_rate=rate)
    for lr in (1e-3, 3e-3, 7e-3)
    for rate in (0.9, 0.95, 0.98)
    for name in ("CD", "SLAM, gamma = 2", "SLAM, gamma in [1.5, 3]")
}

_ALL = (
    Group(
        name="main",
        title="All methods at equal cost",
        seeds=8,
        data=(CHOSEN_ON, *HELD_OUT),
        settings=MAIN,
        pairs=[
            ("SLAM", "CD"),
            ("SLAM, gamma = 2", "CD"),
            ("SLAM, gamma in [1.5, 3]", "CD"),
            ("random hop", "CD"),
            ("CD, N = 25", "CD"),
            ("CD, N = 100", "CD"),
            ("CD, N = 200", "CD"),
            ("SLAM", "random hop"),
            ("SLAM, level + markov", "SLAM"),
            ("SLAM, gamma + linear", "SLAM"),
            ("SLAM, gamma + markov", "SLAM"),
            ("SLAM, smooth gamma + linear", "SLAM"),
            ("CD, 4 teacher steps", "CD"),
            ("SLAM, 4 teacher steps", "SLAM"),
            ("SLAM, gamma = 2", "CD, 4 teacher steps"),
        ],
    ),
    Group(
        name="subpaths",
        title="Number N of sub-paths",
        seeds=8,
        settings=SUBPATHS,
        pairs=_to_cd(list(SUBPATHS)),
    ),
    Group(
        name="budget",
        title="Number of updates, at a constant learning rate",
        checkpoints=CHECKPOINTS,
        settings=BUDGET,
        pairs=_to_cd(list(BUDGET)),
    ),
    Group(
        name="gammas",
        title="How gamma is drawn",
        settings=GAMMAS,
        pairs=[(name, "CD") for name in GAMMAS if name != "CD"],
    ),
    Group(
        name="noise",
        title="Noisy weights: a constant learning rate of 0.01",
        settings={name: METHODS[name].replace(lr=1e-2, final_lr=1.0) for name in SWEPT},
        pairs=_to_cd(SWEPT),
    ),
    _sweep("teacher", "A learned teacher", "teacher", ("learned",)),
    _sweep("init", "From random weights", "init", ("random",)),
    _sweep(
        "prediction", "What the student predicts", "student_prediction_type",
        ("v_prediction", "epsilon", "sample"),
    ),
    _sweep("ema", "Rate of the target's moving average", "ema_rate", (0.9, 0.95, 0.98)),
    _sweep("loss", "Loss", "loss", ("l2", "huber")),
    Group(
        name="choose",
        title=f"Learning rate and EMA rate, on the data set {CHOSEN_ON} alone",
        data=(CHOSEN_ON,),
        seeds=2,
        settings=_CHOSEN,
        pairs=_to_cd(list(_CHOSEN)),
    ),
)  # fmt: skip

GROUPS = {group.name: group for group in _ALL}
"""The study, in the order in which it is run and reported."""

QUICK = Group(
    name="quick",
    title="A small form of the study",
    seeds=2,
    settings={name: METHODS[name].replace(updates=1000) for name in METHODS}
    | {name: MAIN[name] for name in ("DDIM", "DPM-Solver++")},
    pairs=[(name, "CD") for name in METHODS if name != "CD"],
)
"""What ``--quick`` runs, in a few minutes."""

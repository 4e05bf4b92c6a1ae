"""What the study compares: named settings in groups, and the runs that they need."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from slam_course.lesson_05 import students
from slam_course.results import CHOSEN_ON, HELD_OUT, METHODS, ToySetting


@dataclass(frozen=True)
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
    data: tuple[str, ...]
    seeds: int = 4
    checkpoints: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """One run: a setting on a data set with a seed."""

    setting: ToySetting
    data: str
    seed: int
    checkpoints: tuple[int, ...] = ()

    def done(self, keys: Container[tuple]) -> bool:
        """Whether all of its rows are among these keys of rows."""
        wanted = {*self.checkpoints, self.setting.updates}
        return all((self.setting, self.data, self.seed, after) in keys for after in wanted)


def jobs(groups: Sequence[Group], seeds: int) -> list[Job]:
    """All runs of the groups, each once, in the groups' order, seeds 0 ... seeds - 1."""
    found: dict[tuple, Job] = {}
    for group in groups:
        for data in group.data:
            for seed in range(min(seeds, group.seeds)):
                for setting in group.settings.values():
                    key = (setting, data, seed)
                    known = found[key].checkpoints if key in found else ()
                    found[key] = Job(*key, tuple(sorted({*known, *group.checkpoints})))
    return list(found.values())


# -------------------------------------------------------------------- what is compared

_SWEPT = ("CD", "SLAM", "SLAM, gamma = 2")
_TWO = ("two_moons", "checkerboard")


def _varied(
    field: str, values: Sequence[object], methods: Sequence[str] = _SWEPT
) -> tuple[dict[str, ToySetting], list[tuple[str, str]]]:
    """The methods with a field set to each of the values, and their ratios to CD at each."""
    settings, pairs = {}, []
    for value in values:
        names = [f"{name}; {field} = {value}" for name in methods]
        for name, method in zip(names, methods, strict=True):
            settings[name] = METHODS[method].replace(**{field: value})
        pairs += [(name, names[0]) for name in names[1:]]
    return settings, pairs


def _sweep(
    name: str, title: str, field: str, values: Sequence[object], data: tuple[str, ...] = _TWO,
    methods: Sequence[str] = _SWEPT, **more: object,
) -> Group:  # fmt: skip
    settings, pairs = _varied(field, values, methods)
    return Group(name=name, title=title, settings=settings, pairs=pairs, data=data, **more)


MAIN = Group(
    name="main",
    title="All methods at equal cost",
    seeds=8,
    data=(CHOSEN_ON, *HELD_OUT),
    settings=students.MAIN,
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
)

SUBPATHS = _sweep(
    "subpaths",
    "Number N of sub-paths",
    "subpaths",
    (10, 20, 50, 100),
    methods=(*_SWEPT, "random hop"),
    seeds=8,
)

GAMMAS = Group(
    name="gammas",
    title="How gamma is drawn",
    data=_TWO,
    settings=students.GAMMAS,
    pairs=[
        (name, "CD")
        for name in (
            "uniform on [0, 1]", "half at 1", "toward 1", "toward 0", "uniform on [0, 2]",
            "uniform on [1, 2]", "all at 2", "uniform on [1.5, 3]", "all at 3",
        )
    ],
)  # fmt: skip

BUDGET = Group(
    name="budget",
    title="Number of updates, at a constant learning rate",
    data=_TWO,
    checkpoints=students.CHECKPOINTS,
    settings=students.BUDGET,
    pairs=[(name, "CD") for name in ("SLAM", "SLAM, gamma = 2", "random hop")],
)

NOISE = Group(
    name="noise",
    title="Noisy weights: a constant learning rate of 0.01",
    data=_TWO,
    settings={name: METHODS[name].replace(lr=1e-2, final_lr=1.0) for name in _SWEPT},
    pairs=[(name, "CD") for name in _SWEPT[1:]],
)

CHOOSE = Group(
    name="choose",
    title=f"Learning rate and EMA rate, on the data set {CHOSEN_ON} alone",
    data=(CHOSEN_ON,),
    seeds=2,
    settings={
        f"{name}; lr = {lr}, EMA {rate}": METHODS[name].replace(lr=lr, ema_rate=rate)
        for lr in (1e-3, 3e-3, 7e-3)
        for rate in (0.9, 0.95, 0.98)
        for name in ("CD", "SLAM, gamma = 2", "SLAM, gamma in [1.5, 3]")
    },
    pairs=[
        (f"{name}; lr = {lr}, EMA {rate}", f"CD; lr = {lr}, EMA {rate}")
        for lr in (1e-3, 3e-3, 7e-3)
        for rate in (0.9, 0.95, 0.98)
        for name in ("SLAM, gamma = 2", "SLAM, gamma in [1.5, 3]")
    ],
)

GROUPS = {
    group.name: group
    for group in (
        MAIN,
        SUBPATHS,
        BUDGET,
        GAMMAS,
        NOISE,
        _sweep("teacher", "A learned teacher", "teacher", ("learned",)),
        _sweep("init", "From random weights", "init", ("random",)),
        _sweep(
            "prediction", "What the student predicts", "student_prediction_type",
            ("v_prediction", "epsilon", "sample"),
        ),
        _sweep("ema", "Rate of the target's moving average", "ema_rate", (0.9, 0.95, 0.98)),
        _sweep("loss", "Loss", "loss", ("l2", "huber")),
        CHOOSE,
    )
}  # fmt: skip
"""The study, in the order in which it is run and reported."""

QUICK = Group(
    name="quick",
    title="A small form of the study",
    data=("two_moons", "checkerboard"),
    seeds=2,
    settings={name: METHODS[name].replace(updates=1000) for name in METHODS}
    | {name: MAIN.settings[name] for name in ("DDIM", "DPM-Solver++")},
    pairs=[(name, "CD") for name in METHODS if name != "CD"],
)
"""What ``--quick`` runs, in a few minutes."""

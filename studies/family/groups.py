"""What the family study compares: settings by label, in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slam_course.family import METHODS
from slam_course.family.costs import cost
from slam_course.family.results import HELD_OUT, Choice
from slam_course.family.training import HARD
from studies.family.runs import Job

CD, MIDDLE = "consistency distillation", "SLAM, middle slope"
MAPPED = (
    CD, "SLAM (paper)", "SLAM, level-conditioned", MIDDLE,
    "consistency trajectory (CTM / TCD)", "progressive distillation",
)  # fmt: skip
"""The methods whose dependence on N, budget, teacher and loss is measured."""

PAIR = ("two_moons", "checkerboard")
NAMES = ("main", "subpaths", "updates", "teacher", "budget", "loss", "hard")
"""Of the groups, in the order in which they are run and reported."""

COST = Choice.cost
COSTS = (2_500, 5_000, 10_000, 20_000, 40_000, 80_000)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that are compared with each other.

    ``settings`` are by label; ``below`` says with which label each is compared, by default with
    consistency distillation's; ``seeds`` is the most that it runs with.
    """

    title: str
    settings: Mapping[str, Choice]
    data: Sequence[str]
    seeds: int
    below: Mapping[str, str]

    def jobs(self, seeds: int) -> list[Job]:
        """All of its runs."""
        return [
            Job(setting, data, seed)
            for data in self.data
            for seed in range(min(seeds, self.seeds))
            for setting in self.settings.values()
        ]


def groups(chosen: Mapping[str, Choice]) -> dict[str, Group]:
    """The study, in the order in which it is run, from what was chosen for each method."""
    there = {name: chosen[name] for name in METHODS if name in chosen}
    mapped = {name: there[name] for name in MAPPED if name in there}

    def swept(field: str, values: Sequence[object], names: Mapping[str, Choice]):
        settings = {
            f"{name}; {field} = {value}": s.replace(**{field: value})
            for value in values for name, s in names.items()
        }  # fmt: skip
        below = {label: "; ".join([CD, label.split("; ")[1]]) for label in settings}
        return {"settings": settings, "below": below}

    with_grid = {name: s for name, s in mapped.items() if "subpaths" in METHODS[name].tuned}
    flat = dict.fromkeys(there, CD)
    return {
        "main": Group(
            title="All methods at their own best, at equal cost", settings=there, below=flat,
            data=HELD_OUT, seeds=8,
        ),
        "subpaths": Group(
            title="Number N of sub-paths", data=PAIR, seeds=4,
            **swept("subpaths", (5, 10, 20, 50, 100), with_grid),
        ),
        "updates": Group(
            title="At 2,000 updates, whatever they cost", data=PAIR, seeds=4, below=flat,
            settings={
                # At the usual cost of an update these are the runs of "main".
                name: s if cost(name) * METHODS[name].share == COST / 2000
                else s.replace(cost=0.0, updates=2000)
                for name, s in there.items()
            },
        ),
        "teacher": Group(
            title="A learned teacher", data=PAIR, seeds=4,
            **swept("teacher", ("learned",), mapped),
        ),
        "budget": Group(
            title="Budget", data=PAIR, seeds=4, **swept("cost", COSTS, mapped)
        ),
        "loss": Group(
            title="Loss", data=PAIR, seeds=4, **swept("loss", ("l2", "huber"), mapped)
        ),
        "hard": Group(
            title="The same on harder data", settings=there, below=flat, data=tuple(HARD), seeds=4
        ),
    }  # fmt: skip

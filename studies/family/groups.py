"""What the family study compares: settings by label, in groups."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slam_course.family import METHODS
from slam_course.family.costs import cost
from slam_course.family.guidance import GUIDED
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
VARIANTS = tuple(name for name in METHODS if name.startswith(f"{MIDDLE}, "))
WEIGHTS = {f"guidance-{name.split()[-1]}": (name,) for name in GUIDED}
TEACHERS = ("learned", "learned 1000", "learned 300")
NAMES = (
    "main", "subpaths", "updates", "teacher", "budget", "loss", "hard", "middle", "teachers",
    *WEIGHTS,
)  # fmt: skip
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

    def swept(names: Mapping[str, Choice], to: str = CD, **fields: Sequence[object]):
        """The settings with all combinations of the fields; each below ``to``'s with them."""
        settings, below = {}, {}
        for values in itertools.product(*fields.values()):
            changed = dict(zip(fields, values, strict=True))
            what = "".join(f"; {field} = {value}" for field, value in changed.items())
            settings |= {name + what: s.replace(**changed) for name, s in names.items()}
            below |= dict.fromkeys((name + what for name in names), to + what)
        return {"settings": settings, "below": below}

    with_grid = {name: s for name, s in mapped.items() if "subpaths" in METHODS[name].tuned}
    flat = dict.fromkeys(there, CD)
    two = {name: there[name] for name in (CD, MIDDLE) if name in there}
    of_middle = {
        name: there[MIDDLE].replace(method=name)
        for name in (MIDDLE, *VARIANTS) if MIDDLE in there
    }  # fmt: skip
    return {
        "main": Group(
            title="All methods at their own best, at equal cost", settings=there, below=flat,
            data=HELD_OUT, seeds=8,
        ),
        "subpaths": Group(
            title="Number N of sub-paths", data=PAIR, seeds=4,
            **swept(with_grid, subpaths=(5, 10, 20, 50, 100)),
        ),
        "updates": Group(
            title="At 2,000 updates, whatever they cost", data=PAIR, seeds=4, below=flat,
            settings={
                # At the usual cost of an update these are the runs of "main".
                name: s
                if cost(name, s.subpaths, s.pieces) * METHODS[name].share == COST / 2000
                else s.replace(cost=0.0, updates=2000)
                for name, s in there.items()
            },
        ),
        "teacher": Group(
            title="A learned teacher", data=PAIR, seeds=4,
            **swept(mapped, teacher=("learned",)),
        ),
        "budget": Group(
            title="Budget", data=PAIR, seeds=4, **swept(mapped, cost=COSTS)
        ),
        "loss": Group(
            title="Loss", data=PAIR, seeds=4, **swept(mapped, loss=("l2", "huber"))
        ),
        "hard": Group(
            title="The same on harder data", settings=there, below=flat, data=tuple(HARD), seeds=4
        ),
        "middle": Group(
            title="What follows from the slope of the middle", data=PAIR, seeds=2,
            **swept(of_middle, MIDDLE, subpaths=(4, 5, 10, 20)),
        ),
        "teachers": Group(
            title="The teacher's error", data=PAIR, seeds=2,
            **swept(two, subpaths=(10, 20, 50), teacher=TEACHERS),
        ),
        **{
            name: Group(
                title=f"An exact guided teacher: {data[0]}", data=data, seeds=4,
                **swept(two, subpaths=(5, 10, 20, 50)),
            )
            for name, data in WEIGHTS.items()
        },
    }  # fmt: skip

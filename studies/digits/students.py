"""What the study of students compares: students by name, and the solvers beside them.

All students begin as the teacher, get the same samples in the same order with the same draws
(sample n of a run has a generator of (seed, n)), and make as many updates of as many network
calls: two of the teacher, one of the target, one of the student with its gradient. They differ in
the settings below and in nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam_course.ablations import GAMMA_LAWS, RandomHopDistiller
from slam_course.lesson_08.students import (
    CD,
    CONTINUED,
    HALF_ONE,
    OFFICIAL,
    RANDOM_HOP,
    SLAM,
    SMOOTH,
    START,
    TEACHER_STEPS,
)
from slam_edu._validation import check_choice, check_count
from slam_edu.digits.evaluate import SAMPLERS, Setting
from slam_edu.distill import DistillConfig, SubPathDistiller
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.config import RULES, SDConfig, load_config

GUIDANCE = 3.0
"""w, distilled into the students and used by the solvers; diffusers' guidance_scale is 4."""

SHARED = (
    "updates=200", "batch=16", "lr=1e-4", "loss=huber", "ema_rate=0.95", f"guidance={GUIDANCE}",
)  # fmt: skip
"""Settings of every student."""

SEEDS = 3
RUNS, CACHE = "runs", "cache"
"""Folders of the runs and of the data in the study's folder."""

_GAMMA = ("conditioning=gamma", "coupling=markov")
_LEVEL = ("conditioning=level", "coupling=linear")

SETTINGS: dict[str, tuple[str, ...]] = {
    CD: ("method=lcd", *_LEVEL, "gammas=one"),
    RANDOM_HOP: _LEVEL,
    SLAM: _LEVEL,
    CONTINUED: (*_LEVEL, "reach=2", "gammas=one"),
    OFFICIAL: _GAMMA,
    HALF_ONE: _GAMMA,
    SMOOTH: ("conditioning=gamma", "coupling=linear", "gamma_input=smooth"),
}
"""What each student adds to ``SHARED``. The chord continued to gamma = 2 is this course's own."""

ABLATED = {RANDOM_HOP: {"hop": "random"}, HALF_ONE: {"gammas": "half_one"}}
"""What no setting says, as rows name it: these students have a distiller of their own."""


def half_one_distiller(schedule: NoiseSchedule, config: DistillConfig) -> SubPathDistiller:
    """The step with half of the gammas at 1."""
    return SubPathDistiller(schedule, config.replace(gammas=GAMMA_LAWS["half_one"]))


DISTILLERS = {RANDOM_HOP: RandomHopDistiller, HALF_ONE: half_one_distiller}

PAIRS: tuple[tuple[str, str], ...] = (
    *((name, CD) for name in (*SETTINGS, START) if name != CD),
    (HALF_ONE, OFFICIAL),
    (SMOOTH, OFFICIAL),
)
"""Which ratios are reported: numerator and denominator."""


@dataclass(frozen=True, kw_only=True)
class StudentPlan:
    """A study of students.

    Attributes:
        changes: settings as ``name=value`` on top of what all students share.
        names: of the students.
        seeds: of each student, 0 ... seeds-1.
        prompts: images that are drawn for a measurement, 2 to 2,000.
        points: of the solution map, at each of its timesteps; at most ``prompts``.
        solver_steps: of the solver that follows it.
        samplers: solvers of the teacher beside the students.

    Raises:
        ValueError: for a value that is not allowed; it names the value and the allowed set.
    """

    changes: tuple[str, ...] = ()
    names: tuple[str, ...] = tuple(SETTINGS)
    seeds: int = SEEDS
    prompts: int = 400
    points: int = 128
    solver_steps: int = 40
    samplers: tuple[str, ...] = SAMPLERS

    def __post_init__(self) -> None:
        check_count(self.seeds, "seeds")
        check_count(self.prompts, "prompts", low=2, high=2000)
        check_count(self.points, "points", high=self.prompts)
        for name in self.names:  # their settings are checked too
            self.config(name, 0)

    @property
    def guidance(self) -> float:
        """w, of students, solvers and the solution map."""
        return self.config(self.names[0], 0).distillation.guidance

    @property
    def solvers(self) -> list[Setting]:
        """The teacher as it is drawn with: at 50 steps, and at 1, 2, 4, 8 and 16 network calls."""
        w = self.guidance
        # One call is a step without guidance; the others are guided, two calls a step.
        few = ((1, 0.0), (1, w), (2, w), (4, w), (8, w))
        wanted = [("ddim", TEACHER_STEPS, w)]
        wanted += [(sampler, *rest) for sampler in self.samplers for rest in few]
        return list(dict.fromkeys(Setting(sampler=a, steps=n, guidance=g) for a, n, g in wanted))

    def config(self, name: str, seed: int, out: Path | None = None) -> SDConfig:
        """The configuration of a student's run.

        ``out`` is the study's folder, in which the run lies, and the cache of the data that all
        runs share; None: for what the run is, wherever it lies.
        """
        check_choice(name, SETTINGS, "the name of a student")
        config = load_config("digits", settings=(*SHARED, *self.changes, *SETTINGS[name]))
        config = config.replace(
            seed=seed, device="cpu", threads=1, tracker="none", sample_count=0,
            sample_every=0, save_every=50, keep=1,
        )  # fmt: skip
        if out is None:
            return config
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        run = out / RUNS / f"{slug}-{seed}-{_digest(identity(config))}"
        # All runs read one cache, which is made before the first of them.
        return config.replace(out=str(run), data="cache", data_path=str(out / CACHE))

    def settings(self, name: str) -> dict[str, Any]:
        """What a student is, as its row has it: its settings but the seed."""
        if name == START:
            return {"updates": 0}
        found = identity(self.config(name, 0))
        for later in ("slope", "off_grid"):  # settings that the rows do not have yet
            del found[later]
        return {"hop": "full", **found, **ABLATED.get(name, {})}

    def replace(self, **changes: object) -> StudentPlan:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


QUICK = StudentPlan(
    changes=("updates=20", "batch=16"),
    seeds=2,
    prompts=60,
    points=24,
    solver_steps=16,
    samplers=("ddim",),
)
"""What ``--quick`` runs, in a few minutes: it shows that all works, and no result."""

_WHERE = ("data", "data_path", "cache", "cache_folder", "max_skipped", "seed")


def identity(config: SDConfig) -> dict[str, Any]:
    """The settings that decide what a run gives, but its seed; not where it lies, what it logs."""
    return {
        name: value
        for name, value in config.settings().items()
        if RULES[name].section != "run" and name not in _WHERE
    }


def _digest(settings: dict[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def short_names(chosen: Iterable[str]) -> tuple[str, ...]:
    """Full names of students, each given in full or by a part that no other name has.

    Raises:
        ValueError: for a word that fits none, or several; it names them.
    """
    found = []
    for word in chosen:
        fits = [word] if word in SETTINGS else [n for n in SETTINGS if word.lower() in n.lower()]
        if len(fits) != 1:
            raise ValueError(
                f"{word!r} fits {len(fits)} students; allowed: one of "
                f"{', '.join(map(repr, fits or SETTINGS))}, or a part that only one has"
            )
        found += [name for name in fits if name not in found]
    return tuple(found)

"""Lesson 00: its checks and its explorers; test_demo.py has the demonstration."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from slam_course.lesson_00 import explorer
from slam_course.lesson_00.checks import enough_steps, noisy_points
from slam_edu import NoiseSchedule, sample_ddim, toy
from tests.course import trying

RIGHT = (
    lambda x0, eps, a, s: a * x0 + s * eps,
    lambda x0, eps, a, s: torch.add(x0 * a, eps, alpha=float(s)),
)
WRONG = trying.formulas("x0, eps, a, s", globals(), {
    "s * x0 + a * eps": "swapped",
    "x0 + s * eps": "not scaled: what is alpha",
    "a * x0": "no noise is added",
    "a * x0 + eps": "noise is not scaled",
    "a * x0 + s**2 * eps": "standard deviation already",
    "a**2 * x0 + s**2 * eps": "used squared",
    "a * x0 - s * eps": "subtracted",
    "x0 + eps": "give each its coefficient",
    "a * x0 + 0.1": "values do not",
    "(a * x0 + s * eps).clamp(-3, 3)": "values do not",
    "round(float(a), 2) * x0 + round(float(s), 2) * eps": "values do not",
    "(a * x0 + s * eps) / (a**2 + s**2) ** 0.5": "values do not",
    "a * x0 + (1 - a**2).sqrt() * eps": "as they are given",
    "torch.from_numpy((a * x0 + s * eps).detach().numpy())": "no gradient",
    "a * x0 + s * eps.data": "comes back to eps",
    "(a * x0 + s * eps).double()": "in torch.float64",
    "x0.mul_(a).add_(s * eps)": "changes x0 itself",
})  # fmt: skip
DISTANCES = {1: 0.9, 2: 0.5, 4: 0.2, 8: 0.12, 16: 0.07, 32: 0.05}


def steps_enough(answer):
    return enough_steps(answer, DISTANCES)


STEPS = [
    (8, "the distance is 0.12, not below 0.1"),
    (1, "the distance is 0.90"),
    (32, "a smaller number of evaluations is as well"),
    (50, "50 was not measured; choose one of 1, 2, 4, 8, 16, 32"),
    (16.0, "it should be a whole number"),
    (True, "is a bool"),
]
GROUPS = [
    (noisy_points, RIGHT, WRONG),
    (steps_enough, [16, np.int64(16), torch.tensor(16)], STEPS),
]
test_accepts, test_rejects = trying.tests(GROUPS)


def test_becoming_shows_every_state():
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    schedule = NoiseSchedule.stable_diffusion()
    states = list(sample_ddim(toy.ring().network(schedule), noise, schedule, 4))
    seen = trying.walk(explorer.becoming(states), every=True)
    assert [values for values, *_ in seen] == [(n,) for n in range(5)]


def test_few_steps_samples_once_and_shows_each_number():
    calls = []

    def sample(name, steps):
        calls.append((name, steps))
        return torch.full((10, 2), steps / 10)

    box = explorer.few_steps(partial(sample, "teacher"), partial(sample, "student"))
    seen = trying.walk(box, every=True)
    assert calls == [(name, n) for n in (1, 2, 4, 8) for name in ("teacher", "student")]
    assert ["1 evaluation each" in words for *_, words in seen] == [True, False, False, False]


def test_live_student_draws_the_student_at_the_first_and_last_update_and_between():
    drawn, pictures = [], set()

    def samples(name, student):
        drawn.append(student)
        return torch.full((3, 2), student / 250)

    live = explorer.LiveStudent(samples, updates=250, every=100)
    for update in range(1, 251):
        live("SLAM", SimpleNamespace(update=update), update)
        pictures.add(bytes(live.box.children[1].value))
    assert drawn == [1, 100, 200, 250]
    assert len(pictures) == 4
    assert live.box.children[0].children[1].value == "SLAM: 250 of 250 updates"

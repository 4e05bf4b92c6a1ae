"""The explorers of lesson 00: what they show, and how fast."""

from functools import partial

import pytest
import torch

from slam_course.lesson_00 import explorer as start
from slam_edu import NoiseSchedule, sample_ddim, toy
from tests.speed import assert_draws_within


@pytest.fixture(scope="module")
def states():
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    schedule = NoiseSchedule.stable_diffusion()
    return list(sample_ddim(toy.ring().network(schedule), noise, schedule, 50))


def walk(box):
    """The pictures and descriptions of all positions of an explorer's slider."""
    slider, picture, caption = box.children
    seen = []
    for value in [option[1] if isinstance(option, tuple) else option for option in slider.options]:
        slider.value = value
        seen.append((value, picture.value, caption.value))
    return seen


def test_becoming_shows_every_state(states):
    seen = walk(start.becoming(states[::10]))
    assert [value for value, _, _ in seen] == list(range(6))
    assert len({picture for _, picture, _ in seen}) == 6


def test_few_steps_samples_once_and_shows_each_number():
    calls = []

    def sampler(name):
        def sample(steps):
            calls.append((name, steps))
            return torch.full((10, 2), steps / 10)

        return sample

    box = start.few_steps(sampler("teacher"), sampler("student"), steps=(1, 2))
    assert calls == [("teacher", 1), ("student", 1), ("teacher", 2), ("student", 2)]
    seen = walk(box)
    assert "1 evaluation each" in seen[0][2]
    assert "2 evaluations each" in seen[1][2]
    assert seen[0][1] != seen[1][1]
    assert len(calls) == 4


def test_a_move_of_the_slider_takes_under_200_ms(states):
    slider, _, _ = start.becoming(states).children
    places = (10, 20, 30, 40, 50)  # none was drawn before
    assert_draws_within(0.2, [partial(setattr, slider, "value", place) for place in places])

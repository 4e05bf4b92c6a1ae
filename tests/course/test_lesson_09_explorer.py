"""The explorer of lesson 09: what it shows first, that each control counts, how fast it is."""

from functools import partial

import pytest

from slam_course.lesson_09.explorer import FIRST, calculator, cost_figure
from tests.speed import assert_draws_within

MODELS = {"SD 1.5, adapters": 5.35e12, "SDXL, adapters": 44e12}


def test_it_starts_where_it_is_told():
    box = calculator(MODELS)
    *controls, picture, caption = box.children
    assert [c.description for c in controls] == [
        "model", "gpus", "speed", "batch", "updates", "price",
    ]  # fmt: skip
    assert tuple(c.value for c in controls[1:]) == FIRST
    names = ("gpus", "speed", "batch", "updates", "price")
    figure = cost_figure("SD 1.5, adapters", 5.35e12, **dict(zip(names, FIRST, strict=True)))
    assert picture.value == figure.png()
    assert figure.alt in caption.value
    assert "SD 1.5, adapters, 8 GPUs at 100 TFLOP/s: samples an update 128" in figure.alt


def test_every_control_changes_the_picture():
    *controls, picture, _ = calculator(MODELS).children
    for control in controls:
        before = picture.value
        values = [getattr(option, "value", option) for option in control.options]
        control.value = next(value for value in values if value != control.value)
        assert picture.value != before, control.description


def test_more_cards_leave_the_days_as_they_are():
    one, eight = (
        cost_figure("a model", 5e12, gpus=n, speed=100, batch=16, updates=10_000, price=2.0).alt
        for n in (1, 8)
    )
    day = one[one.index("days") :].split(",")[0]
    assert day == "days 0.0926"
    assert day in eight
    assert "GPU-days 0.741" in eight


def test_a_first_value_must_be_there():
    with pytest.raises(ValueError, match="first batch is 5; allowed: 1, 2"):
        calculator(MODELS, first=(8, 100, 5, 1000, 2.0))
    with pytest.raises(ValueError, match="'model' has no values"):
        calculator({})


def test_it_is_drawn_in_under_a_third_of_a_second():
    def draw(gpus):
        cost_figure("a model", 5e12, gpus=gpus, speed=60, batch=8, updates=4000, price=1.0).png()

    assert_draws_within(0.3, [partial(draw, gpus) for gpus in (2, 4, 8)])

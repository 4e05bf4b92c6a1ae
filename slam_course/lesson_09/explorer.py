"""Explorer of lesson 09: what a run costs, from a few assumptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets

from slam_course.cost import TERA, run_cost
from slam_course.figures import CourseFigure
from slam_course.lesson_09.figures import run_chart
from slam_course.widgets import explorer
from slam_edu._validation import check_choice

GPUS = (1, 2, 4, 8, 16, 32, 64)
SPEEDS = (10, 20, 40, 60, 100, 150, 250, 400)
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)
UPDATES = (100, 300, 1000, 2000, 4000, 10_000, 20_000, 40_000, 100_000)
PRICES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: GPUs, TFLOP/s, batch of a GPU, updates, price that are shown first.
FIRST = (8, 100, 16, 10_000, 2.0)


def cost_figure(
    name: str, flops: float, *, gpus: int, speed: float, batch: int, updates: int, price: float
) -> CourseFigure:
    """A run's samples, days, GPU-days and money.

    Args:
        name: of the model.
        flops: operations of one sample.
        gpus: number of cards.
        speed: TFLOP/s that one card sustains.
        batch: samples that a card takes an update.
        updates: of the run.
        price: of one card for one hour.

    Raises:
        ValueError: as for :func:`slam_course.cost.run_cost`.
    """
    cost = run_cost(
        flops, gpus=gpus, batch=batch, updates=updates, speed=speed * TERA, price=price
    )
    cards = f"{gpus} GPU{'s' * (gpus > 1)} at {speed:g} TFLOP/s"
    return run_chart(cost, flops, speed * TERA, gpus * batch, title=f"{name}, {cards}")


def calculator(
    models: Mapping[str, float],
    *,
    gpus: Sequence[int] = GPUS,
    speeds: Sequence[float] = SPEEDS,
    batches: Sequence[int] = BATCHES,
    updates: Sequence[int] = UPDATES,
    prices: Sequence[float] = PRICES,
    first: tuple[int, float, int, int, float] = FIRST,
) -> ipywidgets.VBox:
    """A menu of models, and sliders for cards, their speed, batch, updates and price.

    Args:
        models: for each name the operations of one sample.
        gpus: numbers of cards.
        speeds: TFLOP/s that one sustains.
        batches: samples that a card takes an update.
        updates: of a run.
        prices: of one card for one hour.
        first: what is shown first, in this order.

    Raises:
        ValueError: for a ``first`` that is not among the values, or no model.
    """
    lists = {
        "gpus": gpus, "speed": speeds, "batch": batches, "updates": updates, "price": prices,
    }  # fmt: skip
    for (name, values), value in zip(lists.items(), first, strict=True):
        check_choice(value, values, f"first {name}")

    def draw(model: str, **values: float) -> CourseFigure:
        return cost_figure(model, models[model], **values)

    box = explorer(draw, model=list(models), **lists)
    _model, *sliders, _picture, _caption = box.children
    for slider, value in zip(sliders, first, strict=True):
        slider.value = value
    return box

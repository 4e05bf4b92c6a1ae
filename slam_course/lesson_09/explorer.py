"""Explorer of lesson 09: what a run costs, from a few assumptions."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets

from slam_course.cost import TERA, run_cost
from slam_course.figures import CourseFigure
from slam_course.lesson_09.figures import run_chart
from slam_course.widgets import explorer


def cost_figure(
    name: str, flops: float, *, gpus: int, speed: float, batch: int, updates: int, price: float
) -> CourseFigure:
    """Samples, days, GPU-days and money of a run with ``speed`` TFLOP/s a card."""
    cost = run_cost(
        flops, gpus=gpus, batch=batch, updates=updates, speed=speed * TERA, price=price
    )
    cards = f"{gpus} GPU{'s' * (gpus > 1)} at {speed:g} TFLOP/s"
    return run_chart(cost, flops, speed * TERA, gpus * batch, title=f"{name}, {cards}")


def calculator(models: Mapping[str, float]) -> ipywidgets.VBox:
    """A menu of models, and sliders for cards, their speed, batch, updates and price.

    ``models`` are the operations of one sample by name.
    """

    def draw(model: str, **values: float) -> CourseFigure:
        return cost_figure(model, models[model], **values)

    return explorer(
        draw,
        first={"gpus": 8, "speed": 100, "batch": 16, "updates": 10_000, "price": 2.0},
        model=list(models),
        gpus=(1, 2, 4, 8, 16, 32, 64),
        speed=(10, 20, 40, 60, 100, 150, 250, 400),
        batch=(1, 2, 4, 8, 12, 16, 24, 32, 64, 128),
        updates=(100, 300, 1000, 2000, 4000, 10_000, 20_000, 40_000, 100_000),
        price=(0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    )

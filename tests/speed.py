"""Time limits that hold on any machine: the time of a plain figure, drawn beside, is taken out."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable

import numpy as np
from matplotlib.figure import Figure

PLAIN = 0.155
"""Processor seconds of :func:`draw_plain_figure` on the machine that the limits hold on."""


def draw_plain_figure() -> None:
    """Three panels with 2,000 points, a line and a picture each, as PNG: nothing of slam_edu's."""
    rng = np.random.default_rng(0)
    fig = Figure(figsize=(9, 3), dpi=100)
    for axes in fig.subplots(1, 3):
        axes.scatter(*rng.normal(size=(2, 2000)), s=3)
        axes.plot(np.linspace(-3, 3, 500), np.sin(np.linspace(-3, 3, 500)))
        axes.imshow(rng.random((64, 64)), extent=(-3, 3, -3, 3), alpha=0.5)
        axes.set_title("a plain figure")
    fig.savefig(io.BytesIO(), format="png")


def processor_seconds(action: Callable[[], object]) -> float:
    """Processor time of one call."""
    begin = time.process_time()
    action()
    return time.process_time() - begin


def slowness(times: Iterable[float] = ()) -> float:
    """How many times as long a plain figure takes as on the limits' machine; at least 1."""
    times = list(times) or [processor_seconds(draw_plain_figure) for _ in range(4)]
    return max(1.0, min(times) / PLAIN)


def assert_draws_within(seconds: float, actions: Iterable[Callable[[], object]]) -> None:
    """The quickest of `actions`, against `seconds` on a machine that draws as fast as PLAIN says.

    Processor time still grows when others use the caches and the other half of a core, and CI
    machines differ by a factor of two: a plain figure is drawn before every action, and the best
    of both are compared, so that what is left is the figure's own share.
    """
    plain, taken = [], []
    draw_plain_figure()  # fonts are looked up once
    for action in actions:
        plain.append(processor_seconds(draw_plain_figure))
        taken.append(processor_seconds(action))
    slower = slowness(plain)
    # An explorer keeps its pictures: one that was drawn before would pass at any speed.
    assert min(taken) > 0.01, f"an action drew nothing: {taken}"
    assert min(taken) < seconds * slower, (
        f"{min(taken):.3f} s, allowed {seconds:g} s on a machine {slower:.2f} times as slow"
    )

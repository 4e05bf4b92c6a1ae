"""Explorer of lesson 01: a data set at any noise level, as samples, density and score."""

from __future__ import annotations

from functools import cache, partial

import ipywidgets
import torch
from torch import Tensor

from slam_course.figures import CourseFigure, figure, plane, points
from slam_course.lesson_01.figures import density_panel
from slam_course.widgets import explorer
from slam_edu.prediction import add_noise
from slam_edu.schedule import NoiseSchedule
from slam_edu.toy import DATASETS, GaussianMixture, make

TIMESTEPS = (0, 10, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 900, 999)
_SAMPLES = 700


def diffused_figure(schedule: NoiseSchedule, data_set: str, t: int) -> CourseFigure:
    """Samples of a data set at timestep t, and beside them the density and the score.

    The same clean samples and the same noise are used at every t, so that a point can be followed.
    """
    mixture, x0, noise = _draws(data_set, schedule.dtype)
    level = schedule(t)
    alpha, sigma, rho = (value.item() for value in (level.alpha, level.sigma, level.rho))
    name = data_set.replace("_", " ")
    fig, (left, right) = figure(
        2,
        size=(3.4, 3.65),
        alt=f"{name} at t = {t}: alpha = {alpha:.2f}, sigma = {sigma:.2f}, rho = {rho:.2f}. "
        f"Left: samples. Right: density and score.",
    )
    points(plane(left, f"samples at t = {t}"), add_noise(x0, noise, level), size=3)
    density_panel(plane(right, "density and score"), mixture, level)
    return fig


def diffused(schedule: NoiseSchedule) -> ipywidgets.VBox:
    """Walk a data set through the noise levels: a menu of data sets and a slider for t."""
    return explorer(partial(diffused_figure, schedule), data_set=tuple(DATASETS), t=TIMESTEPS)


@cache
def _draws(data_set: str, dtype: torch.dtype) -> tuple[GaussianMixture, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixture = make(data_set, dtype)
    x0 = mixture.sample(_SAMPLES, generator)
    return mixture, x0, torch.randn(_SAMPLES, 2, generator=generator, dtype=dtype)

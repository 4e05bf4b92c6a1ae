"""Explorer of lesson 03: where N exact hops take points, and where the solution map takes them.

What a perfect consistency student would say: its N hops, learned without any error, composed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import ipywidgets
import torch
from torch import Tensor

from slam_course.figures import CourseFigure
from slam_course.lesson_03.figures import hops_figure
from slam_course.widgets import explorer
from slam_edu._validation import check_choice
from slam_edu.prediction import add_noise
from slam_edu.schedule import NoiseSchedule
from slam_edu.solver import pf_ode_trajectory
from slam_edu.toy import DATASETS, make, solution_map

HOPS = (1, 2, 4, 5, 10, 20, 25, 50, 100, 200)
"""Numbers of hops of the whole schedule; each divides its 1000 timesteps."""

TIMES = (999, 749, 499, 249)
"""Timesteps of the starts. Where a grid has no such noisy end, the first hop is a shorter one."""

_F64 = torch.float64
_POINTS, _DRAWN = 400, 90  # that are measured, and that are drawn


@dataclass(frozen=True)
class _Ends:
    """From one timestep: the starts, where they end, and where N hops take them instead."""

    start: Tensor
    end: Tensor
    reached: dict[int, Tensor]
    error: dict[int, float]


@cache
def _ends(data_set: str, t: int) -> _Ends:
    schedule, mixture = NoiseSchedule.stable_diffusion(_F64), make(data_set, _F64)
    generator = torch.Generator().manual_seed(0)
    x0 = mixture.sample(_POINTS, generator)
    noise = torch.randn(_POINTS, 2, generator=generator, dtype=_F64)
    x = add_noise(x0, noise, schedule(t))
    end = solution_map(mixture, x, schedule(t), schedule(0)).x
    reached, error = {}, {}
    for n in HOPS:
        grid = schedule.subpaths(n)
        # Down from t: first to the next level of the grid, which is a shorter hop if t is on none.
        times = torch.cat([torch.tensor([t]), grid.t[grid.t < t].flip(0), torch.tensor([0])])
        reached[n] = pf_ode_trajectory(mixture.predict, x, schedule(times))[-1]
        error[n] = (reached[n] - end).norm(dim=1).mean().item()
    return _Ends(x, end, reached, error)


@cache
def _data(data_set: str) -> Tensor:
    return make(data_set, _F64).sample(800, torch.Generator().manual_seed(1))


def hop_figure(data_set: str, hops: int, t: int) -> CourseFigure:
    """Where the DDIM hops of a grid take samples at timestep t, over their exact ends.

    Args:
        data_set: a name of :data:`slam_edu.toy.DATASETS`.
        hops: N, how many hops the whole schedule is cut into; one of :data:`HOPS`.
        t: timestep of the starts; one of :data:`TIMES`.

    Raises:
        ValueError: for a value that is not among them.
    """
    check_choice(data_set, tuple(DATASETS), "data_set")
    check_choice(hops, HOPS, "hops")
    check_choice(t, TIMES, "t")
    ends = _ends(data_set, t)
    name = data_set.replace("_", " ")
    many = "1 hop" if hops == 1 else f"{hops} hops"
    return hops_figure(
        ends.start[:_DRAWN], ends.reached[hops][:_DRAWN], ends.end[:_DRAWN], _data(data_set),
        ends.error, hops,
        title=f"from t = {t}, schedule in {many}",
        alt=f"{name}, from t = {t}, the schedule cut into {many}: on average they end "
        f"{ends.error[hops]:.3f} from where the exact map takes the point.",
    )  # fmt: skip


def hops(
    data_sets: Sequence[str] = tuple(DATASETS),
    values: Sequence[int] = HOPS,
    timesteps: Sequence[int] = TIMES,
    first: int = 10,
) -> ipywidgets.VBox:
    """A menu for the data set, sliders for the number of hops and the timestep of the starts.

    All ends are computed here, so that no redraw waits for them.

    Args:
        data_sets: names of :data:`slam_edu.toy.DATASETS`, the first is shown first.
        values: numbers of hops, among :data:`HOPS`.
        timesteps: among :data:`TIMES`, the first is shown first.
        first: the number of hops that is shown first.

    Raises:
        ValueError: for a ``first`` that is not among the values, or a value that is unknown.
    """
    check_choice(first, tuple(values), "first")
    for name in data_sets:
        check_choice(name, tuple(DATASETS), "data_set")
        for t in timesteps:
            check_choice(t, TIMES, "t")
            _ends(name, t)
    box = explorer(hop_figure, data_set=data_sets, hops=values, t=timesteps)
    next(control for control in box.children if control.description == "hops").value = first
    return box

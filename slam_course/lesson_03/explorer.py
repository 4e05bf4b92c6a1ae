"""Explorer of lesson 03: where N exact hops lead points, and where the solution map leads them.

What a perfect consistency student would answer: its N hops, learned without any error, composed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import ipywidgets
import torch
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from torch import Tensor

from slam_course.figures import COLORS, CourseFigure, figure, open_axes, paths, plane, points
from slam_course.widgets import explorer
from slam_edu.prediction import add_noise
from slam_edu.schedule import NoiseSchedule
from slam_edu.solver import pf_ode_trajectory
from slam_edu.toy import make, solution_map

HOPS = (1, 2, 4, 5, 10, 20, 25, 50, 100, 200)  # each divides the 1000 timesteps
TIMES = (999, 749, 499, 249)  # of the starts; if on no level of a grid, the first hop is shorter
_F64 = torch.float64
_SCHEDULE = NoiseSchedule.stable_diffusion(_F64)
_POINTS, _DRAWN = 400, 90  # that are measured, and that are drawn


@dataclass(frozen=True)
class _Ends:
    """From one timestep: the starts, where they end, and where N hops lead them instead."""

    start: Tensor
    end: Tensor
    reached: dict[int, Tensor]
    error: dict[int, float]


@cache
def _ends(data_set: str, t: int) -> _Ends:
    mixture, generator = make(data_set, _F64), torch.Generator().manual_seed(0)
    x0 = mixture.sample(_POINTS, generator)
    noise = torch.randn(_POINTS, 2, generator=generator, dtype=_F64)
    x = add_noise(x0, noise, _SCHEDULE(t))
    end = solution_map(mixture, x, _SCHEDULE(t), _SCHEDULE(0)).x
    reached, error = {}, {}
    for n in HOPS:
        grid = _SCHEDULE.subpaths(n)
        # Down from t: first to the next level of the grid, which is a shorter hop if t is on none.
        times = torch.cat([torch.tensor([t]), grid.t[grid.t < t].flip(0), torch.tensor([0])])
        reached[n] = pf_ode_trajectory(mixture.predict, x, _SCHEDULE(times))[-1]
        error[n] = (reached[n] - end).norm(dim=1).mean().item()
    return _Ends(x, end, reached, error)


@cache
def _data(data_set: str) -> Tensor:
    return make(data_set, _F64).sample(800, torch.Generator().manual_seed(1))


def hop_figure(data_set: str, hops: int, t: int) -> CourseFigure:
    """Where the DDIM hops of a grid lead samples, against f*; beside it the error for every N.

    ``hops`` is N, of :data:`HOPS`; the starts are at t, of :data:`TIMES`.
    """
    ends = _ends(data_set, t)
    x, end, reached = (v[:_DRAWN] for v in (ends.start, ends.end, ends.reached[hops]))
    name = data_set.replace("_", " ")
    many = "1 hop" if hops == 1 else f"{hops} hops"
    fig, (left, right) = figure(
        2,
        size=(3.5, 3.6),
        alt=f"{name}, from t = {t}, the schedule cut into {many}: on average they end "
        f"{ends.error[hops]:.3f} from where the exact map takes the point.",
    )
    plane(left, f"from t = {t}, schedule in {many}", limit=2.7)
    points(left, _data(data_set), "#cfcfcf", size=2, alpha=0.8)
    points(left, x, "noise", size=4, alpha=0.9)
    paths(left, torch.stack([end, reached]), "chord", width=1.2, alpha=0.9)
    points(left, end, "path", size=11, alpha=1, zorder=3)
    points(left, reached, "teacher", size=11, alpha=1, zorder=3)
    names = {"start": "noise", "f*": "path", "after the hops": "teacher"}
    marks = [
        right.plot([], [], "o", ms=4, color=COLORS[color], label=label)[0]
        for label, color in names.items()
    ]
    right.legend(handles=marks, frameon=False, fontsize=9, loc="lower left")
    right.plot(HOPS, list(ends.error.values()), "o-", color=COLORS["teacher"], lw=1.4, ms=4)
    right.plot([hops], [ends.error[hops]], "o", color=COLORS["teacher"], ms=10, mec=COLORS["data"])
    open_axes(
        right, title=f"mean distance to f*: {ends.error[hops]:.3f}", xscale="log", yscale="log",
        ylim=(5e-4, 3), xlabel="hops N of the whole schedule",
    )  # fmt: skip
    right.xaxis.set_major_locator(FixedLocator([1, 5, 20, 100]))
    right.xaxis.set_major_formatter(ScalarFormatter())
    right.xaxis.set_minor_locator(NullLocator())
    return fig


def hops(data_sets: Sequence[str]) -> ipywidgets.VBox:
    """A menu for the data set, sliders for the number of hops and the timestep of the starts.

    All ends are computed here, so that no redraw waits for them.
    """
    for name, t in product(data_sets, TIMES):
        _ends(name, t)
    return explorer(hop_figure, first={"hops": 10}, data_set=data_sets, hops=HOPS, t=TIMES)

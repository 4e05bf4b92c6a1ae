"""Explorer of lesson 02: a solver in few steps over the exact trajectories, on any data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import ipywidgets
import torch
from torch import Tensor

from slam_course.figures import (
    SOLVER_NAMES,
    CourseFigure,
    evaluations,
    figure,
    on_circles,
    plane,
    points,
)
from slam_course.lesson_02.figures import draw_paths
from slam_course.widgets import explorer
from slam_edu.sampling import spaced_timesteps
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.solver import pf_ode_trajectory
from slam_edu.toy import make, solution_map
from slam_edu.toy.errors import exact_trajectory, geometric_levels
from slam_edu.toy.mixture import GaussianMixture

SOLVERS = {SOLVER_NAMES[method]: method for method in ("ddim", "heun", "dpmpp_2m")}
EVEN_T, EVEN_LOG_RHO = LEVELS = ("even in t", "even in log rho")
STEPS = (1, 2, 3, 4, 6, 8, 12, 20, 50)

_F64 = torch.float64
_SCHEDULE = NoiseSchedule.stable_diffusion(_F64)
_LIMIT = 2.7
_PATHS, _MEASURED, _POINTS = 16, 200, 600  # drawn as lines, error known, drawn as dots


@dataclass(frozen=True)
class _Exact:
    """What the exact PF-ODE does on a data set, computed once."""

    mixture: GaussianMixture
    data: Tensor
    noise: Tensor  # the first _PATHS are on two circles, the others drawn
    paths: Tensor  # of the first _PATHS, down to t = 0: (levels, _PATHS, 2)
    ends: dict[str, Tensor]  # by kind of levels, of the first _PATHS + _MEASURED


@cache
def _exact(data_set: str) -> _Exact:
    mixture = make(data_set, _F64)
    generator = torch.Generator().manual_seed(0)
    data = mixture.sample(1000, generator)
    circles = on_circles(_PATHS, 1.8, 0.7)
    noise = torch.cat([circles, torch.randn(_POINTS, 2, generator=generator, dtype=_F64)])
    start, end = _SCHEDULE(999), _SCHEDULE(0)
    paths = exact_trajectory(mixture, circles, geometric_levels(start, end, 32), tol=1e-5)
    noisy = solution_map(mixture, noise[: _PATHS + _MEASURED], start, end).x
    clean = solution_map(mixture, noisy, end, Level.clean(end.alpha)).x
    return _Exact(mixture, data, noise, paths, {EVEN_T: clean, EVEN_LOG_RHO: noisy})


def grid(levels: str, steps: int) -> Level:
    """Levels for 1 to 1000 steps: timesteps evenly spaced, or evenly spaced in log rho.

    The first kind is what pipelines use, and ends with clean data; the second ends at t = 0.
    """
    if levels == EVEN_LOG_RHO:
        return geometric_levels(_SCHEDULE(999), _SCHEDULE(0), steps)
    noisy = _SCHEDULE(spaced_timesteps(steps, _SCHEDULE))
    return Level.cat([noisy, Level.clean(noisy.alpha[:1])])


def solver_figure(data_set: str, solver: str, levels: str, steps: int) -> CourseFigure:
    """Left, a solver's trajectories over the exact ones; right, where it leads many points."""
    exact, method, at = _exact(data_set), SOLVERS[solver], grid(levels, steps)
    solved = pf_ode_trajectory(exact.mixture.predict, exact.noise, at, method)
    ends = exact.ends[levels]
    error = (solved[-1, _PATHS : len(ends)] - ends[_PATHS:]).norm(dim=1).mean().item()
    # Heun looks twice in a hop, but once in a hop to clean data.
    looks = steps if method != "heun" else 2 * steps - (levels == EVEN_T)
    name = data_set.replace("_", " ")
    fig, (left, right) = figure(
        2,
        size=(3.4, 3.65),
        alt=f"{name}, {solver}, levels {levels}, {evaluations(looks)}: on average a point ends "
        f"{error:.2f} from where the exact map takes it.",
    )
    plane(left, f"{solver}, {evaluations(looks)}", _LIMIT)
    whole = torch.cat([exact.paths, ends[None, :_PATHS]])
    draw_paths(left, solved[:, :_PATHS], at, whole, exact.data)
    plane(right, f"mean error at the end: {error:.2f}", _LIMIT)
    points(right, exact.data, "#cfcfcf", size=2, alpha=0.8)
    points(right, solved[-1, _PATHS:], "teacher", size=4, alpha=0.7)
    return fig


def solvers(data_sets: Sequence[str]) -> ipywidgets.VBox:
    """Menus for the data set, the solver and its levels, a slider for the number of steps.

    The exact trajectories of all data sets are computed here, so that no redraw waits for them.
    """
    for name in data_sets:
        _exact(name)
    controls = {"solver": tuple(SOLVERS), "levels": LEVELS, "steps": STEPS}
    return explorer(solver_figure, first={"steps": 4}, data_set=data_sets, **controls)

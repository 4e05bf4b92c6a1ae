"""What follows from the slope of the middle: laws for gamma, other grids, a second call."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
from torch import Tensor

from slam_course.ablations import GAMMA_LAWS
from slam_course.family.base import ByDistiller
from slam_edu.distill import Network, SubPath, SubPathDistiller, SubPathSample
from slam_edu.schedule import Level, expand


class MiddleSlope(ByDistiller):
    """The library's defaults."""

    tuned = ("subpaths",)


class SlamMiddleUniform(MiddleSlope):
    """The slope of the middle, gamma uniform."""

    name = "SLAM, middle slope, gamma uniform"
    settings: ClassVar[dict[str, object]] = {"gammas": "uniform"}


class SlamMiddleHalf(MiddleSlope):
    """The slope of the middle, half of the gammas at 1."""

    name = "SLAM, middle slope, half of gamma at 1"
    settings: ClassVar[dict[str, object]] = {"gammas": GAMMA_LAWS["half_one"]}


class SlamMiddleCurriculum(MiddleSlope):
    """The slope of the middle, long hops first, as in easy consistency tuning."""

    name = "SLAM, middle slope, hop curriculum"
    coarser = (2, 4, 5, 10, 20, 50)


class LogGrid(SubPathDistiller):
    """Sub-paths that are even in log rho, from t = 1 on; the first of them ends at 0."""

    def ends(self, sample: SubPathSample) -> tuple[Tensor, Tensor, Tensor]:
        """Real-valued t and s, and gamma."""
        schedule, n = self.schedule, len(self.grid)
        low, high = schedule.rho[1].log(), schedule.rho[-1].log()
        t, s = (
            schedule.timestep(Level.from_rho((low + (high - low) * i / n).exp()))
            for i in (sample.index + 1, sample.index)
        )
        return t, torch.where(sample.index == 0, torch.zeros_like(s), s), sample.gamma


class SlamMiddleLogGrid(MiddleSlope):
    """The slope of the middle on a grid that is even in log rho; sampled at the usual times."""

    name = "SLAM, middle slope, even in log rho"
    distiller_type = LogGrid


class Parabola(SubPathDistiller):
    r"""Two calls of the teacher, at Gauss's nodes of the sub-path, and a parabola through both.

    :math:`\rho_{1,2} = \rho_m \pm h/(2\sqrt 3)`: x_1 is noised data, x_2 an Euler step from it,
    and the slope is linear in rho between them. At gamma = 1.
    """

    @torch.no_grad()
    def sub_path(
        self, x0: Tensor, sample: SubPathSample, *, teacher: Network, cond: object | None = None,
        uncond: object | None = None,
    ) -> SubPath:  # fmt: skip
        """The two ends, reached along the parabola."""
        t, s, gamma = self.ends(sample)
        level_t, level_s = self.schedule.at(t), self.schedule.at(s)
        middle, half = (level_t.rho + level_s.rho) / 2, (level_t.rho - level_s.rho) / 2
        rho_1, rho_2 = middle + half / 3**0.5, middle - half / 3**0.5
        level_1, level_2 = Level.from_rho(rho_1), Level.from_rho(rho_2)
        ask = functools.partial(self._teacher, teacher, cond, uncond)
        x_1 = level_1.mix(x0, sample.noise)
        first = ask(x_1, self.schedule.timestep(level_1), level_1)
        x_2 = level_2.mix(first.x0, first.eps)
        second = ask(x_2, self.schedule.timestep(level_2), level_2)
        z_1, bend = (
            x_1 / expand(level_1.alpha, x0),
            (second.eps - first.eps) / expand(rho_2 - rho_1, x0),
        )

        def end(level: Level) -> Tensor:
            step = expand(level.rho - rho_1, x0)
            return expand(level.alpha, x0) * (z_1 + step * first.eps + step**2 / 2 * bend)

        x_t, x_s = end(level_t), end(level_s)
        return SubPath(
            x_t=x_t, x_s=x_s, x_gamma=x_t, t=t, s=s, gamma=gamma, level_t=level_t,
            level_s=level_s, level_gamma=level_t, teacher=first,
        )  # fmt: skip


class SlamMiddleParabola(MiddleSlope):
    """A parabola from two calls of the teacher in place of the chord."""

    name = "SLAM, middle slope, parabola of two calls"
    distiller_type = Parabola


class SlamMiddleOffGrid(MiddleSlope):
    """The slope of the middle, gamma = 1, sub-paths drawn off the grid."""

    name = "SLAM, middle slope, off the grid"
    settings: ClassVar[dict[str, object]] = {"off_grid": True}

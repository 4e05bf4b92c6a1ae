r"""Consistency distillation: the ends of one hop are to be mapped to the same point.

.. math:: f_\theta(x_t, t) \to f_{\theta^-}(x_s, s), \qquad x_s = \text{DDIM}(x_t, t \to s),

with the boundary condition :math:`f(x, 0) = x`. Source: Song et al. 2023 (consistency models,
arXiv 2303.01469), algorithm 2; Luo et al. 2023 (latent consistency models, arXiv 2310.04378).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from slam_course.ablations import RandomHopDistiller
from slam_course.family.base import ByDistiller
from slam_edu.distill import SubPathDistiller
from slam_edu.prediction import Prediction
from slam_edu.schedule import Level


class ConsistencyDistillation(ByDistiller):
    """One hop of the grid, one call of the teacher, which is a DDIM step."""

    name = "consistency distillation"
    tuned = ("subpaths",)
    settings: ClassVar[dict[str, object]] = {"slope": "end"}


class RandomHop(ConsistencyDistillation):
    """The hop's length is drawn anew for each sample, from 1 to k timesteps."""

    name = "consistency distillation, random hop"
    distiller_type = RandomHopDistiller
    settings: ClassVar[dict[str, object]] = {"slope": "end", "gammas": "uniform"}


class HopCurriculum(ConsistencyDistillation):
    """Long hops first, then shorter ones: N = 5, 10, 20, ... up to ``subpaths``.

    Each N has an equal share of the budget. Source: Geng et al. 2024 (consistency models made
    easy, arXiv 2406.14548), whose hops halve as training goes on.
    """

    name = "consistency distillation, hop curriculum"
    coarser = (5, 10, 20, 50, 100)


class HeunDistiller(SubPathDistiller):
    """The teacher takes one step of Heun's method, two calls."""

    def _teacher_steps(
        self, ask: Callable[..., Prediction], x: Tensor, t: Tensor, level_t: Level, level_s: Level
    ) -> tuple[Tensor, Prediction]:
        _, s = self.grid.ends((t + 1) // self.grid.k - 1)
        first = ask(x, t, level_t)
        euler = level_s.mix(first.x0, first.eps)
        eps = (first.eps + ask(euler, s, level_s).eps) / 2
        z = x / level_t.alpha[:, None] + (level_s.rho - level_t.rho)[:, None] * eps
        return level_s.alpha[:, None] * z, first


class HeunTeacher(ConsistencyDistillation):
    """A teacher of second order, paid for with half of the batch. Source: Song et al. 2023."""

    name = "consistency distillation, Heun teacher"
    distiller_type = HeunDistiller
    share = 0.5

r"""Piecewise rectified flow: trajectories made straight within K windows.

The teacher carries a sample from a window's noisy edge :math:`t` to its clean edge :math:`s` with
several steps; on the chord between, which is :func:`slam_edu.subpath.chord`, the student learns
the slope of the whole:

.. math:: z_\gamma = \gamma z_t + (1-\gamma) z_s, \qquad
    \bar\epsilon_\theta(z_\gamma) \to \frac{z_t - z_s}{\rho_t - \rho_s}.

Source: Yan et al. 2024 (PeRFlow, arXiv 2405.07510), section 3; Liu et al. 2023 (rectified flow,
arXiv 2209.03003) for K = 1.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from slam_course.family.base import Counted, Method, Trio


class PiecewiseRectified(Method):
    """K windows of equal length in timesteps, which the teacher crosses in N/K DDIM steps each."""

    name = "piecewise rectified flow (PeRFlow)"
    tuned = ("subpaths", "pieces")

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.grid = self.schedule.subpaths(self.pieces)
        self.teacher_steps = max(1, round(self.subpaths / self.pieces))

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A window, a place in it, and noise."""
        index = torch.randint(self.pieces, (len(x0),), generator=generator)
        gamma = torch.rand(len(x0), generator=generator)
        return index, gamma, torch.randn(x0.shape, generator=generator)

    def loss(self, x0: Tensor, batch: tuple[Tensor, Tensor, Tensor], networks: Trio) -> Tensor:
        """Between v of the student and v of the window's straight line."""
        index, gamma, noise = batch
        t, s = self.grid.ends(index)
        level_t, level_s = self.schedule.at(t), self.schedule.at(s)
        x = x_t = level_t.mix(x0, noise)
        times = [t + (s - t) * m / self.teacher_steps for m in range(self.teacher_steps + 1)]
        for time, following in itertools.pairwise(times):
            x = self.move(self.teach(networks, x, time), following)
        line = self.line(x_t, level_t, x, level_s)
        time = s + gamma * (t - s)
        level = self.schedule.at(time)
        v = self.v(self.predict(networks.student, level.mix(line.x0, line.eps), time), level)
        return self.distance(v, self.v(line, level))

    def sample(
        self, student: Counted, x: Tensor, steps: int, generator: torch.Generator
    ) -> Tensor:
        """Euler steps in z: of the windows' edges where n allows it, else between."""
        return self.walk(student, x, self.times(steps))

    def times(self, steps: int) -> Tensor:
        """Real timesteps from T-1 to 0, evenly between the windows' edges."""
        edges = torch.cat([torch.zeros(1), self.grid.t.to(self.schedule.dtype)])
        at = torch.linspace(self.pieces, 0, steps + 1, dtype=edges.dtype)
        low = at.floor().long().clamp(max=self.pieces - 1)
        return torch.lerp(edges[low], edges[low + 1], at - low)

    def solve(self, student: Counted, x: Tensor, t: Tensor) -> Tensor:
        """One step to each edge on the way; only from an edge is it what was trained."""
        t = t.to(self.schedule.dtype)
        edges = torch.cat([torch.zeros(1), self.grid.t.to(t)])
        for edge in edges[:-1].flip(0):
            s = torch.minimum(t, edge.expand_as(t))
            x = torch.where((s < t)[:, None], self.jump(student, x, t, s), x)
            t = s
        return x

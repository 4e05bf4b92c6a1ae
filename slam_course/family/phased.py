r"""Phased consistency models: consistency within each of K phases of the trajectory.

The timesteps are cut at :math:`e_0 = 0 < e_1 < \dots < e_K = T - 1`; for t in
:math:`(e_{m}, e_{m+1}]` the student jumps to the phase's clean edge :math:`e_m`:

.. math:: J_\theta(x_t, t \to e_m) \to J_{\theta^-}(x_s, s \to e_m), \qquad
    x_s = \text{DDIM}(x_t, t \to s),

and at :math:`s = e_m` the jump is the identity, whatever the network says. K jumps draw a sample
without fresh noise. Source: Wang et al. 2024 (phased consistency model, arXiv 2405.18407), section
3.2.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from slam_course.family.base import Counted, Method, Trio


class PhasedConsistency(Method):
    """K phases of equal length in timesteps; the grid of N hops is the teacher's."""

    name = "phased consistency (PCM)"
    tuned = ("subpaths", "pieces")

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        ends = torch.cat([torch.zeros(1, dtype=torch.long), self.grid.t])
        cuts = torch.linspace(0, self.subpaths, self.pieces + 1).round().long()
        self.edges = ends[cuts]  # (K + 1,)

    def edge(self, t: Tensor) -> Tensor:
        """The clean edge of the phase of t."""
        return self.edges[(torch.searchsorted(self.edges, t.contiguous()) - 1).clamp(min=0)]

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A hop of the grid, and noise."""
        index = torch.randint(self.subpaths, (len(x0),), generator=generator)
        return index, torch.randn(x0.shape, generator=generator)

    def loss(self, x0: Tensor, batch: tuple[Tensor, Tensor], networks: Trio) -> Tensor:
        """Between the two jumps, in z at the edge."""
        index, noise = batch
        t, s = self.grid.ends(index)
        e = self.edge(t)
        x_t = self.schedule.at(t).mix(x0, noise)
        x_s = self.move(self.teach(networks, x_t, t), s)
        with torch.no_grad():
            y = self.jump(networks.target, x_s, s, e)
        return self.distance(self.jump(networks.student, x_t, t, e), y)

    def sample(
        self, student: Counted, x: Tensor, steps: int, generator: torch.Generator
    ) -> Tensor:
        """At n evenly spaced times: to the next one, or past it to the edge and noised again.

        With n = K these are the K jumps from edge to edge. Within a phase fresh noise is added, as
        consistency models do.
        """
        for t, following in itertools.pairwise(self.grid_times(steps)):
            edge = self.edge(t)
            to = torch.minimum(edge, following)
            x = self.jump(student, x, t.expand(len(x)), to.expand(len(x)))
            if edge < following:
                low, high = self.schedule.at(edge), self.schedule.at(following)
                noise = torch.randn(x.shape, generator=generator)
                z = x / low.alpha + (high.rho**2 - low.rho**2).sqrt() * noise
                x = high.alpha * z
        return x

    def solve(self, student: Counted, x: Tensor, t: Tensor) -> Tensor:
        """From edge to edge, down to 0."""
        for _ in range(self.pieces):
            e = self.edge(t)
            x = torch.where((t > 0)[:, None], self.jump(student, x, t, e), x)
            t = e
        return x

r"""Consistency trajectory models: one network for the jump between any two times.

.. math:: J_\theta(x_t, t \to s) \to J_{\theta^-}(x_u, u \to s), \qquad
    x_u = \text{DDIM}(x_t, t \to u), \quad s \le u < t.

The two are compared at s, as trajectory consistency distillation does, without CTM's denoising
and adversarial losses. With s = 0 everywhere this
is consistency distillation. Source: Kim et al. 2024 (CTM, arXiv 2310.02279), section 3; Zheng et
al. 2024 (TCD, arXiv 2402.19159), equation 15.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slam_course.family.base import Counted, Method, Trio


class ConsistencyTrajectory(Method):
    """The grid's hop from t to u, and s uniform on the ends of the grid at or below u."""

    name = "consistency trajectory (CTM / TCD)"
    two_times = True
    tuned = ("subpaths",)

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The hop, the share of the way below it to s, and noise."""
        index = torch.randint(self.subpaths, (len(x0),), generator=generator)
        share = torch.rand(len(x0), generator=generator)
        return index, share, torch.randn(x0.shape, generator=generator)

    def loss(self, x0: Tensor, batch: tuple[Tensor, Tensor, Tensor], networks: Trio) -> Tensor:
        """Between the two jumps to s."""
        index, share, noise = batch
        t, u = self.grid.ends(index)
        s = self.grid.ends((share * (index + 1)).long())[1]  # of the grid's ends, up to u
        x_t = self.schedule.at(t).mix(x0, noise)
        x_u = self.move(self.teach(networks, x_t, t), u)
        with torch.no_grad():
            y = self.jump(networks.target, x_u, u, s)
        return self.distance(self.jump(networks.student, x_t, t, s), y)

    def sample(
        self, student: Counted, x: Tensor, steps: int, generator: torch.Generator
    ) -> Tensor:
        """Jump from each of n times of the grid to the next (TCD's sampler at eta = 0)."""
        return self.walk(student, x, self.grid_times(steps))

r"""A guided teacher that is exact: one class of a mixture, pushed away from the whole.

With the class's :math:`\epsilon_c` and the whole mixture's :math:`\epsilon_u`, both exact,
:math:`\epsilon = \epsilon_c + w(\epsilon_c - \epsilon_u)`, as in :mod:`slam_edu.prediction`. A
mixture's predictions are linear in its sums over components, so that guiding these guides the
denoiser, the PF-ODE and its solution map alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slam_edu.schedule import NoiseSchedule
from slam_edu.toy import data
from slam_edu.toy.mixture import GaussianMixture
from slam_edu.toy.solution import solution_map


class Guided(GaussianMixture):
    """The components of ``whole`` whose mean has x > 0, guided with w; sampled without it.

    Its density is the class's: where guidance leads is a distribution of its own, see
    :meth:`guided_samples`.
    """

    def __init__(self, whole: GaussianMixture, w: float) -> None:
        inside = whole.means[:, 0] > 0
        std = whole.std if whole.std.ndim == 0 else whole.std[inside]
        super().__init__(whole.means[inside], std, whole.weights[inside])
        self.whole, self.w = whole, w

    def _sums(self, z: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, whole = super()._sums(z, rho), self.whole._sums(z, rho)
        m, q, s2 = ((1 + self.w) * c - self.w * u for c, u in zip(own, whole, strict=True))
        return m, q, s2

    def guided_samples(self, n: int, generator: torch.Generator) -> Tensor:
        """Where the guided PF-ODE takes noise, ``(n, D)``."""
        schedule = NoiseSchedule.stable_diffusion()
        x = torch.randn(n, self.dim, generator=generator)
        return solution_map(self, x, schedule(len(schedule) - 1), schedule(0), tol=1e-3).x


GUIDED = {f"two_moons, w = {w}": lambda w=w: Guided(data.two_moons(), w) for w in (0, 1, 3)}
"""Data sets by name."""

r"""Variants of the method that the course measures and does not recommend.

- :data:`GAMMA_LAWS`: other ways to draw gamma, for ``DistillConfig(gammas=...)``;
- :class:`RandomHopDistiller`: consistency distillation whose hop has a random length, a control.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slam_edu.distill import DistillConfig, SubPathDistiller, SubPathSample
from slam_edu.schedule import NoiseSchedule


def upper_half(u: Tensor) -> Tensor:
    """Uniform on [1/2, 1)."""
    return (1 + u) / 2


def half_one(u: Tensor) -> Tensor:
    """One half at 1, the rest uniform: the halves of [0, 1) decide; 2u - 1 is uniform again."""
    return torch.where(u < 0.5, torch.ones_like(u), 2 * u - 1)


def toward_one(u: Tensor) -> Tensor:
    r"""Density :math:`2\gamma`."""
    return u.sqrt()


def toward_zero(u: Tensor) -> Tensor:
    r"""Density :math:`2(1-\gamma)`."""
    return 1 - (1 - u).sqrt()


GAMMA_LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    law.__name__: law for law in (upper_half, half_one, toward_one, toward_zero)
}
"""From u, uniform on [0, 1), to gamma, by name."""


class RandomHopDistiller(SubPathDistiller):
    r"""Consistency distillation with hops of random length, for the control experiment.

    Gamma shortens the sub-path to [s, t'], :math:`t' = s + \max(1, \lceil\gamma(t-s)\rceil)`, and
    the step is consistency distillation on it (:math:`\gamma = 1`), with one teacher call.
    """

    def __init__(self, schedule: NoiseSchedule, config: DistillConfig | None = None) -> None:
        super().__init__(schedule, config)
        if self.config.teacher_steps != 1:
            raise ValueError(
                f"teacher_steps is {self.config.teacher_steps} with random hops, which have any "
                f"length; allowed: 1"
            )

    def ends(self, sample: SubPathSample) -> tuple[Tensor, Tensor, Tensor]:
        """t', s, and gamma = 1."""
        t, s, gamma = super().ends(sample)
        t = s + (gamma * (t - s)).ceil().long().clamp(min=1)
        return t, s, torch.ones_like(gamma)

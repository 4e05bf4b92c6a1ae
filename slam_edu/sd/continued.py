r"""The chord continued past :math:`x_t`: how the shipped digits' student was trained.

What ``gammas`` gives is multiplied by a reach :math:`\Gamma > 1`, so that the student's hop is
longer than the teacher's at no further call; no level goes beyond the schedule's noisiest. At
:math:`\gamma = 2` the slope is that of the hop's middle. The slope of the middle
(``DistillConfig(slope="middle")``) does the same on the grid's own sub-paths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from slam_edu.distill import DistillConfig, SubPathDistiller, SubPathSample
from slam_edu.schedule import NoiseSchedule


class ContinuedChord(SubPathDistiller):
    """Level conditioning and the linear coupling, gamma in [0, ``reach``]."""

    def __init__(
        self, schedule: NoiseSchedule, config: DistillConfig | None = None, *, reach: float
    ) -> None:
        super().__init__(schedule, config)
        self.reach = reach

    def draw(
        self, x0: Tensor, generator: torch.Generator | Sequence[torch.Generator]
    ) -> SubPathSample:
        """As of the base, with a longer gamma."""
        sample = super().draw(x0, generator)
        t, s = self.grid.ends(sample.index)
        rho_t, rho_s = self.schedule.at(t).rho, self.schedule.at(s).rho
        # Where the chord reaches the schedule's noisiest level.
        most = (self.schedule.rho[-1] - rho_s) / (rho_t - rho_s)
        gamma = torch.minimum(sample.gamma * self.reach, most)
        return dataclasses.replace(sample, gamma=gamma)

r"""Shortcut models: a jump is two jumps of half its length.

.. math:: J_\theta(x_t, t \to s) \to
    J_{\theta^-}(J_{\theta^-}(x_t, t \to u), u \to s), \qquad u = (t + s)/2,

for lengths T/128, T/64, ... T; at length 0 the mean slope is the teacher's. Source: Frans et al.
2024 (one step diffusion via shortcut models, arXiv 2410.12557), section 3; a teacher's slope
stands for that of the data, so that this is a distillation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slam_course.family.base import Counted, Method, Trio
from slam_edu.prediction import Prediction
from slam_edu.schedule import Level


class Shortcut(Method):
    """A quarter of the batch learns jumps, the rest slopes, as in the paper."""

    name = "shortcut models"
    two_times = True
    lengths = 7  # T/2^(lengths - 1), ..., T/2, T

    def predict(
        self, network: Counted, x: Tensor, t: Tensor, s: Tensor | None = None,
        level: Level | None = None,
    ) -> Prediction:  # fmt: skip
        """As of the base; the slope is asked for as a jump of half the shortest length."""
        shortest = (self.T - 1) / 2**self.lengths
        return super().predict(network, x, t, torch.minimum(s, t - shortest), level)

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Length (0 for three quarters), place, and noise."""
        count = len(x0) // 4
        exponent = torch.randint(self.lengths, (count,), generator=generator)
        length = torch.zeros(len(x0))
        length[:count] = (self.T - 1) / 2.0**exponent
        place = torch.rand(len(x0), generator=generator)
        return length, place, torch.randn(x0.shape, generator=generator)

    def loss(self, x0: Tensor, batch: tuple[Tensor, Tensor, Tensor], networks: Trio) -> Tensor:
        """Between v of the student and v of the teacher, or of the line of two jumps."""
        length, place, noise = batch
        long = length > 0
        steps = (self.T - 1) / length[long]
        # Jumps begin at multiples of their length, slopes anywhere.
        t = place * (self.T - 1)
        t[long] = ((place[long] * steps).floor() + 1) * length[long]
        t = t.clamp(max=self.T - 1)
        s = (t - length).clamp(min=0)
        level = self.schedule.at(t)
        x_t = level.mix(x0, noise)
        v = torch.empty_like(x_t)
        v[~long] = self.v(self.teach(networks, x_t[~long], t[~long]), level[~long])
        with torch.no_grad():
            t1, s1, x1, level1 = t[long], s[long], x_t[long], level[long]
            u = (t1 + s1) / 2
            end = self.jump(networks.target, self.jump(networks.target, x1, t1, u), u, s1)
        v[long] = self.v(self.line(x1, level1, end, self.schedule.at(s1)), level1)
        return self.distance(self.v(self.predict(networks.student, x_t, t, s), level), v)

    def sample(
        self, student: Counted, x: Tensor, steps: int, generator: torch.Generator
    ) -> Tensor:
        """n jumps of one length."""
        return self.walk(student, x, self.spaced(steps))

    def solve(self, student: Counted, x: Tensor, t: Tensor) -> Tensor:
        """In jumps of the lengths that were trained: t in binary digits, the shortest first."""
        t = t.to(self.schedule.dtype)
        for exponent in range(self.lengths - 1, -1, -1):
            length = (self.T - 1) / 2**exponent
            # What is left above a multiple of twice the length.
            s = t - t % (2 * length) if exponent else torch.zeros_like(t)
            x = torch.where((s < t)[:, None], self.jump(student, x, t, s), x)
            t = s
        return x

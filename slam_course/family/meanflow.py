r"""MeanFlow: the mean slope from an identity between it and its derivative.

On the straight path :math:`x_\tau = (1-\tau) x_0 + \tau\epsilon`, :math:`\tau =
\rho/(1+\rho)`, with the velocity :math:`v = \epsilon - x_0` and its mean u between r and
:math:`\tau`,

.. math:: u(x_\tau, r, \tau) = v(x_\tau, \tau) - (\tau - r)\,\frac{\mathrm d u}{\mathrm d\tau},

where the total derivative goes along v and comes from one forward-mode product (JVP). Source: Geng
et al. 2025 (MeanFlow, arXiv 2505.13447), equations 6 and 8; a teacher's velocity stands for that
of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from slam_course.family.base import Counted, Method, Trio
from slam_edu.schedule import Level


class MeanFlow(Method):
    """t and s uniform, and equal in three quarters of the batch; ``"l2"`` is weighted adaptively.

    The paper's weight, one over the squared error of a sample.
    """

    name = "MeanFlow"
    two_times = True
    apart = 0.25  # of the batch that has s < t

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """t, s and noise."""
        times = torch.rand(2, len(x0), generator=generator) * (self.T - 1)
        t, s = times.amax(0), times.amin(0)
        apart = round(self.apart * len(x0))  # the first so many
        return t, torch.cat([s[:apart], t[apart:]]), torch.randn(x0.shape, generator=generator)

    def velocity(self, network: Counted, x: Tensor, tau: Tensor, s: Tensor) -> Tensor:
        """u of a network at points of the straight path, differentiable in x and tau."""
        rho = tau / (1 - tau)
        level, t = self.schedule.locate(rho)
        prediction = self.predict(network, self.scale(level) * x, t, s, level)
        return prediction.eps - prediction.x0

    def scale(self, level: Level) -> Tensor:
        """From the straight path's scale to the schedule's."""
        return (level.alpha + level.sigma)[:, None]

    def loss(self, x0: Tensor, batch: tuple[Tensor, Tensor, Tensor], networks: Trio) -> Tensor:
        """Between u and the identity's other side, which is taken as a constant."""
        t, s, noise = batch
        level = self.schedule.at(t)
        x_t = level.mix(x0, noise)
        teacher = self.teach(networks, x_t, t)
        v = teacher.eps - teacher.x0
        x, tau = x_t / self.scale(level), level.rho / (1 + level.rho)
        rho_s, n = self.schedule.at(s).rho, round(self.apart * len(x0))
        together = self.velocity(networks.student, x[n:], tau[n:], s[n:])
        with forward_ad.dual_level():
            along = forward_ad.make_dual(x[:n], v[:n])
            time = forward_ad.make_dual(tau[:n], torch.ones_like(tau[:n]))
            u, slope = forward_ad.unpack_dual(self.velocity(networks.student, along, time, s[:n]))
        way = (tau - rho_s / (1 + rho_s))[:n, None]
        y = torch.cat([v[:n] - way * slope.detach(), v[n:]])
        u = torch.cat([u, together])
        if self.loss_name == "huber":
            return self.distance(u, y)
        square = (u - y).square().sum(dim=1)
        return (square / (square.detach() + 1e-3)).mean()

    def sample(
        self, student: Counted, x: Tensor, steps: int, generator: torch.Generator
    ) -> Tensor:
        """n jumps between evenly spaced times."""
        return self.walk(student, x, self.spaced(steps))

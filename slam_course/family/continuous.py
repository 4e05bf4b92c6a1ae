r"""Continuous-time consistency distillation (sCM): the hop's limit 0.

With :math:`\theta = \arctan\rho` the variance-preserving path is :math:`x_\theta = \cos\theta\,
x_0 + \sin\theta\,\epsilon`, the velocity is v, and the consistency function is :math:`f = \cos
\theta\,x - \sin\theta\,F`, with F the network's v. Its tangent along the teacher's v,

.. math:: \frac{\mathrm df}{\mathrm d\theta} =
    -\cos\theta\,(F - v) - \sin\theta\,\Big(x + \frac{\mathrm dF}{\mathrm d\theta}\Big),

is driven to 0: with :math:`g = \cos\theta\,\mathrm df/\mathrm d\theta`, normalised to
:math:`g/(\|g\| + c)`, the network learns :math:`F_{\theta^-} + g`, and the second part of g is
warmed up. Source: Lu and Song 2024 (sCM, arXiv 2410.11081), equations 6 to 8, algorithm 1, with
:math:`\sigma_d = 1`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from slam_course.family.base import Counted, Method, Trio


class ContinuousConsistency(Method):
    """theta is the arctangent of a lognormal number, as in the paper."""

    name = "continuous-time consistency (sCM)"
    mean, std, c, warmup = -0.8 + math.log(2), 1.6, 0.1, 0.2  # of log rho; sigma_d is 1, not 1/2

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """rho, within the schedule, and noise."""
        rho = (self.mean + self.std * torch.randn(len(x0), generator=generator)).exp()
        # Inside the schedule, where the derivative of its timestep is defined.
        low, high = 1.001 * self.schedule.rho[0], 0.999 * self.schedule.rho[-1]
        return rho.clamp(low, high), torch.randn(x0.shape, generator=generator)

    def loss(self, x0: Tensor, batch: tuple[Tensor, Tensor], networks: Trio) -> Tensor:
        """Between F and F moved along the tangent, as a constant."""
        rho, noise = batch
        level, t = self.schedule.locate(rho)
        x_t = level.mix(x0, noise)
        v = self.v(self.teach(networks, x_t, t), level)
        theta = rho.atan()
        with forward_ad.dual_level():
            x = forward_ad.make_dual(x_t, v)
            angle = forward_ad.make_dual(theta, torch.ones_like(theta))
            _, time = self.schedule.locate(angle.tan())
            F, slope = forward_ad.unpack_dual(networks.student(x, time))
        cos, sin = level.alpha[:, None], level.sigma[:, None]
        r = min(1.0, networks.used / self.warmup)
        constant = F.detach()
        g = -(cos**2) * (constant - v) - r * cos * sin * (x_t + slope.detach())
        g = g / (g.norm(dim=1, keepdim=True) + self.c)
        return self.distance(F, constant + g)

    def solve(self, student: Counted, x: Tensor, t: Tensor) -> Tensor:
        """f, the clean sample."""
        return self.predict(student, x, t).x0

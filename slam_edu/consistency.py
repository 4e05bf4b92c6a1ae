r"""The consistency function: a network tied to the identity at timestep 0.

.. math:: f(x, t) = c_\text{skip}(t)\, x + c_\text{out}(t)\, \hat x_0(x, t),

with :math:`c_\text{skip}(0) = 1` and :math:`c_\text{out}(0) = 0`, so that :math:`f(x, 0) = x`
whatever the network predicts. Source: Song et al. 2023 (consistency models), eq. 5 and appendix C;
the scaled form is latent consistency models' (Luo et al. 2023), official script
``scalings_for_boundary_conditions``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slam_edu.prediction import read_output
from slam_edu.schedule import Level, NoiseSchedule, expand

CONDITIONINGS = ("gamma", "level")


def boundary_scalings(
    t: Tensor,
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Boundary scalings, with :math:`\tau = \text{timestep\_scaling}\cdot t`:

    .. math::
        c_\text{skip}(t) = \frac{\sigma_\text{data}^2}{\tau^2 + \sigma_\text{data}^2}, \qquad
        c_\text{out}(t) = \frac{\tau}{\sqrt{\tau^2 + \sigma_\text{data}^2}}.

    Args:
        t: timesteps, integer or real, any shape, ``t >= 0``.
        sigma_data: width of the region around t = 0 in which the skip path counts.
        timestep_scaling: 10 makes that region shorter than one timestep.
        dtype: of the result; default ``t``'s if it is floating-point, else float32.
    """
    t = t.to(dtype or (t.dtype if t.is_floating_point() else torch.float32))
    tau = timestep_scaling * t
    total = tau**2 + sigma_data**2
    return sigma_data**2 / total, tau / total.sqrt()


def consistency_output(x: Tensor, x0: Tensor, c_skip: Tensor, c_out: Tensor) -> Tensor:
    r""":math:`f = c_\text{skip}\, x + c_\text{out}\, \hat x_0`, shapes ``(B, *)`` and ``(B,)``."""
    return expand(c_skip, x) * x + expand(c_out, x) * x0


@dataclass(frozen=True, kw_only=True)
class ConsistencyFunction:
    r""":math:`f` of any network ``network(x, t, cond, gamma)``, which returns its raw output.

    Under ``"gamma"`` conditioning the network is called at an integer timestep and a gamma of
    shape ``(B,)``; under ``"level"`` at a point of the schedule's own scale, the real-valued
    timestep of its level, and gamma None.

    Attributes:
        schedule: timesteps to levels and back.
        conditioning: ``"gamma"`` or ``"level"``.
        prediction_type: what the network predicts.
        sigma_data: of the boundary scalings.
        timestep_scaling: of the boundary scalings.
    """

    schedule: NoiseSchedule
    conditioning: str = "level"
    prediction_type: str = "epsilon"
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0

    def __call__(
        self,
        network: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        level: Level,
        cond: object | None = None,
        gamma: Tensor | None = None,
    ) -> Tensor:
        r""":math:`f` at x ``(B, *)``, t ``(B,)``; checks nothing but the output's shape.

        With ``gamma``, x is a point of the sub-path of t, and ``level`` its own. Without, x is on
        the schedule, at t and ``level = schedule(t)``, which is :math:`\gamma = 1`.
        """
        if self.conditioning == "level":
            if gamma is None:
                t = t.to(x.dtype)
            else:
                x, level, t = self.schedule.rescaled(x, level)
            gamma = None
        elif gamma is None:
            gamma = torch.ones(x.shape[0], dtype=x.dtype, device=x.device)
        output = network(x, t, cond, gamma)
        x0 = read_output(output, x, level, self.prediction_type).x0
        c_skip, c_out = boundary_scalings(t, self.sigma_data, self.timestep_scaling, dtype=x.dtype)
        return consistency_output(x, x0, c_skip, c_out)

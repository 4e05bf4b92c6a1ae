r"""The consistency function: a network tied to the identity at timestep 0.

.. math:: f(x, t) = c_\text{skip}(t)\, x + c_\text{out}(t)\, \hat x_0(x, t),

with :math:`c_\text{skip}(0) = 1` and :math:`c_\text{out}(0) = 0`, so that :math:`f(x, 0) = x`
whatever the network says. Source: Song et al. 2023 (consistency models), eq. 5 and appendix C; the
scaled form is latent consistency models' (Luo et al. 2023), official script
``scalings_for_boundary_conditions``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slam_edu._validation import check_between, expand


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

    Raises:
        ValueError: for a negative or NaN timestep.
    """
    check_between(t, 0, float("inf"), "t")
    t = t.to(dtype or (t.dtype if t.is_floating_point() else torch.float32))
    tau = timestep_scaling * t
    total = tau**2 + sigma_data**2
    return sigma_data**2 / total, tau / total.sqrt()


def consistency_output(x: Tensor, x0: Tensor, c_skip: Tensor, c_out: Tensor) -> Tensor:
    r""":math:`f = c_\text{skip}\, x + c_\text{out}\, \hat x_0`, shapes ``(B, *)`` and ``(B,)``."""
    return expand(c_skip, x, "c_skip") * x + expand(c_out, x, "c_out") * x0

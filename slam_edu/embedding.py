r"""The official input of gamma: a sinusoidal embedding of :math:`10 - 10\gamma`.

With :math:`h = \lfloor D/2 \rfloor`, frequencies :math:`f_j = 10000^{-j/(h-1)}` and :math:`a_j =
1000\, w f_j`,

.. math:: e(w) = [\sin a_0, \dots, \sin a_{h-1}, \cos a_0, \dots, \cos a_{h-1}].

:math:`\gamma = 1` is :math:`e(0)`, all sines 0 and all cosines 1: what a latent-consistency
pipeline feeds at ``guidance_scale = 1``. Source: Vaswani et al. 2017; Luo et al. 2023 (LCM);
official script, ``guidance_scale_embedding``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from slam_edu._validation import check_count


def guidance_scale_embedding(w: Tensor, dim: int = 256) -> Tensor:
    """The embedding ``e(w)`` of values ``(B,)``: shape ``(B, D)``, in their dtype.

    The width ``dim``, D, is 4 or more; an odd one gets a last column of zeros.
    """
    check_count(dim, "dim", low=4)
    if w.ndim != 1 or not w.is_floating_point():
        raise ValueError(
            f"w has shape {tuple(w.shape)}, {w.dtype}; allowed: floating-point of shape (B,)"
        )
    half = dim // 2
    j = torch.arange(half, device=w.device, dtype=w.dtype)
    frequency = torch.exp(j * -(math.log(10000.0) / (half - 1)))
    a = 1000.0 * w[:, None] * frequency  # (B, h)
    return torch.nn.functional.pad(torch.cat([a.sin(), a.cos()], dim=1), (0, dim % 2))


def gamma_embedding(gamma: Tensor, dim: int = 256) -> Tensor:
    r"""Embedding of a sub-path position: :math:`e(10 - 10\gamma)`, shape ``(B, D)``."""
    return guidance_scale_embedding(10 - 10 * gamma, dim)


def smooth_gamma_features(gamma: Tensor) -> Tensor:
    r"""Features of gamma that vanish at :math:`\gamma = 1`, shape ``(B, 6)``.

    With :math:`u = 1 - \gamma` and :math:`j = 0, 1, 2`: :math:`\sin(2^j \pi u/2)` and
    :math:`1 - \cos(2^j \pi u/2)`. Unlike the official embedding they are continuous on the scale
    of [0, 1], and a network that reads them through a product without bias is at
    :math:`\gamma = 1` the network without them: there is nothing to fold on export.
    """
    angle = (1 - gamma)[:, None] * (math.pi / 2 * 2.0 ** torch.arange(3, device=gamma.device))
    return torch.cat([angle.sin(), 1 - angle.cos()], dim=1).to(gamma.dtype)


GAMMA_INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "official": gamma_embedding,
    "smooth": smooth_gamma_features,
}
"""Features of gamma by name; each maps ``(B,)`` to ``(B, F)``."""

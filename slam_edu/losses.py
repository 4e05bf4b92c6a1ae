r"""Distances between the student's output and its target, averaged over all elements.

No weight depends on t. Half-precision inputs are compared in float32. The two have one shape,
dtype and device: nothing is broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slam_edu._validation import check_alike


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Mean squared error, :math:`\operatorname{mean}\,(p - y)^2`."""
    return _difference(prediction, target).square().mean()


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = 1e-3) -> Tensor:
    r"""Pseudo-Huber loss, :math:`\operatorname{mean}\big(\sqrt{(p - y)^2 + c^2} - c\big)`.

    Quadratic below ``c > 0``, linear above. Source: official script, ``loss_type="huber"``; Song
    and Dhariwal 2024 use its vector form.
    """
    if not c > 0:
        raise ValueError(f"c is {c!r}; allowed: a number greater than 0")
    return ((_difference(prediction, target).square() + c**2).sqrt() - c).mean()


def _difference(prediction: Tensor, target: Tensor) -> Tensor:
    check_alike(target, prediction, "target", "the prediction")
    if prediction.dtype in (torch.float16, torch.bfloat16):
        prediction, target = prediction.float(), target.float()
    return prediction - target

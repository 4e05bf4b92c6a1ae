"""Exponential moving average of a network's weights, the target of consistency training."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def ema_copy(network: nn.Module) -> nn.Module:
    """A deep copy to average into: in eval mode, without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(target: nn.Module, source: nn.Module, rate: float = 0.95) -> None:
    r"""Move the target in place: :math:`\theta^- \leftarrow r\,\theta^- + (1-r)\,\theta`.

    Call it after an optimiser step, never after a skipped one. Parameters are averaged, buffers
    copied. Source: official script, ``update_ema``.

    Args:
        target: the average :math:`\theta^-`.
        source: the trained network :math:`\theta`, with the same parameter names and shapes.
        rate: :math:`r` in [0, 1]; 0 copies, 1 keeps the target.

    Raises:
        ValueError: if the rate is outside [0, 1] or the two networks differ in names, shapes,
            dtypes or devices.
    """
    average_tensors(dict(target.named_parameters()), dict(source.named_parameters()), rate)
    buffers, theirs = dict(target.named_buffers()), dict(source.named_buffers())
    _check_alike(buffers, theirs)
    for name, value in buffers.items():
        value.copy_(theirs[name])


@torch.no_grad()
def average_tensors(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], rate: float = 0.95
) -> None:
    """As :func:`update_ema`, for named tensors, such as those of adapters inside a network."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate!r}; allowed: 0 <= rate <= 1")
    _check_alike(target, source)
    if target:
        # target + (1 - rate) (source - target), one fused call for all.
        torch._foreach_lerp_(list(target.values()), [source[name] for name in target], 1 - rate)


def _check_alike(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    form, wanted = (
        {name: (tuple(x.shape), x.dtype, x.device) for name, x in tensors.items()}
        for tensors in (ours, theirs)
    )
    if form != wanted:
        odd = sorted(k for k in form.keys() | wanted.keys() if form.get(k) != wanted.get(k))
        raise ValueError(
            f"target and source differ in {', '.join(odd)}; allowed: the same names, shapes, "
            f"dtypes and devices"
        )

r"""Exponential moving average of a network's weights: :math:`\theta^- \leftarrow r\,\theta^- + (1-r)\,\theta`."""

from __future__ import annotations

import copy

import torch
from torch import nn


def ema_copy(network: nn.Module) -> nn.Module:
    """A deep copy to average into: in eval mode, without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(target: nn.Module, source: nn.Module, rate: float = 0.95) -> None:
    r"""Move ``target`` towards ``source`` in place: :math:`\theta^- \leftarrow r\,\theta^- + (1-r)\,\theta`.

    Call it after an optimiser step, never after a skipped one. Parameters are averaged, buffers copied.
    Source: official script, ``update_ema``.

    Args:
        target: the average :math:`\theta^-`.
        source: the trained network :math:`\theta`, with the same parameter names and shapes.
        rate: :math:`r` in [0, 1]; 0 copies, 1 keeps the target.

    Raises:
        ValueError: if the rate is outside [0, 1] or the two networks differ in names, shapes, dtypes
            or devices.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate!r}; allowed: 0 <= rate <= 1")
    ours, theirs = dict(target.named_parameters()), dict(source.named_parameters())
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise ValueError(f"target and source differ in parameters {odd}; allowed: the same names")
    for name, ours_value in ours.items():
        a, b = ours_value, theirs[name]
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            raise ValueError(
                f"parameter {name} is {tuple(a.shape)} {a.dtype} on {a.device} in the target and "
                f"{tuple(b.shape)} {b.dtype} on {b.device} in the source; allowed: alike"
            )
    if ours:
        # target + (1 - rate) (source - target), one fused call for all parameters.
        torch._foreach_lerp_(list(ours.values()), list(theirs.values()), 1 - rate)
    buffers = dict(source.named_buffers())
    for name, value in target.named_buffers():
        value.copy_(buffers[name])

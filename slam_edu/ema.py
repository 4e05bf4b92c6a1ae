"""Exponential moving average of a network's weights, the target of consistency training."""

from __future__ import annotations

import copy

import torch
from torch import nn


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
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate!r}; allowed: 0 <= rate <= 1")
    ours, theirs = _pairs(target, source, "parameter")
    if ours:
        # target + (1 - rate) (source - target), one fused call for all parameters.
        torch._foreach_lerp_(ours, theirs, 1 - rate)
    for value, new in zip(*_pairs(target, source, "buffer"), strict=True):
        value.copy_(new)


def _pairs(target: nn.Module, source: nn.Module, what: str) -> tuple[list, list]:
    """The two networks' parameters or buffers in one order, after a check that they are alike."""
    ours, theirs = (dict(getattr(net, f"named_{what}s")()) for net in (target, source))
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise ValueError(f"target and source differ in {what}s {odd}; allowed: the same names")
    for name, a in ours.items():
        b = theirs[name]
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            raise ValueError(
                f"{what} {name} is {tuple(a.shape)} {a.dtype} on {a.device} in the target and "
                f"{tuple(b.shape)} {b.dtype} on {b.device} in the source; allowed: alike"
            )
    return list(ours.values()), [theirs[name] for name in ours]

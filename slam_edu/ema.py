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
    _check_rate(rate)
    for what in ("parameter", "buffer"):
        ours, theirs = (dict(getattr(net, f"named_{what}s")()) for net in (target, source))
        _check_alike(ours, theirs, what)
        if what == "parameter":
            average_tensors(ours, theirs, rate)
        else:
            for name, value in ours.items():
                value.copy_(theirs[name])


@torch.no_grad()
def average_tensors(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], rate: float = 0.95
) -> None:
    r"""As :func:`update_ema`, for named tensors, such as those of adapters inside a network.

    Args:
        target: the averages, changed in place.
        source: what is averaged, by the same names.
        rate: :math:`r` in [0, 1].

    Raises:
        ValueError: as :func:`update_ema`.
    """
    _check_rate(rate)
    _check_alike(target, source, "parameter")
    if target:
        # target + (1 - rate) (source - target), one fused call for all.
        torch._foreach_lerp_(list(target.values()), [source[name] for name in target], 1 - rate)


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate!r}; allowed: 0 <= rate <= 1")


def _check_alike(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], what: str) -> None:
    """Require equal names, shapes, dtypes and devices."""
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

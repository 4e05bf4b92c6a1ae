"""Checks shared by the core: each ``ValueError`` names the value and what is allowed.

They run once per call on inputs, never on the outputs of networks (a training loop decides what to
do with a loss that is not finite).
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

import torch
from torch import Tensor


def expand(value: Tensor, x: Tensor, name: str) -> Tensor:
    """Reshape one value per sample, ``(B,)``, or one for all, ``()``, to broadcast over ``x``.

    Returns a view of shape ``(B, 1, ..., 1)`` with ``x``'s rank (or ``()`` unchanged).

    Raises:
        ValueError: if ``value`` has another rank, another batch size, or differs from ``x`` in
            dtype or device.
    """
    if value.dtype != x.dtype:
        raise ValueError(
            f"{name} has dtype {value.dtype} but the samples have {x.dtype}; convert one of them "
            f"(the schedule's dtype sets the precision of the algebra)"
        )
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device} but the samples are on {x.device}")
    if value.ndim == 0:
        return value
    if value.ndim != 1:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; allowed: () or (B,), one value per sample"
        )
    if x.ndim < 1 or value.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"{name} has {value.shape[0]} values, the samples have shape {tuple(x.shape)}; "
            f"allowed: one value per sample of the batch"
        )
    return value.reshape(-1, *(1,) * (x.ndim - 1))


def check_samples(x: Tensor, name: str, *, like: Tensor | None = None) -> None:
    """Require a floating-point batch ``(B, *)`` of finite values, with ``like``'s shape if given.

    Raises:
        ValueError: for a scalar, integers, a NaN or Inf, or a shape, dtype or device unlike
            ``like``'s.
    """
    if not x.is_floating_point():
        raise ValueError(f"{name} has dtype {x.dtype}; allowed: a floating-point dtype")
    if x.ndim < 2:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; allowed: (B, *) with rank 2 or more, "
            f"such as (B, 2) or (B, 4, 64, 64)"
        )
    if like is not None:
        check_alike(x, like, name)
    check_finite(x, name)


def check_alike(x: Tensor, like: Tensor, name: str, like_name: str = "the samples") -> None:
    """Require ``x`` to have ``like``'s shape, dtype and device.

    Raises:
        ValueError: naming the first of the three that differs.
    """
    for what, a, b in (
        ("shape", tuple(x.shape), tuple(like.shape)),
        ("dtype", x.dtype, like.dtype),
        ("device", x.device, like.device),
    ):
        if a != b:
            raise ValueError(f"{name} has {what} {a}; allowed: that of {like_name}, {b}")


def check_finite(x: Tensor, name: str) -> None:
    """Require every element to be finite.

    Raises:
        ValueError: counting the NaN and Inf elements.
    """
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(
            f"{name} holds {bad} NaN or Inf of {x.numel()} values; allowed: finite values"
        )


def check_between(value: Tensor, low: float, high: float, name: str) -> None:
    """Require ``low <= value <= high`` everywhere; a NaN fails too.

    Raises:
        ValueError: naming the first value that is outside.
    """
    if value.numel() == 0:
        return
    # One pass for both bounds; a NaN makes both of them NaN.
    smallest, largest = value.aminmax()
    if not (low <= smallest.item() and largest.item() <= high):
        inside = (value >= low) & (value <= high)
        worst = value[~inside].reshape(-1)[0].item()
        raise ValueError(f"{name} is {worst:g}; allowed: {low:g} <= {name} <= {high:g}")


def check_choice(value: object, allowed: Iterable[object], name: str) -> None:
    """Require ``value`` to be one of ``allowed``.

    Raises:
        ValueError: naming the value and the allowed set.
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")


def check_generator(generator: torch.Generator, x: Tensor, name: str) -> None:
    """Require a random generator of ``x``'s device.

    Raises:
        ValueError: naming both devices.
    """
    if generator.device.type != x.device.type:
        raise ValueError(
            f"the generator is on {generator.device} but {name} is on {x.device}; "
            f"allowed: torch.Generator(device={str(x.device)!r})"
        )


def check_count(value: int, name: str, *, low: int = 1, high: int | None = None) -> None:
    """Require an integer ``low <= value <= high``.

    Raises:
        ValueError: naming the value and its bounds.
    """
    bounds = f">= {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} is {value!r}; allowed: an integer {bounds}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}; allowed: an integer {bounds}")

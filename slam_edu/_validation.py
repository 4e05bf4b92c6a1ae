"""Checks at the door: each ``ValueError`` names the value and what is allowed.

A public function checks what is free to look at: names and numbers, shapes, dtypes, devices.
Values inside tensors (a range, a NaN) it checks on the CPU alone: on an accelerator, reading one
waits for all the work that is queued. :meth:`slam_edu.SubPathDistiller.step` reads no value at
all, wherever its tensors are, and it looks once: what it calls takes its arguments as they come.
Of a network's output the shape is checked, never the values, which are the training loop's affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

import torch
from torch import Tensor


def check_per_sample(value: Tensor, x: Tensor, name: str) -> None:
    """Require one value per sample, ``(B,)``, or for all, ``()``, alike in dtype and device."""
    if value.dtype != x.dtype:
        raise ValueError(
            f"{name} has dtype {value.dtype} but the samples have {x.dtype}; convert one of them "
            f"(the schedule's dtype sets the precision of the algebra)"
        )
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device} but the samples are on {x.device}")
    if value.ndim > 1:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; allowed: () or (B,), one value per sample"
        )
    if value.ndim == 1 and (x.ndim < 1 or len(value) not in (1, len(x))):
        raise ValueError(
            f"{name} has {len(value)} values, the samples have shape {tuple(x.shape)}; "
            f"allowed: one value per sample of the batch"
        )


def check_samples(x: Tensor, name: str, *, like: Tensor | None = None) -> None:
    """Require a floating-point batch ``(B, *)``, finite, with ``like``'s shape if it is given."""
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
    """Require ``x`` to have ``like``'s shape, dtype and device."""
    for what in ("shape", "dtype", "device"):
        a, b = getattr(x, what), getattr(like, what)
        if a != b:
            a, b = (tuple(a), tuple(b)) if what == "shape" else (a, b)
            raise ValueError(f"{name} has {what} {a}; allowed: that of {like_name}, {b}")


def check_finite(x: Tensor, name: str) -> None:
    """Require every element of a tensor on the CPU to be finite."""
    if x.device.type == "cpu" and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(
            f"{name} holds {bad} NaN or Inf of {x.numel()} values; allowed: finite values"
        )


def check_between(value: Tensor, low: float, high: float, name: str) -> None:
    """Require ``low <= value <= high`` of a tensor on the CPU; a NaN fails too."""
    if value.device.type != "cpu" or value.numel() == 0:
        return
    # One pass for both bounds; a NaN makes both of them NaN.
    smallest, largest = value.aminmax()
    if not (low <= smallest.item() and largest.item() <= high):
        inside = (value >= low) & (value <= high)
        worst = value[~inside].reshape(-1)[0].item()
        raise ValueError(f"{name} is {worst:g}; allowed: {low:g} <= {name} <= {high:g}")


def check_choice(value: object, allowed: Iterable[object], name: str) -> None:
    """Require ``value`` to be one of ``allowed``."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")


def check_generator(generator: torch.Generator, x: Tensor, name: str) -> None:
    """Require a random generator of ``x``'s device."""
    if generator.device.type != x.device.type:
        raise ValueError(
            f"the generator is on {generator.device} but {name} is on {x.device}; "
            f"allowed: torch.Generator(device={str(x.device)!r})"
        )


def check_count(value: int, name: str, *, low: int = 1, high: int | None = None) -> None:
    """Require an integer ``low <= value <= high``."""
    bounds = f">= {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} is {value!r}; allowed: an integer {bounds}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}; allowed: an integer {bounds}")

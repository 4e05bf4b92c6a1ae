"""The training loop: a generator that owns the optimiser and the moving average.

The loop draws from the generator it is given and yields after every update; progress bars, plots
and files stay with the caller. An update whose loss or gradient is not finite is skipped,
optimiser and moving average alike, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slam_edu._validation import check_count
from slam_edu.distill import DistillOutput, SubPathDistiller
from slam_edu.ema import update_ema


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    r"""How a student is trained.

    Attributes:
        updates: number of optimiser steps.
        batch: samples per update.
        lr: AdamW's peak learning rate (weight decay 0).
        warmup: updates over which the rate rises linearly from 0.
        final_lr: the rate falls along a cosine to this fraction of ``lr``; 1 keeps it constant.
        ema_rate: :math:`r` of the target network's moving average.
        clip: largest norm of the gradient.

    Raises:
        ValueError: for a value that is not allowed; it names the value and its range.
    """

    updates: int = 3000
    batch: int = 512
    lr: float = 1e-3
    warmup: int = 0
    final_lr: float = 0.0
    ema_rate: float = 0.95
    clip: float = 1.0

    def __post_init__(self) -> None:
        check_count(self.updates, "updates")
        check_count(self.batch, "batch")
        check_count(self.warmup, "warmup", low=0, high=self.updates)
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; allowed: a finite number > 0"
                )
        for name in ("final_lr", "ema_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: from 0 to 1")

    def lr_at(self, update: int) -> float:
        """The learning rate of update ``0 ... updates-1``: linear warm-up, then a cosine."""
        if update < self.warmup:
            return self.lr * (update + 1) / self.warmup
        progress = (update - self.warmup) / max(1, self.updates - self.warmup)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.lr * (self.final_lr + (1 - self.final_lr) * cosine)


@dataclass(frozen=True)
class TrainState:
    """What one update did.

    Attributes:
        update: number of updates so far, from 1.
        loss: this update's loss.
        grad_norm: the gradient's norm before clipping.
        lr: the learning rate that was used.
        skipped: number of updates so far whose loss or gradient was not finite.
        output: the step's record, detached use only.
    """

    update: int
    loss: float
    grad_norm: float
    lr: float
    skipped: int
    output: DistillOutput


def train_student(
    distiller: SubPathDistiller,
    draw_data: Callable[[int, torch.Generator], Tensor],
    *,
    teacher: Callable[..., Tensor],
    student: nn.Module,
    target: nn.Module,
    generator: torch.Generator,
    config: TrainConfig | None = None,
    max_skipped: int = 10,
) -> Iterator[TrainState]:
    """Distil ``teacher`` into ``student``, one update per yielded state.

    Args:
        distiller: computes the loss.
        draw_data: ``draw_data(batch, generator) -> x0`` of shape ``(batch, *)``.
        teacher: ``teacher(x, t, cond)``.
        student: trained in place.
        target: the student's moving average, updated in place; :func:`slam_edu.ema.ema_copy` makes
            it.
        generator: source of all randomness of the run.
        config: default :class:`TrainConfig`.
        max_skipped: how many updates in a row may be skipped.

    Raises:
        FloatingPointError: when more than ``max_skipped`` updates in a row were not finite.
    """
    config = config or TrainConfig()
    parameters = [p for p in student.parameters() if p.requires_grad]
    # Fused, all parameters in one call, counts for small networks; older torch lacks it on MPS.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=fused)
    student.train()
    skipped = in_a_row = 0
    for update in range(config.updates):
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(update)
        x0 = draw_data(config.batch, generator)
        sample = distiller.draw(x0, generator)
        output = distiller.step(x0, sample, teacher=teacher, student=student, target=target)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.clip))
        loss = float(output.loss.detach())
        if math.isfinite(loss) and math.isfinite(norm):
            optimizer.step()
            update_ema(target, student, config.ema_rate)
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row > max_skipped:
                raise FloatingPointError(
                    f"the last {in_a_row} updates up to number {update + 1} had a loss of {loss} "
                    f"or a gradient norm of {norm}; lower the learning rate ({config.lr:g}) "
                    f"or look at the data"
                )
        yield TrainState(update + 1, loss, norm, config.lr_at(update), skipped, output)

r"""The training loops: generators that own the optimiser and the moving average.

- :func:`train_teacher`: a diffusion model by denoising score matching,
- :func:`train_student`: its distillation by :class:`slam_edu.distill.SubPathDistiller`,
- :func:`train`: the loop under both, for any loss.

They draw from the generator they are given and yield after every update; plots and files stay with
the caller. An update whose loss or gradient is not finite is skipped, optimiser and moving average
alike, and counted. :func:`save_training` writes all that the next update depends on, and a loop
that is given what :func:`load_training` returns goes on as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slam_edu._validation import check_choice, check_count
from slam_edu.distill import DistillOutput, SubPathDistiller
from slam_edu.ema import update_ema
from slam_edu.io import atomic_path
from slam_edu.losses import mse
from slam_edu.prediction import Prediction, add_noise, to_output
from slam_edu.schedule import NoiseSchedule

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    r"""How a network is trained.

    Attributes:
        updates: number of optimiser steps.
        batch: samples of a batch.
        accumulate: batches of an update.
        lr: AdamW's highest learning rate.
        schedule: how the rate falls after the warm-up: ``"cosine"``, ``"linear"``, ``"constant"``.
        warmup: updates over which the rate rises linearly from 0.
        final_lr: what the rate falls to, as a fraction of ``lr``; 1 keeps it constant.
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        ema_rate: :math:`r` of the target network's moving average.
        max_skipped: how many updates in a row may be skipped, because loss or gradient is not
            finite.

    Raises:
        ValueError: for a value that is not allowed; it names the value and its range.
    """

    updates: int = 3000
    batch: int = 512
    accumulate: int = 1
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 0
    final_lr: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    ema_rate: float = 0.95
    max_skipped: int = 10

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "accumulate"):
            check_count(getattr(self, name), name)
        check_count(self.warmup, "warmup", low=0, high=self.updates)
        check_count(self.max_skipped, "max_skipped", low=0)
        check_choice(self.schedule, SCHEDULES, "schedule")
        bounds = {"lr": "> 0", "clip": "> 0", "weight_decay": ">= 0"}
        for name, bound in bounds.items():
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value == 0 and bound == "> 0"):
                raise ValueError(f"{name} is {value!r}; allowed: a finite number {bound}")
        for name in ("final_lr", "ema_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: from 0 to 1")

    def lr_at(self, update: int) -> float:
        """The learning rate of update ``0 ... updates-1``: linear warm-up, then the schedule."""
        if update < self.warmup:
            return self.lr * (update + 1) / self.warmup
        progress = (update - self.warmup) / max(1, self.updates - self.warmup)
        falling = {
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
            "linear": 1 - progress,
            "constant": 1.0,
        }[self.schedule]
        return self.lr * (self.final_lr + (1 - self.final_lr) * falling)

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class TrainState:
    """What one update did.

    Attributes:
        update: number of updates so far, from 1.
        loss: this update's loss.
        grad_norm: the gradient's norm before clipping.
        lr: the learning rate that was used.
        skipped: number of updates so far whose loss or gradient was not finite.
        optimizer: the loop's own, for :func:`save_training`.
        output: the step's record, detached use only; None for a teacher.
    """

    update: int
    loss: float
    grad_norm: float
    lr: float
    skipped: int
    optimizer: torch.optim.Optimizer
    output: DistillOutput | None = None


@dataclass(frozen=True)
class Resume:
    """Where a run goes on, from :func:`load_training`.

    Attributes:
        update: number of updates done.
        skipped: how many of them were not finite.
        moments: the optimiser's state by name of the parameter.
    """

    update: int
    skipped: int
    moments: dict[str, dict[str, Tensor]]


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
    resume: Resume | None = None,
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
        resume: from :func:`load_training`, with the same config; None begins anew. The count of
            ``max_skipped`` begins anew in any case.

    Raises:
        FloatingPointError: when more than ``max_skipped`` updates in a row were not finite.
    """
    config = config or TrainConfig()

    def loss() -> tuple[Tensor, DistillOutput]:
        x0 = draw_data(config.batch, generator)
        sample = distiller.draw(x0, generator)
        output = distiller.step(x0, sample, teacher=teacher, student=student, target=target)
        return output.loss, output

    return train(loss, student, target, config=config, max_skipped=max_skipped, resume=resume)


def denoising_loss(
    network: Callable[..., Tensor],
    schedule: NoiseSchedule,
    x0: Tensor,
    cond: Any = None,
    *,
    generator: torch.Generator,
    prediction_type: str = "epsilon",
) -> Tensor:
    r"""Denoising score matching, one batch of it.

    For t uniform on the schedule's timesteps and :math:`x_t = \alpha_t x_0 + \sigma_t\epsilon`,
    the loss is the mean squared error between the network's output and what it is to predict,
    :math:`\epsilon`, :math:`x_0` or :math:`v = \alpha_t\epsilon - \sigma_t x_0`. Source: Vincent
    2011; Ho et al. 2020, equation 14; Salimans and Ho 2022 for v.

    Args:
        network: ``network(x, t, cond)``.
        schedule: the levels.
        x0: data of shape ``(B, *)``.
        cond: passed on to the network.
        generator: of t and the noise.
        prediction_type: what the network predicts.

    Raises:
        ValueError: for an unknown prediction type.
    """
    t = torch.randint(len(schedule), x0.shape[:1], generator=generator, device=x0.device)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    level = schedule(t)
    wanted = to_output(Prediction(x0, noise), level, prediction_type)
    return mse(network(add_noise(x0, noise, level), t, cond), wanted)


def train_teacher(
    schedule: NoiseSchedule,
    draw_data: Callable[[int, torch.Generator], Tensor | tuple[Tensor, Any]],
    *,
    network: nn.Module,
    average: nn.Module,
    generator: torch.Generator,
    prediction_type: str = "epsilon",
    config: TrainConfig | None = None,
    max_skipped: int = 10,
    resume: Resume | None = None,
) -> Iterator[TrainState]:
    r"""Train a diffusion model by denoising score matching, one update per yielded state.

    Its loss is :func:`denoising_loss`.

    Args:
        schedule: the levels.
        draw_data: ``draw_data(batch, generator) -> x0`` of shape ``(batch, *)``, or
            ``(x0, cond)`` with what the network is conditioned on. To be guided later it must see
            the empty condition now and then (Ho and Salimans 2022): to put it there is
            ``draw_data``'s part.
        network: ``network(x, t, cond)``, trained in place.
        average: its moving average, the one to use; :func:`slam_edu.ema.ema_copy` makes it.
        generator: source of all randomness of the run.
        prediction_type: what the network predicts.
        config: default :class:`TrainConfig`.
        max_skipped: how many updates in a row may be skipped.
        resume: as for :func:`train_student`.

    Raises:
        FloatingPointError: when more than ``max_skipped`` updates in a row were not finite.
        ValueError: for an unknown prediction type.
    """
    config = config or TrainConfig()

    def loss() -> tuple[Tensor, None]:
        drawn = draw_data(config.batch, generator)
        x0, cond = drawn if isinstance(drawn, tuple) else (drawn, None)
        value = denoising_loss(
            network, schedule, x0, cond, generator=generator, prediction_type=prediction_type
        )
        return value, None

    return train(loss, network, average, config=config, max_skipped=max_skipped, resume=resume)


def train(
    loss_of_batch: Callable[[], tuple[Tensor, DistillOutput | None]],
    network: nn.Module,
    average: nn.Module,
    *,
    config: TrainConfig | None = None,
    max_skipped: int = 10,
    resume: Resume | None = None,
) -> Iterator[TrainState]:
    """Minimise a loss, one update per yielded state: AdamW, clipping, moving average.

    Args:
        loss_of_batch: draws a batch and returns its loss, a scalar, and a record that the state
            passes on, or None.
        network: trained in place.
        average: its moving average, updated in place.
        config: default :class:`TrainConfig`; its ``batch`` is the caller's business.
        max_skipped: how many updates in a row may be skipped.
        resume: as for :func:`train_student`.

    Raises:
        FloatingPointError: when more than ``max_skipped`` updates in a row were not finite.
    """
    config = config or TrainConfig()
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    # Fused, all parameters in one call, counts for small networks; older torch lacks it on MPS.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=fused)
    first = skipped = in_a_row = 0
    if resume is not None:
        first, skipped = resume.update, resume.skipped
        for name, p in named:
            moments = resume.moments.get(name, {})
            optimizer.state[p] = {k: laid_out_as(p, v) for k, v in moments.items()}
    network.train()
    for update in range(first, config.updates):
        lr = config.lr_at(update)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, output = loss_of_batch()
        for p in parameters:
            p.grad = None
        loss.backward()
        norm = clip_gradient(parameters, config.clip)
        value = float(loss.detach())
        if math.isfinite(value) and math.isfinite(norm):
            optimizer.step()
            update_ema(average, network, config.ema_rate)
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row > max_skipped:
                raise FloatingPointError(
                    f"the last {in_a_row} updates up to number {update + 1} had a loss of {value} "
                    f"or a gradient norm of {norm}; lower the learning rate ({config.lr:g}) "
                    f"or look at the data"
                )
        yield TrainState(update + 1, value, norm, lr, skipped, optimizer, output)


def laid_out_as(p: Tensor, moment: Tensor) -> Tensor:
    """A copy of a moment on p's device and in its memory format, which a fused optimiser assumes.

    The file has no memory format: a channels-last weight's moments would be read in wrong order.
    """
    if moment.shape != p.shape:  # the count of steps
        return moment.to(p.device, copy=True)
    return torch.empty_like(p, dtype=moment.dtype).copy_(moment)


def clip_gradient(parameters: list[Tensor], largest: float) -> float:
    """``clip_grad_norm_`` to the last bit; that one's checks take 2 % of a small network's update.

    Args:
        parameters: whose gradients are scaled in place where their norm is larger.
        largest: norm of all of them together.

    Returns:
        The norm before clipping.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    factor = largest / (norm + 1e-6)
    if factor < 1:
        torch._foreach_mul_(grads, factor)
    return float(norm)


# -------------------------------------------------------------------- stopping and going on


def save_training(
    path: str | os.PathLike[str],
    state: TrainState,
    network: nn.Module,
    average: nn.Module,
    generator: torch.Generator,
) -> None:
    """Write a run to a safetensors file, whole or not at all.

    The file holds the weights, their average, the optimiser's moments, the generator's state and
    the number of updates.

    Args:
        path: the file, in a folder that exists.
        state: the loop's last.
        network: that is trained.
        average: its moving average.
        generator: the loop's.

    Raises:
        ValueError: if the folder does not exist.
    """
    from safetensors.torch import save_file

    tensors = {"generator": generator.get_state()}
    for name, p in network.named_parameters():
        for key, moment in state.optimizer.state.get(p, {}).items():
            tensors[f"optimizer/{name}/{key}"] = moment
    for kind, module in (("network", network), ("average", average)):
        tensors |= {f"{kind}/{name}": value for name, value in module.state_dict().items()}
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    metadata = {"update": str(state.update), "skipped": str(state.skipped)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_training(
    path: str | os.PathLike[str],
    network: nn.Module,
    average: nn.Module,
    generator: torch.Generator,
) -> Resume:
    """Read a file of :func:`save_training` into the networks and the generator.

    Args:
        path: the file.
        network: that is trained; its weights are replaced.
        average: its moving average; its weights are replaced.
        generator: the loop's; its state is replaced.

    Returns:
        What the training loop takes as ``resume``.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: for a file that is damaged, is no such file, or is of other networks or of a
            generator on another kind of device. Networks and generator are then as they were.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a file; allowed: a file of save_training")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        update, skipped = int(metadata["update"]), int(metadata["skipped"])
        random_state = tensors["generator"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); allowed: a whole file of save_training"
        ) from error
    # All is checked before anything is changed.
    states = {}
    for kind, module in (("network", network), ("average", average)):
        ours = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{kind}/")}
        form, wanted = _form(ours), _form(module.state_dict())
        odd = sorted(k for k in form.keys() | wanted.keys() if form.get(k) != wanted.get(k))
        if odd:
            raise ValueError(
                f"{str(path)!r} is of another {kind}: they differ in {', '.join(odd)}; allowed: "
                f"a file of a {kind} with the same names, shapes and dtypes"
            )
        states[kind] = ours
    try:
        generator.set_state(random_state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is of another kind of generator than {generator.device}'s ({error})"
        ) from error
    network.load_state_dict(states["network"])
    average.load_state_dict(states["average"])
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, parameter, key = name.split("/")
            moments.setdefault(parameter, {})[key] = value
    return Resume(update, skipped, moments)


def _form(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}


def progress(
    states: Iterator[TrainState], updates: int, description: str = "training"
) -> Iterator[TrainState]:
    """The same states, with a bar on standard error that shows the loss; needs tqdm.

    Args:
        states: of a training loop.
        updates: how many the run has.
        description: the bar's first word.
    """
    from tqdm import tqdm

    with tqdm(total=updates, desc=description, unit="update", leave=False, mininterval=0.5) as bar:
        for state in states:
            bar.update(state.update - bar.n)
            if state.update % 100 == 0:
                bar.set_postfix(loss=f"{state.loss:.4f}", refresh=False)
            yield state

r"""The training loop: a generator that owns optimiser and moving average, a state per update.

:func:`train_student` distils by :class:`slam_edu.distill.SubPathDistiller`, :func:`train_teacher`
trains a diffusion model, :func:`train` minimises any loss of a batch; :func:`optimise` is the loop
under all of them, and under :mod:`slam_edu.sd.engine`.

An update whose loss or gradient is not finite is skipped, optimiser and moving average alike, and
counted; too many in a row are a ``FloatingPointError``. :func:`save_training` writes all that the
next update depends on, and a loop that is given what :func:`load_training` returns goes on as if
it had never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slam_edu._validation import check_choice, check_count
from slam_edu.distill import SubPathDistiller
from slam_edu.ema import update_ema
from slam_edu.io import atomic_path, save_tensors
from slam_edu.losses import mse
from slam_edu.prediction import Prediction, add_noise, to_output
from slam_edu.schedule import NoiseSchedule

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    r"""How a network is trained, by ``updates`` steps of AdamW.

    Attributes:
        accumulate: batches of an update.
        lr: AdamW's highest learning rate.
        schedule: how the rate falls after the warm-up: ``"cosine"``, ``"linear"``, ``"constant"``.
        warmup: updates over which the rate rises linearly from 0.
        final_lr: what the rate falls to, as a fraction of ``lr``.
        clip: largest norm of the gradient.
        ema_rate: :math:`r` of the target network's moving average.
        max_skipped: updates in a row that may be skipped for a loss that is not finite.
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
        for name, fits, allowed in (
            ("lr", 0 < self.lr < math.inf, "a finite number > 0"),
            ("clip", 0 < self.clip < math.inf, "a finite number > 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number >= 0"),
            ("final_lr", 0 <= self.final_lr <= 1, "from 0 to 1"),
            ("ema_rate", 0 <= self.ema_rate <= 1, "from 0 to 1"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")

    def lr_at(self, update: int) -> float:
        """The learning rate of update ``0 ... updates-1``: linear warm-up, then the schedule."""
        if update < self.warmup:
            return self.lr * (update + 1) / self.warmup
        progress = (update - self.warmup) / max(1, self.updates - self.warmup)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        falling = {"cosine": cosine, "linear": 1 - progress, "constant": 1.0}[self.schedule]
        return self.lr * (self.final_lr + (1 - self.final_lr) * falling)

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """What one update did, and what :func:`save_training` needs.

    ``update`` counts from 1; ``grad_norm`` is before clipping; ``skipped`` updates so far had a
    loss or gradient that was not finite, the last ``in_a_row`` among them; ``scaler`` is the loss
    scaler's state; ``output`` is the last batch's record.
    """

    update: int
    loss: float
    grad_norm: float
    lr: float
    skipped: int
    in_a_row: int
    optimizer: torch.optim.Optimizer
    scaler: Mapping[str, float]
    output: Any = None


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Where a run goes on, as in :class:`TrainState`; the moments are by parameter."""

    update: int = 0
    skipped: int = 0
    in_a_row: int = 0
    scaler: Mapping[str, float] = field(default_factory=dict)
    moments: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def train_student(
    distiller: SubPathDistiller,
    draw_data: Callable[[int, torch.Generator], Tensor],
    *,
    teacher: Callable[..., Tensor],
    student: nn.Module,
    target: nn.Module,
    generator: torch.Generator,
    config: TrainConfig | None = None,
    resume: Resume | None = None,
) -> Iterator[TrainState]:
    """Distil ``teacher`` into ``student``, one update per yielded state.

    Student and ``target``, its moving average (:func:`slam_edu.ema.ema_copy` makes it), are
    updated in place. ``draw_data(batch, generator)`` gives x0 of shape ``(batch, *)``; the
    generator is the source of all randomness. A run goes on from ``resume``, which
    :func:`load_training` returns, with the same config.
    """
    config = config or TrainConfig()

    def loss() -> tuple[Tensor, Any]:
        x0 = draw_data(config.batch, generator)
        sample = distiller.draw(x0, generator)
        output = distiller.step(x0, sample, teacher=teacher, student=student, target=target)
        return output.loss, output

    return train(loss, student, target, config=config, resume=resume)


def denoising_loss(
    network: Callable[..., Tensor],
    schedule: NoiseSchedule,
    x0: Tensor,
    cond: Any = None,
    *,
    generator: torch.Generator,
    prediction_type: str = "epsilon",
) -> Tensor:
    r"""Denoising score matching, one batch ``(B, *)`` of it.

    For t uniform on the schedule's timesteps and :math:`x_t = \alpha_t x_0 + \sigma_t\epsilon`,
    the loss is the mean squared error between ``network(x, t, cond)`` and what it is to predict,
    :math:`\epsilon`, :math:`x_0` or :math:`v = \alpha_t\epsilon - \sigma_t x_0`. Source: Vincent
    2011; Ho et al. 2020, equation 14; Salimans and Ho 2022 for v.
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
    resume: Resume | None = None,
) -> Iterator[TrainState]:
    """Train a diffusion model by :func:`denoising_loss`, one update per yielded state.

    ``draw_data(batch, generator)`` gives x0 or ``(x0, cond)``; to be guided later the network must
    see the empty condition now and then (Ho and Salimans 2022). The moving average is the network
    to use. The rest is as for :func:`train_student`.
    """
    config = config or TrainConfig()

    def loss() -> tuple[Tensor, None]:
        drawn = draw_data(config.batch, generator)
        x0, cond = drawn if isinstance(drawn, tuple) else (drawn, None)
        options = {"generator": generator, "prediction_type": prediction_type}
        return denoising_loss(network, schedule, x0, cond, **options), None

    return train(loss, network, average, config=config, resume=resume)


def train(
    loss_of_batch: Callable[[], tuple[Tensor, Any]],
    network: nn.Module,
    average: nn.Module,
    *,
    config: TrainConfig | None = None,
    resume: Resume | None = None,
) -> Iterator[TrainState]:
    """Minimise by AdamW the loss of what ``loss_of_batch`` draws, one update per yielded state.

    With the loss it returns a record, which the state passes on.
    """
    config = config or TrainConfig()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    # Fused counts for small networks; older torch lacks it on MPS.
    fused = all(p.device.type in ("cpu", "cuda") for p in trained.values())
    optimizer = torch.optim.AdamW(trained.values(), weight_decay=config.weight_decay, fused=fused)

    def gradient(_update: int) -> tuple[Tensor, Any]:
        total: Any = 0.0
        for _ in range(config.accumulate):
            loss, record = loss_of_batch()
            loss = loss / config.accumulate
            loss.backward()
            total = total + loss.detach()
        return total, record

    network.train()
    yield from optimise(
        gradient, trained, lambda: update_ema(average, network, config.ema_rate), optimizer,
        config, resume=resume,
    )  # fmt: skip


def optimise(
    gradient: Callable[[int], tuple[Tensor, Any]],
    trained: Mapping[str, nn.Parameter],
    average: Callable[[], None],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    resume: Resume | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Iterator[TrainState]:
    """The loop: learning rate, gradient, clipping, step, moving average, one state per update.

    ``gradient(update)`` adds the whole gradient of update 0, 1, ... to the parameters', scaled
    where there is a scaler, and returns the loss and a record. ``average()`` moves the average
    after a step. An optimiser's group may have a ``"fraction"`` of the learning rate.
    """
    resume, scaler = resume or Resume(), scaler or torch.amp.GradScaler(enabled=False)
    for name, p in trained.items():
        if moments := resume.moments.get(name):
            optimizer.state[p] = {k: _laid_out_as(p, v) for k, v in moments.items()}
    if resume.scaler:
        scaler.load_state_dict(dict(resume.scaler))
    skipped, in_a_row, first = resume.skipped, resume.in_a_row, resume.update
    del resume
    for update in range(first, config.updates):
        lr = config.lr_at(update)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("fraction", 1.0)
        optimizer.zero_grad()
        loss, output = gradient(update)
        scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(trained.values(), config.clip))
        value = float(loss)
        if math.isfinite(value) and math.isfinite(norm):
            scaler.step(optimizer)
            average()
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
        scaler.update()
        if in_a_row > config.max_skipped:
            raise FloatingPointError(
                f"the last {in_a_row} updates up to number {update + 1} had a loss of {value} or "
                f"a gradient norm of {norm}; they changed nothing. Lower the learning rate (now "
                f"{lr:g}), look at the data or, in half precision, try bfloat16 or none"
            )
        yield TrainState(
            update=update + 1, loss=value, grad_norm=norm, lr=lr, skipped=skipped,
            in_a_row=in_a_row, optimizer=optimizer, scaler=scaler.state_dict(), output=output,
        )  # fmt: skip


def _laid_out_as(p: Tensor, moment: Any) -> Any:
    """A copy of a moment on p's device and in its memory format, which fused optimisers assume."""
    if not isinstance(moment, Tensor):  # 8-bit Adam counts its steps in a plain number
        return moment
    if moment.shape != p.shape:  # the count of steps
        return moment.to(p.device, copy=True)
    return torch.empty_like(p, dtype=moment.dtype).copy_(moment)


def progress(
    states: Iterator[TrainState], updates: int, description: str = "training"
) -> Iterator[TrainState]:
    """The same states, with a bar on standard error that shows the loss."""
    from tqdm import tqdm

    with tqdm(total=updates, desc=description, unit="update", leave=False, mininterval=0.5) as bar:
        for state in states:
            bar.update(state.update - bar.n)
            if state.update % 100 == 0:
                bar.set_postfix(loss=f"{state.loss:.4f}", refresh=False)
            yield state


# -------------------------------------------------------------------- stopping and going on

#: The one entry of a file's metadata; several would be written in any order.
ABOUT = "slam_edu distillation"

Weights = nn.Module | Mapping[str, Tensor]


def save_training(
    path: str | os.PathLike[str],
    state: TrainState,
    network: Weights,
    average: Weights,
    generator: torch.Generator | None = None,
) -> None:
    """Write a run to a safetensors file: weights, average, moments, random state and counts.

    The generator is the loop's; networks are modules, or trained parameters and averages by name.

    Raises:
        OSError: if it cannot be written, as on a full disk; an older file stays as it was.
    """
    tensors, numbers = _named(network, average, generator), {}
    parameters = network.named_parameters() if isinstance(network, nn.Module) else network.items()
    for name, p in parameters:
        for key, value in state.optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                numbers[f"{name}/{key}"] = value
    about = {name: getattr(state, name) for name in ("update", "skipped", "in_a_row", "scaler")}
    about["numbers"] = numbers
    with atomic_path(path) as temporary:
        save_tensors(tensors, temporary, {ABOUT: json.dumps(about)})


def load_training(
    path: str | os.PathLike[str],
    network: Weights,
    average: Weights,
    generator: torch.Generator | None = None,
) -> Resume:
    """Read a file of :func:`save_training`; returns what the training loop takes as ``resume``.

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
            about = json.loads((file.metadata() or {})[ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        numbers = about.pop("numbers")
        resume = Resume(**about)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); allowed: a whole file of save_training"
        ) from error
    # All is checked before anything is changed.
    ours = _named(network, average, generator)
    weights = ("trained/", "average/")
    theirs = {k: v for k, v in tensors.items() if k in ours or k.startswith(weights)}
    forms = ({(k, v.shape, v.dtype) for k, v in found.items()} for found in (theirs, ours))
    if odd := sorted({name for name, *_ in set.symmetric_difference(*forms)}):
        raise ValueError(
            f"{str(path)!r} is of another network: they differ in {', '.join(odd)}; allowed: a "
            f"file of networks (and a generator) with the same names, shapes and dtypes"
        )
    if generator is not None:
        generator.set_state(tensors["generator"])
    for name, value in ours.items():  # the state of the generator is a copy of its own
        value.detach().copy_(tensors[name])
    for name, value in (*tensors.items(), *((f"optimizer/{n}", v) for n, v in numbers.items())):
        if name.startswith("optimizer/"):
            _, parameter, key = name.split("/")
            resume.moments.setdefault(parameter, {})[key] = value
    return resume


def _named(network: Weights, average: Weights, generator: Any) -> dict[str, Tensor]:
    """The tensors of all by their names in the file."""
    found = {} if generator is None else {"generator": generator.get_state()}
    for kind, weights in (("trained", network), ("average", average)):
        values = weights.state_dict() if isinstance(weights, nn.Module) else weights
        found |= {f"{kind}/{name}": value for name, value in values.items()}
    return found

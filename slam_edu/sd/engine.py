r"""The loop of a distillation: one update per yielded state, on one process or many.

It is the loop of :mod:`slam_edu.training` with what large networks need: batches that are
accumulated, processes that share an update, mixed precision, adapters. The step itself is
:meth:`slam_edu.distill.SubPathDistiller.step`, the same as for points of the plane.

**Who draws what.** Sample n = 0, 1, 2, ... of a run has a generator of its own, of (seed, n). With
W processes, a batch of B and A batches an update, update u takes the samples ``u A W B ... (u+1) A
W B - 1``; which process takes which does not change what they draw. So a run on two processes is
the run on one with twice the batch, and a run that goes on needs no random state.

**Precision.** The networks are called under autocast and nothing else is: latents, levels and the
algebra of the step stay in float32, as do trained parameters and their average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from slam_edu.distill import DistillConfig, DistillOutput, SubPathDistiller
from slam_edu.ema import average_tensors
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.checkpoint import Progress
from slam_edu.sd.components import TextCondition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import Autocast, Networks
from slam_edu.seeding import sample_generator
from slam_edu.training import clip_gradient

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Timesteps are counted in this many bins of equal width for the log.
BINS = 10

MakeDistiller = Callable[[NoiseSchedule, DistillConfig], SubPathDistiller]


class Batches(Protocol):
    """Where the engine's data come from; see :mod:`slam_edu.sd.data`."""

    empty: TextCondition

    def get(self, numbers: list[int]) -> tuple[Tensor, TextCondition]:
        """Latents (B, C, h, w), float32, and conditions of the samples with these numbers."""
        ...


@dataclass(frozen=True)
class EngineState:
    """What one update did.

    Attributes:
        update: number of updates so far, from 1.
        loss: mean over all processes and batches of the update.
        grad_norm: of the whole gradient, before clipping.
        lr: the learning rate that was used.
        skipped: number of updates so far whose loss or gradient was not finite.
        bins: sum of the squared errors of the update's samples by timestep, of shape (BINS,).
        counts: number of samples in each bin, of shape (BINS,).
        stop: some process was asked to stop.
        output: the last batch's record on this process.
    """

    update: int
    loss: float
    grad_norm: float
    lr: float
    skipped: int
    bins: Tensor
    counts: Tensor
    stop: bool
    output: DistillOutput


class Engine:
    """Trains the student of :class:`slam_edu.sd.networks.Networks`.

    Args:
        config: of the run.
        schedule: the teacher's levels, on the device.
        networks: teacher, student and target, on the device.
        batches: the data.
        prediction_type: of the teacher.
        accelerator: of several processes; None: one process.

    Attributes:
        distiller: computes the step.
        optimizer: of the trained parameters.
        progress: counts, and the loss scaler's state.
    """

    def __init__(
        self,
        config: SDConfig,
        schedule: NoiseSchedule,
        networks: Networks,
        batches: Batches,
        *,
        prediction_type: str = "epsilon",
        accelerator: Accelerator | None = None,
        distiller: MakeDistiller = SubPathDistiller,
    ) -> None:
        self.config, self.networks, self.batches = config, networks, batches
        self.accelerator = accelerator
        self.processes = accelerator.num_processes if accelerator else 1
        self.rank = accelerator.process_index if accelerator else 0
        self.device = schedule.device
        method = config.distill(prediction_type)
        self.distiller = distiller(schedule, method)
        # Samples are drawn on the CPU whatever the device, so that they are the same on all.
        on_cpu = NoiseSchedule(schedule.alpha.cpu(), schedule.sigma.cpu())
        self._drawer = distiller(on_cpu, method)
        self.optimizer = make_optimizer(config, networks, self.device)
        self.progress = Progress()
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.mixed_precision == "fp16"
        )
        if accelerator is not None and self.processes > 1:
            networks.wrapped = accelerator.prepare_model(networks.student_module)

    @property
    def batch(self) -> int:
        """Samples of an update, of all processes."""
        return self.config.training.batch * self.config.training.accumulate * self.processes

    def restore(self, progress: Progress) -> None:
        """Go on from a checkpoint that was read into networks and optimiser."""
        self.progress = progress
        if self._scaler.is_enabled() and progress.scaler:
            self._scaler.load_state_dict(dict(progress.scaler))

    def numbers(self, update: int, part: int) -> list[int]:
        """The numbers of this process's samples in one of an update's batches.

        Args:
            update: from 0.
            part: 0 ... accumulate-1.
        """
        size, config = self.config.training.batch, self.config
        first = ((update * config.training.accumulate + part) * self.processes + self.rank) * size
        return list(range(first, first + size))

    def updates(self, asked_to_stop: Callable[[], bool] = lambda: False) -> Iterator[EngineState]:
        """Train from where :attr:`progress` is to the run's last update.

        Args:
            asked_to_stop: asked once an update; the answer of any process is every state's
                ``stop``. The loop itself goes on until it is closed.

        Raises:
            FloatingPointError: when more than ``max_skipped`` updates in a row were not finite.
        """
        config, networks = self.config, self.networks
        parameters = list(networks.trained.values())
        detached = {name: p.detach() for name, p in networks.trained.items()}
        for update in range(self.progress.update, config.training.updates):
            lr = config.training.lr_at(update)
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["fraction"]
            for p in parameters:
                p.grad = None
            # loss, asked to stop, then the bins' sums and counts: one message an update
            told = torch.zeros(2 + 2 * BINS, dtype=torch.float64, device=self.device)
            for part in range(config.training.accumulate):
                output = self._backward(update, part)
                told[0] += output.loss.detach().double() / config.training.accumulate
                self._count(output, told[2 : 2 + BINS], told[2 + BINS :])
            told[1] = float(asked_to_stop())
            told[0] /= self.processes
            if self.processes > 1:
                told = self.accelerator.reduce(told, "sum")
            self._scaler.unscale_(self.optimizer)
            norm = clip_gradient(parameters, config.training.clip)
            loss, stop = told[:2].tolist()
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite:
                self._scaler.step(self.optimizer)
                average_tensors(networks.average, detached, config.training.ema_rate)
            if self._scaler.is_enabled():
                self._scaler.update()
            self._count_up(update, finite, loss, norm, lr)
            yield EngineState(
                update + 1, loss, norm, lr, self.progress.skipped,
                told[2 : 2 + BINS].cpu(), told[2 + BINS :].cpu(), stop > 0, output,
            )  # fmt: skip

    def _backward(self, update: int, part: int) -> DistillOutput:
        """The gradient of one batch, added to the parameters'."""
        networks, config = self.networks, self.config
        numbers = self.numbers(update, part)
        x0, cond = self.batches.get(numbers)
        sample = self._drawer.draw(x0.cpu(), [sample_generator(config.seed, n) for n in numbers])
        x0, cond = x0.to(self.device), cond.to(self.device)
        moved = {k: v.to(self.device) for k, v in vars(sample).items()}
        last = part + 1 == config.training.accumulate
        # Gradients are summed over processes once an update.
        alone = self.processes > 1 and not last
        with self.accelerator.no_sync(networks.wrapped) if alone else nullcontext():
            output = self.distiller.step(
                x0,
                type(sample)(**moved),
                teacher=networks.teacher,
                student=networks.student,
                target=networks.target,
                cond=cond,
                uncond=self._empty.expand(len(x0)) if config.distillation.guidance else None,
            )
            self._scaler.scale(output.loss / config.training.accumulate).backward()
        return output

    @property
    def _empty(self) -> TextCondition:
        return self.batches.empty.to(self.device)

    @torch.no_grad()
    def _count(self, output: DistillOutput, sums: Tensor, counts: Tensor) -> None:
        """Add each sample's mean squared error to the bin of its timestep."""
        error = (output.prediction - output.target).square().flatten(1).mean(1).double()
        bins = output.t * BINS // len(self.distiller.schedule)
        sums.index_add_(0, bins, error)
        counts.index_add_(0, bins, torch.ones_like(error))

    def _count_up(self, update: int, finite: bool, loss: float, norm: float, lr: float) -> None:
        in_a_row = 0 if finite else self.progress.in_a_row + 1
        self.progress = Progress(
            update=update + 1,
            skipped=self.progress.skipped + (not finite),
            in_a_row=in_a_row,
            scaler=self._scaler.state_dict(),
        )
        if in_a_row > self.config.training.max_skipped:
            raise FloatingPointError(
                f"the last {in_a_row} updates up to number {update + 1} had a loss of {loss} or a "
                f"gradient norm of {norm}; they changed nothing. Lower the learning rate (now "
                f"{lr:g}), try mixed_precision=bf16 or no (now {self.config.mixed_precision}), or "
                f"look at the data"
            )


def make_optimizer(
    config: SDConfig, networks: Networks, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; the gamma embedding is a group of its own.

    Args:
        config: of the run.
        networks: whose parameters are trained.
        device: where they are.

    Raises:
        ModuleNotFoundError: for ``adamw8bit`` without bitsandbytes.
        ValueError: for ``adamw8bit`` without a CUDA GPU.
    """
    groups: dict[float, list] = {}
    for name, p in networks.trained.items():
        fraction = config.gamma_lr if "cond_proj" in name else 1.0
        groups.setdefault(fraction, []).append(p)
    listed = [{"params": ps, "fraction": fraction} for fraction, ps in groups.items()]
    options = {"lr": config.training.lr, "weight_decay": config.training.weight_decay}
    if config.optimizer == "adamw8bit":
        if device.type != "cuda":
            raise ValueError(f"optimizer is 'adamw8bit' on {device.type}; allowed there: 'adamw'")
        try:
            from bitsandbytes.optim import AdamW8bit
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "optimizer='adamw8bit' needs bitsandbytes; install it with `pip install "
                "bitsandbytes`, or take optimizer=adamw and four times the memory for its state",
                name="bitsandbytes",
            ) from error
        return AdamW8bit(listed, **options)
    return torch.optim.AdamW(listed, **options, fused=device.type in ("cpu", "cuda"))


def make_autocast(config: SDConfig, device: torch.device) -> Autocast:
    """What makes the context in which the networks are called.

    Args:
        config: of the run.
        device: computed on.
    """
    if config.mixed_precision == "no":
        return nullcontext
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]
    return lambda: torch.autocast(device.type, dtype)

r"""The loop of a distillation: one update per yielded state, on one process or many.

It is :func:`slam_edu.training.optimise` with accumulated batches, processes that share an update,
mixed precision, adapters. The step is the same as for points of the plane.

**Who draws what.** Sample n = 0, 1, 2, ... of a run has a generator of its own, of (seed, n). With
W processes, a batch of B and A batches an update, update u takes the samples ``u A W B ... (u+1) A
W B - 1``; which process takes which does not change what they draw. So a run on two processes is
the run on one with twice the batch, and a run that goes on needs no random state.

**Precision.** The networks are called under autocast and nothing else is: latents, levels and the
algebra of the step stay in float32, as do trained parameters and their average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from slam_edu.distill import DistillConfig, DistillOutput, SubPathDistiller
from slam_edu.ema import average_tensors
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import TextCondition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import Autocast, Networks
from slam_edu.seeding import sample_generator
from slam_edu.training import Resume, TrainState, optimise

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


@dataclass(frozen=True, kw_only=True)
class EngineState(TrainState):
    """What one update did; ``output`` is the last batch's record on this process.

    Attributes:
        bins: sum of the squared errors of the update's samples by timestep, (BINS,).
        counts: number of samples in each bin, (BINS,).
        stop: some process was asked to stop.
    """

    bins: Tensor
    counts: Tensor
    stop: bool


class Engine:
    """Trains the student of :class:`slam_edu.sd.networks.Networks`.

    Schedule and networks are on the device; an accelerator joins several processes; ``distiller``
    makes the step from the schedule and ``config.distill(prediction_type)``.
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
        self.accelerator, self.device = accelerator, schedule.device
        self.processes = accelerator.num_processes if accelerator else 1
        self.rank = accelerator.process_index if accelerator else 0
        method = config.distill(prediction_type)
        self.distiller = distiller(schedule, method)
        # Samples are drawn on the CPU whatever the device, so that they are the same on all.
        on_cpu = NoiseSchedule(schedule.alpha.cpu(), schedule.sigma.cpu())
        self._drawer = distiller(on_cpu, method)
        self.optimizer = make_optimizer(config, networks, self.device)
        half = config.mixed_precision == "fp16"
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        if self.processes > 1:
            networks.wrapped = accelerator.prepare_model(networks.student_module)

    @property
    def batch(self) -> int:
        """Samples of an update, of all processes."""
        return self.config.training.batch * self.config.training.accumulate * self.processes

    def numbers(self, update: int, part: int) -> list[int]:
        """The numbers of this process's samples in batch 0 ... accumulate-1 of an update."""
        size, accumulate = self.config.training.batch, self.config.training.accumulate
        first = ((update * accumulate + part) * self.processes + self.rank) * size
        return list(range(first, first + size))

    def updates(
        self, asked_to_stop: Callable[[], bool] = lambda: False, resume: Resume | None = None
    ) -> Iterator[EngineState]:
        """Train to the run's last update; errors are those of :func:`slam_edu.training.optimise`.

        ``asked_to_stop`` is asked once an update; the answer of any process is every state's
        ``stop``. The loop itself goes on until it is closed.
        """
        networks, training = self.networks, self.config.training
        detached = {name: p.detach() for name, p in networks.trained.items()}
        states = optimise(
            lambda update: self._gradient(update, asked_to_stop),
            networks.trained,
            lambda: average_tensors(networks.average, detached, training.ema_rate),
            self.optimizer, training, resume=resume, scaler=self._scaler,
        )  # fmt: skip
        del resume
        try:
            for state in states:
                sums, output = state.output
                stop, bins = sums[1] > 0, sums[2:].cpu().view(2, BINS)
                yield EngineState(
                    **{**vars(state), "output": output}, stop=bool(stop), bins=bins[0],
                    counts=bins[1],
                )  # fmt: skip
        except FloatingPointError as error:
            if self._x_s.isfinite().all():
                raise
            raise FloatingPointError(
                f"{error}. The teacher's output is not finite either: the cause is not the "
                f"student's, but in the teacher's weights or precision, or in the data"
            ) from error

    def _gradient(
        self, update: int, asked_to_stop: Callable[[], bool]
    ) -> tuple[Tensor, tuple[Tensor, DistillOutput]]:
        """The update's whole gradient and loss, over batches and processes."""
        accumulate = self.config.training.accumulate
        # loss, asked to stop, then the bins' sums and counts: one message an update
        sums = torch.zeros(2 + 2 * BINS, dtype=torch.float64, device=self.device)
        for part in range(accumulate):
            output = self._backward(update, part)
            sums[0] += output.loss.detach().double() / accumulate
            # each sample's mean squared error, to the bin of its timestep
            error = (output.prediction - output.target).detach().square().flatten(1).mean(1)
            bins = (output.t * BINS // len(self.distiller.schedule)).long()
            sums[2 : 2 + BINS].index_add_(0, bins, error.double())
            sums[2 + BINS :].index_add_(0, bins, torch.ones_like(error, dtype=torch.float64))
        sums[1] = float(asked_to_stop())
        sums[0] /= self.processes
        if self.processes > 1:
            sums = self.accelerator.reduce(sums, "sum")
        return sums[0], (sums, output)

    def _backward(self, update: int, part: int) -> DistillOutput:
        """The gradient of one batch, added to the parameters'."""
        networks, accumulate = self.networks, self.config.training.accumulate
        numbers = self.numbers(update, part)
        x0, cond = self.batches.get(numbers)
        generators = [sample_generator(self.config.seed, n) for n in numbers]
        sample = self._drawer.draw(x0.cpu(), generators)
        x0, cond = x0.to(self.device), cond.to(self.device)
        empty = self.batches.empty.to(self.device).expand(len(x0))
        # Gradients are summed over processes once an update.
        alone = self.processes > 1 and part + 1 < accumulate
        with self.accelerator.no_sync(networks.wrapped) if alone else nullcontext():
            output = self.distiller.step(
                x0, type(sample)(**{k: v.to(self.device) for k, v in vars(sample).items()}),
                teacher=networks.teacher, student=networks.student, target=networks.target,
                cond=cond, uncond=empty if self.config.distillation.guidance else None,
            )  # fmt: skip
            self._scaler.scale(output.loss / accumulate).backward()
        self._x_s = output.x_s
        return output


def make_optimizer(
    config: SDConfig, networks: Networks, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; the gamma embedding is a group of its own."""
    kind = optimizer_class(config, device)
    groups: dict[float, list] = {}
    for name, p in networks.trained.items():
        fraction = config.gamma_lr if "cond_proj" in name else 1.0
        groups.setdefault(fraction, []).append(p)
    listed = [{"params": ps, "fraction": fraction} for fraction, ps in groups.items()]
    options = {"lr": config.training.lr, "weight_decay": config.training.weight_decay}
    if config.optimizer == "adamw":
        options["fused"] = device.type in ("cpu", "cuda")
    return kind(listed, **options)


def optimizer_class(config: SDConfig, device: torch.device) -> type[torch.optim.Optimizer]:
    """The optimiser that is wanted.

    Raises:
        ValueError: if it does not run on the device.
        ModuleNotFoundError: if its package is not installed.
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW
    if device.type != "cuda":
        raise ValueError(f"optimizer is 'adamw8bit' on {device.type}; allowed there: 'adamw'")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "optimizer='adamw8bit' needs bitsandbytes; install it with `pip install "
            "bitsandbytes`, or use optimizer=adamw and four times the memory for its state",
            name="bitsandbytes",
        ) from error
    return AdamW8bit


def make_autocast(config: SDConfig, device: torch.device) -> Autocast:
    """What makes the context in which the networks are called."""
    if config.mixed_precision == "no":
        return nullcontext
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]
    return lambda: torch.autocast(device.type, dtype)

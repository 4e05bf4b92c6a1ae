"""A training run in a folder: configuration, log, checkpoint, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slam_edu.ema import ema_copy
from slam_edu.io import append_row, atomic_path, read_rows, shorten
from slam_edu.training import TrainConfig, load_training, save_training, train

CHECKPOINT, CONFIG, LOG = "training.safetensors", "config.json", "log.csv"
COLUMNS = ("update", "loss", "grad_norm", "lr", "seconds")


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """What the training of every part is told.

    Attributes:
        updates, batch, lr, warmup, ema_rate: as in :class:`slam_edu.training.TrainConfig`.
        seed: of the weights, the data and the noise.
    """

    updates: int
    batch: int
    lr: float
    warmup: int
    ema_rate: float
    seed: int = 0

    def training(self) -> TrainConfig:
        """The loop's part of it."""
        return TrainConfig(
            updates=self.updates,
            batch=self.batch,
            lr=self.lr,
            warmup=self.warmup,
            ema_rate=self.ema_rate,
        )


def run_training(
    folder: Path,
    config: Any,
    training: TrainConfig,
    loss_of_batch: Callable[[torch.Generator], Tensor],
    network: nn.Module,
    *,
    seed: int,
    log_every: int = 100,
    save_every: int = 200,
    measure: Callable[[nn.Module], str] | None = None,
    measure_every: int = 1000,
    show: Callable[[str], None] = print,
) -> nn.Module:
    """Train a network to the end, or from where the folder's checkpoint is to the end.

    Args:
        folder: made if it is not there; holds ``config.json``, ``log.csv`` (means over
            ``log_every`` updates; seconds are those of training, stops left out) and
            ``training.safetensors``.
        config: a dataclass, saved; a folder of another configuration is refused.
        training: the loop's part of it.
        loss_of_batch: draws from the generator and returns a scalar.
        network: trained in place.
        seed: of the run's generator.
        log_every: updates per row of the log.
        save_every: updates per checkpoint, a multiple of ``log_every``, so that the log of a run
            that was stopped is that of one that was not.
        measure: what is said of the moving average every ``measure_every`` updates and at the
            end.
        measure_every: updates.
        show: takes the lines that are printed.

    Returns:
        the moving average of the weights.

    Raises:
        ValueError: for a folder with another configuration, a damaged checkpoint, or a
            ``save_every`` that is no multiple of ``log_every``.
        FloatingPointError: when too many updates in a row were not finite.
    """
    if save_every % log_every:
        raise ValueError(
            f"save_every is {save_every}; allowed: a multiple of log_every, which is {log_every}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder / CONFIG, config)
    average = ema_copy(network)
    generator = torch.Generator().manual_seed(seed)
    resume, before = None, 0.0
    if (folder / CHECKPOINT).exists():
        resume = load_training(folder / CHECKPOINT, network, average, generator)
        before = shorten(folder / LOG, COLUMNS, resume.update)
        word = "finished:" if resume.update == training.updates else "going on after"
        show(f"{word} update {resume.update:,} of {training.updates:,}")
    else:  # a run that was stopped before its first checkpoint may have left rows
        (folder / LOG).unlink(missing_ok=True)
    started = time.perf_counter()
    sums, summed = [0.0, 0.0], 0
    for state in train(
        lambda: (loss_of_batch(generator), None),
        network,
        average,
        config=training,
        resume=resume,
    ):
        sums, summed = [sums[0] + state.loss, sums[1] + state.grad_norm], summed + 1
        last = state.update == training.updates
        if state.update % log_every == 0 or last:
            seconds = before + time.perf_counter() - started
            row = (state.update, *(s / summed for s in sums), state.lr, seconds)
            append_row(folder / LOG, COLUMNS, row)
            progress = f"update {row[0]:,}  loss {row[1]:.4f}  grad {row[2]:.2f}"
            show(f"{progress}  {seconds / 60:.1f} min")
            sums, summed = [0.0, 0.0], 0
        if state.update % save_every == 0 or last:
            save_training(folder / CHECKPOINT, state, network, average, generator)
        if measure is not None and (state.update % measure_every == 0 or last):
            show(f"update {state.update:,}  {measure(average)}")
    return average


def updates_done(folder: Path) -> int:
    """The number of updates in a run folder's log, 0 without one."""
    return int(max((row["update"] for row in read_rows(folder / LOG)), default=0))


def _write_config(path: Path, config: Any) -> None:
    ours = dataclasses.asdict(config)
    ours = json.loads(json.dumps(ours))  # tuples become lists, as in the file
    if path.exists():
        theirs = json.loads(path.read_text("utf-8"))["config"]
        odd = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        if odd:
            raise ValueError(
                f"{str(path.parent)!r} holds a run with other settings ("
                + "; ".join(f"{k}: {theirs.get(k)!r} there, {ours.get(k)!r} here" for k in odd)
                + "); allowed: the same settings, or another folder"
            )
        return
    about = {
        "config": ours,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", "utf-8")

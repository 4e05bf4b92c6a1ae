"""A training run in a folder: configuration, log, checkpoint, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from slam_edu.ema import ema_copy
from slam_edu.io import append_row, read_rows, shorten
from slam_edu.training import TrainConfig, load_training, save_training, train
from studies.harness import machine, write_text

CHECKPOINT, CONFIG, LOG = "training.safetensors", "config.json", "log.csv"
COLUMNS = ("update", "loss", "grad_norm", "lr", "seconds")
LOG_EVERY, SAVE_EVERY, MEASURE_EVERY = 100, 200, 500
"""Updates; the second is a multiple of the first, so that a stop leaves no gap in a log."""


@dataclass(frozen=True, kw_only=True)
class PartConfig(TrainConfig):
    """How a part is trained; ``seed`` is that of weights, data and noise."""

    seed: int = 0

    @classmethod
    def of(cls, values: dict) -> PartConfig:
        """From a file's names and values, where tuples are lists."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def run_training(
    folder: Path,
    config: PartConfig,
    loss_of_batch: Callable[[torch.Generator], Tensor],
    network: nn.Module,
    measure: Callable[[nn.Module], str] | None = None,
) -> nn.Module:
    """Train a network to the end, or from where the folder's checkpoint is to the end.

    Args:
        folder: made if it is not there; holds ``config.json``, ``log.csv`` (means over
            ``LOG_EVERY`` updates; seconds are those of training, stops left out) and
            ``training.safetensors``.
        config: saved; a folder of another configuration is refused.
        loss_of_batch: draws from the generator and returns a scalar.
        network: trained in place.
        measure: what is printed of the moving average now and then, and at the end.

    Returns:
        the moving average of the weights.

    Raises:
        ValueError: for a folder with another configuration, or a damaged checkpoint.
        FloatingPointError: when too many updates in a row were not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder, config)
    average = ema_copy(network)
    generator = torch.Generator().manual_seed(config.seed)
    resume, before = None, 0.0
    if (folder / CHECKPOINT).exists():
        resume = load_training(folder / CHECKPOINT, network, average, generator)
        before = shorten(folder / LOG, COLUMNS, resume.update)
        word = "finished:" if resume.update == config.updates else "going on after"
        print(f"{word} update {resume.update:,} of {config.updates:,}")
    else:  # a run that was stopped before its first checkpoint may have left rows
        (folder / LOG).unlink(missing_ok=True)
    started = time.perf_counter()
    sums, summed = [0.0, 0.0], 0
    for state in train(
        lambda: (loss_of_batch(generator), None), network, average, config=config, resume=resume
    ):
        sums, summed = [sums[0] + state.loss, sums[1] + state.grad_norm], summed + 1
        last = state.update == config.updates
        if state.update % LOG_EVERY == 0 or last:
            seconds = before + time.perf_counter() - started
            loss, norm = (s / summed for s in sums)
            append_row(folder / LOG, COLUMNS, (state.update, loss, norm, state.lr, seconds))
            print(
                f"update {state.update:,}  loss {loss:.4f}  grad {norm:.2f}  "
                f"{seconds / 60:.1f} min"
            )
            sums, summed = [0.0, 0.0], 0
        if state.update % SAVE_EVERY == 0 or last:
            save_training(folder / CHECKPOINT, state, network, average, generator)
        if measure is not None and (state.update % MEASURE_EVERY == 0 or last):
            print(f"update {state.update:,}  {measure(average)}")
    return average


def finished(folder: Path, kind: type[PartConfig]) -> PartConfig:
    """The configuration of a run that was trained to its end.

    Raises:
        FileNotFoundError: if there is none in the folder.
    """
    path = folder / CONFIG
    if path.exists():
        config = kind.of(json.loads(path.read_text("utf-8"))["config"])
        done = max((row["update"] for row in read_rows(folder / LOG)), default=0)
        if done >= config.updates:
            return config
    raise FileNotFoundError(
        f"there is no finished run in {str(folder)!r}; first run `python -m studies.digits.train "
        f"{folder.name} --runs {folder.parent}` to its end"
    )


def _write_config(folder: Path, config: PartConfig) -> None:
    path, ours = folder / CONFIG, dataclasses.asdict(config)
    if not path.exists() or not (folder / CHECKPOINT).exists():  # a mistake fixes nothing
        about = {"config": ours, **machine()}
        write_text(path, json.dumps(about, indent=2) + "\n")
        return
    theirs = dataclasses.asdict(type(config).of(json.loads(path.read_text("utf-8"))["config"]))
    odd = [k for k in ours if ours[k] != theirs[k]]
    if odd:
        differ = "; ".join(f"{k}: {theirs[k]!r} there, {ours[k]!r} here" for k in odd)
        raise ValueError(
            f"{str(folder)!r} holds a run with other settings ({differ}); allowed: the same "
            f"settings, or another folder"
        )

"""Checkpoints of a distillation: whole or not there, the newest few kept, the readable one taken.

A checkpoint is one safetensors file, ``checkpoints/00000250.safetensors``, with all that the next
update depends on: the trained parameters, their moving average, the optimiser's state, the loss
scaler's, and the counts. There is no random state to keep, because what sample n draws depends on
(seed, n) alone (:func:`slam_edu.seeding.sample_generator`), and so is the place in the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slam_edu.io import atomic_path, save_tensors
from slam_edu.training import laid_out_as

FOLDER = "checkpoints"
#: The one entry of a file's metadata: several would be written in any order, and two runs' files
#: could not be compared byte for byte.
ABOUT = "slam_edu distillation"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The counts of a run, and its loss scaler's state.

    Attributes:
        update: number of updates done.
        skipped: how many of them were not finite.
        in_a_row: how many of the last were not.
        scaler: state of the loss scaler, empty without one.
    """

    update: int = 0
    skipped: int = 0
    in_a_row: int = 0
    scaler: Mapping[str, float] | None = None


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first.

    Args:
        folder: of the run.
    """
    return sorted((folder / FOLDER).glob("[0-9]*.safetensors"), reverse=True)


def readable(path: Path) -> bool:
    """Whether a checkpoint is a whole file of this kind; its values are not looked at."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return ABOUT in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def save_checkpoint(
    folder: Path,
    progress: Progress,
    trained: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    keep: int = 2,
) -> Path:
    """Write a checkpoint, then drop all but the newest ``keep``.

    Args:
        folder: of the run.
        progress: of the run.
        trained: the trained parameters by name.
        average: their moving averages by the same names.
        optimizer: of the trained parameters.
        keep: how many checkpoints stay.

    Raises:
        OSError: if it cannot be written, as on a full disk; older ones are as they were.
    """
    tensors, numbers = {}, {}
    for name, p in trained.items():
        tensors[f"trained/{name}"] = p
        tensors[f"average/{name}"] = average[name]
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:  # 8-bit Adam counts its steps in a plain number
                numbers[f"{name}/{key}"] = value
    about = {
        "update": progress.update, "skipped": progress.skipped, "in_a_row": progress.in_a_row,
        "scaler": dict(progress.scaler or {}), "numbers": numbers,
    }  # fmt: skip
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    path = folder / FOLDER / f"{progress.update:08d}.safetensors"
    with atomic_path(path) as temporary:
        save_tensors(tensors, temporary, {ABOUT: json.dumps(about)})
    for old in checkpoint_paths(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(
    path: Path,
    trained: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> Progress:
    """Read a checkpoint into a run's tensors; all is checked before anything is changed.

    Args:
        path: of the file.
        trained: the trained parameters by name; their values are replaced.
        average: their moving averages; their values are replaced.
        optimizer: its state is replaced; None where nothing will be trained.

    Raises:
        ValueError: for a file that is damaged, is none of :func:`save_checkpoint`, or is of other
            networks.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        scaler, numbers = about.pop("scaler"), about.pop("numbers")
        progress = Progress(**about, scaler=scaler)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); allowed: a whole checkpoint"
        ) from error
    for kind, ours in (("trained", trained), ("average", average)):
        for name in {*ours, *(k.split("/")[1] for k in tensors if k.startswith(f"{kind}/"))}:
            here, there = ours.get(name), tensors.get(f"{kind}/{name}")
            if here is None or there is None or here.shape != there.shape:
                raise ValueError(
                    f"{str(path)!r} is of another student: they differ in {name}; allowed: a "
                    f"checkpoint of this run"
                )
    with torch.no_grad():
        for kind, ours in (("trained", trained), ("average", average)):
            for name, value in ours.items():
                value.copy_(tensors[f"{kind}/{name}"])
    if optimizer is not None:
        for name, p in trained.items():
            head = f"optimizer/{name}/"
            state: dict[str, Any] = {
                key[len(head) :]: laid_out_as(p, value)
                for key, value in tensors.items()
                if key.startswith(head)
            }
            head = f"{name}/"
            state |= {k[len(head) :]: v for k, v in numbers.items() if k.startswith(head)}
            if state:
                optimizer.state[p] = state
    return progress


def load_newest(
    folder: Path,
    trained: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    show: Callable[[str], None] = print,
) -> Progress | None:
    """The newest checkpoint that can be read; one that cannot is named and passed over.

    Args:
        folder: of the run.
        trained: as for :func:`load_checkpoint`.
        average: as for :func:`load_checkpoint`.
        optimizer: as for :func:`load_checkpoint`.
        show: is told of a checkpoint that cannot be read.

    Returns:
        None where there is no checkpoint.

    Raises:
        ValueError: if there are checkpoints and none can be read.
    """
    paths = checkpoint_paths(folder)
    for path in paths:
        try:
            return load_checkpoint(path, trained, average, optimizer)
        except ValueError as error:
            if path == paths[-1]:
                raise ValueError(
                    f"{error}; no older checkpoint is left. Move {str(folder / FOLDER)!r} away to "
                    f"begin anew"
                ) from error
            show(f"{error}; going back to the one before")
    return None

"""A run's checkpoints: the newest few are kept, the newest readable one is taken.

Each is one file of :func:`slam_edu.training.save_training`, ``checkpoints/00000250.safetensors``.
It holds no random state, because what sample n draws depends on (seed, n) alone
(:func:`slam_edu.seeding.sample_generator`), and so does the place in the data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from slam_edu.io import make_folder
from slam_edu.sd.networks import Networks
from slam_edu.training import ABOUT, Resume, TrainState, load_training, save_training

FOLDER = "checkpoints"


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first: the files that have exactly the names it gives."""
    return sorted(
        (path for path in (folder / FOLDER).glob("*.safetensors")
         if re.fullmatch("[0-9]{8}|[1-9][0-9]{8,}", path.stem)),
        key=lambda path: int(path.stem), reverse=True,
    )  # fmt: skip


def updates_done(folder: Path) -> int:
    """The number of updates that the newest whole checkpoint names; its values are not read."""
    from safetensors import SafetensorError, safe_open

    for path in checkpoint_paths(folder):
        try:
            with safe_open(path, framework="pt") as file:
                return json.loads(file.metadata()[ABOUT])["update"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            continue
    return 0


def save_checkpoint(folder: Path, state: TrainState, networks: Networks, keep: int = 2) -> Path:
    """Write a checkpoint, then drop all but the newest ``keep``; an ``OSError`` drops none."""
    path = make_folder(folder / FOLDER) / f"{state.update:08d}.safetensors"
    save_training(path, state, networks.trained, networks.average)
    for old in checkpoint_paths(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load_newest(
    folder: Path, networks: Networks, show: Callable[[str], None] = print
) -> Resume | None:
    """Read the newest checkpoint that is whole; one that is not is named and passed over.

    Returns None where there is no checkpoint; that none can be read is a ``ValueError``.
    """
    paths = checkpoint_paths(folder)
    for path in paths:
        try:
            return load_training(path, networks.trained, networks.average)
        except ValueError as error:
            if path == paths[-1]:
                raise ValueError(
                    f"{error}; no older checkpoint is left. Move {str(folder / FOLDER)!r} away to "
                    f"begin anew"
                ) from error
            show(f"{error}; going back to the one before")
    return None

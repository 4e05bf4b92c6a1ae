"""Kill a small run where it hurts most, go on, compare.

    python -m tests.sd.kill_and_go_on FOLDER TEACHER

Each run is killed once (signal 9) at one of :data:`MOMENTS` and begun again in its folder. Its
last checkpoint must be that of a run that was left alone, byte for byte. Processes are forked from
one that has imported everything. Prints a line of JSON a kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import accelerate  # noqa: F401 - before the processes are forked
import torch

import slam_edu.sd.data
import slam_edu.sd.plan  # noqa: F401
from slam_edu import io
from slam_edu.sd import run as run_module
from slam_edu.sd.checkpoint import checkpoint_paths
from slam_edu.sd.config import load_config
from slam_edu.sd.teacher import load_pipeline_folder

SETTINGS = (
    "updates=6", "batch=2", "lr=1e-3", "save_every=2", "log_every=2", "sample_every=3",
    "sample_count=1", "tracker=none", "max_samples=8", "threads=1",
)  # fmt: skip

#: Where the process ends, and the newest checkpoint that it leaves: the log is a row further than
#: the checkpoint; a checkpoint is written and not yet in its place; a grid is drawn; it is there
#: alone, before the older ones are dropped.
MOMENTS = {"save_checkpoint": 0, "os.replace": 2, "save_grid": 2, "unlink": 6}


def kill_at(moment: str) -> None:
    """Arrange this process's end at a moment."""

    def instead(original: Callable, due: Callable[..., bool]) -> Callable:
        def call(*words: object, **options: object) -> object:
            if due(*words):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*words, **options)

        return call

    if moment == "save_checkpoint":
        run_module.save_checkpoint = instead(run_module.save_checkpoint, lambda *_: True)
    elif moment == "save_grid":
        due = lambda _rows, path: path.stem == "00000003"  # noqa: E731
        run_module.save_grid = instead(run_module.save_grid, due)
    elif moment == "os.replace":
        due = lambda _from, to: Path(to).name == "00000004.safetensors"  # noqa: E731
        io.os.replace = instead(os.replace, due)
    else:
        due = lambda path, *_: path.stem == "00000002"  # noqa: E731
        Path.unlink = instead(Path.unlink, due)


def train(out: Path, teacher: str, cache: Path, moment: str | None = None) -> int:
    """Train in a forked process; its exit status, negative for a signal."""
    where = [f"out={out}", f"teacher={teacher}", f"cache_folder={cache}"]
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        if moment:
            kill_at(moment)
        config = load_config("digits", settings=[*SETTINGS, *where])
        list(run_module.DistillRun(config, show=lambda line: None))
        status = 0
    finally:
        os._exit(status)  # nothing of the parent's is to be ended


def main(folder: Path, teacher: str) -> None:
    """Print what each kill led to."""
    torch.set_num_threads(1)
    load_pipeline_folder(teacher)  # here, so that no process imports it all once more
    cache = folder / "cache"
    assert train(folder / "whole", teacher, cache) == 0
    wanted = checkpoint_paths(folder / "whole")[0].read_bytes()
    for moment in MOMENTS:
        out = folder / moment
        killed = train(out, teacher, cache, moment)
        newest = max((int(p.stem) for p in checkpoint_paths(out)), default=0)
        again = train(out, teacher, cache)
        equal = checkpoint_paths(out)[0].read_bytes() == wanted
        about = {"moment": moment, "killed": killed, "newest": newest, "again": again}
        print(json.dumps({**about, "equal": equal}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""Kill a small run where it hurts most, again and again in one folder, then let it finish.

    python -m tests.sd.kill_and_go_on name=value ...

Each process is forked from one that has imported everything; all but the last end by signal 9 at
one of :data:`MOMENTS`. Prints a line of JSON a process: moment, exit status, newest checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import accelerate  # noqa: F401 - before the processes are forked
import torch

import slam_edu.sd.data
import slam_edu.sd.plan  # noqa: F401
from slam_edu.sd import run
from slam_edu.sd.checkpoint import checkpoint_paths
from slam_edu.sd.config import load_config
from slam_edu.sd.teacher import load_pipeline_folder

#: Where the process ends, and the newest checkpoint that it leaves: the log has a row, and there
#: is no checkpoint; the second is written and not yet in its place; all is done, and the oldest
#: checkpoint is still there.
MOMENTS = {"save_checkpoint": 0, "replace": 2, "unlink": 6}


def kill_at(moment: str) -> None:
    """Arrange this process's end at a moment."""
    owner, due = {
        "save_checkpoint": (run, lambda *_: True),
        "replace": (os, lambda _from, to: Path(to).name == "00000004.safetensors"),
        "unlink": (Path, lambda path, *_: path.stem == "00000002"),
    }[moment]
    original = getattr(owner, moment)

    def call(*words: object, **options: object) -> object:
        if due(*words):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*words, **options)

    setattr(owner, moment, call)


def train(settings: list[str], moment: str | None) -> int:
    """Train in a forked process; its exit status, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        if moment:
            kill_at(moment)
        list(run.DistillRun(load_config("digits", settings=settings), show=lambda line: None))
        status = 0
    finally:
        os._exit(status)  # nothing of the parent's is to be ended


if __name__ == "__main__":
    torch.set_num_threads(1)
    config = load_config("digits", settings=sys.argv[1:])
    load_pipeline_folder(config.teacher)  # here, so that no process imports it all once more
    for moment in (*MOMENTS, None):
        status = train(sys.argv[1:], moment)
        newest = max((int(p.stem) for p in checkpoint_paths(Path(config.out))), default=0)
        print(json.dumps([moment, status, newest]), flush=True)

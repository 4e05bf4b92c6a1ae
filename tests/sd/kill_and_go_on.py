"""Kill a small run at random moments, go on, and compare: ``python -m tests.sd.kill_and_go_on``.

    python -m tests.sd.kill_and_go_on FOLDER TEACHER [KILLS] [SEED]

Each of KILLS runs is killed once (signal 9), at a moment drawn from the whole time that a run
takes, and is then begun again in its folder until it is finished. Its last checkpoint must be that
of a run that was left alone, byte for byte. Processes are forked from one that has imported
everything, which is what makes twenty of them a matter of a minute. Prints a line of JSON a kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from slam_edu.sd.checkpoint import checkpoint_paths
from slam_edu.sd.config import SDConfig, load_config
from slam_edu.sd.run import DistillRun
from slam_edu.sd.teacher import load_teacher

SETTINGS = (
    "updates=8", "batch=2", "lr=1e-3", "save_every=2", "log_every=4", "sample_every=4",
    "tracker=none", "max_samples=32", "threads=1",
)  # fmt: skip
GRIDS = 4
"""Every so many runs one draws grids of samples: they take most of its time, and change nothing."""


def config_of(out: Path, teacher: str, cache: Path, grids: bool = False) -> SDConfig:
    """A run of eight updates."""
    where = [f"out={out}", f"teacher={teacher}", f"cache_folder={cache}"]
    return load_config("digits", settings=[*SETTINGS, f"sample_count={2 * grids}", *where])


def start(config: SDConfig) -> int:
    """A process that trains to the end; its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for _ in DistillRun(config, show=lambda line: None):
            pass
        status = 0
    finally:
        os._exit(status)  # nothing of the parent's is to be ended


def finished(child: int) -> int:
    """Wait for a process; its exit status, negative for a signal."""
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main(folder: Path, teacher: str, kills: int, seed: int) -> int:
    """Returns the number of runs that differ."""
    torch.set_num_threads(1)
    generator = random.Random(seed)
    cache = folder / "cache"
    import accelerate  # noqa: F401

    load_teacher(config_of(folder / "none", teacher, cache))  # imports all that a run needs
    assert finished(start(config_of(folder / "first", teacher, cache))) == 0  # makes the cache
    seconds = {}
    for grids in (True, False):
        begun = time.perf_counter()
        assert finished(start(config_of(folder / f"whole{grids}", teacher, cache, grids))) == 0
        seconds[grids] = time.perf_counter() - begun
    wanted = checkpoint_paths(folder / "wholeTrue")[0].read_bytes()
    different = 0
    number = landed = 0
    while landed < kills:
        if number == 3 * kills:
            raise RuntimeError(f"only {landed} of {number} runs were still there to be killed")
        grids = number % GRIDS == 0
        config = config_of(folder / f"run{number}", teacher, cache, grids)
        number += 1
        # The end is left out: a run that is quicker than the measured one cannot be killed there.
        moment = generator.uniform(0.05, 0.9) * seconds[grids]
        child = start(config)
        time.sleep(moment)
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if finished(child) != -signal.SIGKILL:  # it was quicker: no kill, another moment
            continue
        landed += 1
        there = checkpoint_paths(Path(config.out))
        assert finished(start(config)) == 0
        equal = checkpoint_paths(Path(config.out))[0].read_bytes() == wanted
        different += not equal
        about = {
            "moment": round(moment, 2), "equal": equal,
            "checkpoint": int(there[0].stem) if there else 0,
        }  # fmt: skip
        print(json.dumps(about), flush=True)
    return different


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "20", "0"][:4] if len(sys.argv) == 3 else sys.argv[1:]
    sys.exit(main(Path(arguments[0]), arguments[1], int(arguments[2]), int(arguments[3])))

"""Kill a small run at random moments, go on, and compare: ``python -m tests.sd.kill_and_go_on``.

    python -m tests.sd.kill_and_go_on FOLDER TEACHER [KILLS] [SEED]

Each of KILLS runs is killed once (signal 9) at a random moment, and is then begun again in its
folder until it is finished. Its last checkpoint must be that of a run that was left alone, byte
for byte. The moment is a random time after a random checkpoint, so that the kills are spread over
the run however busy the machine is. Processes are forked from one that has imported everything,
which is what makes twenty of them a matter of a minute. Prints a line of JSON a kill.
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

SETTINGS = (
    "updates=6", "batch=2", "lr=1e-3", "save_every=2", "log_every=2", "sample_every=3",
    "tracker=none", "max_samples=8", "threads=1",
)  # fmt: skip
GRIDS = 4
"""One run of so many draws grids of samples: they take most of its time and change nothing."""


def config_of(out: Path, teacher: str, cache: Path, grids: bool = False) -> SDConfig:
    """A run of six updates."""
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


def newest(config: SDConfig) -> int:
    """The update of a run's newest checkpoint; 0 where there is none."""
    paths = checkpoint_paths(Path(config.out))
    return int(paths[0].stem) if paths else 0


def main(folder: Path, teacher: str, kills: int, seed: int) -> int:
    """Returns the number of runs that differ."""
    torch.set_num_threads(1)
    generator = random.Random(seed)
    cache = folder / "cache"
    # Here and not in a process of its own: it makes the cache and imports all that a run needs.
    for _ in DistillRun(config_of(folder / "first", teacher, cache), show=lambda line: None):
        pass
    begun = time.perf_counter()
    assert finished(start(config_of(folder / "whole", teacher, cache, grids=True))) == 0
    seconds = time.perf_counter() - begun
    wanted = checkpoint_paths(folder / "whole")[0].read_bytes()
    different = 0
    number = landed = 0
    while landed < kills:
        if number == 3 * kills:
            raise RuntimeError(f"only {landed} of {number} runs were still there to be killed")
        grids = number % GRIDS == 0
        config = config_of(folder / f"run{number}", teacher, cache, grids)
        number += 1
        after = generator.choice((0, 2, 4))
        wait = generator.uniform(0.0, 0.2) * seconds
        child = start(config)
        deadline = time.perf_counter() + 20 * seconds
        while newest(config) < after and time.perf_counter() < deadline:
            time.sleep(0.005)
        time.sleep(wait)
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if finished(child) != -signal.SIGKILL:  # it was quicker: no kill, another moment
            continue
        landed += 1
        there = newest(config)
        assert finished(start(config)) == 0
        equal = checkpoint_paths(Path(config.out))[0].read_bytes() == wanted
        different += not equal
        about = {"after": after, "wait": round(wait, 2), "checkpoint": there, "equal": equal}
        print(json.dumps(about), flush=True)
    return different


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "20", "0"][:4] if len(sys.argv) == 3 else sys.argv[1:]
    sys.exit(main(Path(arguments[0]), arguments[1], int(arguments[2]), int(arguments[3])))

"""``slam-edu`` on several processes of this machine's CPU, started by ``torchrun``.

It is the command of a machine with several GPUs, without the GPUs: what is shared between the
processes, and what comes of it, can be seen on a laptop.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from slam_edu._validation import check_count


def launch(words: Sequence[str], processes: int = 2, timeout: float = 600.0) -> str:
    """Run ``slam-edu WORDS`` on several processes, one thread each; returns what it printed.

    Where there is a GPU, ``device=cpu`` is to be among the words.

    Raises:
        RuntimeError: if it fails or takes longer than ``timeout`` seconds, with its last lines.
    """
    check_count(processes, "processes")
    # accelerate launch starts several processes for GPUs alone; accelerate itself finds these.
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, *several, "-m", "slam_edu.sd", *words], env=env, text=True,
        encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, error = process.communicate(timeout=timeout)
        problem = f"failed with status {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its own
        out, error = process.communicate()
        problem = f"took more than {timeout:g} s; it was ended"
    if problem:
        last = "\n".join((error or out).strip().splitlines()[-60:])
        what = f"slam-edu {' '.join(words)} on {processes} processes"
        raise RuntimeError(f"{what} {problem}. Its last lines:\n{last}")
    return out

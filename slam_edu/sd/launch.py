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

#: Lines of an error's end that are shown.
LAST_LINES = 60


def launch_command(words: Sequence[str], processes: int) -> list[str]:
    """The command line: ``torchrun``, the number of processes, then ``slam-edu WORDS``.

    Args:
        words: such as ``["distill", "--preset", "digits", "updates=3"]``.
        processes: how many, on this machine.

    Raises:
        ValueError: for a number of processes below 1.
    """
    check_count(processes, "processes")
    # accelerate launch starts several processes for GPUs alone; accelerate itself finds these.
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    return [sys.executable, *several, "-m", "slam_edu.sd", *map(str, words)]


def launch(words: Sequence[str], processes: int = 2, timeout: float = 600.0) -> str:
    """Run ``slam-edu WORDS`` on several processes, one thread each, and wait for the end.

    Args:
        words: of the command; ``device=cpu`` is among them where there is a GPU.
        processes: how many.
        timeout: seconds after which they are ended.

    Returns:
        what was written to standard output.

    Raises:
        RuntimeError: if it fails or takes too long, with the last lines that were written.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        launch_command(words, processes), env=env, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its own
        _, error = process.communicate()
        raise RuntimeError(
            f"slam-edu {' '.join(words)} on {processes} processes took more than {timeout:g} s; "
            f"it was ended. Its last lines:\n{_end_of(error)}"
        ) from None
    if process.returncode:
        raise RuntimeError(
            f"slam-edu {' '.join(words)} on {processes} processes failed with status "
            f"{process.returncode}. Its last lines:\n{_end_of(error or out)}"
        )
    return out


def _end_of(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LAST_LINES:])

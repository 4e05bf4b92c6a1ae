"""What the machine at hand can run."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

_GIB = 2**30


@dataclass(frozen=True)
class Environment:
    """The machine, as far as the course cares.

    Attributes:
        python: version of the interpreter.
        torch: version of PyTorch.
        cores: processor cores this process may use.
        memory: of the machine, in GiB.
        accelerator: name of the GPU, None without one.
        accelerator_memory: of the GPU, in GiB; None where it shares the machine's.
    """

    python: str
    torch: str
    cores: int
    memory: float
    accelerator: str | None
    accelerator_memory: float | None

    @property
    def device(self) -> str:
        """torch's name of the best device: ``"cuda"``, ``"mps"`` or ``"cpu"``."""
        if self.accelerator is None:
            return "cpu"
        return "mps" if self.accelerator_memory is None else "cuda"

    def verdicts(self) -> list[tuple[str, bool, str]]:
        """For each kind of work: its name, whether this machine can do it, and what it needs."""
        gpu = self.accelerator_memory or 0.0
        return [
            (
                "lessons in the plane (00 to 05)",
                self.memory >= 1.9,
                "2 GiB of memory, any processor",
            ),
            ("Stable Diffusion 1.5 with LoRA", gpu >= 14, "a GPU with 16 GB, such as Colab's T4"),
            ("Stable Diffusion 1.5 in full", gpu >= 38, "a GPU with 40 GB, such as an A100"),
        ]

    def __str__(self) -> str:
        gpu = "no GPU" if self.accelerator is None else self.accelerator
        if self.accelerator_memory is not None:
            gpu += f" with {self.accelerator_memory:.0f} GiB"
        lines = [
            f"Python {self.python}, torch {self.torch}, {self.cores} cores, "
            f"{self.memory:.0f} GiB of memory, {gpu}",
        ]
        for name, can, needs in self.verdicts():
            lines.append(f"  {'yes' if can else 'no ':3s} {name:33s} needs {needs}")
        return "\n".join(lines)


def check_environment() -> Environment:
    """Look at the machine; ``print`` the result to read it.

    Raises:
        ImportError: without psutil, which comes with JupyterLab (the ``course`` extra).
    """
    import psutil

    name, memory = None, None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name, memory = properties.name, properties.total_memory / _GIB
    elif torch.backends.mps.is_available():
        name = "Apple GPU"
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not have it
        cores = os.cpu_count() or 1
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        cores=cores,
        memory=psutil.virtual_memory().total / _GIB,
        accelerator=name,
        accelerator_memory=memory,
    )

"""What the machine at hand can run."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_GIB = 2**30
#: GiB of GPU memory for Stable Diffusion 1.5; a card sold as 16 GB has 14.6 or more.
LORA_MEMORY, FULL_MEMORY = 14.0, 38.0


@dataclass(frozen=True)
class Environment:
    """The machine, as far as the course cares; memory is in GiB.

    ``accelerator`` is the GPU's name, None without one; ``accelerator_memory`` is None where it
    shares the machine's. ``cores`` are those that this process may use.
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
        lora, full = "a GPU with 16 GB, such as Colab's T4", "a GPU with 40 GB, such as an A100"
        return [
            ("lessons in the plane (00 to 05)", self.memory >= 1.9,
             "2 GiB of memory, any processor"),
            ("Stable Diffusion 1.5 with LoRA", gpu >= LORA_MEMORY, lora),
            ("Stable Diffusion 1.5 in full", gpu >= FULL_MEMORY, full),
        ]  # fmt: skip

    def __str__(self) -> str:
        gpu = self.accelerator or "no GPU"
        if self.accelerator_memory is not None:
            gpu += f" with {self.accelerator_memory:.0f} GiB"
        verdicts = (
            f"\n  {'yes' if can else 'no ':3s} {name:33s} needs {needs}"
            for name, can, needs in self.verdicts()
        )
        return (
            f"Python {self.python}, torch {self.torch}, {self.cores} cores, "
            f"{self.memory:.0f} GiB of memory, {gpu}{''.join(verdicts)}"
        )


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """The device to compute on: ``"cuda"`` before ``"mps"`` before ``"cpu"``.

    ``name`` and ``memory`` (GiB) are of a GPU that can be used; ``dtype`` is for large networks
    that run there and are not trained; ``problem`` is a sentence on a GPU that cannot be used.
    """

    device: str = "cpu"
    name: str | None = None
    memory: float | None = None
    dtype: torch.dtype = torch.float32
    problem: str = ""


def find_accelerator() -> Accelerator:
    """The best device that this build of PyTorch has code for."""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        if not _has_code((gpu.major, gpu.minor), torch.cuda.get_arch_list()):
            return Accelerator(
                problem=f"torch {torch.__version__} has no code for this {gpu.name} (compute "
                f"capability {gpu.major}.{gpu.minor}), so the processor is used: choose another "
                f"GPU, or a build of torch that is made for this one."
            )
        # A T4 (7.5) has no units for bfloat16 and is many times slower in it.
        dtype = torch.bfloat16 if gpu.major >= 8 else torch.float16
        memory = gpu.total_memory / _GIB
        return Accelerator(device="cuda", name=gpu.name, memory=memory, dtype=dtype)
    if torch.backends.mps.is_available():
        return Accelerator(device="mps", name="Apple GPU")
    return Accelerator()


def _has_code(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether code for one of ``built_for``, such as ``"sm_80"``, runs on a GPU.

    Machine code (``sm``) runs on the same major version from its minor version on; what is
    compiled on the spot (``compute``) on every later one. A letter at the end ties either to its
    own generation. Other names (AMD's) are taken on trust.
    """
    parts = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name) for name in built_for]
    versions = [(match[1], (int(match[2]), int(match[3])), match[4]) for match in parts if match]
    if len(versions) < len(parts) or not parts:
        return True
    return any(
        version <= capability
        and (version[0] == capability[0] or (kind == "compute" and not suffix))
        for kind, version, suffix in versions
    )


def check_environment() -> Environment:
    """Look at the machine; ``print`` the result to read it."""
    import psutil

    gpu = find_accelerator()
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not have it
        cores = os.cpu_count() or 1
    memory, python = psutil.virtual_memory().total / _GIB, platform.python_version()
    return Environment(python, torch.__version__, cores, memory, gpu.name, gpu.memory)

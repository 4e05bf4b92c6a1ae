"""What a machine can run, what it will take, and how often its networks are called.

:func:`choose_preset` goes by the size of the GPU; :func:`budget` adds up what
:mod:`slam_edu.sd.plan` counts: memory, disk, and an estimate of the minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from slam_course.cost import AUTOENCODER, TEXT, sample_parts
from slam_edu.environment import LORA_MEMORY
from slam_edu.sd.config import SDConfig
from slam_edu.sd.plan import GIB, make_plan
from slam_edu.shipped import shipped

SMALL, LARGE = "digits", "sd15-t4-lora"
#: TFLOP/s that one thread of a laptop or of Colab's processor reaches in the digits' UNet.
THREAD_TFLOPS = 0.04


def choose_preset(device_memory: float | None) -> str:
    """The lesson's preset on a machine whose GPU has this many GiB; None without one."""
    return LARGE if device_memory is not None and device_memory >= LORA_MEMORY else SMALL


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run will take: memory of the device and disk in GiB, an estimate of the minutes."""

    memory: float
    disk: float
    minutes: float
    device: str

    def __str__(self) -> str:
        where = "the GPU's memory" if self.device == "cuda" else "memory"
        return (
            f"{self.memory:.1f} GiB of {where}, {self.disk:.1f} GiB of disk, "
            f"about {max(1, round(self.minutes))} min"
        )


def budget(config: SDConfig, *, device: str, tflops: float) -> Budget:
    """What a run will take on a device that sustains ``tflops``; nothing is loaded.

    Raises:
        ValueError: for a teacher whose architecture is not known, data whose number is not known
            before they are read (set ``max_samples``), or a speed that is not above 0.
    """
    if not 0 < tflops < math.inf:
        raise ValueError(f"tflops is {tflops!r}; allowed: a finite number > 0")
    plan, samples = make_plan(config, device=device), data_samples(config)
    if config.data == "prompts":
        each = plan.drawing_seconds(tflops)
    else:
        parts = sample_parts(plan)
        each = (parts[AUTOENCODER] + parts[TEXT]) / (1e12 * tflops)
    disk = plan.disk()
    kept = disk["teacher"] + disk["checkpoints"]
    if config.cache:
        kept += samples * disk["cache of a sample"]
    seconds = plan.seconds(tflops) + (samples * each if config.cache else 0)
    return Budget(memory=plan.total() / GIB, disk=kept / GIB, minutes=seconds / 60, device=device)


def data_samples(config: SDConfig) -> int:
    """How many samples a run's cache will hold.

    Raises:
        ValueError: where that is not known before they are read.
    """
    if config.data == "prompts":
        from slam_edu.sd.data import default_prompts, read_prompts

        path = config.data_path
        prompts = default_prompts(config.teacher) if path is None else read_prompts(path)
        there = len(prompts) * config.draw_count
    elif (model := shipped(config.data)) is not None:
        there = len(model.data())
    elif config.max_samples is None:
        raise ValueError(
            f"data is {config.data!r} without max_samples, so that their number is not known; "
            f"allowed: max_samples=..."
        )
    else:
        there = config.max_samples
    return min(there, config.max_samples or there)


# -------------------------------------------------------------------- calls of networks

#: Class of a network to its part's name. An autoencoder's two halves are called one by one.
PARTS = {
    "UNet2DConditionModel": "unet",
    "Encoder": "vae encoder",
    "Decoder": "vae decoder",
    "CLIPTextModel": "text encoder",
}


@contextmanager
def count_samples() -> Iterator[dict[str, int]]:
    """Count, within the block, the samples that go through UNets, autoencoders, text encoders.

    All of the process's networks of these kinds are counted: teacher, student and target are one
    part, ``"unet"``. What a backward pass computes again counts again.

    Yields:
        samples by part, which grow while the block runs; parts that were not called are 0.
    """
    counts = dict.fromkeys(PARTS.values(), 0)

    def called(module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        part = PARTS.get(type(module).__name__)
        if part is not None:
            # A tensor, or a record or tuple of which the first is one.
            counts[part] += len(output if isinstance(output, Tensor) else output[0])

    hook = register_module_forward_hook(called)
    try:
        yield counts
    finally:
        hook.remove()

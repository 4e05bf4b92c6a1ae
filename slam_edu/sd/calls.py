"""How much a pipeline's networks are asked: samples that go through each of them, forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

#: Class of a network to its part's name. An autoencoder's two halves are called one by one.
PARTS = {
    "UNet2DConditionModel": "unet",
    "Encoder": "vae encoder",
    "Decoder": "vae decoder",
    "CLIPTextModel": "text encoder",
    "CLIPTextModelWithProjection": "text encoder",
}


@contextmanager
def count_samples() -> Iterator[dict[str, int]]:
    """Count, within the block, the samples that go through UNets, autoencoders, text encoders.

    All of the process's networks of these kinds are counted, by part: teacher, student and target
    are one part, ``"unet"``. What a backward pass computes again counts again.

    Yields:
        samples by part, which grow while the block runs; parts that were not called are 0.
    """
    counts = dict.fromkeys(PARTS.values(), 0)
    depth = 0  # one encoder may hold another of these classes: the outer one counts

    def enter(module: nn.Module, _inputs: tuple) -> None:
        nonlocal depth
        depth += type(module).__name__ in PARTS

    def leave(module: nn.Module, _inputs: tuple, output: object) -> None:
        nonlocal depth
        part = PARTS.get(type(module).__name__)
        if part is None:
            return
        depth -= 1
        if not depth and output is not None:  # None: it raised
            counts[part] += len(_first_tensor(output))

    hooks = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _first_tensor(output: object) -> torch.Tensor:
    """What a network returned: a tensor, or a record or tuple of which the first is one."""
    return output if isinstance(output, torch.Tensor) else output[0]

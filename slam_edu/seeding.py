"""Seeds: what is drawn without a generator, and generators that belong to one sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from slam_edu._validation import check_count

Module = TypeVar("Module", bound=nn.Module)


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """What ``build`` makes when torch's random state is that of ``seed``, which is then put back.

    Layers draw their weights from torch's global state and take no generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def sample_generator(seed: int, *numbers: int) -> torch.Generator:
    """A generator, on the CPU, that belongs to these numbers and no others.

    Sample n of a run draws from ``sample_generator(seed, n)``: what it draws depends neither on
    the batch it is in, nor on the number of processes, nor on what was drawn before.
    """
    for value in (seed, *numbers):
        check_count(value, "a seed's number", low=0)
    # Neighbouring numbers give unrelated states: numpy's seed sequence is a hash.
    [state] = np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> 1))

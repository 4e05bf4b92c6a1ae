"""The digit classifier, by cross-entropy on coloured training digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from slam_edu.digits.classifier import DigitClassifier
from slam_edu.digits.data import CaptionedDigits
from slam_edu.digits.train.run import PartConfig, run_training
from slam_edu.seeding import seeded


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(PartConfig):
    """How the classifier is made, beside what every part is told.

    Attributes:
        channels: of its stages.
        smoothing: of the labels, so that features are not driven apart without end.
    """

    channels: tuple[int, int, int] = (32, 64, 96)
    smoothing: float = 0.05
    updates: int = 1600
    batch: int = 128
    lr: float = 3e-3
    warmup: int = 100
    ema_rate: float = 0.99


def train_classifier(folder: Path, config: ClassifierConfig | None = None) -> DigitClassifier:
    """Train the classifier in a run folder; returns the averaged weights, in evaluation mode.

    Args:
        folder: of the run; see :func:`slam_edu.digits.train.run.run_training`.
        config: default :class:`ClassifierConfig`.
    """
    config = config or ClassifierConfig()
    data = CaptionedDigits("train")
    held_out = CaptionedDigits("test").batch(range(2000), seed=1)
    network = seeded(lambda: DigitClassifier(config.channels), config.seed)

    def loss_of_batch(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(data), (config.batch,), generator=generator)
        seed = int(torch.randint(2**31, (), generator=generator))
        batch = data.batch(index, seed)
        logits = network(batch.images)
        return functional.cross_entropy(logits, batch.digit, label_smoothing=config.smoothing)

    def measure(average: DigitClassifier) -> str:
        right = average.eval().read(held_out.images) == held_out.digit
        return f"held-out digits right {float(right.float().mean()):.4f}"

    average = run_training(
        folder, config, config.training(), loss_of_batch, network,
        seed=config.seed, measure=measure, measure_every=500,
    )  # fmt: skip
    return average.eval()

"""How far a measure can be trusted: its values on many small sets of images (lesson 08).

A large set is cut into small ones, and each is measured: the fraction that is all right, the
Fréchet distance, which is too large by about a constant over the number of images, and the
unbiased kernel distance, of all images at once (:mod:`slam_edu.metrics`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slam_edu._validation import check_count
from slam_edu.digits.colours import palette
from slam_edu.digits.data import DigitBatch, coloured
from slam_edu.digits.evaluate import Evaluator
from slam_edu.metrics import frechet_to, kernel_to

RIGHT, FRECHET, KERNEL = "all right", "Fréchet distance", "kernel distance"
MEASURES = (RIGHT, FRECHET, KERNEL)


@dataclass(frozen=True)
class Judged:
    """Of n images: whether digit, stroke and background are right (n, 3), features (n, 128)."""

    right: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.right)

    def __getitem__(self, index: slice | Tensor) -> Judged:
        return Judged(self.right[index], self.features[index])


def judge(evaluator: Evaluator, images: Tensor, asked: DigitBatch | None = None) -> Judged:
    """Read images (n, 3, 32, 32) in [-1, 1] once, for as many measures as may follow."""
    return Judged(evaluator.right(images, asked), evaluator.features(images))


def stamped(asked: DigitBatch) -> Tensor:
    """The same digits in the same colours, but in ten handwritings only, as if stamped.

    Every seven, say, is the batch's first seven in another pair of colours.
    """
    colours = palette(asked.images.dtype)
    ground = colours[asked.background]  # (n, 3)
    line = colours[asked.stroke] - ground
    away = asked.images - ground[:, :, None, None]
    ink = torch.einsum("bchw,bc->bhw", away, line) / line.square().sum(1)[:, None, None]
    first = {int(d): i for i, d in reversed(list(enumerate(asked.digit)))}
    stamp = torch.tensor([first[int(d)] for d in asked.digit])
    return coloured(ink[stamp].clamp(0, 1), asked.stroke, asked.background)


_DISTANCES = {FRECHET: frechet_to, KERNEL: kernel_to}


def estimates(measure: str, judged: Judged, reference: Tensor, count: int) -> list[float]:
    """One of :data:`MEASURES` of each of the small sets that a large one is cut into.

    Small sets have ``count`` images; what is left over at the end is not used. Distances are
    measured to ``reference`` features of shape (m, 128).

    Raises:
        ValueError: for a count that is not 2 to as many as there are.
    """
    check_count(count, "count", low=2, high=len(judged))
    sets = [judged[i : i + count] for i in range(0, len(judged) - count + 1, count)]
    if measure == RIGHT:
        return [float(each.right.all(1).double().mean()) for each in sets]
    distance = _DISTANCES[measure](reference)
    return [distance(each.features) for each in sets]

r"""How far a measure can be trusted: what it says of many small sets of images (lesson 08).

:func:`feature_distances` compares two large sets once. Here a large set is cut into small ones,
and each is measured, by

- the fraction that is all right,
- the Fréchet distance :math:`\lVert\mu_1-\mu_2\rVert^2 + \operatorname{tr}(C_1 + C_2 -
  2(C_1C_2)^{1/2})`, which is too large by about a constant over the number of images,
- the kernel distance, the unbiased squared maximum mean discrepancy with the kernel
  :math:`(a\cdot b/d + 1)^3`, here of all images at once and not as a mean over subsets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slam_edu._validation import check_count
from slam_edu.digits.colours import palette
from slam_edu.digits.data import DigitBatch, coloured
from slam_edu.digits.evaluate.scores import Evaluator

RIGHT, FRECHET, KERNEL = "all right", "Fréchet distance", "kernel distance"
MEASURES = (RIGHT, FRECHET, KERNEL)


@dataclass(frozen=True)
class Judged:
    """What an evaluator found in a set of images.

    Attributes:
        right: whether digit, stroke and background are as asked for, of shape (n, 3), bool.
        features: the classifier's, of shape (n, 128).
    """

    right: Tensor
    features: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.right)

    def __getitem__(self, index: slice | Tensor) -> Judged:
        """Some of the images."""
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


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between the normal distributions that fit (n, d) and (m, d)."""
    return _frechet_to(b)(a)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy between (n, d) and (m, d)."""
    return _kernel_to(b)(a)


def _frechet_to(b: Tensor) -> Callable[[Tensor], float]:
    """The distance to b, with what belongs to b alone computed once."""
    b = b.double()
    values, vectors = torch.linalg.eigh(b.T.cov())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    mean, spread = b.mean(0), values.sum()

    def distance(a: Tensor) -> float:
        a = a.double()
        covariance = a.T.cov()
        # C1 C2 and its symmetric neighbour C2^(1/2) C1 C2^(1/2) have the same eigenvalues.
        both = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0)
        apart = (a.mean(0) - mean).square().sum()
        return float(apart + covariance.trace() + spread - 2 * both.sqrt().sum())

    return distance


def _kernel_to(b: Tensor) -> Callable[[Tensor], float]:
    """The distance to b, with what belongs to b alone computed once."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k, n = kernel(x, x), len(x)
        return (k.sum() - k.trace()) / (n * (n - 1))  # no image with itself

    b = b.double()
    own = within(b)

    def distance(a: Tensor) -> float:
        a = a.double()
        return float(within(a) + own - 2 * kernel(a, b).mean())

    return distance


_DISTANCES = {FRECHET: _frechet_to, KERNEL: _kernel_to}


def estimates(measure: str, judged: Judged, reference: Tensor, count: int) -> list[float]:
    """One measure of each of the small sets that a large one is cut into.

    Args:
        measure: one of ``MEASURES``.
        judged: the large set; what is left over at its end is not used.
        reference: features that distances are measured to, of shape (m, 128).
        count: images of a small set.

    Raises:
        ValueError: for a count that is not 2 to as many as there are.
    """
    check_count(count, "count", low=2, high=len(judged))
    sets = [judged[i : i + count] for i in range(0, len(judged) - count + 1, count)]
    if measure == RIGHT:
        return [float(each.right.all(1).double().mean()) for each in sets]
    distance = _DISTANCES[measure](reference)
    return [distance(each.features) for each in sets]

r"""Scores of images against what was asked for and against real images.

The held-out digits are parted in two halves, by turns, because the writers of MNIST's earlier test
images are not those of its later ones. The prompts are the captions of the first half, so that
digits and colours are asked for as often as they occur; distances are measured to the second half.
The same figures of the first half's own images are the floor: what another 2,000 real images would
score.

- Right: the classifier reads the digit, the colour reader reads each colour.
- Fréchet distance (Heusel et al. 2017, "FID") between normal distributions fitted to the features
  of the classifier, :math:`\lVert\mu_1-\mu_2\rVert^2 + \operatorname{tr}(C_1 + C_2 -
  2(C_1C_2)^{1/2})`.
- Kernel distance (Binkowski et al. 2018, "KID"), the unbiased squared maximum mean discrepancy
  with the kernel :math:`(a\cdot b/d + 1)^3`, mean over subsets.

Both distances are torchmetrics' own, on our features instead of Inception's.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slam_edu._validation import check_count
from slam_edu.digits.captions import FULL, caption
from slam_edu.digits.classifier import DigitClassifier
from slam_edu.digits.colours import NAMES, read_colours
from slam_edu.digits.data import CaptionedDigits, DigitBatch
from slam_edu.digits.pipeline import load_classifier

KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 50, 500
#: Seed of the held-out images' colours and places.
HELD_OUT_SEED = 7


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluator says of a set of images.

    Attributes:
        count: of images.
        digit: fraction with the digit that was asked for.
        stroke: fraction with the stroke's colour.
        background: fraction with the background's colour.
        all_right: fraction with all three.
        frechet: Fréchet distance to held-out real images, from 0, no unit.
        kernel: kernel distance to them, about 0 for the same distribution, no unit.
        kernel_std: standard deviation of the kernel distance over its subsets.
    """

    count: int
    digit: float
    stroke: float
    background: float
    all_right: float
    frechet: float
    kernel: float
    kernel_std: float


class Evaluator:
    """Judges images.

    Args:
        count: of prompts, and of real images on the other side, 1,000 to 2,000 for distances.
        classifier: default the shipped one.

    Attributes:
        prompts: what to draw, ``count`` full captions.
        asked: digit, stroke and background of each, as a :class:`DigitBatch` of the real images.
        reference: features of the real images on the other side, of shape (count, 128).

    Raises:
        ValueError: for a count that is not 2 to 2,000.
    """

    def __init__(self, count: int = 2000, *, classifier: DigitClassifier | None = None) -> None:
        data = CaptionedDigits("test")
        half = len(data) // 2
        check_count(count, "count", low=2, high=half)
        self.classifier = load_classifier() if classifier is None else classifier
        self.asked: DigitBatch = data.batch(range(0, 2 * count, 2), HELD_OUT_SEED)
        self.prompts = [
            caption(FULL[0], int(d), NAMES[s], NAMES[b])
            for d, s, b in zip(
                self.asked.digit, self.asked.stroke, self.asked.background, strict=True
            )
        ]
        real = data.batch(range(1, 2 * count, 2), HELD_OUT_SEED)
        self.reference = self.features(real.images)

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 250) -> Tensor:
        """The classifier's features, of shape (B, 128).

        Args:
            images: of shape (B, 3, 32, 32), in [-1, 1].
            batch: images at a time.
        """
        return torch.cat([self.classifier.features(x) for x in images.split(batch)])

    def right(self, images: Tensor, asked: DigitBatch | None = None) -> Tensor:
        """Whether digit, stroke and background are what was asked for: (B, 3), bool.

        Args:
            images: of shape (B, 3, 32, 32), in [-1, 1].
            asked: what each is to show; default the first of the evaluator's prompts.
        """
        asked = self.asked if asked is None else asked
        digit = self.classifier.read(images)
        read = [read_colours(x) for x in images.split(250)]
        stroke, background = (torch.cat(parts) for parts in zip(*read, strict=True))
        n = len(images)
        wanted = (asked.digit[:n], asked.stroke[:n], asked.background[:n])
        pairs = zip((digit, stroke, background), wanted, strict=True)
        return torch.stack([found == want for found, want in pairs], 1)

    def score(self, images: Tensor, *, reference: Tensor | None = None) -> Scores:
        """All scores of images that were drawn for ``prompts``, in their order.

        Args:
            images: of shape (count, 3, 32, 32), in [-1, 1].
            reference: features to measure distances to; default those of held-out real images.

        Raises:
            ValueError: for another number of images than prompts.
        """
        if len(images) != len(self.prompts):
            raise ValueError(
                f"there are {len(images)} images for {len(self.prompts)} prompts; "
                f"allowed: one each"
            )
        right = self.right(images)
        digit, stroke, background = right.double().mean(0).tolist()
        frechet, kernel, kernel_std = feature_distances(
            self.reference if reference is None else reference, self.features(images)
        )
        return Scores(
            count=len(images),
            digit=digit,
            stroke=stroke,
            background=background,
            all_right=float(right.all(1).double().mean()),
            frechet=frechet,
            kernel=kernel,
            kernel_std=kernel_std,
        )

    def floor(self) -> Scores:
        """The scores of real images: those that the prompts are captions of."""
        return self.score(self.asked.images)


def feature_distances(real: Tensor, drawn: Tensor) -> tuple[float, float, float]:
    """Fréchet distance, kernel distance and its spread, between two sets of features.

    Args:
        real: of shape (n, D), such as the classifier's with D = 128.
        drawn: of shape (m, D).

    Returns:
        ``(frechet, kernel, kernel_std)``.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    passed_on = nn.Identity()
    passed_on.num_features = real.shape[1]
    size = min(KERNEL_SUBSET_SIZE, len(real), len(drawn))
    frechet = FrechetInceptionDistance(feature=passed_on)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        kernel = KernelInceptionDistance(
            feature=passed_on, subsets=KERNEL_SUBSETS, subset_size=size, coef=1.0
        )
    for metric in (frechet, kernel):
        # In float64: a sum of 2,000 squares loses what a small distance is made of.
        metric.set_dtype(torch.float64)
        metric.update(real.double(), real=True)
        metric.update(drawn.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the subsets are drawn from torch's global state
        mean, std = kernel.compute()
    return float(frechet.compute()), float(mean), float(std)

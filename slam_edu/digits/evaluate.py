r"""How well a model draws the digits that it is asked for.

The held-out digits are parted in two halves, by turns, because the writers of MNIST's earlier test
images are not those of its later ones. The prompts are the captions of the first half, so that
digits and colours are asked for as often as they occur; distances are measured to the second half.
The same figures of the first half's own images are the floor: what another 2,000 real images would
score.

- Right: the classifier reads the digit, the colour reader reads each colour.
- Fréchet and kernel distance (:func:`slam_edu.metrics.feature_distances`) in the features of the
  classifier instead of Inception's, which was made for photographs of 299 pixels.

An :class:`Evaluator` does not care where images come from: a teacher, a student, the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slam_edu._validation import check_choice, check_count
from slam_edu.digits.captions import FULL, caption
from slam_edu.digits.classifier import DigitClassifier
from slam_edu.digits.colours import NAMES, read_colours
from slam_edu.digits.data import CaptionedDigits, DigitBatch
from slam_edu.digits.pipeline import load_classifier
from slam_edu.metrics import feature_distances
from slam_edu.sampling import last, sample_pf_ode
from slam_edu.sd.components import LatentDiffusion

SAMPLERS = ("ddim", "dpmpp_2m")
#: Seed of the held-out images' colours and places.
HELD_OUT_SEED = 7


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluator found in ``count`` images.

    ``digit``, ``stroke``, ``background`` and ``all_right`` are fractions with what was asked for;
    ``frechet`` and ``kernel`` distances to held-out real images, without unit, about 0 for the
    same distribution; ``kernel_std`` is the standard deviation of the kernel distance over its
    subsets.
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
    """Judges images of ``prompts``, ``count`` full captions (1,000 to 2,000 for distances).

    The default classifier is the shipped one. ``asked`` are the real images that the prompts are
    captions of, with digit, stroke and background; ``reference`` the features of as many real
    images on the other side, of shape (count, 128).

    Raises:
        ValueError: for a count that is not 2 to 2,000.
    """

    def __init__(self, count: int = 2000, *, classifier: DigitClassifier | None = None) -> None:
        data = CaptionedDigits("test")
        check_count(count, "count", low=2, high=len(data) // 2)
        self.classifier = load_classifier() if classifier is None else classifier
        self.asked = a = data.batch(range(0, 2 * count, 2), HELD_OUT_SEED)
        self.prompts = [
            caption(FULL[0], int(d), NAMES[s], NAMES[b])
            for d, s, b in zip(a.digit, a.stroke, a.background, strict=True)
        ]
        self.reference = self.features(data.batch(range(1, 2 * count, 2), HELD_OUT_SEED).images)

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 250) -> Tensor:
        """The classifier's features, of shape (B, 128)."""
        return torch.cat([self.classifier.features(x) for x in images.split(batch)])

    def right(self, images: Tensor, asked: DigitBatch | None = None) -> Tensor:
        """Whether digit, stroke and background are what was asked for: (B, 3), bool.

        Without ``asked``, by the first of the evaluator's prompts.
        """
        asked = self.asked if asked is None else asked
        read = [read_colours(x) for x in images.split(250)]
        stroke, background = (torch.cat(parts) for parts in zip(*read, strict=True))
        found = torch.stack((self.classifier.read(images), stroke, background), 1)
        wanted = torch.stack((asked.digit, asked.stroke, asked.background), 1)
        return found == wanted[: len(images)]

    def score(self, images: Tensor) -> Scores:
        """All scores of images that were drawn for ``prompts``, in their order.

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
        frechet, kernel, spread = feature_distances(self.reference, self.features(images))
        return Scores(
            count=len(images), digit=digit, stroke=stroke, background=background,
            all_right=float(right.all(1).double().mean()), frechet=frechet, kernel=kernel,
            kernel_std=spread,
        )  # fmt: skip

    def floor(self) -> Scores:
        """The scores of real images: those that the prompts are captions of."""
        return self.score(self.asked.images)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a teacher draws images: sampler, its steps, guidance w (diffusers' scale less 1)."""

    sampler: str = "ddim"
    steps: int = 50
    guidance: float = 2.0

    def __post_init__(self) -> None:
        check_choice(self.sampler, SAMPLERS, "sampler")
        check_count(self.steps, "steps", high=1000)
        if not 0 <= self.guidance <= 100:
            raise ValueError(f"guidance is {self.guidance!r}; allowed: from 0 to 100")

    @property
    def calls(self) -> int:
        """Network calls an image: guidance takes two a step."""
        return self.steps * (2 if self.guidance else 1)


@torch.no_grad()
def teacher_latents(
    model: LatentDiffusion, states: Tensor, noise: Tensor, setting: Setting, batch: int = 100
) -> Tensor:
    """A teacher's samples as latents, of the noise's shape.

    The text's states are of shape (B, L, D), the noise, x at t = T-1, of (B, C, h, w).
    """
    drawn = []
    empty = model.encode_prompts("") if setting.guidance else None
    for cond, x in zip(states.split(batch), noise.split(batch), strict=True):
        path = sample_pf_ode(
            model.network, x, model.schedule, setting.steps, method=setting.sampler,
            prediction_type=model.prediction_type, cond=cond, guidance=setting.guidance,
            uncond=None if empty is None else empty.expand_as(cond),
        )  # fmt: skip
        drawn.append(last(path))
    return torch.cat(drawn)


def draw_images(
    model: LatentDiffusion, prompts: Sequence[str], setting: Setting, noise: Tensor,
    batch: int = 100,
) -> Tensor:  # fmt: skip
    """A teacher's images for B prompts, of shape (B, 3, H, W), in [-1, 1]."""
    images = []
    for i in range(0, len(prompts), batch):
        states = model.encode_prompts(prompts[i : i + batch])
        latents = teacher_latents(model, states, noise[i : i + batch], setting, batch)
        images.append(model.decode(latents))
    return torch.cat(images)

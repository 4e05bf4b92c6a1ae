r"""A picture as a two-dimensional density: dark pixels become a Gaussian mixture.

The picture is cut into square cells, as small as leave at most ``components`` of them with ink.
Each such cell becomes one component: its weight is the cell's darkness, its mean the centre of
that darkness (not of the cell, so that lines stay smooth), and its std half a cell, which makes
even areas flat to 3 per cent. Nothing is random.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from slam_edu._validation import check_count
from slam_edu.images import RejectedError, open_image, over_white
from slam_edu.toy.mixture import GaussianMixture

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_COMPONENTS = 2000
"""Most components that a picture becomes."""

MAX_PIXELS = 64_000_000
"""Largest picture that is read, in pixels: 8,000 by 8,000."""

_SIDE = 1024  # pictures are shrunk to this first: cells are larger than its pixels
_PAPER = 0.1  # darkness below this, after stretching the contrast, is paper
_MIN_CONTRAST = 0.03  # between the lightest and the darkest pixel; 8 of 255
_SPREAD = 0.5  # std of a component, in cells


class PictureError(ValueError):
    """A file that cannot be read as a picture, or a picture from which no density can be made."""


def from_image(
    path: str | os.PathLike[str],
    components: int = MAX_COMPONENTS,
    *,
    invert: bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> GaussianMixture:
    """Turn a PNG or JPEG into a standardized mixture: darkness is density, y points up.

    Grey, RGB, palette, 16-bit and CMYK pictures are read; transparency is put on white (where that
    leaves a blank sheet, the opacity itself is the density); a camera's orientation mark is
    obeyed. The contrast is stretched, so that the paper of a photographed drawing counts as white.

    Args:
        path: the file. PNG or JPEG by its content, whatever its name.
        components: at most so many, from 1 to ``MAX_COMPONENTS``.
        invert: whether light is density. None decides: a picture whose mean grey is below one half
            is taken for white on black.
        dtype: precision of the mixture.

    Raises:
        FileNotFoundError: if there is no such file.
        PictureError: (a ValueError) for a folder, a file that is not a picture or of another
            format, a damaged or truncated one, one of more than ``MAX_PIXELS`` pixels, and a blank
            one.
        ValueError: if ``components`` is out of bounds.
        ImportError: if Pillow is not installed.
    """
    check_count(components, "components", high=MAX_COMPONENTS)
    grey = _read(Path(path))  # (height, width), 0 black, 1 white
    low, high = grey.min(), grey.max()
    if high - low < _MIN_CONTRAST:
        raise PictureError(
            f"'{path}' is blank: its pixels' greys differ by {255 * (high - low):.0f} of 255; "
            f"allowed: a picture with something on it"
        )
    if invert is None:
        invert = bool(grey.mean() < 0.5)
    darkness = (grey - low if invert else high - grey) / (high - low)
    darkness[darkness < _PAPER] = 0.0
    return _mixture(darkness, components).to(dtype)


# ---------------------------------------------------------------- reading


def _read(path: Path) -> np.ndarray:
    """The picture's greys, 0 black and 1 white, upright, with at most ``_SIDE`` on a side."""
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file '{path}' (looked in '{path.absolute().parent}')"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files and large ones
            image = open_image(path, ("PNG", "JPEG"))
    except ImportError as error:
        raise ImportError(
            "reading a picture needs Pillow: pip install pillow (slam_edu[course] has it)"
        ) from error
    except RejectedError as error:
        raise PictureError(
            f"'{path}': {error}; allowed: a complete PNG or JPEG file of at most {MAX_PIXELS:,} "
            f"pixels (save or export other kinds as PNG)"
        ) from error
    if image.width * image.height > MAX_PIXELS:
        raise PictureError(
            f"'{path}' has {image.width} by {image.height} pixels; allowed: at most "
            f"{MAX_PIXELS:,} (1,000 by 1,000 show all that {MAX_COMPONENTS:,} components can)"
        )
    factor = max(-(-max(image.size) // _SIDE), 1)
    image = image.reduce(factor) if factor > 1 else image
    grey = _grey(over_white(image))
    if image.mode == "RGBA" and grey.max() - grey.min() < _MIN_CONTRAST:  # white on transparent
        grey = 1.0 - _grey(image.getchannel("A"))
    return grey


def _grey(image: Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=np.float32) / 255.0


# ---------------------------------------------------------------- from greys to components


def _mixture(darkness: np.ndarray, components: int) -> GaussianMixture:
    """One component for each cell with ink, in float64."""
    height, width = darkness.shape
    row, column = darkness.nonzero()
    ink = darkness[row, column].astype(np.float64)
    x, y = column + 0.5, height - row - 0.5  # pixel centres, y up

    def cells(n: int) -> tuple[float, np.ndarray, np.ndarray]:
        """With n along the longer side: a cell's size, each pixel's cell, and each cell's ink."""
        size = max(height, width) / n
        across = int(np.ceil(width / size))
        _, cell = np.unique(
            (y / size).astype(int) * across + (x / size).astype(int), return_inverse=True
        )
        return size, cell, np.bincount(cell, weights=ink)

    # Bisect for the largest n; `low` is only ever raised to an n that was counted.
    low, high = 1, max(height, width)
    while low < high:
        middle = (low + high + 1) // 2
        if len(cells(middle)[2]) <= components:
            low = middle
        else:
            high = middle - 1
    size, cell, weight = cells(low)
    means = np.stack([np.bincount(cell, weights=ink * at) / weight for at in (x, y)], axis=1)
    return GaussianMixture(
        torch.from_numpy(means), _SPREAD * size, torch.from_numpy(weight)
    ).standardized()

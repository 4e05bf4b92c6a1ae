"""Image files of any kind as upright 8-bit images; Pillow is imported when one is read.

A palette is looked up, CMYK is converted, 16 bits become 8, the camera's orientation is applied,
and transparent pixels go over white.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

#: Ends of the names of images that are looked for in a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class RejectedError(ValueError):
    """An image, or its caption, cannot be used.

    Attributes:
        reason: in few words, the same for all samples with this fault.
        detail: of this sample; may be empty.
        name: of the sample, where it is known.
    """

    def __init__(self, reason: str, detail: str = "", name: str = "") -> None:
        super().__init__(reason, detail, name)
        self.reason, self.detail, self.name = reason, detail, name

    def __str__(self) -> str:
        text = f"{self.reason} ({self.detail})" if self.detail else self.reason
        return f"{self.name}: {text}" if self.name else text


def read_image(picture: bytes | str | os.PathLike[str]) -> Image:
    """An image file's content, or the file at a path, as RGB.

    Raises:
        RejectedError: if the file is missing, empty, no image, cut short, damaged, or of
            real-valued pixels, whose range is unknown.
    """
    return over_white(open_image(picture))


def open_image(
    picture: bytes | str | os.PathLike[str], formats: Sequence[str] | None = None
) -> Image:
    """As :func:`read_image`, but RGBA where pixels are transparent; ``formats`` are Pillow's."""
    from PIL import Image, UnidentifiedImageError

    try:
        content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    except FileNotFoundError:
        raise RejectedError("a missing file") from None
    except OSError as error:
        raise RejectedError("a file that cannot be read", str(error)) from error
    if not content:
        raise RejectedError("an empty file")
    try:
        image = Image.open(BytesIO(content), formats=formats)
        image.load()
        return _upright(image)
    except RejectedError:
        raise
    except UnidentifiedImageError:
        raise RejectedError("not an image", f"{len(content):,} bytes") from None
    except Image.DecompressionBombError as error:
        raise RejectedError("too many pixels", str(error)) from error
    except Exception as error:  # each format's reader fails in its own ways
        raise RejectedError("a damaged image", str(error)) from error


def over_white(image: Image) -> Image:
    """RGB of RGB or RGBA."""
    from PIL import Image

    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(image: Image) -> Image:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise RejectedError("real-valued pixels", "mode F; allowed: 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip at 255
        values = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")

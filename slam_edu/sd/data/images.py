"""From a file of some format to an image of the teacher's size.

Pillow alone reads and resizes. Whatever the file holds becomes three channels: transparent pixels
go over white, grey is repeated, a palette is looked up, CMYK is converted, 16 bits become 8. The
camera's orientation is applied. The image is then resized so that it just covers the wanted size,
the middle is cut out, and its values go to [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from slam_edu.sd.data.counts import RejectedError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Ends of the names of images that are looked for in a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: An image that would have to be enlarged by more than this is rejected: it has no detail.
LARGEST_ENLARGEMENT = 4.0

Picture = bytes | Path | Tensor
"""An image before it is read: a file's content, its path, or values in [-1, 1]."""


@dataclass(frozen=True)
class Fitted:
    """An image of the wanted size.

    Attributes:
        image: of shape (3, H, W), in [-1, 1].
        time_ids: what Stable Diffusion XL is told: height and width before resizing, top and left
            of the crop in the resized image, H and W; in pixels.
    """

    image: Tensor
    time_ids: tuple[float, ...]


def fit(picture: Picture, size: tuple[int, int]) -> Fitted:
    """Read an image and bring it to a size.

    Args:
        picture: the image.
        size: (H, W) in pixels.

    Raises:
        RejectedError: if it cannot be read, or is far too small.
    """
    if isinstance(picture, Tensor):
        if tuple(picture.shape[1:]) == size:
            return Fitted(picture, (*size, 0, 0, *size))
        picture = _to_pillow(picture)
    else:
        picture = read_image(picture)
    return _cover(picture, size)


def read_image(picture: bytes | Path) -> Image:
    """Read an image file as RGB, upright.

    Args:
        picture: the file's content or its path.

    Raises:
        RejectedError: if the file is missing, empty, no image, cut short, or of a kind of pixels
            without a known range.
    """
    from PIL import Image, UnidentifiedImageError

    content = picture if isinstance(picture, bytes) else _content(picture)
    if not content:
        raise RejectedError("an empty file")
    try:
        image = Image.open(BytesIO(content))
    except UnidentifiedImageError:
        raise RejectedError("not an image", f"{len(content):,} bytes") from None
    except Image.DecompressionBombError as error:
        raise RejectedError("too many pixels", str(error)) from error
    except Exception as error:  # each format's reader fails in its own ways
        raise RejectedError("a damaged image", str(error)) from error
    try:
        image.load()
        return to_rgb(image)
    except RejectedError:
        raise
    except Exception as error:
        raise RejectedError("a damaged image", str(error)) from error


def to_rgb(image: Image) -> Image:
    """An image of any of Pillow's modes as RGB, turned upright.

    Raises:
        RejectedError: for real-valued pixels, whose range is unknown.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise RejectedError("real-valued pixels", "mode F; allowed: 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip at 255 what goes to 65535.
        values = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RejectedError("a missing file") from None
    except OSError as error:
        raise RejectedError("a file that cannot be read", str(error)) from error


def _to_pillow(image: Tensor) -> Image:
    from PIL import Image

    values = ((image + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def _cover(image: Image, size: tuple[int, int]) -> Fitted:
    from PIL.Image import Resampling

    (height, width), (old_width, old_height) = size, image.size
    scale = max(height / old_height, width / old_width)
    if scale > LARGEST_ENLARGEMENT:
        raise RejectedError(
            "a very small image",
            f"{old_width} x {old_height} pixels; allowed: enlarged to {width} x {height} by at "
            f"most {LARGEST_ENLARGEMENT:g}",
        )
    # The part that is kept, in the old image's pixels: only that is resized.
    left, top = (old_width - width / scale) / 2, (old_height - height / scale) / 2
    box = (max(0.0, left), max(0.0, top), old_width - max(0.0, left), old_height - max(0.0, top))
    image = image.resize((width, height), Resampling.LANCZOS, box=box)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    corner = (round(max(0.0, top) * scale), round(max(0.0, left) * scale))
    return Fitted(values.contiguous(), (old_height, old_width, *corner, height, width))

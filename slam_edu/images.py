"""Image files of any kind as upright 8-bit images; Pillow is imported when one is read.

A palette is looked up, CMYK is converted, 16 bits become 8, the camera's orientation is applied,
and transparent pixels go over white. Of an animation this is the first picture. Pixels decide:
what else a file holds (EXIF, texts, a colour profile) may be damaged.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

#: Ends of the names of images that are looked for in a folder; those of the last four kinds are
#: rejected one by one where Pillow cannot read them.
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".jfif", ".jpe", ".tif", ".tiff", ".gif", ".avif",
    ".apng", ".jp2", ".ppm", ".pgm", ".tga", ".qoi", ".heic", ".heif", ".hif", ".jxl",
)  # fmt: skip
#: EXIF's orientations 2 to 8 as members of Pillow's ``Transpose``.
_ORIENTATION, _TURNS = 0x0112, dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))
#: Side information of PNG and JPEG files that pixels need, and what else tells their orientation.
_PIXELS, _EXIF = {b"tRNS", b"\xff\xee"}, {b"eXIf", b"\xff\xe1"}


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
        text = f"{self.name}: {text}" if self.name else text
        # Names of files may hold what no terminal and no log takes.
        return text.encode("utf-8", "backslashreplace").decode()


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
        content = picture if isinstance(picture, bytes) else _content(Path(picture))
    except FileNotFoundError:
        raise RejectedError("a missing file") from None
    except (OSError, ValueError) as error:  # ValueError: a name that the system does not take
        raise RejectedError("a file that cannot be read", str(error)) from error
    if not content:
        raise RejectedError("an empty file")
    try:
        try:
            return _decoded(content, formats)
        except Exception:
            for keep in (_PIXELS | _EXIF, _PIXELS):
                with contextlib.suppress(Exception):
                    return _decoded(b"".join(_bare(content, keep)), formats)
            raise
    except RejectedError:
        raise
    except UnidentifiedImageError:
        detail = f"{len(content):,} bytes; what Pillow reads is, such as PNG and JPEG"
        raise RejectedError("not an image", detail) from None
    except Image.DecompressionBombError as error:
        raise RejectedError("too many pixels", str(error)) from error
    except Exception as error:  # each format's reader fails in its own ways
        raise RejectedError("a damaged image", str(error)) from error


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise OSError("it is no file")
    return path.read_bytes()


def _decoded(content: bytes, formats: Sequence[str] | None) -> Image:
    from PIL import Image

    image = Image.open(BytesIO(content), formats=formats)
    image.load()
    return _upright(image)


def _bare(content: bytes, keep: Set[bytes]) -> Iterator[bytes]:
    """A PNG or JPEG without its side information, but for the kinds ``keep``."""
    png = content.startswith(b"\x89PNG\r\n\x1a\n")
    place = 8 if png else 2
    yield content[:place]
    while png or content[place : place + 1] == b"\xff":
        if png:  # length, kind, content, checksum; kinds that may be left out are in lower case
            size = 12 + int.from_bytes(content[place : place + 4], "big")
            kind = content[place + 4 : place + 8]
            side = kind[:1].islower()
        else:  # marker, length and content; applications' markers and comments
            size = 2 + int.from_bytes(content[place + 2 : place + 4], "big")
            kind = content[place : place + 2]
            side = b"\xff\xe0" <= kind <= b"\xff\xef" or kind == b"\xff\xfe"
        if kind in (b"\xff\xda", b""):
            break
        if not side or kind in keep:
            yield content[place : place + size]
        place += size
    yield content[place:]


def over_white(image: Image) -> Image:
    """RGB of RGB or RGBA."""
    from PIL import Image

    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(image: Image) -> Image:
    from PIL import Image

    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # each camera's maker breaks it in its own way
        turn = None
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        raise RejectedError("real-valued pixels", "mode F; allowed: 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip at 255
        values = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


# -------------------------------------------------------------------- folders


def list_files(folder: str | os.PathLike[str]) -> tuple[list[str], Counter[str]]:
    """Names below a folder, with forward slashes, in order; and what was left out, by reason.

    Links to folders are followed, but to those that are in the folder themselves. A link to a file
    that is not there is listed, as the file that it should be.
    """
    found, left, seen, root = [], Counter(), set(), os.path.realpath(folder)

    def failed(_: OSError) -> None:
        left["a folder that cannot be read"] += 1

    for where, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        below, place = os.path.relpath(where, folder), os.path.realpath(where)
        own = place == os.path.normpath(os.path.join(root, below))
        if place in seen or (not own and os.path.commonpath([root, place]) == root):
            left["a link to a folder that is read anyway"] += 1
            folders.clear()
            continue
        seen.add(place)
        hidden = [name for name in folders + names if name.startswith(".")]
        left["hidden"] += len(hidden)
        folders[:] = sorted(set(folders) - set(hidden))
        for name in set(names) - set(hidden):
            path = Path(where, name)
            if path.exists() and not path.is_file():
                left["neither a file nor a folder"] += 1
            else:
                found.append(Path(below, name).as_posix())
    return sorted(found), +left

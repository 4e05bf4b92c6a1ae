"""Files of every kind become upright RGB; what is no image is rejected with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from slam_edu.images import RejectedError, open_image, read_image
from tests.sd.images import encoded, picture

WHITE = (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "wanted"),
    [
        ("RGB", (10, 20, 30), "BMP", (10, 20, 30)),
        ("1", 1, "PNG", WHITE),
        ("RGBA", (255, 0, 0, 51), "PNG", (255, 204, 204)),  # a fifth of red over white
        ("LA", (0, 51), "PNG", (204, 204, 204)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("I", 257 * 200, "TIFF", (200, 200, 200)),
    ],
)
def test_modes(mode, colour, kind, wanted):
    image = read_image(encoded(Image.new(mode, (40, 30), colour), kind))
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert (np.asarray(image) == wanted).all()


def test_a_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    content = encoded(image, transparency=1)
    assert np.asarray(read_image(content)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert open_image(content).getchannel("A").tobytes() == b"\xff\x00"


def test_sixteen_bits_keep_their_range():
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    read = np.asarray(read_image(encoded(Image.fromarray(values))), dtype=float)
    assert abs(read[..., 0] - values / 257).max() <= 0.5


def test_the_cameras_orientation_is_applied():
    image = Image.new("RGB", (40, 20), "white")
    image.paste("red", (0, 0, 20, 20))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    read = read_image(encoded(image, exif=exif))
    assert read.size == (20, 40)
    assert (read.getpixel((10, 5)), read.getpixel((10, 35))) == ((255, 0, 0), WHITE)


def test_what_is_no_image(tmp_path, monkeypatch):
    faults = {
        "an empty file": b"",
        "not an image": b"<html><body>404</body></html>",
        "real-valued pixels": encoded(Image.new("F", (8, 8)), "TIFF"),
        "a missing file": tmp_path / "none.png",
        "a file that cannot be read": tmp_path,
    }
    for reason, content in faults.items():
        with pytest.raises(RejectedError, match=reason) as error:
            read_image(content)
        assert error.value.reason == reason
    with pytest.raises(RejectedError, match="not an image"):
        open_image(encoded(picture(0), "BMP"), formats=("PNG",))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(RejectedError, match="too many pixels"):
        read_image(encoded(picture(0)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_is_cut_short(kind):
    random = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(random), kind)
    assert read_image(content).size == (64, 64)
    for part in (0.02, 0.3, 0.95):
        with pytest.raises(RejectedError, match=r"not an image|a damaged image"):
            read_image(content[: int(part * len(content))])


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


LARGE = b"n\0\0" + zlib.compress(bytes(2**26))
SIDE = {
    "PNG": [
        chunk(b"zTXt", LARGE), chunk(b"tEXt", b"k\0" + bytes(2**27)), chunk(b"iCCP", LARGE),
        chunk(b"eXIf", b"no EXIF"), chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"), chunk(b"iTXt", b""),
        chunk(b"tIME", b"123")[:-4] + b"none", chunk(b"eXIf", b"123")[:-4] + b"none",
    ],
    "JPEG": [
        segment(0xE1, b"Exif\0\0no EXIF"), segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
        segment(0xE2, b"ICC_PROFILE\0"), segment(0xE2, b"MPF\0none"), segment(0xE0, b"JFIF\0"),
        segment(0xED, b"Photoshop 3.0\0008BIM\x04"), segment(0xFE, bytes(60_000)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", SIDE)
def test_pixels_decide(kind):
    """Whatever else is in the file may be damaged; what can be read of it still counts."""
    image, exif = picture(0, (40, 20)), Image.Exif()
    exif[0x0112] = 6
    place = {"PNG": 33, "JPEG": 2}[kind]
    for side in SIDE[kind]:
        content = encoded(image, kind)
        with_side = content[:place] + side + content[place:]
        assert read_image(with_side).tobytes() == read_image(content).tobytes(), side[:20]
    content = encoded(image, kind, exif=exif)
    with_side = content[:place] + SIDE[kind][2] + content[place:]
    assert read_image(with_side).tobytes() == read_image(content).tobytes()
    assert read_image(with_side).size == (20, 40)


def test_every_orientation():
    image, exif = picture(0, (40, 20)), Image.Exif()
    for orientation in range(10):
        exif[0x0112] = orientation
        content = encoded(image, exif=exif)
        wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        assert read_image(content).tobytes() == wanted.tobytes()


def test_a_damaged_file():
    content = bytearray(encoded(picture(0, (64, 64))))
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    with pytest.raises(RejectedError, match="a damaged image"):
        read_image(bytes(content))

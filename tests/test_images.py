"""Files of every kind become upright RGB; what is no image is rejected with a reason."""

import numpy as np
import pytest
from PIL import Image

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


def test_a_damaged_file():
    content = bytearray(encoded(picture(0, (64, 64))))
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    with pytest.raises(RejectedError, match="a damaged image"):
        read_image(bytes(content))

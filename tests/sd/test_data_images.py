"""Images of every kind become three channels of the wanted size; what is no image is rejected."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from slam_edu.sd.data.counts import Counts, RejectedError, Rejection
from slam_edu.sd.data.images import fit, read_image, to_rgb
from tests.sd.images import encoded, picture

RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(image):
    return np.asarray(image, dtype=np.int64)


# -------------------------------------------------------------------- channels


def solid(mode, colour, size=(40, 40)):
    return Image.new(mode, size, colour)


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (0, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),  # a fifth of red over white
        ("LA", (0, 51), (204, 204, 204)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("HSV", (0, 255, 255), RED),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I", 257 * 200, (200, 200, 200)),
    ],
)
def test_modes(mode, colour, wanted):
    image = to_rgb(solid(mode, colour))
    assert image.mode == "RGB"
    assert image.size == (40, 40)
    assert (pixels(image) == np.array(wanted)).all()


def test_a_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 1
    assert pixels(to_rgb(image)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_a_grey_png_of_16_bits_keeps_its_range():
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = read_image(encoded(Image.fromarray(values)))
    assert abs(pixels(image)[..., 0] - values / 257).max() <= 0.5


def test_real_valued_pixels_are_rejected():
    with pytest.raises(RejectedError, match=r"real-valued pixels \(mode F"):
        to_rgb(Image.new("F", (8, 8)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_formats(kind):
    image = picture(0)
    read = read_image(encoded(image, kind))
    assert abs(pixels(read) - pixels(image)).mean() < 8


def test_the_cameras_orientation_is_applied():
    image = Image.new("RGB", (40, 20), "white")
    image.paste("red", (0, 0, 20, 20))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    read = read_image(encoded(image, "PNG", exif=exif))
    assert read.size == (20, 40)
    assert pixels(read)[5, 10].tolist() == list(RED)
    assert pixels(read)[35, 10].tolist() == list(WHITE)
    fitted = fit(encoded(image, "PNG", exif=exif), (20, 20))
    assert fitted.time_ids == (40, 20, 10, 0, 20, 20)


# -------------------------------------------------------------------- sizes


def test_values_and_shape():
    fitted = fit(encoded(Image.new("RGB", (32, 32), (0, 255, 51))), (32, 32))
    assert fitted.image.shape == (3, 32, 32)
    assert fitted.image.dtype == torch.float32
    torch.testing.assert_close(fitted.image[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
    assert fitted.time_ids == (32, 32, 0, 0, 32, 32)


def test_the_same_size_is_not_resampled():
    image = picture(1)
    fitted = fit(encoded(image), (32, 32))
    wanted = torch.from_numpy(pixels(image)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(fitted.image, wanted.float())


def test_the_middle_is_kept():
    """A wide image loses its sides; the crop's corner is in pixels of the resized image."""
    image = Image.new("RGB", (96, 32), "white")
    image.paste("red", (32, 0, 64, 32))
    fitted = fit(encoded(image), (32, 32))
    assert (fitted.image[0] == 1).all()
    assert (fitted.image[1:] == -1).all()
    assert fitted.time_ids == (32, 96, 0, 32, 32, 32)
    tall = fit(encoded(image.transpose(Image.Transpose.ROTATE_90)), (16, 16))
    assert tall.image[1].max() < -0.8
    assert tall.time_ids == (96, 32, 16, 0, 16, 16)


def test_a_large_image_is_resized_with_a_filter():
    """Fine stripes become their mean; without a filter they would alias."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    fitted = fit(encoded(Image.fromarray(stripes)), (32, 32))
    assert fitted.image.abs().max() < 0.05


def test_a_size_that_is_no_square():
    fitted = fit(encoded(picture(0, (64, 64))), (16, 32))
    assert fitted.image.shape == (3, 16, 32)
    assert fitted.time_ids == (64, 64, 8, 0, 16, 32)


def test_a_very_small_image():
    assert fit(encoded(picture(0, (8, 8))), (32, 32)).image.shape == (3, 32, 32)
    message = r"a very small image \(7 x 90 pixels; allowed: enlarged to 32 x 32 by at most 4\)"
    with pytest.raises(RejectedError, match=message):
        fit(encoded(picture(0, (7, 90))), (32, 32))


def test_tensors():
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert fit(image, (32, 32)).image is image
    halved = fit(image, (16, 16))
    assert halved.image.shape == (3, 16, 16)
    assert halved.time_ids == (32, 32, 0, 0, 16, 16)
    torch.testing.assert_close(halved.image.mean((1, 2)), image.mean((1, 2)), rtol=0, atol=0.02)


# -------------------------------------------------------------------- no images


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"hello, world" * 10, "not an image"),
        (b"<html><body>404</body></html>", "not an image"),
        (json.dumps({"a": 1}).encode(), "not an image"),
    ],
)
def test_not_an_image(content, reason):
    with pytest.raises(RejectedError) as error:
        read_image(content)
    assert error.value.reason == reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_image(kind, part):
    random = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(random), kind)
    with pytest.raises(RejectedError) as error:
        read_image(content[: int(part * len(content))])
    assert error.value.reason in ("not an image", "a damaged image")


def test_damaged_bytes():
    content = bytearray(encoded(picture(0, (64, 64))))
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    with pytest.raises(RejectedError, match="a damaged image"):
        read_image(bytes(content))


def test_too_many_pixels(monkeypatch):
    """Pillow's guard against small files that unpack to gigabytes is left on."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(RejectedError, match="too many pixels"):
        read_image(encoded(picture(0)))


def test_files(tmp_path):
    with pytest.raises(RejectedError, match="a missing file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(RejectedError, match="a file that cannot be read"):
        read_image(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(picture(3)))
    assert read_image(tmp_path / "a.png").tobytes() == picture(3).tobytes()


# -------------------------------------------------------------------- counts


def filled(accepted, rejected):
    counts = Counts(accepted)
    for n in range(rejected):
        counts.reject(Rejection(f"{n}.png", "not an image" if n % 3 else "no caption", "why"))
    return counts


def test_counts():
    counts = filled(1000, 10)
    assert (counts.accepted, counts.rejected) == (1000, 10)
    assert counts.reasons == {"no caption": 4, "not an image": 6}
    assert str(counts) == "1,000 samples accepted, 10 rejected (not an image: 6, no caption: 4)"
    assert counts.examples[0] == "0.png: no caption (why)"
    assert len(counts.examples) == 5
    assert str(filled(3, 0)) == "3 samples accepted, 0 rejected"
    both = counts.plus(filled(5, 1))
    assert (both.accepted, both.reasons["no caption"], counts.accepted) == (1005, 5, 1000)


def test_too_many_rejected():
    filled(16, 4).check(0.1)  # by chance
    filled(9, 10).check(0.1)  # too few to judge by
    filled(18, 2).check(0.1, final=True)
    message = (
        r"5 of 20 samples were rejected, a fraction of 0.25; allowed: max_rejected=0.1. "
        r"By reason: not an image: 3, no caption: 2. The first: 0.png: no caption \(why\); "
        r"1.png: not an image \(why\); 2.png: not an image \(why\)"
    )
    with pytest.raises(ValueError, match=message):
        filled(15, 5).check(0.1)
    with pytest.raises(ValueError, match="3 of 20 samples were rejected"):
        filled(17, 3).check(0.1, final=True)
    with pytest.raises(ValueError, match="121 of 1,000 samples were rejected"):
        filled(879, 121).check(0.1)
    with pytest.raises(ValueError, match="1 of 20 samples were rejected"):
        filled(19, 1).check(0)
    with pytest.raises(ValueError, match="10 of 19 samples were rejected"):
        filled(9, 10).check(0.1, final=True)
    filled(0, 30).check(1.0)
    with pytest.raises(ValueError, match="no sample was accepted, 30 were rejected"):
        filled(0, 30).check(1.0, final=True)
    with pytest.raises(ValueError, match="There was none"):
        Counts().check(0.1, final=True)

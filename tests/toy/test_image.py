"""Pictures as mixtures: kinds of file read alike, and broken ones are refused in words."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from slam_edu.toy import MAX_PIXELS, PictureError, from_image
from slam_edu.toy import image as module
from tests.helpers import assert_near, max_error, properties

SIDE = 48


def drawing(width=SIDE, height=SIDE):
    """Grey, 0 black: a thick L, its corner at the bottom left, and a light dot top right."""
    grey = np.full((height, width), 255, dtype=np.uint8)
    grey[height // 8 : -height // 8, width // 8 : width // 4] = 0
    grey[-height // 4 : -height // 8, width // 8 : -width // 4] = 0
    grey[height // 8 : height // 4, -width // 4 : -width // 8] = 128
    return grey


def save(folder, image, name="picture.png", **options):
    path = folder / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def png_bytes(grey):
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def densities(mixture, around=None):
    around = mixture if around is None else around
    return mixture.log_density(around.means)


@pytest.fixture
def plain(tmp_path):
    return from_image(save(tmp_path, drawing(), "plain.png"), dtype=torch.float64)


# -------------------------------------------------------------------- what a picture becomes


def test_darkness_is_density(tmp_path, plain):
    """At most one component a pixel: then weights are the pixels' darkness, exactly."""
    grey = drawing()
    row, column = (grey < 255).nonzero()
    assert len(plain) == len(row)
    dark = torch.from_numpy(255.0 - grey[row, column])
    assert_near(plain.weights.sort().values, (dark / dark.sum()).sort().values, rtol=1e-6)
    # Positions in pixels, y up, up to a shift and one factor.
    x, y = torch.from_numpy(column + 0.5), torch.from_numpy(SIDE - row - 0.5)
    pixels = torch.stack([x, y], dim=1).double()
    share = (dark / dark.sum()).double()
    centred = pixels - share @ pixels
    scale = plain.std / 0.5
    distances = torch.cdist(scale * centred, plain.means)
    assert distances.min(dim=1).values.max() < 1e-6
    assert plain.covariance().trace().item() == pytest.approx(2)


def test_up_is_up_and_right_is_right(plain):
    assert (
        plain.log_density(torch.tensor([[0.0, 0.0]], dtype=torch.float64)) < -5
    )  # nothing inside the L
    left, right = plain.means[:, 0].min(), plain.means[:, 0].max()
    bottom, top = plain.means[:, 1].min(), plain.means[:, 1].max()
    inset = 2 * plain.std
    corners = torch.stack([left + inset, top - inset, right - inset, bottom + inset])
    log = {
        (h, v): plain.log_density(corners[[i, j]][None]).item()
        for h, i in (("left", 0), ("right", 2))
        for v, j in (("top", 1), ("bottom", 3))
    }
    assert log["left", "bottom"] > -2
    assert log["left", "top"] > -2
    # The grey dot is half as dense as the L.
    assert log["right", "top"] == pytest.approx(log["left", "top"] + np.log(127 / 255), abs=0.05)
    assert log["right", "bottom"] < -10


@pytest.mark.parametrize("size", [(96, 24), (24, 96)])
def test_aspect_is_kept(tmp_path, size):
    mixture = from_image(save(tmp_path, drawing(*size)))
    extent = mixture.means.max(dim=0).values - mixture.means.min(dim=0).values
    row, column = (drawing(*size) < 255).nonzero()
    assert (extent[0] / extent[1]).item() == pytest.approx(np.ptp(column) / np.ptp(row), rel=1e-4)


@properties
@given(st.integers(1, 2000), st.integers(0, 5), st.floats(0.02, 0.9))
def test_never_more_components_than_asked(tmp_path_factory, components, seed, ink):
    random = np.random.default_rng(seed)
    grey = np.where(random.random((70, 90)) < ink, random.integers(0, 200, (70, 90)), 255)
    grey[0, 0], grey[-1, -1] = 0, 255
    path = save(tmp_path_factory.mktemp("many"), grey.astype(np.uint8))
    mixture = from_image(path, components=components, invert=False, dtype=torch.float64)
    assert 1 <= len(mixture) <= components
    assert mixture.weights.sum().item() == pytest.approx(1)


def test_a_good_part_of_the_components_is_used(tmp_path):
    path = save(tmp_path, drawing(300, 300))
    for components in (50, 200, 1000, 2000):
        assert 0.7 * components < len(from_image(path, components=components)) <= components


def test_coarser_is_the_same_shape(tmp_path):
    path = save(tmp_path, drawing(200, 200))
    fine = from_image(path, dtype=torch.float64)
    coarse = from_image(path, components=150, dtype=torch.float64)
    assert coarse.std > 2 * fine.std
    assert max_error(coarse.covariance(), fine.covariance()) < 0.02
    # Nearly all of what the coarse one draws lies on ink.
    x = coarse.sample(2000, torch.Generator().manual_seed(0))
    near = torch.cdist(x, fine.means).min(dim=1).values < 2 * coarse.std
    assert near.double().mean() > 0.97


def test_a_cell_is_where_its_darkness_is(tmp_path):
    """A ramp, 40 by 20, in two cells: their centres of darkness are 17.3 pixels apart, not 20."""
    ramp = np.repeat(np.linspace(255, 60, 40).round()[None], 20, axis=0).astype(np.uint8)
    mixture = from_image(save(tmp_path, ramp), components=2, dtype=torch.float64, invert=False)
    dark = (255.0 - ramp[0]) / 195
    dark[dark < 0.1] = 0
    at = np.arange(40) + 0.5
    left, right = (
        (dark[half] @ at[half]) / dark[half].sum() for half in (slice(0, 20), slice(20, 40))
    )
    apart = (mixture.means[1] - mixture.means[0]).norm() / (mixture.std / 0.5)
    assert len(mixture) == 2
    assert right - left == pytest.approx(17.28, abs=0.01)
    assert apart.item() == pytest.approx((right - left) / 20, rel=1e-6)
    assert mixture.weights[1].item() == pytest.approx(dark[20:].sum() / dark.sum())


def test_nothing_is_random(tmp_path):
    path = save(tmp_path, drawing(200, 200))
    torch.manual_seed(1)
    one = from_image(path, components=300)
    torch.manual_seed(2)
    two = from_image(path, components=300)
    assert torch.equal(one.means, two.means)
    assert torch.equal(one.weights, two.weights)


def test_one_dark_pixel_is_one_gaussian(tmp_path):
    grey = np.full((20, 30), 255, dtype=np.uint8)
    grey[3, 4] = 0
    mixture = from_image(save(tmp_path, grey))
    assert len(mixture) == 1
    assert_near(mixture.std, 1.0, rtol=1e-6)


def test_precision(tmp_path):
    path = save(tmp_path, drawing())
    assert from_image(path).dtype == torch.float32
    assert from_image(str(path), dtype=torch.float64).dtype == torch.float64


# -------------------------------------------------------------------- light, paper, contrast


def test_white_on_black_is_turned_by_itself(tmp_path, plain):
    path = save(tmp_path, 255 - drawing())
    for invert in (None, True):
        assert (
            max_error(from_image(path, invert=invert, dtype=torch.float64).means, plain.means)
            < 1e-6
        )
    as_is = from_image(path, invert=False)
    assert len(as_is) > len(plain)
    assert len(from_image(save(tmp_path, drawing()), invert=True)) == len(as_is)


def test_grey_paper_is_paper(tmp_path, plain):
    """A photographed drawing: paper of uneven grey, ink that is not black."""
    random = np.random.default_rng(0)
    grey = 60 + drawing() * (140 / 255) - random.integers(0, 8, (SIDE, SIDE))
    mixture = from_image(save(tmp_path, grey.astype(np.uint8)), dtype=torch.float64)
    assert len(mixture) == len(plain)
    assert max_error(mixture.means, plain.means) < 0.05


# -------------------------------------------------------------------- kinds of files


def sixteen_bit():
    return Image.fromarray(drawing().astype(np.uint16) * 257)


def with_alpha():
    alpha = 255 - drawing()
    colour = np.zeros(
        (SIDE, SIDE, 3), dtype=np.uint8
    )  # black ink, as opaque as the drawing is dark
    return Image.fromarray(np.dstack([colour, alpha]))


def grey_with_alpha():
    return Image.fromarray(np.dstack([np.zeros_like(drawing()), 255 - drawing()]))


def white_on_transparent():
    return Image.fromarray(
        np.dstack([np.full((SIDE, SIDE, 3), 255, dtype=np.uint8), 255 - drawing()])
    )


def palette_with_transparency():
    image = Image.fromarray(drawing()).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    image.info["transparency"] = int(np.asarray(image)[0, 0])
    return image


KINDS = {
    "grey": lambda: Image.fromarray(drawing()),
    "rgb": lambda: Image.fromarray(drawing()).convert("RGB"),
    "palette": lambda: Image.fromarray(drawing()).convert("P"),
    "sixteen_bit": sixteen_bit,
    "rgba": with_alpha,
    "grey_alpha": grey_with_alpha,
    "white_on_transparent": white_on_transparent,
    "palette_transparent": palette_with_transparency,
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_png(tmp_path, plain, kind):
    mixture = from_image(save(tmp_path, KINDS[kind]()), dtype=torch.float64)
    assert len(mixture) == len(plain)
    assert max_error(mixture.means, plain.means) < 2e-3
    assert max_error(densities(mixture, plain), densities(plain)) < 0.02


def test_two_colours(tmp_path):
    grey = np.where(drawing() < 200, 0, 255).astype(np.uint8)
    expected = from_image(save(tmp_path, grey, "a.png"))
    image = Image.fromarray(grey).convert("1")
    assert torch.equal(from_image(save(tmp_path, image, "b.png")).means, expected.means)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_kinds_of_jpeg(tmp_path, mode):
    grey = drawing(200, 200)
    expected = from_image(save(tmp_path, grey), components=500, dtype=torch.float64)
    path = save(tmp_path, Image.fromarray(grey).convert("RGB").convert(mode), "a.jpg", quality=95)
    mixture = from_image(path, components=500, dtype=torch.float64)
    assert max_error(mixture.covariance(), expected.covariance()) < 0.01
    x = expected.sample(500, torch.Generator().manual_seed(0))
    close = (mixture.log_density(x) - expected.log_density(x)).abs()
    assert close.median() < 0.1


def test_the_content_decides_and_not_the_name(tmp_path, plain):
    path = save(tmp_path, drawing(), "picture.txt", format="PNG")
    assert torch.equal(from_image(path, dtype=torch.float64).means, plain.means)


@pytest.mark.parametrize(
    ("mark", "turn"),
    [(1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90),
     (8, Image.Transpose.ROTATE_270), (2, Image.Transpose.FLIP_LEFT_RIGHT)],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_camera_held_sideways(tmp_path, mark, turn, suffix):
    """The file holds the turned picture and a mark that says how to turn it back."""
    upright = Image.fromarray(drawing(120, 80))
    expected = from_image(save(tmp_path, upright), components=300, dtype=torch.float64)
    exif = Image.Exif()
    exif[0x0112] = mark
    stored = upright if turn is None else upright.transpose(turn)
    path = save(
        tmp_path,
        stored,
        f"turned.{suffix}",
        exif=exif,
        **({"quality": 95} if suffix == "jpg" else {}),
    )
    mixture = from_image(path, components=300, dtype=torch.float64)
    assert max_error(mixture.covariance(), expected.covariance()) < 0.02
    x = expected.sample(500, torch.Generator().manual_seed(0))
    assert (mixture.log_density(x) - expected.log_density(x)).abs().median() < 0.1


@pytest.mark.parametrize("kind", ["grey", "rgba", "sixteen_bit"])
def test_large_pictures_are_shrunk_first(tmp_path, kind, monkeypatch):
    """The same shape from 100 times as many pixels, and no table of over a million greys."""
    seen = []
    original = module._mixture
    monkeypatch.setattr(
        module, "_mixture", lambda dark, n: seen.append(dark.shape) or original(dark, n)
    )
    image = KINDS[kind]().resize((2100, 1500), Image.Resampling.NEAREST)
    mixture = from_image(save(tmp_path, image), components=400)
    assert max(seen[0]) <= 1024
    assert seen[0][0] / seen[0][1] == pytest.approx(1500 / 2100, rel=0.01)
    small = KINDS[kind]().resize((210, 150), Image.Resampling.NEAREST)
    expected = from_image(save(tmp_path, small), components=400)
    assert max_error(mixture.covariance(), expected.covariance()) < 0.02


# -------------------------------------------------------------------- files that cannot be used


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width, height):
    """A header that promises so many pixels, and next to no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*cat\.png' \(looked in '"):
        from_image(tmp_path / "cat.png")


def test_folder(tmp_path):
    with pytest.raises(PictureError, match=r"is a folder; allowed: a PNG or JPEG file"):
        from_image(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"just some words, nothing else", "is not a picture"),
        (b"\0" * 1000, "is not a picture"),
        (b"%PDF-1.7 ...", "is a PDF file; allowed: PNG or JPEG .*save or export it as PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is a SVG file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC or AVIF file"),
        (b"\x89PNG\r\n", "is damaged at its start; allowed: a complete file"),
        (b"\xff\xd8", "is damaged at its start; allowed: a complete file"),
    ],
)
def test_not_a_picture(tmp_path, content, message):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=message):
        from_image(path)


@pytest.mark.parametrize(
    ("name", "word"), [("a.gif", "GIF"), ("a.bmp", "BMP"), ("a.tiff", "TIFF")]
)
def test_other_formats(tmp_path, name, word):
    path = save(tmp_path, drawing(), name)
    with pytest.raises(PictureError, match=f"is a {word} file; allowed: PNG or JPEG"):
        from_image(path)


def test_webp(tmp_path):
    path = tmp_path / "a.webp"
    path.write_bytes(b"RIFF\x24\0\0\0WEBPVP8 " + b"\0" * 40)
    with pytest.raises(PictureError, match=r"is a WebP file"):
        from_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_cut_short(tmp_path, suffix, kept):
    random = np.random.default_rng(0)
    path = save(tmp_path, random.integers(0, 255, (80, 80)).astype(np.uint8), f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        PictureError, match=r"is damaged or cut short \(.*\); allowed: a complete PNG"
    ):
        from_image(path)


@properties
@given(
    st.sampled_from(["PNG", "JPEG"]), st.integers(0, 10**6), st.integers(1, 255), st.floats(0, 1)
)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, kind, place, flip, kept):
    """Any byte changed and any length: a mixture or a PictureError, never another exception."""
    file = io.BytesIO()
    Image.fromarray(drawing()).save(file, kind)
    content = bytearray(file.getvalue())
    content[place % len(content)] ^= flip
    path = tmp_path_factory.mktemp("damaged") / "a"
    path.write_bytes(content[: max(int(min(2 * kept, 1) * len(content)), 1)])
    try:
        mixture = from_image(path, components=100)
    except PictureError:
        return
    assert torch.isfinite(mixture.means).all()


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_blank(tmp_path, value, mode):
    grey = Image.fromarray(np.full((20, 20), value, dtype=np.uint8)).convert(mode)
    with pytest.raises(PictureError, match=r"is blank: .* differ by 0 of 255"):
        from_image(save(tmp_path, grey))


def test_nearly_blank(tmp_path):
    grey = np.full((20, 20), 250, dtype=np.uint8)
    grey[5:9, 5:9] = 244
    with pytest.raises(PictureError, match=r"is blank: its pixels' greys differ by 6 of 255"):
        from_image(save(tmp_path, grey))


def test_transparent_all_over(tmp_path):
    with pytest.raises(PictureError, match=r"is blank"):
        from_image(save(tmp_path, np.zeros((20, 20, 4), dtype=np.uint8)))


@pytest.mark.parametrize("size", [(8001, 8000), (12_000, 12_000), (40_000, 40_000)])
def test_huge(tmp_path, size):
    """By the header alone; Pillow would warn at 89 million pixels and refuse at 179 million."""
    path = tmp_path / "huge.png"
    path.write_bytes(png_of_size(*size))
    with pytest.raises(
        PictureError, match=r"pixels; allowed: at most 64,000,000 pixels|pixels than Pillow"
    ):
        from_image(path)
    assert MAX_PIXELS == 64_000_000


@pytest.mark.parametrize("components", [0, -1, 2001, 10.0, True])
def test_components_out_of_bounds(tmp_path, components):
    with pytest.raises(ValueError, match=r"components is .*; allowed: an integer from 1 to 2000"):
        from_image(save(tmp_path, drawing()), components=components)


def test_without_pillow(tmp_path, monkeypatch):
    path = save(tmp_path, drawing())
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs Pillow: pip install pillow"):
        from_image(path)


def test_a_picture_error_is_a_value_error():
    assert issubclass(PictureError, ValueError)


def test_the_caller_keeps_the_file(tmp_path):
    """The file is closed again: it can be removed and replaced (Windows would refuse)."""
    path = save(tmp_path, drawing())
    from_image(path)
    path.write_bytes(png_bytes(255 - drawing())[:60])
    with pytest.raises(PictureError):
        from_image(path)
    path.unlink()

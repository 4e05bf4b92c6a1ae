"""Pictures as mixtures: kinds of file read alike, and broken ones are refused in words."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from slam_edu.toy import PictureError, from_image
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


@pytest.fixture
def plain(tmp_path):
    return from_image(save(tmp_path, drawing(), "plain.png"), dtype=torch.float64)


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


def test_white_on_black_is_turned_by_itself(tmp_path, plain):
    path = save(tmp_path, 255 - drawing())
    for invert in (None, True):
        turned = from_image(path, invert=invert, dtype=torch.float64)
        assert max_error(turned.means, plain.means) < 1e-6
    as_is = from_image(path, invert=False)
    assert len(as_is) > len(plain)
    assert len(from_image(save(tmp_path, drawing()), invert=True)) == len(as_is)


def with_alpha(grey):
    """Ink as opaque as the drawing is dark."""
    return Image.fromarray(np.dstack([np.full((SIDE, SIDE, 3), grey, np.uint8), 255 - drawing()]))


KINDS = {
    "palette": lambda: Image.fromarray(drawing()).convert("P"),
    "sixteen_bit": lambda: Image.fromarray(drawing().astype(np.uint16) * 257),
    "black_on_transparent": lambda: with_alpha(0),
    "white_on_transparent": lambda: with_alpha(255),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_png(tmp_path, plain, kind):
    mixture = from_image(save(tmp_path, KINDS[kind]()), dtype=torch.float64)
    assert len(mixture) == len(plain)
    assert max_error(mixture.means, plain.means) < 2e-3


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


def test_other_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*cat\.png' \(looked in '"):
        from_image(tmp_path / "cat.png")
    with pytest.raises(PictureError, match=r"not an image.*save or export other kinds as PNG"):
        from_image(save(tmp_path, drawing(), "a.gif"))
    with pytest.raises(PictureError, match="allowed: a complete PNG"):
        from_image(tmp_path)
    with pytest.raises(PictureError, match=r"is blank: .* differ by 0 of 255"):
        from_image(save(tmp_path, np.full((20, 20), 128, dtype=np.uint8)))
    path = save(tmp_path, drawing())
    with pytest.raises(ValueError, match="components is 2001; allowed: an integer from 1 to 2000"):
        from_image(path, components=2001)
    monkeypatch.setattr(module, "MAX_PIXELS", SIDE * SIDE - 1)
    with pytest.raises(PictureError, match="has 48 by 48 pixels; allowed: at most 2,303"):
        from_image(path)


def test_a_phone_held_sideways_and_a_large_picture(tmp_path):
    """The file's mark is obeyed, and pixels beyond what cells can show are averaged first."""
    upright = Image.fromarray(drawing(120, 80))
    expected = from_image(save(tmp_path, upright), components=300, dtype=torch.float64)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    large = upright.resize((2400, 1600), Image.Resampling.NEAREST)
    for path in (save(tmp_path, turned, "a.png", exif=exif), save(tmp_path, large, "b.png")):
        mixture = from_image(path, components=300, dtype=torch.float64)
        assert max_error(mixture.covariance(), expected.covariance()) < 0.03

"""The digits: what is shipped, and that an image is a function of index, seed and split."""

import zipfile

import numpy as np
import pytest
import torch

from slam_edu.digits import data as digits_data
from slam_edu.digits.colours import COLOURS
from slam_edu.digits.data import CaptionedDigits, DigitBatch, coloured, handwriting
from slam_edu.io import data_path

COUNTS = {"train": 16_000, "test": 4_000}
#: (split, index, seed): caption, digit, mean, and R, G, B at (10, 16), (16, 12), (20, 18): what
#: this code gave when it was written.
GOLDEN = {
    ("train", 0, 0): (
        "a handwritten five in black ink on white paper", 5, 0.7519119,
        [[-0.639145] * 3, [0.921569] * 3, [-0.695316] * 3],
    ),
    ("train", 12345, 3): (
        "handwritten 9, green on purple", 9, -0.0265900,
        [[-0.726377, 0.111244, -0.455883], [0.302969, -0.675062, 0.430498],
         [0.055926, -0.486349, 0.217767]],
    ),
    ("test", 7, 0): (
        "the number 9", 9, -0.7703564,
        [[-0.844789, -0.755628, -0.745721], [-0.786423, -0.522163, -0.492800],
         [-0.617272, 0.154442, 0.240188]],
    ),
    ("test", 3999, 11): (
        "a yellow six on a purple background", 6, 0.0649357,
        [[0.668097, 0.040268, -0.257763], [0.438668, -0.435377, 0.201095],
         [0.891913, 0.504277, -0.705395]],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def many():
    """3,000 images of the training split."""
    return CaptionedDigits("train").batch(range(3000), seed=5)


def ink_of(batch: DigitBatch) -> torch.Tensor:
    """m of pixel = background + m (stroke - background), written here with the RGB values."""
    rgb = torch.tensor(list(COLOURS.values())) / 127.5 - 1
    ground = rgb[batch.background][:, :, None, None]
    line = rgb[batch.stroke][:, :, None, None] - ground
    return ((batch.images - ground) * line).sum(1) / line.square().sum(1)


def same(a: DigitBatch, b: DigitBatch) -> bool:
    torch.testing.assert_close(a.images, b.images, rtol=0, atol=1e-5)
    return a.captions == b.captions and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("digit", "stroke", "background")
    )


# -------------------------------------------------------------------- what is shipped


def test_the_archive_is_small_and_whole():
    path = data_path("digits/handwriting.npz")
    assert path.stat().st_size <= 4e6
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for name, count in COUNTS.items():
        images, labels = handwriting(name)
        assert (images.shape, images.dtype) == ((count, 28, 28), np.uint8)
        assert (labels.shape, labels.dtype) == ((count,), np.uint8)
        assert len(CaptionedDigits(name)) == count
        # MNIST's own frequencies are 9 % (five) to 11.2 % (one).
        shares = np.bincount(labels, minlength=10) / count
        assert len(shares) == 10
        assert shares.min() > 0.085
        assert shares.max() < 0.12
        assert images.max() == 255
        assert images.min() == 0
        assert (images == 0).mean() > 0.7  # paper is 0
    # No digit is in both.
    train, test = ({i.tobytes() for i in handwriting(name)[0]} for name in ("train", "test"))
    assert len(train) == 16_000
    assert not train & test


# -------------------------------------------------------------------- a pure function


@pytest.mark.parametrize("key", GOLDEN, ids=str)
def test_golden_values(key):
    name, index, seed = key
    words, digit, mean, pixels = GOLDEN[key]
    batch = CaptionedDigits(name).batch([index], seed)
    assert batch.captions == [words]
    assert batch.digit.tolist() == [digit]
    found = torch.stack([batch.images[0, :, r, c] for r, c in ((10, 16), (16, 12), (20, 18))])
    torch.testing.assert_close(found, torch.tensor(pixels), rtol=0, atol=1e-5)
    assert batch.images.mean().item() == pytest.approx(mean, abs=1e-5)


def test_alone_or_in_any_batch_and_order():
    split = CaptionedDigits("test")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    indices = [17, 3, 3999, 3, 250, 1000]
    together = split.batch(indices, seed=4)
    assert same(split.batch(torch.tensor(indices), 4), together)
    assert same(split.batch(np.array(indices), 4), together)
    assert same(CaptionedDigits(split.split).batch(tuple(indices), 4), together)
    split.batch(range(50), seed=9)  # what was asked for before does not matter
    backwards = split.batch(indices[::-1], 4)
    for i, index in enumerate(indices):
        alone = split.batch([index], 4)
        one = DigitBatch(
            together.images[i : i + 1],
            together.captions[i : i + 1],
            *(getattr(together, name)[i : i + 1] for name in ("digit", "stroke", "background")),
        )
        assert same(alone, one)
        assert backwards.captions[5 - i] == one.captions[0]
        torch.testing.assert_close(backwards.images[5 - i], one.images[0], rtol=0, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------- what is drawn


def test_pixels_lie_between_the_two_colours(many):
    ink = ink_of(many)
    assert ink.min() > -1e-5
    assert ink.max() < 1 + 1e-5
    again = coloured(ink, many.stroke, many.background)
    torch.testing.assert_close(again, many.images, rtol=0, atol=1e-5)
    # Most of an image is background, and somewhere there is the full stroke.
    assert ink.flatten(1).median(1).values.max() < 1e-5
    assert ink.flatten(1).max(1).values.min() > 0.75


# -------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("indices", "seed", "message"),
    [
        ([0, -1], 0, r"index -1 is not in the test split; allowed: 0 to 3999"),
        ([4000], 0, r"index 4000 is not in the test split; allowed: 0 to 3999"),
        ([], 0, r"index \(none\) is not in the test split; allowed: 0 to 3999"),
        ([1], -3, r"seed is -3; allowed: 0 or more"),
    ],
)
def test_wrong_index_or_seed(indices, seed, message):
    with pytest.raises(ValueError, match=message):
        CaptionedDigits("test").batch(indices, seed)


# -------------------------------------------------------------------- a damaged archive


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A copy of the archive that the library reads in place of its own, afresh."""
    path = tmp_path / "handwriting.npz"
    path.write_bytes(data_path("digits/handwriting.npz").read_bytes())
    monkeypatch.setattr(digits_data, "data_path", lambda name: path)
    handwriting.cache_clear()
    yield path
    handwriting.cache_clear()


def refused(path):
    with pytest.raises(ValueError, match="is damaged") as caught:
        CaptionedDigits("train")
    for part in (str(path), "git checkout -- data/digits/handwriting.npz", "installing slam_edu"):
        assert part in str(caught.value)


def test_a_changed_byte(archive):
    """Anywhere in the images, and in the archive's own record of how they are compressed."""
    content = bytearray(archive.read_bytes())
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(1000, int(0.8 * len(content)), (12,), generator=generator).tolist()
    changes = [(place, content[place] ^ 0xFF) for place in places]
    # The header of 30 bytes names two lengths; the data begin with a kind of block: 3 is none.
    changes.append((30 + content[26] + content[28], 0x07))
    changes.append((content.index(b"PK\x01\x02") + 10, 99))  # a kind of compression
    for place, value in changes:
        changed = content.copy()
        changed[place] = value
        archive.write_bytes(changed)
        refused(archive)

"""The digits: what is shipped, and that an image is a function of index, seed and split."""

import numpy as np
import pytest
import torch

from slam_edu.digits import data as digits_data
from slam_edu.digits.colours import COLOURS
from slam_edu.digits.data import CaptionedDigits, coloured, digit_prompts, handwriting
from slam_edu.io import data_path, sha256_of

ARCHIVE = "d200f841fc33b3c80b9445e919c2c68aaebd17d1ba232def4894afb6fc17c63c"
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


def test_the_archive_is_the_one_that_was_made():
    path = data_path("digits/handwriting.npz")
    assert sha256_of(path) == ARCHIVE
    for name, count in COUNTS.items():
        images, labels = handwriting(name)
        assert (images.shape, images.dtype) == ((count, 28, 28), np.uint8)
        assert np.bincount(labels, minlength=10).min() > 0.085 * count


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
    split, indices = CaptionedDigits("test"), [17, 3, 3999, 3, 250, 1000]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    together, backwards = split.batch(indices, seed=4), split.batch(indices[::-1], 4)
    for i, index in enumerate(indices):
        alone = split.batch([index], 4)
        assert alone.captions[0] == together.captions[i] == backwards.captions[5 - i]
        assert alone.stroke[0] == together.stroke[i]
        torch.testing.assert_close(alone.images[0], together.images[i], rtol=0, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), before)
    image, words = split[17]
    assert words == split.batch([17]).captions[0]
    assert image.shape == (3, 32, 32)
    assert [caption for _, caption in split.__getitems__([3, 17])] == [split[3][1], words]
    prompts = digit_prompts(40)
    assert len(prompts) == len(set(prompts)) == 40


def test_pixels_lie_between_the_two_colours():
    """m of pixel = background + m (stroke - background), written here with the RGB values."""
    many = CaptionedDigits("train").batch(range(1000), seed=5)
    rgb = torch.tensor(list(COLOURS.values())) / 127.5 - 1
    ground = rgb[many.background][:, :, None, None]
    line = rgb[many.stroke][:, :, None, None] - ground
    ink = ((many.images - ground) * line).sum(1) / line.square().sum(1)
    assert ink.min() > -1e-5
    assert ink.max() < 1 + 1e-5
    again = coloured(ink, many.stroke, many.background)
    torch.testing.assert_close(again, many.images, rtol=0, atol=1e-5)
    # Most of an image is background, and somewhere there is the full stroke.
    assert ink.flatten(1).median(1).values.max() < 1e-5
    assert ink.flatten(1).max(1).values.min() > 0.75
    assert len(set(zip(many.stroke.tolist(), many.background.tolist(), strict=True))) == 56


def test_wrong_index_or_seed():
    for indices, seed, message in (
        ([0, -1], 0, r"index -1 is not in the test split; allowed: 0 to 3999"),
        ([4000], 0, r"index 4000 is not in the test split; allowed: 0 to 3999"),
        ([], 0, r"index \(none\) is not in the test split; allowed: 0 to 3999"),
        ([1], -3, r"seed is -3; allowed: 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            CaptionedDigits("test").batch(indices, seed)
    with pytest.raises(ValueError, match="split is 'val'; allowed: 'train', 'test'"):
        CaptionedDigits("val")


def test_a_damaged_archive(tmp_path, monkeypatch):
    content = data_path("digits/handwriting.npz").read_bytes()
    path = tmp_path / "handwriting.npz"
    monkeypatch.setattr(digits_data, "data_path", lambda name: path)
    half = len(content) // 2
    changed = content[:half] + bytes([content[half] ^ 0xFF]) + content[half + 1 :]
    for wrong in (b"", b"<html>404</html>", content[:half], changed):
        path.write_bytes(wrong)
        handwriting.cache_clear()
        with pytest.raises(ValueError, match=r"is damaged .*git checkout -- data/digits/handwr"):
            CaptionedDigits("train")
    handwriting.cache_clear()

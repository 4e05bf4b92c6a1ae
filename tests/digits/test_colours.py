"""The colour reader: exact on the data, right through noise, silent where no pair fits."""

import pytest
import torch

from slam_edu.digits.colours import PAIRS, palette, read_colours
from slam_edu.digits.data import CaptionedDigits


def test_exact_on_the_data():
    batch = CaptionedDigits("test").batch(range(400), seed=11)
    stroke, background = read_colours(batch.images)
    assert stroke.dtype == background.dtype == torch.int64
    assert torch.equal(stroke, batch.stroke)
    assert torch.equal(background, batch.background)


def test_each_pair_by_hand():
    """A frame of 8 x 10 pixels with a block of another colour, and a blurred edge between them."""
    colours = palette()
    found = torch.empty(56, 3, 8, 10)
    for k, (i, j) in enumerate(PAIRS):
        found[k] = colours[j][:, None, None]
        found[k, :, 2:6, 3:7] = colours[i][:, None, None]
        found[k, :, 2:6, 2] = (0.3 * colours[i] + 0.7 * colours[j])[:, None]
    stroke, background = read_colours(found)
    assert list(zip(stroke.tolist(), background.tolist(), strict=True)) == list(PAIRS)


def test_no_colours_in_noise():
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(20, 3, 32, 32, generator=g)
    for images in (normal, normal.clamp(-1, 1), 2 * torch.rand(20, 3, 32, 32, generator=g) - 1):
        stroke, background = read_colours(images)
        assert stroke.tolist() == background.tolist() == [-1] * 20


def test_wrong_shape():
    for shape in ((3, 32, 32), (2, 4, 8, 8)):
        with pytest.raises(ValueError) as caught:
            read_colours(torch.zeros(shape))
        assert f"images have shape {shape}; allowed: (B, 3, H, W)" in str(caught.value)

"""The colour reader: exact on the data, right through noise, silent where no pair fits."""

import itertools
import math

import pytest
import torch

from slam_edu.digits.colours import (
    COLOURS,
    LARGEST_MISFIT,
    NAMES,
    PAIRS,
    colour_index,
    palette,
    read_colours,
)
from slam_edu.digits.data import CaptionedDigits


def noise(shape, seed=0, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **options)


@pytest.fixture(scope="module")
def images():
    """One handwritten digit of the test split for each of the pairs, about."""
    return CaptionedDigits("test").batch(range(150), seed=3)


def distance_to_lines(colours: torch.Tensor) -> torch.Tensor:
    """Root mean square over R, G, B to the nearest stretch between two colours, in float64.

    By a search over 1,001 mixtures of each pair, not by projection as the reader does it.
    """
    rgb = torch.tensor(list(COLOURS.values()), dtype=torch.float64) / 127.5 - 1
    m = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    found = [
        (colours[:, None].double() - (rgb[i] + m * (rgb[j] - rgb[i]))).square().mean(-1).amin(1)
        for i, j in itertools.combinations(range(8), 2)
    ]
    return torch.stack(found).amin(0).sqrt()


def test_the_palette():
    colours = palette(torch.float64)
    assert colours.shape == (8, 3)
    assert colours.dtype == torch.float64
    assert palette().dtype == torch.float32
    assert colours.abs().max() <= 1
    for name, values in COLOURS.items():
        row = colours[colour_index(name)]
        assert row.tolist() == pytest.approx([2 * v / 255 - 1 for v in values])
    apart = torch.cdist(colours, colours) + 9 * torch.eye(8)
    assert apart.min() > 0.8  # well separated: the range is 2
    assert len(PAIRS) == len(set(PAIRS)) == 56
    with pytest.raises(ValueError, match=r"'orange' is no colour of the digits; allowed: black,"):
        colour_index("orange")


@pytest.mark.parametrize("split", ["train", "test"])
def test_exact_on_the_data(split):
    batch = CaptionedDigits(split).batch(range(1000), seed=11)
    stroke, background = read_colours(batch.images)
    assert stroke.dtype == background.dtype == torch.int64
    assert torch.equal(stroke, batch.stroke)
    assert torch.equal(background, batch.background)


@pytest.mark.parametrize("sigma", [0.05, 0.1])
def test_right_through_noise(sigma):
    batch = CaptionedDigits("test").batch(range(400), seed=12)
    noisy = (batch.images + sigma * noise(batch.images.shape)).clamp(-1, 1)
    stroke, background = read_colours(noisy)
    right = (stroke == batch.stroke) & (background == batch.background)
    assert right.float().mean() >= 0.99


def test_exchanged_colours_are_read_exchanged(images):
    """The same handwriting with the colours the other way round."""
    colours = palette()
    stroke, ground = (colours[i][:, :, None, None] for i in (images.stroke, images.background))
    exchanged = stroke + ground - images.images
    assert torch.equal(read_colours(exchanged)[0], images.background)
    assert torch.equal(read_colours(exchanged)[1], images.stroke)


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


def test_a_stroke_that_fills_the_middle_is_no_background():
    """The ring decides, not the number of pixels."""
    colours = palette()
    image = colours[NAMES.index("green")][:, None, None].repeat(1, 32, 32)
    image[:, 2:-2, 2:-2] = colours[NAMES.index("white")][:, None, None]
    image[:, 5:7, 0:4] = colours[NAMES.index("white")][:, None, None]  # and touches the edge
    stroke, background = read_colours(image[None])
    assert (NAMES[stroke], NAMES[background]) == ("white", "green")


def test_the_background_is_what_most_of_the_ring_is_nearer_to():
    """Neither one side of the frame decides, nor the mean over it."""
    white, green = (palette()[NAMES.index(name)][:, None] for name in ("white", "green"))
    image = green[:, :, None].repeat(1, 12, 12)
    image[:, 4:8, 4:8] = white[:, :, None]
    for side in ((0, slice(None)), (-1, slice(None)), (slice(None), 0), (slice(None), -1)):
        touching = image.clone()
        touching[(slice(None), *side)] = white
        assert [NAMES[i] for i in map(int, read_colours(touching[None]))] == ["white", "green"]
    # 24 of the 44 pixels hold .4 of the stroke, the others all of it: .67 in the mean.
    ring = image.clone()
    ring[:, 0], ring[:, -1] = 0.4 * white + 0.6 * green, 0.4 * white + 0.6 * green
    ring[:, 1:-1, 0], ring[:, 1:-1, -1] = white, white
    assert [NAMES[i] for i in map(int, read_colours(ring[None]))] == ["white", "green"]


def test_no_colours_in_noise():
    for images in (
        noise((20, 3, 32, 32)),
        noise((20, 3, 32, 32)).clamp(-1, 1),
        2 * torch.rand((20, 3, 32, 32), generator=torch.Generator().manual_seed(1)) - 1,
    ):
        stroke, background = read_colours(images)
        assert stroke.tolist() == background.tolist() == [-1] * 20


def test_uniform_images():
    """One colour that lies off all lines between two of the eight is none; on a line, it fits."""
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 9)] * 3)
    distance = distance_to_lines(grid)
    stroke, background = read_colours(grid[:, :, None, None].repeat(1, 1, 4, 4))
    off, on = distance > LARGEST_MISFIT + 0.01, distance < LARGEST_MISFIT - 0.01
    assert off.sum() > 80
    assert on.sum() > 100
    assert (stroke[off] == -1).all()
    assert (background[off] == -1).all()
    assert (stroke[on] >= 0).all()
    assert (background[on] >= 0).all()


def test_the_largest_misfit_is_a_root_mean_square(images):
    """A shift of every pixel away from the line is read up to .2 and not beyond."""
    ground, stroke = palette()[NAMES.index("black")], palette()[NAMES.index("white")]
    line = (stroke - ground) / (stroke - ground).norm()
    away = torch.linalg.cross(line, torch.tensor([1.0, 0.0, 0.0]))
    away /= away.norm()
    image = ground[:, None, None].repeat(1, 32, 32)
    image[:, 8:24, 12:18] = stroke[:, None, None]
    for miss, read in ((0.0, True), (0.19, True), (0.21, False)):
        # White moves too, so no other pair comes nearer to both.
        shifted = image + miss * math.sqrt(3) * away[:, None, None]
        names = [NAMES[i] if i >= 0 else None for i in map(int, read_colours(shifted[None]))]
        assert names == (["white", "black"] if read else [None, None])


def test_batches_types_and_an_empty_batch(images):
    expected = read_colours(images.images)
    for i in (0, 7):
        one = read_colours(images.images[i : i + 1].double())
        assert [int(v) for v in one] == [int(v[i]) for v in expected]
    assert [len(v) for v in read_colours(images.images[:0])] == [0, 0]


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 4, 8, 8), (2, 32, 32, 3)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError) as caught:
        read_colours(torch.zeros(shape))
    assert f"images have shape {shape}; allowed: (B, 3, H, W)" in str(caught.value)

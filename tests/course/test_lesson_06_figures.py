"""Figures of lesson 06: what they draw, that it repeats, and what they say in words."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from slam_course.lesson_06 import figures as plots
from slam_course.lesson_06.figures import _as_images


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def canvas(fig):
    return np.asarray(fig.axes[0].images[0].get_array())


# -------------------------------------------------------------------- images


def test_each_image_stands_in_its_row_and_column_and_above_it_its_name():
    rows = {"first": images(3), "second": images(3, seed=1)}
    fig = plots.image_rows(rows, columns=("a", "b", "c"), alt="six images of noise")
    ax, sheet = fig.axes[0], canvas(fig)
    for name, (y, row) in zip(rows, zip(ax.get_yticks(), rows.values(), strict=True), strict=True):
        for x, image in zip(ax.get_xticks(), row, strict=True):
            top, left = round(y - 15.5), round(x - 15.5)
            seen = sheet[top : top + 32, left : left + 32]
            assert np.allclose(seen, (image.permute(1, 2, 0) + 1) / 2, atol=1e-6), name
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_gaps_part_groups_of_columns():
    rows = {"": images(3)}
    words = {"columns": ("a", "b", "c"), "alt": "three images of noise"}
    plain, parted = plots.image_rows(rows, **words), plots.image_rows(rows, gaps=(1,), **words)
    first, second = (np.diff(fig.axes[0].get_xticks()) for fig in (plain, parted))
    assert first.tolist() == [35, 35]
    assert second.tolist() == [38, 35]
    left = round(parted.axes[0].get_xticks()[1] - 15.5)
    assert np.all(canvas(parted)[:, left - 6 : left] == 1)
    seen = canvas(parted)[3:35, left : left + 32]
    assert np.allclose(seen, (rows[""][1].permute(1, 2, 0) + 1) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ({"a": images(2), "b": images(3)}, (), r"rows of \[2, 3\] images with 0 names"),
        ({"a": images(2)}, ("x",), r"rows of \[2\] images with 1 names"),
        ({}, (), r"rows of \[\] images"),
    ],
)
def test_wrong_rows(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        plots.image_rows(rows, columns=columns, alt="some images of noise")


def test_numbers_become_shades():
    values = torch.tensor([[[-3.0, 3.0], [0.0, -9.0]]])
    picture = _as_images(values, "gray", -3.0, 3.0, 4)
    assert picture.shape == (1, 3, 4, 4)
    black, white, grey, below = (picture[0, :, y, x] for y, x in ((0, 0), (1, 3), (2, 1), (3, 3)))
    assert black.tolist() == below.tolist() == [-1, -1, -1]
    assert white.tolist() == [1, 1, 1]
    assert grey.abs().max() < 0.01


def test_channels_and_decoded_image_stand_beside_the_image():
    pictures, x0, decoded = images(2), numbers(2, 4, 8, 8), images(2, seed=2)
    fig = plots.latent_channels(pictures, x0, decoded)
    names = [label.get_text() for label in fig.axes[0].get_xticklabels()]
    assert names == ["image", "channel 1", "channel 2", "channel 3", "channel 4", "decoded"]
    sheet, lefts = canvas(fig), [round(x - 15.5) for x in fig.axes[0].get_xticks()]
    tops = [round(y - 15.5) for y in fig.axes[0].get_yticks()]
    last = sheet[tops[1] : tops[1] + 32, lefts[5] : lefts[5] + 32]
    assert np.allclose(last, (decoded[1].permute(1, 2, 0) + 1) / 2, atol=1e-6)
    third = sheet[tops[1] : tops[1] + 32 : 4, lefts[3] : lefts[3] + 32 : 4, 0]
    assert np.corrcoef(third.ravel(), x0[1, 2].clamp(-3, 3).ravel())[0, 1] > 0.999


def test_attention_is_relative_to_the_words_mean_and_effects_to_their_largest():
    red, two = torch.full((2, 8, 8), 0.4), torch.full((2, 8, 8), 0.02)
    red[:, 0, :4], red[:, 0, 4:] = 0.6, 0.2
    two[:, 7, :4], two[:, 7, 4:] = 0.03, 0.01
    effect = torch.zeros(2, 8, 8)
    effect[0, 0, 0] = 5.0
    fig = plots.word_maps(images(2), {"red": red, "two": two}, {"red to\nblue": effect})
    ax = fig.axes[0]
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["image", "red", "two", "red to\nblue"]
    assert "50% below to above" in ax.get_title()
    assert "attention to red, two" in fig.alt
    assert "changes with red to blue" in fig.alt
    assert "50" not in fig.alt
    sheet = canvas(fig)
    _, first, second, third = (round(x - 15.5) for x in ax.get_xticks())
    top, low = (round(y - 15.5) for y in ax.get_yticks())
    # Equal in shares of the mean, so of one colour, whichever word it is.
    assert np.allclose(sheet[top, first], sheet[top + 31, second], atol=0.02)
    assert np.allclose(sheet[top, first + 31], sheet[top + 31, second + 31], atol=0.02)
    brightest, middle, darkest = (colormaps["magma"](share)[:3] for share in (1.0, 0.5, 0.0))
    assert np.allclose(sheet[top, first], brightest, atol=0.02)
    assert np.allclose(sheet[top + 16, first], middle, atol=0.02)
    assert np.allclose(sheet[top, first + 31], darkest, atol=0.02)
    assert np.allclose(sheet[top, third], brightest, atol=0.02)
    assert np.allclose(sheet[low, third], sheet[top, third + 31])


# -------------------------------------------------------------------- lines


def planes():
    return plots.guided_planes(
        {"w = 0": (numbers(5, 3, 2), numbers(9, 2)), "w = 3": (numbers(5, 3, 2), numbers(9, 2))},
        numbers(20, 2),
        numbers(30, 2),
    )


def bends():
    t = torch.tensor([999, 599, 299, 0])
    change = t[:3, None] / 99 + numbers(3, 6).abs()
    return plots.latent_bends(t, {"w = 0": change}, "curves over t")


def errors():
    curve = {"ddim": {1: 0.9, 4: 0.4, 50: 0.02}, "dpmpp_2m": {1: 0.9, 4: 0.2, 50: 0.01}}
    return plots.solver_errors({"w = 0": curve, "w = 3": curve})


def grid():
    return plots.image_grid(images(4), columns=2, title="a title", alt="four images of noise")


def rows():
    return plots.image_rows({"a": images(2)}, title="a title", alt="two images of noise")


@pytest.mark.parametrize("make", [planes, bends, errors, grid, rows], ids=lambda f: f.__name__)
def test_figure_repeats_and_describes_itself(make):
    fig = make()
    assert fig.png() == make().png()
    assert len(fig.alt) >= 10
    assert all(ax.get_title() for ax in fig.axes)


def test_planes_draw_every_trajectory_and_end():
    fig = planes()
    assert [ax.get_title() for ax in fig.axes] == ["w = 0", "w = 3"]
    for ax in fig.axes:
        sizes = sorted(len(part.get_offsets()) for part in ax.collections[:1] + ax.collections[1:])
        assert {9, 20, 30} <= set(sizes)


def test_shares_end_at_a_hundred_and_time_runs_to_the_right():
    left, right = bends().axes
    assert right.lines[0].get_ydata()[-1] == pytest.approx(100)
    for ax in (left, right):
        low, high = ax.get_xlim()
        assert low > high


def test_errors_are_drawn_where_they_belong():
    fig = errors()
    assert [ax.get_title() for ax in fig.axes] == ["w = 0", "w = 3"]
    for ax in fig.axes:
        lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
        assert lines["DDIM"] == [[1, 0.9], [4, 0.4], [50, 0.02]]
        assert lines["DPM-Solver++ 2M"][1] == [4, 0.2]
        assert ax.get_xscale() == ax.get_yscale() == "log"

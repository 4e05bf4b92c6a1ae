"""Figures of lesson 08: what they draw, that it repeats, and what they say in words."""

import numpy as np
import pytest
import torch

from slam_course.lesson_08 import figures as plots


def over():
    found = {100: [3.0, 2.0, 4.0], 1000: [0.5]}
    return plots.over_images({"Fréchet": found, "kernel": found}, "two curves over images")


def spread():
    found = {"real": [0.99, 1.0], "student, 1 step": [0.6, 0.8], "student, 2 steps": [1.0, 0.9]}
    return plots.spreads(found, 50, "all right", (0.5, 1.0))


def counts():
    table = 9 * torch.eye(10, dtype=torch.int64)
    table[7, 1], table[4, 9] = 5, 1
    return table


def mistaken():
    return plots.confusion(counts(), "one step", "sevens are read as ones")


@pytest.mark.parametrize("make", [over, spread, mistaken], ids=lambda f: f.__name__)
def test_figure_repeats_and_describes_itself(make):
    fig = make()
    assert fig.png() == make().png()
    assert len(fig.alt) >= 15
    assert all(ax.get_title() for ax in fig.axes)


def test_every_small_set_is_a_dot_and_their_mean_a_line():
    for ax in over().axes:
        dots, line = ax.lines[:2], ax.lines[2]
        assert [d.get_xydata().tolist() for d in dots] == [
            [[100, 3], [100, 2], [100, 4]], [[1000, 0.5]],
        ]  # fmt: skip
        assert line.get_xydata().tolist() == [[100, 3], [1000, 0.5]]
        assert [t.get_text() for t in ax.get_xticklabels()] == ["100", "1,000"]


def test_every_source_has_its_row_and_students_a_colour_of_their_own():
    fig = spread()
    [ax] = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "real", "student, 1 step", "student, 2 steps",
    ]  # fmt: skip
    dots = ax.lines[::2]
    assert [list(d.get_xdata()) for d in dots] == [[0.99, 1.0], [0.6, 0.8], [1.0, 0.9]]
    for row, line in enumerate(dots):
        assert np.abs(np.asarray(line.get_ydata()) - row).max() < 0.25
    assert [float(m.get_xdata()[0]) for m in ax.lines[1::2]] == pytest.approx([0.995, 0.7, 0.95])
    assert len({line.get_color() for line in dots}) == 3
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_title() == "all right: 2 sets of 50 images each"
    assert "student, 1 step 0.7, spread 0.14" in fig.alt


def test_a_single_set_has_no_spread():
    fig = plots.spreads({"real": [0.9]}, 100, "all right", (0, 1))
    assert "real 0.9." in fig.alt


def test_mistakes_are_numbered_and_right_ones_are_not():
    [ax] = mistaken().axes
    said = {t.get_position(): t.get_text() for t in ax.texts}
    assert said[1, 7] == "5"
    assert said[9, 4] == "1"
    assert len([text for text in said.values() if text == "·"]) == 10
    assert len(said) == 12
    drawn = np.asarray(ax.images[0].get_array())
    assert drawn[7, 1] == 5
    assert drawn.diagonal().max() == 0


def test_no_mistake_at_all():
    [ax] = plots.confusion(10 * torch.eye(10), "none", "no digit is mistaken").axes
    assert np.asarray(ax.images[0].get_array()).max() == 0

"""The explorer of lesson 08: what it shows, and how fast."""

import pytest
import torch

from slam_course.lesson_08 import explorer as measures
from slam_course.lesson_08.explorer import COUNTS, spread, spread_figure
from slam_course.lesson_08.measures import FRECHET, MEASURES, RIGHT, Judged, estimates
from tests.speed import assert_draws_within


def source(n, seed, rate):
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(n, 3, generator=generator) < rate
    return Judged(right, torch.randn(n, 128, generator=generator).abs())


@pytest.fixture(scope="module")
def sources():
    return {"real images": source(400, 0, 0.99), "student, 1 step": source(400, 1, 0.9)}


@pytest.fixture(scope="module")
def reference():
    return torch.randn(1000, 128, generator=torch.Generator().manual_seed(2)).abs()


def test_rows_are_the_estimates(sources, reference):
    for measure in MEASURES:
        [ax] = spread_figure(sources, reference, measure, 100).axes
        low, high = ax.get_xlim()
        for line, judged in zip(ax.lines[::2], sources.values(), strict=True):
            expected = estimates(measure, judged, reference, 100)
            assert list(line.get_xdata()) == expected
            assert low < min(expected)
            assert max(expected) < high


def test_rates_end_at_one(reference):
    [ax] = spread_figure({"a": source(40, 0, 2.0)}, reference, RIGHT, 20).axes
    assert ax.get_xlim()[1] < 1.02


def test_explorer_starts_with_the_rate_of_the_smallest_sets(sources, reference):
    menu, slider, picture, caption = spread(sources, reference).children
    assert (menu.description, slider.description) == ("measure", "images")
    assert (menu.value, slider.value) == (RIGHT, COUNTS[0])
    assert picture.value == spread_figure(sources, reference, RIGHT, COUNTS[0]).png()
    assert "sets of 20 images" in caption.value


def test_every_control_changes_the_picture(sources, reference):
    menu, slider, picture, _ = spread(sources, reference).children
    for control in (menu, slider):
        before = picture.value
        control.value = control.options[1]
        assert picture.value != before, control.description


def test_a_setting_is_measured_once(sources, reference, monkeypatch):
    calls = []
    whole = spread_figure
    monkeypatch.setattr(
        measures, "spread_figure", lambda *given: (calls.append(given[2:]), whole(*given))[1]
    )
    menu, _, _, _ = spread(sources, reference).children
    for value in (FRECHET, RIGHT, FRECHET):
        menu.value = value
    assert len(calls) == len(set(calls)) == 2


@pytest.mark.parametrize("counts", [(1, 20), (20, 500)])
def test_wrong_counts(sources, reference, counts):
    with pytest.raises(ValueError, match="a number of images is"):
        spread(sources, reference, counts)


def test_sources_of_unlike_sizes(reference):
    with pytest.raises(ValueError, match=r"sources have \[20, 40\] images"):
        spread_figure({"a": source(20, 0, 1.0), "b": source(40, 0, 1.0)}, reference, RIGHT, 10)


def test_the_slowest_setting_takes_under_two_seconds(sources, reference):
    sources = {**sources, "student, 2 steps": source(400, 3, 0.9)}

    def draw():
        spread_figure(sources, reference, MEASURES[-1], min(COUNTS)).png()

    assert_draws_within(2, [draw, draw])

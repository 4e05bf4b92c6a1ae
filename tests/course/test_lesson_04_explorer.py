"""The explorer of lesson 04: what it shows, what it says, and how fast."""

from functools import partial

import pytest
import torch

from slam_course.lesson_04.explorer import GAMMAS, K, T, sub_path_figure, sub_paths
from slam_edu import NoiseSchedule
from tests.speed import assert_draws_within


def said(data_set, t, k, gamma):
    """The two distances in the figure's description: measured and by the law."""
    words = sub_path_figure(data_set, t, k, gamma).alt.split()
    return float(words[words.index("off") - 1]), float(words[-1].rstrip("."))


def test_measured_and_law_agree_on_short_sub_paths():
    for gamma in (0.25, 0.5, 0.75, 1.0, 1.5):
        measured, law = said("two_moons", 199, 20, gamma)
        assert measured == pytest.approx(law, rel=0.15)
    assert said("two_moons", 199, 20, 0.0) == (0, 0)
    assert said("two_moons", 199, 20, 2.0)[0] < 0.3 * said("two_moons", 199, 20, 1.0)[0]


def test_answers_of_the_lesson():
    """The three findings of the section "Play"."""
    gain = {
        (t, k): said("two_moons", t, k, 2.0)[0] / said("two_moons", t, k, 1.0)[0]
        for t, k in ((19, 20), (99, 20), (399, 20), (999, 20), (999, 250), (399, 250))
    }
    assert max(gain[t, 20] for t in (99, 399, 999)) < 0.4
    assert min(gain[19, 20], gain[999, 250], gain[399, 250]) > 0.7
    grows = said("two_moons", 199, 100, 1.0)[0] / said("two_moons", 199, 20, 1.0)[0]
    assert 20 < grows < 30
    assert said("two_moons", 999, 20, 1.0)[0] < said("two_moons", 199, 20, 1.0)[0]


@pytest.mark.parametrize(("t", "k", "s"), [(199, 20, 179), (99, 250, 0)])
def test_length_of_the_sub_path(t, k, s):
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    fig = sub_path_figure("ring", t, k, 1.0)
    assert fig.alt.startswith(f"ring, sub-path from {t} to {s}, gamma = 1: ")
    rho = fig.axes[1].lines[1].get_xdata()
    assert [rho[0], rho[-1]] == pytest.approx([schedule(t).rho.item(), schedule(s).rho.item()])


def test_the_chord_is_the_horizontal_line_and_the_bar_ends_on_the_true_path():
    _, right = sub_path_figure("ring", 299, 100, 0.5).axes
    through_t, through_gamma = (line.get_xydata() for line in right.lines[1:3])
    assert abs(through_t[0, 1]) < 1e-12
    assert abs(through_gamma[0, 1]) < 1e-12
    assert through_t[1, 1] > 0  # it leaves in the direction of its bend
    [bar] = right.collections
    [segment] = bar.get_segments()
    assert segment[:, 0] == pytest.approx(through_gamma[-1, 0])
    assert sorted(segment[:, 1]) == pytest.approx(sorted([0, through_gamma[-1, 1]]))
    low, high = right.get_xlim()
    assert low > through_t[0, 0] > through_t[-1, 0] > high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("moon", 199, 20, 0.5), "name is 'moon'"),
        (("ring", 200, 20, 0.5), "t is 200; allowed: 999"),
        (("ring", 199, 0, 0.5), "k is 0; allowed: an integer >= 1"),
        (("ring", 199, 20, 2.5), "gamma is 2.5; allowed: 0 <= gamma <= 2"),
    ],
)
def test_wrong_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        sub_path_figure(*arguments)


def test_first_must_be_among_the_values():
    with pytest.raises(ValueError, match=r"first gamma is 0\.3; allowed: 0\.0"):
        sub_paths(["ring"], first=(199, 100, 0.3))


def test_explorer_has_four_controls_and_starts_where_it_is_told():
    box = sub_paths(["ring", "spiral"], first=(99, 50, 0.75))
    *controls, picture, caption = box.children
    assert [control.description for control in controls] == ["data set", "t", "k", "gamma"]
    assert [control.value for control in controls] == ["ring", 99, 50, 0.75]
    assert picture.value == sub_path_figure("ring", 99, 50, 0.75).png()
    assert "ring, sub-path from 99 to 49, gamma = 0.75" in caption.value


def test_every_control_changes_the_picture():
    *controls, picture, _ = sub_paths(["ring", "spiral"]).children
    for control in controls:
        before = picture.value
        options = [o[1] if isinstance(o, tuple) else o for o in control.options]
        control.value = next(value for value in options if value != control.value)
        assert picture.value != before, control.description


def test_all_values_can_be_drawn():
    for t in T:
        for k in K:
            assert sub_path_figure("checkerboard", t, k, 0.0).alt
    for gamma in GAMMAS:
        assert torch.isfinite(torch.tensor(said("pinwheel", 999, 250, gamma))).all()


def test_a_move_of_a_slider_takes_under_300_ms():
    *_, gamma, picture, _ = sub_paths(["checkerboard"]).children
    # The first value, and the one that is shown first, are drawn already.
    others = [value for value in GAMMAS if value not in (GAMMAS[0], gamma.value)]
    assert_draws_within(0.3, [partial(setattr, gamma, "value", value) for value in others])
    assert picture.value

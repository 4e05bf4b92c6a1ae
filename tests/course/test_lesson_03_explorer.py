"""The explorer of lesson 03: hops against the exact map, how it is controlled, how fast it is."""

from functools import partial

import pytest
import torch

from slam_course.lesson_03 import explorer as consistency
from slam_course.lesson_03.explorer import HOPS, TIMES, hop_figure, hops
from slam_edu import DistillConfig, NoiseSchedule, SubPathDistiller, SubPathSample
from slam_edu.toy import ring, solution_map
from tests.helpers import assert_near
from tests.speed import assert_draws_within

SCHEDULE = NoiseSchedule.stable_diffusion(torch.float64)
MIXTURE = ring(dtype=torch.float64)


def test_more_hops_end_closer_at_first_order():
    error = consistency._ends("ring", 999).error
    values = [error[n] for n in HOPS]
    assert values == sorted(values, reverse=True)
    assert error[100] / error[200] == pytest.approx(2, rel=0.15)


def test_ends_are_those_of_the_exact_map():
    ends = consistency._ends("ring", 499)
    end = solution_map(MIXTURE, ends.start, SCHEDULE(499), SCHEDULE(0), tol=1e-8).x
    assert_near(ends.end, end, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("t", "n"), [(499, 20), (249, 20), (249, 100)])
def test_hops_are_the_distillers(t, n):
    """What the explorer composes is the teacher's hop of the distillation step, N t / 1000 times.

    Both timesteps are among the noisy ends of both grids.
    """
    ends = consistency._ends("ring", t)
    config = DistillConfig(subpaths=n, gammas="one", conditioning="level", coupling="linear")
    distiller = SubPathDistiller(SCHEDULE, config)
    teacher = MIXTURE.network(SCHEDULE)

    def nothing(x, t, cond, gamma):
        return torch.zeros_like(x)

    x = ends.start
    for index in range((t + 1) * n // 1000 - 1, -1, -1):
        level = SCHEDULE(distiller.grid.t[index])
        # Data and noise that make exactly this x_t.
        sample = SubPathSample(
            index=torch.full((len(x),), index),
            gamma=torch.ones(len(x), dtype=torch.float64),
            noise=torch.zeros_like(x),
        )
        out = distiller.step(
            x / level.alpha, sample, teacher=teacher, student=nothing, target=nothing
        )
        x = out.x_s
    assert_near(ends.reached[n], x, rtol=0, atol=1e-9)


def test_a_start_between_two_levels_takes_a_shorter_first_hop():
    """749 is no noisy end of N = 5: the first hop leads to 599."""
    ends = consistency._ends("ring", 749)
    x = ends.start
    for t, s in ((749, 599), (599, 399), (399, 199), (199, 0)):
        level, low = SCHEDULE(t), SCHEDULE(s)
        eps = MIXTURE.predict(x, level).eps
        x = low.alpha * (x - level.sigma * eps) / level.alpha + low.sigma * eps
    assert_near(ends.reached[5], x, rtol=0, atol=1e-9)


def test_figure_repeats_and_says_how_far_off_the_ends_are():
    fig = hop_figure("ring", 10, 999)
    assert fig.png() == hop_figure("ring", 10, 999).png()
    error = consistency._ends("ring", 999).error[10]
    assert f"on average they end {error:.3f} from" in fig.alt
    assert fig.axes[1].get_title() == f"mean distance to f*: {error:.3f}"
    assert "cut into 1 hop:" in hop_figure("ring", 1, 999).alt


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hop_figure("moon", 10, 999), "data_set is 'moon'; allowed: 'ring'"),
        (lambda: hop_figure("ring", 3, 999), "hops is 3; allowed: 1, 2"),
        (lambda: hop_figure("ring", 10, 500), "t is 500; allowed: 999, 749"),
        (lambda: hops(["moon"]), "data_set is 'moon'; allowed"),
        (lambda: hops(["ring"], values=(1, 2)), "first is 10; allowed: 1, 2"),
        (lambda: hops(["ring"], timesteps=(998,)), "t is 998; allowed: 999"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_explorer_has_three_controls_and_starts_where_it_is_told():
    box = hops(["ring"], first=20)
    *controls, picture, caption = box.children
    assert [control.description for control in controls] == ["data set", "hops", "t"]
    assert [control.value for control in controls] == ["ring", 20, TIMES[0]]
    assert picture.value == hop_figure("ring", 20, 999).png()
    assert "the schedule cut into 20 hops" in caption.value
    before = picture.value
    controls[2].value = 249
    assert picture.value != before


def test_a_move_of_the_slider_takes_under_300_ms():
    box = hops(["ring"])
    _, slider, t, _, _ = box.children
    t.value = 749
    hops_to_draw = (1, 2, 4, 5, 20, 25)  # none was drawn before
    assert_draws_within(0.3, [partial(setattr, slider, "value", k) for k in hops_to_draw])

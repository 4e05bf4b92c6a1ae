"""Figures of lesson 02: what they draw, that it repeats, and what they say in words."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

from slam_course.lesson_02 import figures as plots
from slam_course.lesson_02.explorer import (
    EVEN_LOG_RHO,
    EVEN_T,
    SOLVERS,
    grid,
    solver_figure,
    solvers,
)
from slam_course.lesson_02.figures import arcs
from slam_edu import Level, NoiseSchedule, pf_ode_trajectory
from slam_edu.toy import two_moons
from slam_edu.toy.errors import exact_trajectory, geometric_levels, one_hop
from tests.helpers import assert_near, noise
from tests.speed import assert_draws_within

SCHEDULE = NoiseSchedule.stable_diffusion(torch.float64)
MIXTURE = two_moons(dtype=torch.float64)
LEVELS = Level.cat([SCHEDULE(torch.tensor([999, 499])), Level.clean(SCHEDULE(0).alpha)])


def trajectory(points=6):
    return pf_ode_trajectory(MIXTURE.predict, noise(points, 2), LEVELS)


# -------------------------------------------------------------------- arcs


def test_arcs_pass_through_the_states():
    path = arcs(trajectory(), LEVELS, per_hop=5)
    assert path.shape == (11, 6, 2)
    assert_near(path[::5], trajectory(), rtol=1e-9, atol=1e-12)


def test_between_states_arcs_are_straight_in_z():
    """Every point of an arc is alpha z, with z on the line between the hop's two ends."""
    states = trajectory()
    z = states / LEVELS.alpha[:, None, None]
    path = arcs(states, LEVELS, per_hop=4)
    angle = torch.lerp(LEVELS.rho[0].atan(), LEVELS.rho[1].atan(), torch.tensor(0.25).double())
    here = Level.from_rho(angle.tan())
    share = (here.rho - LEVELS.rho[0]) / (LEVELS.rho[1] - LEVELS.rho[0])
    assert_near(path[1], here.alpha * torch.lerp(z[0], z[1], share), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arcs(trajectory(), LEVELS[:2]), "has 3 states; allowed: one per level, 2"),
        (lambda: arcs(trajectory(), LEVELS, 0), "per_hop is 0; allowed: an integer >= 1"),
        (lambda: solver_figure("ring", "Euler", EVEN_T, 2), "solver is 'Euler'; allowed: 'DDIM'"),
        (lambda: grid("odd", 2), "levels is 'odd'; allowed: 'even in t'"),
        (lambda: grid(EVEN_T, 0), "steps is 0; allowed: an integer from 1 to 1000"),
        (lambda: solvers(["ring"], steps=(1, 2), first=4), "first is 4; allowed: 1, 2"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -------------------------------------------------------------------- figures


def local_and_global():
    fine = geometric_levels(SCHEDULE(999), SCHEDULE(0), 12)
    levels = geometric_levels(SCHEDULE(999), SCHEDULE(0), 3)
    x = noise(4, 2)
    starts = exact_trajectory(MIXTURE, x, levels)
    reached = torch.stack([one_hop(MIXTURE, starts, levels, i) for i in range(3)])
    path = pf_ode_trajectory(MIXTURE.predict, x, levels)
    return plots.hops_and_path(
        fine, exact_trajectory(MIXTURE, x, fine), levels, starts, reached, path
    )


def strip():
    return plots.sample_strip({"a": noise(9, 2), "b": noise(9, 2)}, noise(5, 2), "two panels here")


def few_steps():
    exact = torch.stack([noise(6, 2), trajectory()[-1]])
    return plots.few_step_paths({2: (trajectory(), LEVELS)}, exact, noise(9, 2))


def orders():
    errors = {"ddim": [0.4, 0.2], "heun": [0.1, 0.025], "dpmpp_2m": [0.2, 0.05]}
    slopes = dict.fromkeys(errors, (2.0, 1.0))
    return plots.orders((8, 16), errors, errors, slopes)


def along_the_path():
    t = torch.tensor([999.0, 500.0, 19.0])
    return plots.error_along_the_path(t, t + 1, t / 1e4, t / 1e4, 1 / t)


def distances():
    curves = {"ddim": {1: 0.9, 2: 0.5}, "heun": {1: 0.9, 3: 0.2}, "dpmpp_2m": {1: 0.9, 2: 0.4}}
    return plots.distance_by_evaluations(curves, [0.04, 0.06])


def middle():
    return plots.middle_level([900, 500, 100], {"ddim": [0.9, 0.4, 0.6]}, [0.04, 0.06])


FIGURES = [local_and_global, strip, few_steps, orders, along_the_path, distances, middle]


@pytest.mark.parametrize("make", FIGURES, ids=lambda make: make.__name__)
def test_figure_repeats_and_describes_itself(make):
    fig = make()
    assert fig.png() == make().png()
    assert len(fig.alt) >= 15
    assert "0.0" not in fig.alt, "a number that may round differently elsewhere"
    assert all(ax.get_title() for ax in fig.axes)


def test_error_bars_reach_from_the_hop_to_the_exact_path():
    left, right = local_and_global().axes
    bars = [c for c in left.collections if isinstance(c, LineCollection)]
    assert len(bars) == 3  # one collection a hop, of one bar a point
    assert [len(c.get_segments()) for c in bars] == [4, 4, 4]
    [end] = [c for c in right.collections if isinstance(c, LineCollection)]
    assert len(end.get_segments()) == 4


def test_time_runs_from_noise_to_data():
    for fig in (local_and_global(), along_the_path(), middle()):
        for ax in fig.axes:
            low, high = ax.get_xlim()
            assert low > high


def test_orders_writes_the_exponents_in_the_legend():
    texts = [text.get_text() for text in orders().axes[0].get_legend().get_texts()]
    assert texts == ["DDIM: 2.0", "Heun: 2.0", "DPM-Solver++ 2M: 2.0"]


def test_distance_figure_shows_floor_and_twice_the_floor():
    ax = distances().axes[0]
    [twice] = [
        line for line in ax.lines if len(set(line.get_ydata())) == 1 and line.get_ls() == ":"
    ]
    assert twice.get_ydata()[0] == pytest.approx(0.1)
    assert any("two samples of the data" in text.get_text() for text in ax.texts)


def test_the_lowest_point_of_the_valley_is_marked():
    ax = middle().axes[0]
    assert any(np.allclose(line.get_xydata(), [[500, 0.4]]) for line in ax.lines)


def test_evaluations_in_words():
    assert [plots.evaluations(n) for n in (1, 2)] == ["1 evaluation", "2 evaluations"]


# -------------------------------------------------------------------- the explorer


def test_levels_of_the_explorer():
    even = grid(EVEN_T, 4)
    assert_near(even.rho[:-1], SCHEDULE(torch.tensor([999, 749, 499, 249])).rho, rtol=1e-12)
    assert even.rho[-1] == 0
    assert_near(grid(EVEN_LOG_RHO, 4).rho, geometric_levels(SCHEDULE(999), SCHEDULE(0), 4).rho)


@pytest.mark.parametrize(
    ("solver", "levels", "looks"),
    [
        ("DDIM", EVEN_T, "3 evaluations"),
        ("Heun", EVEN_T, "5 evaluations"),
        ("Heun", EVEN_LOG_RHO, "6 evaluations"),
        ("DPM-Solver++ 2M", EVEN_LOG_RHO, "3 evaluations"),
    ],
)
def test_explorer_counts_the_evaluations_that_the_solver_makes(monkeypatch, solver, levels, looks):
    calls = []
    method = SOLVERS[solver]
    x = noise(2, 2)

    def predictor(x, level):
        calls.append(level)
        return MIXTURE.predict(x, level)

    pf_ode_trajectory(predictor, x, grid(levels, 3), method)
    assert f"{len(calls)} evaluations" == looks
    assert looks in solver_figure("two_moons", solver, levels, 3).alt


def test_explorer_says_how_far_off_the_ends_are():
    def error(steps):
        words = solver_figure("ring", "DDIM", EVEN_T, steps).alt.split()
        return float(words[words.index("from") - 1])

    errors = [error(steps) for steps in (1, 4, 50)]
    assert errors[0] > 1 > errors[1] > 0.1 > errors[2]
    assert math.isfinite(errors[2])


def test_explorer_has_four_controls_and_starts_where_it_is_told():
    box = solvers(["ring"], steps=(1, 2, 4), first=4)
    *controls, picture, caption = box.children
    assert [control.description for control in controls] == [
        "data set",
        "solver",
        "levels",
        "steps",
    ]
    assert [control.value for control in controls] == ["ring", "DDIM", EVEN_T, 4]
    assert picture.value == solver_figure("ring", "DDIM", EVEN_T, 4).png()
    assert "ring, DDIM, levels even in t, 4 evaluations" in caption.value


def test_a_move_of_the_slider_takes_under_200_ms():
    *_, steps, _, _ = solvers(["two_moons"]).children
    several = (2, 3, 6, 8)  # none was drawn before
    assert_draws_within(0.2, [partial(setattr, steps, "value", n) for n in several])

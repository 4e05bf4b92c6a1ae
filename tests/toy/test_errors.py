"""Errors of solvers: against closed forms, against each other, and their orders."""

import math

import pytest
import torch

from slam_edu import Level, NoiseSchedule, pf_ode_trajectory
from slam_edu.toy import GaussianMixture, ring, solution_map, two_moons
from slam_edu.toy.errors import (
    effects_at_end,
    exact_trajectory,
    geometric_levels,
    global_errors,
    local_errors,
    measured_order,
    one_hop,
)
from tests.helpers import assert_near, f64, noise

SCHEDULE = NoiseSchedule.stable_diffusion(torch.float64)
START, END = SCHEDULE(999), SCHEDULE(0)
STD = 0.5
GAUSSIAN = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), STD)
ORDERS = {"ddim": 1, "heun": 2, "dpmpp_2m": 2, "rk4": 4}


def growth(rho):
    """In z, the exact path of one Gaussian is its start times this, over this at the start."""
    return torch.sqrt(STD**2 + rho**2)


# -------------------------------------------------------------------- levels


def test_geometric_levels_have_equal_ratios():
    levels = geometric_levels(START, END, 10)
    assert len(levels) == 11
    assert_near(levels.norm, torch.ones(11, dtype=torch.float64), rtol=1e-12)
    assert_near(levels.rho[0], START.rho, rtol=1e-12)
    assert_near(levels.rho[-1], END.rho, rtol=1e-12)
    ratio = levels.rho[1:] / levels.rho[:-1]
    assert_near(ratio, ratio[:1].expand(10), rtol=1e-12)


def test_geometric_levels_are_nested():
    assert_near(geometric_levels(START, END, 12)[::3].rho, geometric_levels(START, END, 4).rho)


# -------------------------------------------------------------------- the exact path


def test_exact_trajectory_of_one_gaussian():
    levels, x = geometric_levels(START, END, 7), noise(5, 2)
    exact = exact_trajectory(GAUSSIAN, x, levels)
    z = x / START.alpha * (growth(levels.rho) / growth(START.rho))[:, None, None]
    assert_near(exact, levels.alpha[:, None, None] * z, rtol=1e-9)


def test_exact_trajectory_does_not_depend_on_the_levels_between():
    x = noise(20, 2)
    direct = solution_map(two_moons(dtype=torch.float64), x, START, END, tol=1e-9).x
    by_hops = exact_trajectory(two_moons(dtype=torch.float64), x, geometric_levels(START, END, 9))
    assert_near(by_hops[-1], direct, rtol=0, atol=1e-5)
    assert torch.equal(by_hops[0], x)


def test_exact_trajectory_to_clean_data():
    levels = Level.cat([START, Level.clean(START.alpha)])
    end = exact_trajectory(GAUSSIAN, noise(3, 2), levels)[-1]
    assert_near(end, noise(3, 2) / START.alpha * STD / growth(START.rho), rtol=1e-9)


# -------------------------------------------------------------------- local errors


def test_local_error_of_ddim_in_closed_form():
    """Euler's hop multiplies z by 1 + (rho_s - rho_t) rho_t/(s^2 + rho_t^2)."""
    levels, x = geometric_levels(START, END, 6), noise(5, 2)
    exact = exact_trajectory(GAUSSIAN, x, levels)
    rho, rho_s = levels.rho[:-1], levels.rho[1:]
    euler = 1 + (rho_s - rho) * rho / (STD**2 + rho**2)
    missed = (euler - growth(rho_s) / growth(rho)).abs()
    size = (exact[:-1] / levels.alpha[:-1, None, None]).norm(dim=2)
    expected = missed[:, None] * size
    assert_near(local_errors(GAUSSIAN, exact, levels), expected, rtol=1e-6, atol=1e-9)


def test_local_error_of_ddim_is_half_the_hop_times_the_change_of_slope():
    mixture, levels = ring(dtype=torch.float64), geometric_levels(START, END, 400)
    exact = exact_trajectory(mixture, noise(8, 2), levels)
    slope = torch.stack([mixture.predict(x, levels[i]).eps for i, x in enumerate(exact)])
    hop = -levels.rho.diff()[:, None]
    expected = hop * slope.diff(dim=0).norm(dim=2) / 2
    ratio = local_errors(mixture, exact, levels).mean(dim=1) / expected.mean(dim=1)
    assert (ratio - 1).abs().max() < 0.02


@pytest.mark.parametrize(("method", "order"), ORDERS.items())
def test_orders(method, order):
    mixture, hops = two_moons(dtype=torch.float64), (64, 128)
    exact = exact_trajectory(mixture, noise(40, 2), geometric_levels(START, END, 128), tol=1e-11)
    local, whole = [], []
    for n in hops:
        levels, path = geometric_levels(START, END, n), exact[:: 128 // n]
        local.append(local_errors(mixture, path, levels, method)[n // 2].median().item())
        whole.append(global_errors(mixture, path, levels, method).median().item())
    assert measured_order(hops, local) == pytest.approx(order + 1, abs=0.2)
    assert measured_order(hops, whole) == pytest.approx(order, abs=0.2)


def test_a_multistep_hop_remembers_the_exact_level_before():
    """From exact states, the second hop is the second hop of a solver that was exact so far."""
    levels = geometric_levels(START, END, 300)
    exact = exact_trajectory(GAUSSIAN, noise(4, 2), levels)
    at = 100
    first = one_hop(GAUSSIAN, exact, levels, at, "ddim")
    second = one_hop(GAUSSIAN, exact, levels, at, "dpmpp_2m")
    missed = (first - exact[at + 1]).norm(), (second - exact[at + 1]).norm()
    assert missed[1] < 0.05 * missed[0]
    assert torch.equal(
        one_hop(GAUSSIAN, exact, levels, 0, "dpmpp_2m"),
        pf_ode_trajectory(GAUSSIAN.predict, exact[0], levels[:2], "dpmpp_2m")[-1],
    )


# -------------------------------------------------------------------- what hops cost at the end


def test_effects_of_one_gaussian_in_closed_form():
    """The exact path scales z, so it scales a local error too."""
    levels, x = geometric_levels(START, END, 5), noise(4, 2)
    exact = exact_trajectory(GAUSSIAN, x, levels)
    shrink = growth(levels.rho[-1]) / growth(levels.rho[1:])
    expected = local_errors(GAUSSIAN, exact, levels) * shrink[:, None]
    effects = effects_at_end(GAUSSIAN, exact, levels, tol=1e-9)
    assert_near(effects, expected, rtol=1e-4, atol=1e-8)


def test_the_last_hop_costs_its_own_local_error():
    mixture = two_moons(dtype=torch.float64)
    levels = Level.cat([SCHEDULE(torch.tensor([999, 499])), Level.clean(START.alpha)])
    exact = exact_trajectory(mixture, noise(6, 2), levels)
    effects = effects_at_end(mixture, exact, levels)
    assert_near(effects[-1], local_errors(mixture, exact, levels)[-1], rtol=1e-12)


def test_one_hop_has_one_error():
    mixture, levels = two_moons(dtype=torch.float64), geometric_levels(START, END, 1)
    exact = exact_trajectory(mixture, noise(6, 2), levels)
    whole = global_errors(mixture, exact, levels)
    assert_near(local_errors(mixture, exact, levels)[0], whole, rtol=1e-12)
    assert_near(effects_at_end(mixture, exact, levels)[0], whole, rtol=1e-12)


# -------------------------------------------------------------------- the order


def test_measured_order_of_a_power():
    assert measured_order([4, 8, 16], [3 / n**2.5 for n in (4, 8, 16)]) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometric_levels(START, END, 0), r"hops is 0; allowed: an integer >= 1"),
        (lambda: geometric_levels(END, START, 3), r"end has rho = 14\.6.*less than the start's"),
        (
            lambda: geometric_levels(START, Level.clean(START.alpha), 3),
            r"end has rho = 0; allowed: greater than 0",
        ),
        (
            lambda: exact_trajectory(GAUSSIAN, noise(2, 2), START),
            r"levels have shape \(\); allowed: \(n,\), n >= 2",
        ),
        (
            lambda: exact_trajectory(GAUSSIAN, noise(2, 2), SCHEDULE(torch.tensor([5, 9]))),
            r"level_end has rho",
        ),
        (
            lambda: one_hop(GAUSSIAN, noise(3, 2, 2), geometric_levels(START, END, 2), 0, "euler"),
            r"method is 'euler'; allowed: 'ddim', 'heun', 'dpmpp_2m', 'rk4'",
        ),
        (
            lambda: one_hop(GAUSSIAN, noise(3, 2, 2), geometric_levels(START, END, 2), 2),
            r"i is 2; allowed: an integer from 0 to 1",
        ),
        (
            lambda: local_errors(GAUSSIAN, noise(4, 2, 2), geometric_levels(START, END, 2)),
            r"exact has 4 states; allowed: one per level, 3",
        ),
        (
            lambda: global_errors(GAUSSIAN, noise(2, 2, 2), Level.from_rho(f64([1.0, 2.0]))),
            r"rho goes from 1 to 2.*decreasing",
        ),
        (lambda: measured_order([4], [0.1]), r"1 hops, 1 errors; allowed: as many, two or more"),
        (lambda: measured_order([4, 8], [0.1]), r"2 hops, 1 errors"),
        (lambda: measured_order([4, 8], [0.1, 0.0]), r"not positive"),
        (lambda: measured_order([4, 8], [0.1, math.nan]), r"not positive"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

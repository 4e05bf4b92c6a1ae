"""Errors of solvers and students: against closed forms, against each other, and their orders."""

import pytest
import torch

from slam_edu import NoiseSchedule
from slam_edu.toy import GaussianMixture, two_moons
from slam_edu.toy.errors import (
    effects_at_end,
    exact_trajectory,
    geometric_levels,
    global_errors,
    local_errors,
    measured_order,
    one_hop,
)
from tests.helpers import assert_near, noise

SCHEDULE = NoiseSchedule.stable_diffusion(torch.float64)
START, END = SCHEDULE(999), SCHEDULE(0)
STD = 0.5
GAUSSIAN = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), STD)
ORDERS = {"ddim": 1, "heun": 2, "dpmpp_2m": 2, "rk4": 4}


def growth(rho):
    """In z, the exact path of one Gaussian is its start times this, over this at the start."""
    return torch.sqrt(STD**2 + rho**2)


def test_local_error_of_ddim_in_closed_form():
    """Euler's hop multiplies z by 1 + (rho_s - rho_t) rho_t/(s^2 + rho_t^2)."""
    levels, x = geometric_levels(START, END, 6), noise(5, 2)
    exact = exact_trajectory(GAUSSIAN, x, levels)
    z = x / START.alpha * (growth(levels.rho) / growth(START.rho))[:, None, None]
    assert_near(exact, levels.alpha[:, None, None] * z, rtol=1e-9)
    rho, rho_s = levels.rho[:-1], levels.rho[1:]
    euler = 1 + (rho_s - rho) * rho / (STD**2 + rho**2)
    missed = (euler - growth(rho_s) / growth(rho)).abs()
    expected = missed[:, None] * z[:-1].norm(dim=2)
    assert_near(local_errors(GAUSSIAN, exact, levels), expected, rtol=1e-6, atol=1e-9)


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


def test_effects_of_one_gaussian_in_closed_form():
    """The exact path scales z, so it scales a local error too."""
    levels, x = geometric_levels(START, END, 5), noise(4, 2)
    exact = exact_trajectory(GAUSSIAN, x, levels)
    shrink = growth(levels.rho[-1]) / growth(levels.rho[1:])
    expected = local_errors(GAUSSIAN, exact, levels) * shrink[:, None]
    effects = effects_at_end(GAUSSIAN, exact, levels, tol=1e-9)
    assert_near(effects, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometric_levels(START, END, 0), r"hops is 0; allowed: an integer >= 1"),
        (lambda: one_hop(GAUSSIAN, noise(3, 2, 2), geometric_levels(START, END, 2), 0, "euler"),
         r"method is 'euler'; allowed: 'ddim', 'heun', 'dpmpp_2m', 'rk4'"),
        (lambda: local_errors(GAUSSIAN, noise(4, 2, 2), geometric_levels(START, END, 2)),
         r"exact has 4 states; allowed: one per level, 3"),
        (lambda: measured_order([4, 8], [0.1, 0.0]), r"not positive"),
    ],
)  # fmt: skip
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

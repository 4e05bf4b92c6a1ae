"""Errors of solvers and students: against closed forms, against each other, and their orders."""

import pytest
import torch

from slam_edu import DistillConfig, Level, NoiseSchedule, SubPathDistiller, boundary_scalings
from slam_edu.toy import GaussianMixture, two_moons
from slam_edu.toy.errors import (
    effects_at_end,
    exact_trajectory,
    geometric_levels,
    global_errors,
    local_errors,
    measured_order,
    one_hop,
    student_errors,
    sub_path_errors,
)
from tests.helpers import assert_near, column, f64, noise

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


LEVEL = {"conditioning": "level", "coupling": "linear"}
GAMMA = {"conditioning": "gamma", "coupling": "markov"}


def distiller_for(**config) -> SubPathDistiller:
    """Of a student that predicts x0, so that a test can make it say what it wants."""
    return SubPathDistiller(SCHEDULE, DistillConfig(student_prediction_type="sample", **config))


class Saying:
    """A student whose consistency function is say(x, t, gamma), for t > 0 where it is not x."""

    def __init__(self, say):
        self.say, self.calls = say, []

    def __call__(self, x, t, cond=None, gamma=None):
        self.calls.append((x, t, gamma))
        c_skip, c_out = (column(value, x) for value in boundary_scalings(t, dtype=x.dtype))
        return (self.say(x, t, gamma) - c_skip * x) / c_out


def gaussian_end(x, level):
    """f* of one Gaussian: its z keeps its ratio to the standard deviation, down to timestep 0."""
    z = x / column(level.alpha.expand(len(x)), x)
    shrink = growth(END.rho) / growth(level.rho)
    return END.alpha * z * column(shrink.expand(len(x)), x)


@pytest.mark.parametrize("config", [LEVEL, GAMMA])
@pytest.mark.parametrize("t", [1, 999])
def test_error_of_a_student_that_says_one_point(config, t):
    """The distance of that point to f*, in closed form."""
    point, x = f64([0.3, -0.4]), SCHEDULE(t).sigma * noise(20, 2)
    student = Saying(lambda x, t, gamma: point.expand_as(x))
    errors = student_errors(distiller_for(**config), student, GAUSSIAN, x, t, tol=1e-10)
    expected = ((point - gaussian_end(x, SCHEDULE(t))) ** 2).sum(dim=1) ** 0.5
    assert errors.shape == (20,)
    assert_near(errors, expected, rtol=1e-8)
    [(_, told, gamma)] = student.calls
    assert told.tolist() == [t] * 20
    assert gamma is None if config is LEVEL else gamma.tolist() == [1.0] * 20


@pytest.mark.parametrize("config", [LEVEL, GAMMA, {**LEVEL, "reach": 2.0}])
@pytest.mark.parametrize("index", [0, 44])
def test_errors_along_a_sub_path_in_closed_form(config, index):
    """One Gaussian: teacher's hop, chord, its level and the exact end from there, written out."""
    x0, eps = STD * noise(8, 2), noise(8, 2, seed=1)
    gammas = [0.0 if index else 0.01, 0.25, 0.7, 1.0] + [1.5, 2.0] * ("reach" in config)

    def say(x, t, gamma):
        return (1.0 if gamma is None else 1 + column(gamma, x)) * f64([0.3, -0.4]).expand_as(x)

    errors = sub_path_errors(
        distiller_for(**config), Saying(say), GAUSSIAN, x0, eps, index, gammas, tol=1e-10
    )
    assert errors.shape == (len(gammas), 8)

    t, s = SCHEDULE(20 * index + 19), SCHEDULE(max(20 * index - 1, 0))
    x_t = t.alpha * x0 + t.sigma * eps
    e = t.rho / (STD**2 + t.rho**2) * x_t / t.alpha  # the slope dz/drho of one Gaussian
    x_s = s.alpha * (x_t / t.alpha + (s.rho - t.rho) * e)
    a = t.alpha / s.alpha
    for gamma, row in zip(gammas, errors, strict=True):
        x = gamma * x_t + (1 - gamma) * a * x_s
        if config is GAMMA:
            low = (a * s.sigma) ** 2
            sigma = (low + gamma**2 * (t.sigma**2 - low)).sqrt()
        else:
            sigma = gamma * t.sigma + (1 - gamma) * a * s.sigma
        said = f64([0.3, -0.4]) * (1 + gamma if config is GAMMA else 1)
        expected = (said - gaussian_end(x, Level(t.alpha, sigma))).norm(dim=1)
        assert_near(row, expected, rtol=1e-7)

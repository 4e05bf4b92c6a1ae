"""The exact solution map: closed form, step halving, another solver, change of variables."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slam_edu import Level, NoiseSchedule, pf_ode_trajectory
from slam_edu.toy import DATASETS, GaussianMixture, Solution, make, picture, solution_map
from slam_edu.toy import solution as module
from tests.helpers import assert_near, f64, level, max_error, noise, properties

SD = NoiseSchedule.stable_diffusion(torch.float64)
SETS = {name: make(name, torch.float64) for name in DATASETS}
SETS["cat"] = picture(components=200, dtype=torch.float64)
few = settings(properties, max_examples=25)


def start(name, t, n=60, seed=0):
    here = SD(t)
    return SETS[name].sample_at(here, n, torch.Generator().manual_seed(seed)), here


@pytest.mark.parametrize("name", ["ring", "pinwheel", "cat"])
@pytest.mark.parametrize("t", [19, 999])
def test_error_is_within_the_tolerance(name, t):
    """Against the same method at a tolerance 10,000 times smaller."""
    x, here = start(name, t)
    solution = solution_map(SETS[name], x, here, SD(0))
    assert isinstance(solution, Solution)
    assert 0 < solution.error <= 1e-5
    fine = solution_map(SETS[name], x, here, SD(0), tol=1e-9)
    assert max_error(solution.x, fine.x) <= 1e-5
    assert fine.steps > solution.steps or solution.error < 1e-9


@pytest.mark.parametrize("name", ["ring", "pinwheel"])
def test_error_against_another_solver(name):
    """The core's Runge-Kutta of order 4 in (z, rho): nothing in common but the score."""
    x, here = start(name, 759, n=50)
    rho = torch.linspace(here.rho.log(), SD(0).rho.log(), 513, dtype=torch.float64).exp()
    end = pf_ode_trajectory(SETS[name].predict, x, Level.from_rho(rho), "rk4")[-1]
    assert max_error(solution_map(SETS[name], x, here, SD(0)).x, end) < 1e-5


def test_points_between_two_modes_are_solved_too():
    """Errors grow the most on a border, and two coarse solutions may agree there by chance."""
    mixture, here = SETS["ring"], SD(759)
    angle = math.pi / 8 + torch.linspace(-0.02, 0.02, 201, dtype=torch.float64)
    x = 0.8 * torch.stack([angle.cos(), angle.sin()], dim=1)
    solution = solution_map(mixture, x, here, SD(0))
    fine = solution_map(mixture, x, here, SD(0), tol=1e-10)
    assert max_error(solution.x, fine.x) <= 1e-5
    assert (fine.x[0] - fine.x[-1]).norm() > 0.5  # they do end in different modes


def test_method_has_order_eight():
    x, here = start("two_moons", 499, n=20)
    z, u = x / here.alpha, torch.full((20, 1), 0.5, dtype=torch.float64)
    exact = module._solve(SETS["two_moons"], z, u, u - 2, 128)
    errors = [
        (module._solve(SETS["two_moons"], z, u, u - 2, n) - exact).abs().mean()
        for n in (8, 16, 32)
    ]
    slopes = [(a / b).log2().item() for a, b in pairwise(errors)]
    assert slopes == pytest.approx([8, 8], abs=0.6)


@few
@given(
    st.floats(0.01, 3.0), st.floats(0.02, 100.0), st.floats(0.0, 0.98), st.floats(0.2, 2.0),
    st.integers(1, 3),
)  # fmt: skip
def test_one_gaussian_in_closed_form(std, rho, fraction, norm, dim):
    """z - mu is proportional to sqrt(std^2 + rho^2), down to rho = 0, at any norm of a level."""
    mean = f64([[0.3, -0.7, 1.1]])[:, :dim]
    mixture = GaussianMixture(mean, std)
    here, end = level(norm, norm * rho), level(1.0, fraction * rho)
    z = mean + math.hypot(std, rho) * noise(10, dim)
    solution = solution_map(mixture, norm * z, here, end)
    wanted = mean + math.hypot(std, fraction * rho) / math.hypot(std, rho) * (z - mean)
    assert max_error(solution.x, wanted) < 1e-8 * (1 + wanted.abs().max().item())


@pytest.mark.parametrize("name", ["spiral"])
def test_densities_follow_the_change_of_variables(name):
    """log p_t(x) = log p_s(f(x)) + log |det df/dx|, with the Jacobian by central differences."""
    mixture = SETS[name]
    x, here = start(name, 259, n=10)
    end, step = SD(19), 1e-4
    columns = []
    for shift in step * torch.eye(2, dtype=torch.float64):
        ahead = solution_map(mixture, x + shift, here, end, tol=1e-11).x
        behind = solution_map(mixture, x - shift, here, end, tol=1e-11).x
        columns.append((ahead - behind) / (2 * step))
    jacobian = torch.stack(columns, dim=2)
    there = solution_map(mixture, x, here, end, tol=1e-11).x
    wanted = mixture.log_density(there, end) + torch.linalg.det(jacobian).log()
    assert max_error(mixture.log_density(x, here), wanted) < 2e-3


def test_levels_per_sample():
    mixture, t = SETS["pinwheel"], torch.tensor([0, 19, 259, 500, 999])
    end = torch.tensor([0, 0, 200, 0, 19])
    x = mixture.sample_at(SD(t), 5, torch.Generator().manual_seed(0))
    together = solution_map(mixture, x, SD(t), SD(end), tol=1e-10).x
    for i in range(5):
        alone = solution_map(mixture, x[i : i + 1], SD(t[i]), SD(end[i]), tol=1e-10).x
        assert_near(together[i : i + 1], alone, rtol=1e-8, atol=1e-8)
    to_one_end = solution_map(mixture, x[1:], SD(t[1:]), SD(0), tol=1e-10).x
    assert_near(to_one_end[0], together[1], rtol=1e-8, atol=1e-8)


def test_float32_input_is_solved_in_float64():
    mixture, schedule = make("ring"), NoiseSchedule.stable_diffusion()
    x = mixture.sample_at(schedule(999), 100, torch.Generator().manual_seed(0))
    solution = solution_map(mixture, x, schedule(999), schedule(0))
    assert solution.x.dtype == torch.float32
    assert mixture.dtype == torch.float32  # the caller's mixture is left as it is
    here = Level(schedule(999).alpha.double(), schedule(999).sigma.double())
    end = Level(schedule(0).alpha.double(), schedule(0).sigma.double())
    exact = solution_map(mixture.double(), x.double(), here, end)
    assert max_error(solution.x, exact.x) < 2e-7  # rounding of numbers below 2


def test_it_gives_up_and_says_so():
    x, here = start("ring", 999)
    with pytest.raises(
        RuntimeError, match=r"tol = 1e-11 after 40 steps: \d+ of 60 samples .*max_steps = 64"
    ):
        solution_map(SETS["ring"], x, here, SD(0), tol=1e-11, max_steps=64)
    with pytest.raises(RuntimeError, match=r"60 of 60 samples still change by up to inf"):
        solution_map(SETS["ring"], x, here, SD(0), max_steps=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tol": 0.0}, "tol is 0.0; allowed: a finite number, 1e-12 or more"),
        ({"max_steps": 1}, "max_steps is 1; allowed: an integer >= 2"),
        ({"level_end": SD(500)}, r"level_end has rho = 1.\d+ and level has 1.\d+; allowed: an en"),
        ({"x": torch.full((3, 2), math.nan, dtype=torch.float64)}, "x holds 6 NaN"),
    ],
)
def test_wrong_input(change, message):
    given = {"x": torch.zeros(3, 2, dtype=torch.float64), "level": SD(499), "level_end": SD(0)}
    with pytest.raises(ValueError, match=message):
        solution_map(SETS["ring"], **{**given, **change})

"""The exact solution map: closed form, step halving, another solver, change of variables."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slam_edu import Level, NoiseSchedule, pf_ode_trajectory
from slam_edu.metrics import sliced_wasserstein
from slam_edu.toy import DATASETS, GaussianMixture, Solution, make, picture, solution_map
from slam_edu.toy import solution as module
from tests.helpers import assert_near, f64, level, max_error, noise, on_devices, properties

SD = NoiseSchedule.stable_diffusion(torch.float64)
TIMES = (19, 99, 259, 499, 759, 999)
SETS = {name: make(name, torch.float64) for name in DATASETS}
SETS["cat"] = picture(components=200, dtype=torch.float64)
few = settings(properties, max_examples=25)
each_set = pytest.mark.parametrize("name", SETS)


def start(name, t, n=60, seed=0):
    here = SD(t)
    return SETS[name].sample_at(here, n, torch.Generator().manual_seed(seed)), here


# -------------------------------------------------------------------- the stated error


@each_set
@pytest.mark.parametrize("t", TIMES)
def test_error_is_within_the_tolerance(name, t):
    """Against the same method at a tolerance 10,000 times smaller."""
    x, here = start(name, t)
    solution = solution_map(SETS[name], x, here, SD(0))
    assert isinstance(solution, Solution)
    assert 0 < solution.error <= 1e-5
    fine = solution_map(SETS[name], x, here, SD(0), tol=1e-9)
    assert max_error(solution.x, fine.x) <= 1e-5
    assert fine.steps > solution.steps or solution.error < 1e-9


@pytest.mark.parametrize("name", ["ring", "spiral", "pinwheel"])
def test_error_against_another_solver(name):
    """The core's Runge-Kutta of order 4 in (z, rho), halved: nothing in common but the score."""
    x, here = start(name, 759, n=50)
    ends = []
    for steps in (256, 512):
        rho = torch.linspace(here.rho.log(), SD(0).rho.log(), steps + 1, dtype=torch.float64).exp()
        ends.append(pf_ode_trajectory(SETS[name].predict, x, Level.from_rho(rho), "rk4")[-1])
    assert max_error(*ends) < 1e-5
    assert max_error(solution_map(SETS[name], x, here, SD(0)).x, ends[1]) < 1e-5


def test_points_between_two_modes_are_solved_too():
    """Errors grow the most on a border, and two coarse solutions may agree there by chance."""
    mixture, here = SETS["ring"], SD(759)
    angle = math.pi / 8 + torch.linspace(-0.02, 0.02, 201, dtype=torch.float64)
    x = 0.8 * torch.stack([angle.cos(), angle.sin()], dim=1)
    solution = solution_map(mixture, x, here, SD(0))
    fine = solution_map(mixture, x, here, SD(0), tol=1e-10)
    assert max_error(solution.x, fine.x) <= 1e-5
    assert (fine.x[0] - fine.x[-1]).norm() > 0.5  # they do end in different modes


def test_a_smaller_tolerance_is_kept_as_well():
    x, here = start("two_moons", 999)
    exact = solution_map(SETS["two_moons"], x, here, SD(0), tol=1e-11)
    for tol in (1e-2, 1e-4, 1e-6, 1e-8):
        solution = solution_map(SETS["two_moons"], x, here, SD(0), tol=tol)
        assert solution.error <= tol
        assert max_error(solution.x, exact.x) <= tol


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


# -------------------------------------------------------------------- known solutions


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


def test_one_point_is_reached_along_a_line():
    """Width 0: z - mu is proportional to rho, and the map ends at rho > 0."""
    mixture = GaussianMixture(f64([[0.5, -0.5]]), 0.0)
    here, end = SD(999), SD(0)
    x = noise(20, 2)
    wanted = mixture.means + end.rho / here.rho * (x / here.alpha - mixture.means)
    assert_near(solution_map(mixture, x, here, end).x, end.alpha * wanted, rtol=1e-8, atol=1e-10)


def test_symmetric_start_stays_on_the_border():
    mixture = GaussianMixture(f64([[-1.0, 0.0], [1.0, 0.0]]), 0.1)
    x = f64([[0.0, 0.4], [0.0, -2.0]])
    assert solution_map(mixture, x, SD(999), SD(0)).x[:, 0].abs().max() < 1e-12


# -------------------------------------------------------------------- properties of a flow


@each_set
def test_semigroup(name):
    """From t to s and on to the end is the way from t to the end."""
    x, here = start(name, 999)
    whole = solution_map(SETS[name], x, here, SD(0), tol=1e-9)
    half = solution_map(SETS[name], x, here, SD(499), tol=1e-11)
    rest = solution_map(SETS[name], half.x, SD(499), SD(0), tol=1e-9)
    assert max_error(rest.x, whole.x) < 1e-6


@each_set
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


@pytest.mark.parametrize("name", ["ring", "checkerboard", "cat"])
def test_samples_become_data(name):
    mixture, n = SETS[name], 800
    x, here = start(name, 999, n=n)
    end = SD(0)
    drawn = solution_map(mixture, x, here, end).x
    data = [mixture.sample_at(end, n, torch.Generator().manual_seed(i)) for i in range(1, 6)]
    floor = max(sliced_wasserstein(data[0], other) for other in data[1:])
    assert sliced_wasserstein(drawn, data[0]) < 1.5 * floor
    # The likelihood is the sharper measure: points between the modes cost much.
    own = mixture.log_density(data[0], end)
    gap = mixture.log_density(drawn, end).mean() - own.mean()
    assert abs(gap) < 5 * own.std() / math.sqrt(n / 2)


@few
@given(st.integers(0, 998), st.integers(0, 998), st.integers(0, 10_000))
def test_no_way_to_go_changes_nothing(t, end, seed):
    x = SETS["ring"].sample_at(SD(t), 4, torch.Generator().manual_seed(seed))
    assert_near(solution_map(SETS["ring"], x, SD(t), SD(t)).x, x, rtol=1e-12)
    # The same place in other coordinates: z stays.
    rho = SD(t).rho
    there = solution_map(SETS["ring"], x, SD(t), Level(torch.ones_like(rho), rho)).x
    assert_near(there, x / SD(t).alpha, rtol=1e-12)


def test_coordinates_do_not_matter():
    x, here = start("spiral", 759)
    exploding = SD.variance_exploding()
    one = solution_map(SETS["spiral"], x, here, SD(0), tol=1e-9).x
    other = solution_map(SETS["spiral"], x / here.alpha, exploding(759), exploding(0), tol=1e-9).x
    assert_near(one, SD(0).alpha * other, rtol=1e-8, atol=1e-8)


# -------------------------------------------------------------------- levels, precision, devices


@pytest.mark.parametrize("name", ["ring", "pinwheel"])
def test_levels_per_sample(name):
    mixture, t = SETS[name], torch.tensor([0, 19, 259, 500, 999])
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


@on_devices
def test_on_every_device(device):
    mixture, schedule = make("ring").to(device), NoiseSchedule.stable_diffusion().to(device)
    x = mixture.sample_at(schedule(499), 30, torch.Generator().manual_seed(0))
    solution = solution_map(mixture, x, schedule(499), schedule(0))
    assert solution.x.device.type == device
    cpu = NoiseSchedule.stable_diffusion()
    assert (
        max_error(solution.x.cpu(), solution_map(make("ring"), x.cpu(), cpu(499), cpu(0)).x) < 1e-4
    )


# -------------------------------------------------------------------- wrong input


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
        ({"tol": math.nan}, "tol is nan"),
        ({"tol": math.inf}, "tol is inf"),
        ({"max_steps": 1}, "max_steps is 1; allowed: an integer >= 2"),
        (
            {"level_end": SD(500)},
            r"level_end has rho = 1.\d+ and level has 1.\d+; allowed: an end no noisier",
        ),
        ({"level_end": SD(torch.tensor([0, 0, 500]))}, "an end no noisier"),
        ({"level_end": SD(torch.arange(4))}, "alpha has 4 values"),
        ({"level_end": NoiseSchedule.stable_diffusion()(0)}, "alpha has dtype torch.float32"),
        ({"level": SD(torch.tensor([[499]]))}, "alpha has shape"),
        ({"x": torch.zeros(3, 2)}, "x is torch.float32"),
        (
            {"x": torch.zeros(3, 3, dtype=torch.float64)},
            r"x has shape \(3, 3\); allowed: \(B, 2\)",
        ),
        ({"x": torch.full((3, 2), math.nan, dtype=torch.float64)}, "x holds 6 NaN"),
    ],
)
def test_wrong_input(change, message):
    given = {"x": torch.zeros(3, 2, dtype=torch.float64), "level": SD(499), "level_end": SD(0)}
    with pytest.raises(ValueError, match=message):
        solution_map(SETS["ring"], **{**given, **change})


def test_points_without_width_have_no_end_without_noise():
    mixture = GaussianMixture(noise(3, 2), 0.0)
    with pytest.raises(ValueError, match=r"sigma is 0"):
        solution_map(mixture, noise(3, 2), SD(499), level(1.0, 0.0))

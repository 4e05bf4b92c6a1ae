"""Solvers of the PF-ODE: closed forms, orders, and the coordinates that they work in."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slam_edu import (
    Level,
    NoiseSchedule,
    Prediction,
    ddim_step,
    dpmpp_2m_step,
    heun_step,
    pf_ode_trajectory,
    rk4_step,
    solve_pf_ode,
)
from tests.helpers import (
    assert_near,
    column,
    f64,
    level,
    noise,
    properties,
    schedules,
)

ORDERS = {"ddim": 1, "heun": 2, "dpmpp_2m": 2, "rk4": 4}
STD = 0.5


def gaussian(x, here):
    """The exact denoiser of N(0, STD^2 I)."""
    variance = (here.alpha * STD) ** 2 + here.sigma**2
    x0 = column(here.alpha * STD**2 / variance, x) * x
    return Prediction(x0=x0, eps=column(here.sigma / variance, x) * x)


def gaussian_flow(x, here, there):
    """Its PF-ODE in closed form: z / sqrt(STD^2 + rho^2) is constant."""
    growth = torch.sqrt((STD**2 + there.rho**2) / (STD**2 + here.rho**2))
    return there.alpha / here.alpha * growth * x


@properties
@given(schedules(), st.floats(0.3, 1.0), st.floats(0.0, 0.9), st.integers(0, 5))
def test_ddim_is_the_euler_step_in_z_and_rho(schedule, end, share, seed):
    here = schedule(f64(end * (len(schedule) - 1)))
    there = schedule(f64(end * share * (len(schedule) - 1)))
    x, eps = noise(3, 2, seed=seed), noise(3, 2, seed=seed + 10)
    prediction = Prediction(x0=(x - here.sigma * eps) / here.alpha, eps=eps)
    z = x / here.alpha + (there.rho - here.rho) * eps
    assert_near(ddim_step(prediction, there), there.alpha * z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", [heun_step, rk4_step])
def test_at_sigma_zero_the_step_is_eulers(step):
    here = level(0.8, 0.6)
    calls = []

    def predictor(x, at):
        calls.append(at.sigma.item())
        return gaussian(x, at)

    x, prediction = step(predictor, noise(3, 2), here, level(1.0, 0.0))
    assert torch.equal(x, prediction.x0)
    assert calls == [0.6]


def test_dpmpp_2m_begins_and_ends_with_ddim():
    x, here = noise(3, 2), level(0.6, 0.8)
    there, prediction = level(0.8, 0.6), gaussian(x, here)
    first = dpmpp_2m_step(prediction, x, here, there)
    assert_near(first, ddim_step(prediction, there), rtol=1e-12, atol=1e-14)
    before = (Prediction(noise(3, 2, seed=3), noise(3, 2, seed=4)), level(0.1, 0.99))
    last = dpmpp_2m_step(prediction, x, here, level(1.0, 0.0), before)
    assert_near(last, prediction.x0, rtol=1e-12)


@pytest.mark.parametrize("method", ORDERS)
def test_order_by_halving_the_step(method):
    """The error against the closed form falls by 2^order with every halving."""
    x = noise(16, 2)
    errors = []
    for steps in (32, 64, 128):
        rho = torch.linspace(math.log(8), math.log(0.1), steps + 1, dtype=torch.float64).exp()
        levels = Level.from_rho(rho)
        end = pf_ode_trajectory(gaussian, x, levels, method)[-1]
        exact = gaussian_flow(x, levels[0], levels[-1])
        errors.append((end - exact).abs().max().item())
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(ORDERS[method], abs=0.2)


@pytest.mark.parametrize("method", ORDERS)
def test_rescheduling_invariance(method):
    """The same path in other coordinates: z and rho do not see alpha."""
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    t = torch.tensor([999, 800, 500, 333, 100, 20, 0])
    vp, ve = schedule(t), schedule.variance_exploding()(t)
    x = noise(5, 3, 2)
    one = pf_ode_trajectory(gaussian, x, vp, method)
    two = pf_ode_trajectory(gaussian, x / vp.alpha[0], ve, method)
    assert_near(one / vp.alpha[:, None, None, None], two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ORDERS)
def test_states(method):
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    levels = schedule(torch.tensor([999, 500, 100]))
    levels = Level.cat([levels, Level.clean(levels.alpha[0])])
    x = noise(4, 2)
    before = x.clone()
    states = list(solve_pf_ode(gaussian, x, levels, method))
    assert [state.index for state in states] == [0, 1, 2, 3]
    assert [state.level.alpha.item() for state in states] == levels.alpha.tolist()
    assert states[0].x is x
    assert states[0].prediction is None
    for state, earlier in zip(states[1:], states, strict=False):
        assert_near(state.prediction.x0, gaussian(earlier.x, earlier.level).x0, rtol=1e-12)
    assert_near(states[-1].x, states[-1].prediction.x0, rtol=1e-12)  # the clean level
    trajectory = pf_ode_trajectory(gaussian, x, levels, *([] if method == "ddim" else [method]))
    assert trajectory.shape == (4, 4, 2)
    assert torch.equal(trajectory[2], states[2].x)
    assert torch.equal(x, before)


def test_solutions_are_lazy():
    def predictor(x, here):
        raise AssertionError("called before it was needed")

    next(solve_pf_ode(predictor, noise(2, 2), Level.from_rho(f64([7.0, 0.1]))))


def test_levels_per_sample():
    """The step functions take one level per sample too."""
    here, there = Level(f64([0.6, 0.3]), f64([0.8, 0.9])), Level(f64([0.9, 0.6]), f64([0.3, 0.7]))
    x = noise(2, 3)
    earlier = Level(f64([0.2, 0.1]), f64([1.0, 1.0]))
    previous = (gaussian(x, earlier), earlier)
    both = [
        heun_step(gaussian, x, here, there)[0],
        rk4_step(gaussian, x, here, there)[0],
        dpmpp_2m_step(gaussian(x, here), x, here, there, previous),
    ]
    for i in range(2):
        xi, pi = x[i : i + 1], Prediction(previous[0].x0[i : i + 1], previous[0].eps[i : i + 1])
        alone = [
            heun_step(gaussian, xi, here[i], there[i])[0],
            rk4_step(gaussian, xi, here[i], there[i])[0],
            dpmpp_2m_step(gaussian(xi, here[i]), xi, here[i], there[i], (pi, previous[1][i])),
        ]
        for one, other in zip(both, alone, strict=True):
            assert_near(one[i : i + 1], other, rtol=1e-12, atol=1e-14)


# -------------------------------------------------------------------- wrong input

LEVELS = Level.from_rho(f64([8.0, 1.0, 0.1]))


def solve(x, levels=LEVELS, method="ddim"):
    return solve_pf_ode(gaussian, x, levels, method)


WRONG = [
    (lambda x: solve(x, method="euler"), r"method is 'euler'; allowed: 'ddim', 'heun', "),
    (lambda x: solve(x[0]), r"x has shape \(2,\); allowed.*rank 2"),
    (lambda x: solve(x * math.nan), r"x holds 4 NaN or Inf of 4 values; allowed"),
    (lambda x: solve(x.float()), r"levels has dtype torch.float64 but .* torch.float32"),
    (lambda x: solve(x.to("meta")), r"levels is on cpu but the samples are on meta"),
    (lambda x: solve(x, LEVELS[0]), r"levels have shape \(\); allowed"),
    (lambda x: solve(x, LEVELS[:1]), r"shape \(1,\); allowed.*n >= 2"),
    (lambda x: solve(x, LEVELS[[0, 2, 1]]), r"from 0\.1 to 1 at levels 1 and 2; .*decreasing"),
    (lambda x: solve(x, LEVELS[[0, 0]]), r"rho goes from 8 to 8 at levels 0 and 1; allowed"),
    (lambda x: ddim_step(Prediction(x, x), level(1.0, 0.5, torch.float32)), r"level_s has dtype"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(noise(2, 2))

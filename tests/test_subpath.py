"""The chord between a sub-path's ends, and the level of a point on it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slam_edu import Level, NoiseSchedule, Prediction, chord, ddim_step, interpolate, sub_level
from tests.helpers import assert_near, column, f64, gammas, level, noise, properties, schedules


@pytest.fixture(scope="module")
def sd() -> NoiseSchedule:
    return NoiseSchedule.stable_diffusion(torch.float64)


@st.composite
def sub_paths(draw):
    """Two levels of one schedule, the second cleaner."""
    schedule = draw(schedules())
    t = draw(st.integers(1, len(schedule) - 1))
    s = draw(st.integers(0, t - 1))
    return schedule(t), schedule(s)


@properties
@given(sub_paths(), gammas, st.integers(0, 5))
def test_the_interpolation_is_the_chord_in_z(ends, gamma, seed):
    """z and rho are linear in gamma."""
    level_t, level_s = ends
    x_t, x_s = noise(3, 2, seed=seed), noise(3, 2, seed=seed + 10)
    x = interpolate(x_t, x_s, level_t, level_s, f64(gamma))
    z = gamma * x_t / level_t.alpha + (1 - gamma) * x_s / level_s.alpha
    rho = gamma * level_t.rho + (1 - gamma) * level_s.rho
    assert_near(x / level_t.alpha, z, rtol=1e-9, atol=1e-9)
    linear = sub_level(level_t, level_s, f64(gamma), "linear")
    assert_near(linear.rho, rho, rtol=1e-9)
    both_z, both_rho = chord(x_t, x_s, level_t, level_s, f64([gamma, 1.0]))
    assert_near(both_z, torch.stack([z, x_t / level_t.alpha]), rtol=1e-9, atol=1e-9)
    assert_near(both_rho, torch.stack([rho, level_t.rho]), rtol=1e-9)


@properties
@given(sub_paths(), gammas, st.integers(0, 5))
def test_a_ddim_pair_has_one_x0_and_one_noise_along_the_chord(ends, gamma, seed):
    """x_gamma = alpha_t x0 + sigma_gamma eps exactly, under the linear coupling."""
    level_t, level_s = ends
    x_t, eps = noise(3, 2, seed=seed), noise(3, 2, seed=seed + 10)
    x0 = (x_t - level_t.sigma * eps) / level_t.alpha
    x_s = ddim_step(Prediction(x0, eps), level_s)
    x = interpolate(x_t, x_s, level_t, level_s, f64(gamma))
    here = sub_level(level_t, level_s, f64(gamma), "linear")
    assert_near(x, here.alpha * x0 + here.sigma * eps, rtol=1e-9, atol=1e-9)


@properties
@given(sub_paths(), gammas)
def test_the_couplings_differ_by_what_the_method_says(ends, gamma):
    level_t, level_s = ends
    markov = sub_level(level_t, level_s, f64(gamma), "markov")
    linear = sub_level(level_t, level_s, f64(gamma), "linear")
    a_sigma_s = level_t.alpha / level_s.alpha * level_s.sigma
    difference = 2 * gamma * (1 - gamma) * a_sigma_s * (level_t.sigma - a_sigma_s)
    assert_near(linear.sigma**2 - markov.sigma**2, difference, rtol=1e-6, atol=1e-13)
    assert markov.sigma <= linear.sigma * (1 + 1e-14)
    for here in (markov, linear):
        assert torch.equal(here.alpha, level_t.alpha)
        low, high = level_s.rho * (1 - 1e-12), level_t.rho * (1 + 1e-12)
        assert low <= here.rho <= high


def test_markov_is_the_variance_of_drawing_forward(sd):
    """x_t drawn from x_s with independent noise: the chord point's noise, counted in a sample."""
    level_t, level_s, gamma, n = sd(499), sd(299), 0.6, 400_000
    x0 = 1.7
    x_s = level_s.alpha * x0 + level_s.sigma * noise(n, 1)
    a = level_t.alpha / level_s.alpha
    x_t = a * x_s + torch.sqrt(level_t.sigma**2 - (a * level_s.sigma) ** 2) * noise(n, 1, seed=1)
    x = interpolate(x_t, x_s, level_t, level_s, f64(gamma))
    here = sub_level(level_t, level_s, f64(gamma), "markov")
    assert x.mean().item() == pytest.approx((here.alpha * x0).item(), abs=5 * 0.9 / math.sqrt(n))
    assert x.std().item() == pytest.approx(here.sigma.item(), rel=5 / math.sqrt(2 * n))
    linear = sub_level(level_t, level_s, f64(gamma), "linear")
    assert x.std().item() != pytest.approx(linear.sigma.item(), rel=20 / math.sqrt(2 * n))


@pytest.mark.parametrize(
    ("t", "s", "markov", "linear"),
    [(499, 479, 0.809, 0.823), (999, 979, 0.915, 0.941), (999, 749, 0.554, 0.638)],
)
def test_stable_diffusions_levels_at_half_way(sd, t, s, markov, linear):
    ends, half = (sd(t), sd(s)), f64(0.5)
    assert sub_level(*ends, half, "markov").sigma.item() == pytest.approx(markov, abs=5e-4)
    assert sub_level(*ends, half, "linear").sigma.item() == pytest.approx(linear, abs=5e-4)


def test_one_value_per_sample(sd):
    g = f64([0.1, 0, 1, 0.7])
    level_t = sd(torch.tensor([19, 499, 999, 999]))
    level_s = sd(torch.tensor([0, 479, 979, 0]))
    x_t, x_s = noise(4, 2, 3, 1), noise(4, 2, 3, 1, seed=1)
    x = interpolate(x_t, x_s, level_t, level_s, g)
    a = column(level_t.alpha / level_s.alpha, x)
    assert_near(x, column(g, x) * x_t + (1 - column(g, x)) * a * x_s, rtol=1e-14)
    for coupling in ("markov", "linear"):
        here = sub_level(level_t, level_s, g, coupling)
        assert here.alpha.shape == here.sigma.shape == (4,)
        for i in range(4):
            alone = sub_level(level_t[i], level_s[i], g[i], coupling)
            assert_near(here.sigma[i], alone.sigma, rtol=1e-14)
    over = sub_level(level_t[1], level_s[1], g)  # many positions on one sub-path
    assert over.alpha.shape == over.sigma.shape == (4,)


# -------------------------------------------------------------------- wrong input

T_, S_ = level(0.6, 0.8), level(0.8, 0.6)
X = torch.zeros(2, 3, dtype=torch.float64)
HALF = f64(0.5)
ONE_NOISY = Level(f64([0.8, 0.5]), f64([0.6, 0.8]))
MANY = Level(f64([0.6, 0.6]), f64([0.8, 0.8]))


WRONG = [
    (lambda: sub_level(T_, S_, HALF, "vp"), r"coupling is 'vp'; allowed: 'markov', 'linear'"),
    (lambda: sub_level(T_, S_, f64(1.25)), r"gamma is 1\.25; allowed: 0 <= gamma <= 1$"),
    (lambda: sub_level(T_, S_, f64([0.5, -0.1])), r"gamma is -0\.1; allowed: 0 <= gamma"),
    (lambda: sub_level(T_, S_, HALF.float()), r"gamma is torch.float32 on cpu; .*float64"),
    (lambda: sub_level(S_, T_, HALF), r"rho_s = 1\.33333 .* rho_t = 0\.75; allowed: s < t"),
    (lambda: sub_level(MANY, ONE_NOISY, HALF), r"rho_s = 1\.6 .*rho_t = 1\.33"),
    (lambda: sub_level(T_, MANY, HALF), r"level_s has shape \(2,\); allowed.*level_t, \(\)"),
    (lambda: interpolate(X, X, S_, T_, HALF), r"allowed: s < t, that is rho_s < rho_t"),
    (lambda: interpolate(X, X, T_, S_, f64(1.25)), r"gamma is 1\.25; .*gamma <= 1$"),
    (lambda: interpolate(X, X, T_, S_, f64([0.5] * 3)), r"gamma has 3 values.*\(2, 3\)"),
    (lambda: interpolate(X, X, T_, S_, HALF.to("meta")), r"gamma is on meta .*on cpu"),
    (lambda: interpolate(X.float(), X.float(), T_, S_, HALF), r"level_t has dtype .*float64"),
    (lambda: interpolate(X[0], X[0], T_, S_, HALF), r"x_t has shape \(3,\); .*rank 2"),
    (lambda: interpolate(X, X[:1], T_, S_, HALF), r"x_s has shape \(1, 3\); .*\(2, 3\)"),
    (lambda: interpolate(X * math.nan, X, T_, S_, HALF), r"x_t holds 6 NaN or Inf of 6"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Chords against what is known in closed form, and the law of what is taught on them."""

import pytest
import torch

from slam_edu import NoiseSchedule, ddim_step
from slam_edu.toy import GaussianMixture, chords, solution_map, two_moons
from tests.helpers import assert_near, f64, noise

SCHEDULE = NoiseSchedule.stable_diffusion(torch.float64)
GAMMAS = f64([0.0, 0.25, 0.5, 0.75, 1.0])
STD = 0.7
ONE = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), STD)
"""One Gaussian: its PF-ODE is z(rho) = z_t sqrt((s^2 + rho^2)/(s^2 + rho_t^2))."""

LEVEL_T, LEVEL_S = SCHEDULE(400), SCHEDULE(300)


def known(z_t, rho_t, rho):
    return z_t * ((STD**2 + rho**2) / (STD**2 + rho_t**2)).sqrt()


def x_t_of(t, count=20):
    level = SCHEDULE(t)
    mixture = two_moons(dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    return mixture, level, mixture.sample_at(level, count, generator)


def test_bend_of_one_gaussian():
    """z'' = z s^2 / (s^2 + rho^2)^2."""
    z, rho = noise(9, 2), LEVEL_T.rho
    expected = (rho - LEVEL_S.rho) ** 2 / 2 * z * STD**2 / (STD**2 + rho**2) ** 2
    assert_near(
        chords.bend(ONE, LEVEL_T.alpha * z, LEVEL_T, LEVEL_S), expected, rtol=1e-6, atol=1e-12
    )


def test_deviations_of_one_gaussian():
    z, rho_t, rho_s = noise(9, 2), LEVEL_T.rho, LEVEL_S.rho
    rho = (GAMMAS * rho_t + (1 - GAMMAS) * rho_s)[:, None, None]
    truth = known(z, rho_t, rho)
    slope = z * rho_t / (STD**2 + rho_t**2)
    chord = {
        "teacher": z + (rho - rho_t) * slope,
        "exact": truth[0] + GAMMAS[:, None, None] * (z - truth[0]),
    }
    assert set(chord) == set(chords.CHORDS)
    for kind, expected in chord.items():
        found = chords.deviations(ONE, LEVEL_T.alpha * z, LEVEL_T, LEVEL_S, GAMMAS, kind)
        assert found.shape == (5, 9, 2)
        assert_near(found, expected - truth, atol=1e-8)
        assert found.abs().max() > 1e-3


@pytest.mark.parametrize("coupling", ["linear", "markov"])
def test_taught_errors_of_one_gaussian(coupling):
    z, t, s = noise(9, 2), LEVEL_T, LEVEL_S
    a = t.alpha / s.alpha
    z_s = z + (s.rho - t.rho) * z * t.rho / (STD**2 + t.rho**2)
    sigma = {
        "linear": GAMMAS * t.sigma + (1 - GAMMAS) * a * s.sigma,
        "markov": ((a * s.sigma) ** 2 + GAMMAS**2 * (1 - a**2)).sqrt(),
    }[coupling]
    z_g = GAMMAS[:, None, None] * z + (1 - GAMMAS)[:, None, None] * z_s
    rho_g = (sigma / t.alpha)[:, None, None]
    for end in (None, SCHEDULE(0)):
        rho = s.rho if end is None else end.rho
        expected = known(z_s, s.rho, rho) - known(z_g, rho_g, rho)
        found = chords.taught_errors(ONE, t.alpha * z, t, s, GAMMAS, coupling, end=end)
        assert_near(found, expected, atol=1e-8)


def test_deviations_and_taught_errors_follow_taylors_formula():
    t = 599
    mixture, level_t, x_t = x_t_of(t)
    law = {"teacher": -((1 - GAMMAS) ** 2), "exact": GAMMAS * (1 - GAMMAS)}
    for k, tolerance in ((8, 0.04), (4, 0.02)):  # halving the hop halves what is left
        level_s = SCHEDULE(t - k)
        b = chords.bend(mixture, x_t, level_t, level_s)
        size = b.norm(dim=1)
        for kind, factor in law.items():
            found = chords.deviations(mixture, x_t, level_t, level_s, GAMMAS, kind)
            rest = (found - factor[:, None, None] * b).norm(dim=2) / size
            assert rest.median(dim=1).values.max() < tolerance
        gammas = f64([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
        e = chords.taught_errors(mixture, x_t, level_t, level_s, gammas)
        rest = (e - (gammas * (gammas - 2))[:, None, None] * b).norm(dim=2) / size
        assert rest.median(dim=1).values.max() < 15 * tolerance
        assert rest[:3].median(dim=1).values.max() < 1.5 * tolerance


def test_at_gamma_one_it_is_the_local_error_of_ddim():
    mixture, level_t, x_t = x_t_of(199)
    level_s = SCHEDULE(179)
    x_s = ddim_step(mixture.predict(x_t, level_t), level_s)
    truth = solution_map(mixture, x_t, level_t, level_s, tol=1e-10).x
    e = chords.taught_errors(mixture, x_t, level_t, level_s, f64([1.0]))[0]
    assert_near(e, (x_s - truth) / level_s.alpha, atol=1e-8)
    off = chords.deviations(mixture, x_t, level_t, level_s, f64([0.0]))[0]
    assert_near(off, e, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: chords.deviations(ONE, x, LEVEL_T, LEVEL_S, GAMMAS, "secant"),
         "chord is 'secant'; allowed: 'teacher', 'exact'"),
        (lambda x: chords.taught_errors(ONE, x, LEVEL_T, LEVEL_S, -GAMMAS), "gamma is -0.25"),
        (lambda x: chords.curve_below(ONE, x, f64([0.3, 1.0])), "no noisier"),
    ],
)  # fmt: skip
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(noise(4, 2))

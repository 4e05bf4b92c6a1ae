"""Chords against what is known in closed form, and the law of what is taught on them."""

import pytest
import torch

from slam_edu import Level, NoiseSchedule, ddim_step
from slam_edu.toy import GaussianMixture, chords, solution_map, two_moons
from tests.helpers import assert_near, f64, noise

SCHEDULE = NoiseSchedule.stable_diffusion(torch.float64)
GAMMAS = f64([0.0, 0.25, 0.5, 0.75, 1.0])
STD = 0.7
ONE = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), STD)
"""One Gaussian: its PF-ODE is z(rho) = z_t sqrt((s^2 + rho^2)/(s^2 + rho_t^2))."""

LEVEL_T, LEVEL_S = SCHEDULE(400), SCHEDULE(300)
LEVEL_M = Level.from_rho((LEVEL_T.rho + LEVEL_S.rho) / 2)


def known(z_t, rho_t, rho):
    return z_t * ((STD**2 + rho**2) / (STD**2 + rho_t**2)).sqrt()


def tangent(z, rho, rho_there):
    """From z at rho along the slope there, z rho / (s^2 + rho^2)."""
    return z + (rho_there - rho) * z * rho / (STD**2 + rho**2)


def x_t_of(t, count=20):
    level = SCHEDULE(t)
    mixture = two_moons(dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    return mixture, level, mixture.sample_at(level, count, generator)


@pytest.mark.parametrize("slope", ["end", "middle"])
def test_bend_of_one_gaussian(slope):
    """z'' = z s^2 / (s^2 + rho^2)^2."""
    z, level = noise(9, 2), LEVEL_T if slope == "end" else LEVEL_M
    h, rho = LEVEL_T.rho - LEVEL_S.rho, level.rho
    found = chords.bend(ONE, level.alpha * z, LEVEL_T, LEVEL_S, slope)
    assert_near(found, h**2 / 2 * z * STD**2 / (STD**2 + rho**2) ** 2, rtol=1e-6, atol=1e-12)


def test_deviations_of_one_gaussian():
    z, rho_t, rho_s, rho_m = noise(9, 2), LEVEL_T.rho, LEVEL_S.rho, LEVEL_M.rho
    rho = (GAMMAS * rho_t + (1 - GAMMAS) * rho_s)[:, None, None]
    truth = known(z, rho_t, rho)
    chord = {
        "teacher": tangent(z, rho_t, rho),
        "middle": tangent(known(z, rho_t, rho_m), rho_m, rho),
        "exact": truth[0] + GAMMAS[:, None, None] * (z - truth[0]),
    }
    assert set(chord) == set(chords.CHORDS)
    for kind, expected in chord.items():
        found = chords.deviations(ONE, LEVEL_T.alpha * z, LEVEL_T, LEVEL_S, GAMMAS, kind)
        assert_near(found, expected - truth, atol=1e-8)
        assert found.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("coupling", "slope"), [("linear", "end"), ("markov", "end"), ("linear", "middle")]
)
def test_taught_errors_of_one_gaussian(coupling, slope):
    z, t, s = noise(9, 2), LEVEL_T, LEVEL_S
    at = t if slope == "end" else LEVEL_M
    a = t.alpha / s.alpha
    z_t, z_s = tangent(z, at.rho, t.rho), tangent(z, at.rho, s.rho)
    sigma = {
        "linear": GAMMAS * t.sigma + (1 - GAMMAS) * a * s.sigma,
        "markov": ((a * s.sigma) ** 2 + GAMMAS**2 * (1 - a**2)).sqrt(),
    }[coupling]
    z_g = GAMMAS[:, None, None] * z_t + (1 - GAMMAS)[:, None, None] * z_s
    rho_g = (sigma / t.alpha)[:, None, None]
    for end in (None, SCHEDULE(0)):
        rho = s.rho if end is None else end.rho
        expected = known(z_s, s.rho, rho) - known(z_g, rho_g, rho)
        found = chords.taught_errors(
            ONE, at.alpha * z, t, s, GAMMAS, coupling, slope=slope, end=end
        )
        assert_near(found, expected, atol=1e-8)


def test_deviations_follow_taylors_formula():
    mixture, level_t, x_t = x_t_of(599)
    law = {
        "teacher": -((1 - GAMMAS) ** 2), "middle": -((0.5 - GAMMAS) ** 2),
        "exact": GAMMAS * (1 - GAMMAS),
    }  # fmt: skip
    for k, tolerance in ((8, 0.04), (4, 0.02)):  # halving the hop halves what is left
        level_s = SCHEDULE(599 - k)
        b = chords.bend(mixture, x_t, level_t, level_s)
        for kind, factor in law.items():
            found = chords.deviations(mixture, x_t, level_t, level_s, GAMMAS, kind)
            rest = (found - factor[:, None, None] * b).norm(dim=2) / b.norm(dim=1)
            assert rest.median(dim=1).values.max() < tolerance


@pytest.mark.parametrize("t", [599, 199])
@pytest.mark.parametrize(
    ("slope", "law"),
    [
        ("end", {0: 0, 0.5: -0.75, 1: -1}),  # -gamma (2 - gamma)
        ("middle", {0: 0, 0.5: -0.25, 0.75: -0.1875, 1: 0}),  # -gamma (1 - gamma)
    ],
)
def test_what_is_taught_by_halving_the_hop(t, slope, law):
    """The tangent's point stays; the error tends to its law as h does to 0, with its order."""
    mixture, level, x = x_t_of(t)
    gammas, factor = f64(list(law)), f64(list(law.values()))
    errors, rests = [], []
    for h in level.rho * f64([0.01, 0.005]):
        rho_t = level.rho + (0 if slope == "end" else h / 2)
        ends = Level.from_rho(rho_t), Level.from_rho(rho_t - h)
        e = chords.taught_errors(mixture, x, *ends, gammas, slope=slope, tol=1e-12)
        b = chords.bend(mixture, x, *ends, slope)
        errors.append(e.norm(dim=(1, 2)))
        rests.append((e - factor[:, None, None] * b).norm(dim=(1, 2)) / b.norm())
    order = (errors[0] / errors[1]).log2()
    for i, gamma in enumerate(law):
        if gamma:
            assert rests[1][i] < 0.01
            assert 1.9 < rests[0][i] / rests[1][i] < 2.1  # what is left is a higher order's
            assert order[i].item() == pytest.approx(2 if law[gamma] else 3, abs=0.05)


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
         "chord is 'secant'; allowed: 'teacher', 'middle', 'exact'"),
        (lambda x: chords.taught_errors(ONE, x, LEVEL_T, LEVEL_S, GAMMAS, slope="start"),
         "slope is 'start'; allowed: 'end', 'middle'"),
        (lambda x: chords.taught_errors(ONE, x, LEVEL_T, LEVEL_S, -GAMMAS), "gamma is -0.25"),
        (lambda x: chords.curve_below(ONE, x, f64([0.3, 1.0])), "no noisier"),
    ],
)  # fmt: skip
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(noise(4, 2))

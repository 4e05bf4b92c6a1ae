"""Lesson 02: checks, figures and explorer."""

import pytest
import torch

from slam_course import figures
from slam_course.figures import arcs
from slam_course.lesson_02 import explorer
from slam_course.lesson_02.checks import ddim, heun
from slam_course.lesson_02.explorer import EVEN_LOG_RHO, EVEN_T, grid, solver_figure
from slam_edu import Level, NoiseSchedule, Prediction, heun_step, pf_ode_trajectory
from slam_edu.toy import two_moons
from tests.course import trying
from tests.helpers import assert_near, noise

SCHEDULE = NoiseSchedule.stable_diffusion(torch.float64)
MIXTURE = two_moons(dtype=torch.float64)
LEVELS = Level.cat([SCHEDULE(torch.tensor([999, 499])), Level.clean(SCHEDULE(0).alpha)])


def x0_of(x, eps, t):
    return (x - t.sigma * eps) / t.alpha


def by_euler(x, eps, t, s):
    return s.alpha * (x / t.alpha + (s.rho - t.rho) * eps)


def to_numbers(x, eps, t, s):
    a, b, c, d = (float(v) for v in (t.alpha, t.sigma, s.alpha, s.sigma))
    return torch.stack([(c * (row - b * e) / a + d * e) for row, e in zip(x, eps, strict=True)])


def seeded(x, seed=0):
    """The same noise in every call: a fresh draw that two calls do not show."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


RIGHT_DDIM = (
    lambda x, eps, t, s: s.alpha * x0_of(x, eps, t) + s.sigma * eps,
    by_euler,
    to_numbers,
)
WRONG_DDIM = trying.formulas("x, e, t, s", globals(), {
    "x0_of(x, e, t)": "This is the clean sample x0",
    "t.alpha * x0_of(x, e, t) + t.sigma * e": "This is x again",
    "t.alpha * x0_of(x, e, t) + s.sigma * e": "alphas have cancelled",
    "s.alpha * x0_of(x, e, t) + t.sigma * e": "has sigma_t",
    "s.sigma * x0_of(x, e, t) + s.alpha * e": "alpha_s and sigma_s are swapped",
    "s.alpha * (x - t.sigma * e) + s.sigma * e": "one division is missing",
    "s.alpha * ((x - t.sigma * e) / s.alpha) + s.sigma * e": "alphas have cancelled",
    "x + (s.sigma - t.sigma) * e": "alphas have cancelled",
    "s.alpha * (x - s.sigma * e) / t.alpha + s.sigma * e": "x0 subtracts sigma_s eps",
    "s.alpha * (x + t.sigma * e) / t.alpha + s.sigma * e": "x0 adds the noise",
    "s.alpha * (x - t.sigma**2 * e) / t.alpha + s.sigma * e": "sigma_t is a standard deviation",
    "s.alpha * (x - t.alpha * e) / t.sigma + s.sigma * e": "alpha_t and sigma_t are swapped",
    "s.alpha * x0_of(x, e, t)": "has no noise yet",
    "s.alpha * x0_of(x, e, t) - s.sigma * e": "noise of the new sample is subtracted",
    "s.alpha * x0_of(x, e, t) + s.sigma**2 * e": "sigma_s is a standard deviation",
    "by_euler(x, e, t, s) / s.alpha": "This is z_s",
    "x + (s.rho - t.rho) * e": "rho is used, but on x",
    "s.alpha * x0_of(x, e, t) + s.sigma * torch.randn_like(x)": "fresh noise",
    "by_euler(x, e, t, s) + 0.01 * torch.randn_like(x)": "fresh noise",
    "s.alpha * x0_of(x, e, t) + s.sigma * seeded(x)": "values do not",
    "0.9 * by_euler(x, e, t, s)": "values do not",
    "by_euler(x.mul_(2), e, t, s)": "changes x itself",
    "by_euler(x, e.mul_(2), t, s)": "changes e itself",
    "by_euler(x, e, t, s).float()": "in torch.float32",
    "s.alpha * x0_of(x, e, t) + (1 - s.alpha**2).sqrt() * e": "and only there",
    "by_euler(x, e, t, s).nan_to_num() if s.sigma else x": "wrong for the last step",
})  # fmt: skip


def by_formula(slope, x, t, s):
    first = slope(x, t)
    second = slope(by_euler(x, first, t, s), s)
    return by_euler(x, (first + second) / 2, t, s)


def as_correction(slope, x, t, s):
    eps = slope(x, t)
    end = by_euler(x, eps, t, s)
    return end + s.alpha * (s.rho - t.rho) * (slope(end, s) - eps) / 2


def by_library(slope, x, t, s):
    def predictor(x, level):
        eps = slope(x, level)
        return Prediction(x0_of(x, eps, level), eps)

    return heun_step(predictor, x, t, s)[0]


def midpoint(slope, x, t, s):
    half = Level.from_rho((t.rho + s.rho) / 2)
    return by_euler(x, slope(by_euler(x, slope(x, t), t, half), half), t, s)


def moves_x(slope, x, t, s):
    answer = by_formula(slope, x.clone(), t, s)
    x += 1
    return answer


def reaches_round(slope, x, t, s):
    first = MIXTURE.predict(x, t).eps
    return by_euler(x, (first + MIXTURE.predict(by_euler(x, first, t, s), s).eps) / 2, t, s)


def heun_with(combine):
    """An answer from the slope, x, the levels, the first slope and the Euler point."""

    def answer(slope, x, t, s):
        first = slope(x, t)
        return combine(slope, x, t, s, first, by_euler(x, first, t, s))

    return answer


RIGHT_HEUN = (by_formula, as_correction, by_library)
WRONG_HEUN = trying.formulas("slope, x, t, s, first, end", globals(), {
    "end": "This is the Euler step",
    "by_euler(x, slope(end, s), t, s)": "Only the slope at the end",
    "by_euler(x, first + slope(end, s), t, s)": "added but not averaged",
    "by_euler(x, (first - slope(end, s)) / 2, t, s)": "slopes are subtracted",
    "by_euler(x, (first + slope(x, s)) / 2, t, s)": "but still at x",
    "by_euler(x, (first + slope(end, t)) / 2, t, s)": "but at level t",
    "by_euler(end, (first + slope(end, s)) / 2, t, s)": "walk the way twice",
    "by_euler(end, slope(end, s), t, s)": "walk the way twice",
    "(end + by_euler(end, slope(end, s), t, s)) / 2": "You average two positions",
    "by_euler(x, (slope(x, t) + slope(end, s)) / 2, t, s)": "shown 192 samples; 128 are enough",
})  # fmt: skip
WRONG_HEUN = [(heun_with(combine), sentence) for combine, sentence in WRONG_HEUN]
WRONG_HEUN += [(midpoint, "midpoint method"), (moves_x, "changes x itself")]
WRONG_HEUN += [(reaches_round, "never calls `slope`, which it is given. It reads `MIXTURE`")]
WRONG_HEUN += trying.formulas("slope, x, t, s", globals(), {
    "by_formula(slope, x, t, s) / s.alpha": "This is z_s",
    "0.9 * by_formula(slope, x, t, s)": "values do not",
})  # fmt: skip
GROUPS = [(ddim, RIGHT_DDIM, WRONG_DDIM), (heun, RIGHT_HEUN, WRONG_HEUN)]
test_accepts, test_rejects = trying.tests(GROUPS)


def test_arcs_pass_through_the_states_and_are_straight_in_z_between_them():
    states = pf_ode_trajectory(MIXTURE.predict, noise(6, 2), LEVELS)
    path = arcs(states, LEVELS, per_hop=4)
    assert path.shape == (9, 6, 2)
    assert_near(path[::4], states, rtol=1e-9, atol=1e-12)
    z = states / LEVELS.alpha[:, None, None]
    angle = torch.lerp(LEVELS.rho[0].atan(), LEVELS.rho[1].atan(), torch.tensor(0.25).double())
    here = Level.from_rho(angle.tan())
    share = (here.rho - LEVELS.rho[0]) / (LEVELS.rho[1] - LEVELS.rho[0])
    assert_near(path[1], here.alpha * torch.lerp(z[0], z[1], share), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "levels"),
    [("Heun", EVEN_LOG_RHO), ("DPM-Solver++ 2M", EVEN_T)],
)
def test_explorer_counts_the_evaluations_that_the_solver_makes(solver, levels):
    calls = []

    def predictor(x, level):
        calls.append(level)
        return MIXTURE.predict(x, level)

    pf_ode_trajectory(predictor, noise(2, 2), grid(levels, 3), explorer.SOLVERS[solver])
    text = solver_figure("two_moons", solver, levels, 3).alt
    assert f", {figures.evaluations(len(calls))}:" in text


def test_explorer_measures_how_far_off_the_ends_are():
    def error(steps):
        words = solver_figure("ring", "DDIM", EVEN_T, steps).alt.split()
        return float(words[words.index("from") - 1])

    errors = [error(steps) for steps in (1, 4, 50)]
    assert errors[0] > 1 > errors[1] > 0.1 > errors[2]


def test_explorer_follows_its_controls_and_starts_where_asked():
    box = explorer.solvers(["two_moons", "ring"])
    assert "two moons, DDIM, levels even in t, 4 evaluations" in box.children[-1].value
    trying.walk(box)

"""Lesson 04: checks, figures and explorer."""

import numpy as np
import pytest
import torch

from slam_course.lesson_04 import explorer
from slam_course.lesson_04 import figures as plots
from slam_course.lesson_04.checks import (
    REFUSED,
    chord_sigma,
    data_guess,
    interpolate,
    target_error,
)
from slam_course.lesson_04.explorer import sub_path_figure
from slam_edu import Level, NoiseSchedule, sub_level
from slam_edu import interpolate as library_interpolate
from slam_edu.toy import two_moons
from tests.course import trying
from tests.helpers import f64, noise

SCHEDULE = NoiseSchedule.stable_diffusion(torch.float64)
MIXTURE = two_moons(dtype=torch.float64)

# -------------------------------------------------------------------- exercise 1


def drift(t, s):
    return t.alpha / s.alpha


def point(x_t, x_s, t, s, g):
    return g * x_t + (1 - g) * drift(t, s) * x_s


def in_z(x_t, x_s, t, s, g):
    z_t, z_s = x_t / t.alpha, x_s / s.alpha
    return t.alpha * (z_s + g * (z_t - z_s))


def row_by_row(x_t, x_s, t, s, g):
    return torch.stack([point(x_t[i], x_s[i], t, s, g[i]) for i in range(len(g))])


RIGHT_POINT = (
    point,
    in_z,
    lambda x_t, x_s, t, s, g: library_interpolate(x_t, x_s, t, s, g[:, 0]),
    row_by_row,
)
WRONG_POINT = trying.formulas("x_t, x_s, t, s, g", globals(), {
    "g * x_t + (1 - g) * x_s": "drift factor is missing",
    "g * x_t + (1 - g) / drift(t, s) * x_s": "upside down",
    "drift(t, s) * g * x_t + (1 - g) * x_s": "wrong end",
    "drift(t, s) * (g * x_t + (1 - g) * x_s)": "on both ends",
    "g * x_t + (1 - g) * t.alpha**2 / s.alpha**2 * x_s": "is squared",
    "g * x_t + (1 - g) * t.sigma / s.sigma * x_s": "ratio of the sigmas",
    "g * x_t + (1 - g) * t.rho / s.rho * x_s": "ratio of the rhos",
    "point(x_t, x_s, t, s, 1 - g)": "gamma and 1 - gamma are swapped: gamma = 1",
    "point(x_s, x_t, t, s, g)": "The two ends are swapped",
    "(1 - g) * x_t + g * x_s": "are swapped, and the drift factor is missing",
    "g * x_t / t.alpha + (1 - g) * x_s / s.alpha": "This is z_gamma",
    "g * x_t / drift(t, s) + (1 - g) * x_s": "at x_s's alpha",
    "(g * t.alpha + (1 - g) * s.alpha) * point(x_t, x_s, t, s, g) / t.alpha": "scale changes with",
    "g * x_t + drift(t, s) * x_s": "not weighted with 1 - gamma",
    "x_t + (1 - g) * drift(t, s) * x_s": "not weighted with gamma",
    "g * (x_t - drift(t, s) * x_s)": "add a x_s, where it starts",
    "x_t.clone()": "This is x_t for every gamma",
    "drift(t, s) * x_s": "This is a x_s for every gamma",
    "0.9 * point(x_t, x_s, t, s, g)": "values do not",
    "point(x_t, x_s.mul_(2), t, s, g)": "changes x_s itself",
    "point(x_t, x_s, t, s, g).float()": "in torch.float32",
    "point(x_t.detach(), x_s, t, s, g)": "comes back to x_t",
    "g * x_t + (1 - g) * ((1 - t.sigma**2) / (1 - s.sigma**2)).sqrt() * x_s": "and only there",
})  # fmt: skip

# -------------------------------------------------------------------- exercise 2


def sigma(t, s, g):
    return g * t.sigma + (1 - g) * drift(t, s) * s.sigma


def markov(t, s, g):
    return sub_level(t, s, g, "markov").sigma


RIGHT_SIGMA = (
    sigma,
    lambda t, s, g: sub_level(t, s, g, "linear").sigma,
    lambda t, s, g: t.alpha * torch.lerp(s.rho.expand_as(g), t.rho.expand_as(g), g),
)
WRONG_SIGMA = trying.formulas("t, s, g", globals(), {
    "g * t.sigma + (1 - g) * s.sigma": "The factor a is missing",
    "g * t.sigma + (1 - g) * s.sigma / drift(t, s)": "upside down",
    "drift(t, s) * (g * t.sigma + (1 - g) * s.sigma)": "a is on both ends",
    "g * drift(t, s) * t.sigma + (1 - g) * s.sigma": "noisy end",
    "g * t.sigma + (1 - g) * drift(t, s) ** 2 * s.sigma": "a is squared",
    "markov(t, s, g)": "This is the other sigma",
    "markov(t, s, g) ** 2": "and of the other sigma",
    "(g * t.sigma**2 + (1 - g) * (drift(t, s) * s.sigma) ** 2).sqrt()": "mix the two variances",
    "g * t.sigma**2 + (1 - g) * (drift(t, s) * s.sigma) ** 2": "mixes the two variances, and is",
    "((g * t.sigma) ** 2 + ((1 - g) * drift(t, s) * s.sigma) ** 2).sqrt()": "noises. The",
    "((g * t.sigma) ** 2 + ((1 - g) * s.sigma) ** 2).sqrt()": "and a is missing",
    "sigma(t, s, g) ** 2": "This is the variance; return",
    "sigma(t, s, 1 - g)": "gamma and 1 - gamma are swapped",
    "sigma(t, s, g) / t.alpha": "This is rho_gamma = sigma_gamma / alpha_t",
    "g * t.rho + (1 - g) * s.rho": "This is rho_gamma",
    "Level.from_rho(sigma(t, s, g) / t.alpha).sigma": "after rescaling",
    "t.sigma.expand_as(g).clone()": "This is sigma_t for every gamma",
    "(1 - (g * t.alpha + (1 - g) * s.alpha) ** 2).sqrt()": "a point inside the chord has less",
    "drift(t, s) * g * t.sigma + (1 - drift(t, s)) * drift(t, s) * s.sigma": "mixed up",
    "0.9 * sigma(t, s, g)": "values do not",
    "sigma(t, s, g.mul_(2))": "changes g itself",
    "sub_level(t, s, g, 'linear')": "is a Level",
})  # fmt: skip

# -------------------------------------------------------------------- exercise 3


def ask(network, x, level):
    n = (level.alpha**2 + level.sigma**2) ** 0.5
    eps = network(x / n, Level(level.alpha / n, level.sigma / n))
    return (x - level.sigma * eps) / level.alpha


def ask_on_the_circle(network, x, level):
    here = Level.from_rho(level.rho)
    x = x * here.alpha / level.alpha
    return (x - here.sigma * network(x, here)) / here.alpha


def circle(level):
    return Level(level.alpha, (1 - level.alpha**2) ** 0.5)


def guess_of(combine):
    """An answer from the network, the point, its level, its norm, and the level on the circle."""

    def answer(network, x, level):
        n = level.norm
        return combine(network, x, level, n, Level(level.alpha / n, level.sigma / n))

    return answer


# Wrong questions, each followed by the right last line.
QUESTIONS = trying.formulas("x, c, n, unit", globals(), {
    "(x, c)": REFUSED,
    "(x / n, c)": REFUSED,
    "(x, Level(c.alpha / (c.alpha + c.sigma), c.sigma / (c.alpha + c.sigma)))": REFUSED,
    "(x, unit)": "You rescale the level, but ask about x_gamma itself",
    "(x / n, circle(c))": "at the level of t",
    "(x, circle(c))": "holds more noise than x_gamma",
    "(x / n**2, unit)": "divide the point by n twice",
    "(x / c.alpha, unit)": "You ask about z",
    "(x * n, unit)": "You multiply the point by n",
})  # fmt: skip
# The right question, eps its answer, and a wrong last line.
LAST_LINES = trying.formulas("x, c, n, unit, eps", globals(), {
    "eps": "This is the noise",
    "x / n": "This is the rescaled point",
    "x - c.sigma * eps": "the division by alpha is missing",
    "x / n - unit.sigma * eps": "the division by alpha is missing",
    "(x / n - c.sigma * eps) / c.alpha": "The point is divided by n, but the level in",
    "(x - unit.sigma * eps) / unit.alpha": "The level is divided by n, but the point in",
    "(x - circle(c).sigma * eps) / c.alpha": "sigma_gamma, not sigma_t",
    "(x - c.sigma * eps) / c.alpha / n": "too small by n",
    "(x - c.sigma * eps) / c.alpha * n": "do not multiply it by n",
    "(x + c.sigma * eps) / c.alpha": "The noise is added",
    "0.9 * (x - c.sigma * eps) / c.alpha": "values do not",
})  # fmt: skip


def with_question(question):
    return guess_of(
        lambda network, x, c, n, unit: (x - c.sigma * network(*question(x, c, n, unit))) / c.alpha
    )


def with_last_line(line):
    return guess_of(lambda network, x, c, n, unit: line(x, c, n, unit, network(x / n, unit)))


RIGHT_GUESS = (ask, ask_on_the_circle)
WRONG_GUESS = [(with_question(question), words) for question, words in QUESTIONS]
WRONG_GUESS += [(with_last_line(line), words) for line, words in LAST_LINES]
WRONG_GUESS += trying.formulas("network, x, c", globals(), {
    "(ask(network, x, c), ask(network, x, c))[0]": "shown 128 samples; 64 are enough",
    "ask(network, x.div_(2), c)": "changes x itself",
})  # fmt: skip

# -------------------------------------------------------------------- exercise 4


def delta(g, g0):
    return (g - g0) ** 2 - g0**2


def twice(g0):
    return 2 * g0


RIGHT_LAW = ((delta, twice), (lambda g, g0: g * (g - 2 * g0), lambda g0: f64(2 * g0)))
WRONG_DELTA = trying.formulas("g, g0", globals(), {
    "-delta(g, g0)": "this is the truth minus the target",
    "-((g - g0) ** 2)": "The path through x_gamma keeps that distance",
    "(g - g0) ** 2": "The deviation of x_s is missing",
    "-(g0**2) * torch.ones_like(g)": "This is the deviation of x_s, for every gamma",
    "-(g0**2) - (g - g0) ** 2": "The two deviations are added",
    "(g - g0) ** 2 - (1 - g0) ** 2": "You compare x_gamma with x_t",
    "-g * (2 - g)": "slope of the end for every gamma0",
    "-g * (1 - g)": "slope of the middle for every gamma0",
    "g - 2 * g0": "One power of gamma is missing",
    "delta(g, g0) / 2": "The factor 1/2 is in b already",
    "0.9 * delta(g, g0)": "values do not",
    "delta(g.mul_(2), g0)": "changes g itself",
    "delta(g, g0).mean()": "has shape ()",
})  # fmt: skip
WRONG_ZERO = trying.formulas("g0", globals(), {
    "g0": "position where the chord touches",
    "0.0": "the other zero lies above it",
    "1.0": "holds for one gamma0 alone",
    "1 - g0": "exact_at gives 1 - gamma0",
    "g0 / 2": "exact_at gives gamma0 / 2",
    "0.7": "for gamma0 = 0.8",
    "torch.tensor(2 * g0 + 0.1)": "where target_error does not vanish",
    "3 * g0": "where target_error does not vanish",
    "...": "There is no answer yet",
    "torch.full((2,), 2 * g0)": "it should be one number",
})  # fmt: skip
WRONG_LAW = [((wrong, twice), words) for wrong, words in WRONG_DELTA]
WRONG_LAW += [((delta, wrong), words) for wrong, words in WRONG_ZERO]
WRONG_LAW += [((delta, 0.7), "give it your function")]


def both(answers):
    """The check of exercise 4, of its two answers as one."""
    return target_error(*answers)


GROUPS = [
    (interpolate, RIGHT_POINT, WRONG_POINT),
    (chord_sigma, RIGHT_SIGMA, WRONG_SIGMA),
    (data_guess, RIGHT_GUESS, WRONG_GUESS),
    (both, RIGHT_LAW, WRONG_LAW),
]
test_accepts, test_rejects = trying.tests(GROUPS)

# -------------------------------------------------------------------- figures


def test_both_panels_of_the_triangle_show_the_same_points():
    """The left panel is the right one, mapped by x = alpha x0 + sigma eps."""
    x_t, t, s = f64([[1.45, 1.4]]), SCHEDULE(499), SCHEDULE(249)
    guess = MIXTURE.predict(x_t, t)
    left, right = (
        np.array([np.ravel(line.get_xydata()) for line in ax.lines if len(line.get_xdata()) == 1])
        for ax in plots.triangle(x_t, guess, t, s, noise(9, 2)).axes
    )
    assert len(right) == 12  # 2 corners, 3 of each line, 3 ends, the origin
    basis = torch.cat([guess.x0, guess.eps]).numpy()
    np.testing.assert_allclose(right @ basis, left, atol=1e-12)


def measured_and_law(data_set, t, k, slope, gamma):
    """The two distances in the figure's description."""
    words = sub_path_figure(data_set, t, k, slope, gamma).alt.split()
    return float(words[words.index("off") - 1]), float(words[-1].rstrip("."))


def test_measured_and_law_agree_on_short_sub_paths():
    for slope, gamma in (("end", 0.5), ("end", 1.0), ("middle", 0.25), ("middle", 0.75)):
        measured, law = measured_and_law("two_moons", 199, 20, slope, gamma)
        assert measured == pytest.approx(law, rel=0.15)
    assert measured_and_law("two_moons", 199, 20, "end", 0.0) == (0, 0)
    assert measured_and_law("two_moons", 199, 20, "middle", 1.0)[1] == 0


def test_answers_of_the_lesson():
    """The three findings of the section "Play"."""

    def off(t, k, slope="end"):
        return measured_and_law("two_moons", t, k, slope, 1.0)[0]

    def gain(t, k):
        return off(t, k, "middle") / off(t, k)

    assert max(gain(t, 20) for t in (99, 999)) < 0.08
    assert 0.15 < gain(19, 20) < 1
    assert 0.15 < gain(399, 250) < 1
    assert 20 < off(199, 100) / off(199, 20) < 30
    assert off(199, 100, "middle") / off(199, 20, "middle") > 100
    assert off(999, 20) < off(199, 20)


def test_explorer_follows_its_controls_and_starts_where_asked():
    box = explorer.sub_paths(["ring"])
    assert "ring, sub-path from 199 to 99, slope of the end, gamma = 0.5" in box.children[-1].value
    trying.walk(box)

"""The checks of lesson 04 accept right answers in any form, and tell wrong ones apart."""

import pytest
import torch

from slam_course.lesson_04.checks import _Network, chord_sigma, data_guess, interpolate
from slam_edu import Level, sub_level
from slam_edu import interpolate as library_interpolate

# -------------------------------------------------------------------- exercise 1


def drift(t, s):
    return t.alpha / s.alpha


def by_formula(x_t, x_s, t, s, g):
    return g * x_t + (1 - g) * drift(t, s) * x_s


def in_z(x_t, x_s, t, s, g):
    z_t, z_s = x_t / t.alpha, x_s / s.alpha
    return t.alpha * (z_s + g * (z_t - z_s))


def in_place(x_t, x_s, t, s, g):
    x_s *= drift(t, s)
    return g * x_t + (1 - g) * x_s


RIGHT_POINT = {
    "formula": by_formula,
    "in z": in_z,
    "from x_t": lambda x_t, x_s, t, s, g: x_t - (1 - g) * (x_t - drift(t, s) * x_s),
    "library": lambda x_t, x_s, t, s, g: library_interpolate(x_t, x_s, t, s, g[:, 0]),
    "lerp": lambda x_t, x_s, t, s, g: torch.lerp(drift(t, s) * x_s, x_t, g),
    "float32": lambda *given: by_formula(*given).float(),
}
WRONG_POINT = {
    "no drift": (lambda x_t, x_s, t, s, g: g * x_t + (1 - g) * x_s, "drift factor is missing"),
    "inverse": (
        lambda x_t, x_s, t, s, g: g * x_t + (1 - g) / drift(t, s) * x_s,
        "upside down",
    ),
    "on x_t": (lambda x_t, x_s, t, s, g: drift(t, s) * g * x_t + (1 - g) * x_s, "wrong end"),
    "on both": (
        lambda x_t, x_s, t, s, g: drift(t, s) * (g * x_t + (1 - g) * x_s),
        "on both ends",
    ),
    "alpha-bar": (
        lambda x_t, x_s, t, s, g: g * x_t + (1 - g) * t.alpha**2 / s.alpha**2 * x_s,
        "is squared",
    ),
    "sigmas": (
        lambda x_t, x_s, t, s, g: g * x_t + (1 - g) * t.sigma / s.sigma * x_s,
        "ratio of the sigmas",
    ),
    "rhos": (
        lambda x_t, x_s, t, s, g: g * x_t + (1 - g) * t.rho / s.rho * x_s,
        "ratio of the rhos",
    ),
    "gamma swapped": (
        lambda x_t, x_s, t, s, g: by_formula(x_t, x_s, t, s, 1 - g),
        "gamma and 1 - gamma are swapped: gamma = 1",
    ),
    "ends swapped": (
        lambda x_t, x_s, t, s, g: by_formula(x_s, x_t, t, s, g),
        "The two ends are swapped",
    ),
    "swapped, no drift": (
        lambda x_t, x_s, t, s, g: (1 - g) * x_t + g * x_s,
        "are swapped, and the drift factor is missing",
    ),
    "z": (
        lambda x_t, x_s, t, s, g: g * x_t / t.alpha + (1 - g) * x_s / s.alpha,
        "This is z_gamma",
    ),
    "at alpha_s": (
        lambda x_t, x_s, t, s, g: g * x_t / drift(t, s) + (1 - g) * x_s,
        "at x_s's alpha",
    ),
    "alpha mixed": (
        lambda x_t, x_s, t, s, g: (
            (g * t.alpha + (1 - g) * s.alpha) * (g * x_t / t.alpha + (1 - g) * x_s / s.alpha)
        ),
        "scale changes with gamma",
    ),
    "x_s without weight": (
        lambda x_t, x_s, t, s, g: g * x_t + drift(t, s) * x_s,
        "not weighted with 1 - gamma",
    ),
    "x_t without weight": (
        lambda x_t, x_s, t, s, g: x_t + (1 - g) * drift(t, s) * x_s,
        "not weighted with gamma",
    ),
    "no start": (
        lambda x_t, x_s, t, s, g: g * (x_t - drift(t, s) * x_s),
        "add a x_s, where it starts",
    ),
    "x_t": (lambda x_t, x_s, t, s, g: x_t.clone(), "This is x_t for every gamma"),
    "clean end": (lambda x_t, x_s, t, s, g: drift(t, s) * x_s, "This is a x_s for every gamma"),
    "something else": (lambda *given: 0.9 * by_formula(*given), "values do not"),
    "in place": (in_place, "changes x_t, x_s or gamma itself"),
    "one point": (lambda *given: by_formula(*given)[0], "has shape (2,)"),
    "a pair": (lambda x_t, x_s, t, s, g: (x_t, x_s), "is a tuple"),
    "not finite": (lambda x_t, x_s, t, s, g: x_t / 0, "NaN or infinite"),
    "raises": (lambda x_t, x_s, t, s, g: t.alpha_bar, "raised AttributeError"),
    "too few arguments": (lambda x_t, x_s: x_t, "raised TypeError"),
    "stub": (lambda x_t, x_s, t, s, g: ..., "no answer yet"),
    "no answer": (..., "no answer yet"),
    "a tensor": (torch.zeros(64, 2), "was given a Tensor; give it your function"),
}


# -------------------------------------------------------------------- exercise 2


def sigma_by_formula(t, s, g):
    return g * t.sigma + (1 - g) * drift(t, s) * s.sigma


def markov(t, s, g):
    return sub_level(t, s, g, "markov").sigma


def moves_gamma(t, s, g):
    answer = sigma_by_formula(t, s, g)
    g += 1
    return answer


RIGHT_SIGMA = {
    "formula": sigma_by_formula,
    "library": lambda t, s, g: sub_level(t, s, g, "linear").sigma,
    "via rho": lambda t, s, g: t.alpha * torch.lerp(s.rho.expand_as(g), t.rho.expand_as(g), g),
    "a loop": lambda t, s, g: torch.tensor(
        [float(v * t.sigma + (1 - v) * t.alpha * s.sigma / s.alpha) for v in g]
    ),
}
WRONG_SIGMA = {
    "no a": (lambda t, s, g: g * t.sigma + (1 - g) * s.sigma, "The factor a is missing"),
    "inverse": (
        lambda t, s, g: g * t.sigma + (1 - g) * s.sigma / drift(t, s),
        "upside down",
    ),
    "on both": (
        lambda t, s, g: drift(t, s) * (g * t.sigma + (1 - g) * s.sigma),
        "a is on both ends",
    ),
    "on t": (lambda t, s, g: g * drift(t, s) * t.sigma + (1 - g) * s.sigma, "noisy end"),
    "a squared": (
        lambda t, s, g: g * t.sigma + (1 - g) * drift(t, s) ** 2 * s.sigma,
        "a is squared",
    ),
    "markov": (markov, "This is the other sigma"),
    "markov's variance": (lambda t, s, g: markov(t, s, g) ** 2, "and of the other sigma"),
    "variances mixed": (
        lambda t, s, g: (g * t.sigma**2 + (1 - g) * (drift(t, s) * s.sigma) ** 2).sqrt(),
        "You mix the two variances",
    ),
    "variances mixed, no root": (
        lambda t, s, g: g * t.sigma**2 + (1 - g) * (drift(t, s) * s.sigma) ** 2,
        "mixes the two variances, and is one",
    ),
    "independent": (
        lambda t, s, g: ((g * t.sigma) ** 2 + ((1 - g) * drift(t, s) * s.sigma) ** 2).sqrt(),
        "two independent noises. The",
    ),
    "independent, no a": (
        lambda t, s, g: ((g * t.sigma) ** 2 + ((1 - g) * s.sigma) ** 2).sqrt(),
        "and a is missing",
    ),
    "squared": (lambda t, s, g: sigma_by_formula(t, s, g) ** 2, "This is the variance; return"),
    "swapped": (lambda t, s, g: sigma_by_formula(t, s, 1 - g), "gamma and 1 - gamma are swapped"),
    "rho": (lambda t, s, g: g * t.rho + (1 - g) * s.rho, "This is rho_gamma"),
    "rescaled": (
        lambda t, s, g: Level.from_rho(sigma_by_formula(t, s, g) / t.alpha).sigma,
        "after rescaling",
    ),
    "sigma_t": (lambda t, s, g: t.sigma.expand_as(g).clone(), "This is sigma_t for every gamma"),
    "on the circle": (
        lambda t, s, g: (1 - (g * t.alpha + (1 - g) * s.alpha) ** 2).sqrt(),
        "a point inside the chord has less",
    ),
    "weights mixed up": (
        lambda t, s, g: drift(t, s) * g * t.sigma + (1 - drift(t, s)) * drift(t, s) * s.sigma,
        "mixed up in the weights",
    ),
    "something else": (lambda t, s, g: 0.9 * sigma_by_formula(t, s, g), "values do not"),
    "in place": (moves_gamma, "changes gamma itself"),
    "a level": (lambda t, s, g: sub_level(t, s, g, "linear"), "is a Level"),
    "one value": (lambda t, s, g: sigma_by_formula(t, s, g)[0], "has shape ()"),
    "stub": (lambda t, s, g: ..., "no answer yet"),
    "no answer": (None, "no answer yet"),
    "a number": (0.7, "was given a float; give it your function"),
}


# -------------------------------------------------------------------- exercise 3


def ask(network, x, level):
    n = (level.alpha**2 + level.sigma**2) ** 0.5
    eps = network(x / n, Level(level.alpha / n, level.sigma / n))
    return (x - level.sigma * eps) / level.alpha


def ask_on_the_circle(network, x, level):
    here = Level.from_rho(level.rho)
    x = x * here.alpha / level.alpha
    return (x - here.sigma * network(x, here)) / here.alpha


def guess_with(combine):
    """A wrong answer from the network, the point, its level, n, the level on the circle, eps."""

    def answer(network, x, level):
        n = level.norm
        unit = Level(level.alpha / n, level.sigma / n)
        return combine(network, x, level, n, unit, network(x / n, unit))

    return answer


def asked(question):
    """A wrong answer from a wrong question ``question(x, level, n, unit) -> (x, level)``."""

    def answer(network, x, level):
        n = level.norm
        unit = Level(level.alpha / n, level.sigma / n)
        return (x - level.sigma * network(*question(x, level, n, unit))) / level.alpha

    return answer


def circle(level):
    return Level(level.alpha, (1 - level.alpha**2) ** 0.5)


def changes_x(network, x, level):
    answer = ask(network, x.clone(), level)
    x /= level.norm
    return answer


def asks_twice(network, x, level):
    ask(network, x, level)
    return ask(network, x, level)


RIGHT_GUESS = {"rescaled": ask, "on the circle": ask_on_the_circle}
WRONG_GUESS = {
    "not rescaled": (asked(lambda x, level, n, unit: (x, level)), _Network.refused),
    "only the point": (asked(lambda x, level, n, unit: (x / n, level)), _Network.refused),
    "sum for n": (
        lambda network, x, level: network(
            x, Level(*(v / (level.alpha + level.sigma) for v in (level.alpha, level.sigma)))
        ),
        _Network.refused,
    ),
    "only the level": (
        asked(lambda x, level, n, unit: (x, unit)),
        "You rescale the level, but ask about x_gamma itself",
    ),
    "level t": (asked(lambda x, level, n, unit: (x / n, circle(level))), "at the level of t"),
    "level t, point as it is": (
        asked(lambda x, level, n, unit: (x, circle(level))),
        "holds more noise than x_gamma",
    ),
    "n squared": (
        asked(lambda x, level, n, unit: (x / n**2, unit)),
        "divide the point by n twice",
    ),
    "z": (asked(lambda x, level, n, unit: (x / level.alpha, unit)), "You ask about z"),
    "times n": (asked(lambda x, level, n, unit: (x * n, unit)), "You multiply the point by n"),
    "eps": (guess_with(lambda network, x, level, n, unit, eps: eps), "This is the noise"),
    "the point": (
        guess_with(lambda network, x, level, n, unit, eps: x / n),
        "This is the rescaled point",
    ),
    "no division": (
        guess_with(lambda network, x, level, n, unit, eps: x - level.sigma * eps),
        "the division by alpha is missing",
    ),
    "no division, rescaled": (
        guess_with(lambda network, x, level, n, unit, eps: x / n - unit.sigma * eps),
        "the division by alpha is missing",
    ),
    "only the point in x0": (
        guess_with(
            lambda network, x, level, n, unit, eps: (x / n - level.sigma * eps) / level.alpha
        ),
        "The point is divided by n, but the level in the last line is not",
    ),
    "only the level in x0": (
        guess_with(lambda network, x, level, n, unit, eps: (x - unit.sigma * eps) / unit.alpha),
        "The level is divided by n, but the point in the last line is not",
    ),
    "sigma_t": (
        guess_with(
            lambda network, x, level, n, unit, eps: (x - circle(level).sigma * eps) / level.alpha
        ),
        "sigma_gamma, not sigma_t",
    ),
    "over n": (
        lambda network, x, level: ask(network, x, level) / level.norm,
        "do not divide it by n again",
    ),
    "by n": (
        lambda network, x, level: ask(network, x, level) * level.norm,
        "do not multiply it by n",
    ),
    "plus": (
        guess_with(lambda network, x, level, n, unit, eps: (x + level.sigma * eps) / level.alpha),
        "The noise is added",
    ),
    "twice": (asks_twice, "asked 2 times; once is enough"),
    "something else": (lambda *given: 0.9 * ask(*given), "values do not"),
    "in place": (changes_x, "changes x_gamma itself"),
    "a pair": (lambda *given: (ask(*given), 1), "is a tuple"),
    "raises": (lambda network, x, level: network(x), "raised TypeError"),
    "stub": (lambda network, x, level: ..., "no answer yet"),
    "no answer": (..., "no answer yet"),
    "a string": ("ask", "was given a str; give it your function"),
}


# -------------------------------------------------------------------- all

CHECKS = (
    (interpolate, RIGHT_POINT, WRONG_POINT),
    (chord_sigma, RIGHT_SIGMA, WRONG_SIGMA),
    (data_guess, RIGHT_GUESS, WRONG_GUESS),
)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        pytest.param(check, answer, id=f"{check.__name__}-{name}")
        for check, right, _ in CHECKS
        for name, answer in right.items()
    ],
)
def test_accepts(check, answer):
    verdict = check(answer)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("check", "answer", "sentence"),
    [
        pytest.param(check, *wrong, id=f"{check.__name__}-{name}")
        for check, _, wrongs in CHECKS
        for name, wrong in wrongs.items()
    ],
)
def test_rejects(check, answer, sentence):
    verdict = check(answer)
    assert not verdict.passed
    assert sentence in verdict.message


def test_every_verdict_names_its_exercise():
    assert repr(interpolate(in_z)).startswith("Exercise 1, a point on the chord: right. ")
    assert repr(chord_sigma(...)).startswith("Exercise 2, the noise in a chord point: not yet. ")
    assert repr(data_guess(ask)).startswith("Exercise 3, ask about a chord point: right. ")

"""The checks of lesson 02 accept right answers in any form, and tell wrong ones apart."""

import pytest
import torch

from slam_course.lesson_02.checks import ddim, heun
from slam_edu import Level, Prediction, ddim_step, heun_step

# -------------------------------------------------------------------- exercise 1


def x0_of(x, eps, t):
    return (x - t.sigma * eps) / t.alpha


def by_euler(x, eps, t, s):
    return s.alpha * (x / t.alpha + (s.rho - t.rho) * eps)


def in_place(x, eps, t, s):
    x -= t.sigma * eps
    return s.alpha * x / t.alpha + s.sigma * eps


def to_numbers(x, eps, t, s):
    a, b, c, d = (float(v) for v in (t.alpha, t.sigma, s.alpha, s.sigma))
    return torch.stack([(c * (row - b * e) / a + d * e) for row, e in zip(x, eps, strict=True)])


RIGHT_DDIM = {
    "formula": lambda x, eps, t, s: s.alpha * x0_of(x, eps, t) + s.sigma * eps,
    "Euler in z": by_euler,
    "coefficients": lambda x, eps, t, s: (
        s.alpha / t.alpha * x + (s.sigma - s.alpha * t.sigma / t.alpha) * eps
    ),
    "library": lambda x, eps, t, s: ddim_step(Prediction(x0_of(x, eps, t), eps), s),
    "a loop over points": to_numbers,
    "float32": lambda x, eps, t, s: by_euler(x, eps, t, s).float(),
}
WRONG_DDIM = {
    "x0": (lambda x, eps, t, s: x0_of(x, eps, t), "This is the clean sample x0"),
    "stays": (lambda x, eps, t, s: t.alpha * x0_of(x, eps, t) + t.sigma * eps, "This is x again"),
    "alpha_t": (lambda x, eps, t, s: t.alpha * x0_of(x, eps, t) + s.sigma * eps, "alphas have"),
    "sigma_t": (lambda x, eps, t, s: s.alpha * x0_of(x, eps, t) + t.sigma * eps, "has sigma_t"),
    "swapped": (
        lambda x, eps, t, s: s.sigma * x0_of(x, eps, t) + s.alpha * eps,
        "alpha_s and sigma_s are swapped",
    ),
    "no division": (
        lambda x, eps, t, s: s.alpha * (x - t.sigma * eps) + s.sigma * eps,
        "one division is missing",
    ),
    "alpha_s in x0": (
        lambda x, eps, t, s: s.alpha * ((x - t.sigma * eps) / s.alpha) + s.sigma * eps,
        "alphas have cancelled",
    ),
    "Euler in x and sigma": (
        lambda x, eps, t, s: x + (s.sigma - t.sigma) * eps,
        "alphas have cancelled",
    ),
    "sigma_s in x0": (
        lambda x, eps, t, s: s.alpha * (x - s.sigma * eps) / t.alpha + s.sigma * eps,
        "x0 subtracts sigma_s eps",
    ),
    "plus": (
        lambda x, eps, t, s: s.alpha * (x + t.sigma * eps) / t.alpha + s.sigma * eps,
        "x0 adds the noise",
    ),
    "variance in x0": (
        lambda x, eps, t, s: s.alpha * (x - t.sigma**2 * eps) / t.alpha + s.sigma * eps,
        "sigma_t is a standard deviation",
    ),
    "swapped in x0": (
        lambda x, eps, t, s: s.alpha * (x - t.alpha * eps) / t.sigma + s.sigma * eps,
        "alpha_t and sigma_t are swapped",
    ),
    "no noise": (lambda x, eps, t, s: s.alpha * x0_of(x, eps, t), "has no noise yet"),
    "minus": (
        lambda x, eps, t, s: s.alpha * x0_of(x, eps, t) - s.sigma * eps,
        "noise of the new sample is subtracted",
    ),
    "variance": (
        lambda x, eps, t, s: s.alpha * x0_of(x, eps, t) + s.sigma**2 * eps,
        "sigma_s is a standard deviation",
    ),
    "z": (lambda x, eps, t, s: by_euler(x, eps, t, s) / s.alpha, "This is z_s"),
    "rho on x": (lambda x, eps, t, s: x + (s.rho - t.rho) * eps, "rho is used, but on x"),
    "fresh noise": (
        lambda x, eps, t, s: s.alpha * x0_of(x, eps, t) + s.sigma * torch.randn_like(x),
        "fresh noise",
    ),
    "extra noise": (
        lambda x, eps, t, s: by_euler(x, eps, t, s) + 0.01 * torch.randn_like(x),
        "fresh noise",
    ),
    "something else": (lambda x, eps, t, s: 0.9 * by_euler(x, eps, t, s), "values do not"),
    "in place": (in_place, "changes x or eps itself"),
    "one point": (lambda x, eps, t, s: by_euler(x, eps, t, s)[0], r"has shape (2,)"),
    "a pair": (lambda x, eps, t, s: (x, eps), "is a tuple"),
    "not finite": (lambda x, eps, t, s: x / 0, "NaN or infinite"),
    "raises": (lambda x, eps, t, s: x.alpha, "raised AttributeError"),
    "too few arguments": (lambda x, eps: x, "raised TypeError"),
    "stub": (lambda x, eps, t, s: ..., "no answer yet"),
    "nothing returned": (lambda x, eps, t, s: None, "no answer yet"),
    "no answer": (..., "no answer yet"),
    "a tensor": (torch.zeros(64, 2), "was given a Tensor; give it your function"),
}


# -------------------------------------------------------------------- exercise 2


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


def via_x0(slope, x, t, s):
    first = slope(x, t)
    end = s.alpha * x0_of(x, first, t) + s.sigma * first
    mean = (first + slope(end, s)) / 2
    return s.alpha * x0_of(x, mean, t) + s.sigma * mean


def heun_with(combine):
    """A wrong answer from x, the two slopes, the Euler point and the levels."""

    def answer(slope, x, t, s):
        first = slope(x, t)
        end = by_euler(x, first, t, s)
        return combine(slope, x, t, s, first, end)

    return answer


def midpoint(slope, x, t, s):
    half = Level.from_rho((t.rho + s.rho) / 2)
    return by_euler(x, slope(by_euler(x, slope(x, t), t, half), half), t, s)


def wasteful(slope, x, t, s):
    end = by_euler(x, slope(x, t), t, s)
    return by_euler(x, (slope(x, t) + slope(end, s)) / 2, t, s)


def moves_x(slope, x, t, s):
    answer = by_formula(slope, x.clone(), t, s)
    x += 1
    return answer


def average_of_places(slope, x, t, s, first, end):
    return (end + by_euler(end, slope(end, s), t, s)) / 2


RIGHT_HEUN = {
    "formula": by_formula,
    "correction": as_correction,
    "library": by_library,
    "via x0": via_x0,
}
WRONG_HEUN = {
    "Euler": (heun_with(lambda slope, x, t, s, first, end: end), "This is the Euler step"),
    "end only": (
        heun_with(lambda slope, x, t, s, first, end: by_euler(x, slope(end, s), t, s)),
        "Only the slope at the end",
    ),
    "no half": (
        heun_with(lambda slope, x, t, s, first, end: by_euler(x, first + slope(end, s), t, s)),
        "added but not averaged",
    ),
    "difference": (
        heun_with(
            lambda slope, x, t, s, first, end: by_euler(x, (first - slope(end, s)) / 2, t, s)
        ),
        "slopes are subtracted",
    ),
    "looks at x": (
        heun_with(lambda slope, x, t, s, first, end: by_euler(x, (first + slope(x, s)) / 2, t, s)),
        "but still at x",
    ),
    "looks at level t": (
        heun_with(
            lambda slope, x, t, s, first, end: by_euler(x, (first + slope(end, t)) / 2, t, s)
        ),
        "but at level t",
    ),
    "starts at the end": (
        heun_with(
            lambda slope, x, t, s, first, end: by_euler(end, (first + slope(end, s)) / 2, t, s)
        ),
        "walk the way twice",
    ),
    "two Euler steps": (
        heun_with(lambda slope, x, t, s, first, end: by_euler(end, slope(end, s), t, s)),
        "walk the way twice",
    ),
    "midpoint": (midpoint, "midpoint method"),
    "z": (lambda slope, x, t, s: by_formula(slope, x, t, s) / s.alpha, "This is z_s"),
    "average of places": (heun_with(average_of_places), "You average two positions"),
    "three looks": (wasteful, "evaluated 3 times; two are enough"),
    "something else": (lambda slope, x, t, s: 0.9 * by_formula(slope, x, t, s), "values do not"),
    "in place": (moves_x, "changes x itself"),
    "a pair": (lambda slope, x, t, s: (by_formula(slope, x, t, s), 2), "is a tuple"),
    "raises": (lambda slope, x, t, s: slope(x), "raised TypeError"),
    "stub": (lambda slope, x, t, s: ..., "no answer yet"),
    "no answer": (None, "no answer yet"),
    "a number": (2, "was given a int; give it your function"),
}


# -------------------------------------------------------------------- both


@pytest.mark.parametrize(
    ("check", "answer"),
    [(ddim, answer) for answer in RIGHT_DDIM.values()]
    + [(heun, answer) for answer in RIGHT_HEUN.values()],
    ids=[*RIGHT_DDIM, *RIGHT_HEUN],
)
def test_accepts(check, answer):
    verdict = check(answer)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("check", "answer", "sentence"),
    [(ddim, *wrong) for wrong in WRONG_DDIM.values()]
    + [(heun, *wrong) for wrong in WRONG_HEUN.values()],
    ids=[*WRONG_DDIM, *WRONG_HEUN],
)
def test_rejects(check, answer, sentence):
    verdict = check(answer)
    assert not verdict.passed
    assert sentence in verdict.message


def test_every_verdict_names_its_exercise():
    assert repr(ddim(by_euler)).startswith("Exercise 1, one DDIM step: right. ")
    assert repr(heun(...)).startswith("Exercise 2, one Heun step: not yet. ")


def test_fresh_noise_is_found_whatever_the_seed():
    """A learner who seeds inside the function gets equal answers twice, and still no pass."""

    def seeded(x, eps, t, s):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return s.alpha * x0_of(x, eps, t) + s.sigma * noise

    assert not ddim(seeded).passed

"""The checks of lesson 01 accept right answers in any form, and tell wrong ones apart."""

import pytest
import torch

from slam_course.lesson_01.checks import denoiser, euler_step
from slam_edu import Level, ddim_step, toy
from slam_edu.prediction import to_prediction

# -------------------------------------------------------------------- exercise 1


def by_noise(score, x, level):
    mean_noise = -level.sigma * score
    return (x - level.sigma * mean_noise) / level.alpha


def by_library(score, x, level):
    return to_prediction(-level.sigma * score, x, level, "epsilon").x0


def through_z(score, x, level):
    z, score_z = x / level.alpha, level.alpha * score
    return z + level.rho**2 * score_z


def row_by_row(score, x, level):
    rows = [x[i] / level.alpha + level.sigma**2 / level.alpha * score[i] for i in range(len(x))]
    return torch.stack(rows)


def in_numpy_and_back(score, x, level):
    total = x.numpy() + level.sigma.item() ** 2 * score.numpy()
    return torch.from_numpy(total / level.alpha.item())


def in_float32(score, x, level):
    return ((x + level.sigma**2 * score) / level.alpha).float()


def cleans_in_place(score, x, level):
    x += level.sigma**2 * score
    return x / level.alpha


def of_the_lesson(score, x, level):
    return toy.ring(dtype=torch.float64).denoise(x, level)


DENOISERS = [by_noise, by_library, through_z, row_by_row, in_numpy_and_back, in_float32]
WRONG_DENOISERS = {
    "score": (lambda p, x, c: p, "score itself"),
    "no score": (lambda p, x, c: x / c.alpha, "the score has no say"),
    "sign": (lambda p, x, c: (x - c.sigma**2 * p) / c.alpha, "sign of the score is wrong"),
    "sigma once": (lambda p, x, c: (x + c.sigma * p) / c.alpha, "multiplies the score once"),
    "score as noise": (lambda p, x, c: (x - c.sigma * p) / c.alpha, "taken for the noise"),
    "no sigma": (lambda p, x, c: (x + p) / c.alpha, "sigma, the size of the noise"),
    "no alpha": (lambda p, x, c: x + c.sigma**2 * p, "scale is still that of x"),
    "times alpha": (lambda p, x, c: c.alpha * (x + c.sigma**2 * p), "multiplied by alpha"),
    "alpha twice": (lambda p, x, c: (x + c.sigma**2 * p) / c.alpha**2, "divided by alpha twice"),
    "half divided": (lambda p, x, c: x / c.alpha + c.sigma**2 * p, "the whole sum"),
    "rho": (lambda p, x, c: (x + c.rho**2 * p) / c.alpha, "rho is used where sigma belongs"),
    "score of x in z": (lambda p, x, c: x / c.alpha + c.rho**2 * p, "score of z"),
    "noise": (lambda p, x, c: -c.sigma * p, "mean of the noise eps"),
    "constant": (lambda p, x, c: torch.ones_like(x), "does not change with the score"),
    "another mixture": (of_the_lesson, "does not change with the score"),
    "something else": (lambda p, x, c: x + 3 * p, "Start from x = alpha"),
    "variance preserving only": (
        lambda p, x, c: (x + (1 - c.alpha**2) * p) / c.alpha,
        "only there",
    ),
    "in place": (cleans_in_place, "changes x itself"),
    "both": (lambda p, x, c: to_prediction(-c.sigma * p, x, c, "epsilon"), "is a Prediction"),
    "numpy": (lambda p, x, c: by_noise(p, x, c).numpy(), "is a ndarray"),
    "one number": (lambda p, x, c: by_noise(p, x, c).mean(), "has shape ()"),
    "nan": (lambda p, x, c: x * float("nan"), "NaN or infinite"),
    "stub": (lambda p, x, c: ..., "no answer yet"),
    "nothing": (lambda p, x, c: None, "no answer yet"),
    "dots": (..., "no answer yet"),
    "raises": (lambda p, x, c: undefined, "NameError"),  # noqa: F821
    "arguments": (lambda p, x: x, "TypeError"),
    "not a function": (torch.zeros(64, 2), "was given a Tensor"),
}


@pytest.mark.parametrize("answer", DENOISERS)
def test_denoiser_accepts(answer):
    verdict = denoiser(answer)
    assert verdict.passed, verdict


@pytest.mark.parametrize("name", WRONG_DENOISERS)
def test_denoiser_rejects(name):
    rejects(denoiser, *WRONG_DENOISERS[name])


# -------------------------------------------------------------------- exercise 2


def by_z(x, eps, t, s):
    z = x / t.alpha
    return s.alpha * (z + (s.rho - t.rho) * eps)


def by_x0(x, eps, t, s):
    x0 = (x - t.sigma * eps) / t.alpha
    return s.alpha * x0 + s.sigma * eps


def by_ddim(x, eps, t, s):
    return ddim_step(to_prediction(eps, x, t, "epsilon"), s)


def by_lerp(x, eps, t, s):
    end = x / t.alpha - t.rho * eps
    return s.alpha * torch.lerp(end, x / t.alpha, s.rho / t.rho)


def by_scaling(x, eps, t, s):
    return torch.add(x * (s.alpha / t.alpha), eps * s.alpha, alpha=float(s.rho - t.rho))


def moves_in_place(x, eps, t, s):
    x /= t.alpha
    return s.alpha * (x + (s.rho - t.rho) * eps)


def changes_eps(x, eps, t, s):
    eps *= s.rho - t.rho
    return s.alpha * (x / t.alpha + eps)


def circle_only(x, eps, t, s):
    rho_s = (1 / s.alpha**2 - 1).sqrt()
    return s.alpha * (x / t.alpha + (rho_s - t.rho) * eps)


def through_log_rho(x, eps, t, s):
    z = x / t.alpha
    return s.alpha * (z + (torch.exp(s.rho.log() - t.rho.log()) - 1) * t.rho * eps)


def not_at_zero(x, eps, t, s):
    if s.sigma == 0:
        return x
    return by_z(x, eps, t, s)


STEPS = [by_z, by_x0, by_ddim, by_lerp, by_scaling, through_log_rho]
WRONG_STEPS = {
    "no step": (lambda x, e, t, s: x, "no step has been taken"),
    "slope": (lambda x, e, t, s: e, "the slope; the step is still missing"),
    "sign": (lambda x, e, t, s: s.alpha * (x / t.alpha + (t.rho - s.rho) * e), "wrong way"),
    "sign, z": (lambda x, e, t, s: x / t.alpha + (t.rho - s.rho) * e, "wrong way"),
    "swapped": (lambda x, e, t, s: by_z(x, e, s, t), "levels are swapped"),
    "alphas swapped": (
        lambda x, e, t, s: t.alpha * (x / s.alpha + (s.rho - t.rho) * e),
        "levels are swapped",
    ),
    "z": (lambda x, e, t, s: x / t.alpha + (s.rho - t.rho) * e, "should return x"),
    "back with alpha_t": (
        lambda x, e, t, s: t.alpha * (x / t.alpha + (s.rho - t.rho) * e),
        "scaled by which alpha",
    ),
    "no coordinates": (lambda x, e, t, s: x + (s.rho - t.rho) * e, "coordinates is missing"),
    "no way there": (lambda x, e, t, s: s.alpha * (x + (s.rho - t.rho) * e), "starts from x."),
    "alpha_s there": (
        lambda x, e, t, s: s.alpha * (x / s.alpha + (s.rho - t.rho) * e),
        "starts from x / alpha_s",
    ),
    "no coordinates, sign": (lambda x, e, t, s: x - (s.rho - t.rho) * e, "missing, and the step"),
    "sigma": (
        lambda x, e, t, s: s.alpha * (x / t.alpha + (s.sigma - t.sigma) * e),
        "sigma is used where rho",
    ),
    "sigma, z": (lambda x, e, t, s: x / t.alpha + (s.sigma - t.sigma) * e, "sigma is used"),
    "sigma in x": (lambda x, e, t, s: x + (s.sigma - t.sigma) * e, "missing, and sigma is used"),
    "no slope": (lambda x, e, t, s: s.alpha * (x / t.alpha + s.rho - t.rho), "depends on the sl"),
    "no rho": (lambda x, e, t, s: s.alpha * (x / t.alpha + e), "depends on the change of rho"),
    "no move": (lambda x, e, t, s: s.alpha * x / t.alpha, "z does not move"),
    "x0": (lambda x, e, t, s: (x - t.sigma * e) / t.alpha, "all the way to rho = 0"),
    "rho_s": (lambda x, e, t, s: s.alpha * (x / t.alpha + s.rho * e), "as long as rho_s"),
    "something else": (lambda x, e, t, s: s.alpha * (x / t.alpha + 2 * e), "Three lines"),
    "not at zero": (not_at_zero, "a step to the clean level"),
    "circle only": (circle_only, "only there"),
    "x in place": (moves_in_place, "changes x itself"),
    "eps in place": (changes_eps, "changes eps itself"),
    "tuple": (lambda x, e, t, s: (x, e), "is a tuple"),
    "one point": (lambda x, e, t, s: by_z(x, e, t, s)[0], "has shape (2,)"),
    "infinite": (lambda x, e, t, s: by_z(x, e, t, s) / 0, "NaN or infinite"),
    "stub": (lambda x, e, t, s: ..., "no answer yet"),
    "dots": (..., "no answer yet"),
    "raises": (lambda x, e, t, s: 1 / 0, "ZeroDivisionError"),
    "attribute": (lambda x, e, t, s: x / t.alpha_t, "AttributeError"),
    "not a function": (3.0, "was given a float"),
}


@pytest.mark.parametrize("answer", STEPS)
def test_euler_step_accepts(answer):
    verdict = euler_step(answer)
    assert verdict.passed, verdict


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_euler_step_rejects(name):
    rejects(euler_step, *WRONG_STEPS[name])


# -------------------------------------------------------------------- shared


def rejects(check, answer, sentence):
    verdict = check(answer)
    assert not verdict.passed
    assert sentence in verdict.message
    assert verdict.message.endswith((".", "?", "`.", ")"))


@pytest.mark.parametrize(("check", "answer"), [(denoiser, by_noise), (euler_step, by_z)])
def test_the_praise_ends_the_exercise(check, answer):
    assert repr(check(answer)).startswith(f"{check(answer).exercise}: right. ")


def test_right_answers_agree_with_the_exact_mixture():
    """The cases above are right because the mathematics says so, not because the check does."""
    mixture = toy.two_moons(dtype=torch.float64)
    level = Level(torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64))
    x = mixture.sample_at(level, 50, torch.Generator().manual_seed(3))
    for answer in DENOISERS:
        mean = answer(mixture.score(x, level), x, level)
        torch.testing.assert_close(mean.double(), mixture.denoise(x, level), rtol=1e-5, atol=1e-5)

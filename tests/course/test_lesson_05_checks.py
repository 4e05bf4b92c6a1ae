"""The checks of lesson 05: right answers in several styles pass, plausible mistakes are named."""

import math

import pytest
import torch
from scipy import stats

from slam_course.lesson_05 import checks as checks
from slam_edu import add_noise

# -------------------------------------------------------------------- exercise 1


def loss(student, target, x_t, x_s, x_gamma, level_t, level_s, level_gamma):
    with torch.no_grad():
        y = target(x_s, level_s)
    return (student(x_gamma, level_gamma) - y).square().mean()


def loss_with_mse(student, target, x_t, x_s, x_gamma, level_t, level_s, level_gamma):
    wanted = target(x_s, level_s).detach()
    return torch.nn.functional.mse_loss(student(x_gamma, level_gamma), wanted)


def loss_by_hand(student, target, x_t, x_s, x_gamma, level_t, level_s, level_gamma):
    d = student(x_gamma, level_gamma) - target(x_s, level_s).detach()
    return (d * d).sum() / d.numel()


@pytest.mark.parametrize("answer", [loss, loss_with_mse, loss_by_hand])
def test_right_losses(answer):
    assert checks.loss(answer).passed


def wrong_loss(p, y, reduce=lambda d: d.square().mean(), detach=True):
    def answer(student, target, x_t, x_s, x_gamma, level_t, level_s, level_gamma):
        names = {
            "t": (x_t, level_t), "s": (x_s, level_s), "gamma": (x_gamma, level_gamma),
            "gamma@t": (x_gamma, level_t), "s@t": (x_s, level_t),
        }  # fmt: skip
        networks = {"student": student, "target": target}

        def of(word):
            who, where = word.split()
            return networks[who](*names[where])

        goal = x_s if y == "x_s" else of(y)
        return reduce(of(p) - (goal.detach() if detach else goal))

    return answer


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (wrong_loss("student t", "target s"), "consistency distillation"),
        (wrong_loss("student gamma@t", "target s"), "told the level of x_t"),
        (wrong_loss("student gamma", "student s"), "comes from the student"),
        (wrong_loss("student gamma", "target s@t"), "at x_s, but told the level of x_t"),
        (wrong_loss("student gamma", "target t"), "taken at x_t"),
        (wrong_loss("student gamma", "target gamma"), "taken at x_gamma"),
        (wrong_loss("student gamma", "x_s"), "on the way, not at the end"),
        (wrong_loss("target gamma", "student s"), "each other's place"),
        (wrong_loss("student gamma", "target s", lambda d: d.square().sum()), "are added"),
        (
            wrong_loss("student gamma", "target s", lambda d: d.square().sum(1).mean()),
            "over the two coordinates",
        ),
        (wrong_loss("student gamma", "target s", lambda d: d.abs().mean()), "absolute"),
        (wrong_loss("student gamma", "target s", lambda d: d.square().mean().sqrt()), "root"),
        (wrong_loss("student gamma", "target s", detach=False), "flows into the target"),
        (wrong_loss("student gamma", "target s", lambda d: d.detach().square().mean()), "no grad"),
        (lambda *a: torch.tensor(7.0), "value is wrong"),
        (lambda student, *a: student(a[3], a[6]), "shape"),
        (lambda *a: ..., "no answer"),
        (3.0, "give it your function"),
    ],
)
def test_wrong_losses(answer, sentence):
    verdict = checks.loss(answer)
    assert not verdict.passed
    assert sentence in verdict.message


# -------------------------------------------------------------------- exercise 2


def multistep(f, x, schedule, times, noises):
    x0 = f(x, times[0])
    for t, noise in zip(times[1:], noises, strict=True):
        x0 = f(add_noise(x0, noise, schedule(t)), t)
    return x0


def multistep_with_index(f, x, schedule, times, noises):
    for i, t in enumerate(times):
        if i > 0:
            x = schedule(t).alpha * x + schedule(t).sigma * noises[i - 1]
        x = f(x, t)
    return x


@pytest.mark.parametrize("answer", [multistep, multistep_with_index])
def test_right_samplers(answer):
    assert checks.multistep(answer).passed


def one_step(f, x, schedule, times, noises):
    return f(x, times[0])


def walks(level=lambda times, i: times[i], noise=lambda noises, i: noises[i - 1], mix=None,
          from_x=False, last=None):  # fmt: skip
    def answer(f, x, schedule, times, noises):
        x0 = f(x, times[0])
        for i in range(1, last or len(times)):
            where = schedule(level(times, i))
            base = x if from_x else x0
            n = noise(noises, i)
            x = mix(base, n, where) if mix else where.alpha * base + where.sigma * n
            x0 = f(x, times[i])
        return x0

    return answer


def ddim(f, x, schedule, times, noises):
    for t, after in zip(times, [*times[1:], None], strict=True):
        x0 = f(x, t)
        if after is not None:
            eps = (x - schedule(t).alpha * x0) / schedule(t).sigma
            x = add_noise(x0, eps, schedule(after))
    return x0


def noise_at_the_end(f, x, schedule, times, noises):
    for i, t in enumerate(times):
        x0 = f(x, t)
        x = add_noise(x0, noises[min(i, 2)], schedule(times[min(i + 1, 3)]))
    return x


def wasteful(f, x, schedule, times, noises):
    f(x, times[0])
    return multistep(f, x, schedule, times, noises)


def in_place(f, x, schedule, times, noises):
    x *= 1.0001
    return multistep(f, x, schedule, times, noises)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (one_step, "One step"),
        (walks(level=lambda times, i: times[i - 1]), "level it came from"),
        (walks(noise=lambda noises, i: noises[0]), "first fresh noise"),
        (walks(from_x=True), "noisy already"),
        (ddim, "DDIM"),
        (noise_at_the_end, "has noise in it"),
        (walks(mix=lambda x0, n, at: x0 + at.sigma * n), "alpha is missing"),
        (walks(mix=lambda x0, n, at: at.sigma * x0 + at.alpha * n), "swapped"),
        (walks(mix=lambda x0, n, at: x0), "as it is"),
        (walks(last=3), "last of the times"),
        (walks(mix=lambda x0, n, at: at.alpha * x0), "called at the timesteps"),
        (wasteful, "5 times"),
        (in_place, "themselves"),
        (None, "no answer"),
    ],
)
def test_wrong_samplers(answer, sentence):
    verdict = checks.multistep(answer)
    assert not verdict.passed
    assert sentence in verdict.message


# -------------------------------------------------------------------- exercise 3


def interval(logs, quantile=None, n=None, spread=None):
    n = n or len(logs)
    quantile = quantile or stats.t.ppf(0.975, len(logs) - 1)
    half = quantile * (logs.std() if spread is None else spread) / n**0.5
    mean = logs.mean()
    return mean.exp(), (mean - half).exp(), (mean + half).exp()


def with_torch(a, b):
    return interval((a / b).log())


def with_scipy(a, b):
    logs = (a.log() - b.log()).numpy()
    low, high = stats.t.interval(0.95, len(a) - 1, loc=logs.mean(), scale=stats.sem(logs))
    return [float(stats.gmean((a / b).numpy())), math.exp(low), math.exp(high)]


@pytest.mark.parametrize("answer", [with_torch, with_scipy])
def test_right_ratios(answer):
    assert checks.paired_ratio(answer).passed


def not_symmetric(a, b):
    logs = (a / b).log()
    half = stats.t.ppf(0.975, len(a) - 1) * logs.std() / len(a) ** 0.5
    return logs.mean().exp(), logs.mean().exp() - half, logs.mean().exp() + half


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda a, b: ((a / b).mean(), 0, 9), "arithmetic mean"),
        (lambda a, b: (a.mean() / b.mean(), 0, 9), "ratio of the means"),
        (lambda a, b: with_torch(b, a), "upside down"),
        (lambda a, b: ((a / b).log().mean(), -9, 9), "go back with exp"),
        (lambda a, b: ((a / b).median(), 0, 9), "median"),
        (lambda a, b: (0.1234, 0, 9), "exp of the mean"),
        (lambda a, b: interval((a / b).log(), n=1), "single seed"),
        (lambda a, b: interval((a / b).log(), n=len(a) ** 2), "not by n"),
        (lambda a, b: interval((a / b).log(), spread=(a / b).log().std(correction=0)), "n - 1"),
        (lambda a, b: interval((a / b).log(), quantile=1.96), "1.96"),
        (lambda a, b: interval((a / b).log(), quantile=stats.norm.ppf(0.975)), "1.96"),
        (lambda a, b: interval((a / b).log(), stats.t.ppf(0.95, len(a) - 1)), "2.5 on each"),
        (lambda a, b: interval((a / b).log(), stats.t.ppf(0.975, len(a))), "degrees of freedom"),
        (
            lambda a, b: interval(
                (a / b).log(), spread=(a.log().var() + b.log().var()).sqrt()
            ),
            "unpaired",
        ),
        (lambda a, b: interval((a / b).log(), quantile=1.0), "one standard error"),
        (not_symmetric, "not symmetric"),
        (lambda a, b: with_torch(a, b)[:2], "three numbers"),
        (lambda a, b: (with_torch(a, b)[0], 5.0, 9.0), "between"),
        (lambda a, b: (with_torch(a, b)[0], 0.0, 9.0), "interval is not"),
        (lambda a, b: ..., "no answer"),
    ],
)  # fmt: skip
def test_wrong_ratios(answer, sentence):
    verdict = checks.paired_ratio(answer)
    assert not verdict.passed
    assert sentence in verdict.message

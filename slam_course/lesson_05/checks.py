"""Checks of lesson 05: SLAM's loss, multistep sampling, and a paired ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from scipy import stats
from torch import Tensor, nn

from slam_course.checks import (
    call,
    compare,
    exercise,
    number,
    refuse_numbers,
    require,
    require_function,
)
from slam_edu.prediction import add_noise
from slam_edu.schedule import Level, NoiseSchedule

_CLOSE = {"rtol": 1e-5, "atol": 1e-7}


class _Consistency(nn.Module):
    """A consistency function of two numbers, which depends on its input and its level."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))

    def forward(self, x: Tensor, level: Level) -> Tensor:
        return self.a * x * level.alpha[:, None] + self.b * level.sigma[:, None]


@exercise("Exercise 1, SLAM's loss")
def loss(answer: Callable[..., Tensor]) -> str:
    """``answer(student, target, x_t, x_s, x_gamma, level_t, level_s, level_gamma) -> loss``.

    ``student`` and ``target`` are consistency functions ``f(x, level)`` of shape ``(B, 2)``.
    """
    generator = torch.Generator().manual_seed(51)
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    t = torch.tensor([999, 819, 599, 399, 199])
    level_t, level_s = schedule(t), schedule(t - 20)
    gamma = torch.rand(5, generator=generator, dtype=torch.float64)
    sigma = gamma * level_t.sigma + (1 - gamma) * level_t.alpha / level_s.alpha * level_s.sigma
    level_gamma = Level(level_t.alpha, sigma)
    x_t, x_s, x_gamma = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    student, target = _Consistency(0.7, 0.3), _Consistency(0.9, -0.2)
    value = call(
        answer, (), student=student, target=target, x_t=x_t, x_s=x_s, x_gamma=x_gamma,
        level_t=level_t, level_s=level_s, level_gamma=level_gamma,
    )  # fmt: skip

    def of(f: _Consistency, x: Tensor, level: Level) -> Tensor:
        return f(x, level).detach()

    y, p = of(target, x_s, level_s), of(student, x_gamma, level_gamma)

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean()

    mistakes = (
        (squared(of(student, x_t, level_t), y), "The student is called at x_t: that is "
         "consistency distillation. SLAM calls it on the chord, at x_gamma."),
        (squared(of(student, x_gamma, level_t), y), "The student is at x_gamma, but told the "
         "level of x_t. x_gamma has a level of its own."),
        (squared(p, of(student, x_s, level_s)), "The target comes from the student. It should "
         "come from the other network, which changes slowly."),
        (squared(p, of(target, x_s, level_t)), "The target is at x_s, but told the level of x_t."),
        (squared(p, of(target, x_t, level_t)), "The target is taken at x_t. The teacher's hop "
         "went to x_s, and it is from there that the target says where the path ends."),
        (squared(p, of(target, x_gamma, level_gamma)), "The target is taken at x_gamma, where the "
         "student is: the two would agree about nothing new. Take it where the hop ended."),
        (squared(p, x_s), "x_s itself is the target; it is on the way, not at the end. Ask the "
         "target network where the path from x_s ends."),
        (squared(of(target, x_gamma, level_gamma), of(student, x_s, level_s)), "The two networks "
         "are in each other's place: the one that learns goes to the chord."),
        ((p - y).square().sum(), "The squares are added; take their mean, so that the loss does "
         "not grow with the batch."),
        ((p - y).square().sum(dim=1).mean(), "The squares are added over the two coordinates; the "
         "loss of this course is the mean over all elements."),
        ((p - y).abs().mean(), "This is the mean of absolute differences; square them."),
        ((p - y).square().mean().sqrt(), "One square root too many: the loss is the mean square."),
    )  # fmt: skip
    compare(
        value,
        squared(p, y),
        mistakes,
        "The value is wrong. Three lines are enough: where the path ends for the target, from "
        "x_s; where it ends for the student, from x_gamma; the mean square of the difference.",
        **_CLOSE,
    )
    require(
        value.requires_grad,
        "The value is right, but no gradient reaches the student: something on its way is inside "
        "`torch.no_grad()` or detached.",
    )
    value.backward()
    require(
        student.a.grad is not None and bool(student.a.grad.abs() > 0),
        "The value is right, but no gradient reaches the student.",
    )
    require(
        target.a.grad is None,
        "The value is right, but the gradient flows into the target network too. The target is "
        "held fixed: compute it under `torch.no_grad()`, or detach it.",
    )
    return "The student on the chord, the target at its clean end, the gradient to one of them."


# -------------------------------------------------------------------- exercise 2


class _Function:
    """``f(x, t) -> x0`` that remembers at which timesteps it was called."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule, self.times = schedule, []

    def __call__(self, x: Tensor, t: int) -> Tensor:
        self.times.append(int(t))
        return torch.tanh(x) + 0.3 * self.schedule(int(t)).sigma


@exercise("Exercise 2, multistep sampling")
def multistep(answer: Callable[..., Tensor]) -> str:
    """``answer(f, x, schedule, times, noises) -> samples``; see the lesson."""
    generator = torch.Generator().manual_seed(52)
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    times = [999, 759, 499, 259]
    x = torch.randn(16, 2, generator=generator, dtype=torch.float64)
    noises = list(torch.randn(3, 16, 2, generator=generator, dtype=torch.float64))
    f = _Function(schedule)
    fresh = [noise.clone() for noise in noises]
    got = call(answer, (16, 2), f=f, x=x, schedule=schedule, times=[*times], noises=[*noises])
    asked = list(f.times)
    require(
        all(map(torch.equal, noises, fresh)),
        "Your function changes the noises themselves; make new tensors.",
    )

    def walk(
        levels: Callable[[int], Level] = lambda i: schedule(times[i]),
        noise: Callable[[int], Tensor] = lambda i: noises[i - 1],
        base: Callable[[Tensor, Tensor], Tensor] = lambda x0, x: x0,
        steps: int = 4,
        renoise: Callable[[Tensor, Tensor, Level], Tensor] = add_noise,
    ) -> Tensor:
        here, x0 = x, f(x, times[0])
        for i in range(1, steps):
            here = renoise(base(x0, here), noise(i), levels(i))
            x0 = f(here, times[i])
        return x0

    def ddim() -> Tensor:
        here = x
        for i in range(4):
            x0 = f(here, times[i])
            if i < 3:
                level, after = schedule(times[i]), schedule(times[i + 1])
                here = after.alpha * x0 + after.sigma * (here - level.alpha * x0) / level.sigma
        return x0

    def added_at_the_end() -> Tensor:
        here = x
        for i in range(4):
            x0 = f(here, times[i])
            here = add_noise(x0, noises[min(i, 2)], schedule(times[min(i + 1, 3)]))
        return here

    mistakes = (
        (walk(steps=1), "One step was taken and returned; go on through all the times."),
        (walk(levels=lambda i: schedule(times[i - 1])), "The clean guess is noised back to the "
         "level it came from. Go to the next, cleaner one."),
        (walk(noise=lambda i: noises[0]), "The first fresh noise is used every time; each return "
         "takes one of its own."),
        (walk(base=lambda x0, here: here), "What is noised again is x, which is noisy already. "
         "Start from the clean guess."),
        (ddim(), "This goes on with the noise that is in x: it is DDIM. Here the noise is fresh."),
        (added_at_the_end(), "The result has noise in it: after the last jump stop, and return "
         "the clean guess."),
        (walk(renoise=lambda x0, n, level: x0 + level.sigma * n), "alpha is missing where the "
         "clean guess is noised: x = alpha x0 + sigma noise."),
        (walk(renoise=lambda x0, n, level: level.sigma * x0 + level.alpha * n), "alpha and sigma "
         "are swapped where the clean guess is noised."),
        (walk(renoise=lambda x0, n, level: x0), "The clean guess is passed on as it is. f at "
         "timestep t expects a point at that noise level."),
        (walk(steps=3), "The last of the times is not used."),
    )  # fmt: skip
    compare(
        got,
        walk(),
        mistakes,
        f"The shape fits, the values do not. f was called at the timesteps {asked}; it should be "
        f"{times}. Print x after each return: its standard deviation should follow the level's.",
        **_CLOSE,
    )
    require(
        len(asked) == len(times),
        f"The values are right, but f was evaluated {len(asked)} times; {len(times)} are enough.",
    )
    return "Jump to the end, step back to a cleaner level with fresh noise, jump again."


# -------------------------------------------------------------------- exercise 3


@exercise("Exercise 3, a paired ratio")
def paired_ratio(answer: Callable[..., Sequence[float]]) -> str:
    """``answer(a, b) -> (ratio, low, high)`` for two tensors of shape ``(n,)``, one per seed."""
    require_function(answer)
    generator = torch.Generator().manual_seed(53)
    n = 6
    b = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
    a = b * torch.exp(0.25 * torch.randn(n, generator=generator, dtype=torch.float64) - 0.2)
    before = a.clone(), b.clone()
    got = answer(a, b)
    if got is ... or got is None:
        raise NotImplementedError
    require(
        isinstance(got, (tuple, list)) and len(got) == 3,
        "Return three numbers: the ratio, and the lower and the upper end of its interval.",
    )
    ratio, low, high = map(number, got)
    require(
        torch.equal(a, before[0]) and torch.equal(b, before[1]),
        "Your function changes a or b itself; make new tensors.",
    )
    logs = (a / b).log()
    mean, spread = logs.mean().item(), logs.std().item()
    quantile = float(stats.t.ppf(0.975, n - 1))

    def near(x: float, y: float) -> bool:
        return math.isclose(x, y, rel_tol=1e-4)

    mistakes = (
        ((a / b).mean().item(), "This is the arithmetic mean of the ratios, by which a could be "
         "worse than b and b worse than a at once. Average the logarithms."),
        ((a.mean() / b.mean()).item(), "This is the ratio of the means: it forgets which a "
         "belongs to which b. Take the ratio of each seed first."),
        (math.exp(-mean), "The ratio is upside down: it is b over a."),
        (mean, "This is the mean of the logarithms; go back with exp."),
        ((a / b).median().item(), "This is a median; take the geometric mean."),
    )  # fmt: skip
    refuse_numbers(ratio, mistakes, rtol=1e-4)
    require(near(ratio, math.exp(mean)), "The ratio is wrong: exp of the mean of log(a / b).")
    require(low < ratio < high, "The ratio should lie between the two ends of its interval.")
    biased = logs.std(correction=0).item()
    unpaired = math.hypot(a.log().std().item(), b.log().std().item())
    normal = (
        "1.96 is right for very many seeds. With few, the standard deviation is itself uncertain: "
        "take Student's t with n - 1 degrees of freedom."
    )
    halves = (
        (quantile * spread, "The interval is that of a single seed. The mean of n seeds is surer, "
         "by the square root of n."),
        (quantile * spread / n, "Divide by the square root of n, not by n."),
        (quantile * biased / n**0.5, "The standard deviation divides by n; for a sample of n "
         "seeds divide by n - 1."),
        (1.959964 * spread / n**0.5, normal),
        (1.96 * spread / n**0.5, normal),
        (float(stats.t.ppf(0.95, n - 1)) * spread / n**0.5, "5 per cent are left out on each "
         "side; for 95 per cent in all it is 2.5 on each, the quantile .975."),
        (float(stats.t.ppf(0.975, n)) * spread / n**0.5, "With n seeds there are n - 1 degrees "
         "of freedom."),
        (quantile * unpaired / n**0.5, "The spread is that of unpaired runs. What the seeds "
         "share cancels in log(a / b); take the standard deviation of that."),
        (spread / n**0.5, "This is one standard error; for 95 per cent multiply it by Student's "
         "t."),
    )  # fmt: skip
    refuse_numbers(math.log(high) - mean, halves, rtol=1e-4)
    half = quantile * spread / n**0.5
    require(
        not near(high - ratio, half),
        "The ends are ratio plus and minus the half-width. Add it to the mean of the logarithms, "
        "then go back with exp: an interval of a ratio is not symmetric.",
    )
    require(
        near(high, math.exp(mean + half)) and near(low, math.exp(mean - half)),
        "The ratio is right, the interval is not. Its half-width, on the scale of logarithms, is "
        "the .975 quantile of Student's t (n - 1 degrees of freedom) times one standard error.",
    )
    return "Paired, on the scale of logarithms, and honest about few seeds."

"""Checks of lesson 05: SLAM's loss, multistep sampling, and a paired ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from slam_course.checks import (
    Asked,
    exercise,
    hold,
    known_mistakes,
    listed,
    number,
    refuse_numbers,
    require,
    worked_out,
)
from slam_edu.prediction import add_noise
from slam_edu.schedule import Level, NoiseSchedule, expand
from slam_edu.subpath import sub_level

KNOWN = known_mistakes(__file__)


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
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    student, target = _Consistency(0.7, 0.3), _Consistency(0.9, -0.2)
    parameters = {"student": [student.a, student.b], "target": [target.a, target.b]}

    def at(*times: int) -> dict[str, Any]:
        generator, t = torch.Generator().manual_seed(51), torch.tensor(times)
        ends = level_t, level_s = schedule(t), schedule(t - 20)
        gamma = torch.rand(len(t), generator=generator, dtype=torch.float64)
        points = torch.randn(3, len(t), 2, generator=generator, dtype=torch.float64)
        levels = (*ends, sub_level(level_t, level_s, gamma, "linear"))
        names = [f"{kind}_{end}" for kind in ("x", "level") for end in ("t", "s", "gamma")]
        found = dict(zip(names, (*points, *levels), strict=True))
        # Functions, as in the lesson: a network could be switched to what a function cannot.
        return {"student": Asked(student.forward), "target": Asked(target.forward), **found}

    def right(
        student: Asked, target: Asked, x_t: Tensor, x_s: Tensor, x_gamma: Tensor,
        level_t: Level, level_s: Level, level_gamma: Level,
    ) -> Tensor:  # fmt: skip
        return squared(student(x_gamma, level_gamma), of(target, x_s, level_s))

    def of(f: Callable[..., Tensor], x: Tensor, level: Level) -> Tensor:
        return f(x, level).detach()

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean()

    inputs = at(999, 819, 599, 399, 199)
    y = of(target, inputs["x_s"], inputs["level_s"])
    p = of(student, inputs["x_gamma"], inputs["level_gamma"])
    hold(
        answer, right, inputs,
        worked_out(KNOWN["loss"], **inputs, of=of, squared=squared, y=y, p=p),
        "The value is wrong. Three lines are enough: where the path ends for the target, from "
        "x_s; where it ends for the student, from x_gamma; the mean square of the difference.",
        gradient=parameters, atol=1e-7,
    )  # fmt: skip
    otherwise = "Right for a batch of 5, wrong for one of 82: take the mean over all elements."
    hold(answer, right, at(*range(99, 999, 11)), (), otherwise, gradient=parameters, atol=1e-7)
    return "The student on the chord, the target at its clean end, the gradient to one of them."


# -------------------------------------------------------------------- exercise 2


@exercise("Exercise 2, multistep sampling")
def multistep(answer: Callable[..., Tensor]) -> str:
    """``answer(f, x, schedule, times, noises) -> samples``; see the lesson."""

    def right(
        f: Callable[..., Tensor], x: Tensor, schedule: NoiseSchedule, times: list[int],
        noises: list[Tensor],
    ) -> Tensor:  # fmt: skip
        x0 = f(x, times[0])
        for t, noise in zip(times[1:], noises, strict=True):
            x0 = f(add_noise(x0, noise, schedule(t)), t)
        return x0

    def at(schedule: NoiseSchedule, times: list[int], count: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(52)
        x, *noises = torch.randn(len(times), count, 2, generator=generator, dtype=torch.float64)
        f = Asked(lambda x, t: torch.tanh(x) + 0.3 * expand(schedule(t).sigma, x))
        return {"f": f, "x": x, "schedule": schedule, "times": times, "noises": noises}

    usual = NoiseSchedule.stable_diffusion(torch.float64)
    inputs = at(usual, [999, 759, 499, 259], 16)
    f, x, schedule, times, noises = inputs.values()

    def walk(
        levels: Callable[[int], Level] = lambda i: schedule(times[i]),
        noise: Callable[..., Tensor] = lambda i, x0, here: noises[i - 1],
        base: Callable[[Tensor, Tensor], Tensor] = lambda x0, here: x0,
        steps: int = 4,
        renoise: Callable[[Tensor, Tensor, Level], Tensor] = add_noise,
    ) -> Tensor:
        """The right samples, or with one thing wrong."""
        here, x0 = x, f(x, times[0])
        for i in range(1, steps):
            here = renoise(base(x0, here), noise(i, x0, here), levels(i))
            x0 = f(here, times[i])
        return x0

    def called() -> str:
        """Where f was called, if that is wrong, and where to look."""
        asked = [int(torch.as_tensor(call["t"]).max()) for call in f.calls]
        met = f"f was called at {asked}; the times are {times}. " if asked != times else ""
        return (
            f"The shape fits, the values do not. {met}Print x after each return: its standard "
            f"deviation should follow the level's."
        )

    known = {"walk": walk, "add_noise": add_noise}
    known |= {"schedule": schedule, "times": times, "noises": noises}
    # A sampler may be under no_grad.
    hold(answer, right, inputs, worked_out(KNOWN["multistep"], **known), called, gradient=())
    other = NoiseSchedule.from_alphas_cumprod(torch.linspace(0.999, 0.02, 1000), torch.float64)
    for schedule, times in ((other, [999, 599, 99]), (usual, [999])):
        otherwise = f"Right for four times, wrong for {len(times)} with a schedule of their own."
        hold(answer, right, at(schedule, times, 5), (), otherwise, gradient=())
    return "Jump to the end, step back to a cleaner level with fresh noise, jump again."


# -------------------------------------------------------------------- exercise 3


@exercise("Exercise 3, a paired ratio")
def paired_ratio(answer: Callable[..., Sequence[float]]) -> str:
    """``answer(a, b) -> (ratio, low, high)`` for two tensors of shape ``(n,)``, one per seed."""
    for n in (6, 4, 12):
        _one_ratio(answer, n)
    return "Paired, on the scale of logarithms, and honest about few seeds."


def _one_ratio(answer: Callable[..., Sequence[float]], n: int) -> None:
    generator = torch.Generator().manual_seed(53)
    b = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
    a = b * torch.exp(0.25 * torch.randn(n, generator=generator, dtype=torch.float64) - 0.2)
    sentence = "Return three numbers: the ratio, and the lower and the upper end of its interval."
    ratio, low, high = map(number, listed(answer(a, b), sentence, 3))
    logs = (a / b).log()
    mean, spread = logs.mean().item(), logs.std().item()
    quantile = float(stats.t.ppf(0.975, n - 1))

    def near(x: float, y: float) -> bool:
        return math.isclose(x, y, rel_tol=1e-4)

    refuse_numbers(ratio, worked_out(KNOWN["ratio"], a=a, b=b, mean=mean, math=math), rtol=1e-4)
    order = (
        "These are the right numbers in another order: the ratio, then the lower and upper end."
    )
    require(near(ratio, math.exp(mean)) or not near(low, math.exp(mean)), order)
    require(near(ratio, math.exp(mean)), "The ratio is wrong: exp of the mean of log(a / b).")
    require(low < high, "The lower end of the interval is not below the upper one.")
    require(low < ratio < high, "The ratio should lie between the two ends of its interval.")
    known = worked_out(
        KNOWN["interval"], n=n, spread=spread, quantile=quantile, t=stats.t.ppf,
        biased=logs.std(correction=0).item(),
        unpaired=math.hypot(a.log().std().item(), b.log().std().item()),
    )  # fmt: skip
    refuse_numbers(math.log(high) - mean, known, rtol=1e-4)
    half = quantile * spread / n**0.5
    require(
        not near(high - ratio, half) and not near(high, ratio * (1 + half)),
        "The ends are as far above the ratio as below it. Add the half-width to the mean of the "
        "logarithms, then go back with exp: an interval of a ratio is not symmetric.",
    )
    require(
        near(high, math.exp(mean + half)) and near(low, math.exp(mean - half)),
        "The ratio is right, the interval is not. Its half-width, on the scale of logarithms, is "
        "the .975 quantile of Student's t (n - 1 degrees of freedom) times one standard error.",
    )

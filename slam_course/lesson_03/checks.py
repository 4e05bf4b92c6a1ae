"""Checks of lesson 03: the consistency function, its target, the moving average, a diagnosis."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from slam_course.checks import call, compare, exercise, require, require_function
from slam_edu.consistency import boundary_scalings
from slam_edu.schedule import Level, NoiseSchedule

_COUNT = 60


@exercise("Exercise 1, the consistency function")
def consistency(answer: Callable[[Tensor, Tensor, Tensor, Level], Tensor]) -> str:
    """``answer(x, v, t, level) -> f`` of shape ``(B, 2)``; t and the level of shape ``(B, 1)``."""
    generator = torch.Generator().manual_seed(31)
    x = torch.randn(_COUNT, 2, generator=generator)
    v = torch.randn(_COUNT, 2, generator=generator)
    # Most of them where the two scalings change: below the first timestep.
    t = torch.tensor([0.0, 0.01, 0.03, 0.05, 0.1, 0.3, 1.0, 19.0, 500.0, 999.0])
    t = t.repeat(_COUNT // 10)[:, None]
    level = NoiseSchedule.stable_diffusion()(t)
    f = call(answer, (_COUNT, 2), x=x, v=v, t=t, level=level)
    x0 = level.alpha * x - level.sigma * v
    eps = level.alpha * v + level.sigma * x
    skip, out = boundary_scalings(t)
    tau = 10 * t
    total = tau**2 + 0.25
    bare = boundary_scalings(t, timestep_scaling=1.0)
    mistakes = (
        (x0, "This is the network's clean sample alone. At t = 0 the answer has to be x, whatever "
         "the network says: weigh the two with c_skip and c_out."),
        (x, "This is x again, at every t. That is right at t = 0 alone."),
        (out * x + skip * x0, "c_skip and c_out are swapped: at t = 0 your function returns what "
         "the network says, and at t = 999 it returns x."),
        (skip * x + out * v, "The network's raw output v is weighed. First read the clean sample "
         "from it: the v-row of lesson 01's table."),
        (skip * x + out * eps, "This weighs the noise that the network predicts. The clean sample "
         "is in the other column of lesson 01's table."),
        (skip * x + out * (level.alpha * x + level.sigma * v), "The clean sample adds sigma v; in "
         "lesson 01's table it is subtracted."),
        (skip * x + out * (x - level.sigma * v) / level.alpha, "The clean sample is read as if "
         "the output were the noise; this network returns v."),
        (bare[0] * x + bare[1] * x0, "t is used where tau = 10 t belongs, in both scalings."),
        (skip.sqrt() * x + out * x0, "c_skip has a square root that belongs to c_out alone."),
        (skip * x + out**2 * x0, "Your c_out is 1 - c_skip, tau^2 over the sum. The two do not "
         "add up to 1: its numerator is tau, its denominator the sum's square root."),
        (skip * x + tau / total * x0, "The square root in c_out's denominator is missing."),
        (0.5 / (tau**2 + 0.5) * x + tau / (tau**2 + 0.5).sqrt() * x0, "sigma_data is 0.5 in your "
         "formulas where its square belongs."),
        (skip * x, "The network's part is missing: c_out times the clean sample."),
        (out * x0, "The part of x is missing: c_skip times x."),
    )  # fmt: skip
    compare(
        f,
        skip * x + out * x0,
        mistakes,
        "The shape fits, the values do not. Test the ends first: at t = 0 your function must "
        "return x, at t = 999 the clean sample.",
    )
    return "It is x at t = 0, and the network's clean sample everywhere else."


class _Probe(nn.Module):
    """A smooth network with one parameter, so that a gradient that flows can be seen."""

    def __init__(self, phase: float) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.tensor(phase))

    def forward(self, x: Tensor, t: Tensor, cond: None = None, gamma: None = None) -> Tensor:
        t = torch.as_tensor(t).to(x.dtype).expand(len(x))[:, None]
        return torch.sin(x.flip(1) + self.phase + t / 150) + 0.3 * torch.cos(t / 70) * x


@exercise("Exercise 2, the target")
def target(answer: Callable[..., Tensor]) -> str:
    """``answer(x_t, t, s, teacher, student, target) -> y`` of shape ``(B, 2)``."""
    schedule = NoiseSchedule.stable_diffusion()
    x_t = torch.randn(_COUNT, 2, generator=torch.Generator().manual_seed(32))
    t, s = schedule.subpaths(10).ends(torch.arange(_COUNT) % 10)
    teacher, student, average = _Probe(0.3), _Probe(2.0), _Probe(1.2)
    y = call(
        answer, (_COUNT, 2), x_t=x_t, t=t, s=s, teacher=teacher, student=student, target=average
    )
    require(
        torch.equal(y, answer(x_t, t, s, teacher, student, average)),
        "Two calls with the same x_t gave two answers, so you draw fresh noise. DDIM draws none.",
    )

    def predicted(network: nn.Module, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        level, v = schedule(time[:, None]), network(x, time)
        return level.alpha * x - level.sigma * v, level.alpha * v + level.sigma * x

    def f(network: nn.Module, x: Tensor, time: Tensor) -> Tensor:
        skip, out = boundary_scalings(time[:, None])
        return skip * x + out * predicted(network, x, time)[0]

    def hop(x: Tensor, eps: Tensor, first: Level, last: Level) -> Tensor:
        return last.alpha * (x - first.sigma * eps) / first.alpha + last.sigma * eps

    with torch.no_grad():
        noisy, clean = schedule(t[:, None]), schedule(s[:, None])
        eps = teacher(x_t, t)
        x0 = (x_t - noisy.sigma * eps) / noisy.alpha
        x_s = hop(x_t, eps, noisy, clean)
        right = f(average, x_s, s)
        mistakes = (
            (x_s, "This is x_s, where the teacher's hop ends. One thing is left: ask the target "
             "network where the path from there ends."),
            (x0, "This is the teacher's own guess of the clean sample, in one long hop. The "
             "teacher is asked for a short one, to s."),
            (f(student, x_s, s), "The student is asked at s. It would chase itself: ask the "
             "target, its moving average."),
            (f(student, x_t, t), "This is the student's prediction, which is to be compared with "
             "the target. The target takes the teacher's hop first."),
            (f(average, x_t, t), "No hop was taken: this is the target network at x_t and t."),
            (f(average, x_s, t), "The target network is asked at the right point with the wrong "
             "timestep: after the hop you are at s."),
            (f(average, x_t, s), "The target network is asked at s, but at the point x_t, which "
             "has the noise of t. Give it the end of the hop."),
            (average(x_s, s), "This is the target network's raw output v. Call f, which reads "
             "the clean sample from it."),
            (predicted(average, x_s, s)[0], "The boundary scalings are missing: in the lowest "
             "hop, where s = 0, the target must be x_s itself. Call f."),
            (f(average, hop(x_t, eps, clean, noisy), s), "The two levels are swapped in the hop: "
             "x_t is at t."),
            (f(average, hop(x_t, teacher(x_t, s), noisy, clean), s), "The teacher is asked about "
             "x_t with the timestep s. x_t is at t."),
            (f(average, clean.alpha * x0 + noisy.sigma * eps, s), "The end of the hop has "
             "sigma_t; both of its coefficients are level s's."),
            (f(average, hop(x_t, predicted(average, x_t, t)[1], noisy, clean), s), "The hop "
             "follows the target network's slope. The slope is the teacher's."),
            (f(teacher, x_s, s), "The teacher is asked at s for the end of the path, of which it "
             "knows the slope alone. Ask the target network."),
        )  # fmt: skip
    compare(
        y,
        right,
        mistakes,
        "The shape fits, the values do not. Print x_s first: at s = 0 it must be the target.",
    )
    require(
        not y.requires_grad,
        "The values are right, but gradient flows into the target: its training would pull it "
        "towards the prediction. Compute it without gradient.",
    )
    return "One hop of the teacher, then what the average says about the rest, as a fixed number."


@exercise("Exercise 3, the moving average")
def average(answer: Callable[[nn.Module, nn.Module, float], object]) -> str:
    """``answer(target, student, rate)`` changes the target's parameters in place."""
    require_function(answer)
    for rate in (0.9, 0.6):
        _one_average(answer, rate)
    return "The target keeps its share and takes the rest from the student, in place."


def _one_average(answer: Callable[[nn.Module, nn.Module, float], object], r: float) -> None:
    generator = torch.Generator().manual_seed(33)
    student = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    target = copy.deepcopy(student).requires_grad_(False)
    with torch.no_grad():
        for parameter in (*student.parameters(), *target.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    ours = list(target.parameters())
    new = [p.detach().clone() for p in student.parameters()]
    old = [p.clone() for p in ours]
    if answer(target, student, r) is ...:
        raise NotImplementedError
    now, kept = list(target.parameters()), list(student.parameters())
    require(
        all(a is b for a, b in zip(now, ours, strict=True)),
        "The target has new parameters now. Write the values into those it has, in place.",
    )
    require(
        not any(p.requires_grad for p in now),
        "The target's parameters have become part of a gradient graph, which grows with every "
        "update. Average under `torch.no_grad()`.",
    )
    require(
        all(torch.equal(a, b) for a, b in zip(kept, new, strict=True)),
        "The student has changed. Only the target moves; the optimiser moves the student.",
    )
    require(
        not any(a.data_ptr() == b.data_ptr() for a, b in zip(now, kept, strict=True)),
        "Target and student now share their memory: whatever happens to one, happens to both. "
        "Write values, do not assign tensors.",
    )
    moved = sum(not torch.equal(a, b) for a, b in zip(now, old, strict=True))
    require(
        moved > 0,
        "The target is as it was before. If your function computes a new tensor, write it into "
        "the parameter: `p = ...` only renames.",
    )
    require(
        moved == len(now),
        f"{moved} of {len(now)} parameters have moved. Weights and biases of all layers belong "
        f"to the average.",
    )
    a, b = (torch.cat([p.reshape(-1) for p in parameters]) for parameters in (old, new))
    mistakes = [
        (r * b + (1 - r) * a, "The wrong way round: the target keeps the share `rate` of itself "
         "and takes the rest from the student."),
        (b, "The target is a copy of the student: that is the rate 0."),
        (r * (r * a + (1 - r) * b), "The rate is used twice: the sum is multiplied by it once "
         "more."),
        (r * a + r * (1 - r) * b, "The rate is used twice: the student's part is (1 - rate) "
         "alone."),
        (r * a + b, "The student's part is not scaled; the two shares must add up to 1."),
        (a + (1 - r) * b, "The target's part is not scaled; the two shares must add up to 1."),
        (r * a, "The target shrinks, and the student is nowhere in it."),
        (a - (1 - r) * (b - a), "The target moves away from the student. Check the sign."),
        ((a + b) / 2, "This is the plain mean; the target keeps the share `rate`."),
    ]  # fmt: skip
    mistakes += [
        (other * a + (1 - other) * b, f"{other} is used whatever the argument `rate` says.")
        for other in (0.9, 0.95, 0.99)
        if other != r
    ]
    compare(
        torch.cat([p.detach().reshape(-1) for p in now]),
        r * a + (1 - r) * b,
        mistakes,
        "The target has moved, to wrong values. Try the rates 1 and 0 in your mind: 1 must keep "
        "the target, 0 must copy the student.",
    )


# Which mistake each of the clinic's runs has.
_RUNS = {
    "A": "EMA rate too close to 1", "B": "no stop-gradient", "C": "EMA rate 0",
    "D": "learning rate too high",
}  # fmt: skip
# What each mistake leaves behind.
_LEAVES = {
    "learning rate too high": "it spoils the network at once, so that the error rises in the "
    "first updates at every t, and recovers as the rate falls",
    "EMA rate 0": "the target jumps with every update, so loss and gradient rise by powers of "
    "ten and stay high for long",
    "EMA rate too close to 1": "the target hardly moves, so all curves are calm and knowledge "
    "climbs a few hops only",
    "no stop-gradient": "no front climbs: the errors of all t fall together within a few "
    "updates, and the gradient is far smaller than the healthy run's",
}


CAUSES = tuple(_LEAVES)


def patients() -> dict[str, str]:
    """Which mistake each of the clinic's runs has: not to be printed before the exercise."""
    return dict(_RUNS)


@exercise("Exercise 4, the clinic")
def diagnosis(answer: Mapping[str, str]) -> str:
    """``{"A": cause, ...}``, the causes from :data:`CAUSES`."""
    require(
        isinstance(answer, Mapping),
        f"The check was given a {type(answer).__name__}; give it a dictionary from the letter of "
        f"a run to a cause.",
    )
    if any(cause is ... or cause is None for cause in answer.values()):
        raise NotImplementedError
    require(
        set(answer) == set(_RUNS),
        f"Your dictionary has the runs {', '.join(map(repr, answer))}; it should have A, B, C "
        f"and D.",
    )
    for run, cause in answer.items():
        require(
            cause in CAUSES,
            f"Run {run} has the cause {cause!r}; the four causes are {', '.join(CAUSES)}.",
        )
    for run, cause in sorted(answer.items()):
        require(
            cause == _RUNS[run],
            f"Run {run} is not {cause!r}. With {cause!r}, {_LEAVES[cause]}. Look for that.",
        )
    return "All four, and two of them have a loss no larger than the healthy run's."

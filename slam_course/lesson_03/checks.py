"""Checks of lesson 03: the consistency function, its target, the moving average, a diagnosis."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from slam_course.checks import (
    NO_ANSWER,
    Asked,
    exercise,
    hold,
    known_mistakes,
    refuse,
    require,
    require_close,
    worked_out,
)
from slam_edu.consistency import boundary_scalings
from slam_edu.schedule import Level, NoiseSchedule

KNOWN = known_mistakes(__file__)
_COUNT = 60


@exercise("Exercise 1, the consistency function")
def consistency(answer: Callable[[Tensor, Tensor, Tensor, Level], Tensor]) -> str:
    """``answer(x, v, t, level) -> f`` of shape ``(B, 2)``; t and the level of shape ``(B, 1)``."""
    generator = torch.Generator().manual_seed(31)
    x, v = torch.randn(2, _COUNT, 2, generator=generator, dtype=torch.float64)
    # Most of them where the two scalings change: below the first timestep.
    t = torch.tensor([0.05, 0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 19.0, 500.0, 999.0]).double()
    schedule, t = NoiseSchedule.stable_diffusion(torch.float64), t.repeat(_COUNT // 10)[:, None]

    def right(x: Tensor, v: Tensor, t: Tensor, level: Level) -> Tensor:
        skip, out = boundary_scalings(t.to(x.dtype))
        return skip * x + out * (level.alpha * x - level.sigma * v)

    level = schedule(t)
    x0, eps = level.alpha * x - level.sigma * v, level.alpha * v + level.sigma * x
    (skip, out), tau = boundary_scalings(t), 10 * t
    total, bare = tau**2 + 0.25, boundary_scalings(t, timestep_scaling=1.0)
    inputs = {"x": x, "v": v, "t": t, "level": level}
    hold(
        answer, right, inputs, worked_out(KNOWN["consistency"], **locals()),
        "The shape fits, the values do not. Test the ends first: at t = 0 your function must "
        "return x, at t = 999 the clean sample.",
        gradient=("x", "v"),
    )  # fmt: skip
    x, v, t = (
        x[:50],
        v[:50],
        t[:50].round().long(),
    )  # and all in float32, as the lesson's sub-paths have them
    inputs = {"x": x.float(), "v": v.float(), "t": t, "level": NoiseSchedule.stable_diffusion()(t)}
    hold(
        answer, right, inputs,
        otherwise="Right where t is real, wrong where it is whole: the lesson's t are integers.",
        gradient=("x", "v"),
    )  # fmt: skip
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
    teacher, student, average = _Probe(0.3), _Probe(2.0), _Probe(1.2)
    networks = {"teacher": teacher, "student": student, "target": average}
    gradient = {name: list(network.parameters()) for name, network in networks.items()}

    def predicted(network: nn.Module, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        level, v = schedule(time[:, None]), network(x, time)
        return level.alpha * x - level.sigma * v, level.alpha * v + level.sigma * x

    def f(network: nn.Module, x: Tensor, time: Tensor) -> Tensor:
        skip, out = boundary_scalings(time[:, None])
        return skip * x + out * predicted(network, x, time)[0]

    def hop(x: Tensor, eps: Tensor, first: Level, last: Level) -> Tensor:
        return last.alpha * (x - first.sigma * eps) / first.alpha + last.sigma * eps

    @torch.no_grad()
    def right(
        x: Tensor, t: Tensor, s: Tensor, teacher: nn.Module, _: nn.Module, target: nn.Module
    ) -> Tensor:
        return f(target, hop(x, teacher(x, t), schedule(t[:, None]), schedule(s[:, None])), s)

    def at(subpaths: int, count: int) -> dict[str, object]:
        x_t = torch.randn(count, 2, generator=torch.Generator().manual_seed(32))
        t, s = schedule.subpaths(subpaths).ends(torch.arange(count) % subpaths)
        return {"x_t": x_t, "t": t, "s": s, **{n: Asked(p.forward) for n, p in networks.items()}}

    x_t, t, s = list(at(10, _COUNT).values())[:3]
    with torch.no_grad():
        noisy, clean, eps = schedule(t[:, None]), schedule(s[:, None]), teacher(x_t, t)
        x0 = (x_t - noisy.sigma * eps) / noisy.alpha
        x_s = hop(x_t, eps, noisy, clean)
        known = worked_out(KNOWN["target"], **locals())
    hold(
        answer, right, at(10, _COUNT), known,
        "The shape fits, the values do not. Print x_s first: at s = 0 it must be the target.",
        gradient=gradient, waste="Here the teacher and the target answer once, and nobody else.",
    )  # fmt: skip
    otherwise = "Right for hops of 100 timesteps, wrong for hops of 250."
    hold(answer, right, at(4, 7), (), otherwise, gradient=gradient)
    return "One hop of the teacher, then what the average says about the rest, as a fixed number."


@exercise("Exercise 3, the moving average", changes=(0,))
def average(answer: Callable[[nn.Module, nn.Module, float], object]) -> str:
    """``answer(target, student, rate)`` changes the target's parameters in place."""
    for rate, frozen in ((0.9, True), (0.6, False), (0.0, True)):
        _one_average(answer, rate, frozen)
    return "The target keeps its share and takes the rest from the student, in place."


def _one_average(
    answer: Callable[[nn.Module, nn.Module, float], object], r: float, frozen: bool
) -> None:
    generator = torch.Generator().manual_seed(33)
    student = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)))
    target = copy.deepcopy(student).requires_grad_(not frozen)
    with torch.no_grad():
        for parameter in (*student.parameters(), *target.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)  # which is the student's own
    ours = list(target.parameters())
    new = [p.detach().clone() for p in student.parameters()]
    old = [p.clone() for p in ours]
    require(answer(target, student, r) is not ..., NO_ANSWER)
    now, kept = list(target.parameters()), list(student.parameters())
    require(
        all(a is b for a, b in zip(now, ours, strict=True)),
        "The target has new parameters now. Write the values into those it has, in place.",
    )
    require(
        all(p.is_leaf for p in now),
        "The target's parameters have become part of a gradient graph, which grows with every "
        "update. Average under `torch.no_grad()`.",
    )
    require(
        all(p.requires_grad != frozen for p in now),
        f"Your function switches `requires_grad` of the target's parameters "
        f"{'on' if frozen else 'off'} for good. Leave that to whoever made the target: "
        f"`torch.no_grad()` is enough, and it ends.",
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
        "the parameter: `p = ...` only renames. Or does your loop reach no parameter?",
    )
    require(
        moved == len(now),
        f"{moved} of {len(now)} parameters have moved. Weights and biases of all layers belong "
        f"to the average.",
    )
    a, b = (torch.cat([p.reshape(-1) for p in parameters]) for parameters in (old, new))
    found = torch.cat([p.detach().reshape(-1) for p in now])
    if r:  # at 0 some mistakes are right
        refuse(found, worked_out(KNOWN["average"], a=a, b=b, r=r))
    for other in {0.9, 0.95, 0.99} - {r}:
        sentence = f"{other} is used whatever the argument `rate` says."
        refuse(found, [(other * a + (1 - other) * b, sentence)])
    require_close(
        found,
        r * a + (1 - r) * b,
        "The target has moved, to wrong values. Try the rates 1 and 0 in your mind: 1 must keep "
        "the target, 0 must copy the student.",
    )


Health = TypeVar("Health")
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


def clinic(train: Callable[[str], Health]) -> dict[str, Health]:
    """What ``train(cause)`` returns for each of the clinic's runs, by letter."""
    return {run: train(cause) for run, cause in _RUNS.items()}


@exercise("Exercise 4, the clinic")
def diagnosis(answer: Mapping[str, str]) -> str:
    """``{"A": cause, ...}``, the causes from :data:`CAUSES`."""
    require(
        isinstance(answer, Mapping),
        f"The check was given a {type(answer).__name__}; give it a dictionary from the letter of "
        f"a run to a cause.",
    )
    require(not any(cause is ... or cause is None for cause in answer.values()), NO_ANSWER)
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

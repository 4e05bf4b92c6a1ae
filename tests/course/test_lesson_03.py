"""Lesson 03: checks, figures and explorer."""

import copy

import pytest
import torch

from slam_course.lesson_03 import checks, explorer
from slam_course.lesson_03.explorer import HOPS
from slam_edu import (
    DistillConfig,
    NoiseSchedule,
    Prediction,
    SubPathDistiller,
    SubPathSample,
    boundary_scalings,
    consistency_output,
    ddim_step,
    to_prediction,
    update_ema,
)
from slam_edu.toy import ring, solution_map
from tests.course import trying
from tests.helpers import assert_near

SCHEDULE = NoiseSchedule.stable_diffusion()
F64 = NoiseSchedule.stable_diffusion(torch.float64)
MIXTURE = ring(dtype=torch.float64)

# -------------------------------------------------------------------- exercise 1


def x0_of(x, v, level):
    return level.alpha * x - level.sigma * v


def skip(tau):
    return 0.25 / (tau**2 + 0.25)


def out(tau):
    return tau / (tau**2 + 0.25).sqrt()


def by_formula(x, v, t, level):
    return skip(10 * t) * x + out(10 * t) * x0_of(x, v, level)


def by_library(x, v, t, level):
    flat = type(level)(level.alpha[:, 0], level.sigma[:, 0])
    x0 = to_prediction(v, x, flat, "v_prediction").x0
    return consistency_output(x, x0, *boundary_scalings(t[:, 0]))


RIGHT_CONSISTENCY = (
    by_formula,
    by_library,
    lambda x, v, t, level: (
        torch.lerp(x0_of(x, v, level), x, skip(10 * t))
        + (out(10 * t) - 1 + skip(10 * t)) * x0_of(x, v, level)
    ),
)
# a is skip, b is out, x0 the clean sample, c the level.
WRONG_CONSISTENCY = trying.formulas("x, v, x0, a, b, tau, c", globals(), {
    "x0": "clean sample alone",
    "x": "This is x again",
    "b * x + a * x0": "c_skip and c_out are swapped",
    "a * x + b * v": "raw output v is weighed",
    "a * x + b * (c.alpha * v + c.sigma * x)": "weighs the noise",
    "a * x + b * (c.alpha * x + c.sigma * v)": "The clean sample adds",
    "a * x + b * (x - c.sigma * v) / c.alpha": "as if the output were the noise",
    "skip(tau / 10) * x + out(tau / 10) * x0": "t is used where tau = 10 t belongs",
    "a.sqrt() * x + b * x0": "square root",
    "a * x + b**2 * x0": "its numerator",
    "a * x + tau / (tau**2 + 0.25) * x0": "denominator is missing",
    "0.5 / (tau**2 + 0.5) * x + tau / (tau**2 + 0.5).sqrt() * x0": "where its square belongs",
    "a * x + (1 - a) * x0": "Your c_out is 1 - c_skip",
    "a * x + (1 - b) * x0": "values do not",
    "a * x": "network's part is missing",
    "b * x0": "part of x is missing",
    "(x.mul_(2), x)[1]": "changes x itself",
    "(a * x + b * x0).float()": "in torch.float32",
    "a * x + b * (c.alpha * x - c.sigma * v.detach())": "comes back to v",
})  # fmt: skip


def consistency_of(combine):
    return lambda x, v, t, c: combine(x, v, x0_of(x, v, c), skip(10 * t), out(10 * t), 10 * t, c)


WRONG_CONSISTENCY = [(consistency_of(combine), words) for combine, words in WRONG_CONSISTENCY]

# -------------------------------------------------------------------- exercise 2


def f(network, x, t):
    return by_formula(x, network(x, t), t[:, None], SCHEDULE(t[:, None]))


def ddim(x, eps, t, s):
    level_t, level_s = SCHEDULE(t[:, None]), SCHEDULE(s[:, None])
    return level_s.alpha * (x - level_t.sigma * eps) / level_t.alpha + level_s.sigma * eps


@torch.no_grad()
def by_steps(x_t, t, s, teacher, student, target):
    x_s = ddim(x_t, teacher(x_t, t), t, s)
    return f(target, x_s, s)


def detached(x_t, t, s, teacher, student, target):
    level_t, level_s, eps = SCHEDULE(t[:, None]), SCHEDULE(s), teacher(x_t, t)
    x_s = ddim_step(Prediction((x_t - level_t.sigma * eps) / level_t.alpha, eps), level_s)
    x0 = to_prediction(target(x_s, s), x_s, level_s, "v_prediction").x0
    return consistency_output(x_s, x0, *boundary_scalings(s)).detach()


def guess(teacher, x_t, t):
    level = SCHEDULE(t[:, None])
    return (x_t - level.sigma * teacher(x_t, t)) / level.alpha


def noise_of_t(x, t, s, teacher, target):
    eps, level_t, level_s = teacher(x, t), SCHEDULE(t[:, None]), SCHEDULE(s[:, None])
    return f(target, level_s.alpha * guess(teacher, x, t) + level_t.sigma * eps, s)


def own_slope(x, t, s, target):
    level = SCHEDULE(t[:, None])
    eps = level.alpha * target(x, t) + level.sigma * x
    return f(target, ddim(x, eps, t, s), s)


def with_gradient(x_t, t, s, teacher, student, target):
    with torch.no_grad():
        x_s = ddim(x_t, teacher(x_t, t), t, s)
    return f(target, x_s, s)


RIGHT_TARGET = (by_steps, detached)
WRONG_TARGET = trying.formulas("x, x_s, t, s, teacher, student, target", globals(), {
    "x_s": "This is x_s",
    "f(target, x_s, s).detach().requires_grad_()": "a gradient of its own",
    "guess(teacher, x, t)": "teacher's own guess",
    "f(student, x_s, s)": "The student is asked at s",
    "f(student, x, t)": "This is the student's prediction",
    "f(target, x, t)": "No hop was taken",
    "f(target, x_s, t)": "with the wrong timestep",
    "f(target, x, s)": "but at the point x_t",
    "target(x_s, s)": "raw output v",
    "x0_of(x_s, target(x_s, s), SCHEDULE(s[:, None]))": "boundary scalings are missing",
    "f(target, ddim(x, teacher(x, t), s, t), s)": "two levels are swapped",
    "f(target, ddim(x, teacher(x, s), t, s), s)": "The teacher is asked about",
    "noise_of_t(x, t, s, teacher, target)": "The end of the hop has",
    "own_slope(x, t, s, target)": "follows the target network's slope",
    "f(teacher, x_s, s)": "of which it knows the slope alone",
    "f(target, x_s + 0.1 * torch.randn_like(x), s)": "fresh noise",
    "0.9 * f(target, x_s, s)": "values do not",
    "f(target, x.mul_(2), s)": "changes x_t itself",
})  # fmt: skip


def target_of(combine):
    """A wrong answer, without gradient, from the arguments and the end of the hop."""

    @torch.no_grad()
    def answer(x_t, t, s, teacher, student, target):
        x_s = ddim(x_t, teacher(x_t, t), t, s)
        return combine(x_t, x_s, t, s, teacher, student, target)

    return answer


WRONG_TARGET = [(target_of(combine), words) for combine, words in WRONG_TARGET]
WRONG_TARGET.append((with_gradient, "gradient flows into target"))

# -------------------------------------------------------------------- exercise 3


def each(change):
    """An answer that changes the target's parameters one by one, without gradient."""

    @torch.no_grad()
    def answer(target, student, rate):
        for ours, theirs in zip(target.parameters(), student.parameters(), strict=True):
            change(ours, theirs, rate)

    return answer


def by_data(target, student, rate):
    theirs = dict(student.named_parameters())
    for name, parameter in target.named_parameters():
        parameter.data = rate * parameter.data + (1 - rate) * theirs[name].data


@torch.no_grad()
def by_state(target, student, rate):
    ours, theirs = target.state_dict(), student.state_dict()
    target.load_state_dict({k: torch.lerp(theirs[k], ours[k], rate) for k in ours})


def makes_new(target, student, rate):
    mixed = copy.deepcopy(student)
    update_ema(mixed, target, 1 - rate)
    for name in ("0", "1"):
        setattr(target, name, getattr(mixed, name).requires_grad_(False))


def keeps_graph(target, student, rate):
    for ours, theirs in zip(target.parameters(), student.parameters(), strict=True):
        ours.mul_(rate).add_(theirs * (1 - rate))


def shares_memory(target, student, rate):
    for ours, theirs in zip(target.parameters(), student.parameters(), strict=True):
        ours.data = theirs.data


def freezes(target, student, rate):
    student.requires_grad_(False)
    update_ema(target, student, rate)


RIGHT_AVERAGE = (
    each(lambda a, b, r: a.mul_(r).add_(b, alpha=1 - r)),
    by_data,
    by_state,
    update_ema,
)
WRONG_AVERAGE = trying.formulas("a, b, r", globals(), {
    "a.mul_(1 - r).add_(b, alpha=r)": "The wrong way round",
    "a.copy_(b)": "a copy of the student",
    "a.copy_(r * (r * a + (1 - r) * b))": "the sum is multiplied by it once more",
    "a.add_(b, alpha=1 - r).mul_(r)": "the student's part is (1 - rate) alone",
    "a.mul_(r).add_(b)": "student's part is not",
    "a.add_(b, alpha=1 - r)": "target's part is not",
    "a.mul_(r)": "The target shrinks",
    "a.sub_((1 - r) * (b - a))": "moves away from the student",
    "a.lerp_(b, 0.5)": "plain mean",
    "a.lerp_(b, 0.1)": "0.9 is used whatever",
    "a.lerp_(b, 0.05)": "0.95 is used whatever",
    "a.lerp_(b, 0.3)": "to wrong values",
    "r * a + (1 - r) * b": "The target is as it was",
    "b.lerp_(a, 1 - r)": "changes student itself",
    "a.lerp_(b, 1 - r) if a.ndim == 2 else a": "2 of 6 parameters have moved",
})  # fmt: skip
WRONG_AVERAGE = [(each(change), words) for change, words in WRONG_AVERAGE] + [
    (makes_new, "has new parameters now"),
    (keeps_graph, "part of a gradient graph"),
    (shares_memory, "share their memory"),
    (lambda target, student, rate: ..., "no answer yet"),
    (freezes, "leave its parameters, their gradients and their `requires_grad`"),
    (0.9, "was given a float; give it your function"),
]

# -------------------------------------------------------------------- exercise 4


def swapped(one, other):
    answer = dict(checks._RUNS)
    answer[one], answer[other] = answer[other], answer[one]
    return answer


RIGHT_DIAGNOSIS = (checks.clinic(lambda cause: cause), dict(reversed(checks._RUNS.items())))
WRONG_DIAGNOSIS = [
    (swapped("A", "B"), "Run A is not 'no stop-gradient'"),
    (swapped("A", "C"), "Run A is not 'EMA rate 0'"),
    (swapped("C", "D"), "Run C is not 'learning rate too high'"),
    (dict.fromkeys("ABCD", "EMA rate 0"), "Run A is not 'EMA rate 0'"),
    (dict.fromkeys("ABC", "EMA rate 0"), "it should have A, B, C and D"),
    (dict.fromkeys("ABCD", "EMA"), "the four causes are"),
    (["EMA rate 0"] * 4, "was given a list"),
    (checks._RUNS | {"D": ...}, "no answer yet"),
]
GROUPS = [
    (checks.consistency, RIGHT_CONSISTENCY, WRONG_CONSISTENCY),
    (checks.target, RIGHT_TARGET, WRONG_TARGET),
    (checks.average, RIGHT_AVERAGE, WRONG_AVERAGE),
    (checks.diagnosis, RIGHT_DIAGNOSIS, WRONG_DIAGNOSIS),
]
test_accepts, test_rejects = trying.tests(GROUPS)


def test_every_wrong_diagnosis_gets_a_sentence_of_its_own():
    """Twelve pairs of a run and a wrong cause; none of the sentences names the solution."""
    sentences = set()
    for run, cause in checks._RUNS.items():
        for other in set(checks.CAUSES) - {cause}:
            # The others are right, so that this run is the first that is wrong.
            message = checks.diagnosis(checks._RUNS | {run: other}).message
            assert message.startswith(f"Run {run} is not {other!r}.")
            assert cause not in message
            sentences.add(message)
    assert len(sentences) == 12


def test_the_target_of_the_check_is_the_distillers():
    """The library's own target for the same points: the check and the library agree."""
    grid = SCHEDULE.subpaths(10)
    x0, eps = torch.randn(2, 30, 2, generator=torch.Generator().manual_seed(0))
    index = torch.arange(30) % 10
    config = DistillConfig(
        subpaths=10, slope="end",
        student_prediction_type="v_prediction",
    )  # fmt: skip
    probes = [checks._Probe(phase) for phase in (0.3, 2.0, 1.2)]
    names = ("teacher", "student", "target")
    networks = {
        name: lambda x, t, cond, gamma=None, probe=probe: probe(x, t)
        for name, probe in zip(names, probes, strict=True)
    }
    sample = SubPathSample(index=index, gamma=torch.ones(30), noise=eps)
    step = SubPathDistiller(SCHEDULE, config).step(x0, sample, **networks)
    y = by_steps(step.x_t, *grid.ends(index), *probes)
    torch.testing.assert_close(step.target, y, rtol=1e-4, atol=1e-5)


def test_more_hops_end_closer_at_first_order():
    error = explorer._ends("ring", 249).error
    values = [error[n] for n in HOPS]
    assert values == sorted(values, reverse=True)
    assert error[100] / error[200] == pytest.approx(2, rel=0.15)


def test_a_start_between_two_levels_has_a_shorter_first_hop():
    """749 is no noisy end of N = 5: the first hop leads to 599."""
    ends = explorer._ends("ring", 749)
    exact = solution_map(MIXTURE, ends.start[:40], F64(749), F64(0), tol=1e-8).x
    assert_near(ends.end[:40], exact, rtol=0, atol=1e-4)
    x = ends.start
    for t, s in ((749, 599), (599, 399), (399, 199), (199, 0)):
        x = ddim_step(MIXTURE.predict(x, F64(t)), F64(s))
    assert_near(ends.reached[5], x, rtol=0, atol=1e-9)


def test_explorer_follows_its_controls_and_starts_where_asked():
    box = explorer.hops(["ring"])
    assert "from t = 999, the schedule cut into 10 hops" in box.children[-1].value
    trying.walk(box)

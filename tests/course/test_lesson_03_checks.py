"""The checks of lesson 03 accept right answers in any form, and tell wrong ones apart."""

import copy

import pytest
import torch

from slam_course.lesson_03 import checks as checks
from slam_edu import NoiseSchedule, Prediction, boundary_scalings, ddim_step, to_prediction
from slam_edu.consistency import consistency_output
from slam_edu.ema import update_ema

SCHEDULE = NoiseSchedule.stable_diffusion()

# -------------------------------------------------------------------- exercise 1


def x0_of(x, v, level):
    return level.alpha * x - level.sigma * v


def scalings(t):
    tau = 10 * t
    return 0.25 / (tau**2 + 0.25), tau / (tau**2 + 0.25).sqrt()


def by_formula(x, v, t, level):
    skip, out = scalings(t)
    return skip * x + out * x0_of(x, v, level)


def by_library(x, v, t, level):
    flat = type(level)(level.alpha[:, 0], level.sigma[:, 0])
    x0 = to_prediction(v, x, flat, "v_prediction").x0
    return consistency_output(x, x0, *boundary_scalings(t[:, 0]))


def by_rows(x, v, t, level):
    rows = []
    for i in range(len(x)):
        ratio = 20 * float(t[i])  # tau / sigma_data
        clean = float(level.alpha[i]) * x[i] - float(level.sigma[i]) * v[i]
        rows.append(x[i] / (1 + ratio**2) + ratio / (1 + ratio**2) ** 0.5 * clean)
    return torch.stack(rows)


def combined(combine):
    """A wrong answer from x, v, the clean sample, the two scalings, t and the level."""

    def answer(x, v, t, level):
        return combine(x, v, x0_of(x, v, level), *scalings(t), t, level)

    return answer


def with_scalings(skip, out):
    return lambda x, v, t, level: skip(10 * t) * x + out(10 * t) * x0_of(x, v, level)


def right_skip(tau):
    return 0.25 / (tau**2 + 0.25)


def right_out(tau):
    return tau / (tau**2 + 0.25).sqrt()


def in_place(x, v, t, level):
    answer = by_formula(x.clone(), v, t, level)
    x += 1
    return answer


RIGHT_CONSISTENCY = {
    "formula": by_formula,
    "library": by_library,
    "a loop over points": by_rows,
    "float64": lambda x, v, t, level: by_formula(x.double(), v.double(), t.double(), level),
}
WRONG_CONSISTENCY = {
    "x0": (combined(lambda x, v, x0, skip, out, t, level: x0), "clean sample alone"),
    "x": (combined(lambda x, v, x0, skip, out, t, level: x), "This is x again"),
    "swapped": (
        combined(lambda x, v, x0, skip, out, t, level: out * x + skip * x0),
        "c_skip and c_out are swapped",
    ),
    "raw output": (
        combined(lambda x, v, x0, skip, out, t, level: skip * x + out * v),
        "raw output v is weighed",
    ),
    "noise": (
        combined(
            lambda x, v, x0, skip, out, t, level: (
                skip * x + out * (level.alpha * v + level.sigma * x)
            )
        ),
        "weighs the noise",
    ),
    "plus": (
        combined(
            lambda x, v, x0, skip, out, t, level: (
                skip * x + out * (level.alpha * x + level.sigma * v)
            )
        ),
        "The clean sample adds",
    ),
    "as if noise": (
        combined(
            lambda x, v, x0, skip, out, t, level: (
                skip * x + out * (x - level.sigma * v) / level.alpha
            )
        ),
        "as if the output were the noise",
    ),
    "no factor 10": (
        lambda x, v, t, level: by_formula(x, v, t / 10, level),
        "t is used where tau = 10 t belongs",
    ),
    "root in c_skip": (
        with_scalings(lambda tau: right_skip(tau).sqrt(), right_out),
        "square root",
    ),
    "c_out squared": (with_scalings(right_skip, lambda tau: right_out(tau) ** 2), "its numerator"),
    "no root in c_out": (
        with_scalings(right_skip, lambda tau: tau / (tau**2 + 0.25)),
        "denominator is missing",
    ),
    "sigma_data": (
        with_scalings(lambda tau: 0.5 / (tau**2 + 0.5), lambda tau: tau / (tau**2 + 0.5).sqrt()),
        "where its square belongs",
    ),
    "shares": (
        combined(lambda x, v, x0, skip, out, t, level: skip * x + (1 - skip) * x0),
        "Your c_out is 1 - c_skip",
    ),
    "something else": (
        combined(lambda x, v, x0, skip, out, t, level: skip * x + (1 - out) * x0),
        "values do not",
    ),
    "network left out": (
        combined(lambda x, v, x0, skip, out, t, level: skip * x),
        "network's part is missing",
    ),
    "x left out": (
        combined(lambda x, v, x0, skip, out, t, level: out * x0),
        "part of x is missing",
    ),
    "in place": (in_place, "changes x, v or t itself"),
    "the scalings": (lambda x, v, t, level: scalings(t), "is a tuple"),
    "one column": (lambda x, v, t, level: by_formula(x, v, t, level)[:, :1], "has shape (60, 1)"),
    "not finite": (lambda x, v, t, level: x / 0, "NaN or infinite"),
    "raises": (lambda x, v, t, level: x.alpha, "raised AttributeError"),
    "stub": (lambda x, v, t, level: ..., "no answer yet"),
    "no answer": (..., "no answer yet"),
    "a tensor": (torch.zeros(2), "was given a Tensor; give it your function"),
}


# -------------------------------------------------------------------- exercise 2


def f(network, x, t):
    column = t[:, None]
    return by_formula(x, network(x, t), column, SCHEDULE(column))


def ddim(x, eps, t, s):
    level_t, level_s = SCHEDULE(t[:, None]), SCHEDULE(s[:, None])
    return level_s.alpha * (x - level_t.sigma * eps) / level_t.alpha + level_s.sigma * eps


def x0_at(network, x, t):
    return x0_of(x, network(x, t), SCHEDULE(t[:, None]))


@torch.no_grad()
def by_steps(x_t, t, s, teacher, student, target):
    x_s = ddim(x_t, teacher(x_t, t), t, s)
    return f(target, x_s, s)


def detached(x_t, t, s, teacher, student, target):
    level_t, level_s = SCHEDULE(t), SCHEDULE(s)
    eps = teacher(x_t, t)
    x0 = (x_t - level_t.sigma[:, None] * eps) / level_t.alpha[:, None]
    x_s = ddim_step(Prediction(x0, eps), level_s)
    x0 = to_prediction(target(x_s, s), x_s, level_s, "v_prediction").x0
    return consistency_output(x_s, x0, *boundary_scalings(s)).detach()


def asked(combine):
    """A wrong answer, without gradient, from the arguments and the end of the hop."""

    @torch.no_grad()
    def answer(x_t, t, s, teacher, student, target):
        x_s = ddim(x_t, teacher(x_t, t), t, s)
        return combine(x_t, x_s, t, s, teacher, student, target)

    return answer


def noise_of_t(x_t, x_s, t, s, teacher, student, target):
    eps = teacher(x_t, t)
    level_t, level_s = SCHEDULE(t[:, None]), SCHEDULE(s[:, None])
    x0 = (x_t - level_t.sigma * eps) / level_t.alpha
    return f(target, level_s.alpha * x0 + level_t.sigma * eps, s)


def own_slope(x_t, x_s, t, s, teacher, student, target):
    level = SCHEDULE(t[:, None])
    eps = level.alpha * target(x_t, t) + level.sigma * x_t
    return f(target, ddim(x_t, eps, t, s), s)


def teachers_guess(x_t, x_s, t, s, teacher, student, target):
    level = SCHEDULE(t[:, None])
    return (x_t - level.sigma * teacher(x_t, t)) / level.alpha


def with_gradient(x_t, t, s, teacher, student, target):
    with torch.no_grad():
        x_s = ddim(x_t, teacher(x_t, t), t, s)
    return f(target, x_s, s)


def moves_x(x_t, t, s, teacher, student, target):
    answer = by_steps(x_t.clone(), t, s, teacher, student, target)
    x_t += 1
    return answer


RIGHT_TARGET = {"steps": by_steps, "detached, by library": detached}
WRONG_TARGET = {
    "gradient": (with_gradient, "gradient flows into the target"),
    "x_s": (asked(lambda x, x_s, t, s, *nets: x_s), "This is x_s"),
    "teacher's guess": (asked(teachers_guess), "teacher's own guess"),
    "student": (
        asked(lambda x, x_s, t, s, teacher, student, target: f(student, x_s, s)),
        "The student is asked at s",
    ),
    "prediction": (
        asked(lambda x, x_s, t, s, teacher, student, target: f(student, x, t)),
        "This is the student's prediction",
    ),
    "no hop": (
        asked(lambda x, x_s, t, s, teacher, student, target: f(target, x, t)),
        "No hop was taken",
    ),
    "timestep t": (
        asked(lambda x, x_s, t, s, teacher, student, target: f(target, x_s, t)),
        "with the wrong timestep",
    ),
    "x_t at s": (
        asked(lambda x, x_s, t, s, teacher, student, target: f(target, x, s)),
        "but at the point x_t",
    ),
    "raw output": (
        asked(lambda x, x_s, t, s, teacher, student, target: target(x_s, s)),
        "raw output v",
    ),
    "no boundary": (
        asked(lambda x, x_s, t, s, teacher, student, target: x0_at(target, x_s, s)),
        "boundary scalings are missing",
    ),
    "levels swapped": (
        asked(
            lambda x, x_s, t, s, teacher, student, target: f(
                target, ddim(x, teacher(x, t), s, t), s
            )
        ),
        "two levels are swapped",
    ),
    "teacher at s": (
        asked(
            lambda x, x_s, t, s, teacher, student, target: f(
                target, ddim(x, teacher(x, s), t, s), s
            )
        ),
        "The teacher is asked about",
    ),
    "sigma_t": (asked(noise_of_t), "The end of the hop has"),
    "own slope": (asked(own_slope), "follows the target network's slope"),
    "teacher for the end": (
        asked(lambda x, x_s, t, s, teacher, student, target: f(teacher, x_s, s)),
        "of which it knows the slope alone",
    ),
    "fresh noise": (
        asked(
            lambda x, x_s, t, s, teacher, student, target: f(
                target, x_s + 0.1 * torch.randn_like(x), s
            )
        ),
        "fresh noise",
    ),
    "something else": (
        asked(lambda x, x_s, t, s, teacher, student, target: 0.9 * f(target, x_s, s)),
        "values do not",
    ),
    "in place": (moves_x, "changes x_t itself"),
    "raises": (lambda x_t, t, s: x_t, "raised TypeError"),
    "stub": (lambda x_t, t, s, teacher, student, target: ..., "no answer yet"),
    "no answer": (None, "no answer yet"),
    "a number": (3, "was given a int; give it your function"),
}


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
    mixed = {
        name: torch.lerp(student.state_dict()[name], value, rate)
        for name, value in target.state_dict().items()
    }
    target.load_state_dict(mixed)


def renames(target, student, rate):
    for ours, theirs in zip(target.parameters(), student.parameters(), strict=True):
        ours = rate * ours + (1 - rate) * theirs


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


@torch.no_grad()
def weights_alone(target, student, rate):
    for ours, theirs in zip(target.parameters(), student.parameters(), strict=True):
        if ours.ndim == 2:
            ours.lerp_(theirs, 1 - rate)


RIGHT_AVERAGE = {
    "in place": each(lambda a, b, r: a.mul_(r).add_(b, alpha=1 - r)),
    "copy": each(lambda a, b, r: a.copy_(r * a + (1 - r) * b)),
    "data": by_data,
    "state": by_state,
    "library": update_ema,
}
WRONG_AVERAGE = {
    "wrong way": (each(lambda a, b, r: a.mul_(1 - r).add_(b, alpha=r)), "The wrong way round"),
    "copies": (each(lambda a, b, r: a.copy_(b)), "a copy of the student"),
    "sum scaled": (
        each(lambda a, b, r: a.copy_(r * (r * a + (1 - r) * b))),
        "the sum is multiplied by it once more",
    ),
    "added, then scaled": (
        each(lambda a, b, r: a.add_(b, alpha=1 - r).mul_(r)),
        "the student's part is (1 - rate) alone",
    ),
    "student not scaled": (each(lambda a, b, r: a.mul_(r).add_(b)), "student's part is not"),
    "target not scaled": (each(lambda a, b, r: a.add_(b, alpha=1 - r)), "target's part is not"),
    "shrinks": (each(lambda a, b, r: a.mul_(r)), "The target shrinks"),
    "sign": (each(lambda a, b, r: a.sub_((1 - r) * (b - a))), "moves away from the student"),
    "mean": (each(lambda a, b, r: a.lerp_(b, 0.5)), "plain mean"),
    "0.9": (each(lambda a, b, r: a.lerp_(b, 0.1)), "0.9 is used whatever"),
    "0.95": (each(lambda a, b, r: a.lerp_(b, 0.05)), "0.95 is used whatever"),
    "something else": (each(lambda a, b, r: a.lerp_(b, 0.3)), "to wrong values"),
    "renames": (renames, "The target is as it was"),
    "new parameters": (makes_new, "has new parameters now"),
    "graph": (keeps_graph, "part of a gradient graph"),
    "student moves": (each(lambda a, b, r: b.lerp_(a, 1 - r)), "The student has changed"),
    "shared": (shares_memory, "share their memory"),
    "weights alone": (weights_alone, "2 of 4 parameters have moved"),
    "raises": (lambda target, student: None, "raised TypeError"),
    "stub": (lambda target, student, rate: ..., "no answer yet"),
    "no answer": (..., "no answer yet"),
    "a number": (0.9, "was given a float; give it your function"),
}


# -------------------------------------------------------------------- exercise 4


def swapped(one, other):
    answer = checks.patients()
    answer[one], answer[other] = answer[other], answer[one]
    return answer


WRONG_DIAGNOSIS = {
    "A and B": (swapped("A", "B"), "Run A is not 'no stop-gradient'"),
    "A and C": (swapped("A", "C"), "Run A is not 'EMA rate 0'"),
    "A and D": (swapped("A", "D"), "Run A is not 'learning rate too high'"),
    "B and C": (swapped("B", "C"), "Run B is not 'EMA rate 0'"),
    "B and D": (swapped("B", "D"), "Run B is not 'learning rate too high'"),
    "C and D": (swapped("C", "D"), "Run C is not 'learning rate too high'"),
    "one for all": (dict.fromkeys("ABCD", "EMA rate 0"), "Run A is not 'EMA rate 0'"),
    "a run is missing": (dict.fromkeys("ABC", "EMA rate 0"), "it should have A, B, C and D"),
    "another word": (dict.fromkeys("ABCD", "EMA"), "the four causes are"),
    "a list": (["EMA rate 0"] * 4, "was given a list"),
    "half done": (swapped("A", "A") | {"D": ...}, "no answer yet"),
    "no answer": (..., "no answer yet"),
}


# -------------------------------------------------------------------- all


GROUPS = (
    (checks.consistency, RIGHT_CONSISTENCY, WRONG_CONSISTENCY),
    (checks.target, RIGHT_TARGET, WRONG_TARGET),
    (checks.average, RIGHT_AVERAGE, WRONG_AVERAGE),
    (
        checks.diagnosis,
        {
            "a dictionary": checks.patients(),
            "in another order": dict(reversed(checks.patients().items())),
        },
        WRONG_DIAGNOSIS,
    ),
)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        pytest.param(check, answer, id=f"{check.__name__}-{name}")
        for check, right, _ in GROUPS
        for name, answer in right.items()
    ],
)
def test_accepts(check, answer):
    verdict = check(answer)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("check", "answer", "sentence"),
    [
        pytest.param(check, *case, id=f"{check.__name__}-{name}")
        for check, _, wrong in GROUPS
        for name, case in wrong.items()
    ],
)
def test_rejects(check, answer, sentence):
    verdict = check(answer)
    assert not verdict.passed
    assert sentence in verdict.message


def test_every_wrong_diagnosis_says_what_to_look_for():
    """Twelve pairs of a run and a wrong cause, each with a sentence of its own."""
    said = set()
    for run, right in checks.patients().items():
        for cause in checks.CAUSES:
            if cause != right:
                # The others are right, so that this run is the first that is wrong.
                verdict = checks.diagnosis(checks.patients() | {run: cause})
                assert verdict.message.startswith(f"Run {run} is not {cause!r}.")
                assert right not in verdict.message, "the sentence names the solution"
                said.add(verdict.message)
    assert len(said) == 12


def test_patients_are_the_four_causes():
    assert sorted(checks.patients().values()) == sorted(checks.CAUSES)


def test_every_verdict_names_its_exercise():
    assert repr(checks.consistency(by_formula)).startswith("Exercise 1, the consistency function:")
    assert repr(checks.target(...)).startswith("Exercise 2, the target: not yet. ")
    assert repr(checks.average(...)).startswith("Exercise 3, the moving average: not yet. ")
    assert repr(checks.diagnosis(...)).startswith("Exercise 4, the clinic: not yet. ")


def test_the_target_of_the_check_is_the_distillers():
    """The library's own target for the same points: the check and the library agree."""
    from slam_edu import DistillConfig, SubPathDistiller, SubPathSample

    grid = SCHEDULE.subpaths(10)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 30, 2, generator=generator)
    index = torch.arange(30) % 10
    config = DistillConfig(
        subpaths=10, gammas="one", conditioning="level", coupling="linear",
        student_prediction_type="v_prediction",
    )  # fmt: skip
    probe = checks._Probe

    def no_cond(network):
        return lambda x, t, cond, gamma=None: network(x, t)

    nets = [no_cond(probe(phase)) for phase in (0.3, 2.0, 1.2)]
    out = SubPathDistiller(SCHEDULE, config).step(
        x0, SubPathSample(index=index, gamma=torch.ones(30), noise=noise),
        teacher=nets[0], student=nets[1], target=nets[2],
    )  # fmt: skip
    t, s = grid.ends(index)
    y = by_steps(out.x_t, t, s, probe(0.3), probe(2.0), probe(1.2))
    torch.testing.assert_close(out.target, y, rtol=1e-4, atol=1e-5)

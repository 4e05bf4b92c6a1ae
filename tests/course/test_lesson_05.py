"""Lesson 05: its checks, its figures, its explorers, and students trained with a loss."""

import math

import pytest
import torch
from scipy import stats

from slam_course.family import training
from slam_course.family.results import Choice, Results, Row, chosen
from slam_course.family.training import TIMES
from slam_course.lesson_05 import explorer, figures, students
from slam_course.lesson_05.checks import loss, multistep, paired_ratio
from slam_course.results import Ratio
from slam_edu import TrainConfig, add_noise, toy
from tests.course import trying

# -------------------------------------------------------------------- checks


def losses(text):
    """A loss of p, what the student says, and y, what the target says, at t, s, g or g@t, s@t."""
    p, y, reduced = text.split("; ")

    def answer(student, target, x_t, x_s, x_g, at_t, at_s, at_g):
        points = {"t": (x_t, at_t), "s": (x_s, at_s), "g": (x_g, at_g), "g@t": (x_g, at_t),
                  "s@t": (x_s, at_t)}  # fmt: skip
        of = {"student": student, "target": target}

        def asked(word):
            return x_s if word == "x_s" else of[word.split()[0]](*points[word.split()[1]])

        goal = asked(y.removesuffix(" kept"))
        d = asked(p) - (goal if y.endswith("kept") else goal.detach())
        return eval(reduced, {"d": d, "mse": d.square().mean()})

    return answer


LOSSES = {
    "student t; target s; mse": "consistency distillation",
    "student g@t; target s; mse": "told the level of x_t",
    "student g; student s; mse": "comes from the student",
    "student g; target s@t; mse": "at x_s, but told the level of x_t",
    "student g; target t; mse": "taken at x_t",
    "student g; target g; mse": "taken at x_gamma",
    "student g; x_s; mse": "on the way, not at the end",
    "target g; student s; mse": "each other's place",
    "student g; target s; d.square().sum()": "are added",
    "student g; target s; d.square().sum(1).mean()": "over the two coordinates",
    "student g; target s; d.abs().mean()": "absolute",
    "student g; target s; mse.sqrt()": "root",
    "student g; target s kept; mse": "flows into target",
    "student g; target s; mse.detach()": "no gradient",
    "student g; target s; 0 * mse + 7": "value is wrong",
    "student g; target s; (d * d.detach()).mean()": "or a wrong one",
    "student g; target s; d.square().sum() / 10": "wrong for one of 82",
    "student g; target s; mse.float()": "in torch.float32",
    "student g; target s; d": "has shape",
}
RIGHT_LOSSES = [
    losses("student g; target s; mse"),
    losses("student g; target s; (d * d).sum() / d.numel()"),
]


def sampler(
    f, x, schedule, times, noises, renoise=add_noise, n=None, level=0, noise=None, base=None
):
    """The right sampler, or with one thing wrong."""
    x0 = f(x, times[0])
    for i in range(1, n or len(times)):
        fresh = noises[i - 1 if noise is None else noise]
        x = renoise(x if base else x0, fresh, schedule(times[i - level]))
        x0 = f(x, times[i])
    return x0


def sampler_with_index(f, x, schedule, times, noises):
    for i, t in enumerate(times):
        if i > 0:
            x = schedule(t).alpha * x + schedule(t).sigma * noises[i - 1]
        x = f(x, t)
    return x


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


SAMPLERS = trying.formulas("f, x, s, t, e", globals(), {
    "f(x, t[0])": "One step",
    "sampler(f, x, s, t, e, level=1)": "level it came from",
    "sampler(f, x, s, t, e, noise=0)": "first fresh noise",
    "sampler(f, x, s, t, e, base=True)": "noisy already",
    "ddim(f, x, s, t, e)": "DDIM",
    "noise_at_the_end(f, x, s, t, e)": "has noise in it",
    "sampler(f, x, s, t, e, lambda x0, n, at: x0 + at.sigma * n)": "alpha is missing",
    "sampler(f, x, s, t, e, lambda x0, n, at: at.sigma * x0 + at.alpha * n)": "swapped",
    "sampler(f, x, s, t, e, lambda x0, n, at: x0)": "as it is",
    "sampler(f, x, s, t, e, n=3)": "last of the times",
    "sampler(f, x, s, t, e, lambda x0, n, at: at.alpha * x0)": "Print x after each return",
    "(f(x, t[0]), sampler(f, x, s, t, e))[1]": "shown 80 samples; 64 are enough",
    "sampler(f, x.mul_(1.001), s, t, e)": "changes x itself",
    "sampler(f, x, s, [999, 759, 499, 259][: len(t)], e)": "wrong for 3",
    "sampler(f, x, s, [999, 799, 499, 259], e)": "called at [999, 799, 499, 259]; the times are",
    "sampler(f, x, s, [t.pop(0) for _ in range(4)], e)": "changes t itself",
    "(e[0].mul_(2), sampler(f, x, s, t, e))[1]": "changes e itself",
})  # fmt: skip


def interval(logs, quantile=None, n=None, spread=None):
    quantile = quantile or stats.t.ppf(0.975, len(logs) - 1)
    half = quantile * (logs.std() if spread is None else spread) / (n or len(logs)) ** 0.5
    return logs.mean().exp(), (logs.mean() - half).exp(), (logs.mean() + half).exp()


def with_scipy(a, b):
    logs = (a.log() - b.log()).numpy()
    low, high = stats.t.interval(0.95, len(a) - 1, loc=logs.mean(), scale=stats.sem(logs))
    return [float(stats.gmean((a / b).numpy())), math.exp(low), math.exp(high)]


def not_symmetric(a, b):
    ratio, _, high = interval((a / b).log())
    half = (high / ratio).log()
    return ratio, ratio - half, ratio + half


RATIOS = trying.formulas("a, b", globals(), {
    "((a / b).mean(), 0, 9)": "arithmetic mean",
    "(a.mean() / b.mean(), 0, 9)": "ratio of the means",
    "interval((b / a).log())": "upside down",
    "((a / b).log().mean(), -9, 9)": "go back with exp",
    "((a / b).median(), 0, 9)": "median",
    "(0.1234, 0, 9)": "exp of the mean",
    "interval((a / b).log(), 2.5705818)": "interval is not",
    "interval((a / b).log(), n=1)": "single seed",
    "interval((a / b).log(), n=36)": "not by n",
    "interval((a / b).log(), spread=(a / b).log().std(correction=0))": "n - 1",
    "interval((a / b).log(), 1.96)": "1.96",
    "interval((a / b).log(), stats.norm.ppf(0.975))": "1.96",
    "interval((a / b).log(), stats.t.ppf(0.95, 5))": "2.5 on each",
    "interval((a / b).log(), stats.t.ppf(0.975, 6))": "degrees of freedom",
    "interval((a / b).log(), spread=(a.log().var() + b.log().var()).sqrt())": "unpaired",
    "interval((a / b).log(), 1.0)": "one standard error",
    "not_symmetric(a, b)": "not symmetric",
    "interval((a / b).log())[:2]": "three numbers",
    "(interval((a / b).log())[0], 5.0, 9.0)": "between",
    "(interval((a / b).log())[0], 0.0, 9.0)": "interval is not",
    "(1.0, ..., 2.0)": "no answer yet",
})  # fmt: skip

GROUPS = [
    (loss, RIGHT_LOSSES, [(losses(text), words) for text, words in LOSSES.items()]),
    (multistep, [sampler, sampler_with_index, torch.no_grad()(sampler)], SAMPLERS),
    (
        paired_ratio,
        [
            lambda a, b: interval((a / b).log()),
            with_scipy,
            lambda a, b: torch.stack(interval((a / b).log())),
        ],
        RATIOS,
    ),
]


test_accepts, test_rejects = trying.tests(GROUPS)

# -------------------------------------------------------------------- students


CD, PAPER, MIDDLE = NAMES = ("consistency distillation", "SLAM (paper)", "SLAM, middle slope")
SHORT = {"cost": 0.0, "updates": 3, "subpaths": 10}


@pytest.fixture(scope="module", autouse=True)
def few_points():
    caches = (training.diffusion_model, training._solved, training.floor)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "POINTS": 500, "MAP_POINTS": 20, "INIT": TrainConfig(updates=3, batch=8)
        }.items():  # fmt: skip
            patch.setattr(training, name, value)
        for cached in caches:
            cached.cache_clear()
        yield
    for cached in caches:
        cached.cache_clear()


def slam(student, target, x_t, x_s, x_gamma, level_t, level_s, level_gamma):
    return (student(x_gamma, level_gamma) - target(x_s, level_s).detach()).square().mean()


@pytest.mark.parametrize("name", NAMES)
def test_the_learners_loss_trains_the_librarys_student(name):
    setting = Choice(method=name, **SHORT)
    own, ours = (
        students.follow(setting, "ring", 4, loss=given)[0].network(X, T, None, GAMMA[name])
        for given in (slam, None)
    )
    assert torch.allclose(own, ours, atol=1e-6)


X, T = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.full((50,), 499.0)
GAMMA = {CD: None, PAPER: torch.ones(50), MIDDLE: None}


def test_following_looks_after_the_updates_that_are_asked_for():
    seen = []
    student, moments = students.follow(
        Choice(method=MIDDLE, **SHORT), "ring", 1, (1, 3), on_update=seen.append, samples=20
    )
    assert (seen, list(moments)) == ([1, 2, 3], [1, 3])
    points = training.reference("ring", 1)
    measured = training.measure(student, points, 1)
    assert moments[3].errors == {t: measured[f"map_{t}"] for t in TIMES}
    drawn = students.draw(student, points.noise, 2, 1)
    assert students.off_support(drawn, points) == measured["off_2"]
    assert torch.equal(moments[3].samples, students.draw(student, points.noise[:20], 1, 1))


# -------------------------------------------------------------------- explorers and figures

DATA = toy.ring().sample(300, torch.Generator().manual_seed(0))
MOMENTS = {
    name: {n: students.Moment(DATA + i, {t: t / 999 / (i + 1) / n for t in TIMES}) for n in (1, 5)}
    for i, name in enumerate(NAMES)
}


def test_learning_shows_the_student_at_the_moment():
    for (name, updates), _, alt in trying.walk(explorer.learning(MOMENTS, DATA), every=True):
        assert f"{name} after {updates} updates" in alt


def test_an_ablation_trains_both_and_describes_what_it_found(monkeypatch):
    trained, follow = [], students.follow

    def shorter(setting, data, seed, on_update):
        trained.append((setting, data, seed))
        return follow(setting.replace(updates=3), data, seed, on_update=on_update)

    monkeypatch.setattr(explorer, "follow", shorter)
    shares = []
    drawn = explorer.ablation_figure(
        shares.append, "ring", MIDDLE, "5 sub-paths", updates=6, steps=2, seed=4
    )
    base = {name: setting.replace(cost=0.0, updates=6) for name, setting in chosen().items()}
    wanted = [base[CD].replace(subpaths=10), base[MIDDLE].replace(subpaths=5)]
    assert trained == [(setting, "ring", 4) for setting in wanted]
    assert shares == pytest.approx([1 / 12, 2 / 12, 3 / 12, 7 / 12, 8 / 12, 9 / 12])
    trying.described(drawn)


def test_figures_are_described():
    numbers = {name: {1: (0.1 * i, 0.2), 2: (0.2, 0.1)} for i, name in enumerate(NAMES, 1)}
    grid = figures.sample_grid({name: {1: DATA, 2: DATA} for name in NAMES}, DATA, numbers)
    assert "consistency distillation is closest to the data, at 0.10." in grid.alt
    values = torch.linspace(0, 1, 64)
    maps = figures.error_maps({CD: values, MIDDLE: values / 2}, DATA, 499, limit=2, most=0.4)
    assert "distillation 0.50, SLAM, middle slope 0.25" in maps.alt
    errors = {name: {9: [0.1], 20: [0.05]} for name in NAMES}
    arrival = figures.arrival(errors, (299,), "Errors fall with updates.")
    settings = [Choice(method=m, subpaths=n) for n in (10, 20) for m in (CD, MIDDLE)]
    rows = [
        Row(setting, "ring", seed, 9, True, dict.fromkeys(METRICS, setting.subpaths / 100))
        for setting in settings for seed in (0, 1)
    ]  # fmt: skip
    sweep = figures.over("subpaths", Results(rows), settings, ["ring"], {"ring": 0.02})
    assert "SLAM, middle slope from 0.10 at 10 to 0.20 at 20" in sweep.alt
    ratios = figures.ratios({PAPER: {"sw_1": Ratio(0.8, 0.7, 0.9)}})
    for fig in (grid, maps, arrival, sweep, ratios):
        trying.described(fig)


METRICS = ("sw_1", "off_1", "map_999")


def test_an_animation_repeats_to_the_byte():
    moments = {n: (m.samples, m.errors) for n, m in MOMENTS[CD].items()}
    made = figures.learning(moments, DATA, CD, milliseconds=100)
    assert made.gif() == figures.learning(moments, DATA, CD, milliseconds=100).gif()
    assert "from 1.0 to 0.2" in made.alt

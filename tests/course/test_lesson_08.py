"""Lesson 08: its checks, measures of few images, the shipped study, its figures and explorer."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from slam_course.lesson_08 import explorer, figures, students
from slam_course.lesson_08.checks import frechet, images, kernel
from slam_course.lesson_08.measures import (
    FRECHET,
    KERNEL,
    MEASURES,
    RIGHT,
    Judged,
    estimates,
    judge,
    stamped,
)
from slam_course.results import Ratio
from slam_edu.digits import load_pipeline
from slam_edu.digits.colours import read_colours
from slam_edu.digits.evaluate import Evaluator, Scores, Setting
from slam_edu.io import data_path
from slam_edu.metrics import frechet_distance, kernel_distance
from slam_edu.sd import LatentDiffusion
from tests.course import trying

# -------------------------------------------------------------------- checks


def v(p):
    return p * (1 - p)


def standard_error(p, n):
    return (v(p) / n) ** 0.5


def images_needed(p, q):
    return math.ceil(4 * (v(p) + v(q)) / (p - q) ** 2)


def needed_by_counting(p, q):
    n = 1
    while abs(p - q) < 2 * math.hypot(standard_error(p, n), standard_error(q, n)):
        n += 1
    return n


ERRORS = {
    "v(p) / n": "variance of the rate",
    "v(p) ** 0.5": "spread of one image",
    "v(p)": "variance of one image",
    "v(p) ** 0.5 / n": "root of n",
    "(v(p) * n) ** 0.5": "*number* of images",
    "(p / n) ** 0.5": "p alone",
    "((1 - p) / n) ** 0.5": "1 - p alone",
    "0.5 / n**0.5": "at p = 1/2",
    "2 * standard_error(p, n)": "two standard errors",
    "1.96 * standard_error(p, n)": "95 % interval",
    "100 * standard_error(p, n)": "per cent",
    "0.01": "a product of two factors",
    "float('nan')": "should be finite",
    "torch.ones(3)": "return one number",
    "(1.0, 2.0)": "is a tuple",
    "...": "no answer yet",
}
NEEDED = {
    "4 * (v(p) + v(q)) / (p - q) ** 2": "smallest whole number",
    "int(4 * (v(p) + v(q)) / (p - q) ** 2)": "You round down",
    "up((v(p) + v(q)) / (p - q) ** 2)": "is one standard error",
    "up(2 * (v(p) + v(q)) / (p - q) ** 2)": "to be squared",
    "up(1.96**2 * (v(p) + v(q)) / (p - q) ** 2)": "take 1.96",
    "up(1.645**2 * (v(p) + v(q)) / (p - q) ** 2)": "take 1.645",
    "up(4 * v(p) / (p - q) ** 2)": "first rate's error",
    "up(4 * v(q) / (p - q) ** 2)": "second rate's error",
    "up(4 * (v(p) ** 0.5 + v(q) ** 0.5) ** 2 / (p - q) ** 2)": "*variances* add up",
    "up(8 * (v(p) + v(q)) / (p - q) ** 2)": "both sets together",
    "up(4 * (v(p) + v(q)) / abs(p - q))": "to be squared",
    "up(4 / (p - q) ** 2)": "variances are missing",
    "up(2 / (p - q) ** 2)": "worst case",
    "up(4 * (v(p) + v(q)) / (q - p) ** 3)": "round up",
    "images_needed(p, q) * (1 if q > p else -1)": "should not matter",
    "p": "is 0.9",
    "...": "no answer yet",
}
up = math.ceil


def test_numbers_of_images():
    for pair in ((standard_error, images_needed), (standard_error, needed_by_counting)):
        assert images(*pair).passed
    wrong = [((f, images_needed), w) for f, w in trying.formulas("p, n", globals(), ERRORS)]
    wrong += [((standard_error, f), w) for f, w in trying.formulas("p, q", globals(), NEEDED)]
    for pair, sentence in [*wrong, ((standard_error, 1134), "give it your function")]:
        verdict = images(*pair)
        assert not verdict.passed
        assert sentence in verdict.message


def tr_root(c, d):
    return torch.linalg.eigvals(c @ d).sqrt().real.sum()


def by_parts(a, b, text="m + (c + d).trace() - 2 * tr_root(c, d)", cov=lambda x: x.T.cov()):
    """A formula of m, the squared distance of the means, and the covariances c and d."""
    m = (a.mean(0) - b.mean(0)).square().sum()
    return eval(text, {**globals(), "m": m, "c": cov(a), "d": cov(b)})


def with_scipy(a, b):
    a, b = a.numpy(), b.numpy()
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root)


def by_singular_values(a, b):
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (a, b))
    squares = x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + squares)


def root(c):
    return torch.as_tensor(scipy.linalg.sqrtm(c.numpy()).real)


PARTS = {
    "(c + d).trace() - 2 * tr_root(c, d)": "difference of the means is missing",
    "m.sqrt() + (c + d).trace() - 2 * tr_root(c, d)": "should be squared",
    "m / 4 + (c + d).trace() - 2 * tr_root(c, d)": "is a sum",
    "m + (c + d).trace()": "is missing: two equal",
    "m + (c + d).trace() - tr_root(c, d)": "counts twice",
    "m + (c + d).trace() + 2 * tr_root(c, d)": "the wrong sign",
    "m": "means alone",
    "m + (c.diag().sqrt() - d.diag().sqrt()).square().sum()": "variances alone",
    "m + (c + d).trace() - 2 * (c @ d).diag().clamp(min=0).sqrt().sum()": "root of each element",
    "m + (c + d - 2 * root(c) @ root(d)).trace()": "unless they commute",
    "m + (c + d - 2 * c @ d).trace()": "The root is missing",
    "m + (c + d).trace() - 2 * (c @ d).trace().sqrt()": "trace of the root",
    "m + (c - d).square().sum()": "compare the covariances",
    "(m + (c + d).trace() - 2 * tr_root(c, d)).sqrt()": "leave it squared",
    "2 * (m + (c + d).trace() - 2 * tr_root(c, d))": "Compare the three parts",
}
FRECHETS = [(lambda a, b, t=text: by_parts(a, b, t), words) for text, words in PARTS.items()]
FRECHETS += trying.formulas("a, b", globals(), {
    "by_parts(a, b, cov=lambda x: x.T.cov(correction=0))": "divide by n - 1",
    "by_parts(a, b, cov=lambda x: x.cov())": "takes the variables as rows",
    "by_parts(a, b, cov=lambda x: x.T @ x / (len(x) - 1))": "shifted by the same",
    "(a.mean(0) - b.mean(0)) ** 2": "has shape (4,)",
    "by_parts(a.sub_(1), b)": "changes a or b itself",
    "1 + 2j": "A distance is real",
    "...": "no answer yet",
})  # fmt: skip


def cube(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def by_means(a, b, text="p + q - 2 * r", k=cube, diagonal=False):
    """A formula of the kernel's means within a, within b and between."""

    def within(x):
        if diagonal:
            return k(x, x).mean()
        return (k(x, x).sum() - k(x, x).trace()) / (len(x) * (len(x) - 1))

    return eval(text, {"p": within(a), "q": within(b), "r": k(a, b).mean()})


def by_loops(a, b):
    def k(x, y):
        return float(((x * y).mean() + 1) ** 3)

    def within(x):
        pairs = [k(x[i], x[j]) for i in range(len(x)) for j in range(i)]
        return sum(pairs) / len(pairs)

    between = [k(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(between) / len(between)


def divides_by_all(a, b):
    aa, bb = cube(a, a), cube(b, b)
    within = (aa.sum() - aa.trace()) / len(a) ** 2 + (bb.sum() - bb.trace()) / len(b) ** 2
    return within - 2 * cube(a, b).mean()


def off_diagonal_everywhere(a, b):
    ab, n = cube(a, b), min(len(a), len(b))
    between = (ab.sum() - ab.diagonal().sum()) / (ab.numel() - n)
    return by_means(a, b, "p + q") - 2 * between


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


KERNEL_FORMULAS = {
    "(x @ y.T + 1) ** 3": "divided by d",
    "(x @ y.T / d) ** 3": "The 1 inside",
    "(x @ y.T / d + 1) ** 2": "third power",
    "x @ y.T / d + 1": "means alone",
    "((x @ y.T + 1) / d) ** 3": "the product alone",
    "(x @ y.T / d**0.5 + 1) ** 3": "root of d",
    "(unit(x) @ unit(y).T + 1) ** 3": "normalise the features",
    "torch.exp(-torch.cdist(x, y).square() / 2)": "polynomial",
}
KERNELS = trying.formulas("a, b", globals(), {
    **{f"by_means(a, b, k=lambda x, y, d=5: {text})": w for text, w in KERNEL_FORMULAS.items()},
    "by_means(a, b, diagonal=True)": "with itself, too",
    "by_means(a, b, k=lambda x, y: (x @ y.T + 1) ** 3, diagonal=True)": "divided by d",
    "divides_by_all(a, b)": "you still divide by all pairs",
    "by_means(a, b, 'p + q - r')": "counts twice",
    "by_means(a, b, 'p + q + 2 * r')": "the wrong sign",
    "by_means(a, b, '2 * r - p - q')": "turned around",
    "by_means(a, b, 'p + q')": "between the sets is missing",
    "by_means(a, b, 'p - q')": "between them is missing",
    "by_means(a, b, 'abs(p + q - 2 * r) ** 0.5')": "leave it squared",
    "by_means(a, b).abs()": "absolute value",
    "by_means(a, b).clamp(min=0)": "You cut at 0",
    "off_diagonal_everywhere(a, b)": "within a set",
    "by_means(a, b) / 2": "Three means",
    "by_means(a, b) if len(a) > 4 else 0.3": "it should be",
    "cube(a, b)": "has shape (7, 7)",
    "by_means(a.div_(2), b)": "changes a or b itself",
    "...": "no answer yet",
})  # fmt: skip
GROUPS = [
    (frechet, [by_parts, with_scipy, by_singular_values, frechet_distance], FRECHETS),
    (kernel, [by_means, by_loops, kernel_distance], KERNELS),
]


test_accepts, test_rejects = trying.tests(GROUPS)


# -------------------------------------------------------------------- measures of few images


def normal(n, d=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(0.5, 2, d)


def source(n, seed, rate=2.0, d=128):
    generator = torch.Generator().manual_seed(seed)
    return Judged(torch.rand(n, 3, generator=generator) < rate, normal(n, d, seed))


def test_a_set_is_cut_from_its_start_and_the_rest_is_left():
    right = torch.tensor([[True, True, True], [True, False, True]]).repeat(5, 1)[:9]
    right[8] = False  # the rest
    judged, reference = Judged(right, normal(9)), normal(60, seed=1)
    assert estimates(RIGHT, judged, reference, 4) == [0.5, 0.5]
    for measure, distance in ((FRECHET, frechet_distance), (KERNEL, kernel_distance)):
        wanted = [distance(judged.features[i : i + 4], reference) for i in (0, 4)]
        assert estimates(measure, judged, reference, 4) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(ValueError, match="count is 10"):
        estimates(RIGHT, judged, reference, 10)


def test_the_frechet_distance_of_few_images_is_too_large_and_the_kernel_distance_is_not():
    reference, judged = normal(2000, 16, 1), source(2000, 2, d=16)
    means = {n: np.mean(estimates(FRECHET, judged, reference, n)) for n in (20, 50, 200)}
    assert means[20] > 2 * means[50] > 6 * means[200]
    found = np.array(estimates(KERNEL, judged, reference, 20))
    assert abs(found.mean()) < 3 * found.std(ddof=1) / len(found) ** 0.5
    assert found.min() < 0 < found.max()


def test_stamped_digits_are_as_asked_for_in_ten_handwritings():
    evaluator = Evaluator(60)
    asked, drawn = evaluator.asked, stamped(evaluator.asked)
    assert torch.equal(read_colours(drawn)[0], asked.stroke)
    assert judge(evaluator, drawn).right.all(1).double().mean() > 0.9
    seen = {}
    for i, digit in enumerate(asked.digit.tolist()):
        if digit not in seen:  # the first is itself
            assert torch.allclose(drawn[i], asked.images[i], atol=1e-5)
        ink = (drawn[i] - drawn[i][:, :1, :1]).abs().sum(0)
        assert torch.allclose(seen.setdefault(digit, ink / ink.max()), ink / ink.max(), atol=1e-4)
    assert len(seen) == 10


def test_the_explorer_shows_the_estimates():
    sources = {"real images": source(80, 0, 0.99), "student, 1 step": source(80, 1, 0.9)}
    reference = normal(200, seed=2)
    trying.walk(explorer.spread(sources, reference, counts=(20, 40)))
    for measure in MEASURES:
        fig = explorer.spread_figure(sources, reference, measure, 40)
        found = list(fig.axes[0].lines[0].get_xdata())
        assert found == estimates(measure, sources["real images"], reference, 40)
        trying.described(fig)
    with pytest.raises(ValueError, match="a number of images is 500"):
        explorer.spread(sources, reference, (20, 500))
    with pytest.raises(ValueError, match=r"sources have \[20, 80\] images"):
        explorer.spread_figure({"a": source(20, 0), "b": source(80, 0)}, reference, RIGHT, 10)


# -------------------------------------------------------------------- the study


def test_the_shipped_results():
    results = students.shipped()
    assert tuple(results.names) == students.NAMES
    assert results.solvers()[0][0].steps == students.TEACHER_STEPS
    rows = results.student(students.CD)
    right = [rows[seed].measured["right_4"] for seed in (0, 1, 2)]
    assert results.mean(students.CD, "right_4") == pytest.approx(sum(right) / 3)
    wrong = results.values(students.CD, "wrong_4")[0]
    assert wrong == pytest.approx((400 * (1 - right[0]) + 0.5) / 401)
    ratio = results.ratio(students.SLAM, students.CD, "latent_999")
    logs = [
        math.log(results.values(students.SLAM, "latent_999")[i] / rows[i].measured["latent_999"])
        for i in (0, 1, 2)
    ]
    assert ratio.value == pytest.approx(math.exp(sum(logs) / 3))
    # One of an unbiased distance's values is negative.
    assert results.ratio(students.CONTINUED, students.CD, "kernel_teacher_8") is None
    best = students.best_slam(results)
    assert best.startswith("SLAM")
    assert set(students.ahead_of_solvers(results, best)) == {1, 2, 4, 8}
    table = students.calls_table(results, "right").splitlines()
    assert table[0] == "| **As asked for, %** | 1 | 2 | 4 | 8 | 16 | 100 |"
    assert len(table) == 2 + len(results.names) + 2 + 1


def test_where_gamma_one_lies_among_drawn_gammas():
    found = students.embedding_at_one("official", draws=500)
    assert found["nearest_one"] > found["nearest_median"]
    assert students.cosines_to_one([0.5, 1.0])[1] == pytest.approx(1)
    smooth = students.embedding_at_one("smooth", draws=500)
    assert math.isnan(smooth["seen"])
    assert smooth["nearest_one"] < found["nearest_one"]


def test_more_of_the_solvers_steps_change_its_ends_little():
    model = LatentDiffusion(load_pipeline())
    levels = students.even_levels(model.schedule, 499, 6)
    assert torch.equal(levels.rho[[0, -2]], model.schedule.rho[[499, 0]])
    steps = levels.rho[:-1].double().log().diff()
    assert torch.allclose(steps, steps[:1].expand(6), rtol=1e-3)
    x, cond = model.draw_noise(2, torch.Generator().manual_seed(0)), ["a red seven", "a two"]
    ends = [
        students.solved(model, x, 499, model.encode_prompts(cond), 1.0, steps=n, batch=1)
        for n in (1, 5, 10)
    ]
    errors = [(end - ends[-1]).square().mean().sqrt() for end in ends[:2]]
    assert errors[1] < 0.2 * errors[0]


def test_figures_of_the_study():
    results = students.shipped()
    calls, errors = figures.calls_figure(results), figures.map_figure(results)
    lines = {line.get_label(): line for line in errors.axes[0].lines}
    values = list(results.values(students.SLAM, "latent_999").values())
    wanted = math.exp(np.mean(np.log(values)))
    assert lines[students.SLAM].get_ydata()[-1] == pytest.approx(wanted)
    found = {
        students.CONTINUED: {"a": Ratio(0.5, 0.4, 0.6), "b": Ratio(0.9, 0.7, 1.2)},
        students.OFFICIAL: {"a": Ratio(6.0, 5.0, 7.0), "b": Ratio(1.1, math.nan, math.nan)},
    }
    ratios = figures.student_ratios(found, {"a": "error", "b": "distance"})
    for fig in (calls, errors, figures.gamma_figure(results), ratios):
        trying.described(fig)


def test_other_figures_are_described():
    panels = {"F": {50: [3.0, 4.0], 100: [2.0, 2.1]}, "K": {50: [0.1, -0.1], 100: [0.0, 0.02]}}
    table = json.loads(data_path("digits-results/teacher.json").read_text("utf-8"))
    rows = [(Setting(**r["setting"]), Scores(**r["scores"])) for r in table["rows"]]
    floor = Scores(**table["floor"])
    for fig in (
        figures.over_images(panels, "Two measures over the number."),
        figures.confusion(torch.eye(10).long() * 5 + 1, "title", "Mistakes of ten digits."),
        figures.trade_off([row for row in rows if row[0].steps == 50], floor),
    ):
        trying.described(fig)

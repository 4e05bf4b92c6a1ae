"""Lesson 08: its checks, measures of few images, the shipped study, its figures and explorer."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from slam_course.lesson_08 import explorer, figures, students
from slam_course.lesson_08.checks import KNOWN, frechet, images, kernel
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
    **{f"(lambda v: {text})(v(p))": words for text, words in KNOWN["error"]},
    "0.01": "a product of two factors",
    "float('nan')": "should be finite",
    "torch.ones(3)": "it should be one number",
    "(1.0, 2.0)": "is a tuple",
    "...": "no answer yet",
}
NEEDED = {
    "4 * (v(p) + v(q)) / (p - q) ** 2": "smallest whole number",
    "int(4 * (v(p) + v(q)) / (p - q) ** 2)": "One image too few",
    **{f"math.ceil((lambda v, w, d, mean: {text})(v(p), v(q), (p - q) ** 2, (p + q) / 2))": words
       for text, words in KNOWN["needed"]},
    "math.ceil(4 * (v(p) + v(q)) / (q - p) ** 3)": "round up",
    "images_needed(p, q) * (1 if q > p else -1)": "should not matter",
    "p": "is 0.9",
    "float(images_needed(p, q))": "is a float, 690; it should be a whole number",
    "int(4 * (v(p) + v(q)) / (p - q) ** 2) + 1": "and one less is enough",
    "images_needed(p, q) and None": "is None: is a `return` missing",
    "...": "no answer yet",
}  # fmt: skip


def test_numbers_of_images():
    for pair in (
        (standard_error, images_needed),
        (standard_error, needed_by_counting),
        (standard_error, lambda p, q: np.int64(images_needed(p, q))),
    ):
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
    names = {"m": m, "c": cov(a), "d": cov(b), "of": lambda cov: by_parts(a, b, cov=cov)}
    names |= {"a": a, "b": b, "fd": frechet_distance, "unit": torch.nn.functional.normalize}
    return eval(text, {**globals(), **names})


def with_scipy(a, b):
    a, b = a.numpy(), b.numpy()
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root)


def root(c):
    return torch.as_tensor(scipy.linalg.sqrtm(c.numpy()).real)


PARTS = KNOWN["frechet"][:14]
PARTS += [("2 * (m + (c + d).trace() - 2 * tr_root(c, d))", "Compare the three parts")]
PARTS += KNOWN["frechet"][14:]
FRECHETS = [(lambda a, b, t=text: by_parts(a, b, t), words) for text, words in PARTS]
FRECHETS += trying.formulas("a, b", globals(), {
    "by_parts(a, b, cov=lambda x: x.T @ x / (len(x) - 1))": "shifted by the same",
    "by_parts(a.float(), b.float())": "loses digits",
    "(a.mean(0) - b.mean(0)) ** 2": "has shape (4,)",
    "by_parts(a.sub_(1), b)": "changes a itself",
    "1 + 2j": "it should be real",
    "...": "no answer yet",
})  # fmt: skip


def cube(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def by_means(a, b, text="p + q - 2 * r", k=cube):
    """A formula of the kernel's means within a, within b and between."""

    def within(x):
        return (k(x, x).sum() - k(x, x).trace()) / (len(x) * (len(x) - 1))

    ab, n, m = k(a, b), len(a), len(b)
    off = (ab.sum() - ab.diagonal().sum()) / (ab.numel() - min(n, m))
    names = {"n": n, "m": m, "aa": k(a, a).mean(), "bb": k(b, b).mean(), "off": off}
    return eval(text, {**names, "p": within(a), "q": within(b), "r": ab.mean()})


def by_loops(a, b):
    def k(x, y):
        return float(((x * y).mean() + 1) ** 3)

    def within(x):
        pairs = [k(x[i], x[j]) for i in range(len(x)) for j in range(i)]
        return sum(pairs) / len(pairs)

    between = [k(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(between) / len(between)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


MEANS = [(f"by_means(a, b, '{text}')", words) for text, words in KNOWN["means"]]
KERNELS = trying.formulas("a, b", globals(), {
    **{f"by_means(a, b, k=lambda x, y, d=5: {text})": w for text, w in KNOWN["kernel"]},
    **dict(MEANS[:-1]),
    "by_means(a, b, 'aa + bb - 2 * r', lambda x, y: (x @ y.T + 1) ** 3)": "divided by d",
    **{f"(lambda right: {text})(float(by_means(a, b)))": w for text, w in KNOWN["small"]},
    **dict(MEANS[-1:]),
    "by_means(a, b) / 2": "Three means",
    "by_means(a[:50], b[:50])": "use all that there are",
    "by_means(a.float(), b.float())": "loses digits",
    "by_means(a, b) if len(a) > 4 else 0.3": "it should be",
    "cube(a, b)": "has shape (7, 7)",
    "by_means(a.div_(2), b)": "changes a itself",
    "...": "no answer yet",
})  # fmt: skip
GROUPS = [
    (frechet, [by_parts, with_scipy, frechet_distance], FRECHETS),
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
    results, cd, slam = students.shipped(), students.CD, students.SLAM
    assert tuple(results.names) == students.NAMES
    assert results.solvers()[0][0].steps == students.TEACHER_STEPS
    rows = results.student(cd)
    right = [rows[seed].measured["right_4"] for seed in (0, 1, 2)]
    assert results.mean(cd, "right_4") == pytest.approx(sum(right) / 3)
    wrong = results.values(cd, "wrong_4")[0]
    assert wrong == pytest.approx((400 * (1 - right[0]) + 0.5) / 401)
    errors = [results.values(name, "latent_999") for name in (slam, cd)]
    logs = [math.log(errors[0][i] / errors[1][i]) for i in (0, 1, 2)]
    assert results.ratio(slam, cd, "latent_999").value == pytest.approx(math.exp(sum(logs) / 3))
    # One of an unbiased distance's values is negative.
    assert results.ratio(students.CONTINUED, cd, "kernel_teacher_8") is None
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


def test_figures_are_described():
    results = students.shipped()
    errors = figures.map_figure(results)
    lines = {line.get_label(): line for line in errors.axes[0].lines}
    values = list(results.values(students.SLAM, "latent_999").values())
    wanted = math.exp(np.mean(np.log(values)))
    assert lines[students.SLAM].get_ydata()[-1] == pytest.approx(wanted)
    found = {
        students.CONTINUED: {"a": Ratio(0.5, 0.4, 0.6), "b": Ratio(0.9, 0.7, 1.2)},
        students.OFFICIAL: {"a": Ratio(6.0, 5.0, 7.0), "b": Ratio(1.1, math.nan, math.nan)},
    }
    panels = {"F": {50: [3.0, 4.0], 100: [2.0, 2.1]}, "K": {50: [0.1, -0.1], 100: [0.0, 0.02]}}
    table = json.loads(data_path("digits-results/teacher.json").read_text("utf-8"))
    rows = [(Setting(**r["setting"]), Scores(**r["scores"])) for r in table["rows"]]
    for fig in (
        errors,
        figures.calls_figure(results),
        figures.gamma_figure(results),
        figures.student_ratios(found, {"a": "error", "b": "distance"}),
        figures.over_images(panels, "Two measures over the number."),
        figures.confusion(torch.eye(10).long() * 5 + 1, "title", "Mistakes of ten digits."),
        figures.trade_off([r for r in rows if r[0].steps == 50], Scores(**table["floor"])),
    ):
        trying.described(fig)

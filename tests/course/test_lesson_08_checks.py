"""The checks of lesson 08: right answers in several styles pass, plausible mistakes are named."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from slam_course.lesson_08 import checks as checks
from slam_edu.metrics import frechet_distance, kernel_distance

# -------------------------------------------------------------------- exercise 1


def standard_error(p, n):
    return (p * (1 - p) / n) ** 0.5


def images_needed(p, q):
    return math.ceil(4 * (p * (1 - p) + q * (1 - q)) / (p - q) ** 2)


def error_with_numpy(p, n):
    return np.sqrt(p - p**2) / np.sqrt(n)


def error_of_a_sample(p, n):
    return torch.tensor(p * (1 - p) / (n - 1)).sqrt()


def needed_by_counting(p, q):
    n = 1
    while abs(p - q) < 2 * math.hypot(standard_error(p, n), standard_error(q, n)):
        n += 1
    return n


def needed_pooled(p, q):
    mean = (p + q) / 2
    return int(np.ceil(2 * mean * (1 - mean) * (2 / (p - q)) ** 2))


@pytest.mark.parametrize(
    "right",
    [
        (standard_error, images_needed),
        (error_with_numpy, needed_by_counting),
        (error_of_a_sample, needed_pooled),
    ],
)
def test_right_numbers_of_images(right):
    verdict = checks.images(*right)
    assert verdict.passed, verdict.message


def v(p):
    return p * (1 - p)


def error(formula):
    return lambda p, n: formula(p, n), images_needed


def needed(formula):
    return standard_error, lambda p, q: math.ceil(formula(p, q))


def both(p, q):
    return v(p) + v(q)


WRONG_NUMBERS = {
    "variance": (*error(lambda p, n: v(p) / n), "variance of the rate"),
    "one image": (*error(lambda p, n: v(p) ** 0.5), "spread of one image"),
    "variance of one": (*error(lambda p, n: v(p)), "variance of one image"),
    "over n": (*error(lambda p, n: v(p) ** 0.5 / n), "root of n"),
    "of the count": (*error(lambda p, n: (v(p) * n) ** 0.5), "*number* of images"),
    "p alone": (*error(lambda p, n: (p / n) ** 0.5), "p alone"),
    "1 - p alone": (*error(lambda p, n: ((1 - p) / n) ** 0.5), "1 - p alone"),
    "worst case": (*error(lambda p, n: 0.5 / n**0.5), "at p = 1/2"),
    "two": (*error(lambda p, n: 2 * standard_error(p, n)), "two standard errors"),
    "95 %": (*error(lambda p, n: 1.96 * standard_error(p, n)), "95 % interval"),
    "per cent": (*error(lambda p, n: 100 * standard_error(p, n)), "per cent"),
    "other": (*error(lambda p, n: 0.01), "a product of two factors"),
    "nan": (*error(lambda p, n: float("nan")), "should be finite"),
    "shape": (*error(lambda p, n: torch.ones(3)), "return one number"),
    "pair": (*error(lambda p, n: (1.0, 2.0)), "is a tuple"),
    "stub": (lambda p, n: ..., lambda p, q: ..., "no answer yet"),
    "one stub": (standard_error, lambda p, q: ..., "no answer yet"),
    "no function": (standard_error, 1134, "give it your function"),
    "not rounded": (
        standard_error, lambda p, q: 4 * both(p, q) / (p - q) ** 2, "smallest whole number",
    ),
    "down": (
        standard_error, lambda p, q: int(4 * both(p, q) / (p - q) ** 2), "You round down",
    ),
    "one error": (*needed(lambda p, q: both(p, q) / (p - q) ** 2), "is one standard error"),
    "two not squared": (*needed(lambda p, q: 2 * both(p, q) / (p - q) ** 2), "to be squared"),
    "1.96": (*needed(lambda p, q: 1.96**2 * both(p, q) / (p - q) ** 2), "take 1.96"),
    "1.645": (*needed(lambda p, q: 1.645**2 * both(p, q) / (p - q) ** 2), "take 1.645"),
    "first alone": (*needed(lambda p, q: 4 * v(p) / (p - q) ** 2), "first rate's error"),
    "second alone": (*needed(lambda p, q: 4 * v(q) / (p - q) ** 2), "second rate's error"),
    "sum of errors": (
        *needed(lambda p, q: 4 * (v(p) ** 0.5 + v(q) ** 0.5) ** 2 / (p - q) ** 2),
        "*variances* add up",
    ),
    "both sets": (*needed(lambda p, q: 8 * both(p, q) / (p - q) ** 2), "both sets together"),
    "gap not squared": (*needed(lambda p, q: 4 * both(p, q) / abs(p - q)), "to be squared"),
    "no variances": (*needed(lambda p, q: 4 / (p - q) ** 2), "variances are missing"),
    "worst case of both": (*needed(lambda p, q: 2 / (p - q) ** 2), "worst case"),
    "signed": (
        standard_error, lambda p, q: math.ceil(4 * both(p, q) / (q - p) ** 3), "round up",
    ),
    "signed, negative": (
        standard_error,
        lambda p, q: images_needed(p, q) * (1 if q > p else -1),
        "should not matter",
    ),
    "raises": (standard_error, lambda p: p, "raised TypeError"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "sentence"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS
)
def test_wrong_numbers_of_images(first, second, sentence):
    verdict = checks.images(first, second)
    assert not verdict.passed
    assert sentence in verdict.message


# -------------------------------------------------------------------- exercise 2


def parts(a, b, correction=1):
    c = [torch.cov(x.T, correction=correction) for x in (a, b)]
    return (a.mean(0) - b.mean(0)).square().sum(), *c


def frechet_by_eigenvalues(a, b):
    mean, c1, c2 = parts(a, b)
    root = torch.linalg.eigvals(c1 @ c2).sqrt().real.sum()
    return mean + c1.trace() + c2.trace() - 2 * root


def frechet_with_scipy(a, b):
    a, b = a.numpy(), b.numpy()
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root)


def frechet_complex(a, b):
    mean, c1, c2 = parts(a, b)
    return mean + (c1 + c2).trace() - 2 * torch.linalg.eigvals(c1 @ c2).sqrt().sum()


def frechet_by_singular_values(a, b):
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (a, b))
    squares = x.square().sum() + y.square().sum()
    return float(parts(a, b)[0] + squares - 2 * torch.linalg.svdvals(x @ y.T).sum())


FRECHETS = [
    frechet_by_eigenvalues, frechet_with_scipy, frechet_complex, frechet_by_singular_values,
    frechet_distance,
]  # fmt: skip


@pytest.mark.parametrize("answer", FRECHETS)
def test_right_frechet_distances(answer):
    verdict = checks.frechet(answer)
    assert verdict.passed, verdict.message


def tr_root(c1, c2):
    return torch.linalg.eigvals(c1 @ c2).sqrt().real.sum()


def wrong_frechet(formula):
    """A wrong answer from the squared distance of the means and both covariances."""
    return lambda a, b: formula(*parts(a, b))


def of_the_images(a, b):
    c1, c2 = a.cov(), b.cov()
    return parts(a, b)[0] + c1.trace() + c2.trace() - 2 * tr_root(c1, c2)


def biased(a, b):
    mean, c1, c2 = parts(a, b, correction=0)
    return mean + (c1 + c2).trace() - 2 * tr_root(c1, c2)


def not_centred(a, b):
    c1, c2 = a.T @ a / (len(a) - 1), b.T @ b / (len(b) - 1)
    return parts(a, b)[0] + (c1 + c2).trace() - 2 * tr_root(c1, c2)


def in_place(a, b):
    a -= a.mean(0)
    return frechet_by_eigenvalues(a, b)


def root(c):
    return torch.as_tensor(scipy.linalg.sqrtm(c.numpy()).real)


WRONG_FRECHETS = {
    "no mean": (wrong_frechet(lambda m, c, d: (c + d).trace() - 2 * tr_root(c, d)),
                "difference of the means is missing"),
    "mean not squared": (
        wrong_frechet(lambda m, c, d: m.sqrt() + (c + d).trace() - 2 * tr_root(c, d)),
        "should be squared"),
    "mean of squares": (
        wrong_frechet(lambda m, c, d: m / 4 + (c + d).trace() - 2 * tr_root(c, d)), "is a sum"),
    "no product": (wrong_frechet(lambda m, c, d: m + (c + d).trace()), "is missing: two equal"),
    "once": (wrong_frechet(lambda m, c, d: m + (c + d).trace() - tr_root(c, d)), "counts twice"),
    "sign": (wrong_frechet(lambda m, c, d: m + (c + d).trace() + 2 * tr_root(c, d)),
             "the wrong sign"),
    "means alone": (wrong_frechet(lambda m, c, d: m), "means alone"),
    "variances": (
        wrong_frechet(
            lambda m, c, d: m + (c.diag().sqrt() - d.diag().sqrt()).square().sum()
        ), "variances alone"),
    "of elements": (
        wrong_frechet(
            lambda m, c, d: m + (c + d).trace() - 2 * (c @ d).diag().clamp(min=0).sqrt().sum()
        ), "root of each element"),
    "root by root": (
        wrong_frechet(lambda m, c, d: m + (c + d - 2 * root(c) @ root(d)).trace()),
        "unless they commute"),
    "no root": (wrong_frechet(lambda m, c, d: m + (c + d - 2 * c @ d).trace()),
                "The root is missing"),
    "root of trace": (
        wrong_frechet(lambda m, c, d: m + (c + d).trace() - 2 * (c @ d).trace().sqrt()),
        "trace of the root"),
    "covariances": (wrong_frechet(lambda m, c, d: m + (c - d).square().sum()),
                    "compare the covariances"),
    "root of all": (lambda a, b: frechet_by_eigenvalues(a, b).sqrt(), "leave it squared"),
    "biased": (biased, "divide by n - 1"),
    "rows": (of_the_images, "takes the variables as rows"),
    "about zero": (not_centred, "shifted by the same"),
    "mean length": (lambda a, b: (a.norm(dim=1).mean() - b.norm(dim=1).mean()) ** 2,
                    "shifted by the same"),
    "twice": (lambda a, b: 2 * frechet_by_eigenvalues(a, b), "Compare the three parts"),
    "per feature": (lambda a, b: (a.mean(0) - b.mean(0)) ** 2, "has shape (4,)"),
    "in place": (in_place, "changes a or b itself"),
    "complex": (lambda a, b: 1 + 2j, "A distance is real"),
    "raises": (lambda a, b: a @ b, "raised RuntimeError"),
    "stub": (lambda a, b: ..., "no answer yet"),
    "no function": (0.0, "give it your function"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "sentence"), WRONG_FRECHETS.values(), ids=WRONG_FRECHETS)
def test_wrong_frechet_distances(answer, sentence):
    verdict = checks.frechet(answer)
    assert not verdict.passed
    assert sentence in verdict.message


# -------------------------------------------------------------------- exercise 3


def cube(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_by_traces(a, b):
    aa, bb, ab = cube(a, a), cube(b, b), cube(a, b)
    n, m = len(a), len(b)
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return within - 2 * ab.mean()


def kernel_by_mask(a, b):
    def within(x):
        others = ~torch.eye(len(x), dtype=torch.bool)
        return cube(x, x)[others].mean()

    return within(a) + within(b) - 2 * cube(a, b).mean()


def kernel_by_loops(a, b):
    def k(x, y):
        return float(((x * y).mean() + 1) ** 3)

    def within(x):
        pairs = [k(x[i], x[j]) for i in range(len(x)) for j in range(i)]
        return sum(pairs) / len(pairs)

    between = [k(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(between) / len(between)


@pytest.mark.parametrize(
    "answer", [kernel_by_traces, kernel_by_mask, kernel_by_loops, kernel_distance]
)
def test_right_kernel_distances(answer):
    verdict = checks.kernel(answer)
    assert verdict.passed, verdict.message


def sums(k=cube, diagonal=False):
    """The means within and between that a formula is made of."""

    def of(a, b):
        def within(x):
            if diagonal:
                return k(x, x).mean()
            return (k(x, x).sum() - k(x, x).trace()) / (len(x) * (len(x) - 1))

        return within(a), within(b), k(a, b).mean()

    return of


def wrong_kernel(formula=lambda p, q, r: p + q - 2 * r, **parts_of):
    return lambda a, b: formula(*sums(**parts_of)(a, b))


def divides_by_all(a, b):
    aa, bb = cube(a, a), cube(b, b)
    within = (aa.sum() - aa.trace()) / len(a) ** 2 + (bb.sum() - bb.trace()) / len(b) ** 2
    return within - 2 * cube(a, b).mean()


def off_diagonal_everywhere(a, b):
    ab, n = cube(a, b), min(len(a), len(b))
    between = (ab.sum() - ab.diagonal().sum()) / (ab.numel() - n)
    p, q, _ = sums()(a, b)
    return p + q - 2 * between


def normalised(x, y):
    x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
    return (x @ y.T + 1) ** 3


def scales_in_place(a, b):
    a /= a.shape[1] ** 0.5
    return kernel_by_traces(a, b)


WRONG_KERNELS = {
    "diagonal": (wrong_kernel(diagonal=True), "with itself, too"),
    "all pairs": (divides_by_all, "you still divide by all pairs"),
    "once": (wrong_kernel(lambda p, q, r: p + q - r), "counts twice"),
    "plus": (wrong_kernel(lambda p, q, r: p + q + 2 * r), "the wrong sign"),
    "turned": (wrong_kernel(lambda p, q, r: 2 * r - p - q), "turned around"),
    "no term between": (wrong_kernel(lambda p, q, r: p + q), "between the sets is missing"),
    "difference": (wrong_kernel(lambda p, q, r: p - q), "between them is missing"),
    "root": (wrong_kernel(lambda p, q, r: (p + q - 2 * r).abs().sqrt()), "leave it squared"),
    "absolute": (lambda a, b: kernel_by_traces(a, b).abs(), "absolute value"),
    "cut": (lambda a, b: kernel_by_traces(a, b).clamp(min=0), "You cut at 0"),
    "diagonal between": (off_diagonal_everywhere, "within a set"),
    "not divided": (wrong_kernel(k=lambda x, y: (x @ y.T + 1) ** 3), "divided by d"),
    "no one": (wrong_kernel(k=lambda x, y: (x @ y.T / x.shape[1]) ** 3), "The 1 inside"),
    "one outside": (
        wrong_kernel(k=lambda x, y: (x @ y.T / x.shape[1]) ** 3 + 1), "The 1 inside"),
    "square": (wrong_kernel(k=lambda x, y: (x @ y.T / x.shape[1] + 1) ** 2), "third power"),
    "linear": (wrong_kernel(k=lambda x, y: x @ y.T / x.shape[1] + 1), "means alone"),
    "all divided": (
        wrong_kernel(k=lambda x, y: ((x @ y.T + 1) / x.shape[1]) ** 3), "the product alone"),
    "root of d": (
        wrong_kernel(k=lambda x, y: (x @ y.T / x.shape[1] ** 0.5 + 1) ** 3), "root of d"),
    "cosine": (wrong_kernel(k=normalised), "normalise the features"),
    "Gaussian": (
        wrong_kernel(k=lambda x, y: torch.exp(-torch.cdist(x, y).square() / 2)), "polynomial"),
    "not divided, diagonal": (
        wrong_kernel(k=lambda x, y: (x @ y.T + 1) ** 3, diagonal=True), "divided by d"),
    "half": (lambda a, b: kernel_by_traces(a, b) / 2, "Three means"),
    "for alike sets": (
        lambda a, b: kernel_by_traces(a, b) if len(a) > 4 else torch.tensor(0.3), "it should be"),
    "matrix": (cube, "has shape (7, 7)"),
    "in place": (scales_in_place, "changes a or b itself"),
    "raises": (lambda a, b: a + b.T, "raised RuntimeError"),
    "stub": (lambda a, b: ..., "no answer yet"),
    "no function": (None, "no answer yet"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "sentence"), WRONG_KERNELS.values(), ids=WRONG_KERNELS)
def test_wrong_kernel_distances(answer, sentence):
    verdict = checks.kernel(answer)
    assert not verdict.passed
    assert sentence in verdict.message


def test_every_verdict_names_its_exercise():
    assert repr(checks.images(standard_error, images_needed)).startswith(
        "Exercise 1, how many images: right. "
    )
    assert repr(checks.frechet(...)).startswith("Exercise 2, a Fréchet distance: not yet. ")
    assert repr(checks.kernel(kernel_by_mask)).startswith(
        "Exercise 3, an unbiased kernel distance: right. "
    )

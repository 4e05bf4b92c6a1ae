"""Checks of lesson 08: how many images, a Fréchet distance, an unbiased kernel distance."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from slam_course.checks import (
    Wrong,
    exercise,
    number,
    refuse_numbers,
    require,
    require_function,
)
from slam_edu.metrics import frechet_distance, kernel_distance

# -------------------------------------------------------------------- exercise 1


def _variance(p: float) -> float:
    return p * (1 - p)


@exercise("Exercise 1, how many images")
def images(
    standard_error: Callable[[float, int], float], images_needed: Callable[[float, float], int]
) -> str:
    """``standard_error(p, n)``, and ``images_needed(p, q) -> n``, images in each set."""
    require_function(standard_error)
    require_function(images_needed)
    for p, n in ((0.9, 400), (0.2, 400), (0.98, 2500)):
        found = number(standard_error(p, n), "What standard_error returns")
        right, v = math.sqrt(_variance(p) / n), _variance(p)
        refuse_numbers(
            found,
            (
                (v / n, "This is the variance of the rate; the standard error is its root."),
                (math.sqrt(v), "This is the spread of one image, 0 or 1. The mean over n images "
                 "is surer than that: where does n come in?"),
                (v, "This is the variance of one image, 0 or 1. What does a mean over n images "
                 "make of a variance?"),
                (math.sqrt(v) / n, "You divide by n; a mean over n has a standard error that "
                 "falls with the root of n."),
                (math.sqrt(v * n), "This is the spread of the *number* of images that are right; "
                 "a rate is that number over n."),
                (math.sqrt(p / n), "An image that is wrong varies the rate as well: p alone is "
                 "not the variance of one image. At p = 1 there should be no error at all."),
                (math.sqrt((1 - p) / n), "1 - p alone is not the variance of one image: at p = 0 "
                 "there should be no error at all."),
                (0.5 / math.sqrt(n), "This is the error at p = 1/2, the largest there is. p "
                 "should come in."),
                (2 * right, "This is two standard errors; return one."),
                (1.96 * right, "This is the half of a 95 % interval; return one standard "
                 "error."),
                (100 * right, "This is in per cent; rates here are fractions."),
            ),
            rtol=1e-3,
        )  # fmt: skip
        require(
            # n - 1 in place of n is no mistake: it differs by a part in 800 here.
            math.isclose(found, right, rel_tol=2e-3),
            f"standard_error({p}, {n}) is {found:.5f}. Of one image, which is right with "
            f"probability p, the variance is a product of two factors; then think of the mean of "
            f"n.",
        )
    for p, q in ((0.9, 0.93), (0.93, 0.9), (0.98, 0.987), (0.6, 0.75)):
        found = number(images_needed(p, q), "What images_needed returns")
        gap, both = (p - q) ** 2, _variance(p) + _variance(q)
        exact, pooled = 4 * both / gap, 8 * _variance((p + q) / 2) / gap
        if found in (math.ceil(exact), math.ceil(pooled)):
            continue
        sides = (math.sqrt(_variance(p)) + math.sqrt(_variance(q))) ** 2
        require(found > 0, f"images_needed({p}, {q}) is {found:g}; which of the two rates is "
                "larger should not matter.")  # fmt: skip
        refuse_numbers(
            found,
            ((exact, "Right but for the last step: return the smallest whole number that is "
              "enough."),),
            rtol=1e-9,
        )  # fmt: skip
        for n, sentence in (
            (both / gap, "At your n the difference is one standard error. It should be two, and "
             "n grows with the square of that."),
            (2 * both / gap, "The difference should be two standard errors: the 2 has to be "
             "squared on the way to n."),
            (1.96**2 * both / gap, "You take 1.96 standard errors; the exercise asks for two."),
            (1.645**2 * both / gap, "You take 1.645 standard errors; the exercise asks for two."),
            (4 * _variance(p) / gap, "Only the first rate's error is in it. Both sets are finite: "
             "the variances of the two rates add up."),
            (4 * _variance(q) / gap, "Only the second rate's error is in it. Both sets are "
             "finite: the variances of the two rates add up."),
            (4 * sides / gap, "You add the two standard errors. Of independent sets the "
             "*variances* add up; the error of the difference is the root of their sum."),
            (8 * both / gap, "This is the number in both sets together; return that of one."),
            (4 * both / math.sqrt(gap), "The difference has to be squared, as the errors are."),
            (4 / gap, "The rates' own variances are missing: near 1 rates vary less than at "
             "1/2."),
            (2 / gap, "This is the worst case, both rates at 1/2. Near 1 they vary less."),
            (1 / gap, "The rates' own variances are missing: near 1 rates vary less than at "
             "1/2."),
        ):  # fmt: skip
            if found in (math.floor(n), math.ceil(n)) or math.isclose(found, n, rel_tol=1e-6):
                raise Wrong(sentence)
        require(
            found != math.floor(exact),
            "You round down, and that is one image too few: at your n the difference is a little "
            "less than two standard errors.",
        )
        raise Wrong(
            f"images_needed({p}, {q}) is {found:g}. Set the difference of the rates equal to two "
            f"standard errors of that difference, and solve for n; then round up."
        )
    return "Near 1 a rate is sharp, and still a small difference takes a large set."


# -------------------------------------------------------------------- exercise 2


def _features(n: int, d: int, seed: int, shift: float) -> Tensor:
    """Features with unlike spreads that depend on each other, float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x @ mix + shift


def _root(c: Tensor) -> Tensor:
    """The symmetric root of a covariance."""
    values, vectors = torch.linalg.eigh(c)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@exercise("Exercise 2, a Fréchet distance")
def frechet(answer: Callable[[Tensor, Tensor], float]) -> str:
    """``answer(a, b) -> distance`` of features of shape ``(n, d)`` and ``(m, d)``."""
    require_function(answer)
    # As many of both first: then a covariance over the wrong dimension raises nothing.
    for n, m, first in ((12, 12, True), (30, 45, False)):
        a, b = _features(n, 4, 81, 0.3), _features(m, 4, 82, -0.4)
        before = a.clone(), b.clone()
        found = number(answer(a, b))
        require(
            torch.equal(a, before[0]) and torch.equal(b, before[1]),
            "Your function changes a or b itself; make new tensors.",
        )
        right = frechet_distance(a, b)
        if math.isclose(found, right, rel_tol=1e-5):
            continue
        mean = float((a.mean(0) - b.mean(0)).square().sum())
        c1, c2 = a.T.cov(), b.T.cov()
        traces = float(c1.trace() + c2.trace())
        both = (traces + mean - right) / 2  # tr (C1 C2)^(1/2)
        s1, s2 = a.var(0), b.var(0)
        b1, b2 = a.T.cov(correction=0), b.T.cov(correction=0)
        biased = mean + float(b1.trace() + b2.trace()) - 2 * _trace_root(b1, b2)
        rows = None
        if n == m:
            r1, r2 = a.cov(), b.cov()
            rows = mean + float(r1.trace() + r2.trace()) - 2 * _trace_root(r1, r2)
        elementwise = float((c1 @ c2).diagonal().clamp(min=0).sqrt().sum())
        r1, r2 = _root(c1), _root(c2)
        mistakes = [
            (right - mean, "The difference of the means is missing: two clouds of one shape in "
             "different places would have distance 0."),
            (right - mean + math.sqrt(mean), "The distance of the means should be squared, as "
             "the variances are."),
            (right - mean + mean / 4, "You average over the features; the square of a length is "
             "a sum."),
            (mean + traces, "The term with both covariances is missing: two equal sets would not "
             "have distance 0."),
            (mean + traces - both, "The last term counts twice. Try two equal sets: the distance "
             "should be 0."),
            (mean + traces + 2 * both, "The last term has the wrong sign. Try two equal sets: the "
             "distance should be 0."),
            (mean, "This is the distance of the means alone. How the features spread belongs to "
             "it."),
            (mean + float((s1.sqrt() - s2.sqrt()).square().sum()), "You use the variances alone, "
             "as if features did not depend on each other. Take whole covariance matrices."),
            (mean + traces - 2 * elementwise, "You take the root of each element. A root of a "
             "matrix M is a matrix R with R R = M; its trace is the sum of the roots of M's "
             "eigenvalues."),
            (mean + traces - 2 * float((r1 @ r2).trace()), "You multiply the two roots. The root "
             "of a product of matrices is another matrix, unless they commute."),
            (mean + traces - 2 * float((c1 @ c2).trace()), "The root is missing: C1 C2 has the "
             "unit of a variance squared."),
            (mean + traces - 2 * math.sqrt(max(float((c1 @ c2).trace()), 0)), "You take the root "
             "of the trace. It is the trace of the root: first the root, then the sum."),
            (mean + float((c1 - c2).square().sum()), "You compare the covariances element by "
             "element; the formula has a root of their product."),
            (math.sqrt(right), "This is the root of what is called the Fréchet distance in this "
             "field; leave it squared."),
            (biased, "Your covariances divide by n; of a sample divide by n - 1, as torch.cov "
             "does."),
        ]  # fmt: skip
        if rows is not None:
            mistakes.append((rows, "Your covariance is that of the images, not of the features: "
                             "torch.cov takes the variables as rows."))  # fmt: skip
        refuse_numbers(found, mistakes, rtol=1e-4)
        shift = number(answer(a + 5, b + 5))
        require(
            math.isclose(shift, found, rel_tol=1e-4, abs_tol=1e-6),
            "When both sets are shifted by the same, your distance changes. Use the difference "
            "of the means, and covariances, which are about the mean.",
        )
        where = "as many images in both sets" if first else "30 images and 45"
        raise Wrong(
            f"With {where} the distance is {found:.4f}; it should be {right:.4f}. Compare the "
            f"three parts: the means, the two traces, and the trace of the root of the product."
        )
    return "Two means and two covariances: that is all of the images it looks at."


def _trace_root(c1: Tensor, c2: Tensor) -> float:
    root = _root(c1)
    return float(torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum())


# -------------------------------------------------------------------- exercise 3


@exercise("Exercise 3, an unbiased kernel distance")
def kernel(answer: Callable[[Tensor, Tensor], float]) -> str:
    """``answer(a, b) -> distance`` of features of shape ``(n, d)`` and ``(m, d)``."""
    require_function(answer)
    for n, m in ((7, 7), (9, 14)):
        d = 5
        a, b = 0.5 * _features(n, d, 83, 0.5), 0.3 * _features(m, d, 84, -0.5)
        before = a.clone(), b.clone()
        found = number(answer(a, b))
        require(
            torch.equal(a, before[0]) and torch.equal(b, before[1]),
            "Your function changes a or b itself; make new tensors.",
        )
        right = kernel_distance(a, b)
        if math.isclose(found, right, rel_tol=1e-5):
            continue

        def of(
            k: Callable[[Tensor, Tensor], Tensor], a: Tensor = a, b: Tensor = b
        ) -> tuple[float, float, float]:
            """The two means without the diagonal, and the one between the sets."""
            aa, bb, ab = k(a, a), k(b, b), k(a, b)
            n, m = len(a), len(b)
            return (
                float(aa.sum() - aa.trace()) / (n * (n - 1)),
                float(bb.sum() - bb.trace()) / (m * (m - 1)),
                float(ab.mean()),
            )

        def cube(x: Tensor, y: Tensor, d: int = d) -> Tensor:
            return (x @ y.T / d + 1) ** 3

        def with_diagonal(k: Callable[[Tensor, Tensor], Tensor], a: Tensor = a, b: Tensor = b
                          ) -> float:  # fmt: skip
            return float(k(a, a).mean() + k(b, b).mean() - 2 * k(a, b).mean())

        aa, bb, ab = of(cube)
        whole = with_diagonal(cube)
        mistakes = [
            (whole, "Each image is compared with itself, too, which is always too near: this is "
             "the bias that is to be avoided. Leave the diagonals out."),
            (aa * (n - 1) / n + bb * (m - 1) / m - 2 * ab, "The diagonals are left out of the "
             "sums, but you still divide by all pairs: n (n - 1) of them are left."),
            (aa + bb - ab, "The term between the sets counts twice. Try two equal large sets: "
             "the distance should be about 0."),
            (aa + bb + 2 * ab, "The term between the sets has the wrong sign: sets that are alike "
             "should have distance 0."),
            (2 * ab - aa - bb, "The sign of the whole is turned around."),
            (aa - bb, "The two sets are told apart by more than their own spread: the term "
             "between them is missing, and both own terms count positive."),
            (aa + bb, "The term between the sets is missing."),
            (math.sqrt(abs(right)), "This is a root; leave it squared, or it could not fall below "
             "0 and would be biased."),
        ]  # fmt: skip
        if n == m:
            k = cube(a, b)
            off = float(k.sum() - k.trace()) / (n * (n - 1))
            mistakes.append((aa + bb - 2 * off, "The diagonal between the *two sets* is no pair "
                             "of an image with itself; only within a set are there such "
                             "pairs."))  # fmt: skip

        def cosine(x: Tensor, y: Tensor) -> Tensor:
            x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
            return (x @ y.T + 1) ** 3

        kernels = (
            (lambda x, y: (x @ y.T + 1) ** 3, "The product is not divided by d, the number of "
             "features."),
            (lambda x, y, d=d: (x @ y.T / d) ** 3, "The 1 inside the third power is missing; "
             "outside of it, it would cancel."),
            (lambda x, y, d=d: (x @ y.T / d + 1) ** 2, "The kernel is the third power; yours is "
             "the second."),
            (lambda x, y, d=d: x @ y.T / d + 1, "The third power of the kernel is missing; yours "
             "compares the means alone."),
            (lambda x, y, d=d: ((x @ y.T + 1) / d) ** 3, "The division by d belongs to the "
             "product alone, not to the 1."),
            (lambda x, y, d=d: (x @ y.T / math.sqrt(d) + 1) ** 3, "You divide by the root of d; "
             "divide by d."),
            (cosine, "You normalise the features first; the kernel takes them as they are."),
            (lambda x, y: torch.exp(-torch.cdist(x, y).square() / 2), "This is a Gaussian kernel; "
             "here it is a polynomial."),
        )  # fmt: skip
        for k, sentence in kernels:
            p, q, r = of(k)
            mistakes += [(p + q - 2 * r, sentence), (with_diagonal(k), sentence)]
        refuse_numbers(found, mistakes, rtol=1e-4)
        raise Wrong(
            f"With {n} images and {m} the distance is {found:.4f}; it should be {right:.4f}. "
            f"Three means of the kernel: within a, within b, between a and b; from the first two "
            f"leave an image's pair with itself out."
        )
    generator = torch.Generator().manual_seed(85)
    a, b = (torch.randn(40, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    for i in range(0, 40, 4):
        x, y = a[i : i + 4], b[i : i + 4]
        found, right = number(answer(x, y)), kernel_distance(x, y)
        if not math.isclose(found, right, rel_tol=1e-4, abs_tol=1e-9):
            refuse_numbers(
                found,
                (
                    (-right, "You take the absolute value. For two sets of one distribution the "
                     "distance has to fall below 0 as often as above: that is what unbiased "
                     "means."),
                    (0.0, "You cut at 0. For two sets of one distribution the distance has to "
                     "fall below 0 as often as above: that is what unbiased means."),
                ),
            )  # fmt: skip
            raise Wrong(
                f"For two sets of 4 of one distribution the distance is {found:.4f}; it should be "
                f"{right:.4f}."
            )
    return "No image is compared with itself, so the mean over many small sets is right."

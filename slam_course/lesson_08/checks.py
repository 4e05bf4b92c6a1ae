"""Checks of lesson 08: how many images, a Fréchet distance, an unbiased kernel distance."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from slam_course.checks import (
    Wrong,
    exercise,
    known_mistakes,
    number,
    refuse_numbers,
    require,
    whole,
    worked_out,
)
from slam_edu.metrics import frechet_distance, kernel_distance

KNOWN = known_mistakes(__file__)

# -------------------------------------------------------------------- exercise 1


@exercise("Exercise 1, how many images")
def images(
    standard_error: Callable[[float, int], float], images_needed: Callable[[float, float], int]
) -> str:
    """``standard_error(p, n)``, and ``images_needed(p, q) -> n``, images in each set."""
    for p, n in ((0.9, 40), (0.2, 400), (0.98, 2500)):
        found, v = number(standard_error(p, n), "What standard_error returns"), p * (1 - p)
        if math.isclose(found, math.sqrt(v / n), rel_tol=1e-4):
            continue
        refuse_numbers(found, worked_out(KNOWN["error"], p=p, n=n, v=v), rtol=1e-3)
        raise Wrong(
            f"standard_error({p}, {n}) is {found:.5f}. Of one image, which is right with "
            f"probability p, the variance is a product of two factors; then think of the mean of "
            f"n.",
        )
    # In the last case n is whole before it is rounded, in the one before it is large.
    for p, q in ((0.9, 0.93), (0.93, 0.9), (0.98, 0.987), (0.6, 0.75), (0.491, 0.5), (0.5, 1.0)):
        what = f"What images_needed({p}, {q}) returns"
        found = number(images_needed(p, q), what)
        v, w, d, mean = p * (1 - p), q * (1 - q), (p - q) ** 2, (p + q) / 2
        exact = 4 * (v + w) / d
        # With their own errors: where n is whole, rounding decides.
        theirs = 4 * sum(number(standard_error(rate, 1)) ** 2 for rate in (p, q)) / d
        if found in (math.ceil(exact), math.ceil(theirs)):
            whole(images_needed(p, q), what)
            continue
        require(found != 0, f"images_needed({p}, {q}) is 0; some images it takes.")
        require(found > 0, f"images_needed({p}, {q}) is {found:g}; which of the two rates is "
                "larger should not matter.")  # fmt: skip
        require(
            not math.isclose(found, exact, rel_tol=1e-9),
            "Right but for the last step: return the smallest whole number that is enough.",
        )
        for n, sentence in worked_out(KNOWN["needed"], p=p, q=q, v=v, w=w, d=d, mean=mean):
            if found in (math.floor(n), math.ceil(n)) or math.isclose(found, n, rel_tol=1e-6):
                raise Wrong(sentence)
        require(
            found != exact + 1,
            f"images_needed({p}, {q}) is {found:g}, and one less is enough: there the difference "
            f"is exactly two standard errors. Round up, and add nothing.",
        )
        require(
            found != math.floor(exact),
            "One image too few: at your n the difference is a little less than two standard "
            "errors. Round up, not down and not to the nearest.",
        )
        raise Wrong(
            f"images_needed({p}, {q}) is {found:g}. Set the difference of the rates equal to two "
            f"standard errors of that difference, and solve for n; then round up."
        )
    return "Near 1 a rate is sharp, and still a small difference takes a large set."


# -------------------------------------------------------------------- exercise 2


_DIGITS = (
    "Right for features about 0, wrong for the same ones far away from it: your function loses "
    "digits there. Compute in the features' own precision, which is float64."
)


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


def _trace_root(c: Tensor, d: Tensor) -> Tensor:
    """The trace of the root of C D."""
    root = _root(c)
    return torch.linalg.eigvalsh(root @ d @ root).clamp(min=0).sqrt().sum()


@exercise("Exercise 2, a Fréchet distance")
def frechet(answer: Callable[[Tensor, Tensor], float]) -> str:
    """``answer(a, b) -> distance`` of features of shape ``(n, d)`` and ``(m, d)``."""
    # As many of both first: then a covariance over the wrong dimension raises nothing.
    for n, m, where in ((12, 12, "as many images in both sets"), (30, 45, "30 images and 45")):
        a, b = _features(n, 4, 81, 0.3), _features(m, 4, 82, -0.4)
        found, right = number(answer(a, b)), frechet_distance(a, b)
        if math.isclose(found, right, rel_tol=1e-5):
            continue
        mean = (a.mean(0) - b.mean(0)).square().sum()

        def of(
            cov: Callable[[Tensor], Tensor], a: Tensor = a, b: Tensor = b, mean: Tensor = mean
        ) -> float:
            """The distance by another covariance; NaN where it gives two sizes."""
            c, d = cov(a), cov(b)
            fits = c.shape == d.shape
            return float(mean + (c + d).trace() - 2 * _trace_root(c, d)) if fits else math.nan

        known = worked_out(
            KNOWN["frechet"], m=mean, c=a.T.cov(), d=b.T.cov(), tr_root=_trace_root, root=_root,
            of=of, fd=frechet_distance, a=a, b=b, unit=torch.nn.functional.normalize,
        )  # fmt: skip
        refuse_numbers(found, known, rtol=1e-4)
        shift = number(answer(a + 5, b + 5))
        require(
            math.isclose(shift, found, rel_tol=1e-4, abs_tol=1e-6),
            "When both sets are shifted by the same, your distance changes. Use the difference "
            "of the means, and covariances, which are about the mean.",
        )
        raise Wrong(
            f"With {where} the distance is {found:.4f}; it should be {right:.4f}. Compare the "
            f"three parts: the means, the two traces, and the trace of the root of the product."
        )
    found, right = number(answer(a + 1e3, b + 1e3)), frechet_distance(a, b)
    require(math.isclose(found, right, rel_tol=1e-5), _DIGITS)
    return "Two means and two covariances: that is all of the images it looks at."


# -------------------------------------------------------------------- exercise 3

Kernel = Callable[[Tensor, Tensor], Tensor]


def _means(k: Kernel, a: Tensor, b: Tensor) -> dict[str, Tensor | float]:
    """The kernel's means within a and within b, without and with the diagonal, and between."""
    aa, bb, ab = k(a, a), k(b, b), k(a, b)
    n, m = len(a), len(b)
    return {
        "n": n, "m": m, "aa": aa.mean(), "bb": bb.mean(), "r": ab.mean(),
        "p": (aa.sum() - aa.trace()) / (n * (n - 1)),
        "q": (bb.sum() - bb.trace()) / (m * (m - 1)),
        "off": (ab.sum() - ab.trace()) / (n * (n - 1)) if n == m else math.nan,
    }  # fmt: skip


@exercise("Exercise 3, an unbiased kernel distance")
def kernel(answer: Callable[[Tensor, Tensor], float]) -> str:
    """``answer(a, b) -> distance`` of features of shape ``(n, d)`` and ``(m, d)``."""
    for n, m in ((7, 7), (9, 14)):
        a, b = 0.5 * _features(n, 5, 83, 0.5), 0.3 * _features(m, 5, 84, -0.5)
        found, right = number(answer(a, b)), kernel_distance(a, b)
        if math.isclose(found, right, rel_tol=1e-5):
            continue
        known = worked_out(KNOWN["means"], **_means(lambda x, y: (x @ y.T / 5 + 1) ** 3, a, b))
        for formula, sentence in KNOWN["kernel"]:

            def other(x: Tensor, y: Tensor, formula: str = formula) -> Tensor:
                names = {"x": x, "y": y, "d": 5, "unit": torch.nn.functional.normalize}
                return worked_out([(formula, "")], **names)[0][0]

            it = _means(other, a, b)
            known += [(it["p"] + it["q"] - 2 * it["r"], sentence)]
            known += [(it["aa"] + it["bb"] - 2 * it["r"], sentence)]
        refuse_numbers(found, known, rtol=1e-4)
        raise Wrong(
            f"With {n} images and {m} the distance is {found:.4f}; it should be {right:.4f}. "
            f"Three means of the kernel: within a, within b, between a and b; from the first two "
            f"leave an image's pair with itself out."
        )
    a, b = _features(60, 5, 86, 40.0), _features(55, 5, 87, 40.0)
    found = number(answer(a[:50], b[:50]))
    require(math.isclose(found, kernel_distance(a[:50], b[:50]), rel_tol=1e-5), _DIGITS)
    require(
        math.isclose(number(answer(a, b)), kernel_distance(a, b), rel_tol=1e-5),
        "Right for few images, wrong for 60 and 55 of them: use all that there are.",
    )
    generator = torch.Generator().manual_seed(85)
    a, b = (torch.randn(40, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    for x, y in zip(a.split(4), b.split(4), strict=True):
        found, right = number(answer(x, y)), kernel_distance(x, y)
        if not math.isclose(found, right, rel_tol=1e-4, abs_tol=1e-9):
            refuse_numbers(found, worked_out(KNOWN["small"], right=right))
            raise Wrong(
                f"For two sets of 4 of one distribution the distance is {found:.4f}; it should be "
                f"{right:.4f}."
            )
    return "No image is compared with itself, so the mean over many small sets is right."

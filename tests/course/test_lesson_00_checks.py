"""The checks of lesson 00 accept right answers in any form, and tell wrong ones apart."""

import pytest
import torch

from slam_course.lesson_00.checks import enough_steps, noisy_points

RIGHT = {
    "formula": lambda x0, eps, a, s: a * x0 + s * eps,
    "lerp": lambda x0, eps, a, s: torch.add(x0 * a, eps, alpha=float(s)),
    "stack": lambda x0, eps, a, s: (
        torch.stack([x0, eps]) * torch.stack([a, s])[:, None, None]
    ).sum(0),
}
WRONG = {
    "swapped": (lambda x0, eps, a, s: s * x0 + a * eps, "swapped"),
    "no alpha": (lambda x0, eps, a, s: x0 + s * eps, "not scaled: what is alpha"),
    "no noise": (lambda x0, eps, a, s: a * x0, "no noise is added"),
    "no sigma": (lambda x0, eps, a, s: a * x0 + eps, "noise is not scaled"),
    "variance": (lambda x0, eps, a, s: a * x0 + s**2 * eps, "standard deviation already"),
    "squares": (lambda x0, eps, a, s: a**2 * x0 + s**2 * eps, "used squared"),
    "minus": (lambda x0, eps, a, s: a * x0 - s * eps, "subtracted"),
    "bare sum": (lambda x0, eps, a, s: x0 + eps, "give each its coefficient"),
    "own noise": (lambda x0, eps, a, s: a * x0 + s * torch.zeros_like(x0) + 0.1, "values do not"),
    "in place": (lambda x0, eps, a, s: x0.mul_(a).add_(s * eps), "changes x0 itself"),
    "one point": (lambda x0, eps, a, s: (a * x0 + s * eps)[0], "shape"),
    "numpy": (lambda x0, eps, a, s: (a * x0 + s * eps).numpy(), "ndarray"),
    "stub": (lambda x0, eps, a, s: ..., "no answer yet"),
    "raises": (lambda x0, eps, a, s: undefined, "NameError"),  # noqa: F821
}


@pytest.mark.parametrize("name", RIGHT)
def test_noisy_points_accepts(name):
    assert noisy_points(RIGHT[name]).passed


@pytest.mark.parametrize("name", WRONG)
def test_noisy_points_rejects(name):
    answer, sentence = WRONG[name]
    verdict = noisy_points(answer)
    assert not verdict.passed
    assert sentence in verdict.message


DISTANCES = {1: 0.9, 2: 0.5, 4: 0.2, 8: 0.12, 16: 0.07, 32: 0.05}


@pytest.mark.parametrize(("answer", "target"), [(16, 0.1), (8, 0.15)])
def test_enough_steps_accepts_the_smallest(answer, target):
    assert enough_steps(answer, DISTANCES, target).passed


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (8, "the distance is 0.12, not below 0.1"),
        (1, "the distance is 0.90"),
        (32, "a smaller number of evaluations is as well"),
        (50, "50 was not measured; choose one of 1, 2, 4, 8, 16, 32"),
        (16.0, "is a float; it should be a whole number"),
        ("16", "is a str"),
        (True, "is a bool"),
        (..., "no answer yet"),
    ],
)
def test_enough_steps_rejects(answer, sentence):
    verdict = enough_steps(answer, DISTANCES)
    assert not verdict.passed
    assert sentence in verdict.message

"""Measures of small sets: their formulas, their bias, images of ten handwritings."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from slam_edu.digits.colours import read_colours
from slam_edu.digits.evaluate import Evaluator, feature_distances
from slam_course.lesson_08.measures import (
    FRECHET,
    KERNEL,
    RIGHT,
    Judged,
    estimates,
    frechet_distance,
    judge,
    kernel_distance,
    stamped,
)


def normal(n, d=128, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(0.5, 2, d) + shift


# -------------------------------------------------------------------- distances


@pytest.mark.parametrize("counts", [(300, 300), (150, 400), (200, 150)])
def test_the_frechet_distance_is_the_one_of_large_sets(counts):
    a, b = normal(counts[0]), normal(counts[1], seed=1, shift=0.2)
    assert frechet_distance(a, b) == pytest.approx(feature_distances(a, b)[0], rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_the_kernel_distance_is_torchmetrics_estimator():
    a, b = normal(200), normal(200, seed=1, shift=0.2)
    expected = poly_mmd(a.double(), b.double(), 3, None, 1.0)
    assert kernel_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_the_kernel_distance_of_sets_of_unlike_sizes():
    a, b = normal(5, 3).numpy().astype(float), normal(8, 3, seed=1).numpy().astype(float)

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [
        np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j])
        for s in (a, b)
    ]
    expected = sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])
    found = kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(expected, rel=1e-9)


def test_no_distance_to_the_same_set():
    a = normal(200)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert kernel_distance(a, a) < 0  # each image's pair with itself is left out of two terms


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (normal(1), normal(5), r"a has shape \(1, 128\)"),
        (normal(5), normal(5, 3), r"a has shape \(5, 128\); allowed: .*d = 3 as of the other"),
        (normal(5), normal(1), r"b has shape \(1, 128\)"),
        (normal(5)[0], normal(5), r"a has shape \(128,\)"),
        (normal(5) / 0, normal(5), "a holds 640 NaN or Inf"),
    ],
)
def test_wrong_sets(distance, a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(a, b)


def test_the_frechet_distance_of_few_images_is_too_large_and_the_kernel_distance_is_not():
    reference, many = normal(2000, 16, 1), normal(2000, 16, 2)
    judged = Judged(torch.ones(len(many), 3, dtype=torch.bool), many)
    frechet = {n: np.mean(estimates(FRECHET, judged, reference, n)) for n in (20, 50, 200)}
    assert frechet[20] > 2 * frechet[50] > 6 * frechet[200]
    kernel = np.array(estimates(KERNEL, judged, reference, 20))
    assert abs(kernel.mean()) < 3 * kernel.std(ddof=1) / len(kernel) ** 0.5
    assert kernel.min() < 0 < kernel.max()


# -------------------------------------------------------------------- small sets


def test_a_set_is_cut_from_its_start_and_the_rest_is_left():
    right = torch.tensor([[True, True, True], [True, False, True]]).repeat(5, 1)[:9]
    right[8] = False  # the rest
    judged = Judged(right, normal(9))
    assert estimates(RIGHT, judged, normal(5), 4) == [0.5, 0.5]
    assert estimates(RIGHT, judged, normal(5), 9) == [pytest.approx(4 / 9)]
    assert [len(judged[:4]), len(judged)] == [4, 9]


def test_each_measure_is_of_its_set_alone():
    judged, reference = Judged(torch.ones(60, 3, dtype=torch.bool), normal(60)), normal(90, seed=1)
    for measure, distance in ((FRECHET, frechet_distance), (KERNEL, kernel_distance)):
        parts = [distance(judged.features[i : i + 30], reference) for i in (0, 30)]
        assert estimates(measure, judged, reference, 30) == pytest.approx(parts, rel=1e-12)


def test_wrong_measures_and_counts():
    judged = Judged(torch.ones(5, 3, dtype=torch.bool), normal(5))
    with pytest.raises(ValueError, match="measure is 'FID'; allowed: 'all right'"):
        estimates("FID", judged, normal(5), 2)
    for count in (1, 6):
        with pytest.raises(ValueError, match=f"count is {count}"):
            estimates(RIGHT, judged, normal(5), count)


# -------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(60)


def test_images_are_judged_as_the_evaluator_does(evaluator):
    images = evaluator.asked.images.roll(1, 0)
    judged = judge(evaluator, images)
    assert torch.equal(judged.right, evaluator.right(images))
    assert torch.equal(judged.features, evaluator.features(images))
    assert judge(evaluator, images[:7], evaluator.asked).right.shape == (7, 3)


def test_stamped_digits_are_as_asked_for_in_ten_handwritings(evaluator):
    asked = evaluator.asked
    images = stamped(asked)
    assert torch.equal(read_colours(images)[0], asked.stroke)
    assert torch.equal(read_colours(images)[1], asked.background)
    assert evaluator.right(images).all(1).double().mean() > 0.9
    seen = {}
    for i, digit in enumerate(asked.digit.tolist()):
        if digit not in seen:  # the first is itself
            assert torch.allclose(images[i], asked.images[i], atol=1e-5)
        ground = images[i][:, :1, :1]
        ink = (images[i] - ground).abs().sum(0)
        ink = ink / ink.max()
        assert torch.allclose(seen.setdefault(digit, ink), ink, atol=1e-4)
    assert len(seen) == 10

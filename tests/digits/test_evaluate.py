"""The judge: what is right, how far two sets of images are apart, and a table that goes on."""

import numpy as np
import pytest
import scipy.linalg
import torch

from slam_edu.digits import CaptionedDigits, DigitClassifier
from slam_edu.digits.evaluate import Evaluator, Setting, draw_images
from slam_edu.metrics import feature_distances
from slam_edu.sampling import last, sample_pf_ode
from slam_edu.sd import LatentDiffusion
from tests.digits.conftest import tiny_pipeline

COUNT = 12


class Oracle(DigitClassifier):
    """Reads any image of the held-out digits right, by looking it up; else 0."""

    def __init__(self) -> None:
        super().__init__((8, 8, 8))
        self.known = {}

    def learn(self, images, digits):
        for image, digit in zip(images, digits.tolist(), strict=True):
            self.known[image.numpy().tobytes()] = digit

    def read(self, images, batch=256):
        return torch.tensor([self.known.get(image.numpy().tobytes(), 0) for image in images])


@pytest.fixture(scope="module")
def evaluator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        oracle = Oracle().eval()
    made = Evaluator(COUNT, classifier=oracle)
    oracle.learn(made.asked.images, made.asked.digit)
    return made


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny_pipeline())


def features(count, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(128, 128, generator=torch.Generator().manual_seed(99)) / 11
    return (torch.randn(count, 128, generator=generator) @ mixing + shift).float()


# -------------------------------------------------------------------- distances


def test_the_frechet_distance_is_the_closed_formula():
    a, b = features(400, 1), 1.3 * features(300, 2, shift=0.2)
    x, y = a.double().numpy(), b.double().numpy()
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c @ d)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root.real)
    assert feature_distances(a, b)[0] == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance_is_the_unbiased_mean_discrepancy():
    """As large as the subsets are, every subset is the whole set."""
    a, b = features(60, 1), 1.3 * features(60, 2, shift=0.2)

    def kernel(p, q):
        return (p.double() @ q.double().T / 128 + 1) ** 3

    n = len(a)
    same = [(k.sum() - k.trace()) / (n * (n - 1)) for k in (kernel(a, a), kernel(b, b))]
    expected = sum(same) - 2 * kernel(a, b).mean()
    _, found, spread = feature_distances(a, b)
    assert found == pytest.approx(float(expected), rel=1e-9)
    assert spread < 1e-12
    _, found, spread = feature_distances(features(700, 1), 1.3 * features(600, 2, shift=0.2))
    assert found == pytest.approx(float(expected), rel=0.2)
    assert spread > 0


# -------------------------------------------------------------------- the evaluator


def test_right(evaluator):
    asked = evaluator.asked
    assert evaluator.right(asked.images).all()
    assert evaluator.right(asked.images[:5]).shape == (5, 3)
    # Exchanged images: each column is judged for itself.
    order = torch.arange(COUNT).roll(1)
    found = evaluator.right(asked.images[order])
    for column, name in enumerate(("digit", "stroke", "background")):
        value = getattr(asked, name)
        assert torch.equal(found[:, column], value[order] == value)
        assert not found[:, column].all()
    # Images of something else are wrong in all.
    noise = torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = evaluator.right(noise)
    assert not found[:, 1:].any()
    assert torch.equal(found[:, 0], asked.digit == 0)
    # With other wishes than the prompts'.
    other = CaptionedDigits("test").batch(range(0, 2 * COUNT, 2), 8)
    found = evaluator.right(asked.images, other)
    assert found[:, 0].all()
    assert torch.equal(found[:, 1], other.stroke == asked.stroke)
    assert not found[:, 1].all()


def test_scores(evaluator):
    images = evaluator.asked.images.clone()
    images[:3] = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    digits = evaluator.asked.digit[:3]
    found = evaluator.score(images)
    assert found.count == COUNT
    assert found.digit == pytest.approx((9 + int((digits == 0).sum())) / COUNT)
    assert found.stroke == found.background == found.all_right == 9 / COUNT
    expected = feature_distances(evaluator.reference, evaluator.features(images))
    assert (found.frechet, found.kernel, found.kernel_std) == expected
    floor = evaluator.floor()
    assert (floor.digit, floor.stroke, floor.background, floor.all_right) == (1, 1, 1, 1)
    assert floor.frechet < found.frechet


# -------------------------------------------------------------------- drawing


@pytest.mark.parametrize(("sampler", "guidance"), [("ddim", 2.0), ("dpmpp_2m", 0.0)])
def test_images_are_the_samplers(sampler, guidance, model, evaluator):
    setting = Setting(sampler=sampler, steps=3, guidance=guidance)
    prompts = evaluator.prompts[:5]
    noise = model.draw_noise(5, torch.Generator().manual_seed(1))
    images = draw_images(model, prompts, setting, noise, batch=2)
    uncond = model.encode_prompts([""] * 5) if guidance else None
    with torch.no_grad():
        expected = last(
            sample_pf_ode(
                model.network, noise, model.schedule, 3, method=sampler,
                cond=model.encode_prompts(prompts), uncond=uncond, guidance=guidance,
            )
        )  # fmt: skip
    assert images.shape == (5, 3, 32, 32)
    assert not images.requires_grad
    torch.testing.assert_close(images, model.decode(expected), rtol=1e-4, atol=1e-4)

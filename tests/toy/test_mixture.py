"""The exact quantities of a mixture: against autograd, torch.distributions, and quadrature."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions as dist

from slam_edu import NoiseSchedule, to_prediction
from slam_edu.toy import DATASETS, GaussianMixture, make, picture
from slam_edu.toy import mixture as module
from tests.helpers import KINDS, assert_near, f64, level, max_error, noise, properties

SD = NoiseSchedule.stable_diffusion(torch.float64)
SETS = {name: make(name, torch.float64) for name in DATASETS}
SETS["cat"] = picture(components=400, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def samples_at(mixture, here, n=64, seed=1):
    """Where the level's samples are, and a few points far away."""
    x = mixture.sample_at(here, n, generator(seed))
    x[:4] = 5 * x[:4]
    return x


@st.composite
def mixtures(draw):
    """Up to 7 components in up to 3 dimensions, of equal or unequal width and weight."""
    count, dim = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 10_000))
    std = draw(st.floats(0.05, 2.0))
    if draw(st.booleans()):
        std = std * (1 + noise(count, seed=seed + 1).abs())
    weights = noise(count, seed=seed + 2).abs() + 0.01 if draw(st.booleans()) else None
    return GaussianMixture(2 * noise(count, dim, seed=seed), std, weights)


levels = st.builds(level, st.floats(0.02, 3.0), st.floats(1e-3, 30.0))


def at_level(mixture, here):
    """The same density by torch.distributions, from the definition."""
    std = torch.sqrt((here.alpha * mixture.std) ** 2 + here.sigma**2).expand(len(mixture))
    return dist.MixtureSameFamily(
        dist.Categorical(mixture.weights),
        dist.Independent(dist.Normal(here.alpha * mixture.means, std[:, None]), 1),
    )


@properties
@given(mixtures(), levels)
def test_log_density_is_that_of_torch_distributions(mixture, here):
    x = 3 * here.norm * noise(20, mixture.dim, seed=3)
    assert_near(mixture.log_density(x, here), at_level(mixture, here).log_prob(x), atol=1e-9)


@pytest.mark.parametrize("name", ["pinwheel", "cat"])
@pytest.mark.parametrize("t", [None, 19, 499])
def test_score_is_the_gradient_of_the_log_density(name, t):
    mixture = SETS[name]
    here = None if t is None else SD(t)
    x = samples_at(mixture, level(1.0, 0.0) if here is None else here).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, here).sum(), x)
    assert_near(mixture.score(x, here), gradient, rtol=1e-9, atol=1e-9)


@properties
@given(mixtures(), levels)
def test_tweedie(mixture, here):
    x = 2 * here.norm * noise(20, mixture.dim, seed=5)
    tweedie = (x + here.sigma**2 * mixture.score(x, here)) / here.alpha
    scale = (here.norm / here.alpha).item()
    assert_near(mixture.denoise(x, here), tweedie, rtol=1e-9, atol=1e-11 * scale**2)


@pytest.mark.parametrize("here", [level(0.99, 0.1), level(0.5, 0.8), level(1.0, 9.0)])
def test_denoiser_is_the_posterior_mean_by_quadrature(here):
    mixture = GaussianMixture(
        f64([[-1.5], [0.2], [1.0]]), f64([0.3, 0.1, 0.5]), f64([3.0, 1.0, 2.0])
    )
    x0 = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    prior = dist.MixtureSameFamily(
        dist.Categorical(f64([3.0, 1.0, 2.0])),
        dist.Normal(f64([-1.5, 0.2, 1.0]), f64([0.3, 0.1, 0.5])),
    ).log_prob(x0)
    x = here.norm * torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)
    joint = prior - (x[:, None] - here.alpha * x0) ** 2 / (2 * here.sigma**2)
    posterior = joint.softmax(dim=1)
    assert_near(mixture.denoise(x[:, None], here)[:, 0], posterior @ x0, rtol=1e-9, atol=1e-12)
    noise_mean = posterior @ x0 * -here.alpha / here.sigma + x / here.sigma
    assert_near(mixture.predict(x[:, None], here).eps[:, 0], noise_mean, rtol=1e-8, atol=1e-10)


def test_points_without_width():
    """std = 0: the perfect denoiser of a data set, a softmax over its points."""
    points = noise(50, 2, seed=8)
    mixture, here = GaussianMixture(points, 0.0), SD(259)
    x = samples_at(mixture, here)
    weights = (-(torch.cdist(x, here.alpha * points) ** 2) / (2 * here.sigma**2)).softmax(dim=1)
    assert_near(mixture.denoise(x, here), weights @ points, rtol=1e-9, atol=1e-12)
    for call in (mixture.predict, mixture.score, mixture.log_density, mixture.denoise):
        with pytest.raises(ValueError, match=r"sigma is 0.*point mass"):
            call(x, level(1.0, 0.0))
    with pytest.raises(ValueError, match=r"sigma is 0"):
        mixture.log_density(x)


@pytest.mark.parametrize("name", ["pinwheel", "cat"])
@pytest.mark.parametrize("sigma", [1e-4, 15.0])
def test_float32_is_as_good_as_float32_can_be(name, sigma):
    """Also on extreme levels; the 32-bit mixture's own numbers are used in 64 bits."""
    mixture = copy.deepcopy(SETS[name]).float()
    exact = copy.deepcopy(mixture).double()
    here = level(1.0, sigma, torch.float32)
    x = samples_at(mixture, here, n=200)
    reference = exact.predict(x.double(), level(1.0, here.sigma.double().item()))
    prediction = mixture.predict(x, here)
    spread = (1 + x.abs().max().item() / (1 + sigma)) * 1e-6
    assert max_error(prediction.x0, reference.x0) < 10 * spread
    # eps divides by the width of a component where that is below sigma's.
    assert max_error(prediction.eps, reference.eps) < 2 * spread / mixture.std.min().item()


def test_chunks_change_nothing(monkeypatch):
    mixture = SETS["pinwheel"]
    one, many = SD(300), SD(torch.arange(0, 1000, 10))
    x = samples_at(mixture, many, n=100)
    whole = [mixture.score(x, one), mixture.score(x, many), mixture.log_density(x, many)]
    monkeypatch.setattr(module, "_CHUNK_CPU", 7 * len(mixture))
    parts = [mixture.score(x, one), mixture.score(x, many), mixture.log_density(x, many)]
    for a, b in zip(whole, parts, strict=True):
        assert_near(b, a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["pinwheel", "cat"])
def test_samples_have_the_moments(name):
    mixture, n = SETS[name], 200_000
    x = mixture.sample(n, generator(100))
    # Five standard errors; a coordinate's variance is about 1, its fourth moment below 6.
    assert max_error(x.mean(0), mixture.mean()) < 5 * 1.5 / math.sqrt(n)
    assert max_error(torch.cov(x.T), mixture.covariance()) < 5 * 2.5 / math.sqrt(n)


@properties
@given(mixtures())
def test_standardized(mixture):
    same = mixture.standardized()
    assert_near(same.mean(), torch.zeros(mixture.dim, dtype=torch.float64), atol=1e-12)
    assert same.covariance().trace().item() == pytest.approx(mixture.dim)
    # The same shape: densities differ by the change of volume alone.
    scale = (mixture.covariance().trace() / mixture.dim).sqrt()
    x = 2 * noise(10, mixture.dim, seed=9)
    there = mixture.log_density(mixture.mean() + scale * x) + mixture.dim * scale.log()
    assert_near(same.log_density(x), there, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [torch.tensor(499), f64([0.5, 20.25, 998.7])])
def test_network_gives_the_raw_output(kind, t):
    mixture = SETS["spiral"]
    here = SD(t)
    x = samples_at(mixture, SD(torch.tensor([19, 499, 999])), n=3)
    output = mixture.network(SD, kind)(x, t)
    prediction = to_prediction(output, x, here, kind)
    exact = mixture.predict(x, here)
    assert_near(prediction.x0, exact.x0, rtol=1e-9, atol=1e-10)
    assert_near(prediction.eps, exact.eps, rtol=1e-9, atol=1e-10)


def test_network_refuses():
    mixture = make("ring")
    schedule = NoiseSchedule.stable_diffusion()
    with pytest.raises(ValueError, match=r"prediction_type is 'eps'; allowed: 'epsilon'"):
        mixture.network(schedule, "eps")
    with pytest.raises(ValueError, match=r"schedule is torch.float64.*torch.float32"):
        mixture.network(SD)
    with pytest.raises(ValueError, match=r"cond is a str; allowed: None"):
        mixture.network(schedule)(torch.zeros(3, 2), torch.tensor(3), "a cat")
    with pytest.raises(ValueError, match=r"t is 1000; allowed: 0 <= t <= 999"):
        mixture.network(schedule)(torch.zeros(3, 2), torch.tensor(1000))


MEANS = torch.zeros(3, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("means", "std", "weights", "message"),
    [
        (torch.zeros(3, 2, 1), 0.1, None, r"means have shape \(3, 2, 1\); allowed: \(K, D\)"),
        (torch.full((3, 2), math.nan), 0.1, None, "means holds 6 NaN"),
        (MEANS, -0.1, None, r"std is -0.1 once; allowed: 0 or more"),
        (MEANS, torch.tensor(0.1), None, "std is torch.float32 on cpu; allowed: that of the mea"),
        (MEANS, 0.1, f64([0.0, 0.0, 0.0]), "weights are all 0"),
    ],
)
def test_construction_refuses(means, std, weights, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(means, std, weights)


@pytest.mark.parametrize(
    ("x", "here", "message"),
    [
        (torch.zeros(4, 2), SD(9), "x is torch.float32 on cpu; allowed: that of the mixture"),
        (torch.zeros(4, 2, dtype=torch.float64), SD(torch.arange(3)), "alpha has 3 values"),
    ],
)
def test_methods_refuse(x, here, message):
    for method in (SETS["ring"].score, SETS["ring"].predict):
        with pytest.raises(ValueError, match=message):
            method(x, here)

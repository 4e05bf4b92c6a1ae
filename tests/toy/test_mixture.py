"""The exact quantities of a mixture: against autograd, torch.distributions, and quadrature."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions as dist

from slam_edu import (
    DistillConfig,
    Level,
    NoiseSchedule,
    SubPathDistiller,
    ddim_step,
    pf_ode_trajectory,
    to_prediction,
)
from slam_edu.toy import DATASETS, GaussianMixture, make, picture
from slam_edu.toy import mixture as module
from tests.helpers import (
    KINDS,
    NoFloat64,
    assert_near,
    f64,
    level,
    max_error,
    noise,
    on_devices,
    properties,
)

SD = NoiseSchedule.stable_diffusion(torch.float64)
TIMES = (0, 19, 259, 499, 999)
SETS = {name: make(name, torch.float64) for name in DATASETS}
SETS["cat"] = picture(components=400, dtype=torch.float64)
each_set = pytest.mark.parametrize("name", SETS)


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
        dist.Independent(
            dist.Normal(here.alpha * mixture.means, std[:, None].expand_as(mixture.means)),
            1,
        ),
    )


# -------------------------------------------------------------------- density and score


@properties
@given(mixtures(), levels)
def test_log_density_is_that_of_torch_distributions(mixture, here):
    x = 3 * here.norm * noise(20, mixture.dim, seed=3)
    assert_near(mixture.log_density(x, here), at_level(mixture, here).log_prob(x), atol=1e-9)


@each_set
@pytest.mark.parametrize("t", [None, *TIMES])
def test_score_is_the_gradient_of_the_log_density(name, t):
    mixture = SETS[name]
    here = None if t is None else SD(t)
    x = samples_at(mixture, level(1.0, 0.0) if here is None else here).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, here).sum(), x)
    assert_near(mixture.score(x, here), gradient, rtol=1e-9, atol=1e-9)


@each_set
def test_score_at_one_level_per_sample(name):
    mixture = SETS[name]
    here = SD(torch.arange(0, 1000, 37))
    x = samples_at(mixture, here, n=len(here)).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, here).sum(), x)
    assert_near(mixture.score(x, here), gradient, rtol=1e-9, atol=1e-9)


@properties
@given(mixtures(), levels)
def test_score_off_the_variance_preserving_levels(mixture, here):
    x = (2 * here.norm * noise(20, mixture.dim, seed=4)).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, here).sum(), x)
    assert_near(mixture.score(x, here), gradient, rtol=1e-8, atol=1e-8)


def test_score_can_be_differentiated():
    mixture, here = SETS["pinwheel"], SD(259)
    x = samples_at(mixture, here, n=6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mixture.score(x, here), (x,))


@pytest.mark.parametrize("here", [None, SD(19), SD(499), level(0.4, 0.3), level(2.0, 1.5)])
@pytest.mark.parametrize("name", ["ring", "pinwheel", "cat"])
def test_density_integrates_to_one(name, here):
    mixture = SETS[name]
    scale = 1.0 if here is None else here.norm.item()
    line = torch.linspace(-5.5 * scale, 5.5 * scale, 481, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    mass = mixture.log_density(grid, here).exp().sum() * (line[1] - line[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=2e-6)


# -------------------------------------------------------------------- the denoiser


@properties
@given(mixtures(), levels)
def test_tweedie(mixture, here):
    x = 2 * here.norm * noise(20, mixture.dim, seed=5)
    tweedie = (x + here.sigma**2 * mixture.score(x, here)) / here.alpha
    scale = (here.norm / here.alpha).item()
    assert_near(mixture.denoise(x, here), tweedie, rtol=1e-9, atol=1e-11 * scale**2)


@properties
@given(mixtures(), levels)
def test_prediction_is_consistent(mixture, here):
    x = 2 * here.norm * noise(20, mixture.dim, seed=6)
    prediction = mixture.predict(x, here)
    assert_near(prediction.eps, -here.sigma * mixture.score(x, here), rtol=1e-9, atol=1e-12)
    both = here.alpha * prediction.x0 + here.sigma * prediction.eps
    assert_near(both, x, rtol=1e-9, atol=1e-12 * here.norm.item())


@pytest.mark.parametrize(
    "here", [level(0.99, 0.1), level(0.5, 0.8), level(0.07, 0.9975), level(1.0, 9.0)]
)
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


def test_one_gaussian_in_closed_form():
    mean, std, here = f64([[0.7, -0.4]]), 0.6, SD(499)
    mixture = GaussianMixture(mean, std)
    x = 2 * noise(30, 2)
    variance = (here.alpha * std) ** 2 + here.sigma**2
    shrink = here.alpha * std**2 / variance
    assert_near(mixture.denoise(x, here), mean + shrink * (x - here.alpha * mean))
    assert_near(mixture.score(x, here), -(x - here.alpha * mean) / variance)


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


@each_set
def test_without_noise_nothing_is_denoised(name):
    mixture = SETS[name]
    x = mixture.sample(20, generator())
    prediction = mixture.predict(0.5 * x, level(0.5, 0.0))
    assert_near(prediction.x0, x, rtol=1e-12)
    assert prediction.eps.abs().max() == 0


@each_set
def test_pure_noise_is_the_data_mean(name):
    mixture = SETS[name]
    x = 1e6 * noise(20, 2, seed=2)
    prediction = mixture.predict(x, level(1.0, 1e6))
    assert max_error(prediction.x0, mixture.mean().expand_as(x)) < 1e-5
    assert_near(prediction.eps, x / 1e6, atol=1e-5)


# -------------------------------------------------------------------- precision, shapes, memory


@each_set
@pytest.mark.parametrize("sigma", [1e-4, 0.03, 0.3, 3.0, 15.0, 1e3, 1e5])
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


@pytest.mark.parametrize("name", ["spiral", "pinwheel"])
def test_chunks_change_nothing(name, monkeypatch):
    mixture = SETS[name]
    one, many = SD(300), SD(torch.arange(0, 1000, 10))
    x = samples_at(mixture, many, n=100)
    whole = [mixture.score(x, one), mixture.score(x, many), mixture.log_density(x, many)]
    monkeypatch.setattr(module, "_CHUNK_CPU", 7 * len(mixture))
    parts = [mixture.score(x, one), mixture.score(x, many), mixture.log_density(x, many)]
    for a, b in zip(whole, parts, strict=True):
        assert_near(b, a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["spiral", "pinwheel"])
def test_a_level_per_sample_is_that_level(name):
    mixture = SETS[name]
    here = SD(torch.tensor([0, 300, 999]))
    x = samples_at(mixture, here, n=3)
    together = mixture.predict(x, here)
    for i in range(3):
        alone = mixture.predict(x[i : i + 1], here[i])
        assert_near(together.x0[i : i + 1], alone.x0, rtol=1e-12, atol=1e-12)
        assert_near(together.eps[i : i + 1], alone.eps, rtol=1e-12, atol=1e-12)


def test_no_table_is_larger_than_a_chunk():
    """2,000 components and 1,000 points: the whole (B, K) table would have 2 million numbers."""
    mixture = GaussianMixture(noise(2000, 2), 0.02)
    x = noise(1000, 2, seed=1)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        mixture.predict(x, SD(torch.full((1000,), 19)))
    assert max(sizes) <= module._CHUNK_CPU


def test_nothing_in_float32_uses_float64():
    mixture = make("pinwheel")
    schedule = NoiseSchedule.stable_diffusion()
    x = mixture.sample(5, generator())
    with NoFloat64():
        mixture.predict(x, schedule(torch.tensor(10)))
        mixture.log_density(x)
        mixture.network(schedule)(x, torch.full((5,), 19))
        mixture.sample(5, generator())


@on_devices
def test_on_every_device(device):
    mixture, schedule = make("spiral").to(device), NoiseSchedule.stable_diffusion().to(device)
    x = mixture.sample(50, generator())  # a CPU generator gives the same points everywhere
    assert x.device.type == device
    assert_near(x, make("spiral").sample(50, generator()), rtol=1e-5, atol=1e-6)
    here = schedule(torch.tensor(499, device=device))
    cpu = make("spiral").predict(x.cpu(), Level(here.alpha.cpu(), here.sigma.cpu()))
    assert_near(mixture.predict(x, here).x0, cpu.x0, rtol=1e-4, atol=1e-5)
    own = torch.Generator(device).manual_seed(0)
    assert mixture.sample(5, own).device.type == device


# -------------------------------------------------------------------- sampling and moments


@each_set
def test_samples_have_the_moments(name):
    mixture, n = SETS[name], 200_000
    x = mixture.sample(n, generator(100))
    # Five standard errors; a coordinate's variance is about 1, its fourth moment below 6.
    assert max_error(x.mean(0), mixture.mean()) < 5 * 1.5 / math.sqrt(n)
    assert max_error(torch.cov(x.T), mixture.covariance()) < 5 * 2.5 / math.sqrt(n)


def test_covariance_by_hand():
    mixture = GaussianMixture(f64([[1.0, 0.0], [-1.0, 2.0]]), f64([0.5, 2.0]), f64([3.0, 1.0]))
    assert_near(mixture.mean(), [0.5, 0.5])
    within = 0.75 * 0.25 + 0.25 * 4.0
    assert_near(mixture.covariance(), [[0.75 + within, -0.75], [-0.75, 0.75 + within]])


def test_components_are_drawn_by_weight():
    weights = f64([0.05, 0.0, 0.6, 0.35])
    mixture = GaussianMixture(torch.arange(4, dtype=torch.float64)[:, None], 0.01, 7 * weights)
    n = 100_000
    counts = mixture.sample(n, generator(3)).round().long().flatten().bincount(minlength=4)
    assert (counts - n * weights).abs().max() < 5 * math.sqrt(n) / 2
    assert counts[1] == 0
    assert_near(mixture.weights, weights)


@pytest.mark.parametrize("here", [SD(259), SD(torch.arange(1000).repeat(200))])
def test_noisy_samples_have_the_level(here):
    mixture, n = SETS["two_moons"], 200_000
    x = mixture.sample_at(here, n, generator(4))
    noise_part = (here.sigma**2).mean() * torch.eye(2, dtype=torch.float64)
    wanted = (here.alpha**2).mean() * mixture.covariance() + noise_part
    assert max_error(torch.cov(x.T), wanted) < 5 * 2 / math.sqrt(n)


def test_unequal_widths_reach_the_samples():
    mixture = GaussianMixture(f64([[-10.0], [10.0]]), f64([0.1, 2.0]))
    x = mixture.sample(20_000, generator(5))
    assert x[x < 0].std().item() == pytest.approx(0.1, rel=0.05)
    assert x[x > 0].std().item() == pytest.approx(2.0, rel=0.05)


def test_a_generator_decides_everything():
    mixture = SETS["spiral"]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = mixture.sample(10, generator(1)), mixture.sample_at(SD(99), 10, generator(1))
    again = mixture.sample(10, generator(1)), mixture.sample_at(SD(99), 10, generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], mixture.sample(10, generator(2)))
    torch.manual_seed(0)
    a = mixture.sample(10)
    torch.manual_seed(0)
    assert torch.equal(a, mixture.sample(10))


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


# -------------------------------------------------------------------- as a network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "t", [torch.tensor(499), torch.tensor([19, 499, 999]), f64([0.5, 20.25, 998.7])]
)
def test_network_gives_the_raw_output(kind, t):
    mixture = SETS["spiral"]
    here = SD(t)
    x = samples_at(mixture, SD(torch.tensor([19, 499, 999])), n=3)
    output = mixture.network(SD, kind)(x, t)
    prediction = to_prediction(output, x, here, kind)
    exact = mixture.predict(x, here)
    assert_near(prediction.x0, exact.x0, rtol=1e-9, atol=1e-10)
    assert_near(prediction.eps, exact.eps, rtol=1e-9, atol=1e-10)


def test_network_is_a_teacher():
    """The distiller takes it where a UNet goes; x_s is the DDIM step of the exact denoiser."""
    mixture = make("ring", torch.float64)
    distiller = SubPathDistiller(
        SD, DistillConfig(coupling="linear", conditioning="level", subpaths=50)
    )
    student = mixture.network(SD)
    x0 = mixture.sample(40, generator())
    draw = distiller.draw(x0, generator(1))
    out = distiller.step(
        x0,
        draw,
        teacher=mixture.network(SD),
        student=lambda x, t, cond, gamma: student(x, t),
        target=lambda x, t, cond, gamma: student(x, t),
    )
    grid = SD.subpaths(50)
    t, s = grid.t[draw.index], grid.s[draw.index]
    assert_near(out.x_s, ddim_step(mixture.predict(out.x_t, SD(t)), SD(s)), rtol=1e-12, atol=1e-12)


def test_predict_is_a_predictor():
    mixture = SETS["ring"]
    here = SD(torch.tensor([999, 600, 300, 0]))
    x = mixture.sample_at(here[0], 7, generator())
    path = pf_ode_trajectory(mixture.predict, x, here)
    assert path.shape == (4, 7, 2)
    assert torch.equal(path[1], ddim_step(mixture.predict(x, here[0]), here[1]))


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


# -------------------------------------------------------------------- as a module


def test_module_moves_and_saves():
    mixture = GaussianMixture(noise(3, 2), f64([0.1, 0.2, 0.3]), f64([1.0, 2.0, 3.0]))
    assert not list(mixture.parameters())
    assert mixture.float().dtype == torch.float32
    state = mixture.double().state_dict()
    assert set(state) == {"means", "std", "weights"}
    other = GaussianMixture(torch.zeros(3, 2, dtype=torch.float64), f64([1.0, 2.0, 3.0]))
    other.load_state_dict(state)
    x = noise(4, 2)
    assert torch.equal(other.score(x), mixture.score(x))
    assert "components=3, dim=2, std=0.1...0.3" in repr(mixture)
    assert "std=0.1," in repr(GaussianMixture(noise(3, 2), 0.1))


def test_parameters_are_copied():
    means = noise(3, 2)
    mixture = GaussianMixture(means, 0.1)
    kept = mixture.means.clone()
    means.zero_()
    assert torch.equal(mixture.means, kept)


def test_equal_widths_are_kept_as_one():
    assert GaussianMixture(noise(3, 2), f64([0.1, 0.1, 0.1])).std.shape == ()
    assert GaussianMixture(noise(3, 2), f64([0.1, 0.1, 0.2])).std.shape == (3,)


# -------------------------------------------------------------------- wrong input

MEANS = torch.zeros(3, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("means", "std", "weights", "message"),
    [
        (torch.zeros(3), 0.1, None, r"means has shape \(3,\)"),
        (torch.zeros(3, 2, 1), 0.1, None, r"means have shape \(3, 2, 1\); allowed: \(K, D\)"),
        (torch.zeros(0, 2), 0.1, None, r"means have shape \(0, 2\)"),
        (torch.zeros(3, 2, dtype=torch.int64), 0.1, None, "means has dtype torch.int64"),
        (torch.full((3, 2), math.nan), 0.1, None, "means holds 6 NaN"),
        (MEANS, -0.1, None, r"std is -0.1 once; allowed: 0 or more"),
        (MEANS, math.inf, None, "std holds 1 NaN or Inf"),
        (MEANS, f64([0.1, 0.2]), None, r"std has shape \(2,\); allowed: \(\) or \(K,\)"),
        (
            MEANS,
            torch.tensor(0.1),
            None,
            "std is torch.float32 on cpu; allowed: that of the means",
        ),
        (MEANS, 0.1, f64([1.0, 1.0]), r"weights has shape \(2,\); allowed: \(K,\)"),
        (MEANS, 0.1, f64([1.0, -1.0, 1.0]), "weights is -1 once"),
        (MEANS, 0.1, f64([0.0, 0.0, 0.0]), "weights are all 0"),
        (MEANS, 0.1, torch.ones(3), "weights is torch.float32"),
    ],
)
def test_construction_refuses(means, std, weights, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(means, std, weights)


def test_a_point_has_no_scale():
    with pytest.raises(ValueError, match=r"single point"):
        GaussianMixture(torch.ones(1, 2), 0.0).standardized()


@pytest.mark.parametrize("method", ["log_density", "score", "denoise", "predict"])
@pytest.mark.parametrize(
    ("x", "here", "message"),
    [
        (
            torch.zeros(4, 3, dtype=torch.float64),
            SD(9),
            r"x has shape \(4, 3\); allowed: \(B, 2\)",
        ),
        (torch.zeros(4, 2), SD(9), "x is torch.float32 on cpu; allowed: that of the mixture"),
        (
            torch.zeros(4, 2, dtype=torch.float64),
            NoiseSchedule.stable_diffusion()(9),
            "alpha has dtype",
        ),
        (torch.zeros(4, 2, dtype=torch.float64), SD(torch.arange(3)), "alpha has 3 values"),
        (torch.zeros(4, 2, dtype=torch.float64), SD(torch.zeros(4, 1).long()), "alpha has shape"),
    ],
)
def test_methods_refuse(method, x, here, message):
    with pytest.raises(ValueError, match=message):
        getattr(SETS["ring"], method)(x, here)


@pytest.mark.parametrize("method", ["log_density", "score", "denoise"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_methods_refuse_points_that_are_not_finite(method, bad):
    with pytest.raises(ValueError, match=r"x holds 2 NaN or Inf of 2 values"):
        getattr(SETS["ring"], method)(torch.full((1, 2), bad, dtype=torch.float64), SD(9))


@pytest.mark.parametrize("n", [0, -3, 2.0, True])
def test_samples_refuse(n):
    with pytest.raises(ValueError, match=r"n is .*; allowed: an integer >= 1"):
        SETS["ring"].sample(n)


def test_another_device_is_refused():
    with pytest.raises(
        ValueError, match=r"x is torch.float64 on meta; allowed: that of the mixture"
    ):
        SETS["ring"].predict(torch.zeros(3, 2, dtype=torch.float64, device="meta"), SD(3))

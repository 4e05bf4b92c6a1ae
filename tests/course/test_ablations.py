"""Other laws for gamma, and consistency distillation with hops of random length."""

import dataclasses
import math

import pytest
import torch

from slam_course.ablations import GAMMA_LAWS, RandomHopDistiller
from slam_edu import OFFICIAL, DistillConfig, NoiseSchedule, SubPathDistiller
from tests.helpers import assert_near, column, f64, noise
from tests.test_distill import SD, nets, sample_for, tensors_of

# What each law makes of a uniform number, and its distribution function.
FROM_UNIFORM = {
    "upper_half": lambda u: 0.5 + 0.5 * u,
    "half_one": lambda u: 1.0 if u < 0.5 else 2 * u - 1,
    "toward_one": math.sqrt,
    "toward_zero": lambda u: 1 - math.sqrt(1 - u),
}
BELOW = {
    "upper_half": lambda g: (2 * g - 1).clamp(min=0),
    "half_one": lambda g: g / 2,
    "toward_one": lambda g: g**2,
    "toward_zero": lambda g: 1 - (1 - g) ** 2,
}


@pytest.mark.parametrize("law", FROM_UNIFORM)
def test_laws_for_gamma(law):
    """Made of the one uniform number that every method draws, with the density that is claimed."""
    assert set(GAMMA_LAWS) == set(FROM_UNIFORM)
    x0, draws = noise(20_000, 1), []
    for gammas in ("uniform", GAMMA_LAWS[law]):
        distiller = SubPathDistiller(SD, DistillConfig(gammas=gammas))
        draws.append(distiller.draw(x0, torch.Generator().manual_seed(3)))
    plain, other = draws
    assert torch.equal(plain.noise, other.noise)
    assert torch.equal(plain.index, other.index)
    expected = f64([FROM_UNIFORM[law](u) for u in plain.gamma.tolist()])
    assert_near(other.gamma, expected, rtol=1e-12, atol=1e-15)
    places = torch.linspace(0, 0.99, 100, dtype=torch.float64)
    share = (other.gamma[None] < places[:, None]).double().mean(dim=1)
    assert (share - BELOW[law](places)).abs().max() < 5 * 0.5 / math.sqrt(20_000)


@pytest.mark.parametrize("conditioning", ["gamma", "level"])
def test_a_hop_of_full_length_is_the_plain_step(conditioning):
    config = DistillConfig(**OFFICIAL | {"conditioning": conditioning})
    ones = torch.ones(50, dtype=torch.float64)
    sample = sample_for(50, 2, index=torch.arange(50), gamma=ones)
    plain, other = (
        tensors_of(kind(SD, config).step(noise(50, 2), sample, **nets()))
        for kind in (SubPathDistiller, RandomHopDistiller)
    )
    for name, tensor in plain.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    ("gamma", "hop"),
    [(0.0, 1), (1e-9, 1), (0.05, 1), (0.0501, 2), (0.501, 11), (0.951, 20), (1.0, 20)],
)
def test_length_of_a_random_hop(gamma, hop):
    """t' - s = ceil(20 gamma), at least 1; the lowest sub-path has 19 timesteps."""
    gammas = torch.full((50,), gamma, dtype=torch.float64)
    sample = sample_for(50, 2, index=torch.arange(50), gamma=gammas)
    out = RandomHopDistiller(SD, DistillConfig(**OFFICIAL)).step(noise(50, 2), sample, **nets())
    assert (out.t - out.s).tolist() == [max(1, math.ceil(19 * gamma))] + [hop] * 49
    assert out.s.tolist() == [0, *range(19, 999, 20)]


def test_random_hops_are_uniform():
    distiller = RandomHopDistiller(NoiseSchedule.stable_diffusion(), DistillConfig(**OFFICIAL))
    x0 = noise(20_000, 2, dtype=torch.float32)
    sample = distiller.draw(x0, torch.Generator().manual_seed(0))
    t, s, gamma = distiller.ends(
        dataclasses.replace(sample, index=torch.full_like(sample.index, 30))
    )
    counts = (t - s).bincount()
    assert gamma.unique().tolist() == [1.0]
    assert counts[0] == 0
    assert len(counts) == 21
    assert (counts[1:] - 1000).abs().max() < 5 * math.sqrt(1000)


@pytest.mark.parametrize("conditioning", ["gamma", "level"])
def test_a_random_hop_is_consistency_distillation_on_it(conditioning):
    """From t' to s with one teacher call at t', the student at t' too."""
    config = DistillConfig(
        **OFFICIAL | {"conditioning": conditioning, "guidance": 2.0, "timestep_scaling": 0.02}
    )
    x0, sample, ours, theirs = noise(12, 3, 2), sample_for(12, 3, 2), nets(), nets()
    cond, uncond = noise(12, 1, 1, seed=7), noise(12, 1, 1, seed=8)
    out = RandomHopDistiller(SD, config).step(x0, sample, **ours, cond=cond, uncond=uncond)
    s = (20 * sample.index - 1).clamp(min=0)
    t = torch.maximum(s + 1, s + (sample.gamma * (20 * sample.index + 19 - s)).ceil().long())
    alpha_t, sigma_t = column(SD.alpha[t], x0), column(SD.sigma[t], x0)
    alpha_s, sigma_s = column(SD.alpha[s], x0), column(SD.sigma[s], x0)
    x_t = alpha_t * x0 + sigma_t * sample.noise
    e_c, e_u = (theirs["teacher"](x_t, t, c).detach() for c in (cond, uncond))
    e = e_c + 2.0 * (e_c - e_u)
    x_s = alpha_s * (x_t - sigma_t * e) / alpha_t + sigma_s * e

    def f(name, x, t, alpha, sigma):
        gamma = None if conditioning == "level" else torch.ones(12).double()
        clean = (x - sigma * theirs[name](x, t, cond, gamma)) / alpha
        tau2 = (0.02 * column(t, x)) ** 2
        return 0.25 / (tau2 + 0.25) * x + (tau2 / (tau2 + 0.25)).sqrt() * clean

    near = {"rtol": 1e-9, "atol": 1e-10}
    assert torch.equal(out.t, t)
    assert_near(out.x_gamma, x_t, **near)
    assert_near(out.x_s, x_s, **near)
    assert_near(out.target, f("target", x_s, s, alpha_s, sigma_s), **near)
    assert_near(out.prediction, f("student", x_t, t, alpha_t, sigma_t), **near)
    assert [len(net.calls) for net in ours.values()] == [2, 1, 1]


def test_random_hops_refuse_several_teacher_steps():
    with pytest.raises(ValueError, match=r"teacher_steps is 2 with random hops"):
        RandomHopDistiller(SD, DistillConfig(slope="end", teacher_steps=2))

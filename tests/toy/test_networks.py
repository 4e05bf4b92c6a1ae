"""The small denoiser: shapes, seeds, and what it refuses."""

import pytest
import torch

from slam_edu.toy.networks import LevelMLP


def network(seed=0, **options):
    net = LevelMLP(16, 2, generator=torch.Generator().manual_seed(seed), **options)
    with torch.no_grad():  # it starts at zero, which would hide what the inputs do
        net.output.weight.normal_(generator=torch.Generator().manual_seed(1))
    return net


X = torch.randn(5, 2, generator=torch.Generator().manual_seed(2))
T = torch.tensor([0, 19, 259, 500, 999])


@pytest.mark.parametrize("octaves", [0, 3])
def test_shape_and_dtype(octaves):
    net = network(octaves=octaves)
    assert net(X, T).shape == (5, 2)
    assert net.double()(X.double(), T).dtype == torch.float64


def test_starts_at_zero():
    net = LevelMLP(16, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(X, T), torch.zeros(5, 2))


def test_the_generator_alone_decides_the_weights():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, c = network(0), network(0), network(3)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.inputs.weight, c.inputs.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_integer_and_real_timesteps_agree():
    net = network()
    assert torch.equal(net(X, T), net(X, T.float()))


def test_the_level_matters_and_is_smooth():
    net = network()
    assert not torch.allclose(net(X, T), net(X, T + 100))
    assert torch.allclose(net(X, T.float()), net(X, T + 1e-4), atol=1e-3)


def test_samples_do_not_mix():
    net = network(octaves=2)
    assert torch.allclose(net(X, T)[1:2], net(X[1:2], T[1:2]), atol=1e-6)


@pytest.mark.parametrize("extra", [{"cond": 1}, {"gamma": torch.ones(5)}])
def test_refuses_what_it_has_no_input_for(extra):
    with pytest.raises(ValueError, match="given a cond or a gamma"):
        network()(X, T, **extra)


@pytest.mark.parametrize("size", ["width", "depth", "frequencies", "dim"])
def test_sizes_must_be_positive(size):
    with pytest.raises(ValueError, match=f"{size} is 0"):
        LevelMLP(**{size: 0}, generator=torch.Generator())

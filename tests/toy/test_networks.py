"""The small denoiser: shapes, seeds, and what it refuses."""

import math

import pytest
import torch

from slam_edu import DistillConfig, NoiseSchedule, SubPathDistiller, gamma_embedding
from slam_edu.embedding import GAMMA_INPUTS, smooth_gamma_features
from slam_edu.toy import ring
from slam_edu.toy.networks import LevelMLP
from tests.helpers import NoFloat64, on_devices


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


@pytest.mark.parametrize(
    ("kind", "extra", "message"),
    [
        (None, {"cond": 1}, r"given a cond; allowed: None, it has no condition"),
        ("smooth", {"cond": 1, "gamma": torch.ones(5)}, r"given a cond; allowed: None"),
        (
            None,
            {"gamma": torch.ones(5)},
            r"has no input for gamma and was given one; .* DistillConfig\(conditioning='level'\)",
        ),
        (
            "official",
            {},
            r"has an input for gamma and was given none; .* DistillConfig\(conditioning='gamma'\)",
        ),
        ("smooth", {}, r"has an input for gamma and was given none"),
    ],
)
def test_refuses_what_it_has_no_input_for(kind, extra, message):
    with pytest.raises(ValueError, match=message):
        network(gamma=kind)(X, T, **extra)


def test_an_unknown_gamma_input():
    with pytest.raises(ValueError, match=r"gamma is 'sine'; allowed: None, 'official', 'smooth'"):
        network(gamma="sine")


# -------------------------------------------------------------------- the input for gamma

G = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0])


def with_gamma(kind):
    """A network whose gamma input is not zero, as after some training."""
    net = network(gamma=kind)
    with torch.no_grad():
        net.gamma.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return net


@pytest.mark.parametrize("kind", GAMMA_INPUTS)
def test_starts_as_the_network_without_a_gamma_input(kind):
    """Same weights, same function, same state of the generator."""
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    plain = LevelMLP(16, 3, generator=generators[0])
    other = LevelMLP(16, 3, generator=generators[1], gamma=kind)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    weights, more = dict(plain.named_parameters()), dict(other.named_parameters())
    assert more.keys() - weights.keys() == {"gamma.weight", "gamma.bias"}
    assert all(torch.equal(value, more[name]) for name, value in weights.items())
    with torch.no_grad():
        for net in (plain, other):
            net.output.weight.normal_(generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain(X, T), other(X, T, None, G))
    assert plain(X, T).abs().min() > 0


@pytest.mark.parametrize("kind", GAMMA_INPUTS)
def test_the_gamma_input_learns(kind):
    """It starts at zero but its gradient does not."""
    net = network(gamma=kind)
    net(X, T, None, G).square().mean().backward()
    assert net.gamma.weight.grad.abs().sum() > 0
    assert net.gamma.bias.grad.abs().sum() > 0
    trained = with_gamma(kind)
    assert not torch.allclose(trained(X, T, None, G), trained(X, T, None, 0 * G), atol=1e-4)


def test_the_official_features():
    assert GAMMA_INPUTS["official"] is gamma_embedding
    net = with_gamma("official")
    assert net.gamma.in_features == 256
    # An outlier that vanishes nowhere: at gamma = 1 all cosines are 1.
    assert torch.equal(net.gamma_features(torch.ones(1))[0, 128:], torch.ones(128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smooth_features(dtype):
    features = smooth_gamma_features(G.to(dtype))
    assert features.shape == (5, 6)
    assert features.dtype == dtype
    for gamma, row in zip(G.to(dtype).tolist(), features.tolist(), strict=True):
        angles = [(1 - gamma) * math.pi / 2 * factor for factor in (1, 2, 4)]
        expected = [math.sin(a) for a in angles] + [1 - math.cos(a) for a in angles]
        assert row == pytest.approx(expected, abs=1e-6)
    assert torch.equal(features[-1], torch.zeros(6, dtype=dtype))


def test_at_gamma_one_the_smooth_input_is_absent_for_good():
    """Whatever its weights became; its bias is one more bias of the layers."""
    net = with_gamma("smooth")
    plain = network()
    plain.load_state_dict(net.state_dict(), strict=False)
    assert torch.equal(net(X, T, None, torch.ones(5)), plain(X, T))
    assert not torch.allclose(net(X, T, None, torch.full((5,), 0.9)), plain(X, T), atol=1e-4)


@pytest.mark.parametrize("kind", GAMMA_INPUTS)
def test_every_layer_hears_of_gamma(kind):
    net, width = with_gamma(kind), 16
    with torch.no_grad():
        before = net(X, T, None, 0 * G)
        for layer in range(2):
            changed = with_gamma(kind)
            changed.gamma.weight[layer * width : (layer + 1) * width] = 0
            assert not torch.allclose(changed(X, T, None, 0 * G), before, atol=1e-4)


@pytest.mark.parametrize("kind", GAMMA_INPUTS)
def test_gamma_of_another_dtype(kind):
    """The algebra's gamma may be finer than a network's weights."""
    net = with_gamma(kind)
    assert torch.equal(net(X, T, None, G.double()), net(X, T, None, G))
    double = with_gamma(kind).double()
    assert double(X.double(), T, None, G.double()).dtype == torch.float64


@on_devices
@pytest.mark.parametrize("kind", [None, *GAMMA_INPUTS])
def test_distillation_runs_with_it(kind, device):
    """As student and target; one step reaches the gamma input too."""
    schedule, mixture = NoiseSchedule.stable_diffusion().to(device), ring().to(device)
    conditioning = "level" if kind is None else "gamma"
    distiller = SubPathDistiller(schedule, DistillConfig(conditioning=conditioning))
    net = network(gamma=kind).to(device)
    x0 = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).to(device)
    sample = distiller.draw(x0, torch.Generator(device).manual_seed(0))
    teacher = mixture.network(schedule)
    out = distiller.step(x0, sample, teacher=teacher, student=net, target=net)
    out.loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("kind", GAMMA_INPUTS)
def test_no_float64_in_float32_mode(kind):
    net = with_gamma(kind)
    with NoFloat64():
        net(X, T, None, G).sum().backward()


@pytest.mark.parametrize("size", ["width", "depth", "frequencies", "dim"])
def test_sizes_must_be_positive(size):
    with pytest.raises(ValueError, match=f"{size} is 0"):
        LevelMLP(**{size: 0}, generator=torch.Generator())

"""The small denoiser: shapes, seeds, and what it refuses."""

import pytest
import torch

from slam_edu import DistillConfig, NoiseSchedule, SubPathDistiller
from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.toy import ring
from slam_edu.toy.networks import LevelMLP
from tests.helpers import on_devices


def network(seed=0, **options):
    net = LevelMLP(16, 2, generator=torch.Generator().manual_seed(seed), **options)
    with torch.no_grad():  # it starts at zero, which would hide what the inputs do
        net.output.weight.normal_(generator=torch.Generator().manual_seed(1))
    return net


X = torch.randn(5, 2, generator=torch.Generator().manual_seed(2))
T = torch.tensor([0, 19, 259, 500, 999])


@pytest.mark.parametrize(
    ("kind", "extra", "message"),
    [
        (None, {"cond": 1}, r"given a cond; allowed: None, it has no condition"),
        (None, {"gamma": torch.ones(5)},
         r"has no input for gamma and was given one; .* DistillConfig\(conditioning='level'\)"),
        ("official", {},
         r"has an input for gamma and was given none; .* DistillConfig\(conditioning='gamma'\)"),
    ],
)  # fmt: skip
def test_refuses_what_it_has_no_input_for(kind, extra, message):
    with pytest.raises(ValueError, match=message):
        network(gamma=kind)(X, T, **extra)


# -------------------------------------------------------------------- the input for gamma

G = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0])


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


def test_at_gamma_one_the_smooth_input_is_absent_for_good():
    """Whatever its weights became; its bias is one more bias of the layers."""
    net, plain = network(gamma="smooth"), network()
    with torch.no_grad():  # as after some training
        net.gamma.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    plain.load_state_dict(net.state_dict(), strict=False)
    assert torch.equal(net(X, T, None, torch.ones(5)), plain(X, T))
    assert not torch.allclose(net(X, T, None, torch.full((5,), 0.9)), plain(X, T), atol=1e-4)


@on_devices
@pytest.mark.parametrize("kind", [None, *GAMMA_INPUTS])
def test_distillation_runs_with_it(kind, device):
    """As student and target; one step reaches the gamma input too."""
    schedule, mixture = NoiseSchedule.stable_diffusion().to(device), ring().to(device)
    conditioning = "level" if kind is None else "gamma"
    distiller = SubPathDistiller(
        schedule, DistillConfig(conditioning=conditioning, gammas="uniform")
    )
    net = network(gamma=kind).to(device)
    x0 = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).to(device)
    sample = distiller.draw(x0, torch.Generator(device).manual_seed(0))
    teacher = mixture.network(schedule)
    out = distiller.step(x0, sample, teacher=teacher, student=net, target=net)
    out.loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())

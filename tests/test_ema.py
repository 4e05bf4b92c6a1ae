"""The moving average of the weights."""

import math

import pytest
import torch
from torch import nn

from slam_edu import ema_copy, update_ema
from slam_edu.ema import average_tensors
from tests.helpers import assert_near, noise, on_devices


def network(seed: int = 0, width: int = 3) -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(2, width), nn.BatchNorm1d(width), nn.Dropout(), nn.Linear(width, 2)
    )
    net.double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(noise(*p.shape, seed=100 * seed + i))
        net[1].running_mean.copy_(noise(width, seed=100 * seed + 50))
    return net


@pytest.mark.parametrize("rate", [None, 0.9, 0.0, 1.0])
def test_parameters_are_averaged_and_buffers_copied(rate):
    """The official rate, .95, is the default; at 0 and 1 nothing is rounded."""
    source, target = network(1), network(2)
    before = [p.detach().clone() for p in target.parameters()]
    theirs = [p.detach().clone() for p in source.parameters()]
    update_ema(target, source, *([] if rate is None else [rate]))
    r, rounding = (0.95, 1e-12) if rate is None else (rate, 1e-12 * (0 < rate < 1))
    for p, e, s, q in zip(target.parameters(), before, theirs, source.parameters(), strict=True):
        assert_near(p, r * e + (1 - r) * s, rtol=rounding, atol=rounding)
        assert torch.equal(q, s)
    assert torch.equal(target[1].running_mean, source[1].running_mean)
    assert target[1].running_mean is not source[1].running_mean


def test_ema_copy_is_apart_without_gradients_and_in_eval_mode():
    source = network().train()
    target = ema_copy(source)
    assert source.training
    assert all(p.requires_grad for p in source.parameters())
    assert not target.training
    assert not any(p.requires_grad for p in target.parameters())
    for p, q in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.data_ptr() != q.data_ptr()


@on_devices
def test_averaging_leaves_no_graph(device):
    source, target = network().float().to(device), network(2).float().to(device).requires_grad_()
    expected = (source[0].weight + target[0].weight).detach() / 2
    update_ema(target, source, 0.5)
    assert all(p.grad_fn is None and p.is_leaf for p in target.parameters())
    assert_near(target[0].weight, expected, rtol=1e-6, atol=1e-7)
    # Named tensors, as of adapters inside a network.
    ours, theirs = {"a": noise(3)}, {"a": nn.Parameter(noise(3, seed=1))}
    expected = 0.95 * ours["a"] + 0.05 * theirs["a"].detach()
    average_tensors(ours, theirs)
    assert_near(ours["a"], expected, rtol=1e-12)
    assert not ours["a"].requires_grad


def without_buffer() -> nn.Sequential:
    net = network()
    net[1].register_buffer("running_mean", None)
    return net


@pytest.mark.parametrize(
    ("target", "rate", "message"),
    [
        (network(), -0.1, r"rate is -0\.1; allowed: 0 <= rate <= 1"),
        (network(), 1.5, r"rate is 1\.5; allowed: 0 <= rate <= 1"),
        (network(), math.nan, r"rate is nan; allowed"),
        (nn.Linear(2, 2).double(), 0.9, r"differ in 0\.bias, .*; allowed: the same names"),
        (network(width=4), 0.9, r"differ in 0\.bias, 0\.weight, "),
        (network().float(), 0.9, r"differ in 0\.bias, 0\.weight, "),
        (network().to("meta"), 0.9, r"differ in 0\.bias, 0\.weight, "),
        (without_buffer(), 0.9, r"differ in 1\.running_mean; allowed: the same names"),
    ],
)
def test_wrong_input(target, rate, message):
    with pytest.raises(ValueError, match=message):
        update_ema(target, network(), rate)

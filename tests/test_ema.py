"""The moving average of the weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slam_edu import ema_copy, update_ema
from slam_edu.ema import average_tensors
from tests.helpers import assert_near, noise, on_devices, properties


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


@properties
@given(st.floats(0, 1), st.integers(1, 4))
def test_average(rate, updates):
    source, target = network(1), network(2)
    expected = [p.detach().clone() for p in target.parameters()]
    theirs = [p.detach().clone() for p in source.parameters()]
    for _ in range(updates):
        update_ema(target, source, rate)
        expected = [rate * e + (1 - rate) * s for e, s in zip(expected, theirs, strict=True)]
    for p, e in zip(target.parameters(), expected, strict=True):
        assert_near(p, e, rtol=1e-12, atol=1e-14)
    for p, before in zip(source.parameters(), theirs, strict=True):
        assert torch.equal(p, before)


def test_the_official_rate_is_the_default():
    source, target = network(1), network(2)
    before = target[0].weight.detach().clone()
    update_ema(target, source)
    assert_near(target[0].weight, 0.95 * before + 0.05 * source[0].weight, rtol=1e-12)


def test_rates_at_the_ends_are_exact():
    source, target = network(1), network(2)
    before = target[0].weight.detach().clone()
    update_ema(target, source, 1.0)
    assert torch.equal(target[0].weight, before)
    update_ema(target, source, 0.0)
    assert torch.equal(target[0].weight, source[0].weight)


def test_buffers_are_copied():
    source, target = network(1), network(2)
    update_ema(target, source, 0.9)
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
    update_ema(target, source, 0.5)
    assert all(p.grad_fn is None and p.is_leaf for p in target.parameters())
    assert_near(
        target[0].weight, (network().float()[0].weight + network(2).float()[0].weight) / 2,
        rtol=1e-6, atol=1e-7,
    )  # fmt: skip


# -------------------------------------------------------------------- wrong input


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
    source = network()
    before = [p.detach().clone() for p in source.parameters()]
    with pytest.raises(ValueError, match=message):
        update_ema(target, source, rate)
    assert all(torch.equal(p, b) for p, b in zip(source.parameters(), before, strict=True))


def test_named_tensors():
    """As adapters inside a network are averaged: without a graph, at a rate of .95."""
    target, source = {"a": noise(3)}, {"a": nn.Parameter(noise(3, seed=1))}
    expected = 0.95 * target["a"] + 0.05 * source["a"].detach()
    average_tensors(target, source)
    assert_near(target["a"], expected, rtol=1e-12)
    assert not target["a"].requires_grad

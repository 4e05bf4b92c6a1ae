"""Mean squared error and pseudo-Huber."""

import math

import pytest
import torch

from slam_edu import mse, pseudo_huber
from tests.helpers import assert_near, f64, noise, on_devices


@on_devices
def test_mse_is_pytorchs(device):
    p, y = (noise(4, 4, 8, seed=seed, dtype=torch.float32).to(device) for seed in (0, 1))
    assert_near(mse(p, y), torch.nn.functional.mse_loss(p, y), rtol=1e-5)


def test_pseudo_huber_is_quadratic_then_linear():
    p, y = noise(3, 2), noise(3, 2, seed=1)
    expected = [math.hypot(d, 0.3) - 0.3 for d in (p - y).flatten().tolist()]
    assert_near(pseudo_huber(p, y, 0.3), sum(expected) / 6, rtol=1e-9)
    zero = f64([[0.0, 0.0]])
    assert_near(pseudo_huber(zero + 1e-6, zero), 1e-12 / 2e-3, rtol=1e-5)
    assert_near(pseudo_huber(zero + 1e3, zero), 1e3 - 1e-3, rtol=1e-9)
    assert pseudo_huber(zero, zero) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [mse, pseudo_huber])
def test_half_precision_is_compared_in_float32(loss, dtype):
    """Squares of 1e-3 would be lost in float16, and 300^2 would be infinite."""
    p = torch.tensor([[1e-3, 300.0]], dtype=dtype)
    y = torch.zeros_like(p)
    assert loss(p, y).dtype == torch.float32
    assert_near(loss(p, y), loss(p.float(), y.float()), rtol=0)
    assert math.isfinite(loss(p, y).item())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(2, 1), r"target has shape \(2, 1\); allowed.*the prediction, \(2, 2\)"),
        (torch.zeros(2, 2).double(), r"target has dtype torch.float64; allowed.*torch.float32"),
        (torch.zeros(2, 2, device="meta"), r"target has device meta; allowed.*cpu"),
    ],
)
def test_nothing_is_broadcast(target, message):
    for loss in (mse, pseudo_huber):
        with pytest.raises(ValueError, match=message):
            loss(torch.zeros(2, 2), target)


@pytest.mark.parametrize("c", [0.0, -1e-3, math.nan])
def test_wrong_c(c):
    with pytest.raises(ValueError, match=rf"c is {c!r}; allowed: a number greater than 0"):
        pseudo_huber(torch.zeros(2, 2), torch.zeros(2, 2), c)

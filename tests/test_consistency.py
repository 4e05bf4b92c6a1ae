"""Boundary scalings and the consistency function."""

import math

import pytest
import torch
from diffusers import LCMScheduler
from hypothesis import given
from hypothesis import strategies as st

from slam_edu import (
    DistillConfig,
    NoiseSchedule,
    boundary_scalings,
    consistency_output,
    to_prediction,
)
from slam_edu.consistency import ConsistencyFunction
from tests.helpers import SD, TinyNet, assert_near, f64, noise, on_devices, properties


@pytest.mark.parametrize("scaling", [10.0, 1.0, 3.5])
def test_boundary_scalings_are_diffusers(scaling):
    scheduler = LCMScheduler(**SD, timestep_scaling=scaling)
    t = list(range(1000))
    pairs = [scheduler.get_scalings_for_boundary_condition_discrete(i) for i in t]
    skip, out = f64([pair[0] for pair in pairs]), f64([pair[1] for pair in pairs])
    for dtype, bound in ((torch.float64, 1e-15), (torch.float32, 1e-6)):
        c_skip, c_out = boundary_scalings(torch.tensor(t), timestep_scaling=scaling, dtype=dtype)
        assert c_skip.dtype == c_out.dtype == dtype
        assert_near(c_skip, skip, rtol=0, atol=bound)
        assert_near(c_out, out, rtol=0, atol=bound)


@properties
@given(st.floats(0, 1e4), st.floats(0.01, 10), st.floats(0.01, 100))
def test_boundary_scalings(t, sigma_data, scaling):
    c_skip, c_out = boundary_scalings(f64(t), sigma_data, scaling)
    tau = scaling * t
    assert_near(c_skip, sigma_data**2 / (tau**2 + sigma_data**2), rtol=1e-12)
    assert_near(c_out, tau / math.sqrt(tau**2 + sigma_data**2), rtol=1e-12)
    assert_near(c_skip + c_out**2, 1.0, rtol=1e-12)


def test_the_default_dtype_is_ts_or_float32():
    assert boundary_scalings(torch.tensor([3]))[0].dtype == torch.float32
    assert boundary_scalings(f64([3.5]))[0].dtype == torch.float64


@on_devices
def test_at_timestep_zero_the_network_is_not_heard(device):
    c_skip, c_out = boundary_scalings(torch.tensor([0, 0], device=device))
    x = noise(2, 3, dtype=torch.float32).to(device)
    assert torch.equal(consistency_output(x, 1e30 * torch.ones_like(x), c_skip, c_out), x)


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 8, 8)])
def test_consistency_output(shape):
    x, x0 = noise(*shape), noise(*shape, seed=1)
    f = consistency_output(x, x0, f64([1.0, 0.25]), f64([0.0, 0.5]))
    assert_near(f[0], x[0], rtol=0)
    assert_near(f[1], 0.25 * x[1] + 0.5 * x0[1], rtol=1e-14)


@pytest.mark.parametrize("conditioning", ["gamma", "level"])
def test_consistency_function(conditioning):
    """On the schedule; off it, on a sub-path, tests/test_distill.py has every formula."""
    schedule, net = NoiseSchedule.stable_diffusion(torch.float64), TinyNet(1)
    f = ConsistencyFunction(
        schedule=schedule, conditioning=conditioning, prediction_type="v_prediction",
        sigma_data=0.7, timestep_scaling=0.02,
    )  # fmt: skip
    x, t, cond = noise(3, 2), torch.tensor([0, 19, 999]), noise(3, 1, seed=7)
    level = schedule(t)
    found = f(net, x, t, level, cond)
    [(seen, at, given, gamma)] = net.calls
    assert seen is x
    assert at.tolist() == t.tolist()
    assert given is cond
    if conditioning == "gamma":
        assert at.dtype == torch.int64
        assert gamma.tolist() == [1.0] * 3
        assert gamma.dtype == torch.float64
    else:
        assert at.dtype == torch.float64
        assert gamma is None
    c_skip, c_out = boundary_scalings(t, 0.7, 0.02, dtype=torch.float64)
    x0 = to_prediction(net(x, at, cond, gamma), x, level, "v_prediction").x0
    assert_near(found, consistency_output(x, x0, c_skip, c_out), rtol=1e-14)
    f(net, x, t, level)
    assert net.calls[-1][2] is None
    # With a gamma of 1 it is the same point, said in another way.
    assert_near(f(net, x, t, level, cond, torch.ones(3).double()), found, rtol=1e-9, atol=1e-12)


def test_consistency_functions_defaults():
    f = ConsistencyFunction(schedule=NoiseSchedule.stable_diffusion())
    config = DistillConfig()
    for name in ("conditioning", "sigma_data", "timestep_scaling"):
        assert getattr(f, name) == getattr(config, name)
    assert f.prediction_type == config.output_type

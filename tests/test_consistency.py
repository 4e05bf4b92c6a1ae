"""Boundary scalings and the consistency function."""

import pytest
import torch
from diffusers import LCMScheduler

from slam_edu import (
    DistillConfig,
    NoiseSchedule,
    boundary_scalings,
    consistency_output,
    sample_consistency,
    to_prediction,
)
from slam_edu.consistency import ConsistencyFunction
from tests.helpers import SD, TinyNet, assert_near, f64, noise, on_devices


@pytest.mark.parametrize("scaling", [10.0, 3.5])
def test_boundary_scalings_are_diffusers(scaling):
    scheduler = LCMScheduler(**SD, timestep_scaling=scaling)
    t = torch.arange(1000)
    pairs = [scheduler.get_scalings_for_boundary_condition_discrete(i) for i in t.tolist()]
    for dtype, bound in ((torch.float64, 1e-15), (torch.float32, 1e-6)):
        found = boundary_scalings(t, timestep_scaling=scaling, dtype=dtype)
        assert found[0].dtype == found[1].dtype == dtype
        assert_near(torch.stack(found, dim=1), f64(pairs), rtol=0, atol=bound)
    assert boundary_scalings(t)[0].dtype == torch.float32
    assert boundary_scalings(t.double())[0].dtype == torch.float64


@on_devices
def test_at_timestep_zero_the_network_is_not_heard(device):
    c_skip, c_out = boundary_scalings(torch.tensor([0, 0], device=device))
    x = noise(2, 3, dtype=torch.float32).to(device)
    assert torch.equal(consistency_output(x, 1e30 * torch.ones_like(x), c_skip, c_out), x)


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
    x0 = to_prediction(net(x, at, cond, gamma), x, level, "v_prediction").x0
    tau = f64([[0.0], [0.38], [19.98]])
    expected = 0.49 / (tau**2 + 0.49) * x + tau / (tau**2 + 0.49).sqrt() * x0
    assert_near(found, expected, rtol=1e-12)
    f(net, x, t, level)
    assert net.calls[-1][2] is None
    # With a gamma of 1 it is the same point, said in another way.
    assert_near(f(net, x, t, level, cond, torch.ones(3).double()), found, rtol=1e-9, atol=1e-12)


def test_function_and_sampler_have_the_distillations_defaults():
    f, config = ConsistencyFunction(schedule=NoiseSchedule.stable_diffusion()), DistillConfig()
    options = sample_consistency.__kwdefaults__
    for name in ("conditioning", "sigma_data", "timestep_scaling"):
        assert getattr(f, name) == options[name] == getattr(config, name)
    assert f.prediction_type == options["prediction_type"] == config.output_type
    assert options["subpaths"] == config.subpaths

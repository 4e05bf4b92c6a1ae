"""The core's solvers on exact ground truth: their orders, and that coordinates do not matter."""

from itertools import pairwise

import pytest
import torch

from slam_edu import Level, NoiseSchedule, pf_ode_trajectory
from slam_edu.toy import make, solution_map
from tests.helpers import assert_near

SD = NoiseSchedule.stable_diffusion(torch.float64)
ORDERS = {"ddim": 1, "heun": 2, "dpmpp_2m": 2, "rk4": 4}
STEPS = {
    "ddim": (64, 128, 256),
    "heun": (32, 64, 128),
    "dpmpp_2m": (32, 64, 128),
    "rk4": (32, 64, 128),
}


@pytest.mark.parametrize("name", ["spiral", "pinwheel"])
@pytest.mark.parametrize("method", ORDERS)
def test_order_by_step_halving(name, method):
    """The global error, mean over 100 samples, divides by 2^order when the steps are halved."""
    mixture, here, end = make(name, torch.float64), SD(700), SD(50)
    x = mixture.sample_at(here, 100, torch.Generator().manual_seed(0))
    exact = solution_map(mixture, x, here, end, tol=1e-11).x
    errors = []
    for n in STEPS[method]:
        rho = torch.linspace(here.rho.log(), end.rho.log(), n + 1, dtype=torch.float64).exp()
        path = pf_ode_trajectory(mixture.predict, x, Level.from_rho(rho), method)
        errors.append((path[-1] - exact).abs().mean())
    slopes = [(a / b).log2().item() for a, b in pairwise(errors)]
    assert slopes == pytest.approx([ORDERS[method]] * 2, abs=0.15)


@pytest.mark.parametrize("name", ["ring", "checkerboard"])
@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("steps", [2, 10])
def test_rescheduling_invariance(name, method, steps):
    """The same denoiser under the variance-preserving and the variance-exploding schedule.

    Divided by alpha, one trajectory is the other at every step.
    """
    mixture, exploding = make(name, torch.float64), SD.variance_exploding()
    t = torch.linspace(999, 0, steps + 1).round().long()
    x = mixture.sample_at(SD(999), 50, torch.Generator().manual_seed(0))
    one = pf_ode_trajectory(mixture.predict, x, SD(t), method)
    other = pf_ode_trajectory(mixture.predict, x / SD(999).alpha, exploding(t), method)
    assert_near(one / SD(t).alpha[:, None, None], other, rtol=0, atol=1e-6)

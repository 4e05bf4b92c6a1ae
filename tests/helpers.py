"""What the core's tests share: devices, tolerances, small denoisers, diffusers' schedulers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slam_edu import Level, NoiseSchedule

GOLDEN = Path(__file__).parent / "golden" / "splam_step.json"

# Parametrised, not skipped: a machine without a GPU has fewer tests, not skipped ones.
DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append("cuda")
if torch.backends.mps.is_available():
    DEVICES.append("mps")
on_devices = pytest.mark.parametrize("device", DEVICES)

KINDS = ("epsilon", "sample", "v_prediction")

# The same examples in every run, and no time limit on a busy machine.
properties = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)

SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""Stable Diffusion's schedule, as diffusers' schedulers are told it."""


@cache
def golden() -> dict:
    """The numbers that the official functions printed."""
    return json.loads(GOLDEN.read_text())


def f64(value: object) -> Tensor:
    """A float64 tensor."""
    return torch.as_tensor(value, dtype=torch.float64)


def assert_near(actual: Tensor, expected: object, rtol: float = 1e-9, atol: float = 0.0) -> None:
    """Every element, and the shape: ``|actual - expected| <= atol + rtol |expected|``; no NaN."""
    expected = expected if isinstance(expected, Tensor) else f64(expected)
    torch.testing.assert_close(
        actual.detach().cpu().double(), expected.detach().cpu().double(), rtol=rtol, atol=atol
    )


def max_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, after a check that the shapes are the same."""
    assert actual.shape == expected.shape
    return (actual.double() - expected.double()).abs().max().item()


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, always drawn in float64, so that dtypes see the same ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def of_order_one(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform numbers in [-1, 1]: a bound in float32 units then means the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1).to(dtype)


def column(value: Tensor, x: Tensor) -> Tensor:
    """``(B,)`` beside ``(B, *)``, written here so that the tests do not use the library's own."""
    return value.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class SmoothDenoiser:
    """A denoiser whose every form is of order one: data of variance 1/4, and a bit of a sine.

    Stable Diffusion's levels in float64, whatever schedule is under test. ``cond`` shifts the
    output. It takes timesteps as diffusers gives them and as samplers here do, and records calls.
    """

    def __init__(self, kind: str = "epsilon") -> None:
        self.kind = kind
        self.schedule = NoiseSchedule.stable_diffusion(torch.float64)
        self.calls: list[tuple] = []

    def __call__(
        self, x: Tensor, t: Tensor | int, cond: object = None, gamma: Tensor | None = None
    ) -> Tensor:
        self.calls.append((x, t, cond, gamma))
        t = torch.as_tensor(t).cpu().round().long().expand(x.shape[0])
        alpha, sigma = self.schedule.alpha[t], self.schedule.sigma[t]
        slope = 0.75 * alpha * sigma / (alpha**2 / 4 + sigma**2)
        alpha, sigma, slope, phase = (
            column(value.to(x.dtype).to(x.device), x) for value in (alpha, sigma, slope, t / 300)
        )
        v = slope * x + 0.1 * torch.sin(2 * x + phase)
        if cond is not None:
            v = v + cond
        return {
            "epsilon": alpha * v + sigma * x,
            "sample": alpha * x - sigma * v,
            "v_prediction": v,
        }[self.kind]


class TinyNet(nn.Module):
    """A trainable network for a batch of any rank: elementwise in x, plus t, cond and gamma."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * noise(5, seed=seed, dtype=dtype))
        self.calls: list[tuple] = []

    def forward(
        self, x: Tensor, t: Tensor, cond: object = None, gamma: Tensor | None = None
    ) -> Tensor:
        self.calls.append((x, t, cond, gamma))
        w, wave = self.weight, torch.cos(t.to(x.dtype) / 250)
        output = w[0] * x + w[1] * torch.tanh(2 * x) + column(w[2] * wave, x)
        if cond is not None:
            output = output + w[3] * cond
        if gamma is not None:
            output = output + column(w[4] * (1 - gamma), x)
        return output


class NoFloat64(TorchDispatchMode):
    """Fails on any operation whose result is float64, which Apple's GPUs do not have."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.dtype in (torch.float64, torch.complex128):
                raise AssertionError(f"{func} made a {leaf.dtype} tensor of shape {leaf.shape}")
        return result


class HostReads(TorchDispatchMode):
    """Collects the operations that read a tensor's values into Python or into a shape."""

    READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        mask = func.__name__.startswith("index") and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:])
        )
        if mask or func.__name__.split(".")[0] in self.READS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@st.composite
def schedules(draw: st.DrawFn) -> NoiseSchedule:
    """Variance-preserving schedules of 4 to 240 steps, and others rescaled by a smooth norm."""
    steps = draw(st.integers(2, 60)) * draw(st.sampled_from([2, 4]))
    first = draw(st.floats(1e-4, 0.02))
    last = draw(st.floats(0.02, 0.2))
    power = draw(st.sampled_from([0.5, 1.0, 2.0]))
    beta = torch.linspace(first**power, last**power, steps, dtype=torch.float64) ** (1 / power)
    schedule = NoiseSchedule.from_alphas_cumprod(torch.cumprod(1 - beta, 0), torch.float64)
    shape = draw(st.sampled_from(["preserving", "exploding", "bent"]))
    if shape == "exploding":
        return schedule.variance_exploding()
    if shape == "bent":
        norm = 1 + 0.5 * torch.linspace(0, 1, steps, dtype=torch.float64) ** 2
        return NoiseSchedule(norm * schedule.alpha, norm * schedule.sigma)
    return schedule


gammas = st.floats(0.0, 1.0)


def level(alpha: float, sigma: float, dtype: torch.dtype = torch.float64) -> Level:
    """One level of shape ``()``."""
    return Level(torch.tensor(alpha, dtype=dtype), torch.tensor(sigma, dtype=dtype))

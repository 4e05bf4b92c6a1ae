"""The embedding of gamma that the official student is conditioned on, and a smooth one.

Its exact numbers: tests/test_golden.py.
"""

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from slam_edu import gamma_embedding, guidance_scale_embedding
from slam_edu.embedding import GAMMA_INPUTS
from tests.helpers import assert_near, f64, on_devices


@pytest.mark.parametrize("dim", [4, 7, 256])
def test_embedding_is_diffusers_timestep_embedding(dim):
    w = torch.tensor([0.0, 0.001, 0.5, 1.0])
    theirs = get_timestep_embedding(1000 * w, dim, downscale_freq_shift=1)
    assert_near(guidance_scale_embedding(w, dim), theirs, rtol=0, atol=2e-4)
    assert_near(gamma_embedding(1 - w / 10, dim), theirs, rtol=0, atol=2e-3)


@on_devices
def test_gamma_one_is_all_sines_zero_and_all_cosines_one(device):
    e = gamma_embedding(torch.ones(3, device=device), 64)
    assert e.dtype == torch.float32
    assert e.device.type == device
    assert_near(e, torch.cat([torch.zeros(3, 32), torch.ones(3, 32)], dim=1), rtol=0)


def test_smooth_features_vanish_at_one():
    gamma = torch.tensor([0.0, 0.25, 1.0])
    found = GAMMA_INPUTS["smooth"](gamma)
    for row, g in zip(found.tolist(), gamma.tolist(), strict=True):
        angles = [2**j * math.pi * (1 - g) / 2 for j in range(3)]
        assert row == pytest.approx([*map(math.sin, angles), *(1 - math.cos(a) for a in angles)],
                                    abs=1e-6)  # fmt: skip
    assert found[2].tolist() == [0.0] * 6
    assert GAMMA_INPUTS["smooth"](gamma.double()).dtype == torch.float64
    for features in GAMMA_INPUTS.values():
        assert features(torch.ones(3, device="meta")).device.type == "meta"
    assert torch.equal(GAMMA_INPUTS["official"](gamma), gamma_embedding(gamma))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gamma_embedding(f64([[0.5]])), r"w has shape \(1, 1\), torch.float64; allowed"),
        (lambda: guidance_scale_embedding(torch.tensor([1])), r"torch.int64; allowed: floating"),
        (lambda: guidance_scale_embedding(f64([1.0]), 3), r"dim is 3; allowed: an integer >= 4"),
        (lambda: guidance_scale_embedding(f64([1.0]), 8.0), r"dim is 8\.0; allowed: an integer"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

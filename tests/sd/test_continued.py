"""The continued chord of the shipped digits' student."""

import pytest
import torch

from slam_edu import DistillConfig, SubPathDistiller
from slam_edu.sd.continued import ContinuedChord
from tests.helpers import assert_near, noise
from tests.test_distill import SD, nets

LEVEL = DistillConfig(subpaths=50, slope="end")


@pytest.mark.parametrize("reach", [1.1, 2.0, 500.0])
def test_reach_multiplies_gamma_up_to_the_noisiest_level(reach):
    x0, draws = noise(500, 2), []
    distiller = ContinuedChord(SD, LEVEL, reach=reach)
    for each in (SubPathDistiller(SD, LEVEL), distiller):
        draws.append(each.draw(x0, torch.Generator().manual_seed(0)))
    plain, sample = draws
    assert torch.equal(plain.index, sample.index)
    assert torch.equal(plain.noise, sample.noise)
    t, s = SD.subpaths(50).ends(sample.index)
    here = sample.gamma * SD.at(t).rho + (1 - sample.gamma) * SD.at(s).rho
    wanted = reach * SD.at(t).rho + (1 - reach) * SD.at(s).rho
    assert_near(here, wanted.clamp(max=SD.rho[-1].item()), rtol=1e-9)
    out = distiller.step(x0, sample, **nets())
    assert_near(out.level_gamma.rho, here, rtol=1e-9)

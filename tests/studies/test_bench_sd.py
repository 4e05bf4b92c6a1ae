"""The bench of a Stable Diffusion's update: both sides train, on the same batch."""

import torch

from slam_edu.sd.tiny import tiny_pipeline
from studies import bench_sd


def test_both_sides_train():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    official = bench_sd.OfficialStep(tiny_pipeline(), images, ["a red two", "a one"])
    name = "conv_in.weight"
    start = official.unet.state_dict()[name].clone()
    losses = [official() for _ in range(2)]
    assert all(0 < loss < 100 for loss in losses)
    assert not torch.equal(official.unet.state_dict()[name], start)
    assert not torch.equal(official.target.state_dict()[name], start)
    assert torch.equal(official.teacher.state_dict()[name], start)
    for cached in (True, False):
        update = bench_sd.our_update(official, cached)
        assert [update().update, update().update] == [1, 2]

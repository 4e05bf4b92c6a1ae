"""The bench of an update: both sides do the same work, and its table has its lines."""

import pytest
import torch

from slam_edu import bench
from slam_edu.sd import bench as sd_bench
from tests.sd.tiny import tiny_sd_pipeline


@pytest.fixture(scope="module")
def problem():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return sd_bench.Problem(
        name="tiny", pipeline=tiny_sd_pipeline(), images=images, prompts=["a red two", "a one"]
    )


def test_the_official_step_trains(problem):
    step = sd_bench.OfficialStep(problem)
    start = {k: v.clone() for k, v in step.unet.state_dict().items()}
    average = {k: v.clone() for k, v in step.target.state_dict().items()}
    losses = [step() for _ in range(2)]
    assert all(0 < loss < 100 for loss in losses)
    for name, value in step.unet.state_dict().items():
        if name.endswith("weight") and "to_k" not in name:
            assert not torch.equal(value, start[name]), name
    name = "conv_in.weight"
    moved = step.target.state_dict()[name] - average[name]
    assert float(moved.abs().max()) > 0
    assert torch.equal(step.teacher.state_dict()[name], start[name])


@pytest.mark.parametrize("cached", [True, False])
def test_our_update_is_the_engines(problem, cached):
    update = sd_bench.our_update(problem, cached)
    assert [update().update, update().update] == [1, 2]


def test_memory_and_parts_are_measured(problem):
    update = sd_bench.our_update(problem, True)
    update()
    assert sd_bench.peak_bytes(update) > 1e5
    names = [name for name, part in sd_bench.parts(problem) if part() is None or True]
    assert names[:3] == ["encode images", "encode prompts", "teacher, one call"]
    assert len(names) == 7


def test_the_table_has_its_lines(problem, monkeypatch, capsys):
    monkeypatch.setattr(sd_bench, "digits_problem", lambda: problem)
    monkeypatch.setattr(sd_bench, "random_problem", lambda: problem)
    before = torch.get_num_threads()
    try:
        assert bench.main(["sd", "--repeat", "1"]) == 0
    finally:
        torch.set_num_threads(before)
    lines = capsys.readouterr().out.splitlines()
    assert sum("update, cached" in line and "0.60" in line for line in lines) == 2
    assert sum("update, encoding" in line and "0.85" in line for line in lines) == 2
    assert sum("peak of what an update makes" in line for line in lines) == 2
    assert sum("student, forward and backward" in line for line in lines) == 2

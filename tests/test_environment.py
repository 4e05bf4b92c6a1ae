"""The report of what a machine can run."""

import torch

from slam_edu.environment import Environment, _has_code, check_environment


def machine(accelerator=None, memory=None):
    return Environment("3.11.7", "2.13.0", 2, 24.0, accelerator, memory)


def can(environment):
    return [verdict for _, verdict, _ in environment.verdicts()]


def test_what_each_machine_runs():
    laptop, t4 = machine(), machine("Tesla T4", 14.7)
    assert can(laptop) == [True, False, False]
    assert laptop.device == "cpu"
    assert "no GPU" in str(laptop)
    assert can(t4) == [True, True, False]
    assert t4.device == "cuda"
    assert "Tesla T4 with 15 GiB" in str(t4)
    assert can(machine("A100", 39.5)) == [True, True, True]
    assert machine("Apple GPU").device == "mps"


def test_code_for_a_gpu():
    assert _has_code((8, 6), ["sm_70", "sm_80"])
    assert _has_code((9, 0), ["sm_80", "compute_80"])
    assert not _has_code((9, 0), ["sm_80"])
    assert not _has_code((6, 0), ["sm_70", "compute_70"])
    assert not _has_code((10, 0), ["compute_90a"])
    assert _has_code((9, 0), ["gfx90a"])


def test_this_machine():
    here = check_environment()
    assert here.torch == torch.__version__
    assert min(here.cores, here.memory) > 0.5
    assert (here.device == "cuda") == torch.cuda.is_available()

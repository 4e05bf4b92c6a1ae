"""The report of what a machine can run."""

import torch

from slam_edu.environment import Environment, check_environment


def machine(**changes):
    fields = {
        "python": "3.11.7", "torch": "2.13.0", "cores": 2, "memory": 24.0,
        "accelerator": None, "accelerator_memory": None,
    }  # fmt: skip
    return Environment(**{**fields, **changes})


def can(environment):
    return [verdict for _, verdict, _ in environment.verdicts()]


def test_a_laptop_runs_the_plane_and_no_stable_diffusion():
    assert can(machine()) == [True, False, False]
    assert machine().device == "cpu"
    assert "no GPU" in str(machine())


def test_a_t4_runs_lora_and_an_a100_everything():
    t4 = machine(accelerator="Tesla T4", accelerator_memory=14.7)
    assert can(t4) == [True, True, False]
    assert "Tesla T4 with 15 GiB" in str(t4)
    assert can(machine(accelerator="A100", accelerator_memory=39.5)) == [True, True, True]
    assert t4.device == "cuda"


def test_apple_shares_its_memory():
    assert machine(accelerator="Apple GPU").device == "mps"


def test_this_machine():
    here = check_environment()
    assert here.torch == torch.__version__
    assert here.cores >= 1
    assert here.memory > 0.5
    assert (here.device == "cuda") == torch.cuda.is_available()

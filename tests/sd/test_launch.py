"""The launcher: a command on two processes, and what is said when it fails."""

import sys

import pytest

from slam_edu.sd.launch import launch, launch_command


def test_the_command_is_torchruns():
    words = launch_command(["distill", "updates=3"], 4)
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert words[words.index("--nproc_per_node") + 1] == "4"
    assert words[-4:] == ["-m", "slam_edu.sd", "distill", "updates=3"]
    with pytest.raises(ValueError, match="processes is 0"):
        launch_command(["distill"], 0)


def test_a_failure_comes_with_its_reason():
    with pytest.raises(RuntimeError, match=r"(?s)on 1 processes failed with status.*'lrr'"):
        launch(["distill", "lrr=1", "device=cpu"], 1)


def test_what_takes_too_long_is_ended():
    with pytest.raises(RuntimeError, match=r"on 1 processes took more than 0\.2 s"):
        launch(["distill", "--help-config"], 1, timeout=0.2)

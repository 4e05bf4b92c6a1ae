"""The launcher: what is told of a command that fails; tests of runs launch one that works."""

import pytest

from slam_edu.sd.launch import launch


def test_a_failure_comes_with_its_reason():
    with pytest.raises(RuntimeError, match=r"(?s)on 1 processes failed with status.*'lrr'"):
        launch(["distill", "lrr=1", "device=cpu"], 1)


def test_what_takes_too_long_is_ended():
    with pytest.raises(RuntimeError, match=r"on 1 processes took more than 0\.2 s"):
        launch(["distill", "--help-config"], 1, timeout=0.2)

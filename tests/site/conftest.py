"""The website, built once for all tests, and a browser to open it in."""

import subprocess
import sys

import pytest

from tools.notebooks import ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the built site, without an address of the repository."""
    out = tmp_path_factory.mktemp("website") / "site"
    command = [sys.executable, "-m", "tools.website", "--out", str(out), "--address", ""]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return out

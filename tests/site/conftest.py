"""The website, built once for all tests, and a browser to open it in."""

import subprocess
import sys
from pathlib import Path

import pytest

# The browser, and what happens without one, are those of the notebooks' tests.
from tests.browser.conftest import browser, pytest_runtest_setup  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the built site, without an address of the repository."""
    out = tmp_path_factory.mktemp("website") / "site"
    command = [sys.executable, "-m", "tools.website", "--out", str(out), "--address", ""]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return out

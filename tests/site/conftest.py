"""The website, built once for all tests, and a browser to open it in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.browser import lab
from tools.bootstrap import find_browser

ROOT = Path(__file__).resolve().parent.parent.parent
NO_BROWSER = (
    "no chromium found, so no page of the website was opened in a browser "
    "(apt install chromium, or CHROMIUM=/path/to/chromium)"
)


def pytest_runtest_setup(item):
    """Without a browser its tests are skipped; in CI, where nothing may be skipped, they fail."""
    if item.get_closest_marker("browser") and find_browser() is None:
        if os.environ.get("CI"):
            pytest.fail(NO_BROWSER, pytrace=False)
        pytest.skip(NO_BROWSER)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the built site, without an address of the repository."""
    out = tmp_path_factory.mktemp("website") / "site"
    command = [sys.executable, "-m", "tools.website", "--out", str(out), "--address", ""]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    with sync_playwright() as playwright:
        browser = lab.launch(playwright, find_browser())
        yield browser
        browser.close()

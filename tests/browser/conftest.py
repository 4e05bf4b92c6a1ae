"""The browser, or a clear word that there is none, and a JupyterLab for a process's tests."""

import os

import pytest
from playwright.sync_api import sync_playwright

from tests.browser import lab
from tools.bootstrap import find_browser

NO_BROWSER = (
    "no chromium found, so nothing was opened in a browser "
    "(apt install chromium, or CHROMIUM=/path/to/chromium)"
)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; without one a skip, in CI, where nothing may be skipped, an error."""
    path = find_browser()
    if path is None:
        assert not os.environ.get("CI"), NO_BROWSER
        pytest.skip(NO_BROWSER)
    with sync_playwright() as playwright:
        browser = lab.launch(playwright, path)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A JupyterLab on a folder of its own."""
    with lab.serve(tmp_path_factory.mktemp("lab")) as server:
        assert lab.refuses_strangers(server), "JupyterLab answers without its token"
        yield server

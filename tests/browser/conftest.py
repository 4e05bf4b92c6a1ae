"""The browser, or a clear word that there is none."""

import os

import pytest
from playwright.sync_api import sync_playwright

from tests.browser import lab
from tools.bootstrap import find_browser

NO_BROWSER = (
    "no chromium found, so nothing was opened in a browser "
    "(apt install chromium, or CHROMIUM=/path/to/chromium)"
)


def pytest_runtest_setup(item):
    """Without a browser its tests are skipped; in CI, where nothing may be skipped, they fail.

    Here and not in the fixture, so that pytest's summary has one line for all of them.
    """
    if item.get_closest_marker("browser") and find_browser() is None:
        if os.environ.get("CI"):
            pytest.fail(NO_BROWSER, pytrace=False)
        pytest.skip(NO_BROWSER)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    with sync_playwright() as playwright:
        browser = lab.launch(playwright, find_browser())
        yield browser
        browser.close()

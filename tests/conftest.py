"""Settings of the test run: no network, one thread a process, the longest first."""

import os

import pytest
import torch
from playwright.sync_api import sync_playwright
from xdist.scheduler import LoadFileScheduling

from tests.browser import lab
from tools.bootstrap import find_browser

# diffusers and transformers are used from what is installed: no test asks the network for a thing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Small tensors: threads would only compete with the other workers.
torch.set_num_threads(1)

# What takes longest, in this order; all else follows as it is. The lessons order themselves.
FIRST = (
    "tests/browser/test_lab.py",
    "tests/editions/test_classroom.py",
    "tests/editions/test_editions.py",
    "tests/sd/test_run.py",
    "tests/site/",
    "tests/course/test_colab.py",
    "tests/tools/test_wheel.py",
)


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.nodeid.partition("::")[0]
        return next((i for i, first in enumerate(FIRST) if name.startswith(first)), len(FIRST))

    items.sort(key=place)


class Units(LoadFileScheduling):
    """A process gets a file at a time, but the lessons in the browser one by one.

    The website's files go together, so that it is built once.
    """

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        if "::test_lesson[" in nodeid and "browser" in file:
            return nodeid
        return "tests/site" if file.startswith("tests/site/") else file


def pytest_xdist_make_scheduler(config, log):
    return Units(config, log)


NO_BROWSER = (
    "no chromium found, so nothing was opened in a browser "
    "(apt install chromium, or CHROMIUM=/path/to/chromium)"
)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; without one a skip, in CI, where nothing may be skipped, an error.

    One a process, for lessons and website: playwright refuses to be started twice.
    """
    path = find_browser()
    if path is None:
        assert not os.environ.get("CI"), NO_BROWSER
        pytest.skip(NO_BROWSER)
    with sync_playwright() as playwright:
        browser = lab.launch(playwright, path)
        yield browser
        browser.close()

"""A JupyterLab for a process's tests; the browser is in tests/conftest.py."""

import pytest

from tests.browser import lab


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A JupyterLab on a folder of its own."""
    with lab.serve(tmp_path_factory.mktemp("lab")) as server:
        assert lab.refuses_strangers(server), "JupyterLab answers without its token"
        yield server

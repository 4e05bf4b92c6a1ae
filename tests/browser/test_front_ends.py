"""An explorer outside JupyterLab: in Jupyter Notebook, and in Voilà, which shows it alone.

One function makes all of them (slam_course.widgets.explorer), so a quick lesson stands for all.
"""

import pytest

from tests.browser import lab
from tools.notebooks import NOTEBOOKS

pytestmark = pytest.mark.browser

LESSON = NOTEBOOKS / "04_sub_paths_and_the_sl_ode.ipynb"


def moved(page, keys=lab.ARROWS):
    """Moves every control of every explorer on the page; how many there were."""
    found = [lab.controls(explorer) for explorer in lab.explorers(page)]
    for explorer, handles in zip(lab.explorers(page), found, strict=True):
        for handle in handles:
            lab.move(explorer, handle, keys=keys)
    return sum(map(len, found))


def test_jupyter_notebook(browser, tmp_path):
    name = lab.copy_lesson(LESSON, tmp_path)
    with lab.serve(tmp_path, name) as server, lab.open_notebook(server, name, browser) as page:
        lab.run_all(page, seconds=300)
        assert moved(page, lab.PAGES) == 4


def test_voila(browser, tmp_path):
    name = lab.copy_lesson(LESSON, tmp_path)
    with lab.serve(tmp_path, name) as server, lab.open_voila(server, name, browser, 300) as page:
        assert moved(page) == 4
        assert not page.get_by_text("There was an error").count()

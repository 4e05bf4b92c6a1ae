"""Every lesson in JupyterLab in a real browser: its outputs are the stored ones, to the letter,
and its explorers answer."""

import re

import nbformat
import pytest

from tests.browser import lab
from tools.notebooks import NOTEBOOKS, differences


def running_time(path):
    """Seconds, from the budget card."""
    text = path.read_text("utf-8")
    number, unit = re.search(r"\| running all cells \| (?:about )?(\d+) (\w+)", text).groups()
    return int(number) * (60 if unit == "min" else 1)


# The longest first, so that no process works on alone at the end.
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"), key=running_time, reverse=True)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson(path, chromium, server):
    stored = nbformat.read(path, 4)
    name = lab.copy_lesson(path, server)
    with lab.open_lab(server, name, chromium) as page:
        lab.run_all(page, seconds=1800)
        changed = differences(stored, lab.saved(page, server.folder / name))
        assert not changed, "\n".join(changed)
        found = lab.explorers(page)
        assert found, f"{path.name} has no explorer (a widget with the class slam-explorer)"
        for number, explorer in enumerate(found, start=1):
            handles = lab.controls(explorer)
            assert handles, f"explorer {number} has neither a slider nor a menu"
            for handle in handles:
                lab.move(explorer, handle)
            lab.save_shot(explorer, f"{path.stem}-explorer{number}")


# The helper itself, on notebooks made here: a check that cannot fail would prove nothing.

STUCK = """
import ipywidgets as widgets
from IPython.display import display

pixel = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154"
    "789c63606060f80f0001040100ad0cf6a30000000049454e44ae426082"
)
image = widgets.Image(value=pixel, width=50, height=50)
image.add_class("slam-explorer-figure")
slider = widgets.IntSlider(value=9, min=0, max=9)
box = widgets.VBox([slider, image])
box.add_class("slam-explorer")
display(box)
"""


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys\nprint('oh', file=sys.stderr)", "oh"),
        ("import time\ntime.sleep(60)", r"code cells \[1\] of 1 have not run"),
        (STUCK, "another picture"),
    ],
    ids=["error", "stderr", "endless", "stuck"],
)
def test_helper_notices(chromium, server, tmp_path, monkeypatch, source, complaint):
    monkeypatch.setenv("SLAM_EDU_SHOTS", str(tmp_path))
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip())])
    nb.metadata["kernelspec"] = {"display_name": "x", "language": "python", "name": "python3"}
    nbformat.write(nb, server.folder / "made.ipynb")

    def run_and_move(seconds):
        with lab.open_lab(server, "made.ipynb", chromium) as page:
            lab.run_all(page, seconds)
            [explorer] = lab.explorers(page)
            lab.move(explorer, lab.controls(explorer)[0], seconds=1)

    with pytest.raises(lab.LabError, match=complaint):
        run_and_move(1 if "sleep" in source else 300)
    assert list(tmp_path.glob("*-failed.png")), "no screenshot of the failure"

"""Every notebook in JupyterLab in a real browser: it runs, and its explorers answer."""

import nbformat
import pytest

from tests.browser import lab
from tools.notebooks import NOTEBOOKS, differences, produce

pytestmark = pytest.mark.browser

# The last lessons take longest: they begin first, so that no process waits for one at the end.
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"), reverse=True)


def test_there_are_lessons():
    assert LESSONS, f"no notebooks in {NOTEBOOKS}: nothing would be tested"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson(path, browser, tmp_path):
    name = lab.copy_lesson(path, tmp_path)
    with lab.open_lab(tmp_path, name, browser) as page:
        lab.run_all(page, seconds=900)
        changed = differences(nbformat.read(path, 4), lab.saved(page, tmp_path / name))
        assert not changed, "\n".join(changed)
        found = lab.explorers(page)
        assert found, f"{path.name} has no explorer (a widget with the class slam-explorer)"
        for number, explorer in enumerate(found, start=1):
            handles = lab.controls(explorer)
            assert handles, f"explorer {number} has neither a slider nor a menu"
            taken = [lab.move(explorer, handle) for handle in handles]
            lab.save_shot(explorer, f"{path.stem}-explorer{number}")
            print(f"explorer {number}: " + ", ".join(f"{value:.0f} ms" for value in taken))


# The helper itself, on notebooks made here: a check that cannot fail would prove nothing.

EXPLORER = """
import base64
import ipywidgets as widgets
from IPython.display import display

def png(level):  # a grey 1 x 1 picture
    import struct, zlib
    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes([0, level]))
    parts = chunk(b"IHDR", head), chunk(b"IDAT", body), chunk(b"IEND", b"")
    return b"\\x89PNG\\r\\n\\x1a\\n" + b"".join(parts)

slider = widgets.IntSlider(value=9, min=0, max=9)      # at its end: only the left key moves it
choice = widgets.SelectionSlider(options=[1, 2, 4])
menu = widgets.Dropdown(options=["ring", "moons"])
image = widgets.Image(value=png(9), width=50, height=50)
image.add_class("slam-explorer-figure")

def redraw(change):
    image.value = png(slider.value + 10 * choice.value + 100 * (menu.value == "moons"))

for control in CONNECTED:
    control.observe(redraw, "value")
box = widgets.VBox([slider, choice, menu, image])
box.add_class("slam-explorer")
display(box)
"""


def write_notebook(folder, *sources):
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source.strip()) for source in sources],
        metadata={"kernelspec": {"display_name": "x", "language": "python", "name": "python3"}},
    )
    nbformat.write(nb, folder / "made.ipynb")
    return "made.ipynb"


def test_helper_moves_sliders_and_menus(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("SLAM_EDU_SHOTS", str(tmp_path / "shots"))
    source = EXPLORER.replace("CONNECTED", "(slider, choice, menu)")
    # Enough cells that JupyterLab would not keep all of them in the page by itself.
    name = write_notebook(tmp_path, *["1 + 1"] * 40, source, *["1 + 1"] * 40)
    with lab.open_lab(tmp_path, name, browser) as page:
        lab.run_all(page, seconds=120)
        [explorer] = lab.explorers(page)
        handles = lab.controls(explorer)
        assert len(handles) == 3
        for handle in handles:
            assert 0 < lab.move(explorer, handle) < 5000
        shot = lab.save_shot(explorer, "made")
        assert shot.parent == tmp_path / "shots"
        assert shot.read_bytes().startswith(b"\x89PNG")


def test_helper_notices_a_picture_that_stays(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("SLAM_EDU_SHOTS", str(tmp_path / "shots"))
    name = write_notebook(tmp_path, EXPLORER.replace("CONNECTED", "(slider, menu)"))
    with lab.open_lab(tmp_path, name, browser) as page:
        lab.run_all(page, seconds=120)
        [explorer] = lab.explorers(page)
        slider, choice, menu = lab.controls(explorer)
        lab.move(explorer, slider)
        lab.move(explorer, menu)
        with pytest.raises(lab.LabError, match="another picture"):
            lab.move(explorer, choice, seconds=2)


def test_helper_reads_the_outputs_that_jupyterlab_saves(browser, tmp_path):
    bar = "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)):\n    print('a line')"
    name = write_notebook(tmp_path, "print(1)", bar, "6 * 7", "{'html': object()}")
    stored, _ = produce(nbformat.read(tmp_path / name, 4), tmp_path)
    with lab.open_lab(tmp_path, name, browser) as page:
        lab.run_all(page, seconds=120)
        new = lab.saved(page, tmp_path / name)
    assert differences(stored, new) == []
    stored.cells[2].outputs[0].data["text/plain"] = "43"
    [difference] = differences(stored, new)
    assert "cell 3, `6 * 7`" in difference


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        (["1 / 0", "2"], "ZeroDivisionError"),
        (["import sys", "print('oh', file=sys.stderr)"], "oh"),
        (["import time", "time.sleep(60)"], r"code cells \[2\] of 2 have not run"),
    ],
    ids=["error", "stderr", "endless"],
)
def test_helper_notices_a_bad_cell(browser, tmp_path, monkeypatch, sources, complaint):
    monkeypatch.setenv("SLAM_EDU_SHOTS", str(tmp_path / "shots"))
    name = write_notebook(tmp_path, *sources)
    with (
        pytest.raises(lab.LabError, match=complaint),
        lab.open_lab(tmp_path, name, browser) as page,
    ):
        lab.run_all(page, seconds=5)
    assert list((tmp_path / "shots").glob("*-failed.png")), "no screenshot of the failure"

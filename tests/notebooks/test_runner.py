"""tools/notebooks.py: outputs that repeat, and comparisons that notice what does not."""

import json
import re

import nbformat
import pytest

from tools import notebooks
from tools.notebooks import differences, to_text

FIGURE = (
    "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(2, 2))\nax.plot([0, 1]);"
)
WIDGETS = """
import ipywidgets as widgets
hidden = [widgets.IntSlider(description=str(i)) for i in range(3)]
slider = widgets.IntSlider(value=3, max=9)
box = widgets.VBox([slider, widgets.HTML("x")])
display(box)
"""
PIECES = "import time\nfor i in range(3):\n    print(i, flush=True); time.sleep(0.2)"
MEASURED = "import os, random\nprint(random.random(), os.environ['OMP_NUM_THREADS'])"


def write(path, *sources):
    """A notebook with a cell for each source; the last one's outputs cannot repeat."""
    cells = [nbformat.v4.new_code_cell(each.strip(), id=f"c{i}") for i, each in enumerate(sources)]
    cells[-1].metadata["tags"] = [notebooks.VOLATILE_TAG]
    path.write_text(to_text(nbformat.v4.new_notebook(cells=cells)), encoding="utf-8")


def change(path, edit):
    nb = nbformat.read(path, as_version=4)
    edit(nb)
    path.write_text(to_text(nb), encoding="utf-8")


def test_two_runs_give_the_same_bytes(tmp_path, capsys):
    """With a figure, widgets, an object's address, prints in several pieces, and a measurement."""
    path = tmp_path / "made.ipynb"
    write(path, FIGURE, WIDGETS, "object()", PIECES, MEASURED)
    change(path, lambda nb: nb.metadata.update(colab={"toc": True}))
    assert notebooks.main([str(path)]) == 0
    assert capsys.readouterr().out.startswith("wrote")
    once = path.read_bytes()
    nb = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in nb.cells] == [1, 2, 3, 4, 5]
    assert set(nb.metadata) == {"kernelspec", "language_info", "slam_edu", "widgets"}
    [figure] = nb.cells[0].outputs  # the trailing `;` hid the list of lines
    assert "image/png" in figure.data
    assert nb.cells[1].outputs[0].data[notebooks.WIDGET_VIEW]["model_id"] == "0" * 32
    state = nb.metadata.widgets[notebooks.WIDGET_STATE]["state"]
    assert sum(model["model_name"] == "IntSliderModel" for model in state.values()) == 1
    assert nb.cells[2].outputs[0].data["text/plain"] == "<object at 0x0>"
    assert [output.text for output in nb.cells[3].outputs] == ["0\n1\n2\n"]
    assert nb.cells[4].outputs[0].text.endswith(" 1\n")
    assert notebooks.main([str(path)]) == 0
    assert "kept the measured outputs of 1 cells" in capsys.readouterr().out
    assert path.read_bytes() == once


def test_check_names_the_stale_cell_and_an_edit(tmp_path, capsys):
    path = tmp_path / "made.ipynb"
    write(path, "a = 2", "print(a)\na + 1", MEASURED)
    assert notebooks.main([str(path)]) == 0
    assert notebooks.main(["--check", "--fresh", str(path)]) == 0
    change(path, lambda nb: nb.cells[1].outputs[0].update(text="7\n"))
    change(path, lambda nb: nb.cells[0].update(source="a = 1 + 1"))
    before = path.read_bytes()
    capsys.readouterr()
    assert notebooks.main(["--check", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("STALE")
    assert "was edited" in out
    assert re.search(r"cell 2, `print\(a\)`:(.|\n)*-7\n(.|\n)*\+2\n", out)
    assert path.read_bytes() == before


def test_a_failing_cell_or_kernel_leaves_the_file_alone(tmp_path, capsys):
    bad, dead = tmp_path / "bad.ipynb", tmp_path / "dead.ipynb"
    write(bad, "1", "1 / 0")
    write(dead, "import os\nos.write(2, b'out of memory, say')\nos._exit(1)")
    before = bad.read_bytes()
    assert notebooks.main([str(bad), str(dead)]) == 1
    captured = capsys.readouterr()
    assert "FAILED   bad.ipynb" in captured.out
    assert "ZeroDivisionError" in captured.out
    assert "FAILED   dead.ipynb" in captured.out
    assert "out of memory, say" in captured.err
    assert bad.read_bytes() == before
    with pytest.raises(SystemExit):
        notebooks.main([str(tmp_path / "none.ipynb")])
    assert "none.ipynb' is not a notebook file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda cell: cell.outputs.clear(), r"-?\[stdout\]"),
        (lambda cell: cell.update(execution_count=None), "number None"),
        (lambda cell: cell.outputs[1].data.pop("image/png"), "image/png"),
        (lambda cell: cell.outputs[1].data.update({"text/plain": "other"}), "-other"),
    ],
    ids=["outputs gone", "never run", "picture gone", "other text"],
)
def test_differences_sees(edit, word):
    figure = nbformat.v4.new_output("display_data", {"image/png": "AAAA", "text/plain": "fig"})
    stdout = nbformat.v4.new_output("stream", name="stdout", text="1\n")
    cell = nbformat.v4.new_code_cell("print(1)", execution_count=1, outputs=[stdout, figure])
    new = nbformat.v4.new_notebook(cells=[cell])
    stored = nbformat.from_dict(json.loads(json.dumps(new)))
    stored.cells[0].outputs[1].data["image/png"] = "BBBB"
    assert differences(stored, new) == []  # pixels differ between processors
    edit(stored.cells[0])
    [difference] = differences(stored, new)
    assert re.search(word, difference)

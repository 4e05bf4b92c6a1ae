"""tools/notebooks.py: outputs that repeat, and comparisons that notice what does not."""

import json
import re
import shutil

import nbformat
import pytest

from tools import notebooks
from tools.notebooks import ROOT, differences, produce, to_text

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


def write(folder, *cells, name="made.ipynb"):
    """A notebook of code cells; a cell is its source, or (source, tag)."""
    nb = nbformat.v4.new_notebook()
    for index, cell in enumerate(cells):
        source, tags = (cell, []) if isinstance(cell, str) else (cell[0], [cell[1]])
        metadata = {"tags": tags} if tags else {}
        new = nbformat.v4.new_code_cell(source.strip(), id=f"c{index}", metadata=metadata)
        nb.cells.append(new)
    path = folder / name
    path.write_bytes(to_text(nb).encode("utf-8"))
    return path


def read(path):
    return nbformat.read(path, as_version=4)


def run(*arguments):
    return notebooks.main(["run", *map(str, arguments)])


def test_two_runs_give_the_same_bytes(tmp_path, capsys):
    """With a figure, widgets, an object's address, and prints in several pieces."""
    pieces = "import time\nfor i in range(3):\n    print(i, flush=True); time.sleep(0.2)"
    path = write(tmp_path, FIGURE, WIDGETS, "object()", pieces)
    assert run(path) == 0
    assert capsys.readouterr().out.startswith("wrote")
    once = path.read_bytes()
    nb = read(path)
    assert [cell.execution_count for cell in nb.cells] == [1, 2, 3, 4]
    assert "image/png" in nb.cells[0].outputs[0].data
    assert len(nb.cells[0].outputs) == 1  # the trailing `;` hid the list of lines
    assert nb.cells[2].outputs[0].data["text/plain"] == "<object at 0x0>"
    [output] = nb.cells[3].outputs
    assert output.text == "0\n1\n2\n"
    state = nb.metadata.widgets[notebooks.WIDGET_STATE]["state"]
    shown = {model["model_name"] for model in state.values()}
    assert shown == {
        "VBoxModel",
        "IntSliderModel",
        "SliderStyleModel",
        "HTMLModel",
        "HTMLStyleModel",
        "LayoutModel",
    }
    assert sum(model["model_name"] == "IntSliderModel" for model in state.values()) == 1
    assert nb.cells[1].outputs[0].data[notebooks.WIDGET_VIEW]["model_id"] == "0" * 32
    assert run(path) == 0
    assert capsys.readouterr().out.startswith("same")
    assert path.read_bytes() == once
    assert run("--twice", path) == 0
    assert capsys.readouterr().out.startswith("repeats")
    assert run("--check", path) == 0
    assert capsys.readouterr().out.startswith("fresh")


def test_metadata_of_editors_is_dropped(tmp_path):
    path = write(tmp_path, ("1 + 1", "exercise"))
    nb = read(path)
    nb.metadata = {"colab": {"toc": True}, "kernelspec": {"name": "mine"}, "slam_edu": {"x": 1}}
    nb.cells[0].metadata["execution"] = {"iopub.execute_input": "2024"}
    path.write_bytes(to_text(nb).encode("utf-8"))
    assert run(path) == 0
    nb = read(path)
    assert set(nb.metadata) == {"kernelspec", "language_info", "slam_edu"}
    assert nb.metadata.kernelspec == notebooks.KERNELSPEC
    assert nb.metadata.slam_edu == {"x": 1, "source_sha256": notebooks.source_sha256(nb)}
    assert nb.cells[0].metadata == {"tags": ["exercise"]}


def test_the_kernel_runs_beside_the_notebook_under_fixed_conditions(tmp_path):
    source = "import os\nprint(os.path.basename(os.getcwd()), os.environ['OMP_NUM_THREADS'])"
    nb, _ = produce(read(write(tmp_path, source)), tmp_path)
    assert nb.cells[0].outputs[0].text == f"{tmp_path.name} 1\n"


def test_large_widget_state_is_dropped(tmp_path, capsys):
    size = notebooks.WIDGET_STATE_CAP
    source = f"import ipywidgets as widgets\ndisplay(widgets.HTML('x' * {size}))"
    path = write(tmp_path, source)
    assert run(path) == 0
    assert "widgets" not in read(path).metadata
    assert "of widget state" in capsys.readouterr().out
    assert path.stat().st_size < size / 10


MEASURED = ("import random\nprint(random.random())", notebooks.VOLATILE_TAG)


def test_measured_outputs_are_kept_until_the_code_changes(tmp_path, capsys):
    path = write(tmp_path, MEASURED, "2")
    assert run(path) == 0
    first = read(path).cells[0].outputs[0].text
    assert run(path) == 0
    assert read(path).cells[0].outputs[0].text == first
    assert "kept the measured outputs of 1 cells" in capsys.readouterr().out
    assert run("--check", path) == 0  # nor are they compared
    assert run("--fresh", path) == 0
    second = read(path).cells[0].outputs[0].text
    assert second != first
    nb = read(path)
    nb.cells[1].source = "3"
    path.write_bytes(to_text(nb).encode("utf-8"))
    assert run(path) == 0
    assert read(path).cells[0].outputs[0].text != second


def test_check_names_the_stale_cell(tmp_path, capsys):
    path = write(tmp_path, "a = 2", "print(a)\na + 1")
    assert run(path) == 0
    nb = read(path)
    nb.cells[1].outputs[0].text = "7\n"
    path.write_bytes(to_text(nb).encode("utf-8"))
    before = path.read_bytes()
    capsys.readouterr()
    assert run("--check", path) == 1
    out = capsys.readouterr().out
    assert out.startswith("STALE")
    assert "cell 2, `print(a)`:" in out
    assert "-7" in out
    assert "+2" in out
    assert path.read_bytes() == before


def test_check_notices_an_edit_that_prints_the_same(tmp_path, capsys):
    path = write(tmp_path, "print(4)")
    assert run(path) == 0
    nb = read(path)
    nb.cells[0].source = "print(2 + 2)"
    path.write_bytes(to_text(nb).encode("utf-8"))
    assert run("--check", path) == 1
    assert "was edited" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda cell: cell.outputs.clear(), r"-?\[stdout\]"),
        (lambda cell: cell.update(execution_count=None), "number None"),
        (lambda cell: cell.outputs[1].data.pop("image/png"), "image/png"),
        (lambda cell: cell.outputs[1].data.update({"text/plain": "other"}), "-other"),
    ],
    ids=["outputs gone", "never run", "picture gone", "other text"],
)
def test_differences_sees(tmp_path, change, word):
    figure = nbformat.v4.new_output("display_data", {"image/png": "AAAA", "text/plain": "fig"})
    stdout = nbformat.v4.new_output("stream", name="stdout", text="1\n")
    cell = nbformat.v4.new_code_cell("print(1)", execution_count=1, outputs=[stdout, figure])
    new = nbformat.v4.new_notebook(cells=[cell])
    stored = nbformat.from_dict(json.loads(json.dumps(new)))
    assert differences(stored, new) == []
    stored.cells[0].outputs[1].data["image/png"] = "BBBB"
    assert differences(stored, new) == []  # pixels differ between processors
    change(stored.cells[0])
    [difference] = differences(stored, new)
    assert re.search(word, difference)


def test_twice_names_what_varies(tmp_path, capsys):
    path = write(tmp_path, "import random\nprint('value', random.random())")
    before = path.read_bytes()
    assert run("--twice", path) == 1
    out = capsys.readouterr().out
    assert out.startswith("VARIES")
    assert "value 0." in out
    assert path.read_bytes() == before


def test_a_failing_cell_leaves_the_file_alone(tmp_path, capsys):
    bad = write(tmp_path, "1", "1 / 0", name="bad.ipynb")
    good = write(tmp_path, "1", name="good.ipynb")
    before = bad.read_bytes()
    assert run(bad, good) == 1
    out = capsys.readouterr().out
    assert "FAILED   bad.ipynb" in out
    assert "ZeroDivisionError" in out
    assert "wrote    good.ipynb" in out  # the others are run all the same
    assert bad.read_bytes() == before


def test_a_kernel_that_dies_leaves_its_last_words(tmp_path, capsys):
    path = write(tmp_path, "import os, sys\nos.write(2, b'out of memory, say')\nos._exit(1)")
    assert run(path) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("FAILED")
    assert "out of memory, say" in captured.err


def test_unusable_arguments(tmp_path, capsys, monkeypatch):
    assert run(tmp_path / "none.ipynb") == 2
    assert "none.ipynb' is not a notebook file" in capsys.readouterr().err
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    assert run() == 2
    assert "no notebooks in" in capsys.readouterr().err
    assert notebooks.main(["compare"]) == 2
    assert "no notebooks in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--chekc")


def test_the_long_ones_are_left_to_the_browser_test(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    path = write(tmp_path, "1")
    assert notebooks.find_short() == [path]
    nb = read(path)
    nb.metadata["slam_edu"] = {"long": True}
    path.write_bytes(to_text(nb).encode("utf-8"))
    assert notebooks.find_short() == []
    assert str(path) in notebooks.compare_command(1, [])
    assert str(path) not in notebooks.compare_command(1, [], short=True)
    assert str(path) in notebooks.compare_command(1, [str(path)], short=True)
    assert run(path) == 0
    assert notebooks.is_long(read(path)), "running it forgot that it is long"


# nbval itself, as `make test` calls it.


def compare(path):
    shutil.copy(ROOT / "conftest.py", path.parent)  # pytest reads the one beside what it collects
    return notebooks.main(["compare", str(path)])


def test_nbval_passes_what_was_just_run(tmp_path, capfd):
    """A figure behind a trailing `;` (which nbval alone gets wrong), a widget, an address."""
    path = write(tmp_path, FIGURE, WIDGETS, "object()", MEASURED, "x = 1\nx;")
    assert run(path) == 0
    assert compare(path) == 0
    assert "5 passed" in capfd.readouterr().out


@pytest.mark.parametrize("change", ["text", "no figure"])
def test_nbval_fails_on_an_output_that_is_not_so(tmp_path, capfd, change):
    path = write(tmp_path, FIGURE, "print(1)")
    assert run(path) == 0
    nb = read(path)
    if change == "text":
        nb.cells[1].outputs[0].text = "2\n"
    else:
        nb.cells[0].outputs = []
    path.write_bytes(to_text(nb).encode("utf-8"))
    assert compare(path) == 1
    assert "1 failed, 1 passed" in capfd.readouterr().out

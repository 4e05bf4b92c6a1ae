"""tools/lint.py: what is spelled, and that a misspelling is found."""

import subprocess

import nbformat
import pytest

from tools import lint

# In two parts, for the linter spells this file as well.
WRONG = "t" + "eh"


def test_a_misspelling_is_named_with_its_place():
    found = {
        "README.md": "All is well.\n",
        "slam_edu/new.py": '"""Well.\n\nA docstring with ' + WRONG + ' mistake."""\n',
        "notebooks/01_new.ipynb/cell 3": f"# Title\n\nIn {WRONG} cell.\n",
    }
    assert sorted(lint.misspellings(found)) == [
        f"notebooks/01_new.ipynb/cell 3:3: {WRONG} ==> the",
        f"slam_edu/new.py:3: {WRONG} ==> the",
    ]
    assert lint.misspellings({"README.md": "import ot  # POT's module\n"}) == []


def test_what_is_spelled(tmp_path):
    """Prose, code and the cells of notebooks; no outputs, no pictures."""
    read = ("README.md", "docs/guide.md", "slam_edu/sd/a.py", ".github/workflows/ci.yml")
    other = ("docs/a.png", "data/words.txt", "slam_edu/__pycache__/a.py")
    for name in (*read, "data/b/README.md", *other):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    output = nbformat.v4.new_output("stream", name="stdout", text=WRONG)
    cells = [nbformat.v4.new_markdown_cell("words"), nbformat.v4.new_code_cell("x = 1")]
    cells[1].outputs = [output]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "01_a.ipynb")
    assert lint.texts(tmp_path) == {
        **{name: name for name in (*read, "data/b/README.md")},
        "notebooks/01_a.ipynb/cell 1": "words",
        "notebooks/01_a.ipynb/cell 2": "x = 1",
    }


def test_every_lesson_is_spelled():
    found = lint.texts(lint.ROOT)
    for path in (lint.ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{path.name}/cell 1" in found
    for name in ("README.md", "slam_edu/__init__.py", "tests/test_lint.py", "pyproject.toml"):
        assert name in found


def test_codespell_that_cannot_run_is_an_error(tmp_path):
    broken = tmp_path / "pyproject.toml"
    broken.write_text("[tool.codespell]\nno-such-option = 1\n[broken")
    with pytest.raises(RuntimeError, match="codespell failed"):
        lint.misspellings({"README.md": "well"}, config=broken)


@pytest.mark.parametrize(
    ("ruff", "text", "status"), [(0, "well", 0), (1, "well", 1), (0, WRONG, 1)]
)
def test_either_check_fails_the_step(monkeypatch, capsys, ruff, text, status):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, ruff)

    monkeypatch.setattr(lint, "texts", lambda root: {})
    monkeypatch.setattr(
        lint, "misspellings", lambda found: [f"a:1: {WRONG} ==> the"] if text == WRONG else []
    )
    monkeypatch.setattr(lint.subprocess, "run", run)
    assert lint.main(["--fix"]) == status
    assert commands[0][1:] == ["-m", "ruff", "check", ".", "--fix"]
    assert ("a:1: " in capsys.readouterr().out) == (text == WRONG)

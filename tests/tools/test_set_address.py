"""tools/set_address.py: one address, everywhere, and back."""

import json
import re
import shutil

import pytest

from tools import set_address
from tools.set_address import apply, setting, setup_cell_source

ADDRESS = "https://github.com/someone/slam-course"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of every file that the address stands in, without one."""
    for name in ("pyproject.toml", "CITATION.cff", "README.md"):
        shutil.copy(set_address.ROOT / name, tmp_path)
    for name in ("notebooks", "editions/student"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(set_address.ROOT / name / "00_start_here.ipynb", tmp_path / name)
    monkeypatch.setattr(set_address, "ROOT", tmp_path)
    apply("")
    return tmp_path


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_address_is_written_everywhere_and_taken_back_to_the_byte(checkout):
    before = contents(checkout)
    assert set(apply(ADDRESS)) == set(before)
    assert apply(ADDRESS) == []
    assert setting("repository") == ADDRESS
    texts = {path.name: path.read_text("utf-8") for path in contents(checkout)}
    assert f'\n[project.urls]\nRepository = "{ADDRESS}"\n' in texts["pyproject.toml"]
    assert f"\nrepository-code: {ADDRESS}\n" in texts["CITATION.cff"]
    readme = texts["README.md"]
    assert f"git clone {ADDRESS}\ncd slam-course\nmake lab\n" in readme
    assert f"[![Tests]({ADDRESS}/actions/workflows/ci.yml/badge.svg)]" in readme
    blob = "someone/slam-course/blob/main/notebooks/00_start_here.ipynb"
    assert f"(https://colab.research.google.com/github/{blob})" in readme
    assert f"welcome?src=https://github.com/{blob})" in readme
    cells = json.loads(texts["00_start_here.ipynb"])["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    assert "".join(first["source"]) == setup_cell_source(ADDRESS)
    assert f'%pip install -q "slam_edu @ git+{ADDRESS}"' in setup_cell_source(ADDRESS)
    # Elsewhere than on GitHub, Colab opens nothing by its address.
    apply("https://git.example.org/a/b/name")
    readme = (checkout / "README.md").read_text("utf-8")
    assert "git clone https://git.example.org/a/b/name\ncd name\n" in readme
    assert "colab.research.google.com/github" not in readme
    apply("")
    assert contents(checkout) == before


def test_without_an_address_nothing_leads_nowhere(checkout):
    text = "".join(part.decode("utf-8") for part in contents(checkout).values())
    assert not re.search(r"git\+|git clone|colab.research.google.com/github|badge.svg", text)


@pytest.mark.parametrize(
    "address",
    ["github.com/a/b", "http://github.com/a/b", "git@github.com:a/b.git", "https://github.com/a",
     "https://u:p@github.com/a/b", "https://github.com/a/b?x", 'https://github.com/a/"b', "x"],
)  # fmt: skip
def test_what_is_no_address_is_named_and_nothing_is_written(checkout, address):
    before = contents(checkout)
    with pytest.raises(SystemExit, match="allowed: an address such as") as caught:
        apply(address)
    assert repr(address) in str(caught.value)
    assert contents(checkout) == before

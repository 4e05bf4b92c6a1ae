"""tools/set_address.py: one address, everywhere, and back."""

import json
import re
import shutil
import subprocess
import sys
import types

import nbformat
import pytest

from tests.notebooks.made import made_notebook
from tools import set_address
from tools.notebooks import source_sha256, to_text
from tools.set_address import apply, read_address, setup_cell_source, validate

ADDRESS = "https://github.com/someone/slam-course"
COLAB_PICTURE = "https://colab.research.google.com/assets/colab-badge.svg"
README = """\
# A course

<!-- address:badges -->
<!-- /address:badges -->

Words, and a [link](https://example.org).

<!-- address:clone -->
<!-- /address:clone -->

<!-- address:colab -->
<!-- /address:colab -->

The end.
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of every file that the address stands in, brought to the state without one."""
    for name in ("pyproject.toml", "CITATION.cff"):
        shutil.copy(set_address.ROOT / name, tmp_path)
    (tmp_path / "README.md").write_bytes(README.encode())
    (tmp_path / "notebooks").mkdir()
    for name in ("00_start_here.ipynb", "01_made.ipynb"):
        nb = made_notebook()
        (tmp_path / "notebooks" / name).write_bytes(to_text(nb).encode("utf-8"))
    apply(tmp_path, "")
    return tmp_path


def contents(root):
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def text(root, name):
    return contents(root)[name].decode("utf-8")


def test_setting_writes_it_everywhere(checkout):
    changed = apply(checkout, ADDRESS)
    assert {path.name for path in changed} == set(contents(checkout))
    assert read_address(checkout) == ADDRESS
    assert f'[project.urls]\nRepository = "{ADDRESS}"' in text(checkout, "pyproject.toml")
    assert f"\nrepository-code: {ADDRESS}\n" in text(checkout, "CITATION.cff")
    readme = text(checkout, "README.md")
    assert f"git clone {ADDRESS}\ncd slam-course\nmake lab\n" in readme
    colab = "https://colab.research.google.com/github/someone/slam-course/blob/main/notebooks/"
    kaggle = f"https://kaggle.com/kernels/welcome?src={ADDRESS}/blob/main/notebooks/"
    for name in ("00_start_here", "01_made"):
        line = re.search(rf"(?m)^- {name}: (.+)$", readme)[1]
        assert f"[![Open in Colab]({COLAB_PICTURE})]({colab}{name}.ipynb)" in line
        assert f")]({kaggle}{name}.ipynb)" in line
    badges = readme.split("<!-- address:badges -->\n")[1].split("\n<!-- /")[0].splitlines()
    workflow = f"{ADDRESS}/actions/workflows/ci.yml"
    assert badges[0] == f"[![Tests]({workflow}/badge.svg)]({workflow})"
    assert badges[1].endswith("](https://someone.github.io/slam-course/)")
    assert badges[2] == f"[![Open in Colab]({COLAB_PICTURE})]({colab}00_start_here.ipynb)"
    assert len(badges) == 3
    assert "Words, and a [link](https://example.org)." in readme
    nb = nbformat.reads(text(checkout, "01_made.ipynb"), as_version=4)
    assert nb.cells[1].source == setup_cell_source(ADDRESS)


def test_setting_twice_changes_nothing(checkout):
    apply(checkout, ADDRESS)
    before = contents(checkout)
    assert apply(checkout, ADDRESS) == []
    assert apply(checkout, ADDRESS + "/") == []
    assert apply(checkout, ADDRESS + ".git") == []
    assert contents(checkout) == before


def test_clearing_gives_back_the_same_bytes(checkout):
    before = contents(checkout)
    apply(checkout, ADDRESS)
    apply(checkout, "https://gitlab.com/group/sub/name")
    apply(checkout, "")
    assert contents(checkout) == before
    assert apply(checkout, "") == []


def test_without_an_address_nothing_leads_nowhere(checkout):
    readme = text(checkout, "README.md")
    assert "<!-- address:badges -->\n<!-- /address:badges -->" in readme
    assert "From the folder you downloaded:" in readme
    assert "make wheel" in readme
    links = set(re.findall(r"https?://[^\s)\"]+", readme))
    assert links == {"https://example.org", "https://colab.research.google.com"}
    assert "repository-code" not in text(checkout, "CITATION.cff").replace(
        "address:repository-code", ""
    )
    assert "[project.urls]" not in text(checkout, "pyproject.toml")
    assert "git+" not in setup_cell_source("")


def test_another_host_has_no_colab_links(checkout):
    apply(checkout, "https://gitlab.com/group/sub/name")
    readme = text(checkout, "README.md")
    assert "git clone https://gitlab.com/group/sub/name\ncd name\n" in readme
    assert "colab.research.google.com/github" not in readme
    assert "badge" not in readme.replace("address:badges", "")
    assert "kaggle.com" not in readme


@pytest.mark.parametrize(
    ("address", "site"),
    [
        (ADDRESS, "https://someone.github.io/slam-course/"),
        ("https://github.com/SomeOne/Slam", "https://someone.github.io/Slam/"),
        ("https://github.com/SomeOne/someone.github.io", "https://someone.github.io/"),
    ],
)
def test_where_github_serves_the_website(address, site):
    assert set_address.site_link(address) == site


def test_the_editions_follow(checkout):
    """They are made from the notebooks and would be stale."""
    edition = checkout / "editions" / "student" / "01_made.ipynb"
    edition.parent.mkdir(parents=True)
    shutil.copy(checkout / "notebooks" / "01_made.ipynb", edition)
    before = edition.read_bytes()
    assert edition in apply(checkout, ADDRESS)
    assert edition.read_bytes() == (checkout / "notebooks" / "01_made.ipynb").read_bytes()
    apply(checkout, "")
    assert edition.read_bytes() == before


def test_outputs_stay_current(checkout):
    """The set-up cell is not part of what the outputs belong to."""
    apply(checkout, ADDRESS)
    nb = nbformat.reads(text(checkout, "01_made.ipynb"), as_version=4)
    assert nb.metadata.slam_edu.source_sha256 == source_sha256(nb)
    assert to_text(nb) == text(checkout, "01_made.ipynb")  # nbformat's own bytes


def test_line_ends_of_windows_survive(checkout):
    path = checkout / "CITATION.cff"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    before = path.read_bytes()
    apply(checkout, ADDRESS)
    apply(checkout, "")
    assert path.read_bytes() == before


@pytest.mark.parametrize("address", [ADDRESS, ""])
def test_the_tool_says_what_it_wrote(checkout, capsys, address):
    apply(checkout, ADDRESS if not address else "")
    arguments = [address] if address else ["--clear"]
    assert set_address.main(arguments, checkout) == 0
    assert "wrote README.md" in capsys.readouterr().out
    assert set_address.main(arguments, checkout) == 0
    assert capsys.readouterr().out == "nothing to change\n"
    assert set_address.main([], checkout) == 0
    assert capsys.readouterr().out == f"address: {address or 'none'}\nnothing to change\n"


def test_a_new_notebook_gets_its_set_up_cell(checkout, capsys):
    apply(checkout, ADDRESS)
    nb = made_notebook()
    nb.cells[1].source = "pass"
    (checkout / "notebooks" / "02_new.ipynb").write_bytes(to_text(nb).encode())
    assert set_address.main([], checkout) == 0
    assert "wrote notebooks/02_new.ipynb" in capsys.readouterr().out.replace("\\", "/")
    assert "02_new" in text(checkout, "README.md")


@pytest.mark.parametrize(
    "address",
    [
        "github.com/someone/name",
        "http://github.com/someone/name",
        "git@github.com:someone/name.git",
        "ssh://git@github.com/someone/name",
        "https://github.com",
        "https://github.com/someone",
        "https://github.com/someone/name/tree/main",
        "https://github.com/someone/name?tab=readme",
        "https://github.com/someone/name#readme",
        "https://user:secret@github.com/someone/name",
        "https://github.com:8080/someone/name",
        "https://github.com:port/someone/name",
        "https://localhost/someone/name",
        "https://github.com/some one/name",
        'https://github.com/someone/na"me',
        "https://github.com/someone/..",
        "https://github.com//name",
        "https://[github.com/someone/name",
        "OWNER/NAME",
    ],
)
def test_an_address_that_is_none_is_named_and_nothing_is_written(checkout, capsys, address):
    before = contents(checkout)
    with pytest.raises(ValueError, match="allowed is an address such as") as caught:
        validate(address)
    assert repr(address) in str(caught.value)
    assert set_address.main([address], checkout) == 2
    assert capsys.readouterr().err.startswith("error: the repository's address")
    assert contents(checkout) == before


@pytest.mark.parametrize(
    ("address", "spelled"),
    [
        ("", ""),
        (ADDRESS, ADDRESS),
        (ADDRESS + "/", ADDRESS),
        (ADDRESS + ".git", ADDRESS),
        ("https://GitHub.com/Someone/Name", "https://github.com/Someone/Name"),
        ("https://git.example.org/a/b/c", "https://git.example.org/a/b/c"),
    ],
)
def test_an_address_has_one_spelling(address, spelled):
    assert validate(address) == spelled


@pytest.mark.parametrize(
    ("name", "find", "replacement"),
    [
        ("pyproject.toml", "# address:urls", "# urls"),
        ("pyproject.toml", "repository = ", "repo = "),
        ("CITATION.cff", "# /address:repository-code", "#"),
        ("README.md", "<!-- /address:clone -->", ""),
        ("README.md", "# A course", "<!-- address:clone -->"),
        ("01_made.ipynb", '"setup"', '"set-up"'),
    ],
)
def test_a_file_without_its_marks_is_named_and_nothing_is_written(
    checkout, capsys, name, find, replacement
):
    [path] = checkout.rglob(name)
    old = path.read_text(encoding="utf-8")
    assert find in old
    path.write_text(old.replace(find, replacement), encoding="utf-8")
    before = contents(checkout)
    assert set_address.main([ADDRESS], checkout) == 2
    assert name in capsys.readouterr().err
    assert contents(checkout) == before


def test_a_readme_may_leave_marks_out(checkout):
    (checkout / "README.md").write_text("# A course\n")
    apply(checkout, ADDRESS)
    assert text(checkout, "README.md") == "# A course\n"
    (checkout / "README.md").unlink()
    apply(checkout, "")
    assert read_address(checkout) == ""


# The set-up cell


def run_setup(source, found):
    """Run a set-up cell as IPython would, with slam_edu there or not.

    Returns (what %pip was called with, how often slam_edu.setup was called).
    """
    calls, setups = [], []
    pip = re.compile(r"(?m)^( *)%pip (.*)$")
    source = pip.sub(lambda match: f"{match[1]}pip({json.dumps(match[2])})", source)
    fake = types.ModuleType("importlib.util")
    fake.find_spec = lambda name: object() if found and name == "slam_edu" else None
    importlib = types.ModuleType("importlib")
    importlib.util = fake
    package = types.ModuleType("slam_edu")
    package.setup = lambda: setups.append(1)
    fakes = {"importlib": importlib, "importlib.util": fake, "slam_edu": package}
    saved = {name: sys.modules[name] for name in fakes if name in sys.modules}
    sys.modules.update(fakes)
    try:
        exec(source, {"pip": calls.append})
    finally:
        del sys.modules["slam_edu"]
        sys.modules.update(saved)
    return calls, len(setups)


def test_the_set_up_cell_installs_nothing_where_the_course_is_installed():
    for address in ("", ADDRESS):
        assert run_setup(setup_cell_source(address), found=True) == ([], 1)


def test_the_set_up_cell_installs_from_the_address():
    calls, setups = run_setup(setup_cell_source(ADDRESS), found=False)
    # No extra: it would put another Jupyter under the running one.
    assert calls == [f'install -q "slam_edu @ git+{ADDRESS}"']
    assert setups == 1


def test_without_an_address_the_set_up_cell_says_what_to_do():
    with pytest.raises(ModuleNotFoundError) as caught:
        run_setup(setup_cell_source("", version="7.8.9"), found=False)
    assert "make lab" in str(caught.value)
    assert "`%pip install slam_edu-7.8.9-py3-none-any.whl`" in str(caught.value)


@pytest.mark.parametrize("address", ["", ADDRESS])
def test_the_set_up_cell_passes_the_linter(tmp_path, address):
    """As a notebook cell, its magic included; and its formatter would leave it as it is."""
    source = setup_cell_source(address)
    assert sum(bool(line.strip()) for line in source.splitlines()) <= 8
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    path = tmp_path / "lesson.ipynb"
    path.write_text(to_text(nb), encoding="utf-8")
    config = set_address.ROOT / "pyproject.toml"
    for command in (["check"], ["format", "--check", "--diff"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", str(config)]
        done = subprocess.run([*ruff, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_wheels_name_is_the_projects():
    assert f"slam_edu-{set_address.read_version()}-py3" in setup_cell_source("")


def test_this_checkout_is_rendered():
    """Nothing in the repository stands as another address would have it."""
    files = set_address.render(set_address.ROOT, read_address())
    stale = [path.name for path, new in files.items() if path.read_bytes().decode() != new]
    assert stale == [], "run `make address`"

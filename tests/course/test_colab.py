"""A simulated Colab: a fresh virtual environment, another folder, the wheel, google.colab's stub.

The environment sees the packages of this one through a `.pth` file, which leaves the checkout's
own slam_edu out: until `%pip` is run it is missing, as on Colab. `%pip` installs the wheel that is
built here in place of what the address would give; nothing asks a network.
"""

import json
import os
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement

from tests.tools.test_environment import EXTRAS, PROJECT
from tests.tools.test_wheel import wheel  # noqa: F401 -- a fixture
from tools.notebooks import NOTEBOOKS, SETUP_TAG
from tools.set_address import setup_cell_source

ADDRESS = "https://github.com/someone/slam-course"
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
STUB = """
def enable_custom_widget_manager():
    with open("widgets.txt", "a") as file:
        file.write("enabled\\n")
"""
# What IPython's own %pip would do, with the wheel for the address.
PIP = """
import subprocess, sys
from IPython.core.magic import register_line_magic

@register_line_magic
def pip(line):
    with open("pip.txt", "a") as file:
        file.write(line + "\\n")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", {wheel!r}]
    subprocess.run(command, check=True)
"""
REPORT = """
import importlib.metadata, json, os, slam_edu
print(json.dumps({
    "file": slam_edu.__file__,
    "platform": course.platform,
    "device": course.device,
    "data": str(course.data),
    "runs": str(course.runs),
    "problems": course.problems,
    "same": slam_edu.setup() == course,
    "requires": importlib.metadata.requires("slam_edu"),
}))
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A made-up rented machine.

    Attributes:
        python: its interpreter.
        site: where its packages go.
        content: the folder that its notebooks run in.
        environ: its environment's variables.
        jupyter: folder of Jupyter's files, which describe its kernel, "rented".
    """

    python: str
    site: Path
    content: Path
    environ: dict[str, str]
    jupyter: Path

    def run(self, code: str, **environ: str) -> str:
        """Standard output of `code`."""
        done = subprocess.run(
            [self.python, "-c", code],
            cwd=self.content,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run_cells(self, sources: list[str]) -> list[str]:
        """What each cell of a notebook prints; a cell that fails is an error."""
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nb = nbformat.v4.new_notebook(cells=cells)
        resources = {"metadata": {"path": str(self.content)}}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JUPYTER_PATH", str(self.jupyter))  # where its kernel is described
            client = NotebookClient(nb, kernel_name="rented", timeout=300, resources=resources)
            client.execute(env=self.environ)
        return [
            "".join(output.text for output in cell.outputs if output.output_type == "stream")
            for cell in nb.cells
        ]


@pytest.fixture(scope="module")
def rented(tmp_path_factory):
    """Makes a Machine with the given variables in its environment."""

    def make(**variables: str) -> Machine:
        folder = tmp_path_factory.mktemp("rented")
        venv.EnvBuilder(symlinks=os.name != "nt").create(folder / "venv")
        parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
        python = str(folder.joinpath("venv", *parts))
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(subprocess.check_output([python, "-c", code], text=True).strip())
        # As plain lines: .pth files in these folders, the checkout's among them, are not read.
        packages = [
            path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")
        ]
        (site / "packages.pth").write_text("\n".join(packages) + "\n")
        content = folder / "content"
        content.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MPL", "PIP_"))}
        environ = {
            **kept,
            **variables,
            "HF_HUB_OFFLINE": "1",
            "HOME": str(folder),
            "IPYTHONDIR": str(folder / "ipython"),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }
        spec = folder / "kernels" / "rented" / "kernel.json"
        spec.parent.mkdir(parents=True)
        command = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": command, "display_name": "r", "language": "python"}))
        return Machine(python=python, site=site, content=content, environ=environ, jupyter=folder)

    return make


@pytest.fixture(scope="module")
def colab(rented):
    """Colab as a learner finds it: without slam_edu."""
    machine = rented(COLAB_RELEASE_TAG="release-colab_20261112", COLAB_GPU="")
    stub = machine.site / "google" / "colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "output.py").write_text(STUB)
    return machine


def code_cells(path, count):
    """The first `count` code cells of a lesson behind the set-up cell."""
    nb = nbformat.read(path, as_version=4)
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert SETUP_TAG in cells[0].metadata.tags
    return [cell.source for cell in cells[1 : 1 + count]]


def test_without_an_address_the_first_cell_names_the_wheel(colab):
    code = f"""
try:
    exec({setup_cell_source("")!r})
except ModuleNotFoundError as error:
    print(error)
"""
    wanted = f"slam_edu-{PROJECT['version']}-py3-none-any.whl"
    assert (
        f"on Colab or Kaggle upload the file of `make wheel` and run `%pip install {wanted}`"
        in (colab.run(code))
    )


def test_lessons_start_on_colab(colab, wheel):  # noqa: F811
    first = setup_cell_source(ADDRESS)
    imports = [code_cells(path, 1)[0] for path in LESSONS]
    start = code_cells(LESSONS[0], 5)
    cells = [PIP.format(wheel=str(wheel)), first, first, REPORT, *start, *imports]
    printed = colab.run_cells(cells)
    assert (colab.content / "pip.txt").read_text() == (
        f'install -q "slam_edu @ git+{ADDRESS}"\n'
    )  # once
    assert (colab.content / "widgets.txt").read_text() == "enabled\n"
    assert printed[1].startswith("Runs end with Colab's machine.")
    assert printed[1].count("\n") == 1
    assert printed[2] == ""  # a second time it says nothing
    report = json.loads(printed[3])
    assert report["problems"] == []
    assert report["platform"] == "colab"
    assert report["same"]
    assert Path(report["file"]).is_relative_to(colab.site)
    assert Path(report["data"]).is_relative_to(colab.site)
    assert Path(report["runs"]).samefile(colab.content / "runs")
    assert "lessons in the plane" in printed[5]
    assert len(imports) == 10
    # The ranges that are looked at are pyproject.toml's, by way of the wheel.
    listed = PROJECT["dependencies"] + EXTRAS["course"] + EXTRAS["sd"]
    found = [Requirement(text) for text in report["requires"]]
    for requirement in map(Requirement, listed):
        assert any(
            item.name.lower() == requirement.name.lower()
            and item.specifier == requirement.specifier
            for item in found
        ), requirement


def small_wheel(folder, name, requires=()):
    """A wheel of one empty module."""
    info = f"{name}-1.0.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": "\n".join(lines) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)


def test_pip_installs_around_what_is_loaded(rented, wheel, tmp_path):  # noqa: F811
    """With pip itself: what is missing comes, and nothing that is loaded goes."""
    machine = rented(KAGGLE_KERNEL_RUN_TYPE="Interactive", COLAB_RELEASE_TAG="as on Colab")
    machine.run(
        "import subprocess, sys\n"
        f"command = ['-m', 'pip', 'install', '-q', '--no-deps', {str(wheel)!r}]\n"
        "subprocess.check_call([sys.executable, *command])"
    )
    small_wheel(tmp_path, "left_out")
    small_wheel(tmp_path, "greedy", ["numpy==1.0"])
    code = """
import json, numpy, slam_edu
from slam_course.setup import install_around
before = numpy.__version__
problems = install_around(["left-out>=1,<2"], "kaggle")
import left_out
refused = install_around(["greedy>=1"], "kaggle")
import importlib.metadata, importlib.util
print(json.dumps([problems, refused, importlib.metadata.version("numpy") == before,
                  importlib.util.find_spec("greedy") is None, left_out.__file__,
                  slam_edu.setup().platform]))
"""
    lines = machine.run(code, PIP_FIND_LINKS=str(tmp_path)).splitlines()
    problems, refused, same_numpy, not_there, file, where = json.loads(lines[-1])
    assert lines[0] == "Installing left-out (a minute or two)"
    assert problems == []
    assert Path(file).is_relative_to(machine.site)
    assert len(refused) == 1
    assert "Is Internet switched on" in refused[0]
    assert same_numpy
    assert not_there
    assert where == "kaggle"

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
from pathlib import Path

import pytest

from tests.tools.test_wheel import wheel  # noqa: F401 -- a fixture
from tools.notebooks import NOTEBOOKS
from tools.set_address import setup_cell_source

ADDRESS = "https://github.com/someone/slam-course"
# What IPython's own %pip would do, with the wheel for the address.
PIP = """
import subprocess, sys
from IPython.core.magic import register_line_magic

@register_line_magic
def pip(line):
    print("pip", line)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", {wheel!r}]
    subprocess.run(command, check=True)
"""
STUB = "def enable_custom_widget_manager():\n    print('widgets enabled')\n"
REPORT = """
import json, os
print(json.dumps([course.platform, course.problems, str(course.data), str(course.runs),
                  slam_edu.__file__, slam_edu.setup() == course]))
"""


@pytest.fixture
def rented(tmp_path):
    """Makes a machine with the given variables: (a function that runs code, where packages go)."""

    def make(**variables):
        venv.EnvBuilder(symlinks=os.name != "nt").create(tmp_path / "venv")
        parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
        python = str(tmp_path.joinpath("venv", *parts))
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(subprocess.check_output([python, "-c", code], text=True).strip())
        # As plain lines: .pth files in these folders, the checkout's among them, are not read.
        packages = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
        (site / "packages.pth").write_text("\n".join(packages) + "\n")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MPL", "PIP_"))}
        own = {"HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path), "PIP_NO_INDEX": "1"}
        content = tmp_path / "content"
        content.mkdir()

        def run(*cells, **more):
            """Standard output of cells, which IPython runs one after the other."""
            path = content / "cells.ipy"
            path.write_text("\n\n".join(cells), encoding="utf-8")
            done = subprocess.run(
                [python, "-m", "IPython", "--no-banner", "--colors=NoColor", str(path)],
                cwd=content,
                env={**kept, **own, **variables, **more},
                capture_output=True,
                text=True,
                check=False,
            )
            assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        return run, site

    return make


def imports(path):
    """The cell of a lesson behind the set-up cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join([cell["source"] for cell in cells if cell["cell_type"] == "code"][1])


def test_lessons_start_on_colab(rented, wheel):  # noqa: F811
    run, site = rented(COLAB_RELEASE_TAG="release-colab_20261112")
    stub = site / "google" / "colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "output.py").write_text(STUB)
    lessons = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert len(lessons) == 11
    first = setup_cell_source(ADDRESS)
    lines = run(PIP.format(wheel=str(wheel)), first, first, REPORT, *map(imports, lessons[::3]))
    assert lines[0] == f'pip install -q "slam_edu @ git+{ADDRESS}"'
    assert lines[1] == "widgets enabled"
    assert lines[2].startswith("Runs end with Colab's machine.")
    where, problems, data, runs, file, same = json.loads(lines[3])  # the second time was silent
    assert (where, problems, same) == ("colab", [], True)
    assert Path(file).is_relative_to(site)
    assert Path(data).is_relative_to(site)
    assert Path(runs) == site.parents[3] / "content" / "runs" or os.name == "nt"

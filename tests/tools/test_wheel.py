"""The wheel: complete, usable without a checkout, and light to import."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.bootstrap import ROOT
from tools.hatch_build import data_files

HEAVY = ("diffusers", "transformers", "accelerate", "peft", "matplotlib", "scipy", "ipywidgets",
         "PIL", "ot", "IPython", "pandas", "tqdm", "torchmetrics")  # fmt: skip


def python(code, folder, **environ):
    """Standard output of `code` in a fresh interpreter whose working directory is `folder`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**env, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The project's wheel, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [*command, "--target", str(target), str(wheel)], check=True, capture_output=True
    )
    return target


def test_the_wheel_holds_the_package_and_the_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(ROOT).as_posix()) for path in (ROOT / "slam_edu").rglob("*.py")
    }
    assert modules <= names
    data = {name for name in names if name.startswith("slam_edu/_data/")}
    assert data == set(data_files(ROOT).values())
    assert "slam_edu/_data/README.md" in data
    others = {name for name in names - modules - data if ".dist-info/" not in name}
    assert all(name.startswith("slam_edu/") for name in others), others
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_scratch_and_hidden_files_stay_out(tmp_path):
    for name in ("README.md", "pictures/a.png", "raw/big.npz", "pictures/raw/b.png", ".DS_Store",
                 "pictures/.hidden/c.png", "pictures/raw.png", "make_pictures.py"):  # fmt: skip
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert sorted(data_files(tmp_path).values()) == [
        "slam_edu/_data/README.md",
        "slam_edu/_data/pictures/a.png",
        "slam_edu/_data/pictures/raw.png",
    ]


def test_the_installed_wheel_works_outside_the_checkout(installed, tmp_path):
    code = """
import json, slam_edu
from slam_edu.io import data_path
path = data_path("README.md")
print(json.dumps([slam_edu.__file__, str(path), path.read_text(encoding="utf-8")[:7]]))
"""
    module, data, text = json.loads(python(code, tmp_path, PYTHONPATH=str(installed)))
    assert Path(module).is_relative_to(installed)
    assert Path(data).is_relative_to(installed)
    assert text == "# data/"


def test_the_installed_wheel_draws_a_digit(installed, tmp_path):
    code = """
import torch
from slam_edu.digits import load_classifier, load_pipeline, read_colours
pipeline = load_pipeline()
generator = torch.Generator().manual_seed(0)
drawn = pipeline("a red seven on a yellow background", num_inference_steps=20, guidance_scale=3.0,
                 generator=generator, output_type="pt").images
x = 2 * drawn - 1
print(int(load_classifier().read(x)), *map(int, read_colours(x)))
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    assert python(code, tmp_path, PYTHONPATH=str(installed), **offline).split() == ["7", "2", "5"]


def test_importing_the_package_loads_torch_and_numpy_alone(installed, tmp_path):
    code = f"""
import sys, numpy, torch
torchs_own = set(sys.modules)  # torch loads tqdm where it is installed
import slam_edu
print(*[name for name in {HEAVY!r} if name in set(sys.modules) - torchs_own])
"""
    assert python(code, tmp_path, PYTHONPATH=str(installed)).split() == []


def test_importing_the_package_costs_little_beside_torch(installed, tmp_path):
    """`import slam_edu` takes about as long as importing torch, which it cannot do without.

    Both parts are timed in one process, so that a busy machine slows both; the best of several
    counts.
    """
    code = """
import time
start = time.perf_counter()
import numpy, torch
middle = time.perf_counter()
import slam_edu
print(middle - start, time.perf_counter() - middle)
"""
    python(code, tmp_path, PYTHONPATH=str(installed))  # writes the compiled files
    runs = [python(code, tmp_path, PYTHONPATH=str(installed)).split() for _ in range(4)]
    torch = min(float(first) for first, _ in runs)
    extra = min(float(second) for _, second in runs)
    assert extra < 0.15 * torch, f"import slam_edu adds {extra:.3f} s to torch's {torch:.3f} s"

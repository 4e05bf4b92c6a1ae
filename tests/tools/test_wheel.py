"""The wheel: complete, usable without a checkout, and light to import."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from tools.bootstrap import ROOT
from tools.hatch_build import data_files

HEAVY = ("diffusers", "transformers", "accelerate", "peft", "matplotlib", "scipy", "ipywidgets",
         "PIL", "ot", "IPython", "pandas", "tqdm", "torchmetrics", "slam_course")  # fmt: skip


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The project's wheel, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    return path


def test_the_wheel_holds_library_course_and_data_and_no_study(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("slam_edu", "slam_course")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules <= names
    assert {name for name in names if "/_data/" in name} == set(data_files(ROOT).values())
    assert "slam_edu/_data/README.md" in names
    rest = {
        name for name in names - modules if "/_data/" not in name and ".dist-info/" not in name
    }
    assert all(name.startswith(("slam_edu/", "slam_course/")) for name in rest), rest
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


def test_the_installed_wheel_works_outside_the_checkout(wheel, tmp_path):
    """It imports torch and numpy alone, finds its data, and draws what it is asked for."""
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
    code = f"""
import json, sys, numpy, torch
torchs_own = set(sys.modules)  # torch loads tqdm where it is installed
import slam_edu
heavy = [name for name in {HEAVY!r} if name in set(sys.modules) - torchs_own]
from slam_edu.digits import load_classifier, load_pipeline, read_colours
from slam_edu.io import data_path
generator = torch.Generator().manual_seed(0)
drawn = load_pipeline()("a red seven on a yellow background", num_inference_steps=20,
                        guidance_scale=3.0, generator=generator, output_type="pt").images
x = 2 * drawn - 1
seen = [int(load_classifier().read(x)), *map(int, read_colours(x))]
import slam_course.lesson_00.checks
print(json.dumps([slam_edu.__file__, str(data_path("README.md")), heavy, seen]))
"""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env |= {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    module, data, heavy, seen = json.loads(done.stdout.splitlines()[-1])
    assert module.startswith(str(target))
    assert data.startswith(str(target))
    assert heavy == []
    assert seen == [7, 2, 5]

"""The shipped pictures: what the script draws, small, listed, and recognisable as densities."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slam_edu import toy
from slam_edu.io import data_path

SCRIPT = Path(__file__).parents[2] / "data" / "make_pictures.py"
each_picture = pytest.mark.parametrize("name", toy.PICTURES)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_pictures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def redrawn(script):
    return {name: draw() for name, draw in script.PICTURES.items()}


def test_the_script_draws_all_of_them(script):
    assert tuple(script.PICTURES) == toy.PICTURES
    shipped = sorted(path.name for path in data_path("pictures").iterdir())
    assert shipped == sorted(f"{name}.png" for name in toy.PICTURES)


@each_picture
def test_the_files_are_what_the_script_draws(name, redrawn):
    """Pixels and not bytes, for another zlib compresses differently."""
    with Image.open(data_path(f"pictures/{name}.png")) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), np.asarray(redrawn[name]))

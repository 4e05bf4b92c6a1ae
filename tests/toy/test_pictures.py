"""The shipped pictures: what the script draws, small, listed, and recognisable as densities."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from slam_edu import toy
from slam_edu.io import data_path

SCRIPT = Path(__file__).parents[2] / "data" / "make_pictures.py"


def test_the_files_are_what_the_script_draws():
    """Pixels and not bytes, for another zlib compresses differently."""
    spec = importlib.util.spec_from_file_location("make_pictures", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert tuple(script.PICTURES) == toy.PICTURES
    shipped = sorted(path.name for path in data_path("pictures").iterdir())
    assert shipped == sorted(f"{name}.png" for name in toy.PICTURES)
    for name, draw in script.PICTURES.items():
        with Image.open(data_path(f"pictures/{name}.png")) as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), np.asarray(draw()))

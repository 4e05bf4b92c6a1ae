"""The shipped pictures: what the script draws, small, listed, and recognisable as densities."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
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


def test_two_runs_write_the_same_bytes(script, tmp_path, monkeypatch, redrawn):
    monkeypatch.setattr(script, "PICTURES", {"slam": script.slam})
    for folder in ("a", "b"):
        script.main(tmp_path / folder)
    assert (tmp_path / "a/slam.png").read_bytes() == (tmp_path / "b/slam.png").read_bytes()


@each_picture
def test_they_are_small_and_listed(name):
    assert data_path(f"pictures/{name}.png").stat().st_size < 8000
    listed = data_path("README.md").read_text(encoding="utf-8")
    (row,) = (line for line in listed.splitlines() if f"`pictures/{name}.png`" in line)
    assert "MIT" in row
    assert "make_pictures.py" in row


@each_picture
def test_samples_show_the_picture(name):
    """Drawn back onto the paper, 97 of 100 samples hit ink or its edge, and all the ink is hit."""
    with Image.open(data_path(f"pictures/{name}.png")) as image:
        dark = 255.0 - np.asarray(image, dtype=np.float64)
    dark[dark < 25.5] = 0
    height, width = dark.shape
    mixture = toy.picture(name, dtype=torch.float64)
    row, column = np.indices(dark.shape) + 0.5
    pixels = np.stack([column.ravel(), height - row.ravel()], axis=1)
    share = dark.ravel() / dark.sum()
    centre = share @ pixels
    cell = (mixture.std / 0.5).item()  # a cell's size, in the mixture's units,
    scale = np.sqrt(share @ ((pixels - centre) ** 2).sum(1) / 2)  # and a unit in pixels, nearly
    x = mixture.sample(20_000, torch.Generator().manual_seed(0)).numpy() * scale + centre
    i = np.clip((height - x[:, 1]).astype(int), 0, height - 1)
    j = np.clip(x[:, 0].astype(int), 0, width - 1)
    reach = max(round(cell * scale), 1)
    near = np.zeros(dark.shape, dtype=bool)
    for di in range(-reach, reach + 1):
        for dj in range(-reach, reach + 1):
            near |= np.roll(dark > 0, (di, dj), axis=(0, 1))
    assert near[i, j].mean() > 0.97
    blocks = 8  # of 8 by 8 pixels: their ink and their samples agree
    shape = (height // blocks, blocks, width // blocks, blocks)
    ink = dark[: shape[0] * blocks, : shape[2] * blocks].reshape(shape).sum((1, 3))
    hits = np.zeros(dark.shape)
    np.add.at(hits, (i, j), 1)
    hits = hits[: shape[0] * blocks, : shape[2] * blocks].reshape(shape).sum((1, 3))
    assert np.corrcoef(ink.ravel(), hits.ravel())[0, 1] > 0.97


def test_the_cat_looks_the_same_in_a_mirror():
    with Image.open(data_path("pictures/cat.png")) as image:
        grey = np.asarray(image, dtype=int)
    # Its axis is at x = 128, between two pixels.
    assert np.abs(grey - grey[:, ::-1]).mean() < 1

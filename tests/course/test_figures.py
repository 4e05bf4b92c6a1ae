"""The grammar of the figures: reproducible bytes, alternative text, distinct colours."""

import base64
import itertools
import json
import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from slam_course import figures
from tools.notebooks import NOTEBOOKS


def drawn():
    fig, (ax,) = figures.figure(alt="some points")
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    figures.points(figures.plane(ax, "title"), x)
    return fig


def test_a_notebook_gets_the_same_bytes_and_the_description(tmp_path):
    bundle = drawn()._repr_mimebundle_()
    assert bundle["text/plain"] == "[figure] some points"
    png = base64.b64decode(bundle["image/png"])
    assert png == drawn().png()
    assert png.startswith(b"\x89PNG")
    assert b"Software" not in png
    drawn().save(tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_field_puts_x_across_and_y_up():
    grid = figures.grid_points(5)
    _, (ax,) = figures.figure()
    image = figures.field(ax, grid[:, 0]).get_array()
    assert np.all(np.diff(image, axis=1) > 0)
    assert np.allclose(np.diff(image, axis=0), 0)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_figure_of_a_lesson_is_described_in_whole_sentences(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [each.get("data", {}) for cell in cells for each in cell.get("outputs", ())]
    texts = [
        "".join(data["text/plain"]) for data in outputs if {"image/png", "image/gif"} & {*data}
    ]
    assert texts
    for text in texts:
        assert re.fullmatch(r"\[figure\] \S(?!.*  ).{15,}\.", text), text


@pytest.mark.parametrize("kind", ["protan", "deutan", "usual"])
def test_the_colours_can_be_told_apart(kind):
    """By the colour blind as well, in linear light (Viénot, Brettel and Mollon 1999)."""
    matrix = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
        "usual": np.eye(3),
    }[kind]
    linear = np.array([to_rgb(color) for color in figures.COLORS.values()]) ** 2.2
    seen = np.clip(linear @ np.transpose(matrix), 0, 1) ** (1 / 2.2)
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(a - b) > 0.14

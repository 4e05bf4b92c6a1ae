"""The grammar of the figures: reproducible bytes, alternative text, distinct colours."""

import base64
import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from slam_course import figures


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


MATRICES = {
    "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    "usual": np.eye(3),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_the_colours_can_be_told_apart(kind):
    """By the colour blind as well, in linear light (Viénot, Brettel and Mollon 1999)."""

    def seen(color):
        linear = np.asarray(to_rgb(color)) ** 2.2
        return np.clip(np.asarray(MATRICES[kind]) @ linear, 0, 1) ** (1 / 2.2)

    for a, b in itertools.combinations(figures.COLORS, 2):
        difference = seen(figures.COLORS[a]) - seen(figures.COLORS[b])
        assert np.linalg.norm(difference) > 0.14, f"{a} and {b} look alike ({kind})"

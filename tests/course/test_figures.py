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


def test_the_same_figure_has_the_same_bytes():
    assert drawn().png() == drawn().png()


def test_the_bytes_do_not_name_the_library_that_wrote_them():
    assert b"Software" not in drawn().png()


def test_a_notebook_gets_the_picture_and_its_description():
    bundle = drawn()._repr_mimebundle_()
    assert bundle["text/plain"] == "[figure] some points"
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


def test_save_writes_the_file(tmp_path):
    drawn().save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_points_keep_to_fixed_limits():
    fig = drawn()
    assert fig.axes[0].get_xlim() == (-figures.LIMIT, figures.LIMIT)
    assert fig.axes[0].get_aspect() == 1.0


def test_field_puts_x_across_and_y_up():
    grid = figures.grid_points(5)
    _, (ax,) = figures.figure()
    image = figures.field(ax, grid[:, 0]).get_array()
    assert np.all(np.diff(image, axis=1) > 0)
    assert np.allclose(np.diff(image, axis=0), 0)
    rising = figures.field(ax, grid[:, 1]).get_array()
    assert np.all(np.diff(rising, axis=0) > 0)


def _seen_by(rgb, kind):
    """Two kinds of colour blindness, in linear light (Viénot, Brettel and Mollon 1999)."""
    matrix = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
        "usual": np.eye(3),
    }[kind]
    linear = np.asarray(rgb) ** 2.2
    return np.clip(np.asarray(matrix) @ linear, 0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("kind", ["usual", "protan", "deutan"])
def test_the_colours_can_be_told_apart(kind):
    seen = {name: _seen_by(to_rgb(color), kind) for name, color in figures.COLORS.items()}
    for (a, x), (b, y) in itertools.combinations(seen.items(), 2):
        assert np.linalg.norm(x - y) > 0.14, f"{a} and {b} look alike ({kind})"

r"""Data sets in two dimensions, each a Gaussian mixture and so with every exact quantity known.

Every function returns a *standardized* mixture (mean 0, variance 1 on average over the two
coordinates; see :mod:`slam_edu.toy.mixture`), whatever its parameters. Radii and widths below are
in the units in which a shape is drawn, before that scaling; ``std`` is a component's, ``dtype``
the mixture's. A parameter that is not allowed is a ``ValueError`` that names it.

``make(name)`` looks one up, ``DATASETS`` lists them, and :func:`picture` makes one from a picture
that comes with the course. For a picture of your own: :func:`slam_edu.toy.from_image`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from slam_edu._validation import check_choice, check_count
from slam_edu.io import data_path
from slam_edu.toy.image import MAX_COMPONENTS, from_image
from slam_edu.toy.mixture import GaussianMixture

PICTURES = ("cat", "slam", "galaxy")
"""The pictures that come with the course, drawn by ``data/make_pictures.py``."""


def ring(modes: int = 8, std: float = 0.08, dtype: torch.dtype = torch.float32) -> GaussianMixture:
    """Equal Gaussians on the unit circle: well-separated modes, the classic of mode coverage.

    The first is at angle 0; two neighbours are ``2 sin(pi / modes)`` apart.
    """
    check_count(modes, "modes", low=2)
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    return _mixture(_polar(torch.ones_like(angle), angle), std, dtype)


def spiral(
    components: int = 40,
    turns: float = 1.75,
    std: float = 0.06,
    dtype: torch.dtype = torch.float32,
) -> GaussianMixture:
    """One arm of Archimedes' spiral, from radius 0.15 to 1: a curve that winds around itself.

    The components lie at equal arc length, so that the arm has equal density along its length.
    ``std`` is half the arm's width, roughly; the gap between two turns is ``0.85 / turns``.
    """
    check_count(components, "components", low=2)
    _check_positive(turns, "turns")
    fraction = torch.linspace(0, 1, 4001, dtype=torch.float64)
    radius = 0.15 + 0.85 * fraction
    curve = _polar(radius, 2 * math.pi * turns * fraction)
    return _mixture(_at_equal_length(curve, components), std, dtype)


def two_moons(
    components: int = 20, std: float = 0.09, dtype: torch.dtype = torch.float32
) -> GaussianMixture:
    """Two interleaved half circles of radius 1, of as many ``components`` each.

    The second starts inside the first, upside down.
    """
    check_count(components, "components", low=2)
    angle = torch.linspace(0, math.pi, components, dtype=torch.float64)
    upper = _polar(torch.ones_like(angle), angle)
    lower = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper
    return _mixture(torch.cat([upper, lower]), std, dtype)


def pinwheel(
    arms: int = 5,
    components: int = 12,
    twist: float = 1.1,
    std: float = 0.09,
    dtype: torch.dtype = torch.float32,
) -> GaussianMixture:
    """Curved arms that widen outwards: components of unequal width.

    Args:
        arms: how many.
        components: on each arm, from radius 0.3 to 1.
        twist: angle in radians by which an arm turns on its way out.
        std: of the outermost component; others shrink with their radius.
        dtype: precision of the mixture.
    """
    check_count(arms, "arms", low=2)
    check_count(components, "components", low=2)
    if not math.isfinite(twist):
        raise ValueError(f"twist is {twist}; allowed: a finite angle in radians")
    _check_positive(std, "std")
    radius = torch.linspace(0.3, 1, components, dtype=torch.float64).repeat(arms)
    start = torch.arange(arms, dtype=torch.float64).repeat_interleave(components)
    angle = start * (2 * math.pi / arms) + twist * (radius - 0.3) / 0.7
    return _mixture(_polar(radius, angle), std * radius, dtype)


def checkerboard(
    squares: int = 4, per_side: int = 6, dtype: torch.dtype = torch.float32
) -> GaussianMixture:
    """Every second square of a board, filled evenly: flat, with sharp edges and touching corners.

    A square is a grid of ``per_side`` by ``per_side`` components, whose ``std`` of half their
    spacing makes the inside flat to 3 per cent; ``squares`` are along a side of the board.
    """
    check_count(squares, "squares", low=2)
    check_count(per_side, "per_side")
    line = (torch.arange(per_side, dtype=torch.float64) + 0.5) / per_side
    inside = torch.cartesian_prod(line, line)
    corners = [(i, j) for i in range(squares) for j in range(squares) if (i + j) % 2 == 0]
    means = torch.cat([inside + torch.tensor(corner) for corner in corners])
    return _mixture(means, 0.5 / per_side, dtype)


def picture(
    name: str = "cat", components: int = MAX_COMPONENTS, dtype: torch.dtype = torch.float32
) -> GaussianMixture:
    """One of ``PICTURES`` as a mixture: see :func:`slam_edu.toy.from_image`."""
    check_choice(name, PICTURES, "name")
    return from_image(data_path(f"pictures/{name}.png"), components=components, dtype=dtype)


DATASETS: dict[str, Callable[..., GaussianMixture]] = {
    "ring": ring,
    "spiral": spiral,
    "two_moons": two_moons,
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
}
"""Data sets by name: functions whose parameters all have defaults."""


def make(name: str, dtype: torch.dtype = torch.float32) -> GaussianMixture:
    """The data set of this name in ``DATASETS``, with its default parameters."""
    check_choice(name, DATASETS, "name")
    return DATASETS[name](dtype=dtype)


def _mixture(means: Tensor, std: float | Tensor, dtype: torch.dtype) -> GaussianMixture:
    """The standardized mixture of equal weights, computed in float64 and then cast."""
    if not isinstance(std, Tensor):
        _check_positive(std, "std")
    return GaussianMixture(means, std).standardized().to(dtype)


def _check_positive(value: float, name: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; allowed: a finite number greater than 0")


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _at_equal_length(curve: Tensor, n: int) -> Tensor:
    """``n`` points along a finely sampled curve, from start to end, at equal arc length."""
    length = torch.cat([curve.new_zeros(1), curve.diff(dim=0).norm(dim=1).cumsum(0)])
    at = torch.linspace(0, 1, n, dtype=curve.dtype) * length[-1]
    i = torch.searchsorted(length, at).clamp(1, len(curve) - 1)
    f = ((at - length[i - 1]) / (length[i] - length[i - 1]))[:, None]
    return (1 - f) * curve[i - 1] + f * curve[i]

"""The data sets: their shapes, their scale, and the way to look them up."""

import math

import pytest
import torch

from slam_edu import toy
from tests.helpers import assert_near, noise


@pytest.mark.parametrize("name", toy.DATASETS)
def test_every_set_is_standardized(name):
    mixture = toy.make(name, torch.float64)
    assert mixture.dim == 2
    assert mixture.mean().abs().max() < 1e-12
    assert mixture.covariance().trace().item() == pytest.approx(2)


def test_names():
    with pytest.raises(
        ValueError, match=r"name is 'moons'; allowed: 'ring', 'spiral', 'two_moons', 'pinw"
    ):
        toy.make("moons")
    with pytest.raises(ValueError, match=r"name is 'dog'; allowed: 'cat', 'slam', 'galaxy'"):
        toy.picture("dog")


@pytest.mark.parametrize("modes", [2, 8])
def test_ring(modes):
    ring = toy.ring(modes, std=0.01, dtype=torch.float64)
    assert len(ring) == modes
    radius = ring.means.norm(dim=1)
    assert_near(radius, torch.full_like(radius, radius[0].item()))
    assert ring.means[0, 0] > 0
    assert abs(ring.means[0, 1]) < 1e-12
    x = noise(20, 2, seed=1)
    c, s = math.cos(2 * math.pi / modes), math.sin(2 * math.pi / modes)
    turned = x @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    assert_near(ring.log_density(turned), ring.log_density(x), rtol=1e-9)


def test_spiral_has_even_spacing():
    spiral = toy.spiral(components=200, dtype=torch.float64)
    gaps = spiral.means.diff(dim=0).norm(dim=1)
    assert gaps.max() / gaps.min() < 1.005
    assert len(toy.spiral()) == 40
    # It winds: the angle along the arm goes around 1.75 times, and the radius grows.
    centred = spiral.means - spiral.means[0] + 1e-9
    angle = torch.atan2(*centred.flip(1)[1:].T)
    turned = angle.diff().remainder(2 * math.pi)
    assert torch.where(turned > math.pi, turned - 2 * math.pi, turned).sum() > 2 * math.pi


def test_two_moons_interleave():
    moons = toy.two_moons(dtype=torch.float64)
    upper, lower = moons.means[:20], moons.means[20:]
    assert_near(upper, -lower, rtol=0, atol=1e-9)  # one is the other, turned by 180 degrees
    assert (upper[:, 0].max() > lower[:, 0].min()).all()
    assert upper[:, 1].max() > lower[:, 1].max()
    assert torch.cdist(upper, lower).min() > 4 * moons.std  # and they do not touch


def test_checkerboard_is_flat_on_the_squares_and_empty_between():
    board = toy.checkerboard(dtype=torch.float64)
    side = (board.means[:, 0].max() - board.means[:, 0].min()) / (24 - 1) * 6
    corner = board.means.min(dim=0).values - side / 12
    cells = torch.cartesian_prod(torch.arange(4), torch.arange(4)).double()
    line = torch.linspace(0.3, 0.7, 9, dtype=torch.float64)
    inside = torch.cartesian_prod(line, line)
    points = corner + side * (cells[:, None] + inside)  # (16, 81, 2)
    density = board.log_density(points.flatten(0, 1)).exp().reshape(16, 81)
    dark = cells.sum(1) % 2 == 0
    flat = 1 / (8 * side**2)
    assert (density[dark] / flat - 1).abs().max() < 0.03
    assert (density[~dark] / flat).max() < 0.01


def test_pictures_are_mixtures_of_at_most_so_many():
    for name in toy.PICTURES:
        assert 1500 < len(toy.picture(name)) <= toy.MAX_COMPONENTS == 2000
        assert 200 < len(toy.picture(name, components=300)) <= 300
    assert torch.equal(toy.picture().means, toy.picture("cat").means)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: toy.ring(1), "modes is 1; allowed: an integer >= 2"),
        (lambda: toy.ring(std=0.0), "std is 0.0; allowed: a finite number greater than 0"),
        (lambda: toy.spiral(turns=0), "turns is 0"),
        (lambda: toy.pinwheel(twist=math.inf), "twist is inf; allowed: a finite angle"),
    ],
)
def test_wrong_parameters(call, message):
    with pytest.raises(ValueError, match=message):
        call()

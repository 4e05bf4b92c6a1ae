"""Distances between samples: against their definitions, scipy, and closed forms."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from slam_edu import metrics
from slam_edu.metrics import energy_distance, sliced_wasserstein
from tests.helpers import f64, noise, on_devices, properties

DISTANCES = {"sliced_wasserstein": sliced_wasserstein, "energy_distance": energy_distance}
each_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def directions(count, dim, seed=0):
    """The lines that a generator of this seed draws."""
    lines = torch.randn(dim, count, generator=generator(seed), dtype=torch.float64)
    return lines / lines.norm(dim=0)


def paired_quantiles(x, y, lines):
    """Sliced Wasserstein by definition: on a line, W_2 pairs the points of equal quantiles."""
    n, m = len(x), len(y)
    # Quantiles are constant between i/N and j/M; in units of 1/(NM) these cuts are whole numbers.
    cuts = torch.cat([torch.arange(n) * m, torch.arange(m) * n, torch.tensor([n * m])]).unique()
    share = cuts.diff().double() / (n * m)
    a = (x @ lines).sort(dim=0).values[cuts[:-1] // m]
    b = (y @ lines).sort(dim=0).values[cuts[:-1] // n]
    return float((share @ (a - b).square()).mean().sqrt())


# -------------------------------------------------------------------- both distances


@each_distance
def test_equal_sets_are_at_zero_and_others_apart(distance):
    x, y = noise(200, 2), 1 + noise(150, 2, seed=1)
    assert distance(x, x) == 0
    assert distance(x, x[torch.randperm(200, generator=generator())]) < 1e-7
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-12)
    assert distance(x, y) > 0.1


@each_distance
def test_dtype_and_pieces_do_not_matter(distance, monkeypatch):
    x, y = noise(90, 3), 1 + noise(70, 3, seed=1)
    whole = distance(x, y)
    assert distance(x.float(), y.float()) == pytest.approx(whole, rel=1e-6)
    assert distance(x.float(), y) == pytest.approx(whole, rel=1e-6)
    monkeypatch.setattr(metrics, "_CHUNK", 1000)
    assert distance(x, y) == pytest.approx(whole, rel=1e-12)


@on_devices
def test_on_every_device(device):
    x, y = noise(50, 2, dtype=torch.float32), noise(60, 2, seed=1, dtype=torch.float32)
    for distance in DISTANCES.values():
        there = distance(x.to(device), y.to(device))
        assert there == pytest.approx(distance(x, y), rel=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 2), r"x has shape \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2, 1), r"y has shape \(3, 2, 1\); allowed: \(N, D\)"),
        (torch.zeros(0, 2), torch.zeros(3, 2), r"x has shape \(0, 2\); .* with N >= 1"),
        (torch.zeros(3, 2), torch.zeros(3, 3), "x has D = 2 on cpu, y has D = 3"),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), "y has dtype torch.int64"),
        (torch.full((3, 2), math.nan), torch.zeros(3, 2), "x holds 6 NaN"),
    ],
)
def test_wrong_input(x, y, message):
    for distance in DISTANCES.values():
        with pytest.raises(ValueError, match=message):
            distance(x, y)


# -------------------------------------------------------------------- sliced Wasserstein


@properties
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4), st.integers(0, 1000))
def test_sliced_wasserstein_pairs_equal_quantiles(n, m, dim, seed):
    for count in (n, m):  # as many, and perhaps others
        x, y = noise(n, dim, seed=seed), 0.3 + 2 * noise(count, dim, seed=seed + 1)
        ours = sliced_wasserstein(x, y, projections=20, generator=generator(seed))
        assert ours == pytest.approx(paired_quantiles(x, y, directions(20, dim, seed)), rel=1e-9)


def test_sliced_wasserstein_of_a_shift():
    """Every projection of the cloud moves by theta . m: the distance is |m| / sqrt(D)."""
    x = noise(100, 2)
    found = sliced_wasserstein(x, x + f64([3.0, -4.0]), projections=5000)
    assert found == pytest.approx(5 / math.sqrt(2), rel=0.02)


def test_lines_are_fixed_unless_a_generator_draws_them():
    x, y = noise(50, 2), 1 + noise(50, 2, seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y)
    assert torch.equal(torch.get_rng_state(), before)
    few = [sliced_wasserstein(x, y, projections=3, generator=generator(i)) for i in (1, 1, 2)]
    assert few[0] == few[1] != few[2]


def test_sliced_wasserstein_needs_a_line():
    with pytest.raises(ValueError, match=r"projections is 0; allowed: an integer >= 1"):
        sliced_wasserstein(noise(5, 2), noise(5, 2), projections=0)


# -------------------------------------------------------------------- energy distance


@properties
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_energy_distance_is_that_of_scipy(n, m, seed):
    x, y = noise(n, 1, seed=seed), 0.5 + noise(m, 1, seed=seed + 1)
    assert energy_distance(x, y) == pytest.approx(
        scipy.stats.energy_distance(x[:, 0], y[:, 0]), rel=1e-9, abs=1e-9
    )


def test_energy_distance_by_hand():
    x, y = f64([[0.0, 0.0]]), f64([[3.0, 4.0]])
    assert energy_distance(x, y) == pytest.approx(math.sqrt(10))
    # Means over all pairs, of a point with itself too: E|X - X'| of two points 2 apart is 1.
    pair = f64([[0.0, -1.0], [0.0, 1.0]])
    assert energy_distance(x, pair) == pytest.approx(math.sqrt(2 * 1 - 0 - 1))

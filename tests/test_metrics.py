"""Distances between samples: against their definitions, scipy, and closed forms."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from slam_edu import NoiseSchedule, metrics
from slam_edu.metrics import energy_distance, mode_coverage, sliced_wasserstein
from slam_edu.toy import GaussianMixture, ring
from tests.helpers import assert_near, f64, level, noise, on_devices, properties

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
def test_equal_sets_are_at_zero(distance):
    x = noise(300, 2)
    assert distance(x, x) == 0
    assert distance(x, x[torch.randperm(300, generator=generator())]) < 1e-7


@each_distance
@pytest.mark.parametrize("count", [200, 150, 1])
def test_symmetric_and_positive(distance, count):
    x, y = noise(200, 2), 1 + noise(count, 2, seed=1)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-12)
    assert distance(x, y) > 0.1


@each_distance
def test_triangle_inequality(distance):
    x, y, z = (noise(100, 2, seed=i) + i for i in range(3))
    assert distance(x, z) <= distance(x, y) + distance(y, z)


@each_distance
def test_scales_and_shifts(distance):
    """Of degree 1 (sliced Wasserstein) or 1/2 (the root of an energy); blind to a common shift."""
    x, y = noise(150, 2), 0.5 + noise(120, 2, seed=1)
    degree = 1.0 if distance is sliced_wasserstein else 0.5
    assert distance(9 * x, 9 * y) == pytest.approx(9**degree * distance(x, y))
    assert distance(x + 5, y + 5) == pytest.approx(distance(x, y))


@each_distance
def test_grows_with_the_difference(distance):
    x, y = noise(2000, 2), noise(2000, 2, seed=1)
    values = [distance(x, y + shift) for shift in (0.0, 0.1, 0.3, 1.0)]
    assert values == sorted(values)
    assert values[1] > 1.3 * values[0]
    widths = [distance(x, y * width) for width in (1.0, 1.2, 1.5, 2.0)]
    assert widths == sorted(widths)


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


@each_distance
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 2), r"x has shape \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2, 1), r"y has shape \(3, 2, 1\); allowed: \(N, D\)"),
        (
            torch.zeros(0, 2),
            torch.zeros(3, 2),
            r"x has shape \(0, 2\); allowed: \(N, D\) with N >= 1",
        ),
        (torch.zeros(3, 2), torch.zeros(3, 3), "x has D = 2 on cpu, y has D = 3"),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), "y has dtype torch.int64"),
        (torch.full((3, 2), math.nan), torch.zeros(3, 2), "x holds 6 NaN"),
        (torch.zeros(3, 2), torch.full((3, 2), math.inf), "y holds 6 NaN or Inf"),
    ],
)
def test_wrong_input(distance, x, y, message):
    with pytest.raises(ValueError, match=message):
        distance(x, y)


# -------------------------------------------------------------------- sliced Wasserstein


@properties
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4), st.integers(0, 1000))
def test_sliced_wasserstein_pairs_equal_quantiles(n, m, dim, seed):
    x, y = noise(n, dim, seed=seed), 0.3 + 2 * noise(m, dim, seed=seed + 1)
    ours = sliced_wasserstein(x, y, projections=20, generator=generator(seed))
    assert ours == pytest.approx(paired_quantiles(x, y, directions(20, dim, seed)), rel=1e-9)


def test_sliced_wasserstein_of_a_shift():
    """Every projection of the cloud moves by theta . m: the distance is |m| / sqrt(D)."""
    x, shift = noise(100, 2), f64([3.0, -4.0])
    lines = directions(500, 2)
    exact = (shift @ lines).square().mean().sqrt().item()
    found = sliced_wasserstein(x, x + shift, projections=500, generator=generator())
    assert found == pytest.approx(exact, rel=1e-12)
    many = sliced_wasserstein(x, x + shift, projections=100_000)
    assert many == pytest.approx(5 / math.sqrt(2), rel=0.01)


def test_sliced_wasserstein_of_two_gaussians():
    """Projections are N(m, s^2): W_2^2 = (m_1 - m_2)^2 + (s_1 - s_2)^2."""
    shift = f64([1.0, 0.5])
    x, y = noise(20_000, 2), shift + 2 * noise(20_000, 2, seed=1)
    lines = directions(64, 2)
    exact = ((shift @ lines) ** 2 + 1).mean().sqrt().item()
    found = sliced_wasserstein(x, y, projections=64, generator=generator())
    assert found == pytest.approx(exact, rel=0.03)


def test_sliced_wasserstein_of_one_point():
    """Against a single point, all mass travels: the root mean square distance along each line."""
    x, point = noise(50, 2), f64([[0.3, -1.0]])
    exact = ((x - point) @ directions(30, 2)).square().mean().sqrt().item()
    found = sliced_wasserstein(x, point, projections=30, generator=generator())
    assert found == pytest.approx(exact, rel=1e-12)


def test_repeated_samples_are_the_same_distribution():
    x = noise(40, 2)
    # Not 0: cumulated weights of 1/40 and 1/120 differ in the last bit, and the root shows it.
    assert sliced_wasserstein(x, torch.cat([x, x, x])) < 1e-6


def test_lines_are_fixed_unless_a_generator_draws_them():
    x, y = noise(50, 2), 1 + noise(50, 2, seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y)
    assert torch.equal(torch.get_rng_state(), before)
    few = [sliced_wasserstein(x, y, projections=3, generator=generator(i)) for i in (1, 1, 2)]
    assert few[0] == few[1] != few[2]


@pytest.mark.parametrize("projections", [0, -5, 2.5])
def test_sliced_wasserstein_refuses(projections):
    with pytest.raises(ValueError, match=r"projections is .*; allowed: an integer >= 1"):
        sliced_wasserstein(noise(5, 2), noise(5, 2), projections=projections)


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


# -------------------------------------------------------------------- mode coverage


def test_all_modes_of_the_data():
    mixture, n = ring(dtype=torch.float64), 50_000
    found = mode_coverage(mixture.sample(n, generator()), mixture)
    assert found.covered == 1
    outside = math.exp(-(4**2) / 2)
    assert found.inside == pytest.approx(1 - outside, abs=5 * math.sqrt(outside / n))
    assert found.counts.sum() == round(found.inside * n)
    assert found.counts.dtype == torch.int64


def test_a_missing_mode_is_missed():
    mixture = ring(dtype=torch.float64)
    x = mixture.sample(8000, generator())
    x = x[(x - mixture.means[3]).norm(dim=1) > 5 * mixture.std]
    found = mode_coverage(x, mixture)
    assert found.covered == 7 / 8
    assert found.counts[3] == 0
    half = mode_coverage(x[x[:, 0] > -0.3], mixture)
    assert half.covered == 5 / 8


def test_samples_between_the_modes_are_lost():
    mixture = ring(dtype=torch.float64)
    x = mixture.sample(1000, generator())
    x[:250] = 0.0
    found = mode_coverage(x, mixture)
    assert found.inside == pytest.approx(0.75, abs=0.003)
    assert mode_coverage(torch.zeros_like(x), mixture).covered == 0


def test_counts_are_by_distance_in_stds_and_coverage_by_weight():
    mixture = GaussianMixture(f64([[0.0], [10.0]]), f64([0.1, 2.0]), f64([0.9, 0.1]))
    # 3 is 30 stds from the narrow mode and 3.5 from the wide one.
    found = mode_coverage(f64([[0.05], [-0.3], [3.0], [1.0], [25.0]]), mixture)
    assert_near(found.counts, [2, 1])
    assert found.inside == pytest.approx(3 / 5)
    assert found.covered == 0.5  # 2 of the 4.5 samples that the first should have; 1 of 0.5
    assert_near(mode_coverage(f64([[25.0]]), mixture, radius=8.0).counts, [0, 1])


def test_coverage_at_a_level():
    """At a noisy level the modes lie at alpha mu, and are wider."""
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    mixture, here = ring(dtype=torch.float64), schedule(150)
    x = mixture.sample_at(here, 20_000, generator())
    assert mode_coverage(x, mixture, level=here).inside > 0.999
    assert mode_coverage(x, mixture).inside < 0.95


def test_many_components_in_pieces(monkeypatch):
    mixture = ring(25, dtype=torch.float64)
    x = mixture.sample(500, generator())
    whole = mode_coverage(x, mixture)
    monkeypatch.setattr(metrics, "_CHUNK", 100)
    assert torch.equal(mode_coverage(x, mixture).counts, whole.counts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": torch.zeros(3, 2)}, "x is torch.float32"),
        ({"samples": torch.zeros(3, 3, dtype=torch.float64)}, r"x has shape \(3, 3\)"),
        ({"samples": torch.full((3, 2), math.nan, dtype=torch.float64)}, "samples holds 6 NaN"),
        ({"radius": 0.0}, "radius is 0.0; allowed: greater than 0"),
        ({"radius": math.nan}, "radius is nan"),
        ({"level": level(1.0, 0.1)[None]}, r"level has shape \(1,\); allowed: \(\)"),
    ],
)
def test_mode_coverage_refuses(change, message):
    mixture = ring(dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        mode_coverage(
            **{"samples": torch.zeros(3, 2, dtype=torch.float64), "mixture": mixture, **change}
        )

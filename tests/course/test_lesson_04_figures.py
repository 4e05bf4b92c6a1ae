"""Figures of lesson 04: what they draw, that it repeats, and what they say in words."""

import numpy as np
import pytest
import torch

from slam_course.figures import COLORS
from slam_course.lesson_04 import figures as plots
from slam_edu import NoiseSchedule, gamma_embedding, sub_level
from slam_edu.toy import two_moons
from slam_edu.toy.errors import exact_trajectory
from tests.helpers import f64, noise

SCHEDULE = NoiseSchedule.stable_diffusion(torch.float64)
MIXTURE = two_moons(dtype=torch.float64)
LEVEL_T, LEVEL_S = SCHEDULE(499), SCHEDULE(249)
LINE = torch.linspace(0, 1, 9, dtype=torch.float64)


def cuts():
    levels = {n: SCHEDULE(torch.linspace(999, 0, n + 1).long()) for n in (1, 4)}
    exact = exact_trajectory(MIXTURE, noise(5, 2), levels[4], tol=1e-5)
    return plots.cut_paths({1: (exact[::4], levels[1]), 4: (exact, levels[4])}, exact, noise(9, 2))


def triangle(gammas=(0.25, 0.5, 0.75)):
    x_t = f64([[1.45, 1.4]])
    guess = MIXTURE.predict(x_t, LEVEL_T)
    return plots.triangle(x_t, guess, LEVEL_T, LEVEL_S, noise(9, 2), gammas)


def beside():
    rho = torch.linspace(2, 1, 9, dtype=torch.float64)
    measured = {"9 to 8": {"teacher": -((1 - LINE) ** 2), "exact": LINE * (1 - LINE)}}
    return plots.chord_beside_path(rho, rho**2, 4 * rho - 4, 3 * rho - 2, LINE, measured)


def by_t():
    return plots.deviation_by_t({5: {199: 0.2, 999: 0.1}, 50: {19: 0.02, 999: 0.001}})


def noises():
    linear, markov = (sub_level(LEVEL_T, LEVEL_S, LINE, c).sigma for c in ("linear", "markov"))
    return plots.two_noises(LEVEL_T, LEVEL_S, {499: (LINE, linear / markov - 1)})


def law():
    rho = {0.5: torch.linspace(1.5, 1, 5), 2.0: torch.linspace(3, 1, 5)}
    off = {g: g * (2 - g) * torch.linspace(0, 1, 5) ** 2 for g in rho}
    return plots.taught_law(rho, off, 3 * LINE, {"9 to 8": 3 * LINE * (2 - 3 * LINE)})


def features():
    e = gamma_embedding(LINE, 16)
    return plots.gamma_features(LINE, e, e[:, 8:].mean(dim=1))


FIGURES = [cuts, triangle, beside, by_t, noises, law, features]


@pytest.mark.parametrize("make", FIGURES, ids=lambda make: make.__name__)
def test_figure_repeats_and_describes_itself(make):
    fig = make()
    assert fig.png() == make().png()
    assert len(fig.alt) >= 15
    assert all(ax.get_title() for ax in fig.axes)


def dots(ax, color=None):
    """Centres of the single markers in axes, of one colour if given: ``(n, 2)``."""
    lines = [line for line in ax.lines if len(line.get_xdata()) == 1]
    if color:
        lines = [line for line in lines if line.get_markerfacecolor() == COLORS[color]]
    return np.array([np.ravel(line.get_xydata()) for line in lines])


def test_both_panels_of_the_triangle_show_the_same_points():
    """The left panel is the right one, mapped by x = alpha x0 + sigma eps."""
    left, right = triangle().axes
    guess = MIXTURE.predict(f64([[1.45, 1.4]]), LEVEL_T)
    basis = torch.cat([guess.x0, guess.eps]).numpy()
    assert len(dots(right)) == 12  # 2 corners, 3 of each line, 3 ends, the origin
    np.testing.assert_allclose(dots(right) @ basis, dots(left), atol=1e-12)


def test_chord_of_the_triangle_is_vertical_and_has_the_linear_sigma():
    _, right = triangle(gammas=(0.1, 0.6)).axes
    at = dots(right, "chord")
    np.testing.assert_allclose(at[:, 0], LEVEL_T.alpha.item())
    sigma = sub_level(LEVEL_T, LEVEL_S, f64([0.1, 0.6]), "linear").sigma
    np.testing.assert_allclose(at[:, 1], sigma)


def test_lines_of_the_triangle_join_its_corners():
    t, s = ([level.alpha.item(), level.sigma.item()] for level in (LEVEL_T, LEVEL_S))
    a_s = [t[0], t[0] / s[0] * s[1]]
    lines = [line.get_xydata() for line in triangle().axes[1].lines]
    for pair in ([a_s, t], [s, t], [[0, 0], s]):
        assert any(line.shape == (2, 2) and np.allclose(line, pair) for line in lines)


def test_noise_arrows_have_the_length_of_their_sigma():
    left, _ = noises().axes
    lengths = np.linalg.norm(dots(left), axis=1)
    for coupling in ("linear", "markov"):
        sigma = sub_level(LEVEL_T, LEVEL_S, f64(0.5), coupling).sigma.item()
        assert np.isclose(lengths, sigma).any(), coupling
    assert np.isclose(lengths, LEVEL_T.sigma.item()).sum() == 2  # with the same and fresh noise


def test_gap_is_written_in_the_legend():
    _, right = noises().axes
    [text] = [text.get_text() for text in right.get_legend().get_texts()]
    linear, markov = (sub_level(LEVEL_T, LEVEL_S, LINE, c).sigma for c in ("linear", "markov"))
    assert text == f"t = 499, largest {100 * (linear / markov - 1).max():.2g} %"


def test_laws_are_drawn_beside_the_measurements():
    """Where measurements follow a law to the last digit they lie on its curve."""
    for ax in (beside().axes[1], law().axes[1]):
        curves = [line for line in ax.lines if len(line.get_xdata()) > 50]
        measured = [line for line in ax.lines if len(line.get_xdata()) == len(LINE)]
        assert len(curves) == len(measured)
        for curve, line in zip(curves, measured, strict=True):
            expected = np.interp(line.get_xdata(), curve.get_xdata(), curve.get_ydata())
            np.testing.assert_allclose(line.get_ydata(), expected, atol=1e-3)


def test_noise_is_on_the_left():
    for fig in (beside(), by_t()):
        for ax in fig.axes:
            low, high = ax.get_xlim()
            assert low > high
    low, high = law().axes[0].get_xlim()
    assert low > high


def test_every_grid_of_sub_paths_has_its_name():
    assert [text.get_text() for text in by_t().axes[0].texts] == ["N = 5", "N = 50"]

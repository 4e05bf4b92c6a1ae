"""Lesson 01: checks, figures and explorer."""

import numpy as np
import torch

from slam_course import figures
from slam_course.lesson_01 import explorer
from slam_course.lesson_01 import figures as lesson
from slam_course.lesson_01.checks import denoiser, euler_step
from slam_edu import Level, NoiseSchedule, toy
from slam_edu.prediction import to_prediction
from tests.course import trying

F64 = torch.float64
SCHEDULE = NoiseSchedule.stable_diffusion(F64)
RING = toy.ring(dtype=F64)


def in_numpy_and_back(score, x, level):
    total = x.numpy() + level.sigma.item() ** 2 * score.numpy()
    return torch.from_numpy(total / level.alpha.item())


DENOISERS = (
    lambda p, x, c: (x - c.sigma * (-c.sigma * p)) / c.alpha,
    lambda p, x, c: to_prediction(-c.sigma * p, x, c, "epsilon").x0,
    lambda p, x, c: (x + float(c.sigma) ** 2 * p) / float(c.alpha),
)
WRONG_DENOISERS = trying.formulas("p, x, c", globals(), {
    "p": "score itself",
    "x / c.alpha": "the score has no say",
    "(x - c.sigma**2 * p) / c.alpha": "sign of the score is wrong",
    "(x + c.sigma * p) / c.alpha": "multiplies the score once",
    "(x - c.sigma * p) / c.alpha": "taken for the noise",
    "(x + p) / c.alpha": "sigma, the size of the noise",
    "x + c.sigma**2 * p": "scale is still that of x",
    "c.alpha * (x + c.sigma**2 * p)": "multiplied by alpha",
    "(x + c.sigma**2 * p) / c.alpha**2": "divided by alpha twice",
    "x / c.alpha + c.sigma**2 * p": "the whole sum",
    "(x + c.rho**2 * p) / c.alpha": "rho is used where sigma belongs",
    "x / c.alpha + c.rho**2 * p": "score of z",
    "-c.sigma * p": "mean of the noise eps",
    "torch.ones_like(x)": "does not change with the score",
    "RING.denoise(x, c)": "does not change with the score",
    "x + 3 * p": "Start from x = alpha",
    "(x + (1 - c.alpha**2) * p) / c.alpha": "only there",
    "x.add_(c.sigma**2 * p) / c.alpha": "changes x itself",
    "to_prediction(-c.sigma * p, x, c, 'epsilon')": "is a Prediction",
    "in_numpy_and_back(p, x, c)": "no gradient, or a wrong one, comes back to score",
    "((x + c.sigma**2 * p) / c.alpha).float()": "in torch.float32",
})  # fmt: skip


def by_z(x, eps, t, s):
    return s.alpha * (x / t.alpha + (s.rho - t.rho) * eps)


STEPS = (
    by_z,
    lambda x, e, t, s: s.alpha * (x - t.sigma * e) / t.alpha + s.sigma * e,
    lambda x, e, t, s: torch.add(x * (s.alpha / t.alpha), e * s.alpha, alpha=float(s.rho - t.rho)),
)
WRONG_STEPS = trying.formulas("x, e, t, s", globals(), {
    "x": "no step has been taken",
    "e": "the slope; the step is still missing",
    "s.alpha * (x / t.alpha + (t.rho - s.rho) * e)": "wrong way",
    "x / t.alpha + (t.rho - s.rho) * e": "And the result is z",
    "by_z(x, e, s, t)": "levels are swapped",
    "t.alpha * (x / s.alpha + (s.rho - t.rho) * e)": "levels are swapped",
    "x / t.alpha + (s.rho - t.rho) * e": "should return x",
    "t.alpha * (x / t.alpha + (s.rho - t.rho) * e)": "scaled by which alpha",
    "x + (s.rho - t.rho) * e": "coordinates is missing",
    "s.alpha * (x + (s.rho - t.rho) * e)": "starts from x.",
    "s.alpha * (x / s.alpha + (s.rho - t.rho) * e)": "starts from x / alpha_s",
    "x - (s.rho - t.rho) * e": "missing, and the step",
    "s.alpha * (x / t.alpha + (s.sigma - t.sigma) * e)": "sigma is used where rho",
    "x / t.alpha + (s.sigma - t.sigma) * e": "sigma is used",
    "x + (s.sigma - t.sigma) * e": "missing, and sigma is used",
    "s.alpha * (x / t.alpha + s.rho - t.rho)": "depends on the slope",
    "s.alpha * (x / t.alpha + e)": "depends on the change of rho",
    "s.alpha * x / t.alpha": "z does not move",
    "(x - t.sigma * e) / t.alpha": "all the way to rho = 0",
    "s.alpha * (x / t.alpha + s.rho * e)": "as long as rho_s",
    "s.alpha * (x / t.alpha + 2 * e)": "Three lines",
    "by_z(x, e, t, s) if s.sigma else x": "a step to the clean level",
    "s.alpha * (x / t.alpha + ((1 / s.alpha**2 - 1).sqrt() - t.rho) * e)": "only there",
    "by_z(x.mul_(2), e, t, s)": "changes x itself",
    "by_z(x, e.mul_(2), t, s)": "changes e itself",
})  # fmt: skip
GROUPS = [(denoiser, DENOISERS, WRONG_DENOISERS), (euler_step, STEPS, WRONG_STEPS)]
test_accepts, test_rejects = trying.tests(GROUPS)


def test_density_is_not_transposed():
    """One cluster to the right of the other: the darker column of the image is on the right."""
    means = torch.tensor([[-1.5, 0.0], [1.5, 1.0]], dtype=F64)
    weights = torch.tensor([0.1, 0.9], dtype=F64)
    mixture = toy.GaussianMixture(means, std=0.3, weights=weights)
    fig, (ax,) = figures.figure()
    clean = Level.clean(torch.ones((), dtype=F64))
    lesson.density_panel(figures.plane(ax), mixture, clean)
    ax.collections[-1].remove()  # the arrows
    fig.canvas.draw()
    pixels = np.asarray(fig.canvas.buffer_rgba())[..., 0].astype(float)
    rows, columns = np.nonzero(pixels < pixels.min() + 5)
    height, width = pixels.shape
    assert columns.mean() > 0.55 * width
    assert rows.mean() < 0.45 * height  # rows count from the top


def test_regions_are_not_transposed_and_borders_are_white():
    """Points on the right end right: the colour of the rightmost pixels is that of direction 0."""
    grid = figures.grid_points(12, dtype=F64)
    ends = torch.where(grid[:, :1] > 0, 1.0, -1.0) * torch.tensor([[1.0, 0.0]], dtype=F64)
    image = lesson.solution_regions(ends, grid, ends, ends).axes[0].images[0].get_array()
    right, left = lesson.end_colors(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64))
    assert np.allclose(image[:, -1], right)
    assert np.allclose(image[:, 0], left)
    assert np.allclose(image[:, 6], 1.0)  # where neighbours end far apart


def test_explorer_follows_its_controls():
    trying.walk(explorer.diffused(SCHEDULE))
    words = explorer.diffused_figure(SCHEDULE, "ring", 300).alt
    assert "ring at t = 300: alpha = 0.77, sigma = 0.64, rho = 0.83." in words

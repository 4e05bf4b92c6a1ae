"""Lesson 01: checks, figures and explorer."""

import numpy as np
import torch

from slam_course import figures
from slam_course.lesson_01 import explorer
from slam_course.lesson_01 import figures as lesson
from slam_course.lesson_01.checks import denoiser, euler_step
from slam_edu import Level, NoiseSchedule, ddim_step, toy
from slam_edu.prediction import to_prediction
from tests.course import trying

F64 = torch.float64
SCHEDULE = NoiseSchedule.stable_diffusion(F64)
RING = toy.ring(dtype=F64)
T = [999, 600, 300, 100, 0]

# -------------------------------------------------------------------- checks


def row_by_row(score, x, level):
    rows = [x[i] / level.alpha + level.sigma**2 / level.alpha * score[i] for i in range(len(x))]
    return torch.stack(rows)


def in_numpy_and_back(score, x, level):
    total = x.numpy() + level.sigma.item() ** 2 * score.numpy()
    return torch.from_numpy(total / level.alpha.item())


DENOISERS = (
    lambda p, x, c: (x - c.sigma * (-c.sigma * p)) / c.alpha,
    lambda p, x, c: to_prediction(-c.sigma * p, x, c, "epsilon").x0,
    lambda p, x, c: x / c.alpha + c.rho**2 * (c.alpha * p),
    row_by_row,
    in_numpy_and_back,
    lambda p, x, c: ((x + c.sigma**2 * p) / c.alpha).float(),
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
})  # fmt: skip


def by_z(x, eps, t, s):
    return s.alpha * (x / t.alpha + (s.rho - t.rho) * eps)


STEPS = (
    by_z,
    lambda x, e, t, s: s.alpha * (x - t.sigma * e) / t.alpha + s.sigma * e,
    lambda x, e, t, s: ddim_step(to_prediction(e, x, t, "epsilon"), s),
    lambda x, e, t, s: s.alpha * torch.lerp(x / t.alpha - t.rho * e, x / t.alpha, s.rho / t.rho),
    lambda x, e, t, s: torch.add(x * (s.alpha / t.alpha), e * s.alpha, alpha=float(s.rho - t.rho)),
    lambda x, e, t, s: (
        s.alpha * (x / t.alpha + ((s.rho.log() - t.rho.log()).exp() - 1) * t.rho * e)
    ),
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
    "by_z(x, e.mul_(2), t, s)": "changes eps itself",
})  # fmt: skip
GROUPS = [(denoiser, DENOISERS, WRONG_DENOISERS), (euler_step, STEPS, WRONG_STEPS)]


@trying.right(GROUPS)
def test_accepts(check, answer):
    verdict = check(answer)
    assert verdict.passed, verdict


@trying.wrong(GROUPS)
def test_rejects(check, answer, sentence):
    verdict = check(answer)
    assert not verdict.passed
    assert sentence in verdict.message


def test_right_answers_agree_with_the_exact_mixture():
    """The cases above are right because the mathematics says so, not because the check does."""
    mixture = toy.two_moons(dtype=F64)
    level = Level(torch.tensor(0.9, dtype=F64), torch.tensor(0.8, dtype=F64))
    x = mixture.sample_at(level, 50, torch.Generator().manual_seed(3))
    for answer in DENOISERS:
        mean = answer(mixture.score(x, level), x, level)
        torch.testing.assert_close(mean.double(), mixture.denoise(x, level), rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------- figures


def draws(n=40, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def straight(n=6):
    """Trajectories of constant noise: straight in (z, rho)."""
    x0, eps = draws(n, seed=1), draws(n, seed=2)
    return torch.stack([SCHEDULE(t).alpha * x0 + SCHEDULE(t).sigma * eps for t in T])


X, ANGLE = draws(), torch.linspace(-20, 330, 50)
MEANS = [RING.denoise(draws(seed=seed), SCHEDULE(t)) for seed, t in ((0, 900), (3, 100))]
CHANGE = {"ring": draws(8).reshape(4, 4).abs(), "two_moons": draws(8, 1).reshape(4, 4).abs()}
LINES = figures.grid_points(5, dtype=F64).reshape(5, 5, 2)
GRID = figures.grid_points(12, dtype=F64)
TIMES = torch.tensor(T)
FIGURES = {
    "noise_levels": lambda: lesson.noise_levels(SCHEDULE, marks=[0, 500, 999]),
    "densities": lambda: lesson.densities(RING, SCHEDULE, [600, 50]),
    "denoised": lambda: lesson.denoised([X, draws(seed=3)], MEANS, X, [900, 100]),
    "plane_paths": lambda: lesson.plane_paths(straight(), X),
    "two_coordinates": lambda: lesson.two_coordinates(straight(), TIMES, SCHEDULE),
    "bends": lambda: lesson.bends(TIMES, SCHEDULE(TIMES).rho, CHANGE),
    "solution_regions": lambda: lesson.solution_regions(GRID, X, X, 0.1 * X),
    "staircase": lambda: lesson.staircase(ANGLE, ANGLE.round(decimals=-1), t=999),
    "warped_grid": lambda: lesson.warped_grid(LINES, LINES / 2, X, "half as large"),
}


@trying.figures(FIGURES)
def test_figures_describe_themselves(make):
    trying.described(make())


def test_density_is_not_transposed():
    """One cluster to the right of the other: the darker column of the image is on the right."""
    means = torch.tensor([[-1.5, 0.0], [1.5, 1.0]], dtype=F64)
    weights = torch.tensor([0.1, 0.9], dtype=F64)
    mixture = toy.GaussianMixture(means, std=0.3, weights=weights)
    fig, (ax,) = figures.figure()
    clean = Level.clean(torch.ones((), dtype=F64))
    lesson.density_panel(figures.plane(ax), mixture, clean, arrows=0)
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


# -------------------------------------------------------------------- explorer


def test_explorer_follows_its_controls():
    seen = trying.walk(explorer.diffused(SCHEDULE, ["ring", "spiral"], [0, 300]))
    [words] = [words for values, _, words in seen if values == ("ring", 300)]
    assert "ring at t = 300: alpha = 0.77, sigma = 0.64, rho = 0.83." in words

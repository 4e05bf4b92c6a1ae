"""Figures and explorer of lesson 01: they show what is true, say it in words, and are quick."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from slam_course import figures
from slam_course.lesson_01 import explorer as explorers
from slam_course.lesson_01 import figures as lesson
from slam_edu import Level, NoiseSchedule, toy
from tests.speed import assert_draws_within

F64 = torch.float64
SCHEDULE = NoiseSchedule.stable_diffusion(F64)
RING = toy.ring(dtype=F64)
T = [999, 600, 300, 100, 0]


def draws(n=40, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def straight(n=6):
    """Trajectories of constant noise: straight in (z, rho)."""
    x0, eps = draws(n, seed=1), draws(n, seed=2)
    return torch.stack([SCHEDULE(t).alpha * x0 + SCHEDULE(t).sigma * eps for t in T])


def noise_levels():
    return lesson.noise_levels(SCHEDULE, marks=[0, 500, 999])


def densities():
    return lesson.densities(RING, SCHEDULE, [600, 50])


def denoised():
    x = [draws(), draws(seed=3)]
    means = [RING.denoise(value, SCHEDULE(t)) for value, t in zip(x, (900, 100), strict=True)]
    return lesson.denoised(x, means, draws(), [900, 100])


def plane_paths():
    return lesson.plane_paths(straight(), draws())


def two_coordinates():
    return lesson.two_coordinates(straight(), torch.tensor(T), SCHEDULE)


def bends():
    change = {"ring": draws(8).reshape(4, 4).abs(), "two_moons": draws(8, 1).reshape(4, 4).abs()}
    return lesson.bends(torch.tensor(T), SCHEDULE(torch.tensor(T)).rho, change)


def solution_regions():
    x = draws()
    return lesson.solution_regions(figures.grid_points(12, dtype=F64), x, x, 0.1 * x)


def staircase():
    angle = torch.linspace(-20, 330, 50)
    return lesson.staircase(angle, angle.round(decimals=-1), t=999)


def warped_grid():
    lines = figures.grid_points(5, dtype=F64).reshape(5, 5, 2)
    return lesson.warped_grid(lines, lines / 2, draws(), "half as large")


FIGURES = [
    noise_levels,
    densities,
    denoised,
    plane_paths,
    two_coordinates,
    bends,
    solution_regions,
    staircase,
    warped_grid,
]


@pytest.mark.parametrize("make", FIGURES)
def test_figures_repeat_byte_for_byte_and_describe_themselves(make):
    fig = make()
    assert fig.png() == make().png()
    assert len(fig.alt) > 60
    assert fig.alt.endswith(".")
    assert "  " not in fig.alt


@pytest.mark.parametrize("make", FIGURES)
def test_nothing_is_cut_off(make):
    """Titles, labels and legends lie inside the figure, and titles leave each other room."""
    fig = make()
    fig.canvas.draw()
    width, height = fig.canvas.get_width_height()
    tight = fig.get_tightbbox().transformed(fig.dpi_scale_trans)
    assert tight.x0 >= -1
    assert tight.y0 >= -1
    assert tight.x1 <= width + 1
    assert tight.y1 <= height + 1
    titles = [ax.title.get_window_extent() for ax in fig.axes if ax.get_title()]
    for left, right in itertools.pairwise(titles):
        assert left.x1 < right.x0


@pytest.mark.parametrize("make", [densities, denoised, plane_paths, solution_regions])
def test_planes_have_the_same_limits(make):
    limits = {ax.get_xlim() + ax.get_ylim() for ax in make().axes}
    assert limits == {(-figures.LIMIT, figures.LIMIT) * 2}
    assert len({ax.get_xlim() for ax in warped_grid().axes}) == 1


def test_noise_levels_writes_the_ratio_at_the_marks():
    texts = [text.get_text() for text in noise_levels().axes[1].texts]
    assert texts == ["0.0292", "1.62", "14.6"]


def test_arrows_point_along_the_score():
    _, (ax,) = figures.figure()
    level = SCHEDULE(200)
    lesson.density_panel(figures.plane(ax), RING, level, arrows=9)
    [quiver] = [c for c in ax.collections if hasattr(c, "U")]
    at = torch.tensor(np.stack([quiver.X, quiver.Y], axis=1))
    drawn = torch.tensor(np.stack([quiver.U, quiver.V], axis=1))
    score = RING.score(at, level)
    long = score.norm(dim=1) > 1e-6  # at the very centre there is none
    cosine = torch.cosine_similarity(drawn, score, dim=1)
    assert torch.allclose(cosine[long], torch.ones_like(cosine[long]))
    short = (level.sigma * score).norm(dim=1) < 2.5
    assert torch.allclose(drawn[short], level.sigma * score[short])


def test_density_is_not_transposed():
    """One cluster to the right of the other: the darker column of the image is on the right."""
    mixture = toy.GaussianMixture(
        torch.tensor([[-1.5, 0.0], [1.5, 1.0]], dtype=F64),
        std=0.3,
        weights=torch.tensor([0.1, 0.9], dtype=F64),
    )
    fig, (ax,) = figures.figure()
    clean = Level.clean(torch.ones((), dtype=F64))
    lesson.density_panel(figures.plane(ax), mixture, clean, arrows=0)
    pixels = np.asarray(render(fig))[..., 0].astype(float)
    rows, columns = np.nonzero(pixels < pixels.min() + 5)
    height, width = pixels.shape
    assert columns.mean() > 0.55 * width
    assert rows.mean() < 0.45 * height  # rows count from the top


def render(fig):
    fig.canvas.draw()
    return fig.canvas.buffer_rgba()


def test_two_coordinates_draws_straight_lines_where_the_noise_is_constant():
    left, middle, right = two_coordinates().axes
    for ax, same in ((left, False), (middle, True)):
        lines = [line for line in ax.lines if line.get_linestyle() == "-"]
        worst = 0.0
        for line in lines:
            x, y = line.get_data()
            done = (np.asarray(x) - x[0]) / (x[-1] - x[0])
            worst = max(worst, np.abs(np.asarray(y) - (y[0] + done * (y[-1] - y[0]))).max())
        assert (worst < 1e-9) == same
    x, _ = next(line for line in right.lines if line.get_linestyle() == "-").get_data()
    assert max(x) <= 2.0


def test_bends_adds_up_to_all_of_it():
    _, right = bends().axes
    dashed, solid = right.lines
    assert dashed.get_ydata()[[0, -1]] == pytest.approx([0, 100])
    assert solid.get_ydata()[-1] == pytest.approx(100)
    assert np.all(np.diff(solid.get_ydata()) >= 0)


def test_end_colors_follow_the_direction_alone():
    angle = torch.linspace(0, 2 * torch.pi, 9, dtype=F64)[:-1]
    ends = torch.stack([angle.cos(), angle.sin()], dim=1)
    colors = lesson.end_colors(ends)
    assert colors.shape == (8, 3)
    assert colors.min() >= 0
    assert colors.max() <= 1
    assert np.allclose(colors, lesson.end_colors(3 * ends))
    steps = np.linalg.norm(colors - np.roll(colors, 1, axis=0), axis=1)
    assert steps.min() > 0.1


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
    box = explorers.diffused(SCHEDULE, ["ring", "spiral"], [0, 300])
    menu, slider, picture, caption = box.children
    first = picture.value
    slider.value = 300
    second = picture.value
    menu.value = "spiral"
    assert len({first, second, picture.value}) == 3
    assert "spiral at t = 300: alpha = 0.77, sigma = 0.64, rho = 0.83." in caption.value


def test_explorer_offers_every_data_set_and_both_ends_of_the_schedule():
    menu, slider, *_ = explorers.diffused(SCHEDULE).children
    assert list(menu.options) == list(toy.DATASETS)
    assert (slider.options[0], slider.options[-1]) == (0, 999)


@pytest.mark.parametrize("name", toy.DATASETS)
def test_explorer_redraws_in_less_than_200_ms(name):
    explorers.diffused_figure(SCHEDULE, name, 300).png()

    def draw(t):
        explorers.diffused_figure(SCHEDULE, name, t).png()

    assert_draws_within(0.2, [partial(draw, t) for t in (10, 100, 250, 500, 900)])


def test_explorer_shows_the_same_points_at_every_level():
    def offsets(t):
        fig = explorers.diffused_figure(SCHEDULE, "ring", t)
        return torch.tensor(fig.axes[0].collections[0].get_offsets().data)

    a, b, c = (offsets(t) for t in (0, 300, 999))
    levels = [SCHEDULE(t) for t in (0, 300, 999)]
    # Three points of one plane through x0 and eps: the third follows from the first two.
    rows = torch.stack([torch.stack([level.alpha, level.sigma]) for level in levels])
    solved = torch.linalg.solve(rows[:2], torch.stack([a, b]).reshape(2, -1))
    assert torch.allclose((rows[2] @ solved).reshape(c.shape), c, atol=1e-9)

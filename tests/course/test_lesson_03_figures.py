"""Figures of lesson 03: what they draw, that it repeats, and what they say in words."""

import numpy as np
import pytest
import torch
from matplotlib.patches import Circle

from slam_course.lesson_03 import figures as plots
from slam_edu import boundary_scalings
from tests.helpers import noise

TIMES = range(99, 1000, 100)


def run(scale=1.0, looks=4):
    """A run whose error falls from 1 * scale, at low timesteps first."""
    update = [20 * i for i in range(looks)]
    late = torch.linspace(0, 1, len(TIMES))
    error = torch.stack([scale / (1 + i * (1.2 - late)) for i in range(looks)])
    return plots.Health(
        update=update, loss=[1e-3 * scale] * looks, grad_norm=[1e-2] * looks, error=error, t=TIMES
    )


def guesses():
    t = torch.tensor([999, 500, 0])
    return plots.guesses_along_path(t, noise(3, 4, 2), noise(3, 4, 2, seed=1), noise(9, 2))


def boundary():
    t = torch.logspace(-3, 3, 50).clamp(max=999)
    return plots.boundary(t, {"10 t": boundary_scalings(t), "t": boundary_scalings(t, 0.5, 1.0)})


def front():
    return plots.knowledge_front({"a": run(), "b": run(0.5)})


def health():
    return plots.health({"sick": run(5.0), "well": run()}, run())


def rows():
    panels = {f"{n} steps": noise(7, 2, seed=n) for n in (1, 2, 4)}
    return plots.sample_rows({"one": panels, "two": panels}, noise(9, 2), ("teacher", "student"))


def maps():
    error = noise(36, 1).abs()[:, 0]
    return plots.error_maps({"before": error, "after": error / 9}, error)


def accounts():
    t = torch.tensor([99.0, 499.0, 999.0])
    book = (t, torch.tensor([0.03, 0.04, 0.04]), torch.tensor([0.03, 0.04, 0.05]))
    return plots.accounts({"N = 3": book, "N = 2": book}, {"N = 3": 0.02, "N = 2": 0.2})


def tradeoff():
    exact = {5: 0.3, 10: 0.1, 20: 0.05}
    return plots.hop_tradeoff(exact, {"early": {10: 0.2, 20: 0.9}, "late": {10: 0.1, 20: 0.06}})


FIGURES = [guesses, boundary, front, health, rows, maps, accounts, tradeoff]


@pytest.mark.parametrize("make", FIGURES, ids=lambda make: make.__name__)
def test_figure_repeats_and_describes_itself(make):
    fig = make()
    assert fig.png() == make().png()
    assert len(fig.alt) >= 15


@pytest.mark.parametrize("make", FIGURES, ids=lambda make: make.__name__)
def test_nothing_is_drawn_outside_the_figure(make):
    fig = make()
    fig.canvas.draw()
    box = fig.get_tightbbox()
    width, height = fig.get_size_inches()
    slack = 0.02
    assert box.x0 >= -slack
    assert box.y0 >= -slack
    assert box.x1 <= width + slack
    assert box.y1 <= height + slack


def test_timesteps_run_from_noise_to_data():
    for ax in (guesses().axes[1], boundary().axes[0], *accounts().axes):
        low, high = ax.get_xlim()
        assert low > high


def test_every_path_has_a_flat_answer_and_a_guess():
    right = guesses().axes[1]
    drawn = [line for line in right.lines if len(line.get_xdata()) == 3]
    flat = [line for line in drawn if len(set(line.get_ydata())) == 1]
    assert len(drawn) == 8
    assert [line.get_ydata()[0] for line in flat] == pytest.approx(noise(3, 4, 2)[-1, :, 0])
    assert {line.get_color() for line in flat} == {plots.COLORS["path"]}
    guess = [line.get_ydata() for line in drawn if line not in flat]
    assert np.allclose(np.stack(guess), noise(3, 4, 2, seed=1)[:, :, 0].T)


def test_boundary_draws_both_scalings_of_every_choice():
    ax = boundary().axes[0]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["$c_{skip}$, 10 t", "$c_{out}$, 10 t", "$c_{skip}$, t", "$c_{out}$, t"]
    skip = next(line for line in ax.lines if line.get_label() == "$c_{skip}$, 10 t")
    t, value = skip.get_data()
    assert np.allclose(value, 0.25 / ((10 * t) ** 2 + 0.25))


def test_front_puts_small_timesteps_at_the_bottom():
    first, second = [ax for ax in front().axes if ax.get_title()]
    assert [first.get_title(), second.get_title()] == ["a", "b"]
    image = first.collections[0]
    values = image.get_array().reshape(len(TIMES), -1)
    assert np.allclose(values, run().error.T)
    assert first.get_ylim()[0] < first.get_ylim()[1]
    # One scale for all panels: colours can be compared.
    assert image.norm.vmax == second.collections[0].norm.vmax


def test_health_has_a_column_for_each_run_with_the_healthy_one_behind():
    axes = np.array(health().axes).reshape(3, 2)
    assert [ax.get_title() for ax in axes[0]] == ["sick", "well"]
    for ax, value in zip(axes[:2, 0], ((1e-3, 5e-3), (1e-2, 1e-2)), strict=True):
        drawn = [line.get_ydata()[0] for line in ax.lines if len(line.get_ydata())]
        assert drawn == pytest.approx(value)
    assert [line.get_label() for line in axes[2, 0].lines] == ["t = 99", "t = 499", "t = 999"]
    last = axes[2, 0].lines[2].get_ydata()
    assert np.allclose(last, run(5.0).error[:, 9])
    assert all(len(ax.lines) == 1 for ax in plots.health({"a": run()}).axes[:2])


def test_every_row_has_its_name_and_colour():
    axes = np.array(rows().axes).reshape(2, 3)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["one", "two"]
    assert [ax.get_title() for ax in axes[1]] == ["1 steps", "2 steps", "4 steps"]
    from matplotlib.colors import to_hex

    drawn = [to_hex(ax.collections[1].get_facecolor()[0]).upper() for ax in axes[:, 0]]
    assert drawn == [plots.COLORS["teacher"], plots.COLORS["student"]]


def test_circles_hold_half_and_95_percent_of_the_noise():
    radius = noise(100_000, 2).norm(dim=1)
    circles = [p for p in maps().axes[0].patches if isinstance(p, Circle)]
    share = [(radius < circle.radius).double().mean().item() for circle in circles]
    assert share == pytest.approx([0.5, 0.95], abs=0.01)


def test_accounts_draw_the_random_walk_between_one_defect_and_all_agreed():
    ax = accounts().axes[0]
    lines = {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in ax.lines}
    assert lines["if all agreed"] == pytest.approx([0.03, 0.07, 0.11])
    assert lines["if independent"] == pytest.approx([0.03, 0.05, 0.0041**0.5])
    assert lines["sum of defects, measured"] == pytest.approx([0.03, 0.04, 0.05])
    assert set(lines["the hops' own"]) == {0.02}


def test_tradeoff_draws_what_it_is_given():
    lines = {line.get_label(): line for line in tradeoff().axes[0].lines}
    assert list(lines["late"].get_xdata()) == [10, 20]
    assert list(lines["early"].get_ydata()) == [0.2, 0.9]
    assert len(lines["N exact hops: perfect learning"].get_xdata()) == 3

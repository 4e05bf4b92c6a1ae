"""Figures of drawn digits."""

import numpy as np
import pytest
import torch

from slam_course.lesson_08 import digit_figures as plots
from slam_edu.digits.evaluate import Scores, Setting


def scores(all_right=0.9, frechet=10.0):
    return Scores(
        count=100, digit=0.95, stroke=0.99, background=1.0, all_right=all_right,
        frechet=frechet, kernel=0.01, kernel_std=0.001,
    )  # fmt: skip


def images(count, seed=0):
    return 2 * torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) - 1


def test_a_mosaic_puts_each_image_at_its_place():
    x = images(5)
    sheet = plots.mosaic(x, columns=3, gap=2)
    assert sheet.shape == (2 * 34 + 2, 3 * 34 + 2, 3)
    fourth = sheet[36:68, 2:34].permute(2, 0, 1)  # second row, first column
    torch.testing.assert_close(fourth, (x[3] + 1) / 2)
    assert (sheet[36:68, 70:102] == 1).all()  # the sixth place stays white
    assert (sheet[:2] == 1).all()


def test_the_prompt_grid_names_rows_and_columns():
    fig = plots.prompt_grid(images(6), ["zero", "one", "two"], ["red on\nblue", "blue on\nred"])
    [ax] = fig.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["zero", "one", "two"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["red on\nblue", "blue on\nred"]
    # A name stands in the middle of its row and column.
    np.testing.assert_allclose(ax.get_yticks(), [17.5, 51.5, 85.5])
    np.testing.assert_allclose(ax.get_xticks(), [17.5, 51.5])
    assert "zero, one, two" in fig.alt


def test_the_trade_off_shows_its_values_and_says_where_the_least_is():
    rows = [
        (Setting(guidance=3.0), scores(1.0, 40.0)),
        (Setting(guidance=0.5), scores(0.7, 8.0)),
        (Setting(guidance=1.0), scores(0.9, 12.0)),
    ]
    fig = plots.trade_off(rows, scores(0.99, 2.0))
    left, right = fig.axes
    lines = {line.get_label(): line for line in left.lines + right.lines}
    np.testing.assert_allclose(lines["all right"].get_xydata(), [[0.5, 70], [1, 90], [3, 100]])
    np.testing.assert_allclose(lines["teacher"].get_xydata(), [[0.5, 8], [1, 12], [3, 40]])
    assert lines["five times real images'"].get_ydata()[0] == pytest.approx(10.0)
    assert "w = 0.5, 4.0 times" in fig.alt


def test_the_curve_over_steps_counts_network_calls():
    rows = [
        (Setting(sampler="ddim", steps=4, guidance=2.0), scores(0.8, 30.0)),
        (Setting(sampler="ddim", steps=1, guidance=2.0), scores(0.1, 300.0)),
        (Setting(sampler="dpmpp_2m", steps=4, guidance=2.0), scores(0.9, 20.0)),
    ]
    fig = plots.steps_curve(rows, scores(1.0, 2.0))
    ddim, dpm = fig.axes[0].lines
    np.testing.assert_allclose(ddim.get_xydata(), [[2, 10], [8, 80]])
    np.testing.assert_allclose(dpm.get_xydata(), [[8, 90]])
    assert [line.get_label() for line in fig.axes[0].lines] == ["DDIM", "DPM-Solver++ 2M"]

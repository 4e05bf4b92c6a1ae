"""Figures of the distilled digits."""

import math

import numpy as np
import pytest

from slam_course.lesson_08 import study_figures as plots
from slam_edu.digits.students.plan import CD, CONTINUED, OFFICIAL, SETTINGS, SLAM, START
from slam_edu.toy.study.report import Ratio

TITLES = ("not as asked for, %", "Fréchet distance to the teacher's samples")


def curves(scale=1.0, names=(START, *SETTINGS, "ddim", "dpmpp_2m")):
    """For each of them two values at each number of calls."""
    return {
        name: {n: [scale * (i + 1) / n, 2 * scale * (i + 1) / n] for n in (1, 2, 4, 8)}
        for i, name in enumerate(names)
    }


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def inside(fig):
    """Require all that is drawn, texts included, to lie on the figure."""
    fig.canvas.draw()
    drawn = fig.get_tightbbox(fig.canvas.get_renderer())  # in inches
    width, height = fig.get_size_inches()
    assert drawn.x0 > -0.02
    assert drawn.y0 > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < height + 0.02


def test_every_student_has_a_look_of_its_own():
    looks = [(s["color"], s["marker"], s["ls"]) for s in plots.STYLES.values()]
    assert set(plots.STYLES) == {START, *SETTINGS, "ddim", "dpmpp_2m"}
    assert len(set(looks)) == len(looks)
    assert len({s["color"] for s in plots.STYLES.values()}) == len(looks)
    assert plots.style_of("another")["color"]


def test_quality_over_calls():
    panels = {title: curves(10.0**i) for i, title in enumerate(TITLES)}
    fig = plots.over_calls(panels, dict.fromkeys(TITLES, 0.5), "what is to be seen")
    inside(fig)
    assert fig.alt == "what is to be seen"
    left, right = fig.axes
    assert (left.get_title(), right.get_title()) == TITLES
    line = lines_of(left)[CD]
    # The geometric mean over the two seeds.
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 4, 8])
    np.testing.assert_allclose(line.get_ydata(), [2 * 2**0.5 / n for n in (1, 2, 4, 8)])
    np.testing.assert_allclose(lines_of(right)[CD].get_ydata()[0], 20 * 2**0.5)
    assert left.get_yscale() == right.get_yscale() == "log"
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "2", "4", "8"]
    [legend] = fig.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == len(panels[TITLES[0]]) + 1
    assert "teacher, 50 steps" in labels
    assert "teacher, DDIM" in labels


def test_values_that_are_all_alike_still_make_a_figure():
    same = {name: {n: [95.4545, 95.4545] for n in (1, 2, 4, 8)} for name in (CD, SLAM)}
    fig = plots.over_calls({"wrong": same}, {"wrong": 95.4545}, "alt")
    inside(fig)
    assert fig.axes[0].get_position().width > 0.5


def test_errors_to_the_map():
    found = {
        name: {t: [0.1 + t / 1000 + i] for t in (999, 499)} for i, name in enumerate((CD, SLAM))
    }
    fig = plots.map_errors({"latents": found, "pixels": found}, "alt")
    inside(fig)
    left = fig.axes[0]
    low, high = left.get_xlim()
    assert low > high  # noisy to clean, as sampling goes
    np.testing.assert_allclose(sorted(lines_of(left)[SLAM].get_ydata()), [1.599, 2.099])


def test_ratios_are_at_their_rows():
    found = {
        CONTINUED: {"a": Ratio(0.5, 0.4, 0.6, 3, {}), "b": Ratio(0.9, 0.7, 1.2, 3, {})},
        OFFICIAL: {"a": Ratio(6.0, 5.0, 7.0, 3, {}), "b": Ratio(1.1, math.nan, math.nan, 1, {})},
    }
    fig = plots.student_ratios(found, {"a": "error,\nt = 999", "b": "distance"}, "a title")
    inside(fig)
    left, right = fig.axes
    assert left.get_title() == "error,\nt = 999"
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == [plots.LABELS[CONTINUED], OFFICIAL]
    dots = [line for line in left.lines if line.get_marker() == "o"]
    np.testing.assert_allclose([dot.get_xdata()[0] for dot in dots], [0.5, 6.0])
    assert [dot.get_color() for dot in dots] == [
        plots.STYLES[CONTINUED]["color"], plots.STYLES[OFFICIAL]["color"],
    ]  # fmt: skip
    # Filled where the interval is clear of 1.
    assert [dot.get_markerfacecolor() != "white" for dot in dots] == [True, True]
    open_dots = [line for line in right.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() for dot in open_dots] == ["white", "white"]
    assert f"0.50, of {plots.LABELS[CONTINUED]}" in fig.alt


def test_gamma_one():
    cosines = {1 - 10.0**-k: 1 - 0.1 * (5 - k) for k in range(1, 6)}
    told = {"error": {OFFICIAL: {0.5: [1.0], 0.99: [2.0], 1.0: [4.0, 9.0]}}}
    fig = plots.at_gamma_one(cosines, told, "alt")
    inside(fig)
    left, right = fig.axes
    [line] = [line for line in left.lines if len(line.get_xdata()) == 5]
    np.testing.assert_allclose(line.get_xdata(), [0.1, 0.01, 0.001, 1e-4, 1e-5])
    low, high = left.get_xlim()
    assert low > high  # toward gamma = 1 on the right
    np.testing.assert_allclose(lines_of(right)[OFFICIAL].get_ydata(), [1, 2, 6])
    assert [label.get_text() for label in right.get_xticklabels()] == ["0.5", "0.99", "1"]
    inside(plots.at_gamma_one(cosines, {}, "alt"))


def test_training_curves():
    logs = {
        name: [
            [{"update": float(u), "loss": (1 + seed) / u, "grad_norm": 0.5 / u} for u in (10, 20)]
            for seed in range(2)
        ]
        for name in (CD, SLAM)
    }
    fig = plots.training_curves(logs)
    inside(fig)
    loss, norm = (lines_of(ax)[SLAM] for ax in fig.axes)
    np.testing.assert_allclose(loss.get_xdata(), [10, 20])
    np.testing.assert_allclose(loss.get_ydata(), [2**0.5 / 10, 2**0.5 / 20])
    np.testing.assert_allclose(norm.get_ydata(), [0.05, 0.025])
    assert f"{CD} from 0.1 to 0.05" in fig.alt
    assert plots.training_curves(logs, "other").alt == "other"


@pytest.mark.parametrize("low", [0.013, 0.5, 37.0])
@pytest.mark.parametrize("ratio", [1.02, 1.5, 4.0, 60.0, 5e4])
def test_ticks_are_few_and_round(low, ratio):
    same = {CD: {1: [low], 2: [low * ratio]}}
    fig = plots.over_calls({"a": same}, {"a": low}, "alt")
    ax = fig.axes[0]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert 2 <= len(labels) <= 7
    assert len(set(labels)) == len(labels)
    np.testing.assert_allclose([float(text) for text in labels], ax.get_yticks(), rtol=1e-3)

"""Figures of lesson 09: what they draw, that it repeats, and what they say in words."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from slam_course.lesson_09 import figures as plots
from slam_course.cost import run_cost
from slam_edu.sd.plan import Phase

GIB = 2**30


def texts(ax):
    return [text.get_text() for text in ax.texts]


# -------------------------------------------------------------------- processes


def test_each_sample_shows_its_process():
    owners = {"one": [0] * 8, "two": [0, 0, 1, 1] * 2}
    fig = plots.who_draws(owners, 4, alt="two rows of eight numbers")
    [ax] = fig.axes
    assert texts(ax) == ["0"] * 8 + ["0", "0", "1", "1"] * 2
    cells = [p for p in ax.patches if isinstance(p, Rectangle)]
    colors = [cell.get_facecolor() for cell in cells[8:12]]
    assert colors[0] == colors[1] != colors[2] == colors[3]
    assert [cell.get_x() for cell in cells[8:12]] == [0, 1, 2, 3]
    [line] = ax.lines  # between the two updates
    assert line.get_xdata()[0] == pytest.approx(4, abs=0.1)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]


def test_rows_of_unlike_lengths_are_refused():
    with pytest.raises(ValueError, match=r"rows of \[1, 2\] samples"):
        plots.who_draws({"a": [0], "b": [0, 0]}, 1, alt="rows of numbers")


# -------------------------------------------------------------------- memory and operations


def plan(parts, other=0):
    """What the figure asks of a plan: an update's parts, and the largest total of all phases."""
    phase = Phase(name="an update", parts=parts)
    return SimpleNamespace(update=lambda: phase, total=lambda: max(phase.total, other))


PARTS = {
    "base UNet": 3 * GIB, "adapters": GIB, "their average": GIB, "optimiser's state": 2 * GIB,
    "gradients": GIB, "activations": 4 * GIB, "half-precision copies of weights": GIB,
    "libraries and allocator (assumed)": GIB,
}  # fmt: skip


def test_groups_hold_every_part_once():
    sums = plots.grouped(PARTS)
    assert sum(sums.values()) == sum(PARTS.values()) / GIB
    assert sums["activations and copies"] == 5
    names = [part for _, parts in plots.GROUPS.values() for part in parts]
    assert len(names) == len(set(names))
    with pytest.raises(ValueError, match="'magnets' is in no group; allowed: teacher's UNet"):
        plots.grouped({"magnets": 1})


def test_bars_stand_on_each_other_and_end_at_the_sum():
    plans = {"small": plan(PARTS), "encodes": plan(PARTS, other=20 * GIB)}
    fig = plots.memory_bars(plans, {"T4": 14.7}, alt="two bars of memory")
    [ax] = fig.axes
    bars = [bar for bar in ax.patches if bar.get_width()]
    for row in (0, 1):
        mine = [bar for bar in bars if abs(bar.get_y() + bar.get_height() / 2 - row) < 0.1]
        ends = [bar.get_x() + bar.get_width() for bar in mine]
        assert np.allclose([bar.get_x() for bar in mine], [0, *ends[:-1]])
        assert ends[-1] == pytest.approx(14)
    assert texts(ax) == ["14", "20", "T4"]
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert [d.get_xdata()[0] for d in diamonds] == [pytest.approx(20)]
    [legend] = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == list(plots.GROUPS)


def test_shares_add_up_to_a_hundred():
    parts = dict(zip(plots.PARTS, (1e12, 0.1e12, 2e12, 1e12, 1e12, 2e12), strict=True))
    fig = plots.operation_shares({"SD": parts}, alt="one bar of shares")
    [ax] = fig.axes
    assert sum(bar.get_width() for bar in ax.patches) == pytest.approx(100)
    assert texts(ax)[-1] == "7.1 TFLOP"
    assert "28" in texts(ax)
    assert "1" not in texts(ax)  # too narrow for a number


# -------------------------------------------------------------------- days and money


def chart(**changes):
    values = {"gpus": 8, "batch": 16, "updates": 10_000, "speed": 1e14, "price": 2.0, **changes}
    cost = run_cost(5.4e12, **values)
    update = values["gpus"] * values["batch"]
    return plots.run_chart(cost, 5.4e12, values["speed"], update, title="a run")


def test_the_dot_is_on_the_line_of_its_speed():
    fig = chart()
    ax, table = fig.axes
    lines = [line for line in ax.lines if line.get_marker() == "None"]
    [dot] = [line for line in ax.lines if line.get_marker() == "o"]
    (x,), (y,) = dot.get_data()
    assert x == 8 * 16 * 10_000
    slope = lines[0].get_ydata() / lines[0].get_xdata()
    assert y / x == pytest.approx(slope[0]) == pytest.approx(5.4e12 / 1e14 / 86_400)
    assert lines[1].get_ydata()[0] == pytest.approx(2 * lines[0].get_ydata()[0])
    assert lines[2].get_ydata()[0] == pytest.approx(lines[0].get_ydata()[0] / 2)
    said = [text.get_text() for text in table.texts]
    assert said == [
        "128", "samples an update", "1.28 M", "samples in all", "0.1", "days", "0.8", "GPU-days",
        "38.4", "money",
    ]  # fmt: skip
    assert "days 0.1, GPU-days 0.8" in fig.alt


def test_a_run_outside_of_the_picture_stays_at_its_edge():
    [dot] = [line for line in chart(gpus=1, batch=1, updates=1).axes[0].lines
             if line.get_marker() == "o"]  # fmt: skip
    assert [float(v[0]) for v in dot.get_data()] == [1e4, 1e-2]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.00123, "0.001"), (0.0256, "0.0256"), (12.34, "12.3"), (999.4, "999"),
        (999.9, "1 k"), (12_345, "12.3 k"), (9.5e6, "9.5 M"), (2e9, "2 G"),
    ],
)  # fmt: skip
def test_short_numbers(value, text):
    assert plots._short(value) == text


def test_figures_repeat():
    assert chart().png() == chart().png()

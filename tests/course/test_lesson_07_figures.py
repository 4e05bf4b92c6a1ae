"""Figures of lesson 07: what they draw, that they repeat, and what they say in words."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from slam_course.lesson_07 import figures as plots
from slam_edu.sd.tracking import BIN_COLUMNS


def log(seed, rows=12, first=0.2, holes=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(rows):
        noise = torch.randn(12, generator=generator).mul(0.1).exp().tolist()
        row = {"update": 10.0 * (i + 1), "loss": first * noise[0] / (i + 1)}
        row |= {"grad_norm": 5 * noise[1], "skipped": 0.0}
        bins = [10.0 ** (i / 3 - 4) * luck for i, luck in enumerate(noise[2:])]
        row |= dict(zip(BIN_COLUMNS, bins, strict=True))
        row |= dict.fromkeys(BIN_COLUMNS[:holes], math.nan)
        found.append(row)
    return found


def batch():
    t = torch.tensor([999, 950, 519, 19])
    error = torch.tensor([0.1, 0.3, 0.01, 0.001])
    return plots.errors_by_timestep(t, error, "errors fall to the right")


def logs():
    return plots.beside({"mine": log(0, 5), "sick": log(1, 7)}, [log(2), log(3)])


def alone():
    return plots.beside({"mine": log(0, 5)})


def rates():
    curves = {
        "teacher, DDIM": {4: 0.1, 8: 0.9},
        "before": {1: 0.3, 2: 0.7},
        "after": {1: 0.5, 2: 0.9},
        "something else": {1: 0.2, 2: 0.4},
    }
    return plots.rates(curves, "the student is ahead")


@pytest.mark.parametrize("make", [batch, logs, alone, rates], ids=lambda f: f.__name__)
def test_figure_repeats_and_describes_itself(make):
    fig = make()
    assert fig.png() == make().png()
    assert len(fig.alt) >= 15
    assert all(ax.get_title() for ax in fig.axes)


# -------------------------------------------------------------------- one batch


def test_every_sample_is_a_point_and_every_tenth_has_its_mean():
    [ax] = batch().axes
    cloud, *means = ax.collections
    seen = {(x, round(y, 6)) for x, y in cloud.get_offsets().tolist()}
    assert seen == {(999, 0.1), (950, 0.3), (519, 0.01), (19, 0.001)}
    found = {}
    for line in means:
        [[start, end]] = line.get_segments()
        assert start[1] == end[1]
        found[start[0], end[0]] = start[1]
    assert found == pytest.approx({(900, 1000): 0.2, (500, 600): 0.01, (0, 100): 0.001})
    assert ax.get_xlim()[0] > ax.get_xlim()[1]
    assert ax.get_yscale() == "log"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["one sample", "mean of a tenth"]


# -------------------------------------------------------------------- logs


def test_lines_are_the_logs_and_the_band_is_the_references():
    mine, sick, references = log(0, 5), log(1, 7), [log(2), log(3)]
    fig = plots.beside({"mine": mine, "sick": sick}, references)
    for ax, column in zip(fig.axes, ("loss", "grad_norm"), strict=False):
        lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
        assert lines["mine"] == [[r["update"], r[column]] for r in mine]
        assert lines["sick"] == [[r["update"], r[column]] for r in sick]
        middle = np.array(lines["healthy runs"])
        a, b = (np.array([row[column] for row in rows]) for rows in references)
        assert np.allclose(middle[:, 1], np.sqrt(a * b))
        [band] = ax.collections
        y = band.get_paths()[0].vertices[:, 1]
        assert y.min() == pytest.approx(min(a.min(), b.min()))
        assert y.max() == pytest.approx(max(a.max(), b.max()))
    assert "mine, sick" in fig.alt
    assert "band of 2 healthy runs" in fig.alt


def test_one_reference_is_a_line():
    fig = plots.beside({"mine": log(0, 5)}, [log(2)])
    assert fig.alt.endswith("of mine, beside a healthy run in grey.")
    lines = {line.get_label(): line for line in fig.axes[0].lines}
    assert np.allclose(lines["healthy run"].get_ydata(), [row["loss"] for row in log(2)])


def test_without_references_there_is_no_band():
    fig = alone()
    assert not any(ax.collections for ax in fig.axes)
    assert "healthy" not in fig.alt


def test_errors_by_timestep_are_of_the_last_third():
    rows = log(4, 7)
    fig = plots.beside({"mine": rows})
    x, y = np.array(fig.axes[2].lines[0].get_xydata()).T
    assert x.tolist() == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
    late = rows[-3:]  # a third of 7, rounded up
    wanted = [sum(row[name] for row in late) / 3 for name in BIN_COLUMNS]
    assert np.allclose(y, wanted)
    low, high = fig.axes[2].get_xlim()
    assert low > high


def test_what_has_no_sample_is_left_out_of_the_mean():
    rows = log(5, 3)
    for row, name in zip(rows, BIN_COLUMNS, strict=False):
        row[name] = math.nan
    found = plots.late_errors(rows[:1])
    assert np.isnan(found[0])
    assert np.isfinite(found[1:]).all()
    rows = log(5, 6)
    rows[-1]["loss_bin4"] = math.nan
    assert plots.late_errors(rows)[4] == pytest.approx(rows[-2]["loss_bin4"])


def test_a_tenth_that_no_reference_has_is_not_drawn():
    fig = plots.beside({"mine": log(0)}, [log(2, holes=2), log(3, holes=1)])
    line = {line.get_label(): line for line in fig.axes[2].lines}["healthy runs"]
    assert line.get_xdata().tolist()[0] == 150
    assert np.isfinite(line.get_ydata()).all()
    fig.png()


def test_a_loss_that_is_not_finite_leaves_a_gap():
    rows = log(0)
    rows[3]["loss"] = math.nan
    fig = plots.beside({"mine": rows})
    assert np.isnan(fig.axes[0].lines[0].get_ydata()[3])
    fig.png()


@pytest.mark.parametrize(
    ("logs", "references", "message"),
    [
        ({"mine": []}, [], "the log of mine has no rows"),
        ({"mine": log(0)}, [[]], "the log of a reference has no rows"),
    ],
)
def test_wrong_logs(logs, references, message):
    with pytest.raises(ValueError, match=message):
        plots.beside(logs, references)


# -------------------------------------------------------------------- rates


def test_rates_are_per_cent_over_calls():
    [ax] = rates().axes
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["teacher, DDIM"].get_xydata().tolist() == [[4, 10], [8, 90]]
    assert lines["after"].get_xydata().tolist() == [[1, 50], [2, 90]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    kinds = [lines[name].get_color() for name in ("teacher, DDIM", "before", "after")]
    assert len(set(kinds)) == 3
    assert lines["something else"].get_color() == lines["after"].get_color()


# -------------------------------------------------------------------- grids of a run


def save(path, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return pixels.numpy()


def test_grids_stand_below_each_other_with_their_updates(tmp_path):
    paths = [tmp_path / "00000000.png", tmp_path / "00001250.png"]
    saved = [save(path, 40, 60, i) for i, path in enumerate(paths)]
    fig = plots.sample_grids(paths, "two grids of noise")
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        "after 0 updates",
        "after 1,250 updates",
    ]
    for ax, pixels in zip(fig.axes, saved, strict=True):
        assert np.array_equal(ax.images[0].get_array(), pixels)
    upper, lower = (ax.get_position() for ax in fig.axes)
    assert upper.y0 >= lower.y1
    assert fig.png() == plots.sample_grids(paths, "two grids of noise").png()


def test_a_wide_grid_is_made_smaller(tmp_path):
    save(tmp_path / "00000007.png", 40, 600, 0)
    [ax] = plots.sample_grids([tmp_path / "00000007.png"], "a grid of noise", width=300).axes
    assert ax.images[0].get_array().shape == (20, 300, 3)


def test_no_grids(tmp_path):
    with pytest.raises(ValueError, match="there are no grids"):
        plots.sample_grids([], "nothing at all")
    with pytest.raises(FileNotFoundError, match="00000001"):
        plots.sample_grids([tmp_path / "00000001.png"], "nothing at all")

"""Lesson 05's explorers and figures, and the widget that runs an experiment."""

import io
from functools import partial

import pytest
import torch
from PIL import Image

from slam_course import figures
from slam_course.figures import Animation
from slam_course.lesson_05 import explorer as distillation
from slam_course.lesson_05 import figures as students
from slam_course.lesson_05 import study_figures as study
from slam_course.widgets import experiment
from slam_edu import toy
from slam_edu.toy.study import plan, report, run, shipped
from tests.speed import assert_draws_within

NAMES = ("CD", "SLAM", "SLAM, gamma = 2")
DATA = toy.ring().sample(300, torch.Generator().manual_seed(0))


def moment(error, x=DATA):
    return run.Moment(x, {t: error * t / 999 for t in run.TIMES})


MOMENTS = {
    name: {n: moment(1 / (i + 1) / n, DATA + i) for n in (1, 5)} for i, name in enumerate(NAMES)
}


# -------------------------------------------------------------------- explorers


def test_learning_shows_every_student_at_every_moment():
    box = distillation.learning(MOMENTS, DATA)
    menu, slider, picture, caption = box.children
    seen = set()
    for name in menu.options:
        for value in (1, 5):
            menu.value, slider.value = name, value
            seen.add(picture.value)
            assert f"{name} after {value} updates" in caption.value
    assert len(seen) == 6


def test_learning_redraws_fast_enough():
    def draw(name):
        distillation.learning({name: MOMENTS[name]}, DATA)

    assert_draws_within(0.3, [partial(draw, name) for name in NAMES])


@pytest.mark.parametrize("change", distillation.CHANGES)
def test_changes_are_settings(change):
    setting = distillation.setting_of("SLAM", change, 100)
    assert setting.updates == 100
    for field, value in distillation.CHANGES[change].items():
        assert getattr(setting, field) == value


def test_the_continued_chord_refuses_a_gamma_embedding():
    with pytest.raises(ValueError, match="reach is 2"):
        distillation.setting_of("SLAM, gamma = 2", "gamma embedding, official", 100)
    with pytest.raises(ValueError, match="change is 'magic'"):
        distillation.setting_of("SLAM", "magic", 100)


def test_an_ablation_trains_both_and_says_what_it_found(monkeypatch):
    trained = []

    def follow(setting, data, seed, at, on_update):
        trained.append((setting, data, seed))
        on_update(setting.updates)
        short = setting.replace(updates=3, batch=8, width=8, depth=2, init="random")
        *_, (_, student) = run.train(short, data, seed)
        return student, {}

    monkeypatch.setattr(distillation, "follow", follow)
    shares = []
    drawn = distillation.ablation_figure(
        shares.append, "ring", "SLAM", "only 10 sub-paths", updates=500, steps=2, seed=4
    )
    wanted = [plan.CD.replace(updates=500), plan.SLAM.replace(updates=500, subpaths=10)]
    assert trained == [(setting, "ring", 4) for setting in wanted]
    assert shares == [0.5, 1.0]
    assert drawn.alt.count("distance") == 2
    assert "ring, 2 step(s)" in drawn.alt


def test_an_experiment_runs_when_asked_keeps_results_and_shows_errors():
    asked = []

    def draw(on_progress, n):
        asked.append(n)
        on_progress(0.5)
        if n == 3:
            raise ValueError("n is <3>")
        fig, _ = figures.figure(alt=f"n = {n}")
        return fig

    box = experiment(draw, n=(1, 2, 3))
    slider, row, note, picture = box.children
    button, bar = row.children
    assert asked == []
    button.click()
    assert asked == [1]
    assert note.value == "n = 1"
    assert bar.value == 1
    first = picture.value
    slider.value = 2
    assert picture.value == first, "nothing changes before the button is pressed"
    button.click()
    slider.value = 1
    button.click()
    assert asked == [1, 2], "the same values run once"
    slider.value = 3
    button.click()
    assert "n is &lt;3&gt;" in note.value
    assert not button.disabled


def test_ablation_offers_every_method_and_change():
    menus = distillation.ablation().children
    assert set(menus[1].options) == set(plan.METHODS)
    assert tuple(menus[2].options) == tuple(distillation.CHANGES)


# -------------------------------------------------------------------- figures


def test_an_animation_moves_and_repeats_to_the_byte():
    moments = {n: (m.samples, m.errors) for n, m in MOMENTS["CD"].items()}
    made = students.learning(moments, DATA, "CD", milliseconds=100)
    image = Image.open(io.BytesIO(made.gif()))
    assert image.n_frames == 2
    assert image.info["duration"] == 100
    assert made.gif() == students.learning(moments, DATA, "CD", milliseconds=100).gif()
    assert "from 1.0 to 0.2" in made.alt
    bundle = made._repr_mimebundle_()
    assert set(bundle) == {"image/gif", "text/plain"}
    with pytest.raises(ValueError, match="0 frames"):
        Animation([], milliseconds=1, alt="nothing")


def test_sample_grid_has_a_panel_for_each():
    samples = {name: {1: DATA, 2: DATA} for name in NAMES}
    notes = {name: {1: 0.1 * i, 2: 0.2} for i, name in enumerate(NAMES, 1)}
    drawn = students.sample_grid(samples, DATA, notes)
    assert len(drawn.axes) == 6
    assert [ax.get_xlabel() for ax in drawn.axes[:2]] == ["distance 0.100", "distance 0.200"]
    assert "CD is closest to the data, at 0.10" in drawn.alt


def test_error_maps_show_what_they_are_given():
    values = torch.linspace(0, 1, 64)
    drawn = students.error_maps({"CD": values, "SLAM": values / 2}, DATA, 499, limit=2.0, most=0.4)
    shown = drawn.axes[1].images[0].get_array()
    assert shown.max() == pytest.approx(0.5)
    assert drawn.axes[0].images[0].get_clim() == (0, 0.4)
    assert "CD 0.50, SLAM 0.25" in drawn.alt


def test_lines_carry_the_numbers():
    per_t = {name: {999: 0.3, 99: 0.1} for name in NAMES}
    per_gamma = {name: {0.0: 0.2, 1.0: 0.25} for name in NAMES}
    left, right = students.errors_along(per_t, per_gamma, 499).axes
    assert [list(line.get_ydata()) for line in left.lines] == [[0.3, 0.1]] * 3
    assert list(right.lines[0].get_ydata()) == [0.2, 0.25]
    curves = {name: {10: [0.1, 0.9], 20: [0.05, 0.5]} for name in NAMES}
    first, second = students.arrival(curves, (299, 999), "falling").axes
    assert list(first.lines[0].get_ydata()) == [0.1, 0.05]
    assert list(second.lines[2].get_ydata()) == [0.9, 0.5]


# -------------------------------------------------------------------- the study's figures


@pytest.fixture(scope="module")
def results():
    return report.Results(shipped())


def test_steps_against_quality_draws_the_means(results):
    shown = {name: plan.METHODS[name] for name in NAMES}
    drawn = study.steps_against_quality(
        results, shown, ("ring", "pinwheel"), {"ring": 1e-2, "pinwheel": 1e-2}
    )
    line = drawn.axes[1].lines[2]
    want = [results.mean(plan.CONTINUED, ["pinwheel"], f"sw_{n}") for n in run.STEPS]
    assert list(line.get_ydata()) == pytest.approx(want)


def test_ratios_are_hollow_where_one_is_inside():
    clear = report.Ratio(0.8, 0.7, 0.9, 8, {})
    unclear = report.Ratio(0.95, 0.85, 1.05, 8, {})
    (ax,) = study.ratios({"SLAM": {"sw_1": clear}, "random hop": {"sw_1": unclear}}).axes
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [0.8, 0.95]
    assert dots[0].get_markerfacecolor() != "white"
    assert dots[1].get_markerfacecolor() == "white"


@pytest.mark.parametrize("name", ["subpaths", "budget", "gammas"])
def test_every_group_has_its_figure(results, name):
    group = plan.GROUPS[name]
    drawn = study.figures(results, group, group.data, dict.fromkeys(group.data, 0.02))
    assert len(drawn) == 1
    assert all(len(fig.alt) > 40 for fig in drawn.values())

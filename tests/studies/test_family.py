"""The family study: its search, its groups and its report, on a study of seconds."""

import math

import pytest

from slam_course.family import METHODS, training
from slam_course.family.results import TUNED_ON, Choice, Row, chosen, read_rows
from slam_edu.io import data_path
from slam_edu.training import TrainConfig
from studies.family import __main__ as family
from studies.family import report, tune
from studies.family.groups import NAMES, groups

# torch loads its rules of forward-mode differentiation through TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
CD, MIDDLE = "consistency distillation", "SLAM, middle slope"


@pytest.mark.parametrize("best", [(4e-3, "huber", 0.8, 20), (5e-4, "l2", 0.99, 50)])
def test_the_search_ends_inside_its_grid(best):
    """On a bowl over rate, moving average and N it finds the lowest point, and asks for its
    neighbours on every axis."""
    lr, loss, rate, n = best

    def height(s):
        axes = (tune.LR, s.lr, lr), (tune.EMA, s.ema_rate, rate), (tune.N, s.subpaths, n)
        away = sum(abs(axis.index(a) - axis.index(b)) for axis, a, b in axes)
        return 1 + away + (s.loss != loss)

    known = {}
    while True:
        found, missing = tune.search(MIDDLE, lambda setting, best, known=known: known.get(setting))
        if not missing:
            break
        assert known.keys().isdisjoint(missing)
        known |= {setting: height(setting) for setting in missing}
    assert (found.lr, found.loss, found.ema_rate, found.subpaths) == best
    for axis, values in (("lr", tune.LR), ("ema_rate", tune.EMA), ("subpaths", tune.N)):
        i = values.index(getattr(found, axis))
        assert all(found.replace(**{axis: v}) in known for v in (values[i - 1], values[i + 1]))


def test_a_diverged_setting_is_no_choice():
    results = tune.Results(
        Row(tune.start(CD), TUNED_ON, seed, 9, True, dict.fromkeys(SW, math.nan))
        for seed in range(tune.SEEDS)
    )
    assert tune.score(results, tune.start(CD), tune.start(CD)) == math.inf
    assert tune.score(results, tune.start(MIDDLE), tune.start(CD)) is None


def test_the_other_seeds_of_a_hopeless_setting_are_not_run():
    best = tune.start(CD)
    rows = [Row(best, TUNED_ON, seed, 9, True, dict.fromkeys(SW, 0.1)) for seed in range(3)]
    for value, expected in ((0.13, 0.13), (0.12, None)):
        other = best.replace(lr=1.0)
        row = Row(other, TUNED_ON, 0, 9, True, dict.fromkeys(SW, value))
        found = tune.score(tune.Results([*rows, row]), other, best)
        assert found == (expected and pytest.approx(expected))


SW = [f"sw_{n}" for n in training.STEPS]


def test_groups_compare_settings_of_their_own():
    found = groups({name: Choice(method=name) for name in METHODS})
    assert tuple(found) == NAMES
    for name, group in found.items():
        assert set(group.below) == set(group.settings), name
        assert set(group.below.values()) <= set(group.settings), name
        jobs = group.jobs(3)
        assert (
            len(jobs)
            == len(set(jobs))
            == len(group.settings) * len(group.data) * min(3, group.seeds)
        )


def test_shipped_choices_and_rows_are_of_methods_that_are_there():
    settings = chosen()
    assert set(settings) <= set(METHODS)
    rows = read_rows(data_path("family/runs.csv"))
    assert {row.setting.method for row in rows} <= set(METHODS)
    assert TUNED_ON not in {row.data for row in rows}


def test_the_report_is_the_shipped_one(tmp_path):
    rows = read_rows(data_path("family/runs.csv"))
    report.write_report(rows, chosen(), groups(chosen()), tmp_path)
    shipped = data_path("family/report.md").read_text("utf-8")
    assert (tmp_path / "report.md").read_text("utf-8") == shipped


@pytest.fixture
def small(monkeypatch):
    caches = (training.diffusion_model, training._solved, training.floor, report.floors)
    for name, value in (("POINTS", 100), ("MAP_POINTS", 10), ("WIDTH", 8)):
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(training, "INIT", TrainConfig(updates=3, batch=8))
    monkeypatch.setattr(tune, "SEEDS", 1)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    for name, values in (("LR", (1e-3, 2e-3)), ("EMA", (0.9, 0.95)), ("N", (20, 50))):
        monkeypatch.setattr(tune, name, values)
    monkeypatch.setattr(
        tune, "AXES", {"lr": tune.LR, "loss": ("l2",), "ema_rate": tune.EMA, "subpaths": tune.N}
    )
    start = tune.start
    monkeypatch.setattr(tune, "start", lambda name: start(name).replace(cost=15.0))
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_a_study_goes_on_where_it_was_stopped(small, tmp_path, capsys, monkeypatch):
    out = str(tmp_path)
    options = ["--out", out, "--workers", "1", "--methods", CD, MIDDLE]
    assert family.main(["tune", *options]) == 0
    tuned = (tmp_path / "tuning.csv").read_bytes()
    settings = chosen(tmp_path / "chosen.json")
    assert set(settings) == {CD, MIDDLE}
    assert family.main(["tune", *options]) == 0
    assert (tmp_path / "tuning.csv").read_bytes() == tuned

    cheap = {name: setting.replace(cost=15.0) for name, setting in settings.items()}
    monkeypatch.setattr(family, "chosen", lambda path: cheap)
    options += ["--groups", "teacher"]
    assert family.main([*options, "--seeds", "1"]) == 0
    first = read_rows(tmp_path / "runs.csv")
    assert family.main([*options, "--seeds", "2"]) == 0
    rows = read_rows(tmp_path / "runs.csv")
    assert set(map(str, first)) < set(map(str, rows))
    assert {row.setting.teacher for row in rows} == {"learned"}
    text = (tmp_path / "report.md").read_text("utf-8")
    assert f"| {MIDDLE}; teacher = learned | 2 |" in text
    assert "Still to run:" in text
    assert f"report: {tmp_path / 'report.md'}" in capsys.readouterr().out

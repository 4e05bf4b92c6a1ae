"""The study in the plane: the shipped results are its own, its report is that of the data."""

import json

import pytest

from slam_course.lesson_05 import students
from slam_course.results import read_toy_rows
from slam_edu.io import data_path
from slam_edu.training import TrainConfig
from studies.toy import __main__ as toy
from studies.toy import report
from studies.toy.groups import GROUPS, QUICK, Group
from studies.toy.runs import jobs, write

ROWS = read_toy_rows(data_path("study/runs.csv"))


def without_figures(text):
    """A report as it is written where no figure is drawn."""
    lines = [line for line in text.splitlines() if not line.startswith("![")]
    return [line for line in lines if line]


def test_no_run_of_the_study_is_missing_and_none_is_too_many():
    wanted, keys = jobs(list(GROUPS.values()), 8), {row.key for row in ROWS}
    assert len(wanted) == len({(job.setting, job.data, job.seed) for job in wanted})
    assert all(job.is_done(keys) for job in wanted)
    afters = {
        (job.setting, job.data, job.seed, after)
        for job in wanted
        for after in (*job.checkpoints, job.setting.updates)
    }
    assert keys == afters


def test_rows_are_written_as_they_were(tmp_path):
    write(tmp_path / "runs.csv", reversed(ROWS))
    assert (tmp_path / "runs.csv").read_bytes() == data_path("study/runs.csv").read_bytes()


def test_pairs_are_of_the_groups_own_settings():
    for group in (*GROUPS.values(), QUICK):
        assert {name for pair in group.pairs for name in pair} <= set(group.settings)
        assert group.pairs


def test_the_report_is_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "figures", lambda results, group: {})
    report.write_report(ROWS, list(GROUPS.values()), tmp_path)
    shipped = data_path("study/report.md").read_text("utf-8")
    # Made before the studies had a folder of their own.
    shipped = shipped.replace("slam_edu.toy.study", "studies.toy")
    shipped = shipped.replace("slam_edu/toy/study/report.py", "slam_course/results.py")
    written = (tmp_path / "report.md").read_text("utf-8")
    assert without_figures(written) == without_figures(shipped)


@pytest.fixture
def small(monkeypatch):
    """A study of seconds, in place of the quick one."""
    for name, value in (("POINTS", 200), ("ENERGY_POINTS", 100), ("MAP_POINTS", 10)):
        monkeypatch.setattr(students, name, value)
    monkeypatch.setattr(students, "INIT_TRAINING", TrainConfig(updates=3, batch=8))
    tiny = {"updates": 4, "width": 8, "depth": 2}
    settings = {name: QUICK.settings[name].replace(**tiny) for name in QUICK.settings}
    group = Group(
        name="quick", title="Small", settings=settings, pairs=QUICK.pairs, data=("ring",), seeds=2,
        checkpoints=(2,),
    )  # fmt: skip
    monkeypatch.setattr(toy, "QUICK", group)
    caches = (students.diffusion_model, students._solved, students.floor, report.floors)
    for cached in caches:
        cached.cache_clear()
    yield group
    for cached in caches:
        cached.cache_clear()


def test_a_study_goes_on_where_it_was_stopped(small, tmp_path, capsys):
    """All methods, the random hop and the other law of gamma among them."""
    out = tmp_path / "study"
    arguments = ["--quick", "--out", str(out), "--workers", "1"]
    assert toy.main([*arguments, "--seeds", "1"]) == 0
    first = read_toy_rows(out / "runs.csv")
    assert {row.after for row in first if row.setting.solver is None} == {2, 4}
    assert toy.main(arguments) == 0
    rows = read_toy_rows(out / "runs.csv")
    assert set(map(str, first)) < set(map(str, rows))
    before = (out / "runs.csv").read_bytes()
    assert toy.main(arguments) == 0
    assert (out / "runs.csv").read_bytes() == before
    assert len(json.loads((out / "study.json").read_text("utf-8"))) == 3
    text = (out / "report.md").read_text("utf-8")
    assert all(f"| {name} |" in text for name in small.settings)
    assert "Data sets: ring; 2 seeds." in text
    for name in ("quick_steps", "quick_ratios"):
        assert (out / f"{name}.png").stat().st_size > 1000
    assert f"report: {out / 'report.md'}" in capsys.readouterr().out

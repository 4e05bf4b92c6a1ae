"""The study: paired runs, its file, its statistics, its command."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from slam_edu.toy.study import command, plan, report, results, run, shipped
from slam_edu.toy.study.plan import CD, CONTINUED, GROUPS, QUICK, SLAM, Group, Job
from slam_edu.toy.study.results import Row
from slam_edu.toy.study.run import Setting

TINY = {"updates": 6, "batch": 16, "width": 8, "depth": 2, "init": "random"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The same measurements on few points; nothing of it is kept for other tests."""
    for name, n in (("POINTS", 200), ("ENERGY_POINTS", 100), ("MAP_POINTS", 20)):
        monkeypatch.setattr(run, name, n)
    monkeypatch.setattr(run, "PROJECTIONS", 8)
    monkeypatch.setattr(run, "INIT_TRAINING", dataclasses.replace(run.INIT_TRAINING, updates=5))
    for cached in (run._solved, run.floor, run.diffusion_model, report._floors):
        cached.cache_clear()
    yield
    for cached in (run._solved, run.floor, run.diffusion_model, report._floors):
        cached.cache_clear()


def rows(settings, data=("ring", "spiral"), seeds=3, value=lambda name, d, i: 1.0):
    return [
        Row(s, d, i, s.updates, {c: value(name, d, i) for c in run.columns()}, 1.0, 0)
        for name, s in settings.items() for d in data for i in range(seeds)
    ]  # fmt: skip


# -------------------------------------------------------------------- one run


def first_state(setting, **options):
    for _, student in run.train(setting.replace(**TINY | options), "ring", 0):
        return student
    return None


def test_methods_begin_alike_and_see_the_same_draws(monkeypatch):
    seen = {}
    step = run.SubPathDistiller.step

    def spy(self, x0, sample, **networks):
        weights = [p.detach().clone() for p in networks["student"].parameters()]
        seen.setdefault(self.config, []).append((x0, sample.index, sample.noise, weights))
        return step(self, x0, sample, **networks)

    monkeypatch.setattr(run.SubPathDistiller, "step", spy)
    settings = (CD, SLAM, CONTINUED, plan.SPREAD, plan.RANDOM_HOP)
    for setting in settings:
        for _ in run.train(setting.replace(**TINY), "ring", 3):
            pass
    runs = list(seen.values())
    assert len(runs) == len(settings)
    for other in runs[1:]:
        for (x0, index, noise, _), (x1, index1, noise1, _) in zip(runs[0], other, strict=True):
            assert torch.equal(x0, x1)
            assert torch.equal(index, index1)
            assert torch.equal(noise, noise1)
        assert all(map(torch.equal, runs[0][0][3], other[0][3]))


def test_the_student_begins_as_the_diffusion_model():
    setting = CD.replace(**TINY | {"init": "teacher", "lr": 1e-30})
    student = first_state(setting, init="teacher", lr=1e-30)
    model = run.diffusion_model("ring", 0, 8, 2, "v_prediction")
    for a, b in zip(student.network.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert any(p.abs().max() > 0 for p in model.output.parameters())


def test_a_learned_teacher_is_another_teacher():
    exact, learned = (
        [p.clone() for p in first_state(CD, teacher=t).network.parameters()]
        for t in ("exact", "learned")
    )
    assert not all(map(torch.equal, exact, learned))


def test_runs_repeat_and_seeds_differ():
    setting = SLAM.replace(**TINY)
    ((after, once),) = run.run(setting, "ring", 1)
    ((_, again),) = run.run(setting, "ring", 1)
    ((_, other),) = run.run(setting, "ring", 2)
    assert after == 6
    assert {k: v for k, v in once.items() if k != "seconds"} == {
        k: v for k, v in again.items() if k != "seconds"
    }
    assert once["sw_1"] != other["sw_1"]
    assert all(math.isfinite(once[c]) for c in run.columns())


def test_checkpoints_are_measured_on_the_way():
    found = dict(run.run(CD.replace(**TINY), "ring", 0, checkpoints=(2, 4)))
    assert list(found) == [2, 4, 6]
    assert found[2]["map_999"] != found[6]["map_999"]


def test_the_exact_student_would_have_no_error():
    points = run.reference("ring", 0)
    student = first_state(CD)

    class Exact:
        def predict(self, _network, x, t):
            assert torch.equal(x, points.x[t])
            return points.end[t] + torch.tensor([0.3, 0.4])

    found = run.error(dataclasses.replace(student, distiller=Exact()), points, 999)
    assert found == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("levels", ["t", "log_rho"])
@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m"])
def test_a_solver_uses_as_many_evaluations_as_it_says(method, levels, monkeypatch):
    points, calls = run.reference("ring", 0), []
    network = points.mixture.network

    def counted(*args):
        inner = network(*args)
        return lambda x, t, cond=None: calls.append(1) or inner(x, t, cond)

    monkeypatch.setattr(points.mixture, "network", counted, raising=False)
    drawn = run.teacher_samples(
        Setting(solver=method, levels=levels), points.mixture, points.noise
    )
    for steps in run.STEPS:
        calls.clear()
        assert drawn(steps).shape == points.noise.shape
        assert len(calls) == steps


def test_follow_sees_what_was_asked_for():
    updates = []
    student, moments = run.follow(
        CD.replace(**TINY), "ring", 0, (1, 6), updates.append, samples=50
    )
    assert updates == [1, 2, 3, 4, 5, 6]
    assert list(moments) == [1, 6]
    assert moments[6].samples.shape == (50, 2)
    points = run.reference("ring", 0)
    assert moments[6].errors == {t: run.error(student, points, t) for t in run.TIMES}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"solver": "magic"}, "solver is 'magic'"),
        ({"levels": "odd"}, "levels is 'odd'"),
        ({"init": "warm"}, "init is 'warm'"),
        ({"teacher": "other"}, "teacher is 'other'"),
        ({"gamma_input": "official"}, "gamma_input is 'official' with conditioning='level'"),
        ({"conditioning": "gamma"}, "gamma_input is None with conditioning='gamma'"),
        ({"width": 0}, "width is 0"),
        ({"subpaths": 0}, "subpaths is 0"),
        ({"lr": -1.0}, "lr is -1"),
    ],
)
def test_wrong_settings(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Setting(**change)


# -------------------------------------------------------------------- plan and file


def test_jobs_are_not_repeated_and_keep_all_checkpoints():
    small = Group("a", "a", {"CD": CD, "SLAM": SLAM}, [], ("ring",), seeds=2)
    more = dataclasses.replace(small, settings={"CD": CD}, seeds=3, checkpoints=(5,))
    found = plan.jobs([small, more], seeds=8)
    assert len(found) == 2 * 2 + 1
    assert Job(CD, "ring", 0, (5,)) in found
    assert Job(SLAM, "ring", 0) in found
    assert len(plan.jobs([small], seeds=1)) == 2
    keys = {(CD, "ring", 0, CD.updates)}
    assert Job(CD, "ring", 0).done(keys)
    assert not Job(CD, "ring", 0, (5,)).done(keys)


def test_every_pair_names_settings_of_its_group():
    for group in (*GROUPS.values(), QUICK):
        assert {name for pair in group.pairs for name in pair} <= set(group.settings)
    assert plan.CHOSEN_ON not in report.held_out(plan.MAIN)
    assert len(report.held_out(plan.MAIN)) >= 4
    assert plan.MAIN.seeds >= 8


def test_the_file_comes_back(tmp_path):
    odd = CONTINUED.replace(**TINY)
    made = rows({"a": odd, "b": CD}, value=lambda n, d, i: math.nan if i == 1 else 0.125)
    results.write(tmp_path / "runs.csv", reversed(made))
    back = results.read(tmp_path / "runs.csv")
    assert {row.key for row in back} == {row.key for row in made}
    by_key = {row.key: row for row in back}
    for row in made:
        for name, value in row.measured.items():
            got = by_key[row.key].measured[name]
            assert got == value or (math.isnan(got) and math.isnan(value))
    text = (tmp_path / "runs.csv").read_bytes()
    results.write(tmp_path / "runs.csv", back)
    assert (tmp_path / "runs.csv").read_bytes() == text
    assert results.read(tmp_path / "none.csv") == []


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "runs.csv"
    results.write(path, rows({"a": CD}))
    text = path.read_text()
    path.write_text(text.replace("ring,0,", "ring,zero,", 1))
    with pytest.raises(ValueError, match=r"runs.csv, line 2"):
        results.read(path)
    path.write_text("data,seed\nring,0\n")
    with pytest.raises(ValueError, match="other columns"):
        results.read(path)


# -------------------------------------------------------------------- statistics


def test_a_ratio_by_hand():
    rng = np.random.default_rng(0)
    table = {(n, d, i): rng.uniform(0.5, 2) for n in "ab" for d in ("ring", "spiral")
             for i in range(5)}  # fmt: skip
    made = rows({"a": SLAM, "b": CD}, seeds=5, value=lambda *key: table[key])
    ratio = report.Results(made).ratio(SLAM, CD, ("ring", "spiral"), "sw_2")
    logs = np.array(
        [np.mean([np.log(table["a", d, i] / table["b", d, i]) for d in ("ring", "spiral")])
         for i in range(5)]
    )  # fmt: skip
    low, high = stats.t.interval(0.95, 4, loc=logs.mean(), scale=stats.sem(logs))
    assert ratio.value == pytest.approx(math.exp(logs.mean()))
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert ratio.seeds == 5
    assert math.prod(ratio.by_data.values()) == pytest.approx(ratio.value**2)


def test_pairing_removes_what_seeds_share():
    made = rows(
        {"a": SLAM, "b": CD}, seeds=4, value=lambda n, d, i: (i + 1) * (0.8 if n == "a" else 1)
    )
    ratio = report.Results(made).ratio(SLAM, CD, ("ring", "spiral"), "sw_1")
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((0.8, 0.8, 0.8))
    assert str(ratio) == "0.80 [0.80, 0.80]"


def test_unpaired_runs_are_left_out_and_one_seed_has_no_interval():
    made = [row for row in rows({"a": SLAM, "b": CD}) if row.seed == 0 or row.setting == CD]
    found = report.Results(made)
    ratio = found.ratio(SLAM, CD, ("ring", "spiral"), "sw_1")
    assert ratio.seeds == 1
    assert math.isnan(ratio.low)
    assert str(ratio) == "1.00"
    with pytest.raises(ValueError, match="no seed was run"):
        found.ratio(SLAM, CONTINUED, ("ring",), "sw_1")


# -------------------------------------------------------------------- command


@pytest.fixture
def tiny_plan(monkeypatch):
    methods = {name: s.replace(**TINY) for name, s in plan.METHODS.items()}
    group = dataclasses.replace(
        QUICK, settings=methods | {"DDIM": Setting(solver="ddim")}, data=("ring", "two_moons")
    )
    monkeypatch.setattr(command, "QUICK", group)
    return group


def test_command_runs_resumes_and_reports(tiny_plan, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made" / "study"
    asked = []
    real = command.run_job
    monkeypatch.setattr(command, "run_job", lambda job: asked.append(job) or real(job))
    arguments = ["--quick", "--out", str(out), "--workers", "1"]
    assert command.main(arguments) == 0
    assert len(asked) == 2 * 2 * len(tiny_plan.settings)
    written = (out / "report.md").read_text(encoding="utf-8")
    assert "random hop / CD" in written
    for name in ("quick_steps.png", "quick_ratios.png"):
        assert name in written
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    first = results.read(out / "runs.csv")

    # A run that is missing is run again, and no other.
    results.write(out / "runs.csv", first[1:])
    asked.clear()
    assert command.main(arguments) == 0
    assert [(job.setting, job.data, job.seed) for job in asked] == [first[0].key[:3]]
    assert {r.key: r.measured["sw_1"] for r in results.read(out / "runs.csv")} == pytest.approx(
        {r.key: r.measured["sw_1"] for r in first}, rel=1e-4
    )
    assert (out / "study.json").exists()

    asked.clear()
    assert command.main([*arguments, "--report-only"]) == 0
    assert not asked


def test_an_interrupt_keeps_what_is_finished(tiny_plan, tmp_path, monkeypatch, capsys):
    real, asked = command.run_job, []

    def stops(job):
        asked.append(job)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(command, "run_job", stops)
    assert command.main(["--quick", "--out", str(tmp_path), "--workers", "1"]) == 130
    assert len(results.read(tmp_path / "runs.csv")) == 2
    assert "goes on from there" in capsys.readouterr().err


def test_a_bad_file_ends_the_command_with_a_sentence(tmp_path, capsys):
    (tmp_path / "runs.csv").write_text("nonsense\n")
    assert command.main(["--quick", "--out", str(tmp_path), "--report-only"]) == 2
    assert "other columns" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--seeds", "0"], ["--workers", "0"], ["--groups", "none"]])
def test_wrong_options(option, capsys):
    with pytest.raises(SystemExit):
        command.main(option)


# -------------------------------------------------------------------- what is shipped


def test_shipped_results_hold_the_claims():
    """The sentences of lesson 05 and the README, on the rows that are shipped."""
    found = report.Results(shipped())
    data = plan.HELD_OUT
    for metric in ("sw_1", "sw_2", "sw_4", *(f"map_{t}" for t in run.TIMES)):
        better = found.ratio(CONTINUED, CD, data, metric)
        worse = found.ratio(SLAM, CD, data, metric)
        assert better.seeds >= 8
        assert better.value < 0.9
        assert better.high < 1
        assert worse.low > 1


def test_shipped_rows_are_those_of_the_plan():
    keys = {row.key for row in shipped()}
    wanted = plan.jobs(list(GROUPS.values()), 8)
    assert all(job.done(keys) for job in wanted)

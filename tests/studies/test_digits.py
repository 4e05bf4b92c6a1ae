"""The studies of digits: shipped results are their own; a small study, stopped, and shipped."""

import json

import pytest
import torch

from slam_course.lesson_08.students import CD, HALF_ONE, OFFICIAL, RANDOM_HOP, SLAM, START
from slam_edu import NoiseSchedule
from slam_edu.digits import load_pipeline, load_student
from slam_edu.io import check_files, data_path
from slam_edu.sd import LatentDiffusion
from studies.digits import __main__ as digits
from studies.digits import jobs, report, teacher
from studies.digits.reference import fingerprint
from studies.digits.students import DISTILLERS, SETTINGS, StudentPlan, identity, short_names

SHIPPED = json.loads(data_path("digits-results/students.json").read_text("utf-8"))
TEACHER = json.loads(data_path("digits-results/teacher.json").read_text("utf-8"))
SMALL = StudentPlan(
    changes=("updates=2", "batch=2", "max_samples=8"), names=(CD, HALF_ONE), seeds=1, prompts=2,
    points=1, solver_steps=2, samplers=("ddim",),
)  # fmt: skip


def test_the_shipped_rows_are_those_of_the_plan(tmp_path):
    there = {jobs.key(row) for row in SHIPPED["rows"]}
    assert there == {job.key for job in jobs.jobs(StudentPlan(), tmp_path)}
    assert len(there) == len(SHIPPED["rows"])
    measured = {teacher.key(row) for row in TEACHER["rows"]}
    assert measured >= {teacher.key({"setting": vars(s)}) for s in teacher.settings()}


def test_the_shipped_results_are_of_the_shipped_weights():
    found = fingerprint(LatentDiffusion(load_pipeline()))
    assert found == SHIPPED["about"]["weights"] == TEACHER["weights"]


def test_the_report_is_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_figures", lambda plan, results, out: {})
    report.write_report(SHIPPED, tmp_path)
    written = (tmp_path / "report.md").read_text("utf-8")
    shipped = data_path("digits-results/students/report.md").read_text("utf-8")
    # Made before the studies had a folder of their own.
    shipped = shipped.replace("slam_edu.digits.students", "studies.digits")
    lines = [line for line in shipped.splitlines() if line and not line.startswith("![")]
    assert [line for line in written.splitlines() if line] == lines


def test_students_differ_in_their_method_alone():
    configs = {name: StudentPlan().config(name, 3) for name in SETTINGS}
    method = {"method", "conditioning", "coupling", "gammas", "reach", "gamma_input"}
    same = configs[CD].settings()
    for config in configs.values():
        assert {k for k, v in config.settings().items() if v != same[k]} <= method
    rows = [json.dumps(StudentPlan().settings(name)) for name in (*SETTINGS, START)]
    assert len(set(rows)) == len(rows)
    schedule = NoiseSchedule.stable_diffusion()
    x0 = torch.zeros(500, 4, 8, 8)
    for name, share in ((HALF_ONE, 0.5), (RANDOM_HOP, 0.0)):
        distiller = DISTILLERS[name](schedule, configs[name].distill())
        gamma = distiller.draw(x0, torch.Generator().manual_seed(0)).gamma
        assert (gamma == 1).float().mean().item() == pytest.approx(share, abs=0.1)


def test_names_may_be_given_in_part():
    assert short_names(["official", "level", CD]) == (OFFICIAL, SLAM, CD)
    with pytest.raises(ValueError, match="'consistency' fits 2 students; allowed: one of 'consis"):
        short_names(["consistency"])
    with pytest.raises(ValueError, match="points is 3; allowed: an integer from 1 to 2"):
        SMALL.replace(points=3)


def test_a_small_study_stopped_and_shipped(tmp_path, monkeypatch, capsys):
    """Stopped in the third row, it makes the others and no row twice; the student is stock."""
    monkeypatch.setattr(digits, "QUICK", SMALL)
    monkeypatch.setattr(report, "draw_grid", lambda *_: None)  # 200 network calls
    made, run = [], jobs.run_job

    def stopping(job):
        if len(made) == 2:
            raise KeyboardInterrupt
        return counting(job)

    def counting(job):
        made.append(job.key)
        return run(job)

    out = tmp_path / "study"
    arguments = ["--quick", "--out", str(out), "--workers", "1"]
    monkeypatch.setattr(jobs, "run_job", stopping)
    assert digits.main(arguments) == 130
    monkeypatch.setattr(jobs, "run_job", counting)
    assert digits.main(arguments) == 0
    assert jobs.run_missing(SMALL, out, 1) == []
    wanted = {job.key for job in jobs.jobs(SMALL, out)}
    assert len(made) == len(wanted) == len(set(made)) == 9
    content = json.loads((out / "students.json").read_text("utf-8"))
    assert {jobs.key(row) for row in content["rows"]} == wanted
    told = next(row["gamma"]["told"] for row in content["rows"] if row["name"] == HALF_ONE)
    assert told["1"].keys() == told["0.99"].keys()
    for name in ("calls", "map", "gamma", "loss"):
        assert f"]({name}.png)" in (out / "report.md").read_text("utf-8")
    found = [p for p in (out / "runs").iterdir() if p.name.startswith("slam-gamma-markov-half")]
    assert len(found) == 1

    to = tmp_path / "student"
    assert digits.main(["--out", str(out), "--ship", "half", "0", "--to", str(to)]) == 0
    check_files(to)
    about = json.loads((to / "training" / "config.json").read_text("utf-8"))
    assert (about["student"], about["gammas"]) == (HALF_ONE, "half_one")
    assert str(tmp_path) not in json.dumps(about)
    pipeline = load_student(to)
    assert pipeline.unet.config.time_cond_proj_dim is None  # gamma = 1 is folded in
    assert pipeline("a two", num_inference_steps=1, guidance_scale=1.0).images[0].size == (32, 32)
    assert digits.main(["--out", str(out), "--ship", "official", "0", "--to", str(to)]) == 2
    assert "is not among the results; allowed: no seed yet" in capsys.readouterr().err
    same = identity(SMALL.config(HALF_ONE, 0, out))
    assert same == identity(SMALL.config(HALF_ONE, 0))


def test_the_teachers_table(capsys):
    assert teacher.main([]) == 0
    printed = capsys.readouterr().out
    assert "| DDIM | 50 | 2 | 100 | 0.9980 |" in printed
    assert printed.count("| DPM-Solver++ 2M |") == 5
    with pytest.raises(SystemExit):
        teacher.main(["--run"])


def test_a_teachers_table_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "teacher.json"
    few = teacher.settings()[:1] + teacher.settings()[-2:]
    monkeypatch.setattr(
        teacher, "part_scores", lambda model, evaluator: {"psnr": 1.0, "digit": 1.0}
    )
    for n in (1, 3):
        monkeypatch.setattr(teacher, "settings", lambda n=n: few[-n:])
        assert teacher.main(["--run", "--results", str(path), "--count", "2"]) == 0
        assert len(json.loads(path.read_text("utf-8"))["rows"]) == n
    assert teacher.main(["--run", "--results", str(path), "--count", "3"]) == 2

"""The workflows for GitHub: complete, pinned, and made of commands that exist."""

import re
import shlex

import pytest
import yaml
from packaging.requirements import Requirement

from tests.tools.test_bootstrap import checkout, commands  # noqa: F401 -- fixtures
from tests.tools.test_environment import PYPROJECT, PYTHONS, requirements
from tools import bootstrap
from tools.bootstrap import ROOT, Problem

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
RUNNERS = {"ubuntu-latest", "macos-latest", "windows-latest"}
KEYS = {"name", "on", "permissions", "concurrency", "env", "jobs", "defaults"}
JOB_KEYS = {"name", "runs-on", "timeout-minutes", "strategy", "env", "steps", "needs", "if",
            "permissions", "environment", "outputs", "concurrency", "defaults"}  # fmt: skip
STEP_KEYS = {"name", "id", "if", "uses", "with", "run", "env", "shell", "working-directory"}
# What a `${{ … }}` may begin with here; `secrets` is not among them.
CONTEXTS = {"github", "matrix", "steps", "needs", "runner", "env"}


def read(path):
    """A workflow; YAML takes the key `on` for true."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in workflow.items()}


WORKFLOWS = {path.name: read(path) for path in FILES}
JOBS = [
    pytest.param(workflow, job, id=f"{name}:{key}")
    for name, workflow in WORKFLOWS.items()
    for key, job in workflow["jobs"].items()
]


def steps(job, key):
    return [step[key] for step in job["steps"] if key in step]


def bootstrap_commands(job):
    """The arguments of every call of tools/bootstrap.py or of make."""
    for text in steps(job, "run"):
        for line in text.splitlines():
            match = re.search(r"tools/bootstrap\.py (.+)", line)
            if match:
                yield shlex.split(re.sub(r"\$\{\{.*?\}\}", "x", match[1]))


def test_there_are_two_workflows_of_tests():
    assert {"ci.yml", "weekly.yml"} <= set(WORKFLOWS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_says_what_it_needs(path):
    text, workflow = path.read_text(encoding="utf-8"), read(path)
    assert set(workflow) <= KEYS
    assert {"name", "on", "permissions", "jobs"} <= set(workflow)
    assert "secrets" not in text
    for expression in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", text):
        assert expression.split(".")[0] in CONTEXTS, expression
    assert set(workflow["on"]) <= {"push", "pull_request", "workflow_dispatch", "schedule"}


@pytest.mark.parametrize("name", ["ci.yml", "weekly.yml"])
def test_tests_may_read_and_nothing_else(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    for job in WORKFLOWS[name]["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 120  # GitHub's own limit is six hours


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_a_job_is_well_formed(workflow, job):
    assert set(job) <= JOB_KEYS
    matrix = job.get("strategy", {}).get("matrix", {})
    runner = job["runs-on"]
    assert set(matrix["system"] if runner == "${{ matrix.system }}" else [runner]) <= RUNNERS
    assert 5 <= job.get("timeout-minutes", 360) <= 360
    needs = job.get("needs", [])
    assert set([needs] if isinstance(needs, str) else needs) <= set(workflow["jobs"])
    used = set(re.findall(r"matrix\.([\w-]+)", yaml.safe_dump(job)))
    assert used == set(matrix)
    for step in job["steps"]:
        assert set(step) <= STEP_KEYS
        assert ("uses" in step) != ("run" in step)


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_actions_are_pinned_to_a_major_version(workflow, job):
    for action in steps(job, "uses"):
        assert re.fullmatch(r"actions/[\w-]+@v\d+", action), action
    for step in job["steps"]:
        for name in step.get("with", {}).get("cache-dependency-path", "").split():
            assert (ROOT / name).is_file()
        if step.get("uses", "").startswith("actions/setup-python@"):
            assert step["with"].get("cache", "pip") == "pip"
            python = step["with"]["python-version"]
            assert python == "${{ matrix.python }}" or python in PYTHONS


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_commands_exist(workflow, job):
    known = {step.name for step in bootstrap.test_steps(2, True)}
    for arguments in bootstrap_commands(job):
        options, rest = bootstrap.parser().parse_known_args(arguments)
        assert options.command
        assert rest == []
        if options.command == "test":
            assert options.only
            assert set(options.only.split(",")) <= known
    for name in re.findall(r"(?<=\s)(?:\.github/)?[\w./-]+\.(?:in|toml)\b", all_runs(job)):
        assert (ROOT / name).is_file(), name


def all_runs(job):
    return " ".join(steps(job, "run"))


def test_python_is_the_classifiers_and_every_step_runs_somewhere():
    classifiers = PYPROJECT["project"]["classifiers"]
    wanted = [line.rsplit(" ", 1)[1] for line in classifiers if re.search(r":: 3\.\d+$", line)]
    jobs = WORKFLOWS["ci.yml"]["jobs"]
    assert jobs["python"]["strategy"]["matrix"]["python"] == wanted == list(PYTHONS)
    ran = set()
    for job in jobs.values():
        for arguments in bootstrap_commands(job):
            ran |= set(arguments[arguments.index("--only") + 1].split(","))
    assert ran == {step.name for step in bootstrap.test_steps(2, True)}


def test_macos_and_windows_run_the_unit_tests():
    job = WORKFLOWS["ci.yml"]["jobs"]["systems"]
    assert job["strategy"]["matrix"]["system"] == ["macos-latest", "windows-latest"]
    assert list(bootstrap_commands(job)) == [["test", "--only", "lint,unit"]]


def test_the_oldest_versions_are_resolved_from_the_bounds():
    job = WORKFLOWS["ci.yml"]["jobs"]["oldest"]
    [compiled] = [text for text in steps(job, "run") if text.startswith("uv pip compile")]
    assert "--resolution lowest-direct" in compiled
    assert f"--output-file {job['env']['SLAM_EDU_CONSTRAINTS']} pyproject.toml" in compiled
    assert re.findall(r"--extra (\w+)", compiled) == ["course", "sd", "data"]
    # The bounds themselves are the only list of versions.
    bounds = {item.name for _, item in requirements()}
    lines = (ROOT / ".github" / "oldest.in").read_text(encoding="utf-8").splitlines()
    named = {Requirement(line.split("#")[0]).name for line in lines if line.split("#")[0].strip()}
    assert {"torch", "diffusers"} <= bounds
    assert not named & bounds


@pytest.mark.parametrize("name", ["ci.yml", "weekly.yml"])
def test_the_newest_versions_are_not_constrained(name):
    workflow = WORKFLOWS[name]
    jobs = workflow["jobs"].values()
    for job in jobs if name == "weekly.yml" else [workflow["jobs"]["newest"]]:
        file = {**workflow.get("env", {}), **job.get("env", {})}["SLAM_EDU_CONSTRAINTS"]
        assert f"touch {file}" in steps(job, "run")


def test_once_a_week():
    [entry] = WORKFLOWS["weekly.yml"]["on"]["schedule"]
    minute, hour, day, month, weekday = entry["cron"].split()
    assert (day, month) == ("*", "*")
    assert minute.isdigit()
    assert hour.isdigit()
    assert weekday in "0123456"


# The bootstrap's part in it


def test_other_constraints_can_be_installed(checkout, commands, monkeypatch):  # noqa: F811
    usual = bootstrap.fingerprint(checkout)
    (checkout / "oldest.txt").write_text("torch==2.4.0\n")
    monkeypatch.setenv("SLAM_EDU_CONSTRAINTS", "oldest.txt")
    assert bootstrap.fingerprint(checkout) != usual
    bootstrap.setup(["course"])
    installs = [command for command in commands if "install" in command]
    assert len(installs) == 2
    for command in installs:
        assert command[command.index("-c") + 1] == "oldest.txt"
    # Other versions than those that the stamp is about: they are installed again.
    monkeypatch.delenv("SLAM_EDU_CONSTRAINTS")
    assert not bootstrap.is_current(bootstrap.read_stamp(bootstrap.VENV), checkout, ["course"])


def test_constraints_that_are_not_there_are_named(checkout, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SLAM_EDU_CONSTRAINTS", "none.txt")
    with pytest.raises(Problem, match=r"'none\.txt' names no file"):
        bootstrap.setup(["course"])


def test_what_runs_inside_does_not_see_them(monkeypatch):
    monkeypatch.setenv("SLAM_EDU_CONSTRAINTS", "oldest.txt")
    assert "SLAM_EDU_CONSTRAINTS" not in bootstrap.clean_environment()

"""tools/bootstrap.py: what it says where something is missing, and when it has nothing to do.

Nothing is installed here; a whole `make lab` is what CI's fresh clone does.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tools import bootstrap
from tools.bootstrap import Problem

SOURCE = Path(bootstrap.__file__).read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout in a folder with a space."""
    root = tmp_path / "a path with space" / "slam_edu"
    root.mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).write_text(f"# {name}\n")
    venv = root / ".venv"
    places = {"ROOT": root, "VENV": venv, "PYTHON": venv / "bin" / "python"}
    places |= {
        name: venv / getattr(bootstrap, name).name for name in ("STAMP", "UNFINISHED", "LOG")
    }
    for name, value in places.items():
        monkeypatch.setattr(bootstrap, name, value)
    monkeypatch.setattr(bootstrap, "check_disk", lambda cpu: None)
    return root


@pytest.fixture
def commands(checkout, monkeypatch):
    """Commands that setup() runs, recorded in place of running them.

    `fails` says which call of pip ends with an error, from 0, `log` what it logs then, `status`
    its exit status, and `version` which Python .venv has.
    """

    class Commands(list):
        fails, log, status, version = None, "", 1, sys.version_info[:2]

        @property
        def pips(self):
            return [command for command in self if command[1:3] == ["-m", "pip"]]

    done = Commands()

    def call(command, **options):
        done.append(command)
        if command[1:3] == ["-m", "venv"]:
            shutil.rmtree(command[-1], ignore_errors=True)  # as `venv --clear` does
            bootstrap.PYTHON.parent.mkdir(parents=True)
            bootstrap.PYTHON.touch()
            (bootstrap.VENV / "pyvenv.cfg").touch()
            done.version = sys.version_info[:2]
        elif done.pips and done.fails == len(done.pips) - 1:
            bootstrap.LOG.write_text(done.log)
            return done.status
        return 0

    def version(command, **options):
        if not bootstrap.PYTHON.exists():
            raise OSError
        return "{} {}".format(*done.version).encode()

    monkeypatch.setattr(subprocess, "call", call)
    monkeypatch.setattr(subprocess, "check_output", version)
    return done


def setup(*extras):
    return bootstrap.main(["setup", "--extras", ",".join(extras)])


def test_an_old_python_is_told_what_to_do(monkeypatch):
    """It can read the file, which needs the standard library alone."""
    tree = ast.parse(SOURCE, feature_version=(3, 6))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names - {"__future__"}
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(shutil, "which", {"python3.12": "/usr/bin/python3.12"}.get)
    with pytest.raises(SystemExit) as caught:
        exec(compile(SOURCE, "bootstrap.py", "exec"), {"__file__": bootstrap.__file__})
    text = str(caught.value)
    assert "too old a Python" in text
    assert "python3.12 is installed here: run `PYTHON=python3.12 make lab`" in text


def test_set_up_installs_pinned_and_once(checkout, commands, monkeypatch):
    assert setup("course") == 0
    first, second = commands.pips
    assert first[-4:] == ["-c", "constraints.txt", "hatchling", "editables"]
    assert second[-5:] == ["-c", "constraints.txt", "--no-build-isolation", "-e", ".[course]"]
    assert setup("course") == 0
    assert len(commands.pips) == 2
    # More extras are added, and none is taken away.
    setup("sd")
    assert commands[-1][-1] == ".[course,sd]"
    setup("test")
    assert commands[-1][-1] == ".[course,data,sd,site,teach,test]"
    # With other line ends a checkout is the same; with another text or in another place it is not.
    count = len(commands)
    path = checkout / "pyproject.toml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    setup("course")
    assert len(commands) == count
    for change in (
        lambda: path.write_text("# other\n"),
        lambda: bootstrap.STAMP.write_text("{dam"),
        lambda: bootstrap.STAMP.write_text(json.dumps({"extras": ["course"]})),
    ):
        change()
        setup("course")
        assert len(commands) > count
        count = len(commands)


@pytest.mark.parametrize(
    ("call", "log", "sentence"),
    [
        (0, "OSError: [Errno 28] No space left on device", "the disk is full"),
        (1, "NewConnectionError: x\nNo matching distribution found for x", "could not be reached"),
        (1, "ERROR: No matching distribution found for torch==2.13", "no torch==2.13 that fits"),
        (0, "something else", "its own words are above"),
    ],
)
def test_a_failed_install_is_one_sentence_and_is_gone_on_with(
    commands, capsys, call, log, sentence
):
    commands.fails, commands.log = call, log
    assert setup("course") == 2
    assert sentence in capsys.readouterr().err
    site = bootstrap.VENV / "lib" / "python3" / "site-packages"
    for name in ("half-1.dist-info", "whole-1.dist-info"):
        (site / name).mkdir(parents=True)
    (site / "whole-1.dist-info" / "RECORD").touch()
    commands.fails = None
    assert setup("course") == 0
    assert "going on with an interrupted install" in capsys.readouterr().out
    assert [path.name for path in site.iterdir()] == ["whole-1.dist-info"]
    assert not bootstrap.UNFINISHED.exists()


def test_another_python_replaces_the_environment_only_when_asked_for(commands, capsys):
    setup("course")
    commands.version = (3, 99)
    bootstrap.STAMP.unlink()
    setup("course")
    assert sum("venv" in command for command in commands) == 1
    assert bootstrap.main(["setup", "--this-python"]) == 0
    assert sum("venv" in command for command in commands) == 2
    commands.version = (3, 9)  # too old: replaced in any case
    bootstrap.STAMP.unlink()
    setup("course")
    assert sum("venv" in command for command in commands) == 3


def test_the_cpu_switch_adds_pytorchs_own_index(commands):
    assert bootstrap.main(["setup", "--cpu"]) == 0
    assert commands.pips[1][-3:] == ["--extra-index-url", bootstrap.CPU_INDEX, "torch"]


def test_problems_are_one_sentence(checkout, commands, monkeypatch, capsys):
    def fails(sentence, *arguments):
        assert bootstrap.main(arguments or ["setup"]) == 2
        assert sentence in capsys.readouterr().err

    fails("no such extra: cuorse; choose among course, sd", "setup", "--extras=cuorse")
    fails("no such step: units; choose among lint, unit", "test", "--only", "lint,units")
    monkeypatch.setenv("SLAM_EDU_JOBS", "0")
    fails("SLAM_EDU_JOBS must be a whole number from 1 on", "test")
    monkeypatch.setenv("SLAM_EDU_CONSTRAINTS", "none.txt")
    fails("'none.txt' names no file")
    monkeypatch.delenv("SLAM_EDU_CONSTRAINTS")
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: name != "ensurepip")
    fails("no ensurepip module")
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "mine").touch()
    fails("is no virtual environment")
    assert commands == []


@pytest.mark.parametrize(("cpu", "fits", "free"), [(False, 13, 9), (True, 4, 3)])
def test_too_little_disk_is_said_before(tmp_path, monkeypatch, cpu, fits, free):
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap.platform, "system", lambda: "Linux")
    disk = types.SimpleNamespace(free=fits * 1e9)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda place: disk)
    bootstrap.check_disk(cpu)
    disk.free = free * 1e9
    with pytest.raises(Problem, match=f"needs .* GB, and {free}.0 GB are free") as caught:
        bootstrap.check_disk(cpu)
    assert ("CPU=1" in str(caught.value)) == (not cpu)
    monkeypatch.setenv("SLAM_EDU_SKIP_DISK_CHECK", "1")
    bootstrap.check_disk(cpu)


def test_what_runs_inside_is_kept_apart_and_lab_keeps_its_token(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/opt/ros")
    monkeypatch.setenv("PIP_USER", "1")
    assert not {"PYTHONPATH", "PIP_USER"} & set(bootstrap.clean_environment())
    command = bootstrap.lab_command(Path("python"), Path("/a b"), bootstrap.START, [])
    assert "--ServerApp.ip=127.0.0.1" in command
    assert f"--LabApp.default_url=/lab/tree/{bootstrap.START}" in command
    assert not any("token" in part or "password" in part for part in command)


@pytest.mark.parametrize("failing", ["lint", "tests", None])
def test_a_failure_is_named_and_ends_nothing(commands, monkeypatch, capsys, failing):
    ran = []

    def run_inside(arguments, **environ):
        ran.append("lint" if "tools.lint" in arguments else "tests")
        return int(ran[-1] == failing)

    monkeypatch.setattr(bootstrap, "setup", lambda *_: None)
    monkeypatch.setattr(bootstrap, "run_inside", run_inside)
    assert bootstrap.main(["test"]) == bool(failing)
    assert ran == ["lint", "tests"]
    assert (f"FAILED: {failing}" if failing else "ALL OK") in capsys.readouterr().out


def test_a_browser_is_found(monkeypatch, tmp_path):
    chosen = tmp_path / "chrome"
    chosen.touch(mode=0o755)
    monkeypatch.setenv("CHROMIUM", str(chosen))
    assert bootstrap.find_browser() == str(chosen)
    monkeypatch.setenv("CHROMIUM", "no-such-browser")
    with pytest.raises(Problem, match="names no file and no command"):
        bootstrap.find_browser()
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setattr(shutil, "which", {"google-chrome": "/usr/bin/google-chrome"}.get)
    assert bootstrap.find_browser() == "/usr/bin/google-chrome"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no make")
def test_make_passes_its_switches_on():
    def make(*arguments):
        command = ["make", "-n", *arguments]
        return subprocess.run(command, cwd=bootstrap.ROOT, capture_output=True, text=True).stdout

    assert "tools/bootstrap.py lab --cpu --this-python" in make("lab", "CPU=1", "PYTHON=python3")
    assert 'tools/bootstrap.py test  --only "lint,unit"' in make("test", "ONLY=lint,unit")
    made = make("class", "FOLDER=a b", "ARGS=--lessons=01")
    assert 'bootstrap.py class  "a b" --lessons=01' in made
    assert 'tools.set_address "https://x.org/a/b"' in make("address", "URL=https://x.org/a/b")
    assert 'there is no "python3.no" on this machine' in make("lab", "PYTHON=python3.no")

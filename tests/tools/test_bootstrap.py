"""tools/bootstrap.py: what it says where something is missing, and when it has nothing to do.

Nothing is installed here; a whole `make lab` is what CI's fresh clone does.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.conftest import SLOW, pytest_collection_modifyitems
from tools import bootstrap
from tools.bootstrap import Problem, Result

SOURCE = Path(bootstrap.__file__).read_text(encoding="utf-8")
MAKEFILE = (bootstrap.ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout in a folder with a space, and a record of every command that would run."""
    root = tmp_path / "a path with space" / "slam_edu"
    root.mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).write_text(f"# {name}\n")
    monkeypatch.setattr(bootstrap, "ROOT", root)
    monkeypatch.setattr(bootstrap, "VENV", root / ".venv")
    monkeypatch.setattr(bootstrap, "venv_python", lambda *_: root / ".venv" / "bin" / "python")
    monkeypatch.setattr(bootstrap, "check_disk", lambda cpu: None)
    return root


@pytest.fixture
def commands(checkout, monkeypatch):
    """Commands that setup() runs, recorded in place of running them.

    `fails` says which pip call (from 0) ends with an error, `log` what it logs then, and `version`
    which Python .venv has.
    """

    class Commands(list):
        fails = None
        log = ""
        version = sys.version_info[:2]

    done = Commands()

    def run(command, **options):
        done.append(command)
        status, out = 0, ""
        if command[1:3] == ["-m", "venv"]:
            venv = Path(command[-1])
            shutil.rmtree(venv, ignore_errors=True)  # as `venv --clear` does
            (venv / "bin").mkdir(parents=True)
            (venv / "bin" / "python").touch()
            (venv / "pyvenv.cfg").touch()
            done.version = sys.version_info[:2]
        elif command[1] == "-c":
            out = "{} {}".format(*done.version)
        elif "pip" in command:
            pips = [item for item in done if "pip" in item and item[1] == "-m"]
            if done.fails == len(pips) - 1:
                status = 1
                Path(command[command.index("--log") + 1]).write_text(done.log)
        return subprocess.CompletedProcess(command, status, stdout=out)

    monkeypatch.setattr(subprocess, "run", run)
    return done


def pip_calls(commands):
    return [command for command in commands if command[1:3] == ["-m", "pip"]]


# ---------------------------------------------------------------------------------------------
# What the machine lacks
# ---------------------------------------------------------------------------------------------


def test_an_old_python_can_read_the_file():
    ast.parse(SOURCE, feature_version=(3, 6))
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        node.module.split(".")[0]
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.ImportFrom)
    }
    assert names <= sys.stdlib_module_names
    assert "__future__" not in names  # `annotations` is a syntax error before Python 3.7


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 9, 2), (2, 7, 18)])
def test_too_old_a_python_is_named(version):
    text = bootstrap.python_problem(version, "/usr/bin/python3", [])
    found = ".".join(map(str, version))
    assert text.startswith(
        f"too old a Python: found {found} at /usr/bin/python3, need 3.10 or newer."
    )
    assert "PYTHON=python3.12 make lab" in text


def test_a_newer_python_on_the_path_is_suggested():
    text = bootstrap.python_problem((3, 6, 15), "/usr/bin/python3", ["python3.13", "python3.11"])
    assert "python3.13 is installed here: run `PYTHON=python3.13 make lab`." in text


def test_newer_pythons_must_run_and_be_supported():
    working = {"python3.9", "python3.10", "python3.12", "python3.14"}
    assert bootstrap.newer_pythons(working.__contains__) == ["python3.12", "python3.10"]
    assert bootstrap.runs(sys.executable)
    assert not bootstrap.runs("python3.no-such-version")


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 11, 7), (3, 13, 0), (4, 0, 0)])
def test_a_python_that_is_new_enough(version):
    assert bootstrap.python_problem(version, "python3", []) is None


def test_an_old_python_stops_every_command_that_installs(checkout, commands, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    for command in (
        "lab",
        "test",
        "setup",
        "lint",
        "editions",
        "class",
        "wheel",
        "notebooks",
        "constraints",
        "address",
    ):
        assert bootstrap.main([command]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: too old a Python: found 3.9.2 at ")
        assert "Traceback" not in error
    assert commands == []


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_a_python_without_venv_names_the_package(missing):
    text = bootstrap.venv_problem((3, 11, 2), lambda name: name != missing)
    assert f"no {missing} module" in text
    assert "sudo apt install python3-venv" in text
    assert "python3.11-venv" in text
    assert bootstrap.venv_problem((3, 11, 2), lambda name: True) is None


def test_no_venv_is_made_without_the_module(checkout, commands, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "has_module", lambda name: name != "ensurepip")
    assert bootstrap.main(["setup"]) == 2
    assert "python3-venv" in capsys.readouterr().err
    assert commands == []
    assert not (checkout / ".venv").exists()


def disk(kind="cuda", there=0.0, has_gpu=True, disks=(1, 2, 3), free=(100.0, 100.0, 100.0)):
    """disk_problem with .venv, temporary files and cache on the disks given."""
    places = dict(zip(bootstrap.PLACES, zip(disks, free, strict=True), strict=True))
    return bootstrap.disk_problem(kind, there, places, has_gpu)


@pytest.mark.parametrize("kind", bootstrap.SPACE)
def test_enough_disk_is_no_problem(kind):
    need = tuple(bootstrap.SPACE[kind][place] for place in bootstrap.PLACES)
    assert disk(kind, free=need) is None
    assert disk(kind, disks=(1, 1, 1), free=(sum(need),) * 3) is None
    for index in range(3):
        free = [*need]
        free[index] -= 0.1
        assert disk(kind, free=free).count("GB for") == 1


def test_too_little_disk_states_need_and_free_space():
    text = disk(free=(3.21, 100, 100))
    assert text.startswith(
        "too little disk space: the install needs 6.5 GB for .venv, where 3.2 GB are free."
    )
    assert "SLAM_EDU_SKIP_DISK_CHECK=1" in text
    text = disk(free=(3.21, 1.0, 100))
    assert "; 3.0 GB for temporary files (TMPDIR moves them), where 1.0 GB are free." in text


def test_one_disk_must_hold_all_that_is_on_it():
    """A home disk with .venv and the cache, and a small /tmp in memory, as Debian 13 has it."""
    text = disk(disks=(1, 2, 1), free=(9.0, 4.0, 9.0))
    assert "9.5 GB for .venv and pip's cache" in text
    assert "temporary" not in text
    assert "12.5 GB for .venv and temporary files" in disk(disks=(1, 1, 1), free=(12.0,) * 3)


def test_what_is_there_already_counts():
    assert disk(free=(5.0, 100, 100))
    assert disk(free=(5.0, 100, 100), there=4.0) is None


def test_without_a_gpu_the_small_build_is_suggested():
    short = (3.0, 100, 100)
    assert "`make lab CPU=1` installs PyTorch's CPU build, which needs 3.4 GB in all" in disk(
        free=short, has_gpu=False
    )
    assert "CPU=1" not in disk(free=short, has_gpu=True)
    assert "CPU=1" not in disk("cpu", free=(1.0, 100, 100), has_gpu=False)


def test_where_pip_keeps_its_cache(tmp_path):
    def cache(**environ):
        return str(bootstrap.pip_cache(environ, Path("home")))

    assert cache(PIP_CACHE_DIR="a", XDG_CACHE_HOME="b") == "a"
    assert cache(LOCALAPPDATA="c") == "c"
    assert cache(XDG_CACHE_HOME="b") == "b"
    assert cache() == "home"
    # A cache that does not exist yet will be on the disk of the folder above it.
    assert bootstrap.disk_of(tmp_path / "no" / "such")[0] == os.stat(tmp_path).st_dev


@pytest.mark.parametrize(
    ("system", "cpu", "kind"),
    [
        ("Linux", False, "cuda"),
        ("Linux", True, "cpu"),
        ("Windows", False, "cpu"),
        ("Darwin", False, "cpu"),
    ],
)
def test_which_torch_pip_brings(system, cpu, kind):
    assert bootstrap.torch_kind(cpu, system) == kind


def test_the_disk_check_can_be_overruled(monkeypatch):
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: usage)
    monkeypatch.delenv("SLAM_EDU_SKIP_DISK_CHECK", raising=False)
    with pytest.raises(Problem, match="too little disk space"):
        bootstrap.check_disk(cpu=True)
    monkeypatch.setenv("SLAM_EDU_SKIP_DISK_CHECK", "1")
    bootstrap.check_disk(cpu=True)


def test_folder_size(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "big").write_bytes(b"x" * 3_000_000)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "big")
    assert bootstrap.folder_size(tmp_path) == pytest.approx(0.003, abs=1e-5)
    assert bootstrap.folder_size(tmp_path / "none") == 0


# ---------------------------------------------------------------------------------------------
# Installing
# ---------------------------------------------------------------------------------------------


def test_the_first_set_up_installs_pinned(checkout, commands, capsys):
    python = bootstrap.setup(["course"])
    assert commands[0][1:3] == ["-m", "venv"]
    assert commands[0][-1] == str(checkout / ".venv")  # one argument, its spaces and all
    tools, course = pip_calls(commands)
    assert tools[-4:] == ["-c", "constraints.txt", "hatchling", "editables"]
    assert course[-5:] == ["-c", "constraints.txt", "--no-build-isolation", "-e", ".[course]"]
    assert all(command[0] == str(python) for command in (tools, course))
    assert not (checkout / ".venv" / bootstrap.UNFINISHED).exists()


def test_the_second_set_up_does_nothing(checkout, commands):
    bootstrap.setup(["course"])
    commands.clear()
    bootstrap.setup(["course"])
    assert commands == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_an_edit_of_what_is_wanted_installs_again(checkout, commands, name):
    bootstrap.setup(["course"])
    commands.clear()
    (checkout / name).write_text("# edited\n")
    bootstrap.setup(["course"])
    assert len(pip_calls(commands)) == 2
    assert not any(command[1:3] == ["-m", "venv"] for command in commands)


def test_line_ends_are_no_edit(checkout, commands):
    bootstrap.setup(["course"])
    commands.clear()
    path = checkout / "pyproject.toml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    bootstrap.setup(["course"])
    assert commands == []


def test_more_extras_are_added_and_fewer_are_not_taken_away(checkout, commands):
    bootstrap.setup(["course"])
    bootstrap.setup(["test"])
    assert pip_calls(commands)[-1][-1] == ".[course,data,sd,site,teach,test]"
    commands.clear()
    bootstrap.setup(["course"])  # `make lab` after `make test`
    bootstrap.setup(["sd"])
    assert commands == []
    (checkout / "pyproject.toml").write_text("# edited\n")
    bootstrap.setup(["course"])
    assert pip_calls(commands)[-1][-1] == ".[course,data,sd,site,teach,test]"


def test_a_moved_checkout_is_installed_again(checkout, commands, monkeypatch):
    bootstrap.setup(["course"])
    moved = checkout.with_name("moved")
    checkout.rename(moved)
    monkeypatch.setattr(bootstrap, "ROOT", moved)
    monkeypatch.setattr(bootstrap, "VENV", moved / ".venv")
    monkeypatch.setattr(bootstrap, "venv_python", lambda *_: moved / ".venv" / "bin" / "python")
    commands.clear()
    bootstrap.setup(["course"])
    assert len(pip_calls(commands)) == 2


@pytest.mark.parametrize("stamp", ["", "[]", "{", '"text"', "{}"])
def test_a_damaged_stamp_installs_again(checkout, commands, stamp):
    bootstrap.setup(["course"])
    (checkout / ".venv" / bootstrap.STAMP).write_text(stamp)
    commands.clear()
    bootstrap.setup(["course"])
    assert len(pip_calls(commands)) == 2


def test_the_stamp_records_what_it_must(checkout, commands):
    bootstrap.setup(["test"])
    stamp = json.loads((checkout / ".venv" / bootstrap.STAMP).read_text())
    assert stamp == {
        "sha256": bootstrap.fingerprint(checkout),
        "root": str(checkout),
        "extras": ["course", "data", "sd", "site", "teach", "test"],
    }


@pytest.mark.parametrize("call", [0, 1])
def test_a_failed_install_is_not_taken_for_a_finished_one(checkout, commands, call, capsys):
    commands.fails = call
    with pytest.raises(Problem):
        bootstrap.setup(["course"])
    commands.fails = None
    commands.clear()
    bootstrap.setup(["course"])
    assert len(pip_calls(commands)) == 2
    assert not any(command[1:3] == ["-m", "venv"] for command in commands)  # what is there is kept
    assert "going on with an interrupted install" in capsys.readouterr().out


def test_half_installed_packages_are_removed(tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, complete in (("whole-1.0", True), ("half-2.0", False)):
        (site / f"{name}.dist-info").mkdir(parents=True)
        (site / f"{name}.dist-info" / "METADATA").touch()
        if complete:
            (site / f"{name}.dist-info" / "RECORD").touch()
    (site / "~orch").mkdir()
    (site / "half").mkdir()
    assert bootstrap.drop_unfinished_packages(tmp_path) == ["half-2.0", "~orch"]
    assert sorted(path.name for path in site.iterdir()) == ["half", "whole-1.0.dist-info"]


def test_the_cpu_switch_adds_pytorchs_own_index(checkout, commands):
    bootstrap.setup(["course"], cpu=True)
    tools, torch, course = pip_calls(commands)
    assert torch[-3:] == ["--extra-index-url", bootstrap.CPU_INDEX, "torch"]
    assert bootstrap.CPU_INDEX not in tools + course  # nothing else comes from there


def test_another_python_replaces_the_environment_only_when_asked_for(checkout, commands, capsys):
    bootstrap.setup(["course"])
    commands.version = (3, 99)
    commands.clear()
    bootstrap.setup(["course"])
    assert commands == []
    bootstrap.setup(["course"], exact=True)
    assert "replacing .venv: it has Python 3.99" in capsys.readouterr().out
    assert [command[1:4] for command in commands if "venv" in command] == [
        ["-m", "venv", "--clear"]
    ]
    assert len(pip_calls(commands)) == 2


@pytest.mark.parametrize("version", [(3, 9), (2, 7)])
def test_an_environment_of_too_old_a_python_is_replaced(checkout, commands, version):
    bootstrap.setup(["course"])
    (checkout / "pyproject.toml").write_text("# edited\n")
    commands.version = version
    commands.clear()
    bootstrap.setup(["course"])
    assert any(command[1:4] == ["-m", "venv", "--clear"] for command in commands)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_foreign_folder_is_not_touched(checkout, commands, kind):
    venv = checkout / ".venv"
    if kind == "file":
        venv.write_text("mine")
    else:
        venv.mkdir()
        (venv / "mine").write_text("mine")
    with pytest.raises(Problem, match="move it away"):
        bootstrap.setup(["course"])
    assert venv.read_text() == "mine" if kind == "file" else (venv / "mine").exists()
    assert commands == []


def test_an_unknown_extra_is_named(checkout, commands, capsys):
    assert bootstrap.main(["setup", "--extras", "course,docs"]) == 2
    said = capsys.readouterr().err
    assert "no such extra: docs; choose among course, sd, data, teach, site, test." in said


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("NewConnectionError: Temporary failure in name resolution", "could not be reached"),
        (
            "ReadTimeoutError(...)\nNo matching distribution found for torch",
            "could not be reached",
        ),
        ("SSLError(SSLCertVerificationError(1, ...))", "PIP_CERT"),
        (
            "ERROR: No matching distribution found for torch==2.13.0",
            "there is no torch==2.13.0 that fits",
        ),
        (
            "The user requested (constraint) torch==2.13.0\nERROR: ResolutionImpossible",
            "no torch=",
        ),
        ("a bug nobody foresaw", "its own words are above"),
    ],
)
def test_a_failure_of_pip_becomes_one_sentence(checkout, commands, capsys, log, sentence):
    commands.fails, commands.log = 1, log
    assert bootstrap.main(["setup"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: pip could not install the course: ")
    assert sentence in error
    assert f"full log: {checkout / '.venv' / bootstrap.LOG}" in error
    assert error.count("\n") == 1


def test_a_pip_that_was_killed_is_told_apart():
    assert "too little memory" in bootstrap.explain_pip(-9, "")
    assert "stopped by signal 15." in bootstrap.explain_pip(-15, "No space left on device")


def test_other_installations_are_kept_out(monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET"):
        monkeypatch.setenv(name, "/opt/ros")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    env = bootstrap.clean_environment()
    assert not {"PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET"} & set(env)
    assert env["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert env["PATH"] == os.environ["PATH"]


# ---------------------------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------------------------


def test_lab_listens_on_localhost_and_keeps_its_token(checkout):
    python = checkout / ".venv" / "bin" / "python"
    command = bootstrap.lab_command(python, checkout, bootstrap.START, ["--no-browser"])
    assert command[:3] == [str(python), "-m", "jupyterlab"]
    assert "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb" in command
    assert f"--ServerApp.root_dir={checkout}" in command
    assert "--ServerApp.ip=127.0.0.1" in command
    assert command[-1] == "--no-browser"
    assert not any("token" in part or "password" in part for part in command)


def test_lab_without_its_notebook_says_so(checkout, commands, capsys):
    assert bootstrap.main(["lab"]) == 2
    assert "notebooks/00_start_here.ipynb is missing" in capsys.readouterr().err


def test_every_check_is_a_step():
    steps = {step.name: step.command for step in bootstrap.test_steps(2, False)}
    assert list(steps) == ["lint", "unit", "rules", "site", "outputs", "browser"]
    assert steps["lint"] == ["-m", "tools.lint"]
    # Every folder of tests belongs to exactly one pytest step.
    left_out = {part.split("=")[1] for part in steps["unit"] if part.startswith("--ignore=")}
    assert left_out == {steps[name][-1] for name in ("rules", "site", "browser")}
    assert all(command[0] == "-m" for command in steps.values())


@pytest.mark.parametrize(
    ("only", "browser", "short"),
    [
        ([], "/usr/bin/chromium", True),
        ([], None, False),
        (["--only", "outputs,browser"], "/usr/bin/chromium", True),
        (["--only", "outputs"], "/usr/bin/chromium", False),
    ],
)
def test_long_notebooks_run_once_where_the_browser_test_compares_them(
    checkout, commands, monkeypatch, only, browser, short
):
    monkeypatch.setattr(bootstrap, "find_browser", lambda: browser)
    assert bootstrap.main(["test", *only]) == 0
    [compare] = [command for command in commands if "compare" in command]
    assert ("--short" in compare) == short


def test_the_website_is_built_with_what_it_imports(checkout, commands):
    assert bootstrap.main(["site", "--linkcheck"]) == 0
    assert commands[-1][1:] == ["-m", "tools.website", "--linkcheck"]
    assert pip_calls(commands)[-1][-1] == ".[course,sd,site]"


def test_a_teacher_gets_what_makes_editions_and_classes(checkout, commands, monkeypatch):
    assert bootstrap.main(["editions", "--check"]) == 0
    assert commands[-1][1:] == ["-m", "tools.editions", "--check"]
    assert pip_calls(commands)[-1][-1] == ".[course,sd,teach]"
    monkeypatch.chdir(checkout.parent)
    assert bootstrap.main(["class", "--folder", "autumn", "--lessons", "01,02"]) == 0
    folder = str(Path.cwd() / "autumn")
    assert commands[-1][1:] == ["-m", "tools.classroom", folder, "--lessons", "01,02"]


def test_the_slow_files_exist_and_begin():
    assert all((bootstrap.ROOT / name).is_file() for name in SLOW)
    names = ("tests/test_ema.py", SLOW[-1])
    items = [types.SimpleNamespace(path=bootstrap.ROOT / name) for name in names]
    pytest_collection_modifyitems(items)
    assert items[0].path == bootstrap.ROOT / SLOW[-1]
    steps = {step.name: step.command for step in bootstrap.test_steps(2, False)}
    assert "--no-loadscope-reorder" in steps["unit"]  # xdist would sort the files again


def test_unknown_steps_and_jobs_are_named(checkout, commands, monkeypatch, capsys):
    assert bootstrap.main(["test", "--only", "lint,units"]) == 2
    assert "no such step: units; choose among lint, unit" in capsys.readouterr().err
    for value in ("0", "two", "-1", ""):
        monkeypatch.setenv("SLAM_EDU_JOBS", value)
        assert bootstrap.main(["test"]) == 2
        assert f"from 1 on; got {value!r}" in capsys.readouterr().err
    assert commands == []
    monkeypatch.setenv("SLAM_EDU_JOBS", "3")
    assert bootstrap.jobs() == 3
    monkeypatch.delenv("SLAM_EDU_JOBS")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert bootstrap.jobs() == 4


@pytest.mark.parametrize("failing", [None, "lint", "outputs"])
def test_all_steps_run_even_after_a_failure(checkout, commands, monkeypatch, capsys, failing):
    ran = []

    def run_step(python, step, folder):
        ran.append(step.name)
        return Result(step.name, int(step.name == failing), 1.0, 5, {})

    monkeypatch.setattr(bootstrap, "run_step", run_step)
    assert bootstrap.main(["test"]) == (1 if failing else 0)
    assert ran == ["lint", "unit", "rules", "site", "outputs", "browser"]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == (f"FAILED: {failing} in 6 s" if failing else "ALL OK in 6 s")


def test_skipped_tests_are_counted_and_named():
    results = [
        Result("unit", 0, 2.0, 300, {"no CUDA": 4}),
        Result("browser", 0, 1.0, 0, {"no chromium found": 3}),
    ]
    text = bootstrap.summary(results)
    assert re.search(r"unit +ok +300 +4 +2\.0", text)
    assert "skipped in browser: 3 x no chromium found" in text
    assert text.endswith("ALL OK, 7 skipped in 3 s")


def test_a_step_is_counted_from_its_report(checkout, tmp_path, monkeypatch):
    def run_inside(python, arguments, **environ):
        report = Path(arguments[-1].split("=", 1)[1])
        report.write_text(
            "<testsuites><testsuite><testcase/><testcase/>"
            "<testcase><skipped message='no chromium'/></testcase>"
            "<testcase><failure/></testcase><testcase><error/></testcase>"
            "</testsuite></testsuites>"
        )
        assert environ["OMP_NUM_THREADS"] == "1"
        return 1

    monkeypatch.setattr(bootstrap, "run_inside", run_inside)
    step = bootstrap.Step("unit", "what", ["-m", "pytest"])
    result = bootstrap.run_step(Path("python"), step, tmp_path)
    assert (result.status, result.passed, result.skipped) == (1, 2, {"no chromium": 1})
    assert bootstrap.read_report(tmp_path / "none.xml") == (0, {})


def test_clean_removes_what_was_made_and_nothing_else(checkout, capsys):
    for name in ("dist", ".venv", "slam_edu/__pycache__", "notebooks/.ipynb_checkpoints", "runs"):
        (checkout / name).mkdir(parents=True)
    assert bootstrap.main(["clean"]) == 0
    left = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_dir()}
    assert left == {"slam_edu", "notebooks", "runs", ".venv"}
    assert bootstrap.main(["clean", "--all"]) == 0
    assert not (checkout / ".venv").exists()


def test_arguments_that_nothing_takes_are_refused(capsys):
    for arguments in (["test", "--fast"], ["setup", "now"], ["fly"]):
        with pytest.raises(SystemExit):
            bootstrap.main(arguments)
    assert bootstrap.main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_a_browser_is_found():
    def find(environ, commands=(), files=()):
        return bootstrap.find_browser(
            environ, lambda name: f"/bin/{name}" if name in commands else None, files.__contains__
        )

    assert find({}) is None
    assert find({}, commands=["google-chrome"]) == "/bin/google-chrome"
    assert find({}, commands=["google-chrome", "chromium"]) == "/bin/chromium"
    assert find({}, files=["/snap/bin/chromium"]) == "/snap/bin/chromium"
    assert find({"CHROMIUM": "/opt/c"}, ["chromium"], ["/opt/c"]) == "/opt/c"
    assert find({"CHROMIUM": "brave"}, ["chromium", "brave"]) == "/bin/brave"
    with pytest.raises(Problem, match="CHROMIUM='/opt/c' names no file"):
        find({"CHROMIUM": "/opt/c"}, ["chromium"])


# ---------------------------------------------------------------------------------------------
# The Makefile
# ---------------------------------------------------------------------------------------------


def make(*arguments, **environ):
    # Not this process's environment: a PYTHON or MAKEFLAGS of an outer `make test` would steer it.
    env = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=bootstrap.ROOT,
        env={**env, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


needs_make = pytest.mark.skipif(
    os.name == "nt", reason="Windows has no make; bootstrap.py serves it"
)


@needs_make
def test_make_without_python_says_so():
    status, _, error = make("lab", PYTHON="python-that-is-not-there")
    assert status
    assert 'there is no "python-that-is-not-there" on this machine' in error
    assert "3.10" in error


@needs_make
def test_make_passes_its_switches_on():
    def dry(*arguments, **environ):
        status, out, error = make("-n", *arguments, **environ)
        assert status == 0, error
        return " ".join(out.split('"; ')[-1].split())[-120:]

    assert dry("lab").endswith('"python3" tools/bootstrap.py lab')
    assert dry("lab", "CPU=1").endswith("bootstrap.py lab --cpu")
    assert dry("lab", PYTHON="python3.12").endswith(
        '"python3.12" tools/bootstrap.py lab --this-python'
    )
    assert dry("test", "ONLY=lint,unit").endswith('bootstrap.py test --only "lint,unit"')
    assert dry("setup", "EXTRAS=course,sd").endswith('bootstrap.py setup --extras "course,sd"')
    assert dry("address", "URL=https://github.com/a/b").endswith(
        'address "https://github.com/a/b"'
    )
    assert dry("address", "CLEAR=1").endswith("address --clear")
    assert dry("clean", "ALL=1").endswith("clean --all")


@needs_make
def test_make_help_lists_every_target():
    _, out, _ = make()
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split()
    assert re.findall(r"^make (\w+)", out, re.MULTILINE) == phony

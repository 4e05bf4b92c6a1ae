"""slam_edu.setup(): the same call on Colab, Kaggle, Windows, a Mac and a laptop."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import slam_edu
from slam_course.figures import figure
from slam_course.setup import COLAB, KAGGLE, LOCAL, find_platform, setup, unmet
from slam_edu import environment
from slam_edu.environment import find_accelerator

ON_COLAB = {"COLAB_RELEASE_TAG": "release-colab_20261112"}
ON_KAGGLE = {**ON_COLAB, "KAGGLE_KERNEL_RUN_TYPE": "Interactive"}


@pytest.fixture
def place(monkeypatch, tmp_path):
    """An installed course without a checkout, in a process that has not been set up."""
    (tmp_path / "site" / "data").mkdir(parents=True)
    data = tmp_path / "site" / "data" / "README.md"
    data.touch()
    monkeypatch.setattr(setting_up, "data_path", lambda name: data)
    monkeypatch.setattr(setting_up, "DRIVE", tmp_path / "drive" / "MyDrive")
    monkeypatch.setattr(setting_up, "_done", set())
    monkeypatch.chdir(tmp_path)
    for name in ON_KAGGLE:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def needs(monkeypatch, tmp_path):
    """Gives the installed slam_edu other requirements: needs("numpy>=99", …)."""
    monkeypatch.syspath_prepend(str(tmp_path / "first"))

    def write(*lines, extras=("course", "sd")):
        install(tmp_path / "first", "slam_edu", "9.9", lines, extras)

    return write


def install(site, name, version, requires=(), extras=()):
    """A package's metadata, as pip leaves it."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Provides-Extra: {extra}" for extra in extras),
        *(f"Requires-Dist: {line}" for line in requires),
    ]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "RECORD").write_text(f"{name}.py,,\n{name}-{version}.dist-info/METADATA,,\n")


@pytest.fixture
def pip(monkeypatch):
    """Records pip's commands with the constraints that they were given, in place of running."""
    calls = []

    def run(command, **_):
        held = Path(command[command.index("--constraint") + 1]).read_text().split()
        calls.append((command, held))
        return subprocess.CompletedProcess(command, pip_.status, "", pip_.error)

    pip_ = types.SimpleNamespace(calls=calls, status=0, error="")
    monkeypatch.setattr(setting_up.subprocess, "run", run)
    return pip_


def at(monkeypatch, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


# Where, and on what


@pytest.mark.parametrize(
    ("environ", "where"), [({}, LOCAL), (ON_COLAB, COLAB), (ON_KAGGLE, KAGGLE)]
)
def test_the_platform_is_told_by_the_environment(environ, where):
    assert find_platform(environ) == where


def test_here_it_says_nothing_and_again_changes_nothing(place, needs, capsys):
    needs("numpy>=1", "torch>=2")
    first = setup()
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert setup() == first
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")}.keys() == before.keys()
    assert capsys.readouterr() == ("", "")
    assert (first.platform, first.problems) == (LOCAL, ())
    assert first.system == platform.system()
    assert first.runs == place / "runs"
    assert first.runs.is_dir()
    assert not list(first.runs.iterdir())
    assert first.data == place / "site" / "data"
    assert slam_edu.setup is setup


def test_it_reads_as_a_few_lines(place, needs):
    needs("numpy>=1")
    lines = str(setup()).splitlines()
    assert lines[0].startswith(f"local, {platform.system()}: ")
    assert lines[1:] == [f"course files: {place / 'site' / 'data'}", f"runs: {place / 'runs'}"]


class Card:
    """torch.cuda and torch.backends.mps as a machine with one GPU has them."""

    def __init__(self, monkeypatch, name=None, capability=(0, 0), gib=0.0, built=(), mps=False):
        properties = types.SimpleNamespace(
            name=name, major=capability[0], minor=capability[1], total_memory=gib * 2**30
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: name is not None)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


TODAY = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


@pytest.mark.parametrize(
    ("card", "device", "dtype", "fits"),
    [
        ({}, "cpu", torch.float32, False),
        ({"mps": True}, "mps", torch.float32, False),
        (
            {"name": "Tesla T4", "capability": (7, 5), "gib": 14.6, "mps": True},
            "cuda",
            torch.float16,
            True,
        ),
        ({"name": "GTX 1660", "capability": (7, 5), "gib": 6}, "cuda", torch.float16, False),
        ({"name": "A100", "capability": (8, 0), "gib": 39.5}, "cuda", torch.bfloat16, True),
        ({"name": "L4", "capability": (8, 9), "gib": 22}, "cuda", torch.bfloat16, True),
    ],
)
def test_the_device_and_what_it_is_good_for(
    place, needs, monkeypatch, capsys, card, device, dtype, fits
):
    needs("numpy>=1")
    Card(monkeypatch, built=TODAY, **card)
    here = setup()
    assert (here.device, here.dtype, here.fits_stable_diffusion) == (device, dtype, fits)
    assert here.gpu == card.get("name", "Apple GPU" if card else None)
    assert capsys.readouterr().out == ""


def test_a_gpu_without_code_in_this_torch_is_not_chosen(place, needs, monkeypatch, capsys):
    """Kaggle's P100, which newer builds of torch leave out."""
    needs("numpy>=1")
    Card(monkeypatch, "Tesla P100", (6, 0), 16, TODAY)
    here = setup()
    assert (here.device, here.gpu, here.fits_stable_diffusion) == ("cpu", None, False)
    assert here.problems[0] in capsys.readouterr().out
    assert f"torch {torch.__version__} has no code for this Tesla P100" in here.problems[0]
    assert environment.check_environment().device == "cpu"


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 5), ["sm_70"], True),
        ((7, 0), ["sm_75"], False),
        ((8, 9), ["sm_86"], True),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((12, 0), ["sm_90a", "compute_90a"], False),
        ((12, 0), ["sm_120"], True),
        ((6, 0), ["compute_70"], False),
        ((9, 0), ["gfx90a"], True),
        ((9, 0), [], True),
    ],
)
def test_which_code_runs_on_which_gpu(monkeypatch, capability, built, runs):
    Card(monkeypatch, "some GPU", capability, 16, built)
    assert (find_accelerator().device == "cuda") is runs


# Packages


def test_versions_are_held_against_the_metadata(needs):
    needs(
        "numpy>=1,<90",
        "torch>=99",
        'pillow<2; extra == "course"',
        'no-such-package>=1.5; extra == "course"',
        'peft>=99; extra == "sd"',
        'hypothesis>=99; extra == "test"',
        'scipy>=99; python_version < "3"',
        'ipykernel>=99; extra == "course"',
        'slam_edu[sd]; extra == "course"',
        extras=("course", "sd", "test"),
    )
    numbers = {name: importlib.metadata.version(name) for name in ("torch", "pillow", "peft")}
    assert list(map(str, unmet(["course"]))) == [
        f"torch {numbers['torch']} is not in >=99",
        f"pillow {numbers['pillow']} is not in <2",
        "no-such-package is missing",
    ]
    assert [item.name for item in unmet(["course", "sd"])][-1] == "peft"
    assert [item.loaded for item in unmet(["course"])] == [True, "PIL" in sys.modules, False]
    with pytest.raises(ValueError, match="no such extra: course2; allowed: course, sd, test"):
        setup(extras=["course2"])


def test_a_build_of_its_own_counts_as_the_version(needs, tmp_path):
    needs("new-enough>=2.4,<3", "too-old>=2.4,<3", "preview>=2.4,<3")
    install(tmp_path / "first", "new_enough", "2.4.1+cu128")
    install(tmp_path / "first", "too_old", "2.3.1+cu128")
    install(tmp_path / "first", "preview", "2.5.0.dev20261101")
    assert [str(item) for item in unmet([])] == ["too-old 2.3.1+cu128 is not in <3,>=2.4"]


def test_a_laptop_is_told_what_to_run_and_pip_is_left_alone(
    place, needs, pip, capsys, monkeypatch
):
    monkeypatch.setattr(setting_up, "__file__", str(place / "site" / "slam_edu" / "setting_up.py"))
    needs("numpy>=1", "nothing-like-it<2,>=1.5", 'never-seen>=3; extra == "sd"')
    here = setup()
    assert here.problems == (
        "nothing-like-it is missing, never-seen is missing: run "
        '`%pip install "nothing-like-it<2,>=1.5" "never-seen>=3"`, then run this cell again.',
    )
    assert capsys.readouterr().out == here.problems[0] + "\n"
    setup()  # still wrong, hence still said
    assert capsys.readouterr().out == here.problems[0] + "\n"
    assert pip.calls == []


def test_what_is_loaded_needs_a_restart(place, needs, pip, monkeypatch):
    monkeypatch.setattr(setting_up, "__file__", str(place / "site" / "slam_edu" / "setting_up.py"))
    needs("numpy>=90")
    found = importlib.metadata.version("numpy")
    assert setup().problems == (
        f'numpy {found} is not in >=90: run `%pip install "numpy>=90"`, then restart the kernel.',
    )


def test_in_a_checkout_make_lab_is_the_remedy(place, needs):
    needs("nothing-like-it>=1")
    [problem] = setup().problems
    assert r"run `make lab` (on Windows `py tools\bootstrap.py lab`)" in problem


def test_a_package_that_is_imported_only_says_so(place, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", missing)
    assert setup().problems == (
        "slam_edu is imported and not installed: its packages were not looked at.",
    )


@pytest.mark.parametrize("environ", [ON_COLAB, ON_KAGGLE])
def test_a_rented_machine_gets_what_is_missing_around_what_is_loaded(
    place, needs, pip, monkeypatch, capsys, environ
):
    at(monkeypatch, environ)
    needs("numpy>=1", "torch>=99", 'ipywidgets>=99; extra == "course"', "nothing-like-it<2,>=1.5")
    here = setup()
    [(command, held)] = pip.calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[command.index("--constraint") + 2 :] == ["nothing-like-it<2,>=1.5"]
    for name in ("numpy", "torch", "packaging", "pytest"):
        assert f"{name}=={importlib.metadata.version(name)}" in held
    assert not any(pin.startswith("slam") for pin in held)
    out = capsys.readouterr().out
    assert "Installing nothing-like-it (a minute or two)" in out
    # Widgets stay as the front end has them; torch cannot be changed without a restart.
    assert "ipywidgets" not in out
    assert len(here.problems) == 1
    assert here.problems[0].startswith("torch ")
    assert "restart the kernel" in here.problems[0]


def test_when_pip_fails_its_last_word_is_passed_on(place, needs, pip, monkeypatch):
    at(monkeypatch, ON_KAGGLE)
    needs("nothing-like-it>=1")
    pip.status, pip.error = 1, "WARNING: slow\nERROR: No matching distribution\n\n"
    failed, missing = setup().problems
    hint = "Is Internet switched on in the notebook's settings?"
    assert failed == f"pip failed (No matching distribution). {hint}"
    assert missing.startswith("nothing-like-it is missing: run ")


def test_installing_can_be_asked_for_or_refused(place, needs, pip, monkeypatch):
    needs("nothing-like-it>=1")
    setup(install=True)
    assert len(pip.calls) == 1
    at(monkeypatch, ON_COLAB)
    setup(install=False)
    assert len(pip.calls) == 1


def test_versions_that_pip_cannot_read_are_not_held(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "oddly", "1.2-ubuntu7~unknown")
    install(tmp_path, "evenly", "1.2")
    for name in ("oddly", "evenly"):
        (tmp_path / f"{name}.py").touch()
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    held = setting_up.loaded_pins()
    assert "evenly==1.2" in held
    assert not any(pin.startswith("oddly") for pin in held)


# Folders


def test_runs_go_where_they_last(place, needs, monkeypatch, capsys):
    needs("numpy>=1")
    at(monkeypatch, ON_COLAB)
    assert setup().runs == place / "runs"
    assert "drive.mount('/content/drive')" in capsys.readouterr().out
    setup()
    assert capsys.readouterr().out == ""  # said once
    setting_up.DRIVE.mkdir(parents=True)
    assert setup().runs == setting_up.DRIVE / "slam_edu_runs"
    assert setup().runs.is_dir()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert setup().runs == place / "runs"
    assert capsys.readouterr().out == ""


def test_in_a_checkout_runs_are_the_checkouts(place, needs, monkeypatch):
    needs("numpy>=1")
    (place / "site" / "pyproject.toml").touch()
    monkeypatch.chdir(place / "site" / "data")
    assert setup().runs == place / "site" / "runs"


def test_a_folder_that_cannot_be_written_to_has_a_makeshift(place, needs, monkeypatch, capsys):
    needs("numpy>=1")
    (place / "runs").touch()  # a file stands in the way
    (place / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place / "tmp"))
    here = setup()
    assert here.runs == place / "tmp" / "slam_edu_runs"
    assert here.runs.is_dir()
    assert f"'{place / 'runs'}' cannot be written to" in here.problems[0]
    assert here.problems[0] in capsys.readouterr().out


# Front ends


def colab_stub(monkeypatch):
    """google.colab with what is asked of it, and a list of the calls."""
    calls = []
    output = types.ModuleType("google.colab.output")
    output.enable_custom_widget_manager = lambda: calls.append("widgets")
    colab = types.ModuleType("google.colab")
    colab.output = output
    google = types.ModuleType("google")
    google.colab = colab
    for module in (google, colab, output):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


@pytest.mark.parametrize(
    ("environ", "expected"), [(ON_COLAB, ["widgets"]), (ON_KAGGLE, []), ({}, [])]
)
def test_colabs_widgets_are_enabled_once(place, needs, monkeypatch, environ, expected):
    needs("numpy>=1")
    calls = colab_stub(monkeypatch)
    at(monkeypatch, environ)
    setup()
    setup()
    assert calls == expected


def test_colabs_image_without_its_front_end(place, needs, monkeypatch):
    needs("numpy>=1")
    at(monkeypatch, ON_COLAB)
    monkeypatch.setitem(sys.modules, "google.colab", None)
    assert setup().platform == COLAB


def test_the_courses_figures_print_themselves(place, needs, monkeypatch):
    """Also where pyplot was imported, whose printer takes all of matplotlib's figures."""
    import IPython
    from IPython.core.formatters import DisplayFormatter
    from IPython.core.pylabtools import select_figure_formats

    needs("numpy>=1")
    shell = types.SimpleNamespace(
        kernel=object(),
        display_formatter=DisplayFormatter(),
        events=types.SimpleNamespace(register=lambda *_: None),  # pyplot asks for it
    )
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    drawn, (ax,) = figure(alt="a line")
    ax.plot([0, 1])
    own = drawn._repr_mimebundle_()

    def shown(fig):
        return shell.display_formatter.format(fig)[0]

    select_figure_formats(shell, {"png"})
    assert shown(drawn)["image/png"] != own["image/png"]
    setup()
    setup()
    assert shown(drawn) == own
    select_figure_formats(shell, {"png"})  # pyplot comes later
    assert shown(drawn) == own
    other = Figure()
    other.subplots()
    assert "image/png" in shown(other)  # it is left to pyplot


def test_windows_has_no_posix_calls(place, needs, monkeypatch, capsys):
    needs("numpy>=1")
    for name in ("fork", "getuid", "geteuid", "sched_getaffinity", "register_at_fork", "uname"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert setup().system == "Windows"
    assert environment.check_environment().cores >= 1
    assert capsys.readouterr() == ("", "")


# The page about it


def test_the_page_names_what_there_is(place, needs):
    page = (Path(__file__).parents[2] / "docs" / "anywhere.md").read_text(encoding="utf-8")
    needs("numpy>=1")
    here = setup()
    named = set(re.findall(r"course\.(\w+)", page))
    assert named == {"platform", "device", "dtype", "runs", "fits_stable_diffusion"}
    assert all(hasattr(here, name) for name in named)
    code = Path(setting_up.__file__).read_text(encoding="utf-8")
    code += Path(environment.__file__).read_text(encoding="utf-8")
    for words in (
        "is missing", "is not in", "then restart the kernel", "is imported and not installed",
        "has no code for this", "cannot be written to", "pip failed (", "runs go to",
    ):  # fmt: skip
        assert words in code
        assert words in page
    for link in re.findall(r"\]\((?!https)([^)#]+)\)", page):
        assert (Path(__file__).parents[2] / "docs" / link).exists()

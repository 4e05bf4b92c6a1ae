"""slam_edu.setup(): the same call on Colab, Kaggle, Windows, a Mac and a laptop."""

import importlib.metadata
import platform
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
import torch

import slam_edu
from slam_course import setup as setting_up
from slam_course.figures import figure
from slam_course.setup import COLAB, LOCAL, setup, unmet

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
    monkeypatch.setattr(setting_up, "__file__", str(tmp_path / "site" / "slam_course" / "s.py"))
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
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "RECORD").write_text(f"{name}.py,,\n{name}-{version}.dist-info/METADATA,,\n")


@pytest.fixture
def pip(monkeypatch):
    """Records pip's commands with the constraints that they were given, in place of running."""
    pip_ = types.SimpleNamespace(calls=[], status=0, error="")

    def run(command, **_):
        held = Path(command[command.index("--constraint") + 1]).read_text().split()
        pip_.calls.append((command, held))
        return subprocess.CompletedProcess(command, pip_.status, "", pip_.error)

    monkeypatch.setattr(setting_up.subprocess, "run", run)
    return pip_


def at(monkeypatch, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_here_it_prints_nothing_and_again_changes_nothing(place, needs, capsys):
    needs("numpy>=1", "torch>=2")
    first = setup()
    before = set(place.rglob("*"))
    assert setup() == first
    assert set(place.rglob("*")) == before
    assert capsys.readouterr() == ("", "")
    assert (first.platform, first.problems) == (LOCAL, ())
    assert first.system == platform.system()
    assert first.runs == place / "runs"
    assert first.runs.is_dir()
    assert str(first).startswith(f"local, {platform.system()}: ")
    assert slam_edu.setup is setup


def test_the_device_and_what_it_is_good_for(place, needs, monkeypatch, capsys):
    needs("numpy>=1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70", "sm_75", "sm_80", "sm_86"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, major, minor, found in (
        ("Tesla T4", 7, 5, ("cuda", torch.float16, True)),
        ("Tesla P100", 6, 0, ("cpu", torch.float32, False)),  # newer torch leaves it out
    ):
        gpu = types.SimpleNamespace(name=name, major=major, minor=minor, total_memory=15 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, gpu=gpu: gpu)
        here = setup()
        assert (here.device, here.dtype, here.fits_stable_diffusion) == found
    assert "has no code for this Tesla P100" in capsys.readouterr().out


def test_versions_are_held_against_the_metadata(needs, tmp_path):
    needs(
        "numpy>=1,<90",
        "torch>=99",
        'no-such-package>=1.5; extra == "course"',
        'peft>=99; extra == "sd"',
        'scipy>=99; python_version < "3"',
        'ipykernel>=99; extra == "course"',
        'slam_edu[sd]; extra == "course"',
        "new-enough>=2.4,<3",
        "preview>=2.4,<3",
        "too-old>=2.4,<3",
    )
    install(tmp_path / "first", "new_enough", "2.4.1+cu128")
    install(tmp_path / "first", "preview", "2.5.0.dev20261101")
    install(tmp_path / "first", "too_old", "2.3.1+cu128")
    torch_version = importlib.metadata.version("torch")
    assert list(map(str, unmet(["course"]))) == [
        f"torch {torch_version} is not in >=99",
        "no-such-package is missing",
        "too-old 2.3.1+cu128 is not in <3,>=2.4",
    ]
    assert [item.loaded for item in unmet(["course"])] == [True, False, False]
    assert "peft" in [item.name for item in unmet(["course", "sd"])]
    with pytest.raises(ValueError, match="no such extra: course2; allowed: course, sd"):
        setup(extras=["course2"])


def test_a_laptop_hears_what_to_run_and_pip_is_left_alone(place, needs, pip, capsys, monkeypatch):
    needs("numpy>=1", "nothing-like-it<2,>=1.5", 'never-seen>=3; extra == "sd"')
    for _ in range(2):  # still wrong, hence printed again
        here = setup()
        assert here.problems == (
            "nothing-like-it is missing, never-seen is missing: run "
            '`%pip install "nothing-like-it<2,>=1.5" "never-seen>=3"`, then run this cell again.',
        )
        assert capsys.readouterr().out == here.problems[0] + "\n"
    needs("numpy>=90")
    here = setup(install=True, extras=[])  # what is loaded is never replaced
    assert here.problems[0].endswith('run `%pip install "numpy>=90"`, then restart the kernel.')
    assert pip.calls == []
    monkeypatch.setattr(setting_up, "PACKAGE", "slam-edu-imported-only")
    assert "is imported and not installed: its packages were not looked at" in setup().problems[0]


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
    [problem] = here.problems
    assert problem.startswith("torch ")
    assert "restart the kernel" in problem
    setup(install=False)
    assert len(pip.calls) == 1


def test_when_pip_fails_its_last_word_is_passed_on(place, needs, pip, monkeypatch):
    at(monkeypatch, ON_KAGGLE)
    needs("nothing-like-it>=1")
    pip.status, pip.error = 1, "WARNING: slow\nERROR: No matching distribution\n\n"
    failed, missing = setup().problems
    hint = "Is Internet switched on in the notebook's settings?"
    assert failed == f"pip failed (No matching distribution). {hint}"
    assert missing.startswith("nothing-like-it is missing: run ")


def test_versions_that_pip_cannot_read_are_not_held(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, version in (("oddly", "1.2-ubuntu7~unknown"), ("evenly", "1.2")):
        install(tmp_path, name, version)
        (tmp_path / f"{name}.py").touch()
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    held = setting_up.loaded_pins()
    assert "evenly==1.2" in held
    assert not any(pin.startswith("oddly") for pin in held)


def test_runs_go_where_they_last(place, needs, monkeypatch, capsys):
    needs("numpy>=1")
    at(monkeypatch, ON_COLAB)
    assert setup().runs == place / "runs"
    assert "drive.mount('/content/drive')" in capsys.readouterr().out
    setup()
    assert capsys.readouterr().out == ""  # printed once
    setting_up.DRIVE.mkdir(parents=True)
    assert setup().runs == setting_up.DRIVE / "slam_edu_runs"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert setup().runs == place / "runs"
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    (place / "site" / "tools").mkdir()  # a checkout
    for name in ("pyproject.toml", "tools/bootstrap.py"):
        (place / "site" / name).touch()
    needs("nothing-like-it>=1")
    here = setup()
    assert here.runs == place / "site" / "runs"
    assert r"run `make lab` (on Windows `py tools\bootstrap.py lab`)" in here.problems[0]


def test_a_folder_that_cannot_be_written_to_has_a_makeshift(place, needs, monkeypatch, capsys):
    needs("numpy>=1")
    (place / "runs").touch()  # a file stands in the way
    (place / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place / "tmp"))
    here = setup()
    assert here.runs == place / "tmp" / "slam_edu_runs"
    assert here.runs.is_dir()
    assert f"'{place / 'runs'}' cannot be written to" in capsys.readouterr().out


def test_colabs_widgets_are_enabled_once(place, needs, monkeypatch):
    needs("numpy>=1")
    calls = []
    output = types.SimpleNamespace(enable_custom_widget_manager=lambda: calls.append("widgets"))
    colab = types.ModuleType("google.colab")
    colab.output = output
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    setup()
    at(monkeypatch, ON_COLAB)
    setup()
    setup()
    assert calls == ["widgets"]
    monkeypatch.setattr(setting_up, "_done", set())
    monkeypatch.setitem(sys.modules, "google.colab", None)  # Colab's image without its front end
    assert setup().platform == COLAB


def test_the_courses_figures_print_themselves(place, needs, monkeypatch):
    """Also where pyplot was imported, whose printer is for all of matplotlib's figures."""
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

    def shown():
        return shell.display_formatter.format(drawn)[0]

    select_figure_formats(shell, {"png"})
    assert shown()["image/png"] != own["image/png"]
    setup()
    assert shown() == own
    select_figure_formats(shell, {"png"})  # pyplot comes later
    assert shown() == own

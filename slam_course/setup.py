"""One set-up for every place where the lessons run: Colab, Kaggle, a laptop of any system.

The first cell of every notebook calls :func:`setup`. It looks at the packages, picks the device,
makes a folder for runs, and adapts the front end; where all is well it prints nothing. It can be
called again at any time.

Which versions are supported stands in pyproject.toml and is read from the installed package's
metadata. What is loaded is never replaced: torch or numpy installed anew under a running kernel
leave half of the old one in memory. On Colab and Kaggle, machines that are thrown away, missing
packages are installed around the loaded ones; elsewhere one sentence names the remedy.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata as metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from slam_edu.environment import LORA_MEMORY, find_accelerator
from slam_edu.io import data_path

PACKAGE = "slam_edu"
EXTRAS = ("course", "sd")  # what `make lab` installs
COLAB, KAGGLE, LOCAL = "colab", "kaggle", "local"

#: A front end that runs this has its own; on Colab an upgrade breaks the next session.
FRONT_END = frozenset({"ipykernel", "jupyterlab"})
#: Colab, and Kaggle's image made from it, draw the widgets of their own version alone.
HOSTED_FRONT_END = FRONT_END | {"ipywidgets"}

DRIVE = Path("/content/drive/MyDrive")  # where Colab puts Google Drive
_DRIVE_HINT = (
    "Runs end with Colab's machine. To keep them, run `from google.colab import drive; "
    "drive.mount('/content/drive')` and then this cell again."
)

# What this process has done already: switched widgets on, printed the hint.
_done: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where the course runs, and with what."""

    platform: str  # "colab", "kaggle" or "local"
    system: str  # "Linux", "Darwin" (macOS) or "Windows"
    device: str  # torch's name of the best one: "cuda", "mps" or "cpu"
    dtype: torch.dtype  # for large networks that run there and are not trained
    gpu: str | None  # its name
    gpu_memory: float | None  # in GiB; None without a GPU, or where it shares the machine's
    data: Path  # the files that come with the course
    runs: Path  # for what is trained; it exists and can be written to
    problems: tuple[str, ...]  # sentences, each on what is wrong and what to do

    @property
    def fits_stable_diffusion(self) -> bool:
        """Whether the GPU has the memory for Stable Diffusion 1.5 with LoRA."""
        return (self.gpu_memory or 0.0) >= LORA_MEMORY

    def __str__(self) -> str:
        memory = "" if self.gpu_memory is None else f", {self.gpu_memory:.0f} GiB"
        gpu = "" if self.gpu is None else f" ({self.gpu}{memory})"
        dtype = str(self.dtype).removeprefix("torch.")
        first = f"{self.platform}, {self.system}: {self.device}{gpu}, large networks in {dtype}"
        return "\n".join(
            [first, f"course files: {self.data}", f"runs: {self.runs}", *self.problems]
        )


def setup(*, extras: Sequence[str] = EXTRAS, install: bool | None = None) -> Setup:
    """Make the lessons run here; prints what is wrong, and nothing where nothing is.

    The core's packages are looked at and those of the ``extras``; with ``install``, None for Colab
    and Kaggle alone, pip installs what is missing.

    Raises:
        ValueError: for an extra that pyproject.toml does not have.
    """
    where = find_platform(os.environ)
    problems = _versions(extras, where, install=where != LOCAL if install is None else install)
    # Hugging Face's notices about packages that the course does without; before the first import.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    accelerator = find_accelerator()
    data = data_path("README.md").parent
    runs, trouble = _runs_folder(where, data)
    _adapt_front_end(where)
    problems += [text for text in (accelerator.problem, trouble) if text]
    for text in problems:
        print(text)
    if where == COLAB and not runs.is_relative_to(DRIVE) and "drive" not in _done:
        _done.add("drive")
        print(_DRIVE_HINT)
    return Setup(
        platform=where, system=platform.system(), device=accelerator.device,
        dtype=accelerator.dtype, gpu=accelerator.name, gpu_memory=accelerator.memory, data=data,
        runs=runs, problems=tuple(problems),
    )  # fmt: skip


def find_platform(environ: Mapping[str, str]) -> str:
    """``"colab"``, ``"kaggle"`` or ``"local"``, by the environment's variables."""
    # Kaggle first: its image is made from Colab's and has Colab's variables, too.
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:
        return KAGGLE
    return COLAB if "COLAB_RELEASE_TAG" in environ else LOCAL


class Unmet(NamedTuple):
    """A requirement that is not met: missing, too old, or newer than what is supported."""

    name: str
    needed: str  # such as "<1,>=0.41"
    found: str | None  # the installed version
    loaded: bool  # after a change the kernel has to be restarted

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name} is missing"
        return f"{self.name} {self.found} is not in {self.needed}"


def unmet(extras: Sequence[str], left_out: Iterable[str] = FRONT_END) -> list[Unmet]:
    """What the core and the extras need and do not find, by the installed package's metadata.

    Raises:
        ValueError: for an extra that there is not.
        importlib.metadata.PackageNotFoundError: where slam_edu is imported and not installed.
    """
    from packaging.requirements import Requirement

    known = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    unknown = [extra for extra in extras if extra not in known]
    if unknown:
        raise ValueError(f"no such extra: {', '.join(unknown)}; allowed: {', '.join(known)}")
    needed: dict[str, Requirement] = {}
    for item in map(Requirement, metadata.requires(PACKAGE) or []):
        if item.marker is None or any(item.marker.evaluate({"extra": e}) for e in ("", *extras)):
            needed.setdefault(item.name, item)
    found = []
    for item in needed.values():
        there = next(iter(metadata.distributions(name=item.name)), None)
        version = there and there.version
        fits = there and item.specifier.contains(version, prereleases=True)
        if not fits and item.name not in {PACKAGE, *left_out}:
            loaded = there is not None and bool(_modules(there) & set(sys.modules))
            found.append(Unmet(item.name, str(item.specifier), version, loaded))
    return found


def _modules(distribution: metadata.Distribution) -> set[str]:
    """Names of the modules that a package brings, such as {"PIL"} for pillow."""
    firsts = {path.parts[0] for path in distribution.files or ()}
    return {first.split(".")[0] for first in firsts if not first.endswith((".dist-info", ".pth"))}


def _versions(extras: Sequence[str], where: str, *, install: bool) -> list[str]:
    """Sentences on the packages, after an attempt to install what is missing."""
    left_out = FRONT_END if where == LOCAL else HOSTED_FRONT_END
    try:
        found = unmet(extras, left_out)
    except metadata.PackageNotFoundError:
        return [f"{PACKAGE} is imported and not installed: its packages were not looked at."]
    trouble = []
    missing = [f"{item.name}{item.needed}" for item in found if not item.loaded]
    if install and missing:
        trouble = install_around(missing, where)
        found = unmet(extras, left_out)
    if found:
        wanted = " ".join(f'"{item.name}{item.needed}"' for item in found)
        remedy = f"`%pip install {wanted}`"
        if (Path(__file__).parents[1] / "tools" / "bootstrap.py").is_file():
            remedy = r"`make lab` (on Windows `py tools\bootstrap.py lab`)"
        loaded = any(item.loaded for item in found)
        then = "restart the kernel" if loaded else "run this cell again"
        trouble.append(f"{', '.join(map(str, found))}: run {remedy}, then {then}.")
    return trouble


def install_around(wanted: Sequence[str], where: str) -> list[str]:
    """Install requirements with pip and leave what is loaded; sentences on what went wrong."""
    names = ", ".join(item.split("<")[0].split(">")[0] for item in wanted)
    print(f"Installing {names} (a minute or two)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "held.txt"
        held.write_text("".join(f"{pin}\n" for pin in loaded_pins()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input"]
        command += ["--disable-pip-version-check", "--constraint", str(held), *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    if done.returncode == 0:
        return []
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
    hint = " Is Internet switched on in the notebook's settings?" if where == KAGGLE else ""
    return [f"pip failed ({errors[-1].removeprefix('ERROR: ')}).{hint}"]


def loaded_pins() -> list[str]:
    """``name==version`` of every package that has a module in memory."""
    from packaging.version import InvalidVersion, Version

    owners = metadata.packages_distributions()
    names = {name for module in list(sys.modules) for name in owners.get(module, ())}
    pins = []
    for name in sorted(names - {PACKAGE}):
        version = metadata.version(name)
        try:
            Version(version)
        except InvalidVersion:  # a distribution's own packages; pip refuses the whole file
            continue
        pins.append(f"{name}=={version}")
    return pins


def _runs_folder(where: str, data: Path) -> tuple[Path, str]:
    """(a folder for runs that can be written to, a sentence if it is a makeshift)."""
    if where == COLAB and DRIVE.is_dir():
        wanted = DRIVE / "slam_edu_runs"
    elif where == LOCAL and (data.parent / "pyproject.toml").is_file():
        wanted = data.parent / "runs"  # of the checkout, where the README's commands put them
    else:
        wanted = Path.cwd() / "runs"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):  # permissions alone tell little on Windows
            return wanted, ""
    except OSError as error:
        makeshift = Path(tempfile.gettempdir()) / "slam_edu_runs"
        makeshift.mkdir(exist_ok=True)
        trouble = f"'{wanted}' cannot be written to ({error.strerror}): runs go to '{makeshift}'"
        return makeshift, f"{trouble}, which the system may empty."


def _adapt_front_end(where: str) -> None:
    """Widgets on Colab; the course's figures as they print themselves."""
    if where == COLAB and "widgets" not in _done:
        _done.add("widgets")
        with contextlib.suppress(ImportError):  # Colab's image, run somewhere else
            from google.colab import output

            output.enable_custom_widget_manager()
    # Whoever runs this inside a kernel has imported IPython.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) and importlib.util.find_spec("matplotlib"):
        # pyplot brings a printer for all of matplotlib's figures, which in a notebook goes before
        # their own: cut otherwise, and with twice the bytes. One for the class goes before that.
        formatter = shell.display_formatter.formatters["image/png"]
        formatter.for_type_by_name(
            "slam_course.figures", "CourseFigure", lambda it: it._repr_mimebundle_()["image/png"]
        )

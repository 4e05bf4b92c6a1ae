"""From a fresh checkout to a running course, with nothing but Python's standard library.

    python3 tools/bootstrap.py lab          install what the lessons need, open JupyterLab
    python3 tools/bootstrap.py test         install what the tests need, run every check
    python3 tools/bootstrap.py --help       the other commands and the switches

`make lab`, `make test` and the rest call this file, so Windows (`py tools\\bootstrap.py lab`) and
Unix take the same road. Everything is installed into `.venv` inside the checkout, at the versions
of constraints.txt; a stamp in `.venv` makes the second call start at once, and an interrupted
install is picked up where it stopped.

Environment variables:
    SLAM_EDU_SKIP_DISK_CHECK=1   install even though the free space looks too small
    SLAM_EDU_JOBS=N              run the tests in N processes (default: the cores, at most 4)
    CHROMIUM=/path/to/chromium   the browser for the browser tests
    CI=true                      a missing browser is a failure, not a skip
    SLAM_EDU_CONSTRAINTS=FILE    other versions than those of constraints.txt, such as the oldest

This file must stay readable for Python 3.6 (no newer syntax, standard library alone): on an old
Python it still has to be able to say that the Python is too old. tests/test_bootstrap.py checks
it.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
START = "notebooks/00_start_here.ipynb"

OLDEST_PYTHON = (3, 10)  # requires-python in pyproject.toml; tests/test_environment.py compares
EXTRAS = ("course", "sd", "data", "teach", "site", "test")
# An extra that contains others (`test` names `slam_edu[course,sd]` in pyproject.toml).
CONTAINS = {"test": ("course", "sd", "data", "teach", "site")}
LAB_EXTRAS = ("course", "sd")
TEACH_EXTRAS = ("course", "sd", "teach")
TEST_EXTRAS = ("test",)
SITE_EXTRAS = ("course", "sd", "site")  # the API reference imports every part of the library
# Installed first, so that the checkout itself can be installed without fetching a build system:
# a second `make lab` after an edit of pyproject.toml then works without a network.
BUILD_TOOLS = ("hatchling", "editables")

CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# Disk space in GB for the versions of constraints.txt, rounded up: what ends up in .venv, and what
# is downloaded, which pip holds in the temporary folder until it has all of it, and keeps in its
# cache.
SPACE = {
    "cuda": {"venv": 6.5, "temporary": 3.0, "cache": 3.0},
    "cpu": {"venv": 2.2, "temporary": 0.6, "cache": 0.6},
}
PLACES = {
    "venv": ".venv",
    "temporary": "temporary files (TMPDIR moves them)",
    "cache": "pip's cache (PIP_CACHE_DIR moves it)",
}

STAMP = "slam_edu-stamp.json"
UNFINISHED = "slam_edu-unfinished"
LOG = "slam_edu-install.log"


class Problem(Exception):
    """Something the user can put right; its message is one or two plain sentences."""


# ---------------------------------------------------------------------------------------------
# What the machine must have
# ---------------------------------------------------------------------------------------------


def python_problem(
    version: Sequence[int], executable: str, others: Iterable[str]
) -> Optional[str]:
    """Why this Python cannot run the course, or None. `others`: newer ones found on PATH."""
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return None
    found = ".".join(str(part) for part in version[:3])
    need = ".".join(str(part) for part in OLDEST_PYTHON)
    text = "too old a Python: found {} at {}, need {} or newer.".format(found, executable, need)
    others = list(others)
    if others:
        return text + " {0} is installed here: run `PYTHON={0} make lab`.".format(others[0])
    return text + " Install a newer one, then run `PYTHON=python3.12 make lab` with its name."


def runs(command: str) -> bool:
    """Whether `command --version` works: a version manager puts names on PATH that do not."""
    try:
        return not subprocess.call(
            [command, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError:
        return False


def newer_pythons(works: Callable[[str], bool] = runs) -> List[str]:
    """Names of commands for Pythons that constraints.txt covers, newest first."""
    names = ("python3.{}".format(minor) for minor in range(13, OLDEST_PYTHON[1] - 1, -1))
    return [name for name in names if works(name)]


def check_python() -> None:
    """Raise Problem when the Python that runs this is too old."""
    if tuple(sys.version_info[:2]) < OLDEST_PYTHON:
        raise Problem(python_problem(sys.version_info, sys.executable, newer_pythons()))


def venv_problem(version: Sequence[int], has_module: Callable[[str], bool]) -> Optional[str]:
    """Why this Python cannot make a virtual environment, or None.

    Debian and Ubuntu ship `venv` without `ensurepip`: the package python3-venv brings it.
    """
    missing = [name for name in ("venv", "ensurepip") if not has_module(name)]
    if not missing:
        return None
    return (
        "this Python has no {} module, so it cannot make a virtual environment. On Debian and "
        "Ubuntu: `sudo apt install python3-venv` (or python{}.{}-venv for a Python of its own); "
        "elsewhere use a Python that has it.".format(" and no ".join(missing), *version[:2])
    )


def has_module(name: str) -> bool:
    """Whether `import name` would find something."""
    return importlib.util.find_spec(name) is not None


def torch_kind(cpu: bool, system: str) -> str:
    """ "cuda" where pip's default torch brings the CUDA libraries along, else "cpu"."""
    return "cuda" if system == "Linux" and not cpu else "cpu"


def disk_problem(
    kind: str, there: float, disks: Dict[str, Tuple[int, float]], has_gpu: bool
) -> Optional[str]:
    """Why the disks are too small for an install, or None; sizes in GB.

    Args:
        kind: "cuda" or "cpu", a row of `SPACE`.
        there: what `.venv` holds already (an interrupted install, or a smaller extra).
        disks: for each of `PLACES`, the number of the disk that it is on, and the free space
        there.
        has_gpu: an NVIDIA GPU was seen; without one the small CPU build is suggested.
    """
    need = dict(SPACE[kind])
    need["venv"] = max(0.5, need["venv"] - there)
    short = []
    for disk in sorted({number for number, _ in disks.values()}):
        places = [place for place in PLACES if disks[place][0] == disk]
        wanted = sum(need[place] for place in places)
        free = disks[places[0]][1]
        if free < wanted:
            what = " and ".join(PLACES[place] for place in places)
            short.append("{:.1f} GB for {}, where {:.1f} GB are free".format(wanted, what, free))
    if not short:
        return None
    text = "too little disk space: the install needs " + "; ".join(short) + "."
    if kind == "cuda" and not has_gpu:
        text += (
            " No NVIDIA GPU was found here: `make lab CPU=1` installs PyTorch's CPU build, which "
            "needs {:.1f} GB in all.".format(sum(SPACE["cpu"].values()))
        )
    return text + " SLAM_EDU_SKIP_DISK_CHECK=1 goes on regardless."


def pip_cache(environ: Dict[str, str], home: Path) -> Path:
    """Where pip keeps what it downloads, as far as it can be known without asking pip."""
    if environ.get("PIP_CACHE_DIR"):
        return Path(environ["PIP_CACHE_DIR"])
    if environ.get("LOCALAPPDATA"):
        return Path(environ["LOCALAPPDATA"])
    return Path(environ.get("XDG_CACHE_HOME") or str(home))


def disk_of(folder: Path) -> Tuple[int, float]:
    """(number of the disk, free GB) of a folder, or of the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.stat(str(folder)).st_dev, shutil.disk_usage(str(folder)).free / 1e9


def folder_size(folder: Path) -> float:
    """Size of the files below `folder` in GB, links not followed."""
    total = 0
    for parent, _, files in os.walk(str(folder)):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # it went away meanwhile
                pass
    return total / 1e9


def check_disk(cpu: bool) -> None:
    """Raise Problem when the install would fill a disk."""
    if os.environ.get("SLAM_EDU_SKIP_DISK_CHECK"):
        return
    disks = {
        "venv": disk_of(ROOT),
        "temporary": disk_of(Path(tempfile.gettempdir())),
        "cache": disk_of(pip_cache(dict(os.environ), Path(os.path.expanduser("~")))),
    }
    has_gpu = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
    kind = torch_kind(cpu, platform.system())
    problem = disk_problem(kind, folder_size(VENV), disks, has_gpu)
    if problem:
        raise Problem(problem)


def find_browser(
    environ: Optional[Dict[str, str]] = None,
    which: Callable[[str], Optional[str]] = shutil.which,
    exists: Callable[[str], bool] = os.path.exists,
) -> Optional[str]:
    """Path of a Chromium or Chrome for the browser tests, or None.

    $CHROMIUM decides alone when it is set, so that a wrong path is noticed.
    """
    chosen = (os.environ if environ is None else environ).get("CHROMIUM")
    if chosen:
        found = chosen if exists(chosen) else which(chosen)
        if not found:
            raise Problem("CHROMIUM={!r} names no file and no command.".format(chosen))
        return found
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    for name in names:
        path = which(name)
        if path:
            return path
    usual = (
        "/snap/bin/chromium",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe",
        "C:\\Program Files (x86)\\Google\\Chrome\\Application\\chrome.exe",
        "C:\\Program Files (x86)\\Microsoft\\Edge\\Application\\msedge.exe",
    )
    return next((path for path in usual if exists(path)), None)


# ---------------------------------------------------------------------------------------------
# The virtual environment
# ---------------------------------------------------------------------------------------------


def venv_python(venv: Path = VENV, windows: bool = os.name == "nt") -> Path:
    """The interpreter inside `venv`. Never a console script: its first line breaks on a space."""
    return venv / "Scripts" / "python.exe" if windows else venv / "bin" / "python"


def clean_environment() -> Dict[str, str]:
    """The environment for everything that runs inside .venv.

    PYTHONPATH and PYTHONHOME would mix another installation's packages in (ROS sets the first),
    and PIP_USER makes pip refuse to install into a virtual environment.
    """
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
        # This file's own: what runs inside has nothing to install with it.
        and key != "SLAM_EDU_CONSTRAINTS"
    }
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    env["PYTHONUNBUFFERED"] = "1"
    return env


def all_extras(extras: Iterable[str]) -> List[str]:
    """`extras` with the ones that they contain, sorted."""
    result = set(extras)
    for extra in extras:
        result.update(CONTAINS.get(extra, ()))
    return sorted(result)


def constraints_file() -> str:
    """The file with the versions to install, from the checkout if it is relative."""
    name = os.environ.get("SLAM_EDU_CONSTRAINTS") or "constraints.txt"
    if not (ROOT / name).is_file():
        raise Problem("SLAM_EDU_CONSTRAINTS={!r} names no file.".format(name))
    return name


def fingerprint(root: Path) -> str:
    """Changes whenever pyproject.toml or the file of constraints does."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", constraints_file()):
        # A checkout with Windows line ends is the same checkout.
        digest.update((root / name).read_bytes().replace(b"\r\n", b"\n"))
        digest.update(b"\0")
    return digest.hexdigest()


def read_stamp(venv: Path) -> Dict:
    """What the last finished install wrote, or {} when there is none that can be read."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_current(stamp: Dict, root: Path, extras: Iterable[str]) -> bool:
    """Whether the install that wrote `stamp` is the one wanted: nothing is left to do then.

    The folder counts: the editable install holds its path, so a moved checkout is installed again.
    """
    return (
        stamp.get("sha256") == fingerprint(root)
        and stamp.get("root") == str(root)
        and set(all_extras(extras)) <= set(stamp.get("extras", ()))
    )


def write_stamp(venv: Path, root: Path, extras: Iterable[str]) -> None:
    """Record a finished install; written in one move, so that it is whole or not there."""
    stamp = {"sha256": fingerprint(root), "root": str(root), "extras": all_extras(extras)}
    draft = venv / (STAMP + ".draft")
    draft.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    draft.replace(venv / STAMP)


def probe_venv(venv: Path) -> Optional[Tuple[int, int]]:
    """The Python version of a virtual environment that works and has pip, else None."""
    python = venv_python(venv)
    if not python.exists():
        return None
    code = "import sys, pip; print(sys.version_info[0], sys.version_info[1])"
    done = subprocess.run(
        [str(python), "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
        universal_newlines=True,
    )
    numbers = done.stdout.split()
    return (int(numbers[0]), int(numbers[1])) if done.returncode == 0 else None


def drop_unfinished_packages(venv: Path) -> List[str]:
    """Remove what an interrupted pip left half-installed; returns the names.

    pip writes a package's RECORD last. A package without one would count as installed although its
    files may be incomplete; without its metadata pip installs it again. Folders whose name starts
    with `~` are what pip moved aside while it replaced a package.
    """
    dropped = []
    for site in sorted(venv.glob("lib*/python*/site-packages")) + [venv / "Lib" / "site-packages"]:
        for info in sorted(site.glob("*.dist-info")):
            if not (info / "RECORD").exists():
                shutil.rmtree(str(info))
                dropped.append(info.name[: -len(".dist-info")])
        for aside in sorted(site.glob("~*")):
            shutil.rmtree(str(aside), ignore_errors=True)
            dropped.append(aside.name)
    return dropped


def ensure_venv(exact: bool) -> Path:
    """Make .venv where there is none that works; returns its interpreter.

    With `exact` it must have the version of the Python that runs this (`PYTHON=python3.12 make
    lab`); without, any version that is new enough will do, so that a later plain `make lab` keeps
    it.
    """
    if VENV.is_symlink() or (VENV.exists() and not VENV.is_dir()):
        raise Problem("{} is not a folder; move it away, or remove it.".format(VENV))
    version = probe_venv(VENV) if VENV.exists() else None
    here = tuple(sys.version_info[:2])
    if version and version >= OLDEST_PYTHON and (not exact or version == here):
        return venv_python()
    if VENV.exists() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").exists():
        raise Problem(
            "{} exists but is no virtual environment; move it away, or remove it.".format(VENV)
        )
    problem = venv_problem(sys.version_info, has_module)
    if problem:
        raise Problem(problem)
    if sys.prefix != sys.base_prefix and Path(sys.prefix).resolve() == VENV.resolve():
        raise Problem("this is the Python of .venv itself; use the one it was made with.")
    if version:
        print("replacing .venv: it has Python {}.{}".format(*version))
    print("making .venv with Python {}.{}".format(*here), flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], env=clean_environment()
    )
    if done.returncode or not probe_venv(VENV):
        raise Problem("`{} -m venv .venv` failed; its own words are above.".format(sys.executable))
    return venv_python()


# What pip's log says when the cause is not the course's: the first match wins.
EXPLANATIONS = (
    (
        r"No space left on device|\[Errno 28\]|WinError 112",
        "the disk is full. Free some space (or set TMPDIR to a larger folder) and run it again: "
        "what is installed already is kept.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError",
        "a certificate was refused, which usually means a proxy in between: give pip its "
        "certificate with PIP_CERT=/path/to/ca.pem.",
    ),
    (
        r"NewConnectionError|Failed to establish a new connection|NameResolutionError"
        r"|Temporary failure in name resolution|ConnectTimeoutError|ReadTimeoutError"
        r"|ConnectionResetError|ProxyError|Network is unreachable|RemoteDisconnected"
        r"|IncompleteRead",
        "the package index could not be reached. Check the network (behind a proxy set "
        "HTTPS_PROXY) and run it again: what is installed already is kept.",
    ),
    (
        # Without a network pip says the same, so this comes after it.
        r"(?:No matching distribution found for|The user requested \(constraint\)) (?P<what>\S+)",
        "there is no {what} that fits this Python, this machine and pyproject.toml. Python 3.10 "
        "to 3.13 on 64-bit Linux, Windows or an Apple-silicon Mac works (`PYTHON=python3.12 make "
        "lab`); after an edit of pyproject.toml run `make constraints`.",
    ),
)


def explain_pip(status: int, log: str) -> str:
    """One sentence on why pip failed, from its exit status and the text of its log."""
    if status < 0:
        return (
            "it was stopped by signal {}{}. Run it again: what is installed already is kept."
        ).format(-status, " (9 is mostly too little memory)" if status == -9 else "")
    for pattern, sentence in EXPLANATIONS:
        match = re.search(pattern, log)
        if match:
            return sentence.format(**match.groupdict())
    return "its own words are above."


def pip_install(python: Path, arguments: Sequence[str]) -> None:
    """pip install inside .venv; a failure becomes one sentence and the place of the full log."""
    log = VENV / LOG
    start = log.stat().st_size if log.exists() else 0
    command = [str(python), "-m", "pip", "install", "--log", str(log)] + list(arguments)
    done = subprocess.run(command, cwd=str(ROOT), env=clean_environment())
    if done.returncode:
        text = ""
        if log.exists():
            with open(str(log), encoding="utf-8", errors="replace") as file:
                file.seek(start)
                text = file.read()
        raise Problem(
            "pip could not install the course: {} (full log: {})".format(
                explain_pip(done.returncode, text), log
            )
        )


def setup(extras: Sequence[str], cpu: bool = False, exact: bool = False) -> Path:
    """Bring .venv to the state that `extras` need; returns its interpreter.

    Nothing is run when the stamp says that this is done already.
    """
    unknown = [extra for extra in extras if extra not in EXTRAS]
    if unknown:
        raise Problem(
            "no such extra: {}; choose among {}.".format(", ".join(unknown), ", ".join(EXTRAS))
        )
    check_python()
    stamp = read_stamp(VENV)
    if is_current(stamp, ROOT, extras) and venv_python().exists() and not exact:
        return venv_python()
    python = ensure_venv(exact)  # with another version it is made anew, without a stamp
    stamp = read_stamp(VENV)
    if is_current(stamp, ROOT, extras):
        return python
    check_disk(cpu)
    # What an earlier call installed stays wanted: `make lab` must not undo `make test`.
    wanted = all_extras(set(extras) | set(stamp.get("extras", ())))
    unfinished = VENV / UNFINISHED
    if unfinished.exists():
        dropped = drop_unfinished_packages(VENV)
        print(
            "going on with an interrupted install" + (": " + ", ".join(dropped) if dropped else "")
        )
    else:
        unfinished.touch()
        (VENV / LOG).write_text("", encoding="utf-8")  # each install has its own log
    print("installing slam_edu[{}] into .venv".format(",".join(wanted)), flush=True)
    pinned = ["-c", constraints_file()]
    pip_install(python, pinned + list(BUILD_TOOLS))
    if cpu:
        # By itself: no other package shall come from there. Its build counts as the newer one, so
        # that pip prefers it, and it meets the pin, so that the next call keeps it.
        pip_install(python, pinned + ["--extra-index-url", CPU_INDEX, "torch"])
    target = ".[{}]".format(",".join(wanted))
    pip_install(python, pinned + ["--no-build-isolation", "-e", target])
    write_stamp(VENV, ROOT, wanted)
    unfinished.unlink()
    return python


# ---------------------------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------------------------


def run_inside(python: Path, arguments: Sequence[str], **environ: str) -> int:
    """Run `python ARGUMENTS` in the checkout and return its exit status."""
    env = clean_environment()
    env.update(environ)
    return subprocess.run([str(python)] + list(arguments), cwd=str(ROOT), env=env).returncode


def lab_command(python: Path, root: Path, start: str, extra: Sequence[str]) -> List[str]:
    """The command that opens JupyterLab in the folder `root` on the notebook `start` below it.

    It listens on localhost alone, with Jupyter's access token on, which is the default.
    """
    command = [
        str(python),
        "-m",
        "jupyterlab",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.root_dir={}".format(root),
        # Not the file as an argument: only a browser that Jupyter starts itself would then open
        # it, and the address that it prints (all there is on a remote machine) would not lead
        # there.
        "--LabApp.default_url=/lab/tree/{}".format(start),
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # Usual in a container; without it Jupyter refuses to start.
        command.append("--allow-root")
    return command + list(extra)


def lab(options: argparse.Namespace) -> int:
    """Set up, then become JupyterLab."""
    python = setup(LAB_EXTRAS, options.cpu, options.this_python)
    if not (ROOT / START).exists():
        raise Problem("{} is missing: this checkout is not complete.".format(START))
    command = lab_command(python, ROOT, START, options.rest)
    os.chdir(str(ROOT))
    sys.stdout.flush()
    if os.name != "nt":
        # Jupyter takes this process's place: Ctrl-C reaches it alone, and it can ask back.
        os.execve(command[0], command, clean_environment())
    server = subprocess.Popen(command, env=clean_environment())
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:  # Jupyter got it as well, and asks whether to stop
            continue


class Step(NamedTuple):
    """One check of `make test`."""

    name: str
    what: str
    command: List[str]


class Result(NamedTuple):
    """How a step ended."""

    name: str
    status: int
    seconds: float
    passed: int
    skipped: Dict[str, int]  # reason -> how many tests


def jobs() -> int:
    """How many test processes: the cores, at most 4, for each loads torch and takes its memory."""
    text = os.environ.get("SLAM_EDU_JOBS")
    if text is None:
        return max(1, min(4, os.cpu_count() or 1))
    if not text.isdigit() or int(text) < 1:
        raise Problem("SLAM_EDU_JOBS must be a whole number from 1 on; got {!r}.".format(text))
    return int(text)


def test_steps(workers: int, browser: bool) -> List[Step]:
    """Every check of the project, in the order in which they run: the quickest verdict first.

    browser: whether the last of them finds a browser. It then compares the outputs of the long
    notebooks, which need not run twice.
    """
    # In the order of tests/conftest.py, which begins with the files that take longest.
    parallel = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    pytest = ["-m", "pytest"]
    return [
        Step("lint", "ruff over code and notebooks, spelling", ["-m", "tools.lint"]),
        Step(
            "unit",
            "the library and the tools",
            pytest
            + parallel
            + ["tests"]
            + ["--ignore=tests/" + name for name in ("browser", "notebooks", "site")],
        ),
        Step("rules", "house rules of the notebooks", pytest + parallel + ["tests/notebooks"]),
        # Built once for all of its tests, so in one process.
        Step("site", "the website: built, its links, in a real browser", pytest + ["tests/site"]),
        Step(
            "outputs",
            "notebooks run again, outputs compared (nbval)",
            ["-m", "tools.notebooks", "compare", "--jobs", str(workers)]
            + (["--short"] if browser else []),
        ),
        Step(
            "browser",
            "notebooks in JupyterLab in a real browser, outputs compared",
            # One at a time to each process: the long ones come first.
            pytest + ["-n", str(workers), "--maxschedchunk", "1", "tests/browser"],
        ),
    ]


def read_report(path: Path) -> Tuple[int, Dict[str, int]]:
    """(tests passed, {reason: tests skipped}) of a JUnit file; (0, {}) where there is none."""
    if not path.exists():
        return 0, {}
    passed = 0
    skipped = {}  # type: Dict[str, int]
    for case in xml.etree.ElementTree.parse(str(path)).iter("testcase"):
        kinds = {child.tag: child for child in case}
        if "skipped" in kinds:
            reason = kinds["skipped"].get("message", "")
            skipped[reason] = skipped.get(reason, 0) + 1
        elif not {"failure", "error"} & set(kinds):
            passed += 1
    return passed, skipped


def run_step(python: Path, step: Step, folder: Path) -> Result:
    """Run one step, its output passed through as it comes."""
    print("\n=== {}: {}".format(step.name, step.what), flush=True)
    report = folder / (step.name + ".xml")
    counted = [] if step.name == "lint" else ["--junitxml={}".format(report)]
    start = time.time()
    # Two test processes with two threads each fight over two cores and finish later.
    status = run_inside(python, step.command + counted, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    passed, skipped = read_report(report)
    return Result(step.name, status, time.time() - start, passed, skipped)


def summary(results: Sequence[Result]) -> str:
    """A table of the steps and one verdict."""
    lines = ["", "step      result    passed  skipped   seconds"]
    for result in results:
        lines.append(
            "{:<9} {:<8} {:>7} {:>8} {:>9.1f}".format(
                result.name,
                "ok" if result.status == 0 else "FAILED",
                result.passed or "-",
                sum(result.skipped.values()) or "-",
                result.seconds,
            )
        )
    for result in results:
        for reason, count in sorted(result.skipped.items()):
            lines.append("skipped in {}: {} x {}".format(result.name, count, reason))
    failed = [result.name for result in results if result.status]
    total = sum(result.seconds for result in results)
    if failed:
        verdict = "FAILED: " + ", ".join(failed)
    else:
        left_out = sum(sum(result.skipped.values()) for result in results)
        verdict = "ALL OK" + (", {} skipped".format(left_out) if left_out else "")
    lines.append("{} in {:.0f} s".format(verdict, total))
    return "\n".join(lines)


def test(options: argparse.Namespace) -> int:
    """Set up, then run every step even after a failure, and say how each went."""
    names = [step.name for step in test_steps(jobs(), False)]
    chosen = options.only.split(",") if options.only else names
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise Problem(
            "no such step: {}; choose among {}.".format(", ".join(unknown), ", ".join(names))
        )
    steps = test_steps(jobs(), "browser" in chosen and find_browser() is not None)
    python = setup(TEST_EXTRAS, options.cpu, options.this_python)
    with tempfile.TemporaryDirectory() as folder:
        results = [run_step(python, step, Path(folder)) for step in steps if step.name in chosen]
    print(summary(results), flush=True)
    return 1 if any(result.status for result in results) else 0


def lint(options: argparse.Namespace) -> int:
    """Ruff over code and notebooks, and the spelling of both."""
    python = setup(TEST_EXTRAS, options.cpu, options.this_python)
    return run_inside(python, ["-m", "tools.lint"] + options.rest)


def notebooks(options: argparse.Namespace) -> int:
    """Run the notebooks again and write their outputs in place."""
    python = setup(TEST_EXTRAS, options.cpu, options.this_python)
    return run_inside(python, ["-m", "tools.notebooks", "run"] + options.rest)


def site(options: argparse.Namespace) -> int:
    """Build the website into dist/site."""
    python = setup(SITE_EXTRAS, options.cpu, options.this_python)
    return run_inside(python, ["-m", "tools.website"] + options.rest)


def editions(options: argparse.Namespace) -> int:
    """Write the lessons for students and for instructors into editions/."""
    python = setup(TEACH_EXTRAS, options.cpu, options.this_python)
    return run_inside(python, ["-m", "tools.editions"] + options.rest)


def classroom(options: argparse.Namespace) -> int:
    """Set up a class for nbgrader: sources, releases and gradebook of all lessons in a folder."""
    python = setup(TEACH_EXTRAS, options.cpu, options.this_python)
    # The folder is meant as seen from where the command was given.
    folder = os.path.abspath(options.folder)
    return run_inside(python, ["-m", "tools.classroom", folder] + options.rest)


def wheel(options: argparse.Namespace) -> int:
    """Build dist/slam_edu-VERSION-py3-none-any.whl, for Colab and for other people's projects."""
    python = setup(LAB_EXTRAS, options.cpu, options.this_python)
    return run_inside(python, ["-m", "hatchling", "build", "-t", "wheel", "-d", "dist"])


CONSTRAINTS_COMMAND = (
    "uv pip compile --universal --python-version {} --no-python-downloads --all-extras "
    "--no-annotate --no-header -c constraints.in -o constraints.txt pyproject.toml"
).format(".".join(str(part) for part in OLDEST_PYTHON))

CONSTRAINTS_HEADER = """\
# Every package of every extra, pinned for Python 3.10 to 3.13 on Linux, macOS and Windows.
# Written by `make constraints`, which runs:
#   {}
# It keeps the versions below where they still fit; `make constraints UPGRADE=1` takes the newest.
# Versions that are chosen by hand stand in constraints.in.
""".format(CONSTRAINTS_COMMAND)


def constraints(options: argparse.Namespace) -> int:
    """Resolve pyproject.toml and constraints.in into constraints.txt."""
    check_python()
    python = ensure_venv(options.this_python)
    pip_install(python, ["-q", "uv"])
    path = ROOT / "constraints.txt"
    command = ["-m"] + CONSTRAINTS_COMMAND.split() + ["--quiet"]
    status = run_inside(python, command + (["--upgrade"] if options.upgrade else []))
    if status == 0:
        pins = path.read_text(encoding="utf-8")
        path.write_bytes((CONSTRAINTS_HEADER + pins).encode("utf-8"))
        print("wrote constraints.txt: {} lines".format(len(pins.splitlines())))
    return status


def address(options: argparse.Namespace) -> int:
    """Set, show or clear the repository's public address."""
    check_python()
    return run_inside(Path(sys.executable), ["-m", "tools.set_address"] + options.rest)


def clean(options: argparse.Namespace) -> int:
    """Remove what the other commands made: caches and dist/, and .venv with --all."""
    names = ("dist", ".pytest_cache", ".ruff_cache", ".hypothesis", "__pycache__")
    targets = [ROOT / name for name in names]
    for folder in ("slam_edu", "tests", "tools", "notebooks"):
        for name in ("__pycache__", ".ipynb_checkpoints"):
            targets += sorted((ROOT / folder).rglob(name))
    if options.all:
        targets.append(VENV)
    for target in targets:
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(str(target))
            print("removed {}".format(target.relative_to(ROOT)))
    return 0


def only_setup(options: argparse.Namespace) -> int:
    """Install and stop there."""
    python = setup(options.extras.split(","), options.cpu, options.this_python)
    print("ready: {}".format(python))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, function, rest in (
        ("lab", lab, "passed on to JupyterLab, such as --no-browser"),
        ("test", test, None),
        ("setup", only_setup, None),
        ("lint", lint, "passed on to ruff, such as --fix"),
        ("notebooks", notebooks, "passed on to tools.notebooks: notebook files, switches"),
        ("site", site, "passed on to tools.website, such as --linkcheck"),
        ("editions", editions, "passed on to tools.editions, such as --check"),
        ("class", classroom, "passed on to tools.classroom, such as --lessons 01,02"),
        ("wheel", wheel, None),
        ("constraints", constraints, None),
        ("address", address, "the address, or --clear; nothing shows the present one"),
        ("clean", clean, None),
    ):
        doc = (function.__doc__ or "").strip()
        sub = commands.add_parser(name, help=doc.splitlines()[0], description=doc)
        sub.set_defaults(function=function, rest=[])
        sub.add_argument(
            "--cpu",
            action="store_true",
            help="PyTorch's CPU build, a quarter of the size on Linux",
        )
        sub.add_argument(
            "--this-python", action="store_true", help="make .venv anew if it has another Python"
        )
        if name == "setup":
            sub.add_argument(
                "--extras", default="course", help="comma-separated: course, sd, test"
            )
        if name == "test":
            sub.add_argument("--only", default="", help="comma-separated steps, such as lint,unit")
        if name == "class":
            sub.add_argument("--folder", default="class", help="where (default: class)")
        if name == "constraints":
            sub.add_argument("--upgrade", action="store_true", help="take the newest versions")
        if name == "clean":
            sub.add_argument("--all", action="store_true", help="remove .venv as well")
        sub.epilog = rest and "All further arguments are " + rest + "."
    return top


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command; a Problem is printed as one sentence, without a traceback."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if not options.command:
        top.print_help()
        return 2
    with_rest = ("lab", "lint", "notebooks", "site", "editions", "class", "address")
    takes_rest = options.command in with_rest
    if rest and not takes_rest:
        top.error("{} takes no {}".format(options.command, " ".join(rest)))
    options.rest = [argument for argument in rest if argument != "--"]
    try:
        return options.function(options)
    except Problem as problem:
        print("error: {}".format(problem), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

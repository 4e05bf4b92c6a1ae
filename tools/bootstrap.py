"""From a fresh checkout to a running course, with nothing but Python's standard library.

    python3 tools/bootstrap.py lab          install what the lessons need, open JupyterLab
    python3 tools/bootstrap.py test         install what the tests need, run every check
    python3 tools/bootstrap.py --help       the other commands

`make lab`, `make test` and the rest call this file; on Windows: `py tools\\bootstrap.py lab`.
Everything is installed into `.venv` in the checkout, at the versions of constraints.txt. A stamp
in `.venv` lets the second call start at once; an interrupted install goes on where it stopped.

Environment variables:
    SLAM_EDU_SKIP_DISK_CHECK=1   install even though the free space looks too small
    SLAM_EDU_JOBS=N              run the tests in N processes (default: the cores, at most 4)
    SLAM_EDU_CONSTRAINTS=FILE    other versions than those of constraints.txt, such as the oldest
    CHROMIUM=/path/to/chromium   the browser for the browser tests
    CI=true                      a missing browser is a failure, not a skip

The syntax is that of Python 3.6, so that an old Python can read the file and say that it is old.
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
import time
from pathlib import Path

OLDEST_PYTHON = (3, 10)
if sys.version_info < OLDEST_PYTHON:
    newer = list(filter(shutil.which, ["python3.{}".format(minor) for minor in (13, 12, 11, 10)]))
    where = newer[0] + " is installed here" if newer else "Install a newer one"
    sys.exit(
        "error: too old a Python: {} is {}, slam_edu needs 3.10 or newer. {}: run `PYTHON={} make "
        "lab`.".format(
            sys.executable, platform.python_version(), where, (newer or ["python3.12"])[0]
        )
    )

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "slam_edu-stamp.json"
UNFINISHED = VENV / "slam_edu-unfinished"
LOG = VENV / "slam_edu-install.log"
START = "notebooks/00_start_here.ipynb"

EXTRAS = ("course", "sd", "data", "teach", "site", "test")  # `test` contains the others
# Installed first, so that the checkout itself can be installed without fetching a build system:
# a second `make lab` after an edit of pyproject.toml then works without a network.
BUILD_TOOLS = ("hatchling", "editables")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# GB of disk for the versions of constraints.txt, rounded up: in .venv, and on the way there (pip
# holds what it downloads in the temporary folder, and keeps it in its cache).
SPACE = {"cuda": (6.5, 6.0), "cpu": (2.2, 1.2)}


class Problem(Exception):
    """Something the user can put right; its message is one or two plain sentences."""


# -------------------- What the machine must have


def check_disk(cpu: bool) -> None:
    """Raise Problem when the install would fill a disk."""
    if os.environ.get("SLAM_EDU_SKIP_DISK_CHECK"):
        return
    kind = "cuda" if platform.system() == "Linux" and not cpu else "cpu"
    there = sum(path.lstat().st_size for path in VENV.rglob("*")) / 1e9
    need = max(0.5, SPACE[kind][0] - there) + SPACE[kind][1]
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    if free < need:
        small = " `make lab CPU=1` takes PyTorch's CPU build, which needs 4 GB."
        raise Problem(
            f"too little disk space: the install needs {need:.1f} GB, and {free:.1f} GB are free."
            f"{small if kind == 'cuda' else ''} SLAM_EDU_SKIP_DISK_CHECK=1 goes on regardless."
        )


def find_browser() -> "str | None":
    """Path of a Chromium or Chrome for the browser tests, or None.

    $CHROMIUM decides alone when it is set, so that a wrong path is noticed.
    """
    chosen = os.environ.get("CHROMIUM")
    if chosen:
        if not shutil.which(chosen):
            raise Problem(f"CHROMIUM={chosen!r} names no file and no command.")
        return shutil.which(chosen)
    usual = (
        "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
        "/snap/bin/chromium",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe",
        "C:\\Program Files (x86)\\Google\\Chrome\\Application\\chrome.exe",
        "C:\\Program Files (x86)\\Microsoft\\Edge\\Application\\msedge.exe",
    )  # fmt: skip
    return next(filter(None, map(shutil.which, usual)), None)


# -------------------- The virtual environment


def clean_environment() -> dict:
    """The environment for everything that runs inside .venv.

    PYTHONPATH and PYTHONHOME would mix another installation's packages in (ROS sets the first),
    and PIP_USER makes pip refuse to install into a virtual environment.
    """
    foreign = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX",
               "SLAM_EDU_CONSTRAINTS")  # fmt: skip
    env = {key: value for key, value in os.environ.items() if key not in foreign}
    return {**env, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}


def run_inside(arguments: list, **environ: str) -> int:
    """Run .venv's `python ARGUMENTS` in the checkout and return its exit status."""
    env = {**clean_environment(), **environ}
    return subprocess.call([str(PYTHON)] + list(arguments), cwd=str(ROOT), env=env)


def constraints_file() -> str:
    """The file with the versions to install, from the checkout if it is relative."""
    name = os.environ.get("SLAM_EDU_CONSTRAINTS") or "constraints.txt"
    if not (ROOT / name).is_file():
        raise Problem(f"SLAM_EDU_CONSTRAINTS={name!r} names no file.")
    return name


def stamp_of(extras: set) -> dict:
    """What a finished install of `extras` writes; the editable install holds the folder's path."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", constraints_file()):
        # A checkout with Windows line ends is the same checkout.
        digest.update((ROOT / name).read_bytes().replace(b"\r\n", b"\n") + b"\0")
    every = set(EXTRAS) if "test" in extras else extras
    return {"sha256": digest.hexdigest(), "root": str(ROOT), "extras": sorted(every)}


def read_stamp() -> dict:
    """What the last finished install wrote, {} where there is none that can be read."""
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def venv_version() -> "tuple[int, int] | None":
    """(major, minor) of .venv's Python if it works and has pip, else None."""
    code = "import sys, pip; print(*sys.version_info[:2])"
    try:
        out = subprocess.check_output(
            [str(PYTHON), "-c", code], stderr=subprocess.DEVNULL, env=clean_environment()
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(map(int, out.split()))


def ensure_venv(exact: bool) -> None:
    """Make .venv where there is none that works.

    With `exact` it must have the version of the Python that runs this (`PYTHON=python3.12 make
    lab`); without, any that is new enough stays, so that a later plain `make lab` keeps it.
    """
    version, here = venv_version(), sys.version_info[:2]
    if version and version >= OLDEST_PYTHON and (not exact or version == here):
        return
    if VENV.is_file() or (any(VENV.glob("*")) and not (VENV / "pyvenv.cfg").exists()):
        raise Problem(f"{VENV} is no virtual environment; move it away, or remove it.")
    missing = [name for name in ("venv", "ensurepip") if not importlib.util.find_spec(name)]
    if missing:  # Debian and Ubuntu ship `venv` without `ensurepip`
        raise Problem(
            f"this Python has no {' and no '.join(missing)} module, so it cannot make a virtual "
            f"environment. On Debian and Ubuntu: `sudo apt install python3-venv` (or "
            f"python{here[0]}.{here[1]}-venv for a Python of its own)."
        )
    if Path(sys.prefix).resolve() == VENV.resolve():
        raise Problem("this is the Python of .venv itself; use the one it was made with.")
    print("making .venv with Python {}.{}".format(*here), flush=True)
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    if subprocess.call(command, env=clean_environment()) or not venv_version():
        raise Problem(f"`{sys.executable} -m venv .venv` failed; its own words are above.")


# What pip's log says when the cause is not the course's: the first match wins.
EXPLANATIONS = (
    (r"No space left on device|\[Errno 28\]|WinError 112",
     "the disk is full. Free some space (or set TMPDIR to a larger folder) and run it again."),
    (r"NewConnectionError|Failed to establish a new connection|NameResolutionError|ProxyError"
     r"|Temporary failure in name resolution|ConnectTimeoutError|ReadTimeoutError|IncompleteRead"
     r"|ConnectionResetError|Network is unreachable|RemoteDisconnected",
     "the package index could not be reached. Check the network (behind a proxy set HTTPS_PROXY) "
     "and run it again: what is installed already is kept."),
    # Without a network pip says the same, so this comes after it.
    (r"(?:No matching distribution found for|The user requested \(constraint\)) (?P<what>\S+)",
     "there is no {what} that fits this Python, this machine and pyproject.toml. Python 3.10 to "
     "3.13 on 64-bit Linux, Windows or an Apple-silicon Mac works (`PYTHON=python3.12 make lab`); "
     "after an edit of pyproject.toml run `make constraints`."),
)  # fmt: skip


def pip_install(*arguments: str) -> None:
    """pip install inside .venv; a failure becomes one sentence and the place of the full log."""
    start = LOG.stat().st_size if LOG.exists() else 0
    status = run_inside(["-m", "pip", "install", "--log", str(LOG), *arguments])
    if not status:
        return
    text = LOG.read_bytes()[start:].decode("utf-8", "replace") if LOG.exists() else ""
    found = ((re.search(pattern, text), sentence) for pattern, sentence in EXPLANATIONS)
    words = next((say.format(**match.groupdict()) for match, say in found if match), None)
    if status < 0:
        words = f"it was stopped by signal {-status} (9 is mostly too little memory)."
    words = words or "its own words are above."
    raise Problem(f"pip could not install the course: {words} (full log: {LOG})")


def drop_unfinished_packages() -> None:
    """Remove the metadata of packages that an interrupted pip left half-installed.

    pip writes a package's RECORD last. Without one it would count as installed although its files
    may be incomplete; without its metadata pip installs it again.
    """
    places = ("lib*/python*/site-packages", "Lib/site-packages")
    for info in [info for place in places for info in VENV.glob(place + "/*.dist-info")]:
        if not (info / "RECORD").exists():
            shutil.rmtree(str(info))


def setup(extras: tuple, options: argparse.Namespace) -> None:
    """Bring .venv to the state that `extras` need; nothing is run when the stamp says it is so."""
    unknown = [extra for extra in extras if extra not in EXTRAS]
    if unknown:
        raise Problem(f"no such extra: {', '.join(unknown)}; choose among {', '.join(EXTRAS)}.")

    def current() -> bool:
        stamp, wanted = read_stamp(), stamp_of(set(extras))
        inside = set(wanted["extras"]) <= set(stamp.get("extras", ()))
        return inside and {**stamp, "extras": wanted["extras"]} == wanted and PYTHON.exists()

    if current() and not options.this_python:
        return
    ensure_venv(options.this_python)  # with another version it is made anew, without a stamp
    if current():
        return
    check_disk(options.cpu)
    if UNFINISHED.exists():
        print("going on with an interrupted install")
        drop_unfinished_packages()
    UNFINISHED.touch()
    # What an earlier call installed stays wanted: `make lab` must not undo `make test`.
    stamp = stamp_of(set(extras) | set(read_stamp().get("extras", ())))
    target = f".[{','.join(stamp['extras'])}]"
    print(f"installing slam_edu{target[1:]} into .venv", flush=True)
    pinned = ["-c", constraints_file()]
    pip_install(*pinned, *BUILD_TOOLS)
    if options.cpu:
        # By itself: no other package shall come from there. Its build counts as the newer one, so
        # that pip prefers it, and it meets the pin, so that the next call keeps it.
        pip_install(*pinned, "--extra-index-url", CPU_INDEX, "torch")
    pip_install(*pinned, "--no-build-isolation", "-e", target)
    STAMP.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    UNFINISHED.unlink()


# -------------------- The commands


def lab_command(python: Path, root: Path, start: str, extra: list) -> list:
    """The command that opens JupyterLab in the folder `root` on the notebook `start` below it.

    It listens on localhost alone, with Jupyter's access token on, which is the default.
    """
    # Not the file as an argument: the address that Jupyter prints (all there is on a remote
    # machine) would not lead there.
    places = [f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{start}"]
    command = [str(python), "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", *places]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # usual in a container
    return command + list(extra)


def lab(options: argparse.Namespace) -> int:
    """Install what the lessons need and open JupyterLab on the first one."""
    setup(("course", "sd"), options)
    command = lab_command(PYTHON, ROOT, START, options.rest)
    os.chdir(str(ROOT))
    if os.name != "nt":
        # Jupyter takes this process's place: Ctrl-C reaches it alone, and it can ask back.
        os.execve(command[0], command, clean_environment())
    server = subprocess.Popen(command, env=clean_environment())
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:  # Jupyter got it as well, and asks whether to stop
            continue


PARTS = ("lint", "unit", "notebooks", "site", "browser")


def pytest_arguments(parts: list, workers: str) -> list:
    """pytest's arguments for some of `PARTS`: one session, so that no process idles."""
    places = [f"tests/{part}" for part in PARTS[2:] if part in parts]
    if "unit" in parts:  # everything that has no part of its own
        places = ["tests", *(f"--ignore=tests/{part}" for part in PARTS[2:] if part not in parts)]
    if "notebooks" in parts:  # nbval, strict; with a browser, which compares all, two short ones
        lessons = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
        if find_browser():
            lessons = [name for name in lessons if name.startswith(("01", "04"))]
        places += ["--nbval", "--nbval-current-env", "--nbval-sanitize-with=tests/nbval.cfg"]
        places += [f"notebooks/{name}" for name in lessons]
    # In the order of tests/conftest.py, which begins with what takes longest.
    spread = ["-n", workers, "--dist", "loadfile", "--no-loadscope-reorder"]
    return ["-m", "pytest", *spread, "--durations=15", *places]


def test(options: argparse.Namespace) -> int:
    """Install what the tests need and run every check (--only lint,unit for some)."""
    chosen = (options.only or ",".join(PARTS)).split(",")
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise Problem(f"no such step: {', '.join(unknown)}; choose among {', '.join(PARTS)}.")
    workers = os.environ.get("SLAM_EDU_JOBS", str(min(4, os.cpu_count() or 1)))
    if not workers.isdigit() or int(workers) < 1:
        raise Problem(f"SLAM_EDU_JOBS must be a whole number from 1 on; got {workers!r}.")
    setup(("test",), options)
    start, failed = time.time(), []
    if "lint" in chosen and run_inside(["-m", "tools.lint"]):
        failed.append("lint")
    if set(chosen) - {"lint"}:
        # Two test processes with two threads each fight over two cores and finish later.
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if run_inside(pytest_arguments(chosen, workers), **one):
            failed.append("tests")
    verdict = "FAILED: " + ", ".join(failed) if failed else "ALL OK"
    print(f"\n{verdict} in {time.time() - start:.0f} s", flush=True)
    return 1 if failed else 0


def only_setup(options: argparse.Namespace) -> int:
    """Install and stop there (--extras course,sd)."""
    setup(tuple(options.extras.split(",")), options)
    print(f"ready: {PYTHON}")
    return 0


# Commands that are one line inside .venv: {name: (help, extras, arguments of Python)}.
INSIDE = {
    "lint": ("ruff over code and notebooks, spelling", ("test",), "-m tools.lint"),
    "notebooks": ("run the notebooks again, in place", ("test",), "-m tools.notebooks"),
    "site": ("build the website into dist/site", ("course", "sd", "site"), "-m tools.website"),
    "editions": ("write the lessons for students and instructors", ("course", "sd", "teach"),
                 "-m tools.editions"),
    "class": ("set up a class for nbgrader", ("course", "sd", "teach"), "-m tools.classroom"),
    "wheel": ("build dist/slam_edu-….whl, for Colab", ("course", "sd"),
              "-m hatchling build -t wheel -d dist"),
}  # fmt: skip
FUNCTIONS = {"lab": lab, "test": test, "setup": only_setup}


def main(arguments: "list | None" = None) -> int:
    """Run one command; a Problem is printed as one sentence, without a traceback."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in (*FUNCTIONS, *INSIDE):
        text = FUNCTIONS[name].__doc__ if name in FUNCTIONS else INSIDE[name][0]
        sub = commands.add_parser(name, help=text, add_help=name not in INSIDE)
        sub.add_argument("--cpu", action="store_true", help="PyTorch's small build for CPUs")
        sub.add_argument("--this-python", action="store_true", help="make .venv with this one")
        if name == "setup":
            sub.add_argument("--extras", default="course", help=", ".join(EXTRAS))
        if name == "test":
            sub.add_argument("--only", default="", help=", ".join(PARTS))
    options, options.rest = parser.parse_known_args(arguments)
    if options.rest and options.command in ("test", "setup"):
        parser.error(f"{options.command} takes no {' '.join(options.rest)}")
    try:
        if options.command in FUNCTIONS:
            return FUNCTIONS[options.command](options)
        _, extras, command = INSIDE[options.command]
        setup(extras, options)
        return run_inside(command.split() + options.rest)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

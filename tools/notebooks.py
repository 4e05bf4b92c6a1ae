"""Run the notebooks so that their outputs can be committed, and compare committed outputs.

    python -m tools.notebooks run [NOTEBOOK...]    run again, write the outputs in place
    python -m tools.notebooks run --check [...]    write nothing; say which cells would change
    python -m tools.notebooks run --twice [...]    write nothing; two runs must give equal bytes
    python -m tools.notebooks compare [--jobs N]   nbval, strict: every text output compared
    … compare --short        not the long ones, which the browser test runs and compares

Without NOTEBOOK: all of `notebooks/*.ipynb`.

Two runs on one machine give the same bytes, so a diff shows what changed and nothing else. What a
plain execution leaves behind is taken out or made canonical: times of execution, the patch version
of Python, an editor's own metadata, memory addresses, the random ids of widgets. Pictures differ
between processors in the last bit of a pixel, so `--check` and nbval compare text alone, and
`metadata.slam_edu.source_sha256` records which code the outputs belong to: a cell that was edited
without running it is found without running anything (tools/notebook_rules.py).

A cell that prints what cannot repeat (seconds, the name of the machine) carries nbval's tag
`nbval-ignore-output`. Its outputs are kept from the earlier run as long as no code of the notebook
has changed; `--fresh` measures again.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SANITIZE = ROOT / "tests" / "nbval.cfg"

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

VOLATILE_TAG = "nbval-ignore-output"
SETUP_TAG = "setup"
CELL_METADATA = ("deletable", "editable", "jupyter", "slideshow", "tags")  # what a cell may keep

# A saved explorer shows its first picture where no kernel runs. Beyond this size (bytes of JSON)
# its state is dropped: the static figure beside it has to do, and the notebook stays small.
WIDGET_STATE_CAP = 150_000

CELL_TIMEOUT = 600  # seconds; the slowest lesson's slowest cell takes about a sixth of it

# The conditions under which outputs are made and compared. One thread, because the order in which
# threads add floats shows in the last digits, and so that two notebooks can share two cores.
KERNEL_ENV = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "TQDM_DISABLE": "1",  # a progress bar's rate never repeats
}

_ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}\b")
_CELL_FILE = re.compile(r"[^\s\"']*ipykernel_\d+[/\\]\d+\.py")
_MODEL = re.compile(r"IPY_MODEL_([0-9a-f]{32})")


def is_long(nb: NotebookNode) -> bool:
    """Whether running it takes more than half a minute (``metadata.slam_edu.long``).

    The test in a browser compares the outputs of every notebook. `compare --short` leaves the long
    ones to it, so that they run once in a test of the whole project.
    """
    return bool(nb.metadata.get("slam_edu", {}).get("long", False))


def source_sha256(nb: NotebookNode) -> str:
    """Hash of the code that the outputs belong to.

    The set-up cell is left out: it prints nothing, and `make address` rewrites it.
    """
    digest = hashlib.sha256()
    for cell in nb.cells:
        if cell.cell_type == "code" and SETUP_TAG not in cell.metadata.get("tags", []):
            digest.update(cell.source.encode("utf-8") + b"\0")
    return digest.hexdigest()


def to_text(nb: NotebookNode) -> str:
    """The canonical bytes of a notebook file."""
    return nbformat.writes(nb) + "\n"


# ---------------------------------------------------------------------------------------------
# Executing
# ---------------------------------------------------------------------------------------------


def produce(nb: NotebookNode, folder: Path, fresh: bool = False) -> tuple[NotebookNode, list[str]]:
    """Run `nb` with `folder` as its working directory.

    Returns:
        (the notebook with canonical outputs, notes worth a line for the user); `nb` is not
        changed.

    Raises:
        nbclient's errors when a cell fails, takes too long, or its kernel dies.
    """
    old, nb = nb, copy.deepcopy(nb)
    nb.metadata.pop("widgets", None)
    nb.metadata["kernelspec"] = dict(KERNELSPEC)
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as log:
        # Somebody's own start-up files must not reach the outputs.
        env = {**os.environ, **KERNEL_ENV, "IPYTHONDIR": home}
        client = NotebookClient(
            nb,
            timeout=CELL_TIMEOUT,
            kernel_name=KERNELSPEC["name"],
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        try:
            client.execute(env=env, stderr=log)
        except DeadKernelError:
            log.seek(0)  # the kernel's last words; otherwise they are of no interest
            sys.stderr.write(log.read().decode("utf-8", errors="replace"))
            raise
    notes = normalise(nb)
    kept = 0 if fresh else keep_volatile(nb, old)
    if kept:
        notes.append(f"kept the measured outputs of {kept} cells (--fresh measures again)")
    nb.metadata["slam_edu"] = {
        **nb.metadata.get("slam_edu", {}),
        "source_sha256": source_sha256(nb),
    }
    return nb, notes


def normalise(nb: NotebookNode) -> list[str]:
    """Make an executed notebook canonical, in place; returns notes for the user."""
    notes = []
    widgets = nb.metadata.get("widgets", {})
    nb.metadata = NotebookNode(
        kernelspec=NotebookNode(KERNELSPEC),
        language_info=NotebookNode(name="python"),
        **({"slam_edu": nb.metadata["slam_edu"]} if "slam_edu" in nb.metadata else {}),
    )
    nb.nbformat_minor = max(nb.nbformat_minor, 5)
    for index, cell in enumerate(nb.cells):
        kept = {key: cell.metadata[key] for key in CELL_METADATA if key in cell.metadata}
        cell.metadata = NotebookNode(kept)
        if not cell.get("id"):
            cell["id"] = f"cell-{index:03d}"
        if cell.cell_type == "code":
            cell.outputs = join_streams(cell.outputs)
            for output in cell.outputs:
                clean_output(output)
    state = widgets.get(WIDGET_STATE, {}).get("state", {})
    names = widget_names(nb, state)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = rename(cell.outputs, names)
    if names and state:
        renamed = {new: rename(state[old], names) for old, new in names.items() if old in state}
        size = len(json.dumps(renamed))
        if size <= WIDGET_STATE_CAP:
            record = {"state": renamed, "version_major": 2, "version_minor": 0}
            nb.metadata["widgets"] = nbformat.from_dict({WIDGET_STATE: record})
        else:
            notes.append(
                f"dropped {size:,} bytes of widget state (kept up to {WIDGET_STATE_CAP:,}): "
                f"without a kernel the explorers show no picture"
            )
    return notes


def join_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """One output per run of prints: where a stream is cut depends on timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if (
            last
            and output.output_type == last.output_type == "stream"
            and output.name == last.name
        ):
            last.text += output.text
        else:
            joined.append(output)
    return joined


def clean_output(output: NotebookNode) -> None:
    """Replace memory addresses and the kernel's temporary file names, in place."""

    def clean(text: str) -> str:
        return _CELL_FILE.sub("<cell>", _ADDRESS.sub("at 0x0", text))

    if output.output_type == "stream":
        output.text = clean(output.text)
    for mime, value in output.get("data", {}).items():
        if isinstance(value, str) and not mime.startswith("image/"):
            output.data[mime] = clean(value)


def widget_names(nb: NotebookNode, state: dict) -> dict[str, str]:
    """New ids for the widgets that the notebook shows, {random id: stable id}.

    Numbered in the order in which they are shown, each followed by the models that it refers to.
    Widgets that are never shown get none, so their state is dropped: nothing gives them an order.
    """
    shown = [
        output["data"][WIDGET_VIEW]["model_id"]
        for cell in nb.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if WIDGET_VIEW in output.get("data", {})
    ]
    names: dict[str, str] = {}
    queue = list(shown)
    while queue:
        model = queue.pop(0)
        if model not in names:
            names[model] = f"{len(names):032x}"
            queue.extend(_MODEL.findall(json.dumps(state.get(model, {}), sort_keys=True)))
    return names


def rename(tree: object, names: dict[str, str]) -> object:
    """`tree` (JSON) with every id in `names` replaced, wherever it stands."""
    if not names:
        return tree
    pattern = re.compile("|".join(names))
    text = pattern.sub(lambda match: names[match.group()], json.dumps(tree))
    return nbformat.from_dict(json.loads(text))


def keep_volatile(nb: NotebookNode, old: NotebookNode) -> int:
    """Put earlier outputs of volatile cells back if no code has changed; returns how many."""
    if old.metadata.get("slam_edu", {}).get("source_sha256") != source_sha256(nb):
        return 0
    kept = 0
    for cell, before in zip(nb.cells, old.cells, strict=True):
        volatile = cell.cell_type == "code" and VOLATILE_TAG in cell.metadata.get("tags", [])
        if volatile and before.outputs and cell.outputs != before.outputs:
            cell.outputs = copy.deepcopy(before.outputs)
            kept += 1
    return kept


# ---------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------


def visible_text(cell: NotebookNode) -> list[str]:
    """What a reader sees of a cell's outputs, as lines; a picture or widget only as being there.

    A widget's own text is not looked at: it holds the first bytes of its picture.
    """
    lines: list[str] = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            lines += [f"[{output.name}]", *output.text.splitlines()]
        elif output.output_type == "error":
            lines += ["[error]", f"{output.ename}: {output.evalue}"]
        elif WIDGET_VIEW in output.data:
            lines.append(f"[{output.output_type}: widget]")
        else:
            for mime in sorted(output.data):
                lines.append(f"[{output.output_type}: {mime}]")
                if not mime.startswith("image/") or mime == "image/svg+xml":
                    value = output.data[mime]
                    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
                    lines += text.splitlines()
    return lines


def differences(stored: NotebookNode, new: NotebookNode) -> list[str]:
    """Which cells' text outputs differ, one block of text each."""
    found = []
    for index, (before, after) in enumerate(zip(stored.cells, new.cells, strict=True), start=1):
        if before.cell_type != "code" or VOLATILE_TAG in before.metadata.get("tags", []):
            continue
        if before.get("execution_count") != after.get("execution_count"):
            found.append(
                f"cell {index}: run as number {before.get('execution_count')}, "
                f"in order it is {after.get('execution_count')}"
            )
        diff = difflib.unified_diff(
            visible_text(before), visible_text(after), "stored", "run now", lineterm="", n=1
        )
        lines = list(diff)
        if lines:
            first = (before.source.strip() or "(empty)").splitlines()[0]
            found.append("\n".join([f"cell {index}, `{first}`:", *lines[:40]]))
    return found


def first_difference(one: str, two: str) -> str:
    """Where two texts part, in a form that fits a terminal."""
    pairs = zip(one.splitlines(), two.splitlines(), strict=False)
    for number, (left, right) in enumerate(pairs, start=1):
        if left != right:
            at = next(i for i in range(len(left) + 1) if left[: i + 1] != right[: i + 1])
            part = slice(max(0, at - 40), at + 60)
            return f"line {number}: {left[part]!r} and then {right[part]!r}"
    return f"{len(one)} and then {len(two)} characters"


# ---------------------------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------------------------


def find(names: list[str]) -> Iterator[Path]:
    """The notebooks named, or all of them.

    Raises:
        FileNotFoundError: one does not exist, or there is none at all.
    """
    paths = [Path(name) for name in names] or sorted(NOTEBOOKS.glob("*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no notebooks in {NOTEBOOKS}")
    for path in paths:
        if path.suffix != ".ipynb" or not path.is_file():
            raise FileNotFoundError(f"{str(path)!r} is not a notebook file (.ipynb)")
    yield from paths


def find_short() -> list[Path]:
    """All notebooks but the long ones."""
    return [path for path in find([]) if not is_long(nbformat.read(path, as_version=4))]


def run_one(path: Path, mode: str, fresh: bool) -> tuple[bool, str, list[str]]:
    """Run one notebook; returns (is all well, one word on it, details).

    mode: "write", "check" or "twice".
    """
    # Byte for byte: on Windows, too, a notebook is written with Unix line ends.
    before = path.read_bytes().decode("utf-8")
    stored = nbformat.reads(before, as_version=4)
    folder = path.resolve().parent
    new, notes = produce(stored, folder, fresh)
    after = to_text(new)
    if mode == "check":
        found = differences(stored, new)
        if stored.metadata.get("slam_edu", {}).get("source_sha256") != source_sha256(stored):
            found.insert(0, "its code was edited after the last `make notebooks`")
        return not found, "STALE" if found else "fresh", found
    if mode == "twice":
        again = to_text(produce(new, folder)[0])
        if again != after:
            return False, "VARIES", [first_difference(after, again)]
        return True, "repeats", []
    if after == before:
        return True, "same", notes
    path.write_bytes(after.encode("utf-8"))
    return True, "wrote", notes


def command_run(options: argparse.Namespace) -> int:
    """`run`: one line a notebook, details below it, exit status 1 when one is not well."""
    mode = "check" if options.check else "twice" if options.twice else "write"
    bad = 0
    for path in find(options.notebooks):
        start = time.perf_counter()
        try:
            good, word, details = run_one(path, mode, options.fresh)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            good, word, details = False, "FAILED", [str(error).strip()]
        bad += not good
        print(f"{word:<8} {path.name}  {time.perf_counter() - start:.1f} s", flush=True)
        for detail in details:
            print("    " + detail.replace("\n", "\n    "), flush=True)
    return 1 if bad else 0


def named(arguments: list[str]) -> bool:
    """Whether pytest's arguments say which notebooks are meant."""
    return any(argument.endswith(".ipynb") for argument in arguments)


def compare_command(jobs: int, rest: list[str], short: bool = False) -> list[str]:
    """The strict nbval run, as arguments for Python.

    `--dist loadfile`, because the cells of one notebook share a kernel; `--nbval-current-env`,
    because a kernel's name says nothing about which Python it starts.
    """
    return [
        *("-m", "pytest", "--nbval", "--nbval-current-env"),
        *("--nbval-cell-timeout", str(CELL_TIMEOUT)),
        *("--nbval-sanitize-with", str(SANITIZE)),
        *(("-n", str(jobs), "--dist", "loadfile") if jobs > 1 else ()),
        *rest,
        *map(str, [] if named(rest) else find_short() if short else find([])),
    ]


def command_compare(options: argparse.Namespace) -> int:
    """`compare`: nbval in a process of its own, under the conditions of `run`."""
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, **KERNEL_ENV, "IPYTHONDIR": home}
        command = [sys.executable, *compare_command(options.jobs, options.rest, options.short)]
        return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m tools.notebooks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run notebooks, write their outputs in place")
    run.set_defaults(function=command_run)
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK")
    how = run.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="write nothing; exit 1 if text changed")
    how.add_argument("--twice", action="store_true", help="write nothing; exit 1 if bytes vary")
    run.add_argument("--fresh", action="store_true", help="renew the outputs that cannot repeat")
    compare = commands.add_parser("compare", help="compare every stored text output (nbval)")
    compare.set_defaults(function=command_compare)
    compare.add_argument("--jobs", type=int, default=1, help="notebooks at a time")
    compare.add_argument(
        "--short", action="store_true", help="not the long ones: the browser test compares them"
    )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; what `compare` does not know goes to pytest."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and options.function is not command_compare:
        top.error("unrecognized arguments: " + " ".join(rest))
    options.rest = rest
    try:
        return options.function(options)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

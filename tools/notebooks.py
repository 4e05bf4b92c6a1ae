"""Run the notebooks so that their outputs can be committed, and compare committed outputs.

    python -m tools.notebooks [NOTEBOOK...]            run again, write the outputs in place
    python -m tools.notebooks --check [NOTEBOOK...]    write nothing; say which cells would change

Two runs on one machine give the same bytes, so a diff shows what changed and nothing else. What a
plain execution leaves behind is taken out or made canonical: times of execution, the patch version
of Python, an editor's own metadata, memory addresses, the random ids of widgets. Pictures differ
between processors in the last bit of a pixel, so `--check` compares text alone, and
`metadata.slam_edu.source_sha256` records which code the outputs belong to: a cell that was edited
without running it is found without running anything (tools/notebook_rules.py).

A cell that prints what cannot repeat (seconds, the name of the machine) has the tag
`nbval-ignore-output`. Its outputs are kept from the earlier run as long as no code of the notebook
has changed; `--fresh` measures again.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from tools import ROOT, command_line

NOTEBOOKS = ROOT / "notebooks"

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

VOLATILE_TAG = "nbval-ignore-output"
SETUP_TAG = "setup"
CELL_METADATA = ("deletable", "editable", "jupyter", "slideshow", "tags")  # what a cell may keep

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
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


def tags(cell: NotebookNode) -> list[str]:
    """A cell's tags."""
    return cell.metadata.get("tags", [])


def read_lessons() -> dict[str, NotebookNode]:
    """{name without suffix: notebook} of all lessons."""
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    return {path.stem: nbformat.reads(path.read_text("utf-8"), as_version=4) for path in paths}


def source_sha256(nb: NotebookNode) -> str:
    """Hash of the code that the outputs belong to.

    The set-up cell is left out: it prints nothing, and `make address` rewrites it.
    """
    digest = hashlib.sha256()
    for cell in nb.cells:
        if cell.cell_type == "code" and SETUP_TAG not in tags(cell):
            digest.update(cell.source.encode("utf-8") + b"\0")
    return digest.hexdigest()


def to_text(nb: NotebookNode) -> str:
    """The canonical bytes of a notebook file."""
    return nbformat.writes(nb) + "\n"


# -------------------- Executing


def produce(nb: NotebookNode, folder: Path, fresh: bool = False) -> tuple[NotebookNode, int]:
    """Run a copy of `nb` with `folder` as its working directory; nbclient's errors pass through.

    Returns the notebook with canonical outputs, and how many cells kept those measured earlier.
    """
    new = copy.deepcopy(nb)
    new.metadata.pop("widgets", None)
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as log:
        # Somebody's own start-up files must not reach the outputs.
        env = {**os.environ, **KERNEL_ENV, "IPYTHONDIR": home}
        # Where a stream is cut depends on timing.
        client = NotebookClient(
            new, timeout=CELL_TIMEOUT, kernel_name=KERNELSPEC["name"], record_timing=False,
            coalesce_streams=True, resources={"metadata": {"path": str(folder)}},
        )  # fmt: skip
        try:
            client.execute(env=env, stderr=log)
        except DeadKernelError:
            log.seek(0)  # the kernel's last words; otherwise they are of no interest
            sys.stderr.write(log.read().decode("utf-8", errors="replace"))
            raise
    new = normalise(new)
    kept = 0 if fresh else keep_volatile(new, nb)
    new.metadata["slam_edu"] = {"source_sha256": source_sha256(new)}
    return new, kept


def normalise(nb: NotebookNode) -> NotebookNode:
    """An executed notebook in its canonical form; `nb` is changed on the way."""
    state = nb.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    nb.metadata = NotebookNode(
        kernelspec=NotebookNode(KERNELSPEC),
        language_info=NotebookNode(name="python"),
        slam_edu=nb.metadata.get("slam_edu", NotebookNode()),
    )
    nb.nbformat_minor = max(nb.nbformat_minor, 5)
    for index, cell in enumerate(nb.cells):
        kept = {key: cell.metadata[key] for key in CELL_METADATA if key in cell.metadata}
        cell.metadata = NotebookNode(kept)
        cell.setdefault("id", f"cell-{index:03d}")
        for output in cell.get("outputs", []):
            clean_output(output)
    names = widget_names(nb, state)
    shown = {model: state[model] for model in names if model in state}
    if shown:  # where no kernel runs, a saved explorer shows its first picture
        saved = {"state": shown, "version_major": 2, "version_minor": 0}
        nb.metadata["widgets"] = nbformat.from_dict({WIDGET_STATE: saved})
    text = _ID.sub(lambda match: names.get(match[0], match[0]), to_text(nb))
    return nbformat.reads(text, as_version=4)


def clean_output(output: NotebookNode) -> None:
    """Replace memory addresses and the kernel's temporary file names, in place."""
    parts = [(output, "text")] if output.output_type == "stream" else []
    data = output.get("data", {})
    parts += [(data, mime) for mime in data if not mime.startswith("image/")]
    for place, key in parts:
        if isinstance(place[key], str):
            place[key] = _CELL_FILE.sub("<cell>", _ADDRESS.sub("at 0x0", place[key]))


def widget_names(nb: NotebookNode, state: dict) -> dict[str, str]:
    """New ids for the widgets that the notebook shows, {random id: stable id}.

    Numbered in the order in which they are shown, each followed by the models that it refers to.
    Widgets that are never shown get none, and lose their state: nothing gives them an order.
    """
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    views = [output.get("data", {}).get(WIDGET_VIEW) for output in outputs]
    queue = [view["model_id"] for view in views if view]
    names: dict[str, str] = {}
    while queue:
        model = queue.pop(0)
        if model not in names:
            names[model] = f"{len(names):032x}"
            queue += _MODEL.findall(json.dumps(state.get(model, {}), sort_keys=True))
    return names


def keep_volatile(nb: NotebookNode, old: NotebookNode) -> int:
    """Put earlier outputs of volatile cells back if no code has changed; returns how many."""
    if old.metadata.get("slam_edu", {}).get("source_sha256") != source_sha256(nb):
        return 0
    kept = 0
    for cell, before in zip(nb.cells, old.cells, strict=True):
        volatile = cell.cell_type == "code" and VOLATILE_TAG in tags(cell)
        if volatile and before.outputs and cell.outputs != before.outputs:
            cell.outputs = copy.deepcopy(before.outputs)
            kept += 1
    return kept


# -------------------- Comparing


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
        if before.cell_type != "code" or VOLATILE_TAG in tags(before):
            continue
        was, now = before.get("execution_count"), after.get("execution_count")
        if was != now:
            found.append(f"cell {index}: run as number {was}, in order it is {now}")
        texts = visible_text(before), visible_text(after)
        lines = list(difflib.unified_diff(*texts, "stored", "run now", lineterm="", n=1))
        if lines:
            first = (before.source.strip() or "(empty)").splitlines()[0]
            found.append("\n".join([f"cell {index}, `{first}`:", *lines[:40]]))
    return found


def run_one(path: Path, check: bool, fresh: bool) -> tuple[bool, str, list[str]]:
    """Run one notebook; returns (is all well, one word on it, details)."""
    before = path.read_text("utf-8")
    stored = nbformat.reads(before, as_version=4)
    new, kept = produce(stored, path.resolve().parent, fresh)
    notes = [f"kept the measured outputs of {kept} cells (--fresh measures again)"] if kept else []
    if check:
        found = differences(stored, new)
        if stored.metadata.get("slam_edu", {}).get("source_sha256") != source_sha256(stored):
            found.insert(0, "its code was edited after the last `make notebooks`")
        return not found, "STALE" if found else "fresh", found
    if to_text(new) == before:
        return True, "same", notes
    # On Windows, too, a notebook is written with Unix line ends.
    path.write_text(to_text(new), encoding="utf-8", newline="\n")
    return True, "wrote", notes


def main(arguments: list[str] | None = None) -> int:
    """One line a notebook, details below it, exit status 1 when one is not well."""
    parser = command_line("notebooks", __doc__)
    lessons = sorted(NOTEBOOKS.glob("*.ipynb"))
    parser.add_argument("notebooks", nargs="*", type=Path, default=lessons)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if text changed"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="renew the outputs that cannot repeat"
    )
    options = parser.parse_args(arguments)
    for path in options.notebooks:
        if path.suffix != ".ipynb" or not path.is_file():
            parser.error(f"{str(path)!r} is not a notebook file (.ipynb)")
    bad = 0
    for path in options.notebooks:
        start = time.perf_counter()
        try:
            good, word, details = run_one(path, options.check, options.fresh)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            good, word, details = False, "FAILED", [str(error).strip()]
        bad += not good
        print(f"{word:<8} {path.name}  {time.perf_counter() - start:.1f} s", flush=True)
        for detail in details:
            print("    " + detail.replace("\n", "\n    "), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""A small notebook that keeps every house rule, for the tests to break."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools.notebook_rules import Lesson
from tools.notebooks import KERNELSPEC, source_sha256
from tools.set_address import setup_cell_source

ALT = "A single grey pixel, which stands for a figure."


def png(level: int = 128) -> bytes:
    """A grey picture of one pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes([0, level])))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def figure_output(alt: str = ALT) -> NotebookNode:
    """What displaying a figure of slam_course leaves in a cell."""
    data = {"image/png": base64.b64encode(png()).decode(), "text/plain": f"[figure] {alt}"}
    return nbformat.v4.new_output("display_data", data)


def made_exercise() -> list[NotebookNode]:
    """Stub, check and solution of an exercise."""
    stub = "def bend(x):\n    # Your code here\n    return ..."
    solution = (
        "# One solution (unfold to read)\ndef bend_solution(x):\n    return x * x\n\n\n"
        "verdict = checks.bend(bend_solution)\nassert verdict.passed\nverdict"
    )
    return [
        nbformat.v4.new_code_cell(stub, metadata={"tags": ["stub"]}),
        nbformat.v4.new_code_cell("checks.bend(bend)", metadata={"tags": ["check", "points:4"]}),
        nbformat.v4.new_code_cell(
            solution, metadata={"tags": ["solution"], "jupyter": {"source_hidden": True}}
        ),
    ]


def made_notebook() -> NotebookNode:
    """A notebook of 23 cells as `make notebooks` would leave it."""
    prose = "A path bends, and a straight line does not follow it. "  # 11 words
    cells = [
        nbformat.v4.new_markdown_cell(
            "# How a path bends\n\n## Objectives\n\nYou will see it.\n\n"
            "## Prerequisites\n\nNone.\n\n"
            "## Budget\n\n| what | time |\n|---|---|\n| exercises | 1 × 5 min |\n"
            "| running all cells | 2 min |"
        ),
        nbformat.v4.new_code_cell(setup_cell_source(""), metadata={"tags": ["setup"]}),
    ]
    imports = "import math\n" + 140 * "# A long cell, for so many words.\n"
    for index in range(7):
        cells.append(nbformat.v4.new_markdown_cell(prose * 22))
        source = f"print({index})\n# a line more"
        cells.append(nbformat.v4.new_code_cell(source if index else imports + source))
    cells += [
        nbformat.v4.new_markdown_cell(f"Look.\n\n![{ALT}](img/pixel.png)"),
        nbformat.v4.new_markdown_cell(
            "## Exercise 1: bend it\n\nBend it yourself.\n\n"
            "<details><summary>Hint</summary>\n\nTwice.\n\n</details>"
        ),
        *made_exercise(),
        nbformat.v4.new_markdown_cell("## Recap\n\nIt bends."),
        nbformat.v4.new_markdown_cell("## Further reading\n\n- A paper, 2024."),
    ]
    count = 0
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index:03d}"
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            if "setup" not in cell.metadata.get("tags", []):
                cell.outputs = [
                    nbformat.v4.new_output("stream", name="stdout", text=f"{count - 2}\n")
                ]
    cells[-8].outputs = [figure_output()]
    nb = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    )
    nb.metadata["slam_edu"] = {"source_sha256": source_sha256(nb)}
    return nb


def lesson(
    change: Callable[[NotebookNode], None] | None = None,
    *,
    name: str = "01_made.ipynb",
    address: str = "",
    size: int | None = None,
) -> Lesson:
    """The made notebook as the rules see it, after `change` has been at it."""
    nb = made_notebook()
    if change:
        change(nb)
    real = len(json.dumps(nb))  # not nbformat's writer: it refuses some of the broken ones
    return Lesson(path=Path(name), nb=nb, size=real if size is None else size, address=address)

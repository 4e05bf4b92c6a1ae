"""A small notebook that keeps every house rule, for the tests to break."""

from __future__ import annotations

import nbformat
from nbformat import NotebookNode

from tools.notebooks import KERNELSPEC, source_sha256
from tools.set_address import setting, setup_cell_source

ALT = "A single grey pixel, which stands for a figure."


def figure_output(alt: str = ALT) -> NotebookNode:
    """What displaying a figure of slam_course leaves in a cell."""
    data = {"image/png": "AAAA\n", "text/plain": f"[figure] {alt}"}
    return nbformat.v4.new_output("display_data", data)


def made_notebook() -> NotebookNode:
    """A notebook as `make notebooks` would leave it."""
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    stub = "def bend(x):\n    # Your code here\n    return ..."
    solution = (
        "# One solution (unfold to read)\ndef bend_solution(x):\n    return x * x\n\n\n"
        "verdict = checks.bend(bend_solution)\nassert verdict.passed\nverdict"
    )
    cells = [
        markdown(
            "# How a path bends\n\n## Objectives\n\nYou will see it.\n\n## Prerequisites\n\nNone."
            "\n\n## Budget\n\n| what | time |\n|---|---|\n| exercises | 1 × 5 min |"
        ),
        code(setup_cell_source(setting("repository")), metadata={"tags": ["setup"]}),
        code("import math"),
        code("print(1)"),
        markdown(f"Look.\n\n![{ALT}](img/pixel.png)"),
        markdown("## Exercise 1: bend it\n\nYours.\n\n<details><summary>Hint</summary></details>"),
        code(stub, metadata={"tags": ["stub"]}),
        code("checks.bend(bend)", metadata={"tags": ["check", "points:4"]}),
        code(solution, metadata={"tags": ["solution"], "jupyter": {"source_hidden": True}}),
        markdown("## Recap\n\nIt bends."),
        markdown("## Further reading\n\n- A paper, 2024."),
    ]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index:03d}"
    for count, cell in enumerate((c for c in cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
    cells[3].outputs = [nbformat.v4.new_output("stream", text="1\n"), figure_output()]
    metadata = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    nb = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nb.metadata["slam_edu"] = {"source_sha256": source_sha256(nb)}
    return nb

"""Run the exercises of an edition without the lesson around them.

    python -m tests.editions.running

A process of its own, because a lesson's imports set threads and logs for all that follows. It
prints JSON: {lesson: {"solved": what each check printed, "stub": what the first check raised}}.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import symtable

from nbformat import NotebookNode

from tools.editions import student_edition
from tools.notebooks import NOTEBOOKS, read_lessons


def globals_of(source: str) -> tuple[set[str], set[str]]:
    """(names that a cell binds for later cells, global names that it reads at any depth)."""
    top = symtable.symtable(source, "cell", "exec")
    tables, binds, reads = [top], set(), set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table is top and (symbol.is_assigned() or symbol.is_imported()):
                binds.add(symbol.get_name())
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                reads.add(symbol.get_name())
    return binds, reads


def code_of(nb: NotebookNode) -> list[int]:
    """The cells of code."""
    return [i for i, cell in enumerate(nb.cells) if cell.cell_type == "code"]


def needed(nb: NotebookNode, target: int) -> set[int]:
    """The cells that a cell needs, itself included: those that bind the names that it reads, last
    before it, and what they need. The set-up and the imports are always among them."""
    code = code_of(nb)
    wanted, queue = {*code[:2]}, [target]
    while queue:
        index = queue.pop()
        if index not in wanted:
            wanted.add(index)
            for name in globals_of(nb.cells[index].source)[1]:
                before = [i for i in code if i < index]
                queue += [i for i in before if name in globals_of(nb.cells[i].source)[0]][-1:]
    return wanted


def trimmed(source: str, reads: set[str]) -> str:
    """Of a cell with imports what binds the names: diffusers takes seconds and is not needed."""
    parts = [ast.get_source_segment(source, node) for node in ast.parse(source).body]
    return "\n".join(part for part in parts if globals_of(part)[0] & reads)


def run(nb: NotebookNode, targets: list[int]) -> list[str]:
    """What each of some cells prints, run once, in order, with all cells that they need."""
    namespace: dict = {"__name__": "__main__"}
    cells = sorted(set().union(*(needed(nb, target) for target in targets)))
    imports = code_of(nb)[1]
    reads = set().union(*(globals_of(nb.cells[i].source)[1] for i in cells if i != imports))
    printed = {}
    for index in cells:
        source = nb.cells[index].source
        code = trimmed(source, reads) if index == imports else source
        with contextlib.redirect_stdout(io.StringIO()) as text:
            exec(compile(code, f"cell {index + 1}", "exec"), namespace)
        printed[index] = text.getvalue()
    return [printed[target] for target in targets]


def checks_of(nb: NotebookNode) -> list[int]:
    """The cells that are graded."""
    return [i for i in code_of(nb) if nb.cells[i].metadata.get("nbgrader", {}).get("grade")]


def outcome(nb: NotebookNode) -> dict:
    """What the checks say to the solutions, and the first of them to a stub."""
    solved, student = student_edition(nb, solved=True), student_edition(nb)
    said = run(solved, checks_of(solved))
    try:
        return {"solved": said, "stub": run(student, checks_of(student)[:1])[0]}
    except AssertionError as error:
        return {"solved": said, "stub": f"AssertionError: {error}"}


if __name__ == "__main__":
    os.chdir(NOTEBOOKS)
    print(json.dumps({name: outcome(nb) for name, nb in read_lessons().items()}))

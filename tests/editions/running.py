"""Run the exercises of an edition without the lesson around them.

    python -m tests.editions.running NAME...

A process of its own, because a lesson's imports set threads and logs for all that follows. It
prints JSON: {lesson: {"solved": what each check printed, "stub": what the first check raised}}.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys

from nbformat import NotebookNode

from tools.editions import globals_of, read_lessons, student_edition
from tools.notebooks import NOTEBOOKS


def code_of(nb: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """(index, cell) of the code cells."""
    return [(i, cell) for i, cell in enumerate(nb.cells) if cell.cell_type == "code"]


def needed(nb: NotebookNode, target: int) -> list[int]:
    """The cells that a cell needs, itself included, in order.

    For each global name that it reads: the last cell before it that binds the name, and what that
    cell needs. The set-up and the imports are always among them.
    """
    code = [index for index, _ in code_of(nb)]
    wanted, queue = {*code[:2]}, [target]
    while queue:
        index = queue.pop()
        if index in wanted:
            continue
        wanted.add(index)
        for name in globals_of(nb.cells[index].source)[1]:
            before = [i for i in code if i < index and name in globals_of(nb.cells[i].source)[0]]
            queue += before[-1:]
    return sorted(wanted)


def trimmed(source: str, reads: set[str]) -> str:
    """Of a cell with imports what binds the names: diffusers takes seconds and is not needed."""
    kept = [
        ast.get_source_segment(source, node)
        for node in ast.parse(source).body
        if globals_of(ast.get_source_segment(source, node))[0] & reads
    ]
    return "\n".join(kept)


def run(nb: NotebookNode, targets: list[int]) -> list[str]:
    """What each of some cells prints, run once, in order, with all cells that they need."""
    namespace: dict = {"__name__": "__main__"}
    cells = sorted(set().union(*(needed(nb, target) for target in targets)))
    imports = code_of(nb)[1][0]
    reads = set().union(*(globals_of(nb.cells[i].source)[1] for i in cells if i != imports))
    said = []
    for index in cells:
        source = nb.cells[index].source
        code = trimmed(source, reads) if index == imports else source
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"cell {index + 1}", "exec"), namespace)
        if index in targets:
            said.append(printed.getvalue())
    return said


def checks_of(nb: NotebookNode) -> list[int]:
    """The cells that are graded."""
    return [i for i, cell in code_of(nb) if cell.metadata.get("nbgrader", {}).get("grade")]


def outcome(name: str, nb: NotebookNode) -> dict:
    """What the checks say to the solutions, and the first of them to a stub."""
    solved = student_edition(name, nb, solved=True)
    said = run(solved, checks_of(solved))
    student = student_edition(name, nb)
    try:
        return {"solved": said, "stub": run(student, checks_of(student)[:1])[0]}
    except AssertionError as error:
        return {"solved": said, "stub": f"AssertionError: {error}"}


if __name__ == "__main__":
    os.chdir(NOTEBOOKS)
    lessons = read_lessons()
    outcomes = {name: outcome(name, lessons[name]) for name in sys.argv[1:]}
    print(json.dumps(outcomes))

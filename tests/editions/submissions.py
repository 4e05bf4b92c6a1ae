"""Hand-ins of a class: a release of a small lesson, filled in well, badly, or with bad intent."""

from __future__ import annotations

import copy
from collections.abc import Callable

from nbformat import NotebookNode

from tests.editions.running import trimmed
from tools.editions import BEGIN, END, globals_of
from tools.exercises import find_exercises, tags
from tools.notebooks import SETUP_TAG

# Exercise 1 is worth 4 points, exercise 2 as well.
LESSON = "01_diffusion_and_the_pf_ode"

WRONG = {
    "exercise-1": "def denoiser(score, x, level):\n    return x / level.alpha",
    "exercise-2": "def euler_step(x, eps, level_t, level_s):\n    return x",
}


def exercises_alone(nb: NotebookNode) -> NotebookNode:
    """A lesson's set-up, imports and exercises, without what lies between: cheap to run.

    Of the imports those stay that the exercises use: figures take seconds to import.
    """
    exercises = find_exercises(nb)
    kept = {i for each in exercises for i in range(each.heading, each.solution + 1)}
    code = [i for i, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    assert SETUP_TAG in tags(nb.cells[code[0]])
    kept |= {0, *code[:2]}
    small = copy.deepcopy(nb)
    exercises_cells = [nb.cells[i].source for i in code if i in kept and i != code[1]]
    reads = set().union(*(globals_of(source)[1] for source in exercises_cells))
    imports = small.cells[code[1]]
    imports.source = trimmed(imports.source, reads)
    small.cells = [cell for i, cell in enumerate(small.cells) if i in kept]
    return small


def by_id(nb: NotebookNode, grade_id: str) -> NotebookNode:
    """The cell that nbgrader knows under this id."""
    [cell] = (
        cell for cell in nb.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == grade_id
    )
    return cell


def solutions(source: NotebookNode) -> dict[str, str]:
    """{grade id: code between BEGIN and END SOLUTION} of a source for nbgrader."""
    found = {}
    for cell in source.cells:
        if BEGIN in cell.source:
            found[cell.metadata.nbgrader.grade_id] = cell.source.split(BEGIN + "\n")[1].split(
                "\n" + END
            )[0]
    return found


def filled(release: NotebookNode, answers: dict[str, str]) -> NotebookNode:
    """A release with code in place of some stubs."""
    nb = copy.deepcopy(release)
    for grade_id, code in answers.items():
        by_id(nb, grade_id).source = code
    return nb


def tampered(release: NotebookNode) -> NotebookNode:
    """Wrong answers; one test says yes to everything and is worth 100 points, one is gone."""
    nb = filled(release, WRONG)
    test = by_id(nb, "exercise-1-check")
    test.source = "assert True"
    test.metadata.nbgrader.points = 100
    test.metadata.nbgrader.locked = False
    nb.cells.remove(by_id(nb, "exercise-2-check"))
    by_id(nb, "imports").source = (
        "class checks:\n    denoiser = euler_step = staticmethod(lambda answer: verdict)\n\n\n"
        "class verdict:\n    passed = True"
    )
    return nb


def hand_ins(source: NotebookNode) -> dict[str, Callable[[NotebookNode], NotebookNode]]:
    """{student: what the student makes of the release}."""
    right = solutions(source)
    first = "def denoiser(score, x, level):\n    "
    return {
        "perfect": lambda nb: filled(nb, right),
        # Right, and noisy: anything on stderr is a failure to nbgrader, unless the check hides it.
        "partial": lambda nb: filled(
            nb,
            {
                "exercise-1": "import sys\nimport warnings\n\n\n"
                + right["exercise-1"].replace(
                    ":\n", ":\n    print('here', file=sys.stderr)\n    warnings.warn('!')\n", 1
                ),
            },
        ),
        "empty": copy.deepcopy,
        "wrong": lambda nb: filled(nb, WRONG),
        "crashing": lambda nb: filled(
            nb,
            {
                "exercise-1": "import nonsense",
                "exercise-2": "def euler_step(x, eps, level_t, level_s):\n    raise SystemExit",
            },
        ),
        # One in the function, which the check ends, and one in the cell, which nbgrader ends.
        "endless": lambda nb: filled(
            nb,
            {
                "exercise-1": f"import time\n\n\n{first}while True:\n        time.sleep(0.1)",
                "exercise-2": "while True:\n    time.sleep(0.1)",
            },
        ),
        "dying": lambda nb: filled(nb, {**right, "exercise-2": "import os\n\nos._exit(3)"}),
        "tampered": tampered,
        "cheating": lambda nb: filled(
            nb,
            {
                **WRONG,
                "exercise-1": "from types import SimpleNamespace\n\nchecks.denoiser = lambda f: "
                "SimpleNamespace(passed=True)\n" + WRONG["exercise-1"],
            },
        ),
    }

"""Hand-ins of a class: a release of a small lesson, filled in well, badly, or with bad intent."""

from __future__ import annotations

import copy
from collections.abc import Callable

from nbformat import NotebookNode

from tests.editions.running import code_of, globals_of, trimmed
from tools.editions import BEGIN, END
from tools.exercises import find_exercises

# Exercise 1 is worth 4 points, exercise 2 as well.
LESSON = "01_diffusion_and_the_pf_ode"

WRONG = {
    "exercise-1": "def denoiser(score, x, level):\n    return x / level.alpha",
    "exercise-2": "def euler_step(x, eps, level_t, level_s):\n    return x",
}


def exercises_alone(nb: NotebookNode) -> NotebookNode:
    """A lesson's set-up, imports and exercises, without what lies between: cheap to run."""
    kept = {i for each in find_exercises(nb) for i in range(each.heading, each.solution + 1)}
    small, code = copy.deepcopy(nb), code_of(nb)
    reads = set().union(*(globals_of(nb.cells[i].source)[1] for i in code if i in kept))
    small.cells[code[1]].source = trimmed(nb.cells[code[1]].source, reads)
    small.cells = [cell for i, cell in enumerate(small.cells) if i in {0, *code[:2], *kept}]
    return small


def by_id(nb: NotebookNode, grade_id: str) -> NotebookNode:
    """The cell that nbgrader knows under this id."""
    ids = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in nb.cells]
    return nb.cells[ids.index(grade_id)]


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


def copied(release: NotebookNode, answers: dict[str, str]) -> NotebookNode:
    """Right answers, and copies of both exercises with all their metadata behind them."""
    nb = filled(release, answers)
    graded = [by_id(nb, f"exercise-{n}{part}") for n in (1, 2) for part in ("", "-check")]
    nb.cells += [NotebookNode(copy.deepcopy(cell) | {"id": f"copy-{cell.id}"}) for cell in graded]
    return nb


def stripped(release: NotebookNode, answers: dict[str, str]) -> NotebookNode:
    """Right answers alone: without tests, and as an editor saves them that keeps no metadata."""
    nb = filled(release, answers)
    nb.cells = [cell for cell in nb.cells if not cell.metadata.get("nbgrader", {}).get("locked")]
    for cell in nb.cells:
        cell.metadata = {}
        cell.id = f"id-of-an-editor-{nb.cells.index(cell)}"
    return nb


def hand_ins(source: NotebookNode) -> dict[str, Callable[[NotebookNode], NotebookNode]]:
    """{student: what the student makes of the release}; `source` has the solutions."""
    right = {
        cell.metadata.nbgrader.grade_id: cell.source.split(f"{BEGIN}\n")[1].split(f"\n{END}")[0]
        for cell in source.cells
        if BEGIN in cell.source
    }
    # Right, and noisy: anything on stderr is a failure to nbgrader, unless the check hides it.
    noise = ":\n    print('here', file=sys.stderr)\n    warnings.warn('!')\n"
    noisy = "import sys\nimport warnings\n\n\n" + right["exercise-1"].replace(":\n", noise, 1)
    # A limit of one second: the test has no need to wait for twenty.
    endless = (
        "import time\n\nfrom slam_course import checks as base\n\nbase.LIMIT = 1.0\n\n\n"
        "def denoiser(score, x, level):\n    while True:\n        time.sleep(0.1)"
    )
    return {
        "perfect": lambda nb: filled(nb, right),
        "partial": lambda nb: filled(nb, {"exercise-1": noisy}),
        "broken": lambda nb: filled(
            nb,
            {
                "exercise-1": endless,
                "exercise-2": "def euler_step(x, eps, level_t, level_s):\n    raise SystemExit",
            },
        ),
        "tampered": tampered,
        "copied": lambda nb: copied(nb, right),
        "stripped": lambda nb: stripped(nb, right),
    }

"""Set up a class of the whole course for nbgrader.

    python -m tools.classroom FOLDER [--lessons 01,02]

FOLDER becomes a course folder of nbgrader: nbgrader_config.py, gradebook.db, for every lesson
source/ with the solutions and release/ for the students. `nbgrader autograde`,
`generate_feedback` and `export` work in it as it is; docs/teaching.md tells the whole way.

A second call brings source and release up to date and keeps the gradebook's students, and a
configuration that was edited. Once something was handed in or graded it refuses: the tests of a
class must not change under it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import sysconfig
from pathlib import Path

from tools.editions import read_lessons, student_edition
from tools.notebooks import to_text

CONFIG = "nbgrader_config.py"
GRADEBOOK = "gradebook.db"
MARK = "# A class of slam_edu, set up by `make class`."

CONFIG_TEXT = f'''\
{MARK} An edited copy of this file is kept.
from pathlib import Path

c = get_config()  # noqa: F821 - nbgrader's own
c.CourseDirectory.course_id = "slam_edu"
c.CourseDirectory.root = str(Path(__file__).resolve().parent)

# Every solution stands between BEGIN and END SOLUTION, below the stub that students get.
c.ClearSolutions.code_stub = {{"python": ""}}

# Seconds for one cell. A check gives a learner's function 20 seconds; this ends all other code
# that does not end. The slowest cell of a lesson takes about two minutes on one slow core.
c.Execute.timeout = 600
c.Execute.interrupt_on_timeout = True
'''

# What nbgrader makes when submissions come in.
_HANDED_IN = ("submitted", "autograded", "feedback")


class Refused(Exception):
    """The class cannot be set up there; the message says why, and what to do."""


def refuse_to_overwrite(folder: Path) -> None:
    """Raise Refused unless the folder is new, empty, or a class without submissions and grades."""
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file; name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    config = folder / CONFIG
    if not config.exists() or MARK not in config.read_text("utf-8"):
        raise Refused(f"{folder} is not empty and holds no class of this course; name another")
    for name in _HANDED_IN:
        if (folder / name).is_dir() and any((folder / name).iterdir()):
            raise Refused(
                f"{folder} has submissions or grades ({name}/): its tests must stay as they are. "
                f"Name another folder for a new class"
            )
    count = submissions(folder)
    if count:
        raise Refused(
            f"the gradebook of {folder} has {count} submissions: its tests must stay as they are. "
            f"Name another folder for a new class"
        )


def submissions(folder: Path) -> int:
    """How many submissions the gradebook of a class knows."""
    from nbgrader.api import Gradebook, SubmittedAssignment

    if not (folder / GRADEBOOK).exists():
        return 0
    with Gradebook(f"sqlite:///{folder / GRADEBOOK}") as gradebook:
        return gradebook.db.query(SubmittedAssignment).count()


def choose(names: list[str], wanted: str) -> list[str]:
    """The lessons whose numbers are in `wanted`, such as "01,02"; all without it.

    Raises:
        Refused: there is no such lesson.
    """
    if not wanted:
        return names
    numbers = {name[:2]: name for name in names}
    unknown = [number for number in wanted.split(",") if number not in numbers]
    if unknown:
        allowed = ", ".join(numbers)
        raise Refused(f"no lesson {', '.join(unknown)}; choose among {allowed}")
    return [numbers[number] for number in wanted.split(",")]


def set_up(folder: Path, wanted: str = "") -> list[str]:
    """Make or renew the class; returns the names of its assignments.

    Raises:
        Refused: see :func:`refuse_to_overwrite` and :func:`choose`.
        RuntimeError: nbgrader could not make a release; the message is its log.
    """
    folder = folder.resolve()
    refuse_to_overwrite(folder)
    lessons = read_lessons()
    chosen = choose(list(lessons), wanted)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).exists():
        (folder / CONFIG).write_text(CONFIG_TEXT, encoding="utf-8")
    for name in chosen:
        source = folder / "source" / name
        source.mkdir(parents=True, exist_ok=True)
        text = to_text(student_edition(name, lessons[name], solved=True))
        (source / f"{name}.ipynb").write_bytes(text.encode("utf-8"))
    release(folder, chosen)
    return chosen


def release(folder: Path, names: list[str]) -> None:
    """Make the students' version of assignments, and enter them in the gradebook.

    Raises:
        RuntimeError: nbgrader could not; the message is its log.
    """
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import PyFileConfigLoader

    # nbgrader starts `alembic` by name to make its database, also where .venv is not activated.
    scripts = sysconfig.get_path("scripts")
    os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    config = PyFileConfigLoader(CONFIG, path=str(folder)).load_config()
    api = NbGraderAPI(config=config)
    api.log.setLevel(logging.WARNING)
    for name in names:
        result = api.generate_assignment(name, force=True, create=True)
        if not result["success"]:
            raise RuntimeError(f"nbgrader could not release {name}:\n{result['log']}")


def main(arguments: list[str] | None = None) -> int:
    """Set up the class and say what comes next."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.classroom",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", default="class", help="default: class")
    parser.add_argument("--lessons", default="", help="such as 01,02; default: all")
    options = parser.parse_args(arguments)
    folder = Path(options.folder).resolve()
    try:
        names = set_up(folder, options.lessons)
    except (Refused, ValueError) as refused:
        print(f"error: {refused}.", file=sys.stderr)
        return 2
    print(f"{len(names)} assignments in {folder}: give release/ to the students.")
    print("What they hand in goes to submitted/STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb; then, there:")
    print(f"    nbgrader autograde {names[0]}")
    print(f"    nbgrader generate_feedback {names[0]}")
    print("    nbgrader export")
    print("Submissions are other people's code: docs/teaching.md says how to isolate it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

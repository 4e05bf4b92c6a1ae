"""Set up a class of the whole course for nbgrader.

    python -m tools.classroom FOLDER [--lessons 01,02]

FOLDER becomes a course folder of nbgrader: for every lesson source/ with the solutions and
release/ for the students; docs/teaching.md tells the whole way. A second call brings them up to
date and keeps the gradebook's students, and an edited configuration. Once something was handed in
or graded it refuses: the tests of a class must not change under it.
"""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
from pathlib import Path

from tools import command_line
from tools.editions import student_edition
from tools.notebooks import read_lessons, to_text

CONFIG = "nbgrader_config.py"
GRADEBOOK = "gradebook.db"
MARK = "# A class of slam_edu, set up by `make class`."

CONFIG_TEXT = f"""\
{MARK} An edited copy of this file is kept.
from pathlib import Path

c = get_config()  # noqa: F821 - nbgrader's own
c.CourseDirectory.course_id = "slam_edu"
c.CourseDirectory.root = str(Path(__file__).resolve().parent)

# Every solution stands between BEGIN and END SOLUTION, below the stub that students get.
c.ClearSolutions.code_stub = {{"python": ""}}

# Hand-ins are mended as they are read; `python -m slam_course.hand_ins` says what it found.
c.Autograde.exporter_class = "slam_course.hand_ins.HandIns"

# Seconds for one cell. A check gives a learner's function 20 seconds; this ends all other code
# that does not end. The slowest cell of a lesson takes about two minutes on one slow core.
c.Execute.timeout = 600
c.Execute.interrupt_on_timeout = True
"""


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
    kinds = ("submitted", "autograded", "feedback")
    made = [f"or grades ({name}/)" for name in kinds if any(folder.glob(f"{name}/*"))]
    if not made and (folder / GRADEBOOK).exists():
        from nbgrader.api import Gradebook, SubmittedAssignment

        with Gradebook(f"sqlite:///{folder / GRADEBOOK}") as gradebook:
            made = ["in its gradebook"] * gradebook.db.query(SubmittedAssignment).count()
    if made:
        raise Refused(
            f"{folder} has submissions {made[0]}: its tests must stay as they are. Name another "
            f"folder for a new class"
        )


def set_up(folder: Path, wanted: str = "") -> list[str]:
    """Make or renew the class with the lessons whose numbers are `wanted`, such as "01,02".

    Returns the names of its assignments. Raises Refused as :func:`refuse_to_overwrite` does, or
    for an unknown lesson, and RuntimeError with nbgrader's log where it could not make a release.
    """
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import PyFileConfigLoader

    folder = folder.resolve()
    refuse_to_overwrite(folder)
    lessons = {name[:2]: (name, nb) for name, nb in read_lessons().items()}
    numbers = wanted.split(",") if wanted else list(lessons)
    unknown = sorted(set(numbers) - set(lessons))
    if unknown:
        raise Refused(f"no lesson {', '.join(unknown)}; choose among {', '.join(lessons)}")
    folder.mkdir(parents=True, exist_ok=True)
    # Solutions, submissions and grades belong into no repository that the folder may lie in.
    for name, text in {CONFIG: CONFIG_TEXT, ".gitignore": "*\n"}.items():
        if not (folder / name).exists():
            (folder / name).write_text(text, encoding="utf-8")
    # nbgrader starts `alembic` by name to make its database, also where .venv is not activated.
    scripts = sysconfig.get_path("scripts")
    os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    api = NbGraderAPI(config=PyFileConfigLoader(CONFIG, path=str(folder)).load_config())
    api.log.setLevel(logging.WARNING)
    for name, nb in (lessons[number] for number in numbers):
        source = folder / "source" / name / f"{name}.ipynb"
        source.parent.mkdir(parents=True, exist_ok=True)
        text = to_text(student_edition(nb, solved=True))
        source.write_text(text, encoding="utf-8", newline="\n")
        result = api.generate_assignment(name, force=True, create=True)
        if not result["success"]:
            raise RuntimeError(f"nbgrader could not release {name}:\n{result['log']}")
    return [lessons[number][0] for number in numbers]


def main(arguments: list[str] | None = None) -> int:
    """Set up the class and say what comes next."""
    parser = command_line("classroom", __doc__)
    parser.add_argument("folder", nargs="?", default="class", help="default: class")
    parser.add_argument("--lessons", default="", help="such as 01,02; default: all")
    options = parser.parse_args(arguments)
    try:
        names = set_up(Path(options.folder), options.lessons)
    except (Refused, ValueError) as refused:
        print(f"error: {refused}.", file=sys.stderr)
        return 2
    print(
        f"{len(names)} assignments in {options.folder}: give release/ to the students. What they "
        f"hand in\ngoes to submitted/STUDENT/ASSIGNMENT/; then, there:\n"
        f"    python -m slam_course.hand_ins\n    nbgrader autograde {names[0]}\n"
        f"    nbgrader generate_feedback {names[0]}\n    nbgrader export"
    )
    print("Submissions are other people's code: docs/teaching.md says how to isolate it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

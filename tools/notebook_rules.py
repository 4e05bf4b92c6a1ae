"""The house rules of the notebooks, checked without running them.

    python -m tools.notebook_rules [NOTEBOOK...]      a table of numbers, then what breaks a rule

Each rule is a function of a `Lesson` that returns sentences, one per breach, each naming the cell
and what is allowed. `RULES` lists them all; tests/notebooks applies them to every notebook and
proves on a broken copy that each of them can fail. What needs a kernel (are the outputs right?) is
nbval's job.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools.exercises import exercise_minutes, find_exercises
from tools.notebooks import (
    CELL_METADATA,
    KERNELSPEC,
    NOTEBOOKS,
    SETUP_TAG,
    VOLATILE_TAG,
    source_sha256,
)
from tools.set_address import read_address, setup_cell_source

LARGEST = 500_000  # bytes of one notebook
CELLS = (15, 50)
MEDIAN_CODE_LINES = 10  # the median code cell is shorter than this
WORDS = (1500, 2500)
PROSE = (7, 15)  # words for a line of code
# Where a lesson has bounds of its own, and why: {(number of the lesson, what): bounds}.
EXCEPTIONS = {
    # It explains less and lets the learner do more.
    ("00", "words"): (900, 2500),
    # Its cells are calls of one or two lines: the code is in the library until lesson 01.
    ("00", "words per code line"): (7, 17),
}
SHORTEST_ALT = 15  # characters; "figure" or "plot" describes nothing

# Every lesson has these headings (level 2 or deeper, any further words behind them).
SECTIONS = ("Objectives", "Prerequisites", "Budget", "Exercise", "Recap", "Further reading")

NOTEBOOK_METADATA = {"kernelspec", "language_info", "slam_edu", "widgets"}
OWN_METADATA = {"source_sha256", "long"}  # what tools.notebooks keeps in metadata.slam_edu
NBVAL_TAGS = {VOLATILE_TAG}  # nbval's other tags switch the comparison off
FIGURE_TEXT = "[figure] "  # slam_course puts a figure's alternative text behind this

_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_MATH = re.compile(r"\$\$.+?\$\$|(?<!\\)\$[^$\n]+\$", re.DOTALL)
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_HTML_IMAGE = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[^>]+>")
_WORD = re.compile(r"[^\W_](?:[\w'’.\-]*\w)?")
_HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$", re.MULTILINE)
_EXERCISE = re.compile(r"Exercise \d+")
_MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:root|home|Users|tmp|var/folders)/[\w.\-]+|[A-Z]:\\+Users"
)
_SHELL = re.compile(r"^\s*(?:!|%%(?:bash|sh|script)\b)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A notebook as the rules see it.

    Attributes:
        path: its file; the name decides what is asked of lesson 00.
        nb: its content.
        size: of the file, in bytes.
        address: the repository's public address, "" where there is none yet.
    """

    path: Path
    nb: NotebookNode
    size: int
    address: str

    @classmethod
    def read(cls, path: Path, address: str) -> Lesson:
        """Read a notebook file."""
        content = path.read_bytes()
        nb = nbformat.reads(content.decode("utf-8"), as_version=4)
        return cls(path=path, nb=nb, size=len(content), address=address)

    def cells(self, kind: str) -> list[tuple[int, NotebookNode]]:
        """(number from 1, cell) of the "code" or "markdown" cells."""
        numbered = enumerate(self.nb.cells, start=1)
        return [(number, cell) for number, cell in numbered if cell.cell_type == kind]

    def headings(self) -> list[tuple[int, int, str]]:
        """(cell number, level, text) of every heading, those inside code blocks left out."""
        return [
            (number, len(match[1]), match[2])
            for number, cell in self.cells("markdown")
            for match in _HEADING.finditer(_FENCE.sub("", cell.source))
        ]


# ---------------------------------------------------------------------------------------------
# Numbers about a notebook
# ---------------------------------------------------------------------------------------------


def count_words(markdown: str) -> int:
    """Words of prose: no code blocks, pictures or addresses; a formula counts as one word."""
    text = _FENCE.sub(" ", markdown)
    for pattern, replacement in (
        (_IMAGE, " "),
        (_LINK, r"\1"),
        (_MATH, " formula "),
        (_TAG, " "),
        (re.compile(r"https?://\S+"), " "),
        (re.compile(r"`[^`]+`"), " code "),
    ):
        text = pattern.sub(replacement, text)
    return len(_WORD.findall(text))


def code_lines(source: str) -> int:
    """Lines of a cell that are not blank."""
    return sum(bool(line.strip()) for line in source.splitlines())


def numbers(lesson: Lesson) -> dict[str, float]:
    """The figures that house style is about."""
    lines = [
        code_lines(cell.source)
        for _, cell in lesson.cells("code")
        if SETUP_TAG not in cell.metadata.get("tags", [])
    ]
    words = sum(count_words(cell.source) for _, cell in lesson.cells("markdown"))
    outputs = [output for _, cell in lesson.cells("code") for output in cell.outputs]
    return {
        "cells": len(lesson.nb.cells),
        "code lines": sum(lines),
        "median code lines": statistics.median(lines) if lines else 0,
        "words": words,
        "words per code line": words / max(1, sum(lines)),
        "figures": sum(draws_figure(output) for output in outputs),
        "exercises": sum(bool(_EXERCISE.match(text)) for _, _, text in lesson.headings()),
        "kB": lesson.size / 1000,
    }


def bounds(lesson: Lesson, what: str, usual: tuple[float, float]) -> tuple[float, float]:
    """(least, most) of one of the `numbers` in this lesson."""
    return EXCEPTIONS.get((lesson.path.name[:2], what), usual)


def draws_figure(output: NotebookNode) -> bool:
    """Whether an output is a figure; an explorer is a widget and not counted."""
    return any(mime.startswith("image/") for mime in output.get("data", {}))


def bare_figures(lesson: Lesson) -> dict[int, int | None]:
    """{number of a cell with a figure: cells of code until the next text}, if there are any.

    None where no text follows at all.
    """
    found: dict[int, int | None] = {}
    for number, cell in lesson.cells("code"):
        if any(draws_figure(output) for output in cell.outputs):
            kinds = [after.cell_type for after in lesson.nb.cells[number:]]
            between = kinds.index("markdown") if "markdown" in kinds else None
            if between != 0:
                found[number] = between
    return found


# ---------------------------------------------------------------------------------------------
# The rules
# ---------------------------------------------------------------------------------------------


def is_valid(lesson: Lesson) -> list[str]:
    """The file follows the notebook format, with an id for every cell."""
    seen: dict[str, int] = {}
    for number, cell in enumerate(lesson.nb.cells, start=1):
        first = seen.setdefault(cell.get("id", ""), number)
        if first != number:
            return [f"cells {first} and {number} have the same id {cell.get('id', '')!r}"]
    try:
        nbformat.validate(lesson.nb)
    except nbformat.ValidationError as error:
        return [f"not a valid notebook: {str(error).splitlines()[0]}"]
    return []


def was_run_in_order(lesson: Lesson) -> list[str]:
    """Code cells carry the numbers 1, 2, 3, …: the notebook was run once, from top to bottom."""
    for count, (number, cell) in enumerate(lesson.cells("code"), start=1):
        if cell.execution_count != count:  # one is enough: all that follow are wrong as well
            return [
                f"cell {number} has execution count {cell.execution_count}, run from top to "
                f"bottom it would be {count}; run `make notebooks`"
            ]
    return []


def has_no_empty_cell(lesson: Lesson) -> list[str]:
    """No cell is blank."""
    numbered = enumerate(lesson.nb.cells, start=1)
    return [f"cell {number} is empty" for number, cell in numbered if not cell.source.strip()]


def has_one_title(lesson: Lesson) -> list[str]:
    """The first line of the first cell is the only heading of level 1."""
    found = []
    cells = lesson.nb.cells
    if not cells or cells[0].cell_type != "markdown" or not re.match(r"# \S", cells[0].source):
        found.append("the notebook must begin with its title, a markdown cell `# …`")
    titles = [(number, text) for number, level, text in lesson.headings() if level == 1]
    if len(titles) > 1:
        where = ", ".join(f"{text!r} in cell {number}" for number, text in titles)
        found.append(f"one heading of level 1 is allowed, found {len(titles)}: {where}")
    return found


def shows_no_error(lesson: Lesson) -> list[str]:
    """No output is an error or was written to stderr: a learner takes either for a fault."""
    found = []
    for number, cell in lesson.cells("code"):
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell {number} shows an error: {output.ename}: {output.evalue}")
            elif output.output_type == "stream" and output.name == "stderr":
                found.append(f"cell {number} writes to stderr: {output.text.strip()[:80]!r}")
    return found


def is_small(lesson: Lesson) -> list[str]:
    """The file stays under 500 kB, outputs included."""
    if lesson.size < LARGEST:
        return []
    return [f"{lesson.size:,} bytes; fewer than {LARGEST:,} are allowed"]


def is_not_stale(lesson: Lesson) -> list[str]:
    """The outputs belong to the code as it stands."""
    recorded = lesson.nb.metadata.get("slam_edu", {}).get("source_sha256")
    if recorded == source_sha256(lesson.nb):
        return []
    how = "its code was edited since" if recorded else "nothing says which code they belong to"
    return [f"the outputs are stale: {how}; run `make notebooks`"]


def has_clean_metadata(lesson: Lesson) -> list[str]:
    """Only the metadata that `make notebooks` writes: no editor's marks, no custom kernel."""
    found = []
    metadata = lesson.nb.metadata
    if metadata.get("kernelspec") != KERNELSPEC:
        kernel = dict(metadata.get("kernelspec", {}))
        found.append(f"the kernel must be {KERNELSPEC}, got {kernel}")
    if metadata.get("language_info") != {"name": "python"}:
        language = dict(metadata.get("language_info", {}))
        found.append(f"language_info must be {{'name': 'python'}}, got {language}")
    extra = sorted(set(metadata) - NOTEBOOK_METADATA)
    if extra:
        found.append(f"metadata {extra}; allowed are {sorted(NOTEBOOK_METADATA)}")
    extra = sorted(set(metadata.get("slam_edu", {})) - OWN_METADATA)
    if extra:
        found.append(f"metadata slam_edu has {extra}; allowed are {sorted(OWN_METADATA)}")
    for number, cell in enumerate(lesson.nb.cells, start=1):
        extra = sorted(set(cell.metadata) - set(CELL_METADATA))
        if extra:
            found.append(
                f"cell {number} has metadata {extra}; allowed are {sorted(CELL_METADATA)}"
            )
        for tag in cell.metadata.get("tags", []):
            if tag.startswith("nbval") and tag not in NBVAL_TAGS:
                found.append(f"cell {number} has the tag {tag!r}; allowed is {VOLATILE_TAG!r}")
    return found


def has_setup_cell(lesson: Lesson) -> list[str]:
    """The first code cell, and no other, is the set-up that tools/set_address.py writes."""
    found = []
    code = lesson.cells("code")
    tagged = [number for number, cell in code if SETUP_TAG in cell.metadata.get("tags", [])]
    if not code or tagged != [code[0][0]]:
        found.append(f"the first code cell alone must have the tag {SETUP_TAG!r}, got {tagged}")
    elif code[0][1].source != setup_cell_source(lesson.address):
        found.append(f"the set-up cell ({code[0][0]}) was edited; run `make address`")
    return found


def runs_anywhere(lesson: Lesson) -> list[str]:
    """No shell commands (Windows has another shell) and no path of one machine."""
    found = []
    for number, cell in lesson.cells("code"):
        match = _SHELL.search(cell.source)
        if match:
            line = cell.source[match.start() :].strip().splitlines()[0]
            found.append(f"cell {number} runs a shell: {line!r}; use Python")
        for text in (cell.source, *map(output_text, cell.outputs)):
            match = _MACHINE_PATH.search(text)
            if match:
                found.append(f"cell {number} names a path of one machine: {match.group()!r}")
    return found


def output_text(output: NotebookNode) -> str:
    """The text of an output, pictures left out."""
    if output.output_type == "stream":
        return output.text
    return "\n".join(
        value
        for mime, value in output.get("data", {}).items()
        if isinstance(value, str) and not mime.startswith("image/")
    )


def has_sections(lesson: Lesson) -> list[str]:
    """The headings that every lesson has are there, and the budget card names minutes."""
    texts = [text for _, level, text in lesson.headings() if level > 1]
    found = [
        f"there is no heading `## {section}`"
        for section in SECTIONS
        if not any(re.match(rf"\W*{section}", text, re.IGNORECASE) for text in texts)
    ]
    for number, cell in lesson.cells("markdown"):
        budget = re.search(
            r"^#{2,6}\s+\W*Budget.*\n((?:(?!^#).*(?:\n|\Z))*)", cell.source, re.M | re.I
        )
        if budget and not re.search(r"\d\s*(?:min|s\b|sec)", budget[1]):
            found.append(f"the budget card (cell {number}) names no time such as `3 min`")
    return found


def marks_its_exercises(lesson: Lesson) -> list[str]:
    """Stub, check and solution of every exercise are tagged, so that editions can be made."""
    try:
        exercises = find_exercises(lesson.nb)
        if not exercises:
            return ["there is no heading `## Exercise 1: …`"]
        exercise_minutes(lesson.nb, len(exercises))
    except (ValueError, SyntaxError) as error:
        return str(error).splitlines()
    return []


def has_house_style(lesson: Lesson) -> list[str]:
    """Length: cells, code lines and words stay inside their bounds."""
    found = []
    values = numbers(lesson)
    low, high = bounds(lesson, "words", WORDS)
    if not CELLS[0] <= values["cells"] <= CELLS[1]:
        found.append(f"{values['cells']} cells; {CELLS[0]} to {CELLS[1]} are allowed")
    if values["median code lines"] >= MEDIAN_CODE_LINES:
        found.append(
            f"the median code cell has {values['median code lines']:g} lines; "
            f"fewer than {MEDIAN_CODE_LINES} are allowed"
        )
    if not low <= values["words"] <= high:
        found.append(f"{values['words']} words of prose; {low} to {high} are allowed")
    return found


def explains_its_code(lesson: Lesson) -> list[str]:
    """There are neither too few words for the code nor too many."""
    ratio = numbers(lesson)["words per code line"]
    low, high = bounds(lesson, "words per code line", PROSE)
    if low <= ratio <= high:
        return []
    return [f"{ratio:.1f} words for a line of code; {low} to {high} are allowed"]


def imports_at_the_top(lesson: Lesson) -> list[str]:
    """The first cell behind the set-up imports, and no other cell does.

    A solution may import inside its function what the learner would look for.
    """
    code = [
        (number, cell.source)
        for number, cell in lesson.cells("code")
        if SETUP_TAG not in cell.metadata.get("tags", [])
    ]
    if not code:
        return []
    importing = [number for number, source in code if _imports(source)]
    if importing == [code[0][0]]:
        return []
    return [f"the first cell of code alone ({code[0][0]}) must import; these do: {importing}"]


def _imports(source: str) -> bool:
    """Whether a cell imports outside of functions and classes; magics are no Python."""
    tree = ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source))
    nodes = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            nodes.extend(ast.iter_child_nodes(node))
    return False


def interprets_figures(lesson: Lesson) -> list[str]:
    """Text follows each figure: at once, or behind one more cell that is read together with it."""
    return [
        f"cell {number} draws a figure, and "
        + ("no text follows" if between is None else f"{between} cells of code come before text")
        + "; one cell in between is allowed"
        for number, between in bare_figures(lesson).items()
        if between is None or between > 1
    ]


def describes_pictures(lesson: Lesson) -> list[str]:
    """Every picture has alternative text: pictures in the prose, and figures among the outputs."""
    found = []
    for number, cell in lesson.cells("markdown"):
        text = _FENCE.sub("", cell.source)
        alts = [match[1] for match in _IMAGE.finditer(text)]
        for image in _HTML_IMAGE.findall(text):
            alt = re.search(r"\balt\s*=\s*([\"'])(.*?)\1", image, re.IGNORECASE | re.DOTALL)
            alts.append(alt[2] if alt else "")
        for alt in alts:
            if len(alt.strip()) < SHORTEST_ALT:
                found.append(f"cell {number}: a picture's alternative text is {alt!r}")
    for number, cell in lesson.cells("code"):
        for output in cell.outputs:
            images = [mime for mime in output.get("data", {}) if mime.startswith("image/")]
            if images and len(figure_alt(output)) < SHORTEST_ALT:
                found.append(
                    f"cell {number} shows a figure with alternative text {figure_alt(output)!r}; "
                    f"say in a sentence what is to be seen (`alt=` of slam_course)"
                )
    return found


def figure_alt(output: NotebookNode) -> str:
    """The alternative text of a figure output: from its metadata, or behind `[figure] `."""
    for mime in output.data:
        alt = output.get("metadata", {}).get(mime, {})
        if mime.startswith("image/") and isinstance(alt, dict) and alt.get("alt"):
            return alt["alt"].strip()
    text = output.data.get("text/plain", "")
    return text[len(FIGURE_TEXT) :].strip() if text.startswith(FIGURE_TEXT) else ""


RULES: tuple[Callable[[Lesson], list[str]], ...] = (
    is_valid,
    was_run_in_order,
    has_no_empty_cell,
    has_one_title,
    shows_no_error,
    is_small,
    is_not_stale,
    has_clean_metadata,
    has_setup_cell,
    runs_anywhere,
    has_sections,
    marks_its_exercises,
    has_house_style,
    explains_its_code,
    imports_at_the_top,
    interprets_figures,
    describes_pictures,
)


def check(lesson: Lesson) -> list[str]:
    """Every breach of every rule, each as "rule: sentence"."""
    return [f"{rule.__name__}: {sentence}" for rule in RULES for sentence in rule(lesson)]


def main(arguments: list[str] | None = None) -> int:
    """Print the numbers and the breaches; exit status 1 when there is a breach."""
    names = sys.argv[1:] if arguments is None else arguments
    paths = [Path(name) for name in names] or sorted(NOTEBOOKS.glob("*.ipynb"))
    if not paths:
        print(f"error: no notebooks in {NOTEBOOKS}", file=sys.stderr)
        return 2
    address = read_address()
    lessons = [Lesson.read(path, address) for path in paths]
    columns = list(numbers(lessons[0]))
    width = max(len(lesson.path.name) for lesson in lessons)
    print(" " * width + "".join(f"  {key}" for key in columns))
    for lesson in lessons:
        row = zip(columns, numbers(lesson).values(), strict=True)
        values = "".join(f"  {value:>{len(key)}.4g}" for key, value in row)
        print(f"{lesson.path.name:<{width}}{values}")
    for lesson in lessons:
        for number in bare_figures(lesson):
            print(f"{lesson.path.name}: the figure of cell {number} has no text right behind it")
    breaches = [f"{lesson.path.name}: {text}" for lesson in lessons for text in check(lesson)]
    print("\n".join(breaches) or "every rule is kept")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())

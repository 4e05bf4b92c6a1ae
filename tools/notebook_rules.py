"""The house rules of the notebooks, checked without running them.

    python -m tools.notebook_rules      what breaks a rule, one sentence each

A rule is a function of a notebook that yields sentences, one a breach. tests/notebooks applies
them to every lesson. Whether outputs are right needs a kernel: `make notebooks ARGS=--check`, and
the test in a browser.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
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
    tags,
    to_text,
)  # fmt: skip
from tools.set_address import setting, setup_cell_source

LARGEST = 500_000  # bytes of one notebook
SHORTEST_ALT = 15  # characters; "figure" or "plot" describes nothing
SECTIONS = ("Objectives", "Prerequisites", "Budget", "Exercise", "Recap", "Further reading")

_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$", re.MULTILINE)
_PLACE = re.compile(r"(?<![\w.:/])/(?:root|home|Users|tmp|var/folders)/[\w.\-]+|[A-Z]:\\+Users")
_SHELL = re.compile(r"^\s*(?:!|%%(?:bash|sh|script)\b).*", re.MULTILINE)


def cells(nb: NotebookNode, kind: str) -> list[tuple[int, NotebookNode]]:
    """(number from 1, cell) of the "code" or "markdown" cells."""
    return [(n, cell) for n, cell in enumerate(nb.cells, start=1) if cell.cell_type == kind]


def headings(nb: NotebookNode) -> list[tuple[int, str]]:
    """(level, text) of every heading, those inside code blocks left out."""
    texts = [_FENCE.sub("", cell.source) for _, cell in cells(nb, "markdown")]
    return [(len(match[1]), match[2]) for text in texts for match in _HEADING.finditer(text)]


def is_canonical(nb: NotebookNode, text: str) -> Iterator[str]:
    """The file is as `make notebooks` writes it: valid, small, without an editor's marks."""
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {str(error).splitlines()[0]}"
    if to_text(nb) != text:
        yield "not written as `make notebooks` writes it"
    if len(text.encode("utf-8")) >= LARGEST:
        yield f"{len(text):,} characters; fewer than {LARGEST:,} bytes are allowed"
    if nb.metadata.get("kernelspec") != KERNELSPEC:
        yield f"the kernel must be {KERNELSPEC}"
    extra = set(nb.metadata) - {"kernelspec", "language_info", "slam_edu", "widgets"}
    extra |= {key for cell in nb.cells for key in cell.metadata} - set(CELL_METADATA)
    if extra or nb.metadata.get("language_info") != {"name": "python"}:
        yield f"metadata of an editor ({sorted(extra)}); run `make notebooks`"
    for number, cell in enumerate(nb.cells, start=1):
        odd = [tag for tag in tags(cell) if tag.startswith("nbval") and tag != VOLATILE_TAG]
        if odd:
            yield f"cell {number} has the tags {odd}; allowed is {VOLATILE_TAG!r}"


def was_run_in_order(nb: NotebookNode, text: str) -> Iterator[str]:
    """Every cell of code was run, once, from top to bottom, as it stands, and shows no error."""
    counts = [cell.execution_count for _, cell in cells(nb, "code")]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts {counts} instead of 1, 2, 3, …; run `make notebooks`"
    if nb.metadata.get("slam_edu", {}).get("source_sha256") != source_sha256(nb):
        yield "the outputs are stale: its code was edited since; run `make notebooks`"
    for number, cell in cells(nb, "code"):
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"cell {number} shows an error or writes to stderr"


def has_its_sections(nb: NotebookNode, text: str) -> Iterator[str]:
    """One title, first of all, and the sections that every lesson has."""
    if not nb.cells or not re.match(r"# \S", nb.cells[0].source):
        yield "the notebook must begin with its title, a markdown cell `# …`"
    titles = [title for level, title in headings(nb) if level == 1]
    if len(titles) > 1:
        yield f"one heading of level 1 is allowed, found {titles}"
    inner = [title for level, title in headings(nb) if level > 1]
    for section in SECTIONS:
        if not any(re.match(rf"\W*{section}", title, re.IGNORECASE) for title in inner):
            yield f"there is no heading `## {section}`"


def runs_anywhere(nb: NotebookNode, text: str) -> Iterator[str]:
    """Set-up and imports come first; no shell (Windows has another), no path of one machine."""
    code = cells(nb, "code")
    tagged = [number for number, cell in code if SETUP_TAG in tags(cell)]
    if not code or tagged != [code[0][0]]:
        yield f"the first code cell alone must have the tag {SETUP_TAG!r}, got {tagged}"
    elif code[0][1].source != setup_cell_source(setting("repository")):
        yield f"the set-up cell ({code[0][0]}) was edited; run `make address`"
    importing = [number for number, cell in code[1:] if imports(cell.source)]
    if importing != [number for number, _ in code[1:2]]:
        yield f"the first cell of code behind the set-up alone must import; these do: {importing}"
    for number, cell in code:
        for match in _SHELL.finditer(cell.source):
            yield f"cell {number} runs a shell: {match[0].strip()!r}; use Python"
        shown = [part for output in cell.outputs for part in texts(output)]
        for match in filter(None, map(_PLACE.search, [cell.source, *shown])):
            yield f"cell {number} names a path of one machine: {match[0]!r}"


def imports(source: str) -> bool:
    """Whether a cell imports outside of functions and classes; magics are no Python."""
    nodes: list[ast.AST] = [ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            nodes.extend(ast.iter_child_nodes(node))
    return False


def texts(output: NotebookNode) -> list[str]:
    """The texts of an output, pictures left out."""
    data = {mime: text for mime, text in output.get("data", {}).items() if "image/" not in mime}
    return [text for text in [output.get("text"), *data.values()] if isinstance(text, str)]


def marks_its_exercises(nb: NotebookNode, text: str) -> Iterator[str]:
    """Stub, check and solution of every exercise are tagged, so that editions can be made."""
    try:
        exercise_minutes(nb, len(find_exercises(nb)))
    except (ValueError, SyntaxError) as error:
        yield from str(error).splitlines()


def describes_pictures(nb: NotebookNode, text: str) -> Iterator[str]:
    """Every picture of the prose and every figure among the outputs has alternative text."""
    found = []
    for number, cell in cells(nb, "markdown"):
        prose = _FENCE.sub("", cell.source)
        found += [(number, alt) for alt in re.findall(r"!\[([^\]]*)\]\(", prose)]
        for image in re.findall(r"<img\b[^>]*>", prose, re.IGNORECASE):
            alt = re.search(r"\balt\s*=\s*([\"'])(.*?)\1", image, re.IGNORECASE | re.DOTALL)
            found.append((number, alt[2] if alt else ""))
    for number, cell in cells(nb, "code"):
        pictures = [out for out in cell.outputs if "image/" in "".join(out.get("data", {}))]
        found += [(number, figure_alt(output)) for output in pictures]
    for number, alt in found:
        if len(alt.strip()) < SHORTEST_ALT:
            yield f"cell {number}: a picture's alternative text is {alt!r}; say what is to be seen"


def figure_alt(output: NotebookNode) -> str:
    """The alternative text of a figure: what slam_course puts behind `[figure] `."""
    return output.data.get("text/plain", "").partition("[figure] ")[2].strip()


RULES = (is_canonical, was_run_in_order, has_its_sections, runs_anywhere, marks_its_exercises,
         describes_pictures)  # fmt: skip


def breaches(path: Path) -> list[str]:
    """Every breach of every rule in a notebook file, each as "file: sentence"."""
    text = path.read_text("utf-8")
    nb = nbformat.reads(text, as_version=4)
    return [f"{path.name}: {sentence}" for rule in RULES for sentence in rule(nb, text)]


def main() -> int:
    """Print the breaches; exit status 1 when there is one."""
    found = [line for path in sorted(NOTEBOOKS.glob("*.ipynb")) for line in breaches(path)]
    print("\n".join(found) or "every rule is kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

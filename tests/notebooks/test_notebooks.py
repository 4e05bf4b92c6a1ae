"""The house rules: kept by every notebook, and each shown to fail on a notebook that breaks it."""

import nbformat
import pytest

from tests.notebooks.made import figure_output, made_notebook
from tools.notebook_rules import breaches
from tools.notebooks import NOTEBOOKS, source_sha256, to_text

LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_there_are_lessons():
    assert len(LESSONS) >= 10


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_keeps_the_rules(path):
    assert breaches(path) == []


def edit(index, find, replacement):
    """A change of one cell's text, after which the outputs still count as current."""

    def change(nb):
        assert find in nb.cells[index].source
        nb.cells[index].source = nb.cells[index].source.replace(find, replacement)
        nb.metadata.slam_edu["source_sha256"] = source_sha256(nb)

    return change


def cell(index, **values):
    return lambda nb: nb.cells[index].update(values)


def tags(index, *names):
    return lambda nb: nb.cells[index].metadata.update(tags=list(names))


def output(kind, **values):
    return lambda nb: nb.cells[3].outputs.append(nbformat.v4.new_output(kind, **values))


def reorder(nb):
    nb.cells[6:8] = [nb.cells[7], nb.cells[6]]


# what is broken: change, what the sentence must say
BROKEN = {
    "never run": (cell(3, execution_count=None), "execution counts"),
    "out of order": (cell(3, execution_count=9), "execution counts"),
    "edited": (cell(3, source="print(7)"), "edited since"),
    "error": (output("error", ename="E", evalue="no"), "shows an error"),
    "stderr": (output("stream", name="stderr", text="oh"), "writes to stderr"),
    "kernel": (lambda nb: nb.metadata.update(kernelspec={"name": "mine"}), "the kernel must"),
    "editor": (lambda nb: nb.metadata.update(colab={}), "metadata of an editor"),
    "cell's metadata": (cell(3, metadata={"execution": {}}), "metadata of an editor"),
    "skipped": (tags(3, "nbval-skip"), "nbval-skip"),
    "large": (output("stream", text="x" * 500_000), "bytes are allowed"),
    "no title": (edit(0, "# How", "How"), "begin with its title"),
    "two titles": (edit(9, "## Recap", "# Recap"), "level 1"),
    "no section": (edit(10, "Further reading", "Books"), "no heading `## Further"),
    "no set-up": (tags(1), "must have the tag 'setup'"),
    "set-up edited": (edit(1, "import slam_edu", "import os"), "was edited"),
    "imports elsewhere": (edit(3, "print(1)", "import os"), "alone must import"),
    "shell": (edit(3, "print(1)", "!ls"), "'!ls'"),
    "home": (edit(3, "1", "'/home/me/a'"), "/home/me"),
    "printed home": (output("stream", text="in /tmp/x1\n"), "/tmp/x1"),
    "no alt": (edit(4, "A single grey pixel, which stands for a figure.", ""), "alternative text"),
    "bare figure": (lambda nb: nb.cells[3].outputs.append(figure_output("x")), "alternative text"),
    "no exercise": (edit(5, "Exercise 1:", "Exercises:"), "no heading `## Exercise"),
    "no stub": (tags(6), "needs one cell with the tag 'stub', got 0"),
    "two checks": (tags(6, "stub", "check"), "with the tag 'check', got 2"),
    "order": (reorder, "one after another, got cells 8, 7, 9"),
    "no points": (tags(7, "check"), "one tag such as 'points:4'"),
    "no dots": (edit(6, "...", "x"), "has no `...` in its stub"),
    "no call": (edit(7, "checks.bend(bend)", "bend(2)"), "does not end with a call"),
    "no verdict": (edit(8, ".passed\nverdict", ".passed"), "its check's `verdict`"),
    "another check": (edit(8, "checks.bend", "checks.turn"), "solution by checks.turn"),
    "same answer": (edit(8, "bend_solution)", "bend)"), "nothing of the learner"),
    "formula": (edit(7, "(bend)", "(bend + 1)"), "give it a name"),
    "no hint": (edit(5, "<details>", ""), "no folded hint"),
    "number": (edit(5, "Exercise 1", "Exercise 2"), "should have number 1"),
    "minutes": (edit(0, "1 × 5", "2 × 5"), "[5, 5] for 1 exercises"),
}


@pytest.mark.parametrize("what", ["nothing", *BROKEN])
def test_what_breaks_a_rule_is_named(what, tmp_path):
    nb = made_notebook()
    change, sentence = BROKEN.get(what, (lambda nb: None, ""))
    change(nb)
    path = tmp_path / "01_made.ipynb"
    path.write_text(to_text(nb), encoding="utf-8")
    found = breaches(path)
    assert bool(found) == (what != "nothing"), found
    assert not found or any(sentence in each for each in found), found


def test_a_file_in_another_form_is_named(tmp_path):
    path = tmp_path / "01_made.ipynb"
    path.write_text(to_text(made_notebook()).replace("\n ", "\n  "), encoding="utf-8")
    assert any("as `make notebooks` writes it" in each for each in breaches(path))

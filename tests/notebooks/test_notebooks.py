"""The house rules: kept by every notebook, and each shown to fail on a notebook that breaks it."""

import re
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.made import figure_output, lesson, made_notebook
from tools import notebook_rules as rules
from tools.notebooks import NOTEBOOKS, source_sha256, to_text
from tools.set_address import read_address, setup_cell_source

LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_there_are_lessons():
    assert LESSONS, f"no notebooks in {NOTEBOOKS}: nothing would be checked"


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_keeps_the_rule(path, rule):
    breaches = rule(rules.Lesson.read(path, read_address()))
    assert not breaches, "\n".join(breaches)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_is_written_canonically(path):
    """As tools/notebooks.py writes it, so that `make notebooks` changes nothing but outputs."""
    text = path.read_bytes().decode("utf-8")
    assert to_text(nbformat.reads(text, as_version=4)) == text


# ---------------------------------------------------------------------------------------------
# The rules themselves
# ---------------------------------------------------------------------------------------------


def test_the_made_notebook_keeps_every_rule():
    assert rules.check(lesson()) == []


def cell_of(nb, kind, index):
    return [cell for cell in nb.cells if cell.cell_type == kind][index]


def edit(kind, index, find, replacement):
    """A change of one cell's text, after which the outputs still count as current."""

    def change(nb):
        cell = cell_of(nb, kind, index)
        assert find in cell.source
        cell.source = cell.source.replace(find, replacement)
        nb.metadata.slam_edu["source_sha256"] = source_sha256(nb)

    return change


def output(index, *outputs):
    def change(nb):
        cell_of(nb, "code", index).outputs = list(outputs)

    return change


def attribute(kind, index, key, value):
    def change(nb):
        cell_of(nb, kind, index)[key] = value

    return change


def tags(index, *names):
    def change(nb):
        cell_of(nb, "code", index).metadata["tags"] = list(names)

    return change


def metadata(key, value):
    def change(nb):
        nb.metadata[key] = value

    return change


def drop_cells(first, last):
    def change(nb):
        words = sum(rules.count_words(cell.source) for cell in nb.cells[first:last])
        del nb.cells[first:last]
        nb.cells[-1].source += " word" * words  # fewer cells, as much to read
        for count, cell in enumerate((c for c in nb.cells if c.cell_type == "code"), start=1):
            cell.execution_count = count
        nb.metadata.slam_edu["source_sha256"] = source_sha256(nb)

    return change


def add_prose_cells(count):
    def change(nb):
        for index in range(count):
            cell = nbformat.v4.new_markdown_cell("more", id=f"more-{index}")
            nb.cells.insert(5, cell)

    return change


def long_cells(nb):
    for cell in nb.cells:
        if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
            cell.source = "\n".join(f"x{line} = 1" for line in range(10))
    nb.metadata.slam_edu["source_sha256"] = source_sha256(nb)


def reorder(nb):
    cells = nb.cells
    cells[18:20] = [cells[19], cells[18]]


def more_code(lines):
    """That many lines more in the cell of imports; with fewer, the imports go as well."""

    def change(nb):
        cell = cell_of(nb, "code", 1)
        comment = "# A long cell, for so many words.\n"
        if lines > 0:
            cell.source = comment * lines + cell.source
        else:
            cell.source = cell.source.replace("import math\n" + comment * -lines, "")
        nb.metadata.slam_edu["source_sha256"] = source_sha256(nb)

    return change


def figure_last(nb):
    cell = nbformat.v4.new_code_cell("print(9)", id="last", execution_count=12)
    cell.outputs = [figure_output()]
    nb.cells.append(cell)


def stream(name, text):
    return nbformat.v4.new_output("stream", name=name, text=text)


error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
bare_figure = figure_output()
bare_figure.data["text/plain"] = "<Figure size 640x480 with 1 Axes>"

# rule, what is broken, change, what the sentence must say
BROKEN = [
    (rules.is_valid, "duplicate id", attribute("code", 1, "id", "cell-000"), "cells 1 and 4"),
    (rules.is_valid, "bad output", output(3, {"output_type": "sound"}), "not a valid"),
    (
        rules.was_run_in_order,
        "never run",
        attribute("code", 2, "execution_count", None),
        "count None",
    ),
    (
        rules.was_run_in_order,
        "out of order",
        attribute("code", 2, "execution_count", 9),
        "would be 3",
    ),
    (
        rules.has_no_empty_cell,
        "blank",
        edit("markdown", -2, "## Recap\n\nIt bends.", " \n"),
        "is empty",
    ),
    (rules.has_one_title, "no title", edit("markdown", 0, "# How", "How"), "begin with its title"),
    (
        rules.has_one_title,
        "level 2",
        edit("markdown", 0, "# How", "## How"),
        "begin with its title",
    ),
    (rules.has_one_title, "two", edit("markdown", -2, "## Recap", "# Recap"), "found 2"),
    (rules.shows_no_error, "error", output(3, error), "shows an error: ValueError"),
    (rules.shows_no_error, "stderr", output(3, stream("stderr", "warned")), "writes to stderr"),
    (rules.is_not_stale, "edited", attribute("code", 3, "source", "print(7)"), "edited since"),
    (rules.is_not_stale, "no record", metadata("slam_edu", {}), "nothing says"),
    (
        rules.has_clean_metadata,
        "a mark of its own",
        metadata("slam_edu", {"lnog": True}),
        r"slam_edu has \['lnog'\]",
    ),
    (
        rules.has_clean_metadata,
        "kernel",
        metadata("kernelspec", {"name": "mine"}),
        "the kernel must",
    ),
    (
        rules.has_clean_metadata,
        "version",
        metadata("language_info", {"name": "python", "version": "3.11.7"}),
        "language_info must",
    ),
    (
        rules.has_clean_metadata,
        "editor",
        metadata("colab", {"toc": True}),
        r"metadata \['colab'\]",
    ),
    (
        rules.has_clean_metadata,
        "cell",
        attribute("code", 2, "metadata", {"execution": {}}),
        r"metadata \['execution'\]",
    ),
    (rules.has_clean_metadata, "skip", tags(2, "nbval-skip"), "tag 'nbval-skip'"),
    (rules.has_clean_metadata, "typo", tags(2, "nbval-ignore-outputs"), "nbval-ignore-outputs"),
    (rules.has_setup_cell, "no tag", tags(0), "must have the tag 'setup'"),
    (rules.has_setup_cell, "two tags", tags(1, "setup"), r"got \[2, 4\]"),
    (rules.has_setup_cell, "edited", edit("code", 0, "make lab", "make it"), "was edited"),
    (rules.runs_anywhere, "shell", edit("code", 2, "print", "!ls\nprint"), "'!ls'"),
    (rules.runs_anywhere, "bash", edit("code", 2, "print", "%%bash\nprint"), "%%bash"),
    (rules.runs_anywhere, "home", edit("code", 2, "print(1", "open('/home/me/a'"), "/home/me"),
    (rules.runs_anywhere, "printed", output(2, stream("stdout", "in /tmp/x1\n")), "/tmp/x1"),
    (rules.runs_anywhere, "Windows", edit("code", 2, "(1)", "('C:\\\\Users\\\\me')"), "Users"),
    *(
        (rules.has_sections, section, edit("markdown", index, section, "Other"), f"`## {section}")
        for section, index in zip(rules.SECTIONS, (0, 0, 0, -3, -2, -1), strict=True)
    ),
    (rules.has_sections, "no time", edit("markdown", 0, " min", " m"), "names no time"),
    *(
        (rules.marks_its_exercises, what, change, sentence)
        for what, change, sentence in (
            ("no stub", tags(8), "needs one cell with the tag 'stub', got 0"),
            ("two checks", tags(8, "stub", "check"), "with the tag 'check', got 2"),
            ("order", reorder, "one after another, got cells stub 20, check 19, solution 21"),
            ("no points", tags(9, "check"), r"one tag such as 'points:4' at its check, got \[\]"),
            ("zero points", tags(9, "check", "points:0"), r"got \[0\]"),
            ("no dots", edit("code", 8, "...", "x"), "has no `...` in its stub"),
            ("no call", edit("code", 9, "checks.bend(bend)", "bend(2)"), "does not end with a ca"),
            ("no verdict", edit("code", 10, ".passed\nverdict", ".passed"), "its check's `v"),
            ("another", edit("code", 10, "checks.bend", "checks.turn"), "solution by checks.t"),
            ("same", edit("code", 10, "bend_solution)", "bend)"), "nothing of the learner"),
            ("formula", edit("code", 9, "(bend)", "(bend + 1)"), "a name is needed"),
            ("no hint", edit("markdown", -3, "<details>", ""), "no folded hint"),
            ("number", edit("markdown", -3, "Exercise 1", "Exercise 2"), "should have number 1"),
            ("stray", tags(3, "stub"), r"cells \[8\] have an exercise's tags before"),
            ("minutes", edit("markdown", 0, "1 × 5", "2 × 5"), r"\[5, 5\] for 1 exercises"),
            ("no minutes", edit("markdown", 0, "| exercises", "| tasks"), "has no row"),
            ("none", edit("markdown", -3, "Exercise 1:", "Exercises:"), "no heading `## Exercise"),
        )
    ),
    (rules.has_house_style, "few cells", drop_cells(4, 16), "11 cells; 15 to 50"),
    (rules.has_house_style, "many cells", add_prose_cells(28), "51 cells; 15 to 50"),
    (rules.has_house_style, "long code", long_cells, "median code cell has 10 lines"),
    (rules.has_house_style, "few words", attribute("markdown", 1, "source", "Few."), "words"),
    (rules.has_house_style, "many words", edit("markdown", 1, "bends", "bends " * 50), "words"),
    (rules.explains_its_code, "much code", more_code(120), "6.[0-9] words for a line of code; 7"),
    (rules.explains_its_code, "little code", more_code(-140), "words for a line of code; 7 to 15"),
    (rules.imports_at_the_top, "no imports", more_code(-140), r"alone \(4\) must import.*: \[\]"),
    (
        rules.imports_at_the_top,
        "elsewhere",
        edit("code", 3, "print(2)", "import os\nprint(2)"),
        r"these do: \[4, 8\]",
    ),
    (
        rules.imports_at_the_top,
        "inside",
        edit("code", 3, "print(2)", "if True:\n    from os import path\nprint(2)"),
        r"\[4, 8\]",
    ),
    (rules.interprets_figures, "no text", output(8, figure_output()), "cell 19 draws.* 2 cells"),
    (rules.interprets_figures, "at the end", figure_last, "cell 24 draws .* no text follows"),
    (
        rules.describes_pictures,
        "no alt",
        edit("markdown", -4, "![A single grey", "![](x)["),
        "is ''",
    ),
    (rules.describes_pictures, "poor alt", edit("markdown", -4, "Look.", "![plot](x)"), "'plot'"),
    (rules.describes_pictures, "html", edit("markdown", -4, "Look.", "<img src='x'>"), "is ''"),
    (rules.describes_pictures, "figure", output(3, bare_figure), "shows a figure"),
]


@pytest.mark.parametrize(
    ("rule", "change", "sentence"),
    [(rule, change, sentence) for rule, _, change, sentence in BROKEN],
    ids=[f"{rule.__name__}-{what}".replace(" ", "-") for rule, what, _, _ in BROKEN],
)
def test_rule_fails_on_a_broken_notebook(rule, change, sentence):
    breaches = rule(lesson(change))
    assert len(breaches) == 1
    assert re.search(sentence, breaches[0])


def test_a_large_notebook_breaks_a_rule():
    assert rules.is_small(lesson(size=rules.LARGEST - 1)) == []
    assert rules.is_small(lesson(size=rules.LARGEST)) == [
        "500,000 bytes; fewer than 500,000 are allowed"
    ]


def test_every_rule_was_seen_to_fail():
    assert set(rules.RULES) == {rule for rule, *_ in BROKEN} | {rules.is_small}


def test_lesson_00_may_be_shorter():
    def shorten(nb):
        for cell in nb.cells[4:10]:
            if cell.cell_type == "markdown":
                cell.source = "Short."

    assert rules.has_house_style(lesson(shorten, name="00_start.ipynb")) == []
    [breach] = rules.has_house_style(lesson(shorten))
    assert "1500 to 2500" in breach


def test_the_setup_cell_follows_the_address():
    address = "https://github.com/someone/slam_edu"
    assert rules.has_setup_cell(lesson(address=address)) != []
    change = attribute("code", 0, "source", setup_cell_source(address))
    assert rules.has_setup_cell(lesson(change, address=address)) == []


def test_alternative_text_may_stand_in_the_metadata():
    """Where Jupyter's own tools look for it."""
    figure = figure_output()
    figure.data["text/plain"] = "<Figure size 640x480 with 1 Axes>"
    figure.metadata = {"image/png": {"alt": "Ten paths that bend towards the left."}}
    assert rules.describes_pictures(lesson(output(3, figure))) == []


@pytest.mark.parametrize(
    ("markdown", "words"),
    [
        ("", 0),
        ("Two words", 2),
        ("don't re-run it's 2.5", 4),
        ("# A title\n\n- one\n- two", 4),
        ("see [the paper](https://example.org/a-b-c) at https://example.org/x now", 5),
        ("before\n```python\nx = a + b\n```\nafter", 2),
        ("a $x_t = \\alpha x$ b", 3),
        ("a $$x\n+ y$$ b", 3),
        ("call `f(x, y)` now", 3),
        ("![a long description](a.png) word", 1),
        ("<details><summary>Hint</summary>Look up.</details>", 3),
        ("| a | b |\n|---|---|\n| 1 | 2 |", 4),
    ],
)
def test_count_words(markdown, words):
    assert rules.count_words(markdown) == words


def test_headings_inside_code_are_no_headings():
    def change(nb):
        cell_of(nb, "markdown", 1).source += "\n```python\n# a comment\n```\n"

    assert rules.check(lesson(change)) == []


def test_the_table_names_each_breach(tmp_path, capsys):
    path = tmp_path / "01_made.ipynb"
    nb = made_notebook()
    path.write_bytes(to_text(nb).encode("utf-8"))
    if read_address():  # the made notebook has the set-up cell of a project without an address
        cell_of(nb, "code", 0).source = setup_cell_source(read_address())
        path.write_bytes(to_text(nb).encode("utf-8"))
    assert rules.main([str(path)]) == 0
    assert "every rule is kept" in capsys.readouterr().out
    cell_of(nb, "code", 1).execution_count = 5
    path.write_bytes(to_text(nb).encode("utf-8"))
    assert rules.main([str(path)]) == 1
    assert "01_made.ipynb: was_run_in_order: cell 4" in capsys.readouterr().out


def test_without_notebooks_the_table_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rules, "NOTEBOOKS", Path(tmp_path))
    assert rules.main([]) == 2
    assert "no notebooks in" in capsys.readouterr().err


def test_what_counts_as_an_import():
    assert rules._imports("%matplotlib inline\nimport os")
    assert rules._imports("try:\n    import os\nexcept ImportError:\n    pass")
    assert not rules._imports("def solution():\n    from scipy import stats\n    return stats")
    assert not rules._imports("for i in range(3):\n    %pip list")


def test_figures_and_exercises_are_counted():
    values = rules.numbers(lesson())
    assert (values["figures"], values["exercises"], values["cells"]) == (1, 1, 23)
    assert values["code lines"] == 141 + 7 * 2 + 3 + 1 + 6
    assert values["words per code line"] == values["words"] / values["code lines"]


def test_figures_without_text_right_behind_are_listed(tmp_path, capsys):
    def change(nb):
        cell_of(nb, "code", 9).outputs = [figure_output()]

    assert rules.bare_figures(lesson()) == {}
    assert rules.bare_figures(lesson(change)) == {20: 1}
    assert rules.interprets_figures(lesson(change)) == []
    nb = made_notebook()
    change(nb)
    (tmp_path / "01_made.ipynb").write_bytes(to_text(nb).encode("utf-8"))
    rules.main([str(tmp_path / "01_made.ipynb")])
    assert "01_made.ipynb: the figure of cell 20 has no text right" in capsys.readouterr().out


def test_lesson_00_may_have_more_words_for_a_line():
    def fewer(nb):
        cell = cell_of(nb, "code", 1)
        cell.source = cell.source.replace("# A long cell, for so many words.\n", "", 59)

    assert rules.explains_its_code(lesson(fewer, name="00_start.ipynb")) == []
    [breach] = rules.explains_its_code(lesson(fewer))
    assert "7 to 15" in breach

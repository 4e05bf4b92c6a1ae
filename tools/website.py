"""The website: made from the notebooks, the docstrings and the reports, in dist/site.

    python -m tools.website                     build it; a warning is an error
    python -m tools.website --linkcheck         look up the links to other hosts as well
    python -m tools.website --out FOLDER        build it somewhere else

Nothing of it is kept twice. A temporary folder gets the pages of `docs/site/` and beside them what
is made anew each time, and Sphinx builds from there:

    notebooks/     the executed notebooks, not run again; solutions are folded, and where an
                   explorer stood there is a word on how to run it
    gallery        every figure of the notebooks' outputs, with its alternative text
    glossary       slam_course.glossary
    api/           the docstrings of every public module
    results/       the reports and model cards of data/
    guides         docs/teaching.md and docs/anywhere.md, where they are
    changelog      CHANGELOG.md

A line `<!-- from README: HEADING -->` in a page of docs/site is replaced by that section of the
README, and `<!-- from README: address:NAME -->` by what stands between its marks, so that the two
cannot disagree. Links to files of the repository become links to pages where there is one; the
others lead to the repository where it has a public address (`make address`), and otherwise are no
links. The site opens from a disk without a network: MathJax lies in docs/site/_static/mathjax.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import os
import pkgutil
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from slam_course import glossary
from slam_edu.io import replaced_folder
from tools.notebook_rules import figure_alt
from tools.set_address import GITHUB, colab_link, read_address, read_version, validate

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "site"
OUT = ROOT / "dist" / "site"

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PICTURES = {"image/png": ".png", "image/gif": ".gif", "image/jpeg": ".jpg"}

# Files of the repository that are pages of the site, {file: page without its suffix}. What a page
# of docs/site is called is its name there.
BECOMES = {
    "CHANGELOG.md": "changelog",
    "LICENSE": "licence",
    "README.md": "index",
    "data/README.md": "licence",
    "data/digits-results/students/report.md": "results/digits-students",
    "data/digits-sd": "results/digits-sd",
    "data/digits-sd/README.md": "results/digits-sd",
    "data/digits-student": "results/digits-student",
    "data/digits-student/README.md": "results/digits-student",
    "data/study/report.md": "results/study",
    "docs/anywhere.md": "anywhere",
    "docs/teaching.md": "teaching",
}
REPORTS = {page: file for file, page in BECOMES.items() if page.startswith("results/")}
GUIDES = {page: file for file, page in BECOMES.items() if file.startswith("docs/")}


@dataclass(frozen=True, kw_only=True)
class ApiPage:
    """One page of the API reference."""

    title: str
    intro: str
    modules: tuple[str, ...]  # of slam_edu; a package brings all that is public in it


API = {
    "core": ApiPage(
        title="The core",
        intro="Levels, solvers, sub-paths and the distillation step, for batches of any rank; on "
        "torch and numpy alone. What ``slam_edu.__all__`` names is importable from "
        "``slam_edu`` itself.",
        modules=(
            "schedule",
            "prediction",
            "solver",
            "subpath",
            "consistency",
            "losses",
            "distill",
            "embedding",
            "ema",
            "sampling",
            "training",
        ),
    ),
    "toy": ApiPage(
        title="Two dimensions",
        intro="Exact teachers, densities and solution maps in the plane.",
        modules=("toy",),
    ),
    "digits": ApiPage(
        title="The digits",
        intro="A Stable Diffusion of handwritten digits: its data, training, judge and students.",
        modules=("digits",),
    ),
    "sd": ApiPage(
        title="Stable Diffusion",
        intro="Distilling Stable Diffusion 1, 2 and XL; the command is ``slam-edu``.",
        modules=("sd",),
    ),
    "measures": ApiPage(
        title="Measures",
        intro="Distances between samples, and what the machine can run.",
        modules=("metrics", "bench", "environment"),
    ),
    "plotting": ApiPage(
        title="Plotting", intro="The figures of the lessons.", modules=("plotting",)
    ),
    "explorers": ApiPage(
        title="Explorers",
        intro="Figures with menus and sliders, and what they are made of.",
        modules=("widgets", "explorers"),
    ),
    "checks": ApiPage(
        title="Checks", intro="What the exercises are checked by.", modules=("checks",)
    ),
    "more": ApiPage(
        title="Everything else",
        intro="The demo, the glossary, and helpers that the other parts share.",
        modules=(
            "demo",
            "files",
            "glossary",
            "optional",
            "resources",
            "runlog",
            "seeding",
            "setting_up",
        ),
    ),
}


# ---------------------------------------------------------------------------------------------
# Text that comes from elsewhere in the repository
# ---------------------------------------------------------------------------------------------

# [text](target), where the text may hold brackets of its own; an image has a `!` before it.
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FROM_README = re.compile(r"(?m)^<!-- from README: (.+) -->$")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def relink(text: str, file: str, page: str, address: str) -> tuple[str, dict[str, str]]:
    """Markdown of one of the repository's files, with links that hold on the site.

    Args:
        text: the markdown.
        file: where it comes from, relative to the repository, such as ``data/README.md``.
        page: the page it becomes, such as ``licence``.
        address: the repository's address, "" for none.

    Returns:
        the text, and the pictures that it shows, {their file: where they belong in the site}.

    Raises:
        ValueError: a link leads to no file of the repository.
    """
    pictures: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, _, anchor = target.partition("#")
        found = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        if not (ROOT / found).exists():
            raise ValueError(f"{file} links to {target!r}, and there is no file {found}")
        here = posixpath.dirname(page)
        if mark:
            pictures[found] = f"figures/{found.replace('/', '-')}"
            return f"![{label}]({posixpath.relpath(pictures[found], here or '.')})"
        goal = page_of(found)
        if goal:
            anchor = f"#{anchor}" if anchor else ""
            return f"[{label}]({posixpath.relpath(goal, here or '.')}{suffix_of(goal)}{anchor})"
        if address:
            kind = "tree" if (ROOT / found).is_dir() else "blob"
            return f"[{label}]({address}/{kind}/main/{found}{'#' + anchor if anchor else ''})"
        return label

    return _LINK.sub(replace, text), pictures


def page_of(file: str) -> str:
    """The page that shows a file of the repository, "" for none."""
    path = Path(file)
    if path.parent.as_posix() == "notebooks" and path.suffix == ".ipynb":
        return path.with_suffix("").as_posix()
    return BECOMES.get(file, "") if (ROOT / file).exists() else ""


def suffix_of(page: str) -> str:
    """The suffix of a page's source."""
    return ".ipynb" if page.startswith("notebooks/") else ".md"


def readme_part(name: str, readme: str) -> str:
    """A section of the README by its heading, or what stands between the marks `address:NAME`.

    Raises:
        ValueError: the README has no such part.
    """
    if name.startswith("address:"):
        pattern = rf"(?ms)^<!-- {re.escape(name)} -->\n(.*?)^<!-- /{re.escape(name)} -->"
    else:
        pattern = rf"(?ms)^## {re.escape(name)}\n(.*?)(?=^## |\Z)"
    match = re.search(pattern, readme)
    if not match:
        raise ValueError(f"a page of docs/site asks for {name!r}, which README.md does not have")
    return match[1].strip()


# ---------------------------------------------------------------------------------------------
# The notebooks
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure among the outputs of a notebook."""

    notebook: str  # file name without its suffix
    lesson: str  # its title
    section: str  # the heading above it
    cell: str  # id of the cell
    name: str  # file name in the site
    alt: str
    data: bytes


def is_solution(cell: NotebookNode) -> bool:
    """Whether the cell is folded away in the notebook."""
    tagged = "solution" in cell.metadata.get("tags", [])
    return tagged or bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def figures(nb: NotebookNode, notebook: str) -> Iterator[Figure]:
    """The figures that a notebook's cells show, in order."""
    lesson = section = ""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for level, title in re.findall(r"(?m)^(#{1,3}) (.+)$", cell.source):
                lesson, section = (title, "") if level == "#" else (lesson, title)
        count = 0
        for output in cell.get("outputs", []):
            kinds = [kind for kind in PICTURES if kind in output.get("data", {})]
            if kinds:
                # A moving figure has a still one beside it; the gallery stands still.
                still = kinds[0]
                count += 1
                yield Figure(
                    notebook=notebook,
                    lesson=lesson,
                    section=section,
                    cell=cell.id,
                    name=f"{notebook[:2]}-{cell.id}-{count}{PICTURES[still]}",
                    alt=figure_alt(output),
                    data=base64.b64decode(output["data"][still]),
                )


def for_the_site(nb: NotebookNode) -> NotebookNode:
    """The notebook as Sphinx takes it; `nb` is changed.

    Solutions get myst-nb's tag for folding; figures their alternative text; each code cell its id,
    for links; in place of an explorer, which needs a kernel, there is a word on how to run it.
    """
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata["slam_edu_id"] = cell.id
        if is_solution(cell):
            tags = cell.metadata.setdefault("tags", [])
            cell.metadata["tags"] = [*tags, "hide-input"]
        alts = [figure_alt(output) for output in cell.outputs if "data" in output]
        cell.metadata["slam_edu_alts"] = [alt for alt in alts if alt]
        for output in cell.outputs:
            if WIDGET_VIEW in output.get("data", {}):
                output.data = NotebookNode({"text/html": EXPLORER})
    return nb


EXPLORER = (
    '<p class="slam-explorer-note">Here stands an explorer, with controls to play with. It moves '
    'where the notebook runs: <a href="../run.html">how to run it</a>.</p>'
)


def read_notebooks() -> dict[str, NotebookNode]:
    """The course's notebooks in order, {file name without its suffix: notebook}."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return {path.stem: nbformat.read(path, as_version=4) for path in paths}


def title_of(nb: NotebookNode) -> str:
    """The text of a notebook's first heading."""
    return re.search(r"(?m)^# (.+)$", nb.cells[0].source)[1]


# ---------------------------------------------------------------------------------------------
# Pages that are made
# ---------------------------------------------------------------------------------------------


def gallery_page(shown: list[Figure]) -> str:
    """reStructuredText: every figure, linked to its cell, by lesson."""
    lines = ["Gallery", "=======", ""]
    lines += [
        f"All {len(shown)} figures of the lessons. Each leads to the cell that draws it.",
        "",
    ]
    for notebook in dict.fromkeys(figure.notebook for figure in shown):
        mine = [figure for figure in shown if figure.notebook == notebook]
        title = f"{notebook[:2]} {mine[0].lesson}"
        lines += [title, "-" * len(title), "", ".. container:: gallery", ""]
        for figure in mine:
            lines += [
                f"   .. figure:: figures/{figure.name}",
                f"      :alt: {figure.alt}",
                f"      :target: notebooks/{notebook}.html#cell-{figure.cell}",
                "      :loading: lazy",
                "",
                f"      {escape_rst(figure.section or figure.lesson)}",
                "",
            ]
    return "\n".join(lines)


def escape_rst(text: str) -> str:
    """A heading's markdown as plain reStructuredText; mathematics stays mathematics."""
    text = re.sub(r"^(\d+)\.", r"\1\\.", text)  # no list begins here
    parts = re.split(r"\$([^$]+)\$", text)
    plain = [re.sub(r"([*`|_])", r"\\\1", part) for part in parts[::2]]
    maths = [f":math:`{part}`" for part in parts[1::2]]
    joined = [plain[0]]
    for formula, after in zip(maths, plain[1:], strict=True):
        joined += ["\\ ", formula, "\\ ", after]
    return "".join(joined)


def glossary_rows(titles: dict[str, str]) -> str:
    """Markdown: the table of symbols."""
    lines = ["| symbol | meaning | first in | in the code |", "|---|---|---|---|"]
    pages = {int(name[:2]): name for name in titles}
    for entry in glossary.SYMBOLS:
        code = "<br>".join(f"`{glossary.short(name)}`" for name in entry.code)
        lesson = f"[{entry.lesson:02d}](notebooks/{pages[entry.lesson]}.ipynb)"
        lines.append(f"| ${entry.symbol}$ | {entry.meaning} | {lesson} | {code} |")
    return "\n".join(lines)


def public_modules(name: str) -> list[str]:
    """`slam_edu.NAME` and, if it is a package, every public module in it, by their full names."""
    folder = ROOT / "slam_edu" / name
    found = pkgutil.iter_modules([str(folder)]) if folder.is_dir() else []
    names = sorted(module.name for module in found if not module.name.startswith("_"))
    return [f"slam_edu.{name}", *(f"slam_edu.{name}.{module}" for module in names)]


def api_page(page: ApiPage) -> str:
    """reStructuredText: the docstrings of the page's modules.

    A module is documented whole, a package by its text: what it takes from its modules stands
    there, once. Of a package in a package what `__all__` names is documented, and no more.
    """
    lines = [page.title, "=" * len(page.title), "", page.intro, ""]
    for name in page.modules:
        for module in public_modules(name):
            lines += [module, "-" * len(module), ""]
            lines += [f".. automodule:: {module}", "   :members:"]
            inner = module.count(".") > 1
            if not inner:
                lines.append("   :ignore-module-all:")
            lines.append("")
    return "\n".join(lines)


def api_index() -> str:
    """reStructuredText: the list of the pages of the API reference."""
    lines = ["API reference", "=============", "", ".. automodule:: slam_edu", ""]
    for name, page in API.items():
        modules = ", ".join(f":mod:`slam_edu.{module}`" for module in page.modules)
        lines += [f":doc:`{page.title} <{name}>`", f"   {page.intro}", "", f"   {modules}", ""]
    return "\n".join([*lines, ".. toctree::", "   :hidden:", "", *(f"   {name}" for name in API)])


def places(address: str, notebook: str) -> NotebookNode:
    """The cell below a lesson's title: where the notebook can be had and opened."""
    links = [f'<a href="{notebook}.ipynb" download>Download the notebook</a>']
    links.append('<a href="../run.html">How to run it</a>')
    if address.startswith(f"https://{GITHUB}/"):
        link = html.escape(colab_link(address, notebook + ".ipynb"))
        links.append(f'<a href="{link}">Open in Colab</a>')
    text = f'<p class="slam-places">{" · ".join(links)}</p>'
    return nbformat.v4.new_markdown_cell(text, id="places")


# ---------------------------------------------------------------------------------------------
# Assembling and building
# ---------------------------------------------------------------------------------------------


def assemble(target: Path, address: str) -> None:
    """Write Sphinx's source folder.

    Args:
        target: an empty folder.
        address: the repository's validated address, "" for none.

    Raises:
        ValueError: a link leads nowhere, or a page asks for what the README does not have.
    """
    notebooks = read_notebooks()
    titles = {name: title_of(nb) for name, nb in notebooks.items()}
    shown = [figure for name, nb in notebooks.items() for figure in figures(nb, name)]
    guides = {page: file for page, file in GUIDES.items() if (ROOT / file).exists()}
    # What the landing page shows.
    pictures = {"docs/demo.png": "figures/docs-demo.png"}

    def taken(text: str, file: str, page: str) -> str:
        text, found = relink(text, file, page, address)
        pictures.update(found)
        return _FRONT_MATTER.sub("", text)

    def read(file: str) -> str:
        return (ROOT / file).read_text(encoding="utf-8")

    shutil.copytree(PAGES, target, dirs_exist_ok=True)
    readme = read("README.md")
    for path in sorted(target.glob("**/*.md")):
        page = path.relative_to(target).with_suffix("").as_posix()
        text = path.read_text(encoding="utf-8")
        text = _FROM_README.sub(
            lambda match, page=page: taken(readme_part(match[1], readme), "README.md", page), text
        )
        text = text.replace("<!-- glossary -->", glossary_rows(titles))
        lessons = [f"{name[:2]} · {title} <notebooks/{name}>" for name, title in titles.items()]
        text = text.replace("<!-- lessons -->", "\n".join(lessons))
        text = text.replace("<!-- version -->", read_version())
        for guide in GUIDES:
            text = text.replace(f"<!-- {guide} -->", guide if guide in guides else "")
        path.write_text(text, encoding="utf-8")

    made = {"gallery.rst": gallery_page(shown), "api/index.rst": api_index()}
    made.update({f"api/{name}.rst": api_page(page) for name, page in API.items()})
    made.update({f"{page}.md": taken(read(file), file, page) for page, file in REPORTS.items()})
    made.update({f"{page}.md": taken(read(file), file, page) for page, file in guides.items()})
    made["changelog.md"] = taken(read("CHANGELOG.md"), "CHANGELOG.md", "changelog")
    sources = taken(read("data/README.md"), "data/README.md", "licence")
    licence = (target / "licence.md").read_text(encoding="utf-8")
    made["licence.md"] = licence.replace("<!-- data -->", sources.replace("# data/", "## Data", 1))
    made["licence.md"] = made["licence.md"].replace("<!-- LICENSE -->", read("LICENSE").strip())
    for name, nb in notebooks.items():
        for_the_site(nb).cells.insert(1, places(address, name))
        made[f"notebooks/{name}.ipynb"] = nbformat.writes(nb)
    settings = {"address": address, "version": read_version()}
    made["settings.json"] = json.dumps(settings)
    for name, text in made.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    (target / "figures").mkdir(exist_ok=True)
    for figure in shown:
        (target / "figures" / figure.name).write_bytes(figure.data)
    for file, place in pictures.items():
        shutil.copyfile(ROOT / file, target / place)


def sphinx(source: Path, out: Path, builder: str) -> int:
    """Run sphinx-build, warnings being errors; returns its exit status."""
    command = [sys.executable, "-m", "sphinx", "-b", builder, "-n", "-q"]
    command += ["-W", "--keep-going", "-d", str(source.parent / "doctrees")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.run([*command, str(source), str(out)], env=env, cwd=ROOT).returncode


def build(out: Path, address: str, linkcheck: bool = False) -> int:
    """Build the site into `out`, which is replaced when all went well; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="slam_edu_site_") as name:
        source = Path(name) / "source"
        source.mkdir()
        assemble(source, address)
        built = Path(name) / "html"
        status = sphinx(source, built, "html")
        if status:
            return status
        # The download is the notebook of the course, not the one that Sphinx was given.
        for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
            shutil.copyfile(path, built / "notebooks" / path.name)
        if linkcheck:
            status = sphinx(source, Path(name) / "links", "linkcheck")
        with replaced_folder(out) as folder:
            shutil.copytree(built, folder, dirs_exist_ok=True)
    return status


def main(arguments: list[str] | None = None) -> int:
    """Build the site."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.website",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the site")
    parser.add_argument("--linkcheck", action="store_true", help="look outside links up as well")
    parser.add_argument("--address", help="as if this were the repository's address")
    options = parser.parse_args(arguments)
    try:
        address = read_address() if options.address is None else validate(options.address)
        status = build(options.out, address, options.linkcheck)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if status == 0:
        print(f"the website is in {options.out}: open {options.out / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())

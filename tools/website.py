"""The website: made from the notebooks, the docstrings and the reports, in dist/site.

    python -m tools.website                     build it; a warning is an error
    python -m tools.website --linkcheck         look up the links to other hosts as well
    python -m tools.website --out FOLDER        build it somewhere else

Nothing of it is kept twice. A temporary folder gets the pages of `docs/site/` and beside them what
is made anew each time, and Sphinx builds from there: the executed notebooks (not run again), a
gallery of their figures, the glossary, the docstrings, the reports of data/, the guides of docs/,
the changelog.

A line `<!-- from README: HEADING -->` in a page of docs/site is replaced by that section of the
README, and `<!-- from README: address:NAME -->` by what stands between its marks, so that the two
cannot disagree. Links to files of the repository become links to pages where there is one; the
others lead to the repository where it has a public address (`make address`), and otherwise are no
links. The site opens from a disk without a network: MathJax lies in docs/site/_static/mathjax.
"""

from __future__ import annotations

import base64
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from slam_course import glossary
from slam_edu.io import replaced_folder
from tools import ROOT, command_line
from tools.notebook_rules import figure_alt
from tools.notebooks import WIDGET_VIEW, read_lessons, tags
from tools.set_address import ADDRESS, setting

PAGES = ROOT / "docs" / "site"
OUT = ROOT / "dist" / "site"
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
    "data/family/report.md": "results/family",
    "docs/anywhere.md": "anywhere",
    "docs/teaching.md": "teaching",
}
# Those that are one file as it is; the others have a page of their own in docs/site.
COPIED = {page: file for file, page in BECOMES.items() if page not in ("index", "licence")}


# [text](target), where the text may hold brackets of its own; an image has a `!` before it.
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FROM_README = re.compile(r"(?m)^<!-- from README: (.+) -->$")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def relink(text: str, file: str, page: str, address: str) -> tuple[str, dict[str, str]]:
    """Markdown of one of the repository's files as a page has it, with links that hold there.

    Returns the text, and the pictures that it shows, {their file: where they belong in the site}.
    Raises ValueError for a link to no file of the repository.
    """
    pictures: dict[str, str] = {}
    here = posixpath.dirname(page) or "."

    def replace(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, hash, anchor = target.partition("#")
        found = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        if not (ROOT / found).exists():
            raise ValueError(f"{file} links to {target!r}, and there is no file {found}")
        if mark:
            pictures[found] = f"figures/{found.replace('/', '-')}"
            return f"![{label}]({posixpath.relpath(pictures[found], here)})"
        goal = found if found.startswith("notebooks/") else ""
        if found in BECOMES:
            goal = f"{BECOMES[found]}.md"
        if goal.endswith((".md", ".ipynb")):
            return f"[{label}]({posixpath.relpath(goal, here)}{hash}{anchor})"
        kind = "tree" if (ROOT / found).is_dir() else "blob"
        return f"[{label}]({address}/{kind}/main/{found}{hash}{anchor})" if address else label

    return _LINK.sub(replace, text), pictures


def readme_part(name: str, readme: str) -> str:
    """A section of the README by its heading, or what stands between the marks `address:NAME`."""
    word, pattern = re.escape(name), r"(?ms)^## {0}\n(.*?)(?=^## |\Z)"
    if name.startswith("address:"):
        pattern = r"(?ms)^<!-- {0} -->\n(.*?)^<!-- /{0} -->"
    match = re.search(pattern.format(word), readme)
    if not match:
        raise ValueError(f"a page of docs/site asks for {name!r}, which README.md does not have")
    return match[1].strip()


EXPLORER = (
    '<p class="slam-explorer-note">Here stands an explorer, with controls to play with. It moves '
    'where the notebook runs: <a href="../run.html">how to run it</a>.</p>'
)


class Figure(NamedTuple):
    """A figure among the outputs of a notebook."""

    notebook: str  # file name without its suffix
    lesson: str  # its title
    section: str  # the heading above it
    cell: str  # id of the cell
    name: str  # file name in the site
    alt: str
    data: bytes


def figures(nb: NotebookNode, notebook: str) -> Iterator[Figure]:
    """The figures that a notebook's cells show, in order."""
    lesson = section = ""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for level, title in re.findall(r"(?m)^(#{1,3}) (.+)$", cell.source):
                lesson, section = (title, "") if level == "#" else (lesson, title)
        count = 0
        for output in cell.get("outputs", []):
            kind = next((kind for kind in PICTURES if kind in output.get("data", {})), None)
            if kind:  # a moving figure has a still one beside it; the gallery stands still
                count += 1
                name = f"{notebook[:2]}-{cell.id}-{count}{PICTURES[kind]}"
                data = base64.b64decode(output["data"][kind])
                yield Figure(notebook, lesson, section, cell.id, name, figure_alt(output), data)


def for_the_site(nb: NotebookNode, name: str, address: str) -> str:
    """The notebook as Sphinx takes it; `nb` is changed.

    Solutions get myst-nb's tag for folding; figures their alternative text; each code cell its id,
    for links; in place of an explorer, which needs a kernel, there is a word on how to run it.
    """
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.metadata["slam_edu_id"] = cell.id
            if "solution" in tags(cell):
                cell.metadata["tags"] = [*tags(cell), "hide-input"]
            alts = [figure_alt(output) for output in cell.outputs if "data" in output]
            cell.metadata["slam_edu_alts"] = [alt for alt in alts if alt]
            for output in cell.outputs:
                if WIDGET_VIEW in output.get("data", {}):
                    output.data = NotebookNode({"text/html": EXPLORER})
    links = [f'<a href="{name}.ipynb" download>Download the notebook</a>',
             '<a href="../run.html">How to run it</a>']  # fmt: skip
    _, _, repository = address.partition("https://github.com/")
    if repository:
        colab = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/"
        links.append(f'<a href="{colab}{name}.ipynb">Open in Colab</a>')
    text = f'<p class="slam-places">{" · ".join(links)}</p>'
    nb.cells.insert(1, nbformat.v4.new_markdown_cell(text, id="places"))
    return nbformat.writes(nb)


def gallery_page(shown: list[Figure]) -> str:
    """Markdown: every figure, linked to its cell, by lesson."""
    lines = ["# Gallery", f"All {len(shown)} figures of the lessons; each leads to its cell."]
    for notebook in dict.fromkeys(figure.notebook for figure in shown):
        mine = [figure for figure in shown if figure.notebook == notebook]
        lines += [f"## {notebook[:2]} {mine[0].lesson}", "::::{container} gallery"]
        for figure in mine:
            caption = re.sub(r"^(\d+)\.", r"\1\\.", figure.section or figure.lesson)  # no list
            lines.append(
                f":::{{figure}} figures/{figure.name}\n:alt: {figure.alt}\n"
                f":target: notebooks/{notebook}.html#cell-{figure.cell}\n:loading: lazy\n\n"
                f"{caption}\n:::"
            )
        lines.append("::::")
    return "\n\n".join(lines) + "\n"


def assemble(target: Path, address: str) -> None:
    """Write Sphinx's source folder into `target`, which is not there yet.

    Raises ValueError where a link leads nowhere, or a page asks for what the README does not have.
    """
    notebooks = read_lessons()
    titles = {
        name: re.search(r"(?m)^# (.+)$", nb.cells[0].source)[1] for name, nb in notebooks.items()
    }
    shown = [figure for name, nb in notebooks.items() for figure in figures(nb, name)]
    pages = {name[:2]: name for name in titles}
    pictures = {"docs/demo.png": "figures/docs-demo.png"}  # the landing page's

    def taken(text: str, file: str, page: str) -> str:
        text, found = relink(text, file, page, address)
        pictures.update(found)
        return _FRONT_MATTER.sub("", text)

    def read(file: str) -> str:
        return (ROOT / file).read_text(encoding="utf-8")

    def lesson_link(match: re.Match[str]) -> str:
        return f"| [{match[1]}](notebooks/{pages[match[1]]}.ipynb) |"

    shutil.copytree(PAGES, target)
    lessons = [f"{name[:2]} · {title} <notebooks/{name}>" for name, title in titles.items()]
    data = taken(read("data/README.md"), "data/README.md", "licence")
    filled = {
        "glossary": re.sub(r"\| (\d\d) \|", lesson_link, glossary.show()._repr_markdown_()),
        "lessons": "\n".join(lessons),
        "version": setting("version"),
        "LICENSE": read("LICENSE").strip(),
        "data": data.replace("# data/", "## Data", 1),
    }
    readme = read("README.md")
    for path in sorted(target.glob("**/*.md")):
        page = path.relative_to(target).with_suffix("").as_posix()
        text = _FROM_README.sub(
            lambda match, page=page: taken(readme_part(match[1], readme), "README.md", page),
            path.read_text(encoding="utf-8"),
        )
        for name, content in filled.items():
            text = text.replace(f"<!-- {name} -->", content)
        path.write_text(text, encoding="utf-8")
    made = {"gallery.md": gallery_page(shown)}
    made |= {f"{page}.md": taken(read(file), file, page) for page, file in COPIED.items()}
    for name, nb in notebooks.items():
        made[f"notebooks/{name}.ipynb"] = for_the_site(nb, name, address)
    made["settings.json"] = json.dumps({"address": address, "version": setting("version")})
    for name, text in made.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    (target / "figures").mkdir()
    for figure in shown:
        (target / "figures" / figure.name).write_bytes(figure.data)
    for file, place in pictures.items():
        shutil.copyfile(ROOT / file, target / place)
    for package in ("slam_edu", "slam_course"):  # a page a package, made by sphinx-apidoc
        command = ["sphinx.ext.apidoc", "-q", "-T", "-M", "-o", str(target / "api"), package]
        env = {**os.environ, "SPHINX_APIDOC_OPTIONS": "members,ignore-module-all"}
        subprocess.run([sys.executable, "-m", *command], env=env, cwd=ROOT, check=True)


def sphinx(source: Path, out: Path, builder: str) -> None:
    """Run sphinx-build, warnings being errors."""
    command = [sys.executable, "-m", "sphinx", "-b", builder, "-n", "-q"]
    command += ["-W", "--keep-going", "-d", str(source.parent / "doctrees")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run([*command, str(source), str(out)], env=env, cwd=ROOT, check=True)


def build(out: Path, address: str, linkcheck: bool = False, force: bool = False) -> None:
    """Build the site into `out`, replacing an earlier one when all went well."""
    with tempfile.TemporaryDirectory(prefix="slam_edu_site_") as name:
        source = Path(name) / "source"
        with replaced_folder(out, ("index.html",), force=force) as folder:
            assemble(source, address)
            sphinx(source, folder, "html")
            # The download is the notebook of the course, not the one that Sphinx was given.
            for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
                shutil.copyfile(path, folder / "notebooks" / path.name)
        if linkcheck:
            sphinx(source, Path(name) / "links", "linkcheck")


def main(arguments: list[str] | None = None) -> int:
    """Build the site."""
    parser = command_line("website", __doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the site")
    parser.add_argument("--linkcheck", action="store_true", help="look outside links up as well")
    parser.add_argument("--address", help="as if this were the repository's address")
    parser.add_argument("--force", action="store_true", help="delete what is in the way in --out")
    options = parser.parse_args(arguments)
    address = setting("repository") if options.address is None else options.address
    try:
        if not ADDRESS.fullmatch(address):
            raise ValueError(f"{address!r} is no address of a repository")
        build(options.out, address, options.linkcheck, options.force)
    except subprocess.CalledProcessError as error:  # Sphinx has said what
        return error.returncode
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"the website is in {options.out}: open {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The built pages: links and anchors, lessons, figures, the reference."""

import html.parser
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.util.inventory import InventoryFile

import slam_edu
from slam_course import glossary
from tools import website
from tools.notebook_rules import figure_alt
from tools.notebooks import ROOT, WIDGET_VIEW, tags

NOTEBOOKS = website.read_lessons()
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@dataclass
class Page:
    """What a page holds that others can point at, and what it points at itself."""

    ids: set = field(default_factory=set)
    links: list = field(default_factory=list)
    loaded: list = field(default_factory=list)  # fetched as the page opens
    images: list = field(default_factory=list)


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.page = Page()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.page.ids.update(values[name] for name in ("id", "name") if values.get(name))
        if tag == "a" and values.get("href"):
            self.page.links.append(values["href"])
        if values.get(LOADED.get(tag)):
            self.page.loaded.append(values[LOADED[tag]])
        if tag == "img":
            self.page.images.append(values)


def read_page(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.page


@pytest.fixture(scope="module")
def pages(site):
    """{path of a page: what is in it}"""
    paths = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
    return {path: read_page(path) for path in paths}


def broken(site, pages):
    """Links and loaded files inside the site that lead nowhere."""
    found = []
    for path, page in pages.items():
        for target in page.links + page.loaded:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or target.startswith("data:"):
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            goal = goal / "index.html" if goal.is_dir() else goal
            anchor = unquote(parts.fragment)
            if not goal.exists():
                found.append(f"{path.relative_to(site)}: no file {target}")
            elif anchor and goal in pages and anchor not in pages[goal].ids:
                found.append(f"{path.relative_to(site)}: no anchor {target}")
    return found


def test_links_and_anchors_lead_somewhere(site, pages):
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert broken(site, pages) == []


def test_nothing_comes_from_another_host(pages):
    for path, page in pages.items():
        foreign = [target for target in page.loaded if urlsplit(target).netloc]
        assert foreign == [], path.name


def test_no_link_leads_to_a_repository_without_an_address(pages):
    hosts = {urlsplit(link).netloc for page in pages.values() for link in page.links}
    assert "arxiv.org" in hosts
    # Colab's own front page is where a notebook can be uploaded.
    colab = [link for page in pages.values() for link in page.links if "colab.research" in link]
    assert set(colab) <= {"https://colab.research.google.com"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_lesson_is_whole(site, pages, name):
    path = site / "notebooks" / f"{name}.html"
    text, nb = path.read_text(encoding="utf-8"), NOTEBOOKS[name]
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert {f"cell-{cell.id}" for cell in code} <= pages[path].ids
    solutions = [cell for cell in code if "solution" in tags(cell)]
    assert text.count('hide above-input">') == len(solutions) >= 2
    # Explorers do not move here; a word stands in for each, and nothing of them is loaded.
    widgets = [out for cell in code for out in cell.outputs if WIDGET_VIEW in out.get("data", {})]
    assert text.count('class="slam-explorer-note"') == len(widgets) >= 1
    assert "jupyter-widgets" not in text
    alts = [image.get("alt") for image in pages[path].images if "_images" in image["src"]]
    assert alts == [figure.alt for figure in website.figures(nb, name)]
    # The download is the notebook itself.
    original = (ROOT / "notebooks" / f"{name}.ipynb").read_bytes()
    assert (site / "notebooks" / f"{name}.ipynb").read_bytes() == original


def test_the_gallery_has_every_figure_with_its_text_and_its_cell(site, pages):
    page = pages[site / "gallery.html"]
    outputs = [
        (name, cell.id, figure_alt(out))
        for name, nb in NOTEBOOKS.items()
        for cell in nb.cells
        for out in cell.get("outputs", [])
        if any(kind.startswith("image/") for kind in out.get("data", {}))
    ]
    shown = [image for image in page.images if "_images" in image["src"]]
    assert [image["alt"] for image in shown] == [alt for _, _, alt in outputs]
    assert {image.get("loading") for image in shown} == {"lazy"}
    cells = [link for link in page.links if "#cell-" in link]
    assert cells == [f"notebooks/{name}.html#cell-{cell}" for name, cell, _ in outputs]


def test_the_glossary_has_every_symbol(site):
    text = (site / "glossary.html").read_text(encoding="utf-8")
    rows = re.findall(r'<tr class="row-(?:odd|even)"><td>', text)
    assert len(rows) == len(glossary.SYMBOLS)
    assert text.count('href="notebooks/04_sub_paths_and_the_sl_ode.html"') >= 9
    assert "DistillOutput.gamma" in text


def public_modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            yield ".".join(parts)


def test_the_reference_has_every_public_module_and_name(site):
    with (site / "objects.inv").open("rb") as stream:
        inventory = InventoryFile.load(stream, "", lambda base, path: path)
    modules = {*public_modules("slam_edu"), *public_modules("slam_course")}
    assert len(modules) > 60
    assert modules - set(inventory["py:module"]) == set()
    found = {*inventory["py:class"], *inventory["py:function"], *inventory["py:data"]}
    assert set(slam_edu.__all__) - {name.rpartition(".")[2] for name in found} == set()


def test_the_landing_page_and_the_guide_come_from_the_readme(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    run = (site / "run.html").read_text(encoding="utf-8")
    lessons = (site / "lessons.html").read_text(encoding="utf-8")
    for text in (index, run, lessons):
        assert "from README" not in text
    assert re.search(r"make</span>\W+<span[^>]*>lab|make lab", index)
    assert "sd15-t4-lora" in run
    assert all(f'href="notebooks/{name}.html"' in lessons for name in NOTEBOOKS)

"""Sphinx's settings. tools/website.py copies this folder, adds the pages it makes, and builds."""

import importlib
import json
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import desc_annotation, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
ADDRESS = SETTINGS["address"]  # of the repository, "" for none
ON_GITHUB = ADDRESS.startswith("https://github.com/")

project = "slam_edu"
author = "the slam_edu authors"
copyright = author
version = release = SETTINGS["version"]
language = "en"
smartquotes = False  # as the notebooks have them, and a tenth of the time

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]

# ---------------------------------------------------------------------------------------------
# Notebooks: as they were executed
# ---------------------------------------------------------------------------------------------

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # these come from other hosts, and without a kernel they move nothing
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
nb_mime_priority_overrides = [("html", "image/gif", 45)]  # before the still picture of it
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 3
# As on GitHub: a raw `<div>` is HTML, `~` is no strike-through, a list may start anywhere.
suppress_warnings = ["myst.header"]  # reports may jump from one level to the next but one

# ---------------------------------------------------------------------------------------------
# Docstrings
# ---------------------------------------------------------------------------------------------

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
toc_object_entries = False  # hundreds of names beside a page help nobody find one
python_use_unqualified_type_names = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Cross-references inside the project must hold. Those to other projects would need their indexes,
# which are on other hosts.
nitpick_ignore_regex = [
    ("py:.*", r"(?!slam_(edu|course)\.).*"),
    ("py:class", r".*\.Pipeline"),  # an alias for type checkers alone
]

# ---------------------------------------------------------------------------------------------
# Pages
# ---------------------------------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_title = "slam_edu"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["slam.css"]
html_js_files = ["slam.js"]
html_last_updated_fmt = None  # two builds of one commit are the same
html_copy_source = True
html_theme_options = {
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "home_page_in_toc": False,
    "use_download_button": False,  # the lessons have a link of their own, to the course's file
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "logo": {"text": "slam_edu"},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "extra_footer": f"<p>slam_edu {version}. Code and text under the MIT licence.</p>",
}
if ADDRESS:
    html_theme_options.update(
        repository_url=ADDRESS, repository_branch="main", use_repository_button=True
    )
if ON_GITHUB:
    # The lessons' pages are called as their files in the repository, so the theme finds these.
    html_theme_options["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}

# The file that the site ships; its licence lies beside it.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {
    # `require` and `autoload` would load more of MathJax, which is not here; `noerrors` and
    # `noundefined` would hide a mistake in a formula.
    "tex": {"packages": {"[-]": ["require", "autoload", "noerrors", "noundefined"]}},
    "svg": {"fontCache": "global"},
    "options": {"enableMenu": False},
}

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False  # GitHub and arXiv make theirs by script


def finish_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Give code cells an id for links, and figures their alternative text."""
    for cell in doctree.findall(nodes.container):
        metadata = cell.get("cell_metadata", {})
        if "slam_edu_id" not in metadata:
            continue
        cell["ids"].append(f"cell-{metadata['slam_edu_id']}")
        pictures = list(cell.findall(nodes.image))
        for picture, alt in zip(pictures, metadata["slam_edu_alts"], strict=True):
            picture["alt"] = alt


def dash_fields(app: Sphinx, doctree: nodes.document) -> None:
    """An en dash between an argument's type and its meaning, where docutils writes two hyphens."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def shorten_values(app: Sphinx, doctree: nodes.document) -> None:
    """Of constants that are long tables, the name and the text are enough."""
    for node in list(doctree.findall(desc_annotation)):
        if node.astext().lstrip().startswith("=") and len(node.astext()) > 40:
            node.parent.remove(node)


def skip_foreign(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out what a class has from another package, such as matplotlib's ``Figure.set``."""
    module = getattr(obj, "__module__", None) or "slam_edu"
    return None if module.startswith(("slam_edu", "slam_course")) else True


def name_types_in_full(app: Sphinx, doctree: nodes.document) -> None:
    """Complete the bare names in signatures that autodoc could not.

    Those are imports for type checkers alone.
    """
    for node in doctree.findall(pending_xref):
        module, target = node.get("py:module"), node.get("reftarget", "")
        if module in sys.modules and target.isidentifier():
            source = Path(sys.modules[module].__file__).read_text(encoding="utf-8")
            found = re.search(rf"(?m)^\s*from (slam_\S+) import .*\b{target}\b", source)
            if found:
                node["reftarget"] = f"{found[1]}.{target}"


def find_elsewhere(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """A reference to a name that is documented elsewhere, or in its parent's docstring.

    ``slam_edu.ddim_step`` is documented where it is written, as ``slam_edu.solver.ddim_step``; a
    field or a constant stands in the docstring of its class or module. A name that the code does
    not have stays unresolved, which is an error.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("slam_") or not exists(target):
        return None
    objects = env.domains["py"].objects
    parent, _, name = target.rpartition(".")
    same = [full for full in objects if full.endswith(f".{name}") and full.startswith(parent)]
    found = same[0] if len(same) == 1 else parent
    while found not in objects:  # `slam_edu` itself always is
        found = found.rpartition(".")[0]
    entry = objects[found]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found)


def exists(target: str) -> bool:
    """Whether the code has something of this full name."""
    module, names = target, []
    while module:
        try:
            found = importlib.import_module(module)
            break
        except ImportError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
    for name in names[:-1]:
        found = getattr(found, name, None)
    if not names or hasattr(found, names[-1]):
        return True
    return names[-1] in getattr(found, "__annotations__", {})


def setup(app: Sphinx) -> dict:
    """Connect what is above."""
    app.connect("doctree-read", finish_cells)
    app.connect("doctree-read", dash_fields)
    app.connect("doctree-read", shorten_values)
    app.connect("doctree-read", name_types_in_full)
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("missing-reference", find_elsewhere)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

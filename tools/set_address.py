"""The repository's public address: shown, set everywhere, or cleared.

    python -m tools.set_address                                    show it
    python -m tools.set_address https://github.com/OWNER/NAME      set it
    python -m tools.set_address --clear                            back to none

`[tool.slam_edu] repository` in pyproject.toml is the one place that holds it. From there this tool
renders, each between two marks of its own:

    pyproject.toml    [project.urls]                              `# address:urls`
    CITATION.cff      repository-code                             `# address:repository-code`
    README.md         badges, the clone line, links to Colab      `<!-- address:badges -->`,
                                                                  `address:clone`, `address:colab`
    notebooks/*       the set-up cell (the first code cell, tagged `setup`), as well in the
                      editions made from them (editions/)

Without an address nothing is rendered that would lead nowhere. Setting is idempotent, and --clear
gives back the same bytes as before. A README may leave out marks that it has no use for. Standard
library alone, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent

# The hosts whose notebooks Colab opens by address, and whose names are OWNER/NAME exactly.
GITHUB = "github.com"
START = "00_start_here.ipynb"
SETUP_TAG = "setup"

_REPOSITORY = re.compile(r'(?m)^repository = "(?P<address>[^"\n]*)"$')
_VERSION = re.compile(r'(?m)^version = "(?P<version>[^"\n]+)"$')
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def validate(address: str) -> str:
    """The address in its one spelling (no trailing slash, no `.git`), or "" for none.

    Raises:
        ValueError: it is not the https address of a repository.
    """
    if not address:
        return ""

    def refused(why: str) -> ValueError:
        allowed = "allowed is an address such as 'https://github.com/OWNER/NAME'"
        return ValueError(f"the repository's address {address!r} {why}; {allowed}")

    try:
        parts = urlsplit(address)
        port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        raise refused(f"is malformed ({error})") from error
    if re.search(r"[\s\"'<>\\`]", address):
        raise refused("contains a forbidden character")
    if parts.scheme != "https":
        raise refused("must begin with https://")
    if parts.username or parts.password or port or parts.query or parts.fragment:
        raise refused("carries more than a host and a path")
    if "." not in host or not all(_NAME.fullmatch(label) for label in host.split(".")):
        raise refused("has no public host")
    names = parts.path.rstrip("/").removesuffix(".git").split("/")[1:]
    few, many = (2, 2) if host == GITHUB else (2, 9)  # elsewhere groups may be nested
    if not few <= len(names) <= many or not all(_NAME.fullmatch(name) for name in names):
        raise refused("must name an owner and a name")
    return f"https://{host}/" + "/".join(names)


def read_address(root: Path = ROOT) -> str:
    """The address that pyproject.toml holds, "" for none."""
    return _match(_REPOSITORY, root)["address"]


def read_version(root: Path = ROOT) -> str:
    """The project's version, from pyproject.toml."""
    return _match(_VERSION, root)["version"]


def _match(pattern: re.Pattern[str], root: Path) -> re.Match[str]:
    path = root / "pyproject.toml"
    match = pattern.search(path.read_text(encoding="utf-8"))
    if not match:
        raise ValueError(f"{path} has no line like {pattern.pattern!r}")
    return match


# ---------------------------------------------------------------------------------------------
# What is rendered
# ---------------------------------------------------------------------------------------------


def setup_cell_source(address: str, version: str | None = None) -> str:
    """The source of every notebook's first code cell.

    Where slam_edu is missing, as on Colab and Kaggle, it installs it from the address; without one
    it says what to do. It then calls ``slam_edu.setup()``, which sees to the rest. No extra is
    named: pip would put another Jupyter under the running one (slam_course/setup.py).
    `version` (of the wheel that it names) is the project's.
    """
    if address:
        missing = f'%pip install -q "slam_edu @ git+{address}"'
    else:
        wheel = f"slam_edu-{version or read_version()}-py3-none-any.whl"
        missing = (
            "raise ModuleNotFoundError(\n"
            '        "run `make lab`; on Colab or Kaggle upload the file of `make wheel` "\n'
            f'        "and run `%pip install {wheel}`"\n'
            "    )"
        )
    return (
        f'import importlib.util\n\nif importlib.util.find_spec("slam_edu") is None:\n'
        f"    {missing}\nimport slam_edu\n\ncourse = slam_edu.setup()"
    )


def readme_blocks(address: str, notebooks: list[str], version: str) -> dict[str, str]:
    """What stands between the README's marks, {name of the mark: text}.

    Args:
        address: the validated address, or "".
        notebooks: file names of the notebooks, in order.
        version: the project's, for the name of its wheel.
    """
    on_github = address.startswith(f"https://{GITHUB}/")
    if not address:
        clone = "From the folder you downloaded:\n\n```bash\ncd slam_edu\nmake lab\n```"
    else:
        clone = f"```bash\ngit clone {address}\ncd {address.rsplit('/', 1)[1]}\nmake lab\n```"
    if on_github:
        colab = "A lesson's first cell installs the course:\n\n" + "\n".join(
            f"- {name.removesuffix('.ipynb')}: {colab_badge(address, name)} "
            f"{kaggle_badge(address, name)}"
            for name in notebooks
        )
    elif address:
        colab = (
            "Upload a notebook from `notebooks/` to [Colab](https://colab.research.google.com); "
            "its first cell\ninstalls the course."
        )
    else:
        colab = (
            "Run `make wheel`. In [Colab](https://colab.research.google.com), upload a notebook "
            "from `notebooks/`\nand, in its file panel, the wheel from `dist/`; then run in a "
            "cell of its own, above all others:\n"
            "\n"
            "```\n"
            f"%pip install slam_edu-{version}-py3-none-any.whl\n"
            "```\n"
            "\n"
            "The lesson's first cell installs what else is missing."
        )
    badges = ""
    if on_github:
        workflow = f"{address}/actions/workflows/ci.yml"
        badges = "\n".join(
            (
                f"[![Tests]({workflow}/badge.svg)]({workflow})",
                "[![The course as a website](https://img.shields.io/badge/read-the_course-blue)]"
                f"({site_link(address)})",
                colab_badge(address, START),
            )
        )
    return {"badges": badges, "clone": clone, "colab": colab}


def colab_badge(address: str, notebook: str) -> str:
    """A picture that opens a notebook in Colab."""
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})]({colab_link(address, notebook)})"


def kaggle_badge(address: str, notebook: str) -> str:
    """A picture that opens a copy of a notebook in Kaggle."""
    picture = "https://kaggle.com/static/images/open-in-kaggle.svg"
    source = f"{address}/blob/main/notebooks/{notebook}"
    return f"[![Open in Kaggle]({picture})](https://kaggle.com/kernels/welcome?src={source})"


def site_link(address: str) -> str:
    """Where GitHub Pages serves the website of a GitHub repository."""
    owner, name = address.removeprefix(f"https://{GITHUB}/").split("/")
    # A repository that is named like its owner's site is served at the top.
    path = "" if name.lower() == f"{owner}.github.io".lower() else f"{name}/"
    return f"https://{owner.lower()}.github.io/{path}"


def colab_link(address: str, notebook: str) -> str:
    """The address under which Colab opens a notebook of a GitHub repository."""
    repository = address.removeprefix(f"https://{GITHUB}/")
    return f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{notebook}"


def fill(
    text: str, name: str, content: str, start: str, end: str, required: bool, where: str
) -> str:
    """`text` with everything between the marks of `name` replaced by `content`.

    Raises:
        ValueError: a mark stands alone, twice, or (if `required`) not at all.
    """
    opening, closing = f"{start}address:{name}", f"{start}/address:{name}"
    counts = (len(re.findall(rf"(?m)^{re.escape(mark)}\b", text)) for mark in (opening, closing))
    found = tuple(counts)
    if found == (0, 0) and not required:
        return text
    if found != (1, 1):
        raise ValueError(
            f"{where} must have the marks '{opening}{end}' and '{closing}{end}' once each, at the "
            f"beginning of a line; found {found[0]} and {found[1]}"
        )
    pattern = re.compile(
        rf"(?ms)^(?P<open>{re.escape(opening)}\b[^\n]*\n).*?^(?P<close>{re.escape(closing)}\b)"
    )
    body = content + "\n" if content else ""
    return pattern.sub(lambda match: match["open"] + body + match["close"], text, count=1)


def fill_notebook(text: str, source: str, where: str) -> str:
    """A notebook file's text with `source` in its set-up cell; otherwise the same bytes.

    Raises:
        ValueError: the first code cell is not tagged `setup`.
    """
    nb = json.loads(text)
    code = [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
    if not code or SETUP_TAG not in code[0]["metadata"].get("tags", []):
        raise ValueError(f"the first code cell of {where} must have the tag {SETUP_TAG!r}")
    cell = code[0]
    written = "".join(cell["source"])  # a list of lines, or one text
    if written == source:
        return text
    cell["source"] = source.splitlines(keepends=True)
    # The format of nbformat.writes, which made the rest of the file.
    return json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def render(root: Path, address: str) -> dict[Path, str]:
    """Every file that the address stands in, with the text that it should have.

    Nothing is written, so that one unusable file leaves all others as they were.
    """
    address = validate(address)
    pyproject, citation, readme = (
        root / name for name in ("pyproject.toml", "CITATION.cff", "README.md")
    )
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    read_address(root)  # the line must be there
    text = _REPOSITORY.sub(f'repository = "{address}"', _read(pyproject), count=1)
    urls = f'[project.urls]\nRepository = "{address}"' if address else ""
    code = f"repository-code: {address}" if address else ""
    files = {
        pyproject: fill(text, "urls", urls, "# ", "", True, pyproject.name),
        citation: fill(_read(citation), "repository-code", code, "# ", "", True, citation.name),
    }
    if readme.exists():
        text = _read(readme)
        names = [path.name for path in notebooks]
        for name, block in readme_blocks(address, names, read_version(root)).items():
            text = fill(text, name, block, "<!-- ", " -->", False, readme.name)
        files[readme] = text
    source = setup_cell_source(address, read_version(root))
    # The editions are made from the notebooks, whose set-up cell they copy: they stay fresh.
    for path in [*notebooks, *sorted((root / "editions").glob("*/*.ipynb"))]:
        files[path] = fill_notebook(_read(path), source, path.name)
    return files


def _read(path: Path) -> str:
    # Bytes, not text mode: Windows would turn every line end around.
    return path.read_bytes().decode("utf-8")


def apply(root: Path, address: str) -> list[Path]:
    """Write the address everywhere; returns the files that changed."""
    changed = {path: text for path, text in render(root, address).items() if text != _read(path)}
    for path, text in changed.items():
        path.write_bytes(text.encode("utf-8"))
    return list(changed)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Show, set or clear the address."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.set_address",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("address", nargs="?", default="", help="https://github.com/OWNER/NAME")
    what.add_argument("--clear", action="store_true", help="back to no address")
    options = parser.parse_args(arguments)
    try:
        if not options.address and not options.clear:
            # Rendered again all the same: a notebook that was added gets its set-up cell.
            changed = apply(root, read_address(root))
            print("address: " + (read_address(root) or "none"))
        else:
            changed = apply(root, options.address)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in changed:
        print(f"wrote {path.relative_to(root)}")
    if not changed:
        print("nothing to change")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Set the repository's public address: ``python -m tools.set_address https://…``, or ``--clear``.

``[tool.slam_edu] repository`` of pyproject.toml holds it, "" for none. From there the parts of
tools/address.txt are written between the marks ``address:PART`` of pyproject.toml, CITATION.cff
and README.md, and into every notebook's set-up cell. Needs the standard library alone.
"""

import json
import re
import string
import sys
from pathlib import Path

from tools import ROOT

ADDRESS = re.compile(r"(https://(?:[\w-]+\.)+\w+(?:/\w[\w.-]*){2,}(?<!\.git))?")


def setting(key: str) -> str:
    """``repository``, the address, or ``version``, from pyproject.toml."""
    return re.search(rf'(?m)^{key} = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"))[1]


def part(name: str, address: str) -> str:
    """A part of tools/address.txt as it is at an address, "" where there is none."""
    file = Path(__file__).with_name("address.txt").read_text("utf-8")
    texts = dict(re.findall(r"(?ms)^=== (\w.+?)\n(.*?)(?=^=== |\Z)", file))
    github = ["github"] if address.startswith("https://github.com/") else []
    kinds = [*github, "any"] if address else ["none"]
    text = next((texts[f"{name} {kind}"] for kind in kinds if f"{name} {kind}" in texts), "")
    owner, name = ["", *address.split("/")][-2:]
    values = {"address": address, "owner": owner, "name": name, "version": setting("version")}
    lessons = [path.stem for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
    return "".join(
        string.Template(line).substitute(values, lesson=lesson)
        for line in text.splitlines(keepends=True)
        for lesson in (lessons if "$lesson" in line else [""])
    )


def setup_cell_source(address: str) -> str:
    """The source of every notebook's first code cell."""
    return part("setup", address).rstrip("\n")


def apply(address: str) -> list[Path]:
    """Write the address everywhere; returns the files that changed."""
    if not ADDRESS.fullmatch(address):
        allowed = "an address such as 'https://github.com/OWNER/NAME'"
        raise SystemExit(f"error: the repository's address is {address!r}; allowed: {allowed}")
    made = {}
    for path in (ROOT / name for name in ("pyproject.toml", "CITATION.cff", "README.md")):
        text = re.sub(r'(?m)^(repository = )".*"$', rf'\1"{address}"', path.read_text("utf-8"))
        mark = r"(?ms)^(\S+ address:(\S+)[^\n]*\n).*?(?=^\S+ /address:\2)"
        made[path] = re.sub(mark, lambda match: match[1] + part(match[2], address), text)
    for path in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("editions/*/*.ipynb")]:
        nb = json.loads(path.read_text("utf-8"))
        cell = next(cell for cell in nb["cells"] if "setup" in cell["metadata"].get("tags", []))
        cell["source"] = setup_cell_source(address).splitlines(keepends=True)
        made[path] = json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    changed = [path for path, text in made.items() if text != path.read_text("utf-8")]
    for path in changed:
        path.write_text(made[path], encoding="utf-8", newline="\n")
    return changed


if __name__ == "__main__":
    wanted = (sys.argv[1:] or [setting("repository")])[0]
    done = apply("" if wanted == "--clear" else wanted.removesuffix("/").removesuffix(".git"))
    print("\n".join(f"wrote {path.relative_to(ROOT)}" for path in done) or "nothing to change")

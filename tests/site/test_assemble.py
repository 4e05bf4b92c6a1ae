"""tools/website.py: the folder that Sphinx is given, with and without an address."""

import json
import runpy

import pytest

from tools import website

ADDRESS = "https://github.com/OWNER/NAME"


@pytest.fixture
def few(monkeypatch):
    """One lesson, and no API pages: the others are as it is."""
    first = dict(list(website.read_lessons().items())[:1])
    monkeypatch.setattr(website, "read_lessons", lambda: first)
    monkeypatch.setattr(website.glossary, "show", lambda: website.glossary.Table([]))
    monkeypatch.setattr(website.subprocess, "run", lambda *_, **__: None)


@pytest.mark.parametrize("address", ["", ADDRESS, "https://git.example.org/a/b"])
def test_buttons_follow_the_address(address, few, tmp_path):
    website.assemble(tmp_path / "source", address)
    options = runpy.run_path(str(tmp_path / "source" / "conf.py"))["html_theme_options"]
    assert options.get("repository_url", "") == address
    assert ("launch_buttons" in options) == (address == ADDRESS)
    lesson = tmp_path / "source" / "notebooks" / "00_start_here.ipynb"
    places = "".join(json.loads(lesson.read_text("utf-8"))["cells"][1]["source"])
    colab = "https://colab.research.google.com/github/OWNER/NAME/blob/main/notebooks/00_start"
    assert (colab in places) == (address == ADDRESS)


@pytest.mark.parametrize(
    ("text", "with_address", "without"),
    [
        ("[a](data/README.md)", "[a](licence.md)", "[a](licence.md)"),
        ("[a](CHANGELOG.md#x)", "[a](changelog.md#x)", "[a](changelog.md#x)"),
        ("[a](CITATION.cff)", f"[a]({ADDRESS}/blob/main/CITATION.cff)", "a"),
        ("[a](data/prompts)", f"[a]({ADDRESS}/tree/main/data/prompts)", "a"),
        ("[b [1]](https://x.org/y)", "[b [1]](https://x.org/y)", "[b [1]](https://x.org/y)"),
        (
            "![a, [1, 2]](docs/demo.png)",
            "![a, [1, 2]](figures/docs-demo.png)",
            "![a, [1, 2]](figures/docs-demo.png)",
        ),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(text, with_address, without):
    assert website.relink(text, "README.md", "index", ADDRESS)[0] == with_address
    assert website.relink(text, "README.md", "index", "")[0] == without


def test_what_leads_nowhere_is_an_error():
    with pytest.raises(ValueError, match=r"README.md links to 'data/none.md', .*no file"):
        website.relink("[a](data/none.md)", "README.md", "index", "")
    readme = "# T\n\n## One\n\n<!-- address:x -->\nin\n<!-- /address:x -->\n\n## Two\nmore\n"
    assert website.readme_part("Two", readme) == "more"
    assert website.readme_part("address:x", readme) == "in"
    with pytest.raises(ValueError, match=r"asks for 'Three', which README\.md does not have"):
        website.readme_part("Three", readme)

"""tools/website.py: the folder that Sphinx is given, with and without an address."""

import json
import runpy
import shutil

import pytest
import yaml

from tools import website

ADDRESS = "https://github.com/OWNER/NAME"


@pytest.fixture(scope="module", params=["", ADDRESS, "https://git.example.org/a/b"])
def source(request, tmp_path_factory):
    """(address, assembled folder)"""
    folder = tmp_path_factory.mktemp("source")
    website.assemble(folder, request.param)
    return request.param, folder


def test_badges_follow_the_address(source):
    address, folder = source
    options = runpy.run_path(str(folder / "conf.py"))["html_theme_options"]
    assert options.get("repository_url", "") == address
    assert ("launch_buttons" in options) == (address == ADDRESS)
    lesson = json.loads((folder / "notebooks" / "00_start_here.ipynb").read_text("utf-8"))
    places = "".join(lesson["cells"][1]["source"])
    colab = "https://colab.research.google.com/github/OWNER/NAME/blob/main/notebooks/00_start"
    assert (colab in places) == (address == ADDRESS)


def test_nothing_but_the_source_is_touched(source):
    before = {path: path.read_bytes() for path in (website.ROOT / "notebooks").glob("*.ipynb")}
    assert before
    for path, text in before.items():
        made = json.loads((source[1] / "notebooks" / path.name).read_text("utf-8"))
        assert len(made["cells"]) == len(json.loads(text)["cells"]) + 1


@pytest.mark.parametrize(
    ("text", "with_address", "without"),
    [
        ("[a](data/README.md)", "[a](licence.md)", "[a](licence.md)"),
        ("[a](CHANGELOG.md#x)", "[a](changelog.md#x)", "[a](changelog.md#x)"),
        (
            "[a](notebooks/00_start_here.ipynb)",
            "[a](notebooks/00_start_here.ipynb)",
            "[a](notebooks/00_start_here.ipynb)",
        ),
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


def test_a_page_in_a_folder_links_out_of_it():
    text, pictures = website.relink(
        "[t](../digits-sd/README.md) ![p](../digits-results/steps.png)",
        "data/digits-student/README.md",
        "results/digits-student",
        "",
    )
    assert text == "[t](digits-sd.md) ![p](../figures/data-digits-results-steps.png)"
    assert pictures == {"data/digits-results/steps.png": "figures/data-digits-results-steps.png"}


def test_a_link_to_no_file_is_an_error():
    with pytest.raises(ValueError, match=r"README.md links to 'data/none.md', .*no file"):
        website.relink("[a](data/none.md)", "README.md", "index", "")


def test_a_part_that_the_readme_lacks_is_an_error():
    readme = "# T\n\n## One\n\n<!-- address:x -->\nin\n<!-- /address:x -->\n\n## Two\nmore\n"
    assert website.readme_part("Two", readme) == "more"
    assert website.readme_part("address:x", readme) == "in"
    with pytest.raises(ValueError, match=r"asks for 'Three', which README\.md does not have"):
        website.readme_part("Three", readme)


def test_headings_become_plain_text_with_mathematics():
    assert website.escape_rst("4. In $x_\\gamma$, `a`_b") == (
        "4\\. In \\ :math:`x_\\gamma`\\ , \\`a\\`\\_b"
    )


def test_a_failed_build_leaves_the_older_site(tmp_path, monkeypatch, capfd):
    pages = tmp_path / "pages"
    shutil.copytree(website.PAGES, pages)
    (pages / "index.md").write_text("# T\n\n[a](nowhere.md)\n", encoding="utf-8")
    out = tmp_path / "site"
    out.mkdir()
    (out / "index.html").write_text("older")
    monkeypatch.setattr(website, "PAGES", pages)
    # One page is enough to fail.
    monkeypatch.setattr(website, "assemble", lambda target, address: _small(target, pages))
    assert website.build(out, "") != 0
    assert "nowhere.md" in capfd.readouterr().err
    assert (out / "index.html").read_text() == "older"


def _small(target, pages):
    (target / "index.md").write_bytes((pages / "index.md").read_bytes())
    (target / "conf.py").write_text('extensions = ["myst_parser"]\n')


def test_the_workflow_publishes_what_make_site_builds():
    text = (website.ROOT / ".github" / "workflows" / "pages.yml").read_text("utf-8")
    build, publish = (yaml.safe_load(text)["jobs"][name] for name in ("build", "publish"))
    assert [step["run"] for step in build["steps"] if "run" in step] == ["make site CPU=1"]
    assert website.ROOT / build["steps"][-1]["with"]["path"] == website.OUT
    assert publish["needs"] == "build"
    # Writing is for the job that runs nothing but the publishing action.
    assert set(publish["permissions"]) == {"pages", "id-token"}
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    assert [step["uses"] for step in publish["steps"]] == ["actions/deploy-pages@v4"]

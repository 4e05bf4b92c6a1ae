"""pyproject.toml, constraints.txt, environment.yml and the tools say the same."""

import re
import sys

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools import bootstrap
from tools.bootstrap import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SYSTEMS = {
    "Linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
              "platform_machine": "x86_64"},
    "Windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt",
                "platform_machine": "AMD64"},
    "macOS": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix",
              "platform_machine": "arm64"},
}  # fmt: skip


def parse(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    texts = (line.split("#")[0].strip() for line in lines)
    return [Requirement(text) for text in texts if text]


PINS = parse("constraints.txt")
CHOSEN = parse("constraints.in")


def where(python, system):
    """The values that environment markers see."""
    version = {"python_version": python, "python_full_version": f"{python}.9"}
    return {**default_environment(), **SYSTEMS[system], **version}


def applies(requirement, environment):
    return requirement.marker is None or requirement.marker.evaluate(environment)


def requirements():
    """(extra or "core", requirement) for everything that pyproject.toml asks for."""
    listed = [("core", text) for text in PROJECT["dependencies"]]
    listed += [(extra, text) for extra, texts in EXTRAS.items() for text in texts]
    listed += [("build", text) for text in PYPROJECT["build-system"]["requires"]]
    parsed = [(extra, Requirement(text)) for extra, text in listed]
    return [(extra, item) for extra, item in parsed if item.name != PROJECT["name"]]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_pin_inside_its_range(python, system):
    environment = where(python, system)
    for extra, requirement in requirements():
        if not applies(requirement, environment):
            continue
        name = canonicalize_name(requirement.name)
        pins = [
            pin
            for pin in PINS
            if canonicalize_name(pin.name) == name and applies(pin, environment)
        ]
        assert len(pins) == 1, f"{name} of {extra} has the pins {[str(pin) for pin in pins]}"
        [specifier] = pins[0].specifier
        assert specifier.operator == "=="
        assert specifier.version in requirement.specifier, f"{pins[0]} is outside {requirement}"


@pytest.mark.parametrize("python", PYTHONS)
def test_no_package_is_pinned_twice(python):
    for system in SYSTEMS:
        names = [pin.name for pin in PINS if applies(pin, where(python, system))]
        assert len(names) == len(set(names))


def test_the_versions_chosen_by_hand_are_the_ones_pinned():
    for chosen in CHOSEN:
        for python in PYTHONS:
            environment = where(python, "Linux")
            if applies(chosen, environment):
                pins = [
                    pin for pin in PINS if pin.name == chosen.name and applies(pin, environment)
                ]
                assert [pin.specifier for pin in pins] == [chosen.specifier], chosen.name


def test_constraints_name_no_index_and_no_place():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|--|@ |/opt|/root|/home", text.split("\n#   uv")[0])
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.match(r"[a-z0-9-]+==[^ ]+( ; .+)?$", line) for line in pins)


def test_constraints_say_how_they_were_made():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert text.startswith(bootstrap.CONSTRAINTS_HEADER)
    assert bootstrap.CONSTRAINTS_COMMAND in text


def test_every_dependency_is_bounded_on_both_sides():
    for extra, requirement in requirements():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({">=", "<"}, {"=="}), f"{requirement} of {extra}"


def test_python_versions_agree():
    needed = SpecifierSet(PROJECT["requires-python"])
    oldest = ".".join(map(str, bootstrap.OLDEST_PYTHON))
    assert str(needed) == f">={oldest}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    listed = {
        line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)
    }
    assert listed == set(PYTHONS)
    assert f"--python-version {oldest} " in bootstrap.CONSTRAINTS_COMMAND


def test_bootstrap_knows_the_extras():
    assert set(bootstrap.EXTRAS) == set(EXTRAS)
    for extra in EXTRAS:
        named = [Requirement(text) for text in EXTRAS[extra]]
        inside = {name for item in named if item.name == PROJECT["name"] for name in item.extras}
        assert inside == set(bootstrap.CONTAINS.get(extra, ()))
    build = {Requirement(text).name for text in PYPROJECT["build-system"]["requires"]}
    assert build <= set(bootstrap.BUILD_TOOLS) <= {item.name for _, item in requirements()}


def test_conda_installs_what_make_lab_installs():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    environment = yaml.safe_load(text)
    *conda, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    python = Requirement(next(item for item in conda if item.startswith("python ")))
    assert {item.split()[0] for item in conda} == {"python", "pip"}
    for version in PYTHONS:
        assert f"{version}.1" in python.specifier
    assert "3.9.1" not in python.specifier
    extras = ",".join(bootstrap.LAB_EXTRAS)
    assert pip == {"pip": ["-c constraints.txt", f"-e .[{extras}]"]}
    assert f"conda activate {PROJECT['name']}" in text
    assert bootstrap.START in text


def test_the_linter_is_pinned_to_one_version():
    [ruff] = [item for extra, item in requirements() if extra == "test" and item.name == "ruff"]
    [pin] = [pin for pin in PINS if pin.name == "ruff"]
    assert ruff.specifier == pin.specifier
    assert str(ruff.specifier).startswith("==")


def test_the_core_needs_three_packages():
    names = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert names == {"torch", "numpy", "safetensors"}


def test_the_citation_names_this_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["title"].startswith(PROJECT["name"])
    assert citation.get("repository-code", "") == PYPROJECT["tool"]["slam_edu"]["repository"]
    [paper] = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2404.13903"
    assert [author["family-names"] for author in paper["authors"]] == [
        "Xu", "Song", "Feng", "Li", "Ge", "Zheng", "Wang",
    ]  # fmt: skip


def test_the_changelog_has_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(
        rf"(?m)^## \[{re.escape(PROJECT['version'])}\] - (?:unreleased|\d{{4}}-\d\d-\d\d)$",
        changelog,
    )

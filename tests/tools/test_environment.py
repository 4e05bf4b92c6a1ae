"""pyproject.toml, constraints.txt, environment.yml and the tools say the same."""

import sys

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
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
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({">=", "<"}, {"=="}), f"{requirement} of {extra} has an open end"
        name = canonicalize_name(requirement.name)
        pins = [pin for pin in PINS if canonicalize_name(pin.name) == name]
        pins = [pin for pin in pins if applies(pin, environment)]
        assert len(pins) == 1, f"{name} of {extra} has the pins {[str(pin) for pin in pins]}"
        [specifier] = pins[0].specifier
        assert specifier.operator == "=="
        assert specifier.version in requirement.specifier, f"{pins[0]} is outside {requirement}"


def test_the_versions_chosen_by_hand_are_the_ones_pinned():
    for chosen in parse("constraints.in"):
        pins = [pin for pin in PINS if pin.name == chosen.name]
        environments = [where(python, "Linux") for python in PYTHONS]
        for environment in (each for each in environments if applies(chosen, each)):
            specifiers = [pin.specifier for pin in pins if applies(pin, environment)]
            assert specifiers == [chosen.specifier], chosen.name


def test_python_versions_and_extras_agree_with_bootstrap():
    oldest = ".".join(map(str, bootstrap.OLDEST_PYTHON))
    assert PROJECT["requires-python"] == f">={oldest}"
    assert f"--python-version {oldest} " in (ROOT / "Makefile").read_text("utf-8")
    assert set(bootstrap.EXTRAS) == set(EXTRAS)
    [inner] = [Requirement(text) for text in EXTRAS["test"] if text.startswith(PROJECT["name"])]
    assert inner.extras == set(EXTRAS) - {"test"}
    build = {Requirement(text).name for text in PYPROJECT["build-system"]["requires"]}
    assert build <= set(bootstrap.BUILD_TOOLS) <= {item.name for _, item in requirements()}


def test_conda_installs_what_make_lab_installs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    python = Requirement(next(item for item in conda if item.startswith("python ")))
    assert all(f"{version}.1" in python.specifier for version in PYTHONS)
    assert "3.9.1" not in python.specifier
    assert pip == {"pip": ["-c constraints.txt", "-e .[course,sd]"]}


def test_the_citation_and_the_changelog_have_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{PROJECT['version']}] - " in changelog

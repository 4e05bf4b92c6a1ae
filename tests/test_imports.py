"""Who may import whom: studies -> slam_course -> slam_edu, nothing back, and no cycles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tools.sizes import METHOD

ROOT = Path(__file__).resolve().parents[1]
TOP = ("slam_edu", "slam_course", "studies", "tools")


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for top in TOP for path in sorted((ROOT / top).rglob("*.py"))}


def imported(module, text):
    """Modules of the repository that a file names: `from a import b` is `a.b` where that is one.

    Also those that a string names in full, such as `"slam_edu.digits"`: they are loaded lazily.
    """
    found = set()
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(up if node.level else ()), *filter(None, [node.module])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else base for name in inner}
        elif isinstance(node, ast.Constant) and "." in str(node.value):
            found.add(node.value)
    return {name for name in found if name in FILES} - {module}


IMPORTS = {name: imported(name, path.read_text("utf-8")) for name, path in FILES.items()}


def wrong(source, goals):
    """Imports from below `source` to below one of `goals`."""
    pairs = {(module, other) for module in IMPORTS for other in IMPORTS[module]}
    below = tuple(f"{goal}." for goal in goals)
    return {
        (module, other)
        for module, other in pairs
        if f"{module}.".startswith(f"{source}.") and f"{other}.".startswith(below)
    }


@pytest.mark.parametrize(
    ("source", "goals"),
    [
        ("slam_edu", ("slam_course", "studies", "tools")),
        ("slam_edu.sd", ("slam_edu.digits", "slam_edu.toy")),
        ("slam_edu.digits", ("slam_edu.toy",)),
        ("slam_course", ("studies", "tools")),
        ("studies", ("tools",)),
    ],
)
def test_imports_run_one_way(source, goals):
    # The first cell of every lesson asks the library for the course's set-up.
    allowed = {("slam_edu", "slam_course.setup")}
    assert wrong(source, goals) - allowed == set()


def test_the_method_stands_alone():
    others = ("slam_edu.sd", "slam_edu.digits", "slam_edu.toy", "slam_edu.shipped")
    for name in METHOD:
        assert wrong(f"slam_edu.{name}", others) == set()


def test_no_files_import_each_other():
    list(TopologicalSorter(IMPORTS).static_order())  # a CycleError names the ring


def test_no_two_classes_share_a_name():
    found = {}
    for module, path in FILES.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}

"""The glossary agrees with the code, whose names it gives, and with the lessons."""

import dataclasses
import importlib
import inspect
import json
import re

import pytest

from slam_course import glossary
from tools.notebooks import NOTEBOOKS

TOKENS = re.compile(r"\\[A-Za-z]+|[^\s{}]")
FORMULA = re.compile(r"\$\$.+?\$\$|\$.+?\$", re.DOTALL)


def occurs(symbol, text):
    """Whether the signs of a symbol stand in a row in a formula of a text."""
    wanted = TOKENS.findall(symbol)
    formulas = map(TOKENS.findall, FORMULA.findall(text))
    return any(
        there[start : start + len(wanted)] == wanted
        for there in formulas for start in range(len(there))
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", sorted({name for symbol in glossary.SYMBOLS for name in symbol.code})
)
def test_every_name_is_in_the_code(name):
    target, argument = re.fullmatch(r"([\w.]+)(?:\((\w+)\))?", name).groups()
    parts = target.split(".")
    found, seen = importlib.import_module(parts[0]), parts[0]
    for part in parts[1:]:
        seen = f"{seen}.{part}"
        if dataclasses.is_dataclass(found) and part in found.__dataclass_fields__:
            found = None  # a field of a record is where a name ends
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            found = importlib.import_module(seen)
    if argument:
        assert argument in inspect.signature(found).parameters


def test_every_symbol_is_in_its_lesson():
    lessons = sorted(NOTEBOOKS.glob("*.ipynb"))
    for symbol in glossary.SYMBOLS:
        cells = json.loads(lessons[symbol.lesson].read_text(encoding="utf-8"))["cells"]
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        assert occurs(symbol.symbol, "\n\n".join(prose)), symbol


def test_a_learner_can_print_it():
    out = repr(glossary.show(4))
    assert re.search(r"a +drift factor, a = alpha_t/alpha_s < 1\. ", out)
    assert not re.search(r"[$\\{}]", out)
    assert "f_theta" not in out
    assert max(map(len, out.splitlines())) < 100
    assert glossary.show()._repr_markdown_().count("\n") == len(glossary.SYMBOLS) + 1
    with pytest.raises(ValueError, match=r"no symbol 'beta'; allowed: t, x_0, "):
        glossary.find("beta")
    with pytest.raises(ValueError, match="lesson is 10; allowed: 0 to 9"):
        glossary.show(10)

"""The glossary agrees with the code, whose names it gives, and with the lessons."""

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from slam_course import glossary

LETTERS = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]|\d+|\S")
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
WRAPPERS = (
    r"\hat", r"\bar", r"\tilde", r"\mathbb", r"\mathcal", r"\mathrm", r"\text", r"\operatorname",
)  # fmt: skip
SPACES = {r"\,", r"\ ", r"\;", r"\!", r"\:", r"\quad", r"\qquad", "&"}
SIZES = {r"\big", r"\Big", r"\left", r"\right", r"\tfrac", r"\frac", r"\sqrt"}
GREEK = {
    r"\alpha", r"\beta", r"\gamma", r"\delta", r"\Delta", r"\epsilon", r"\eta", r"\theta",
    r"\kappa", r"\lambda", r"\mu", r"\nu", r"\xi", r"\rho", r"\sigma", r"\tau", r"\phi", r"\psi",
    r"\omega", r"\Sigma", r"\Phi",
}  # fmt: skip
# Of general mathematics, and written out where it stands: indices, bounds, roots, other letters of
# a formula that is explained in the sentence before it.
GENERAL = set("dijlmIMRqbf") | {r"\mathrm d", r"\mathcal N", r"\bar L", r"\mu", r"\hat x"}


def atoms(latex):
    """LaTeX as a list of (base, subscript, superscript): `x_{\\gamma}^2` is one of them."""
    tokens = [token for token in LETTERS.findall(latex) if token not in SPACES | SIZES]
    found, place = [], 0

    def argument(place):
        """What a command at `place - 1` applies to, as text, and the place behind it."""
        if tokens[place] in WRAPPERS:
            inner, behind = argument(place + 1)
            return f"{tokens[place]} {inner}", behind
        if tokens[place] != "{":
            return tokens[place], place + 1
        depth, end = 1, place + 1
        while depth:
            depth += {"{": 1, "}": -1}.get(tokens[end], 0)
            end += 1
        return "".join(tokens[place + 1 : end - 1]), end

    while place < len(tokens):
        token = tokens[place]
        if token in ("_", "^") and found:
            text, place = argument(place + 1)
            base, sub, sup = found[-1]
            found[-1] = (base, text, sup) if token == "_" else (base, sub, sup + text)
        elif token == "'" and found:
            base, sub, sup = found[-1]
            found[-1], place = (base, sub, sup + "'"), place + 1
        elif token in WRAPPERS:
            text, place = argument(place + 1)
            found.append((f"{token} {text}", "", ""))
        else:
            found += [(token, "", "")] * (token not in "{}")
            place += 1
    return found


def formulas(text):
    return [atoms("".join(formula)) for formula in FORMULA.findall(text)]


def occurs(symbol, text):
    """Whether a symbol stands in the formulas of a text; a power of it is it."""
    wanted = atoms(symbol)
    for there in formulas(text):
        there = [(base, sub, "" if sup.isdigit() else sup) for base, sub, sup in there]
        starts = range(len(there) - len(wanted) + 1)
        if any(there[start : start + len(wanted)] == wanted for start in starts):
            return True
    return False


def prose(path):
    """A lesson's markdown, without Further reading, which has the letters of other works."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    markdown = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return "\n\n".join(markdown).partition("## Further reading")[0]


NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
PROSE = [prose(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


def test_a_symbol_is_found_where_it_stands_and_nowhere_else():
    assert occurs(r"\hat x_0", r"so $\hat{x}_0$ is")
    assert occurs(r"x_\gamma", r"$$z + x_{\gamma}^2$$")
    assert not occurs("z", r"$\lVert z'' \rVert$")
    assert not occurs("a", r"the letter a, $\alpha$, $a_i$, `a`, $\text{a}$ and $x_{a}$")


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


def test_every_symbol_is_in_its_lesson_and_in_none_before():
    for symbol in glossary.SYMBOLS:
        assert occurs(symbol.symbol, PROSE[symbol.lesson]), symbol
        # A letter that comes again with another meaning has a row for each.
        first = min(row.lesson for row in glossary.SYMBOLS if row.symbol == symbol.symbol)
        assert not [n for n in range(first) if occurs(symbol.symbol, PROSE[n])], symbol
        later = [row for row in glossary.SYMBOLS if occurs(row.symbol, symbol.meaning)]
        for other in later:
            earlier = [row.lesson for row in glossary.SYMBOLS if row.symbol == other.symbol]
            assert min(earlier) <= symbol.lesson, (symbol.plain, other.plain)


def test_every_letter_of_the_lessons_has_a_row():
    known = {atom[0] for symbol in glossary.SYMBOLS for atom in atoms(symbol.symbol)}
    for lesson, text in enumerate(PROSE):
        for base in {base for formula in formulas(text) for base, *_ in formula}:
            letter = len(base) == 1 and base.isalpha()
            if letter or base in GREEK or base.startswith((r"\hat", r"\bar", r"\tilde")):
                assert base in known | GENERAL, f"lesson {lesson}: {base}"


def test_a_learner_can_print_it(capsys):
    assert glossary.main(["--lesson", "4"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"a +drift factor, a = alpha_t/alpha_s < 1\. ", out)
    assert not re.search(r"[$\\{}]", out)
    assert "f_theta" not in out
    assert max(map(len, out.splitlines())) < 100
    assert glossary.show()._repr_markdown_().count("\n") == len(glossary.SYMBOLS) + 1
    with pytest.raises(ValueError, match=r"no symbol 'beta'; allowed: t, x_0, "):
        glossary.find("beta")
    with pytest.raises(ValueError, match="lesson is 10; allowed: 0 to 9"):
        glossary.show(10)

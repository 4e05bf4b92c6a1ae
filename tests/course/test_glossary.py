"""The glossary agrees with the code, whose names it gives, and with the lessons."""

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from slam_course import glossary

ROOT = Path(__file__).resolve().parents[2]
LETTERS = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]|\d+|\S")
WRAPPERS = (
    r"\hat", r"\bar", r"\tilde", r"\mathbb", r"\mathcal", r"\mathrm", r"\text", r"\operatorname",
)  # fmt: skip
SPACES = (r"\,", r"\ ", r"\;", r"\!", r"\:", r"\quad", r"\qquad", "&")
SIZES = (r"\big", r"\Big", r"\left", r"\right", r"\tfrac", r"\frac", r"\sqrt")


def atoms(latex):
    """LaTeX as a list of (base, subscript, superscript): `x_{\\gamma}^2` is one of them."""
    tokens = [token for token in LETTERS.findall(latex) if token not in SPACES + SIZES]
    found, place = [], 0

    def argument(place):
        """What a command at `place - 1` applies to, as text, and the place behind it."""
        if tokens[place] != "{":
            if tokens[place] in WRAPPERS:
                inner, behind = argument(place + 1)
                return f"{tokens[place]} {inner}", behind
            return tokens[place], place + 1
        depth, end = 1, place + 1
        while depth:
            depth += {"{": 1, "}": -1}.get(tokens[end], 0)
            end += 1
        return "".join(tokens[place + 1 : end - 1]), end

    while place < len(tokens):
        token = tokens[place]
        if token in "{}":
            place += 1
        elif token in ("_", "^") and found:
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
            found.append((token, "", ""))
            place += 1
    return found


def occurs(symbol, text):
    """Whether a symbol stands in the formulas of a markdown text."""
    wanted = atoms(symbol)
    for formula in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.DOTALL):
        there = atoms("".join(formula))
        for start in range(len(there) - len(wanted) + 1):
            pairs = zip(wanted, there[start:], strict=False)
            if all(same(one, other) for one, other in pairs):
                return True
    return False


def same(wanted, there):
    """Whether an atom of a formula is the wanted one; a power of it is it."""
    power = there[2] if not there[2].isdigit() else ""
    return wanted == (there[0], there[1], power)


def prose():
    """The markdown of each lesson."""
    texts = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        markdown = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        # Further reading speaks of other works, in their letters.
        texts.append("\n\n".join(markdown).partition("## Further reading")[0])
    return texts


PROSE = prose()


def test_a_symbol_is_found_where_it_stands_and_nowhere_else():
    assert occurs(r"\hat x_0", r"so $\hat{x}_0$ is")
    assert occurs(r"x_\gamma", r"$$z + x_{\gamma}^2$$")
    assert occurs("a", r"$(1-\gamma)\, a\, x_s$")
    assert occurs("z''", r"$\lVert z'' \rVert$")
    assert occurs(r"c_\text{skip}", r"$c_\text{skip}(t)$")
    assert not occurs("z", r"$\lVert z'' \rVert$")
    assert not occurs("k", r"$\sum_k w_k$")
    assert not occurs("a", r"the letter a, $\alpha$, $a_i$, `a`, $\text{a}$ and $x_{a}$")
    assert not occurs("x", r"$x_0$ or \hat x or $\hat x$")
    assert not occurs("d", r"$\mathrm dz$")


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
    assert not any(part.startswith("_") for part in parts)


@pytest.mark.parametrize(
    "symbol", glossary.SYMBOLS, ids=lambda symbol: f"{symbol.lesson}-{symbol.plain}"
)
def test_every_symbol_is_in_its_lesson_and_in_none_before(symbol):
    assert occurs(symbol.symbol, PROSE[symbol.lesson])
    # A letter that comes again with another meaning has a row for each; the first is the first.
    first = next(row for row in glossary.SYMBOLS if row.symbol == symbol.symbol)
    before = [lesson for lesson in range(first.lesson) if occurs(symbol.symbol, PROSE[lesson])]
    assert not before


# Of general mathematics, and written out where it stands: indices, bounds, roots, other letters of
# a formula that is explained in the sentence before it.
GENERAL = set("dijlmIMRqbf") | {r"\mathrm d", r"\mathcal N", r"\bar L", r"\mu", r"\hat x"}


def test_every_letter_of_the_lessons_has_a_row():
    known = {atom[0] for symbol in glossary.SYMBOLS for atom in atoms(symbol.symbol)}
    greek = {r"\alpha", r"\beta", r"\gamma", r"\delta", r"\Delta", r"\epsilon", r"\eta", r"\theta"}
    greek |= {r"\kappa", r"\lambda", r"\mu", r"\nu", r"\xi", r"\rho", r"\sigma", r"\tau", r"\phi"}
    greek |= {r"\psi", r"\omega", r"\Sigma", r"\Phi"}
    for lesson, text in enumerate(PROSE):
        for formula in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.DOTALL):
            for base, _, _ in atoms("".join(formula)):
                letter = len(base) == 1 and base.isalpha()
                hat = base.startswith((r"\hat", r"\bar", r"\tilde"))
                if letter or hat or base in greek:
                    assert base in known | GENERAL, f"lesson {lesson}: {base} in {formula}"


def test_rows_are_in_the_order_of_the_lessons_and_none_is_there_twice():
    lessons = [symbol.lesson for symbol in glossary.SYMBOLS]
    assert lessons == sorted(lessons)
    assert set(lessons) == set(range(len(PROSE)))
    assert len({(symbol.symbol, symbol.lesson) for symbol in glossary.SYMBOLS}) == len(lessons)


def test_meanings_use_no_symbol_that_comes_later():
    for symbol in glossary.SYMBOLS:
        for other in glossary.SYMBOLS:
            if other.lesson > symbol.lesson and occurs(other.symbol, symbol.meaning):
                earlier = [row.lesson for row in glossary.SYMBOLS if row.symbol == other.symbol]
                assert min(earlier) <= symbol.lesson, (symbol.plain, other.plain)


def test_a_learner_can_print_it(capsys):
    assert glossary.main(["--lesson", "4"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"(?m)^x_gamma +a point of the chord", out)
    assert "interpolate(gamma)" in out
    assert re.search(r"a +drift factor, a = alpha_t/alpha_s < 1\. ", out)
    assert not re.search(r"[$\\{}]", out)
    assert "f_theta" not in out
    assert max(map(len, out.splitlines())) < 100
    table = glossary.show()._repr_markdown_()
    assert table.count("\n") == len(glossary.SYMBOLS) + 1
    assert "| $a$ | drift factor" in table


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"no symbol 'beta'; allowed: t, x_0, "):
        glossary.find("beta")
    with pytest.raises(ValueError, match="lesson is 10; allowed: 0 to 9"):
        glossary.show(10)
    assert [row.lesson for row in glossary.find("p")] == [2, 3, 8]

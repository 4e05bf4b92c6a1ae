"""What the tests of the lessons share: answers tried on checks, and figures that are described."""

from __future__ import annotations

import pytest


def formulas(arguments, names, table):
    """[(function of the arguments, sentence)] of {formula: sentence}, with a module's names."""
    return [(eval(f"lambda {arguments}: {text}", names), table[text]) for text in table]


def right(groups):
    """Parametrises a test with every right answer of [(check, right, wrong)]."""
    rows = [(check, answer) for check, answers, _ in groups for answer in answers]
    ids = [f"{check.__name__}-{n}" for n, (check, _) in enumerate(rows)]
    return pytest.mark.parametrize(("check", "answer"), rows, ids=ids)


def wrong(groups):
    """Parametrises a test with every wrong answer and what the check says to it."""
    rows = [(check, answer, words) for check, _, answers in groups for answer, words in answers]
    ids = [f"{check.__name__}-{words}" for check, _, words in rows]
    return pytest.mark.parametrize(("check", "answer", "sentence"), rows, ids=ids)


def tests(groups):
    """Two tests: every right answer is accepted, every wrong one gets its sentence."""

    @right(groups)
    def accepts(check, answer):
        verdict = check(answer)
        assert verdict.passed, verdict

    @wrong(groups)
    def rejects(check, answer, sentence):
        verdict = check(answer)
        assert not verdict.passed, answer
        assert sentence in verdict.message, verdict

    return accepts, rejects


def described(fig):
    """A figure that can be drawn has a description in whole sentences."""
    assert fig.png().startswith(b"\x89PNG")
    assert len(fig.alt) > 15
    assert fig.alt.endswith(".")
    assert "  " not in fig.alt


def walk(box, every=False):
    """Draws an explorer at the ends of every control, or at each value.

    Returns [(values, picture, description)], no two of which show one picture.
    """
    *controls, picture, caption = box.children
    seen = {}
    for control in controls:
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        for value in values if every else (values[-1], values[0]):
            control.value = value
            now = tuple(each.value for each in controls)
            seen[now] = (now, bytes(picture.value), caption.value)
    assert len({shown for _, shown, _ in seen.values()}) == len(seen)
    return list(seen.values())

"""How an image is put into words: the wordings, their parts, and what a prompt asks for.

A caption names all three, digit, stroke and background, or leaves some out:
``caption("a {stroke} {word} on a {background} background", 7, "red", "yellow")`` is "a red seven
on a yellow background".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from slam_edu.digits.colours import NAMES, colour_index

WORDS: tuple[str, ...] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip

#: Wordings that say all three; the first is the one that prompts are made of where none is named.
FULL: tuple[str, ...] = (
    "a {stroke} {word} on a {background} background",
    "handwritten {numeral}, {stroke} on {background}",
    "the digit {word} in {stroke} on {background}",
    "a {stroke} {numeral} on a {background} background",
    "{stroke} {word}, {background} background",
    "a handwritten {word} in {stroke} ink on {background} paper",
)
#: Wordings that leave something open.
PARTIAL: tuple[str, ...] = (
    "a {word}",
    "the number {numeral}",
    "a {stroke} {word}",
    "a {word} on a {background} background",
    "a {stroke} digit on a {background} background",
    "a {stroke} digit",
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a prompt asks for; None where it leaves it open.

    Attributes:
        digit: 0 to 9.
        stroke: a colour's name.
        background: a colour's name.
    """

    digit: int | None = None
    stroke: str | None = None
    background: str | None = None


def caption(wording: str, digit: int, stroke: str, background: str) -> str:
    """A wording with its places filled in, "a" before a vowel turned to "an".

    Args:
        wording: with any of ``{word}``, ``{numeral}``, ``{stroke}``, ``{background}``.
        digit: 0 to 9.
        stroke: a colour's name.
        background: another colour's name.

    Raises:
        ValueError: for a digit or colour that is not allowed, or two equal colours.
    """
    if digit not in range(10):
        raise ValueError(f"digit is {digit!r}; allowed: 0 to 9")
    colour_index(stroke), colour_index(background)
    if stroke == background:
        raise ValueError(f"stroke and background are both {stroke!r}; allowed: two colours")
    text = wording.format(word=WORDS[digit], numeral=digit, stroke=stroke, background=background)
    return re.sub(r"\ba (?=[aeiou]\w)(?!one\b)", "an ", text)


def all_words() -> set[str]:
    """Each word, numeral and mark that a caption may hold: the tokenizer's vocabulary."""
    texts = [
        caption(wording, digit, stroke, background)
        for wording in FULL + PARTIAL
        for digit in range(10)
        for stroke, background in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)
    ]
    return {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)}


def read_prompt(prompt: str) -> Asked:
    """What a prompt in one of the wordings, or in words alike, asks for.

    The first digit and the colours count: with two colours the first is the stroke's, with one it
    is the background's if "background", "paper" or "on" goes with it.

    Args:
        prompt: such as "a red seven on a yellow background".

    Raises:
        ValueError: if it names two digits or three colours.
    """
    words = re.findall(r"[a-z]+|\d", prompt.lower())
    digits = [WORDS.index(w) if w in WORDS else int(w) for w in words if w in WORDS or w.isdigit()]
    colours = [w for w in words if w in NAMES]
    if len(digits) > 1 or len(colours) > 2:
        raise ValueError(
            f"the prompt {prompt!r} names {len(digits)} digits and {len(colours)} colours; "
            f"allowed: one digit and two colours at most"
        )
    stroke = background = None
    if len(colours) == 2:
        stroke, background = colours
    elif colours:
        where = rf"\bon (a )?{colours[0]}\b|{colours[0]} (background|paper)"
        of_ground = re.search(where, prompt.lower())
        stroke, background = (None, colours[0]) if of_ground else (colours[0], None)
    return Asked(digit=digits[0] if digits else None, stroke=stroke, background=background)

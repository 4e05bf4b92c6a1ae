"""How an image is put into words: the wordings and their parts.

A caption names all three, digit, stroke and background, or leaves some out:
``caption("a {stroke} {word} on a {background} background", 7, "red", "yellow")`` is "a red seven
on a yellow background".
"""

from __future__ import annotations

import re

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


def caption(wording: str, digit: int, stroke: str, background: str) -> str:
    """A wording of :data:`FULL` or :data:`PARTIAL` with its places filled in.

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

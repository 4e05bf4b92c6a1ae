"""Wordings: what they say, and that what they say is read back."""

import itertools
import re

import pytest

from slam_edu.digits.captions import (
    FULL,
    PARTIAL,
    WORDS,
    all_words,
    caption,
)
from slam_edu.digits.colours import NAMES

WORDINGS = FULL + PARTIAL
PAIRS = list(itertools.permutations(NAMES, 2))


@pytest.mark.parametrize(
    ("wording", "expected"),
    [
        (FULL[0], "a red seven on a yellow background"),
        (FULL[1], "handwritten 7, red on yellow"),
        (FULL[5], "a handwritten seven in red ink on yellow paper"),
        (PARTIAL[1], "the number 7"),
        (PARTIAL[4], "a red digit on a yellow background"),
    ],
)
def test_captions_as_they_are_written(wording, expected):
    assert caption(wording, 7, "red", "yellow") == expected


def test_a_and_an():
    found = [caption("a {word}", digit, "red", "blue") for digit in range(10)]
    assert found == ["a zero", "a one", "a two", "a three", "a four", "a five", "a six",
                     "a seven", "an eight", "a nine"]  # fmt: skip
    on = caption("a {word} on a {background} background", 8, "red", "blue")
    assert on == "an eight on a blue background"
    assert caption("a handwritten {word}", 8, "red", "blue") == "a handwritten eight"


def test_the_vocabulary_covers_every_caption():
    words = all_words()
    assert {*WORDS, *NAMES, *"0123456789", ",", "an"} <= words
    for wording, digit, pair in itertools.product(WORDINGS, range(10), PAIRS):
        assert set(re.findall(r"\w+|[^\w\s]", caption(wording, digit, *pair))) <= words
    assert len(words) < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, "red", "blue"), r"digit is 10; allowed: 0 to 9"),
        ((7, "pink", "blue"), r"'pink' is no colour of the digits; allowed: black, white, red"),
        ((7, "red", "red"), r"stroke and background are both 'red'; allowed: two colours"),
    ],
)
def test_wrong_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        caption(FULL[0], *arguments)

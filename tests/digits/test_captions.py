"""Wordings: what they say, and that what they say is read back."""

import itertools
import re

import pytest

from slam_edu.digits.captions import FULL, PARTIAL, WORDS, all_words, caption
from slam_edu.digits.colours import NAMES


def test_captions_as_they_are_written():
    for wording, expected in (
        (FULL[0], "a red seven on a yellow background"),
        (FULL[1], "handwritten 7, red on yellow"),
        (PARTIAL[1], "the number 7"),
        (PARTIAL[4], "a red digit on a yellow background"),
    ):
        assert caption(wording, 7, "red", "yellow") == expected


def test_a_and_an():
    found = [caption("a {word}", digit, "red", "blue") for digit in range(10)]
    assert found == [f"{'an' if word == 'eight' else 'a'} {word}" for word in WORDS]
    assert caption("a handwritten {word}", 8, "red", "blue") == "a handwritten eight"


def test_the_vocabulary_covers_every_caption():
    words = all_words()
    assert {*WORDS, *NAMES, *"0123456789", ",", "an"} <= words
    pairs = itertools.permutations(NAMES, 2)
    for wording, digit, pair in itertools.product(FULL + PARTIAL, range(10), pairs):
        assert set(re.findall(r"\w+|[^\w\s]", caption(wording, digit, *pair))) <= words
    assert len(words) < 60


def test_wrong_input():
    for arguments, message in (
        ((10, "red", "blue"), r"digit is 10; allowed: 0 to 9"),
        ((7, "pink", "blue"), r"'pink' is no colour of the digits; allowed: black, white, red"),
        ((7, "red", "red"), r"stroke and background are both 'red'; allowed: two colours"),
    ):
        with pytest.raises(ValueError, match=message):
            caption(FULL[0], *arguments)

"""Wordings: what they say, and that what they say is read back."""

import itertools
import re

import pytest

from slam_edu.digits.captions import (
    FULL,
    PARTIAL,
    WORDS,
    Asked,
    all_words,
    caption,
    read_prompt,
)
from slam_edu.digits.colours import NAMES

WORDINGS = FULL + PARTIAL
PAIRS = list(itertools.permutations(NAMES, 2))


def test_wordings_are_what_their_names_say():
    """Full ones leave nothing open, partial ones something, and no two are the same."""
    assert len(WORDINGS) == len(set(WORDINGS))
    for wording in WORDINGS:
        places = set(re.findall(r"\{(\w+)\}", wording))
        says_all = {"stroke", "background"} <= places and bool(places & {"word", "numeral"})
        assert says_all == (wording in FULL)
        assert places <= {"word", "numeral", "stroke", "background"}


@pytest.mark.parametrize(
    ("wording", "expected"),
    [
        (FULL[0], "a red seven on a yellow background"),
        (FULL[1], "handwritten 7, red on yellow"),
        (FULL[2], "the digit seven in red on yellow"),
        (FULL[3], "a red 7 on a yellow background"),
        (FULL[4], "red seven, yellow background"),
        (FULL[5], "a handwritten seven in red ink on yellow paper"),
        (PARTIAL[0], "a seven"),
        (PARTIAL[1], "the number 7"),
        (PARTIAL[2], "a red seven"),
        (PARTIAL[3], "a seven on a yellow background"),
        (PARTIAL[4], "a red digit on a yellow background"),
        (PARTIAL[5], "a red digit"),
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


@pytest.mark.parametrize("wording", WORDINGS)
def test_what_a_caption_says_is_read_back(wording):
    """All ten digits and 56 pairs; what it leaves open is None."""
    for digit, (stroke, background) in itertools.product(range(10), PAIRS):
        expected = Asked(
            digit=digit if "{word}" in wording or "{numeral}" in wording else None,
            stroke=stroke if "{stroke}" in wording else None,
            background=background if "{background}" in wording else None,
        )
        text = caption(wording, digit, stroke, background)
        assert read_prompt(text) == expected
        assert not re.search(r"\ban? [aeiou]", text.replace("a one", "")) or "an eight" in text


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", Asked()),
        ("a digit", Asked()),
        ("something on paper", Asked()),
        ("seven", Asked(digit=7)),
        ("0", Asked(digit=0)),
        ("A RED SEVEN", Asked(digit=7, stroke="red")),
        ("A Seven On A Yellow Background", Asked(digit=7, background="yellow")),
        ("on YELLOW paper", Asked(background="yellow")),
        ("seven on yellow", Asked(digit=7, background="yellow")),
        ("yellow paper", Asked(background="yellow")),
        ("three, cyan background", Asked(digit=3, background="cyan")),
        ("a green three.", Asked(digit=3, stroke="green")),
        ("white-on-black 3", Asked(digit=3, stroke="white", background="black")),
        ("an infrared sevenfold stone", Asked()),  # red, seven and one are no words here
    ],
)
def test_prompts_in_other_words(prompt, expected):
    assert read_prompt(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "digits", "colours"),
    [
        ("a seven and a two", 2, 0),
        ("a red 42", 2, 1),
        ("a seven, 7", 2, 0),
        ("red seven, green on blue", 1, 3),
        ("1 2 3 in red, green, blue and white", 3, 4),
    ],
)
def test_a_prompt_that_asks_for_too_much(prompt, digits, colours):
    with pytest.raises(ValueError, match="allowed: one digit and two colours at most") as caught:
        read_prompt(prompt)
    assert f"{prompt!r} names {digits} digits and {colours} colours" in str(caught.value)


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
        ((-1, "red", "blue"), r"digit is -1; allowed: 0 to 9"),
        (("7", "red", "blue"), r"digit is '7'; allowed: 0 to 9"),
        ((7, "pink", "blue"), r"'pink' is no colour of the digits; allowed: black, white, red"),
        ((7, "red", "Blue"), r"'Blue' is no colour of the digits; allowed: .*purple"),
        ((7, "red", "red"), r"stroke and background are both 'red'; allowed: two colours"),
    ],
)
def test_wrong_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        caption(FULL[0], *arguments)

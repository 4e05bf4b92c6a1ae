"""Lists of prompts: one a line, ``#`` begins a comment line."""

from __future__ import annotations

import os
from pathlib import Path

from slam_edu.io import data_path

EVERYDAY = "prompts/everyday.txt"
#: So many captions of the digits are the prompts for their own teacher.
DIGITS_PROMPTS = 512


def read_prompts(path: str | os.PathLike[str] | None = None) -> list[str]:
    """The prompts of a file, in its order.

    Args:
        path: of a UTF-8 text, one prompt a line; empty lines and lines that begin with ``#`` are
            left out. None: the shipped list of everyday things.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no text or holds no prompt.
    """
    path = Path(data_path(EVERYDAY) if path is None else path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is not a file; allowed: a text file with one prompt a line"
        )
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is no UTF-8 text ({error}); allowed: one prompt a line"
        ) from error
    lines = [" ".join(line.split()) for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{str(path)!r} holds no prompt; allowed: one or more, one a line")
    return prompts


def default_prompts(teacher: str) -> list[str]:
    """What is drawn from a teacher where no prompts are named.

    Args:
        teacher: ``SDConfig.teacher``; the digits' has its own captions, others get everyday ones.
    """
    if teacher != "digits":
        return read_prompts()
    from slam_edu.digits.data import CaptionedDigits

    captions = CaptionedDigits("train").batch(range(2 * DIGITS_PROMPTS)).captions
    return list(dict.fromkeys(captions))[:DIGITS_PROMPTS]

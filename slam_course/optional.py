"""Packages that a lesson can do without."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any


def optional(package: str, name: str) -> Any:
    """The object ``name`` of a package, or None if the package is not installed.

    Hugging Face's libraries are kept from printing notices about packages that they miss.

    Args:
        package: an installable package, such as ``"diffusers"``.
        name: of a class or function in it.

    Raises:
        AttributeError: if the package is there and has no such name.
    """
    if importlib.util.find_spec(package) is None:
        return None
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return getattr(importlib.import_module(package), name)

"""The files that come with the course: pictures, captions, reference curves.

They live in the repository's `data/` folder. A wheel carries a copy as `slam_edu/_data/`, so that
an installed course works without a checkout; an editable install reads the checkout's own files.

    >>> from slam_edu.resources import data_path
    >>> data_path("README.md").name
    'README.md'
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

_PACKAGE = Path(__file__).resolve().parent


def _data_folders() -> list[Path]:
    """Where data files may be, in the order in which they are looked for."""
    return [_PACKAGE / "_data", _PACKAGE.parent / "data"]


def data_path(name: str) -> Path:
    """Path of a file or folder of the course's data.

    Args:
        name: where it is below `data/`, with forward slashes on every system, such as
            `"pictures/cat.png"`.

    Raises:
        ValueError: `name` is empty, absolute, or climbs out of the data folder.
        FileNotFoundError: there is no such file; the message lists the places looked at.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or "\\" in name or PurePosixPath(name).is_absolute():
        raise ValueError(
            f"data_path takes a path below data/ with forward slashes, such as "
            f"'pictures/cat.png', without '..'; got {name!r}"
        )
    candidates = [folder.joinpath(*parts) for folder in _data_folders()]
    for path in candidates:
        if path.exists():
            return path
    looked = " and ".join(f"'{path}'" for path in candidates)
    raise FileNotFoundError(
        f"the course's data file {name!r} is missing: looked for {looked}. "
        f"Reinstall slam_edu, or run from a complete checkout"
    )

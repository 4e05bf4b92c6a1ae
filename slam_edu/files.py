"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to, moved over ``path`` when the block ends without an exception.

    An interrupt, an error or a crash leaves an older file at ``path`` as it was, and no half of a
    new one. The temporary file lies in the same folder, because a move is atomic only within a
    file system.

    Raises:
        ValueError: if the folder does not exist or ``path`` is a folder.
    """
    path = Path(path)
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ValueError(
            f"the folder {str(folder)!r} does not exist; allowed: a path in an existing folder"
        )
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; allowed: the name of a file")
    # The suffix stays, because writers choose a format by it.
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        # mkstemp makes files that only their owner reads; a result gets the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)

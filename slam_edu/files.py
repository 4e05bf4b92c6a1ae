"""Files that are either whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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


@contextmanager
def replaced_folder(out: str | os.PathLike[str], keep: Iterable[str] = ()) -> Iterator[Path]:
    """A temporary folder to fill, moved into the place of ``out`` when the block ends well.

    An error leaves an older folder at ``out`` as it was. The temporary folder lies beside it, and
    the folders above are made.

    Args:
        out: the folder; what it holds is gone afterwards.
        keep: names of files of the older folder that the new one gets.

    Raises:
        ValueError: if ``out`` is a file.
    """
    out = Path(out).resolve()
    if out.is_file():
        raise ValueError(f"{str(out)!r} is a file; allowed: the name of a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    folder.chmod(0o755)
    try:
        yield folder
        for name in keep:
            if (out / name).exists():
                shutil.copyfile(out / name, folder / name)
        for path in folder.rglob("*"):  # safetensors makes files that only their owner reads
            path.chmod(0o755 if path.is_dir() else 0o644)
        old = folder.with_name(folder.name + "-old")
        if out.exists():
            out.rename(old)
        try:
            folder.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; what cannot be written is an ``OSError``.

    Args:
        tensors: by name; none may be a view of another.
        path: of the file, such as one of :func:`atomic_path`.
        metadata: of the file.

    Raises:
        OSError: such as for a full disk, with the free space there is.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    try:
        save_file(plain, path, dict(metadata or {}))
    except (SafetensorError, OSError) as error:
        size = sum(value.numel() * value.element_size() for value in plain.values())
        free = shutil.disk_usage(Path(path).resolve().parent).free
        raise OSError(
            f"{size / 1e6:,.1f} MB could not be written to {str(Path(path).parent)!r} ({error}); "
            f"{free / 1e6:,.1f} MB are free there"
        ) from error

"""Files: whole or not there, a run's log, and the data that come with the course.

Data live in the repository's ``data/`` folder. A wheel carries a copy as ``slam_edu/_data/``; an
editable install reads the checkout's own files.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

_PACKAGE = Path(__file__).resolve().parent


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to, moved over ``path`` when the block ends without an exception.

    An interrupt, an error or a crash leaves an older file as it was, and no half of a new one. The
    temporary file lies in the same folder: a move is atomic only within a file system.

    Raises:
        ValueError: if the folder does not exist or ``path`` is a folder.
    """
    path = Path(path)
    folder = path.resolve().parent
    if not folder.is_dir():
        allowed = "a path in an existing folder"
        raise ValueError(f"the folder {str(folder)!r} does not exist; allowed: {allowed}")
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

    An error leaves an older folder at ``out`` as it was; else what it held is gone, but for files
    named in ``keep``. The folders above are made.

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
    """Write a safetensors file.

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


def append_row(path: Path, columns: Sequence[str], row: Sequence[float]) -> None:
    """Add a row: the number of updates, then a value a column; the first makes the file."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(columns)
        writer.writerow([row[0], *(f"{value:.6g}" for value in row[1:])])


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a log; none where there is no file.

    A last row that was cut off, by a process that was killed while writing it, is left out.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    rows = []
    for number, row in enumerate(found, 2):
        try:
            rows.append({name: float(value) for name, value in row.items()})
        except (TypeError, ValueError):
            if row is not found[-1]:
                problem = f"{str(path)!r}, row {number}, cannot be read: {row}"
                raise ValueError(f"{problem}; allowed: numbers") from None
    return rows


def shorten(path: Path, columns: Sequence[str], update: int) -> float:
    """Drop rows after an update; returns the seconds of the last row that stays, or 0."""
    if not path.exists():
        return 0.0
    kept = [row for row in read_rows(path) if row["update"] <= update]
    with atomic_path(path) as temporary:
        temporary.write_text(",".join(columns) + "\n", "utf-8")
        for row in kept:
            append_row(temporary, columns, [int(row["update"]), *(row[c] for c in columns[1:])])
    return kept[-1]["seconds"] if kept else 0.0


def data_path(name: str) -> Path:
    """Path of a file or folder below ``data/``, such as ``"pictures/cat.png"``.

    Raises:
        ValueError: if the name is empty, absolute, or climbs out of the folder.
        FileNotFoundError: if there is no such file; the message lists the places looked at.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or "\\" in name or PurePosixPath(name).is_absolute():
        raise ValueError(
            f"data_path takes a path below data/ with forward slashes, such as "
            f"'pictures/cat.png', without '..'; got {name!r}"
        )
    folders = (_PACKAGE / "_data", _PACKAGE.parent / "data")
    candidates = [folder.joinpath(*parts) for folder in folders]
    for path in candidates:
        if path.exists():
            return path
    looked = " and ".join(f"'{path}'" for path in candidates)
    raise FileNotFoundError(
        f"the course's data file {name!r} is missing: looked for {looked}. "
        f"Reinstall slam_edu, or run from a complete checkout"
    )


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, of any size, in hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """A short hash of a network's weights: names, shapes, and up to 128 values of each.

    The values are rounded to half precision, so that a copy in float16 is the same network.
    """
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        flat = value.detach().reshape(-1)
        probes = flat[:: max(1, len(flat) // 64)].to("cpu", torch.float16).contiguous()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(probes.numpy().tobytes())
    return digest.hexdigest()[:16]


# -------------------------------------------------------------------- folders with checksums

CHECKSUMS = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file of the folder but the list itself and the README."""
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (CHECKSUMS, "README.md")
    }
    with atomic_path(folder / CHECKSUMS) as temporary:
        temporary.write_text(json.dumps(files, indent=2) + "\n", "utf-8")


def check_files(folder: Path) -> None:
    """Compare the folder with its list of checksums.

    Raises:
        FileNotFoundError: if the folder, the list or a file of it is missing.
        ValueError: for a list that cannot be read, or a file that is another one.
    """
    mend = (
        f"get the files back with `git checkout -- data/{folder.name}` in a checkout, or with "
        f"`pip install --force-reinstall --no-deps slam_edu`"
    )
    path = folder / CHECKSUMS
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; {mend}")
    try:
        wanted = json.loads(path.read_text("utf-8")).items()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); {mend}") from error
    for name, digest in wanted:
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{str(file)!r} is missing; {mend}")
        if sha256_of(file) != digest:
            raise ValueError(
                f"{str(file)!r}, {file.stat().st_size:,} bytes long, is not the file that was "
                f"shipped: its checksum differs; {mend}"
            )

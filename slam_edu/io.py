"""Files: whole or not there, a run's log, and the data that come with the course.

Data live in the repository's ``data/`` folder. A wheel carries a copy as ``slam_edu/_data/``; an
editable install reads the checkout's own files.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

_PACKAGE = Path(__file__).resolve().parent
#: How the names of this module's temporary files and folders begin, and that of a folder's lock.
_TEMPORARY, LOCK = ".slam_edu-", ".lock"
#: A folder's list of what was written there, and its key: other lists have the same name.
CHECKSUMS, _MARK = "checksums.json", "slam_edu"


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make errors of the system an ``OSError`` that says where, why, and what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        path, said = Path(path), isinstance(error, OSError) and error.errno is None
        if said or path.name.startswith(_TEMPORARY):  # the caller names the file
            raise
        reason, place = getattr(error, "strerror", None) or str(error), path.resolve()
        name = str(getattr(error, "filename", None) or path)
        if _TEMPORARY not in name and name != str(path):
            reason += f": {name!r}"
        while not os.path.isdir(place):
            place = place.parent
        free = shutil.disk_usage(place).free / 1e6
        raise OSError(
            f"{str(path)!r} cannot be written ({reason}); {free:,.1f} MB are free there. Make "
            f"room, or choose a place that can be written to"
        ) from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made with those above it; a file of that name is a ``ValueError``."""
    path = Path(path)
    if os.path.isfile(path):
        raise ValueError(f"{str(path)!r} is a file; allowed: the name of a folder")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; the system lets go when the process ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        with writing(folder / LOCK):
            lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{str(folder)!r} is in use by another process; allowed: another folder, or this one "
            f"when that process has ended"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps an open file
            os.unlink(lock.lock_file)
        lock.release()


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to, moved over ``path`` when the block ends without an exception.

    An interrupt, an error or a crash leaves an older file as it was, and no half of a new one. The
    temporary file lies in the same folder: a move is atomic only within a file system. What a
    killed process leaves there, :func:`clear_temporaries` removes.

    Raises:
        ValueError: if the folder does not exist or ``path`` is a folder.
        OSError: as :func:`writing` has it.
    """
    with writing(path):
        name = _temporary(Path(path))
        try:
            yield name
            # mkstemp makes files that only their owner reads; a result gets the usual permissions.
            umask = os.umask(0)
            os.umask(umask)
            name.chmod(0o666 & ~umask)
            os.replace(name, path)
        finally:
            name.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str]) -> None:
    """Raise before the work what :func:`atomic_path` would after it; the folder is made."""
    make_folder(Path(path).parent)
    with writing(path):
        name = _temporary(Path(path))
        try:
            name.write_bytes(bytes(1 << 16))  # a full disk lets empty files be made
        finally:
            name.unlink()


def _temporary(path: Path) -> Path:
    """A new file beside ``path``, with its suffix, because writers choose a format by it."""
    folder = path.resolve().parent
    if not folder.is_dir():
        allowed = "a path in an existing folder"
        raise ValueError(f"the folder {str(folder)!r} does not exist; allowed: {allowed}")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; allowed: the name of a file")
    handle, name = tempfile.mkstemp(dir=folder, prefix=_TEMPORARY, suffix=path.suffix)
    os.close(handle)
    return Path(name)


def clear_temporaries(*folders: Path) -> None:
    """Remove what killed processes left of this module's writing, where none is writing now."""
    for path in (path for folder in folders for path in folder.glob(f"{_TEMPORARY}*")):
        if re.fullmatch(r"[a-z0-9_]{8}(\..*)?", path.name.removeprefix(_TEMPORARY)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# -------------------------------------------------------------------- whole folders


@contextmanager
def replaced_folder(
    out: str | os.PathLike[str],
    parts: Iterable[str] = (),
    *,
    force: bool | None = None,
    show: Callable[[str], None] = print,
) -> Iterator[Path]:
    """A temporary folder to fill, whose content goes to ``out`` when the block ends well.

    What was written is listed there with its checksums, and only what is as an earlier list has
    it is replaced or removed. Everything else stays, such as a ``.git``. A file that is in the way
    - below a name at the top that is written or was listed - is refused by name; with ``force`` it
    is named by ``show`` and deleted. ``parts`` are the names at the top that are known before the
    work. An error leaves ``out`` as it was. The folders above are made.

    Raises:
        ValueError: if ``out`` is a file, in use by another process, or holds what is in the way;
            ``force`` is among its remedies unless it is None.
        OSError: as :func:`writing` has it.
    """
    out, told = Path(out).resolve(), set()

    def going(names: Iterable[str]) -> list[str]:
        """Entries of ``out`` that go; what is not ours among them is refused, or told of."""
        recorded = _recorded(out)
        # Some file systems do not tell capitals from small letters.
        tops = {name.casefold() for name in (*names, *(name.split("/")[0] for name in recorded))}
        found = [name for name in sorted(os.listdir(out)) if name.casefold() in tops]
        theirs = [name for name in _others(out, found, recorded) if name not in told]
        told.update(theirs)
        if theirs and not force:
            more = f" and {len(theirs) - 9} more" if len(theirs) > 9 else ""
            raise ValueError(
                f"{str(out)!r} holds what slam_edu did not write, or not like this: "
                f"{', '.join(theirs[:9])}{more}; allowed: another folder, or this one without "
                f"them{'' if force is None else ' (--force deletes them)'}"
            )
        if theirs:
            show(f"--force deletes from {str(out)!r}: {', '.join(theirs)}")
        return found

    made = not out.exists()
    make_folder(out)
    try:
        with writing(out), locked(out):
            clear_temporaries(out)
            going([CHECKSUMS, *parts])
            with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=out) as work:
                new, old = Path(work, "new"), Path(work, "old")
                new.mkdir()
                old.mkdir()
                yield new
                write_checksums(new)
                for path in new.rglob("*"):  # safetensors makes files that only their owner reads
                    path.chmod(0o755 if path.is_dir() else 0o644)
                names = os.listdir(new)
                # Killed in between, this leaves a folder that lacks files, and no mixture: old
                # ones go before new ones come, and a list is there as long as one of its files.
                moves = [(out / n, old / n) for n in sorted(going(names), key=CHECKSUMS.__eq__)]
                moves += [(new / n, out / n) for n in sorted(names, key=CHECKSUMS.__ne__)]
                with ExitStack() as undo:
                    for source, target in moves:
                        source.rename(target)
                        undo.callback(target.rename, source)
                    undo.pop_all()
    finally:
        if made:
            with suppress(OSError):  # it has something in it
                out.rmdir()


def _recorded(folder: Path) -> dict[str, str]:
    """The files that were written to a folder and their list, with checksums; none without one."""
    path = folder / CHECKSUMS
    try:
        return {**json.loads(path.read_text("utf-8"))[_MARK], CHECKSUMS: sha256_of(path)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _others(folder: Path, tops: Iterable[str], recorded: Mapping[str, str]) -> Iterator[str]:
    """Files at or below some names in the folder that are not as they were recorded."""
    for path in (path for top in tops for path in (folder / top, *(folder / top).rglob("*"))):
        name, link = path.relative_to(folder).as_posix(), path.is_symlink()
        if link or not path.is_dir():
            if link or name not in recorded or recorded[name] != sha256_of(path):
                yield name


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file."""
    from safetensors.torch import save_file

    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(plain, path, dict(metadata or {}))


def append_row(path: Path, columns: Sequence[str], row: Sequence[float]) -> None:
    """Add a row: the number of updates, then a value a column; the first makes the file."""
    new = not path.exists()
    with writing(path), path.open("a", newline="", encoding="utf-8") as file:
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
    """A short hash of a network's weights: names, shapes and values.

    The values are rounded to half precision, so that a copy in float16 is the same network.
    """
    import torch

    def look(item: tuple[str, Tensor]) -> bytes:
        name, value = item
        half = value.detach().reshape(-1).to("cpu", torch.float16).contiguous()
        digest = hashlib.sha256(f"{name} {tuple(value.shape)}".encode())
        digest.update(half.numpy())
        return digest.digest()

    with ThreadPoolExecutor() as pool:
        parts = pool.map(look, sorted(module.state_dict().items()))
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


# -------------------------------------------------------------------- folders with checksums


def write_checksums(folder: Path) -> None:
    """Write the list of a folder: the SHA-256 of each of its files."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}
    text = json.dumps({_MARK: files}, indent=2) + "\n"
    (folder / CHECKSUMS).write_text(text, "utf-8")


def check_files(folder: Path) -> None:
    """Compare the folder with its list of checksums; the README may be another.

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
        wanted = json.loads(path.read_text("utf-8"))[_MARK].items()
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); {mend}") from error
    for name, digest in wanted:
        if name == "README.md":
            continue
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{str(file)!r} is missing; {mend}")
        if sha256_of(file) != digest:
            raise ValueError(
                f"{str(file)!r}, {file.stat().st_size:,} bytes long, is not the file that was "
                f"shipped: its checksum differs; {mend}"
            )

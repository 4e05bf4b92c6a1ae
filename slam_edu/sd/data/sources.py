"""Where images and their captions come from: the digits, a folder, the ``datasets`` library.

A source gives entries in an order that never changes, each either an :class:`Item`, not yet
decoded, or a :class:`~slam_edu.sd.data.counts.Rejection`; shards of webdataset are in
:mod:`slam_edu.sd.data.shards`. A *position* in a source, a value that JSON can hold, says how much
of it was read, so that reading can go on there in another process.
"""

from __future__ import annotations

import abc
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.counts import RejectedError, Rejection
from slam_edu.sd.data.images import SUFFIXES, Picture

if TYPE_CHECKING:
    from datasets import Dataset

METADATA = "metadata.jsonl"
Position = Any
"""How much of a source was read: an integer, or a list of two of them."""


@dataclass(frozen=True)
class Item:
    """An image that was not read yet, and its caption.

    Attributes:
        name: for messages.
        caption: text on one line; empty if that is allowed.
        picture: the image.
    """

    name: str
    caption: str
    picture: Picture


Entry = Item | Rejection


class Source(abc.ABC):
    """Entries in a fixed order, read from any position on.

    Attributes:
        start: the position before the first entry.
    """

    start: Position = 0

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells this source's content from another's; cheap, and without a network."""

    @abc.abstractmethod
    def items(self, position: Position) -> Iterator[tuple[Position, Entry]]:
        """The entries from a position on, each with the position after it."""

    def total(self) -> int | None:
        """The number of entries, where it is known."""
        return None


class MapSource(Source):
    """A source whose entries can be read in any order."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of entries."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Entry:
        """One entry."""

    def items(self, position: Position) -> Iterator[tuple[Position, Entry]]:
        """The entries from a position on, each with the position after it."""
        for index in range(position, len(self)):
            yield index + 1, self[index]

    def total(self) -> int | None:
        """The number of entries."""
        return len(self)


def open_source(config: SDConfig) -> Source:
    """The source that a configuration names.

    Args:
        config: its section data; ``data`` is one of those that have images.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is empty, or cannot be what the configuration says.
        ModuleNotFoundError: if a library that it needs is not installed.
    """
    options = {"caption_column": config.caption_column, "empty_captions": config.empty_captions}
    if config.data == "digits":
        return DigitsSource()
    if config.data == "folder":
        return FolderSource(config.data_path, **options)
    if config.data == "webdataset":
        from slam_edu.sd.data.shards import ShardSource

        return ShardSource(config.data_path, **options)
    if config.data == "datasets":
        return DatasetsSource(
            config.data_path, revision=config.data_revision, image_column=config.image_column,
            **options,
        )  # fmt: skip
    raise ValueError(
        f"data is {config.data!r}, which has no images; allowed here: 'digits', 'folder', "
        f"'webdataset', 'datasets'"
    )


def check_caption(caption: object, empty_captions: str, missing: str = "") -> str:
    """A caption on one line.

    Args:
        caption: text, or None if there is none.
        empty_captions: ``"reject"`` or ``"keep"``.
        missing: what to say of a caption that is not there.

    Raises:
        RejectedError: for no caption, one that is no text, or one that is empty and rejected.
    """
    if caption is None:
        raise RejectedError("no caption", missing)
    if not isinstance(caption, str):
        raise RejectedError("a caption that is no text", f"{type(caption).__name__}")
    caption = " ".join(caption.split())
    if not caption and empty_captions == "reject":
        raise RejectedError("an empty caption", "empty_captions='keep' would keep it")
    return caption


# -------------------------------------------------------------------- the digits


class DigitsSource(MapSource):
    """The digits to train on, each coloured and captioned once."""

    #: So many are made at a time where they are read in order.
    BLOCK = 256

    def __init__(self) -> None:
        from slam_edu.digits.data import CaptionedDigits

        self.digits = CaptionedDigits("train")

    def identity(self) -> dict[str, Any]:
        """What tells this source's content from another's."""
        return {"seed": 0}

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> Entry:
        image, caption = self.digits[index]
        return Item(f"digit {index}", caption, image)

    def items(self, position: Position) -> Iterator[tuple[Position, Entry]]:
        """The entries from a position on, each with the position after it."""
        for first in range(position, len(self), self.BLOCK):
            indices = range(first, min(first + self.BLOCK, len(self)))
            batch = self.digits.batch(indices)
            for i, image, caption in zip(indices, batch.images, batch.captions, strict=True):
                yield i + 1, Item(f"digit {i}", caption, image)


# -------------------------------------------------------------------- a folder


class FolderSource(MapSource):
    """Images in a folder and the folders in it.

    Captions are in ``metadata.jsonl``, one JSON object a line with ``file_name`` and the caption,
    or in a ``.txt`` beside an image. The order is that of the metadata's lines, then the names of
    images that it does not list. Names that begin with a dot are left out.

    Args:
        folder: with the images.
        caption_column: the caption's name in the metadata.
        empty_captions: ``"reject"`` or ``"keep"``.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, caption_column: str = "text",
        empty_captions: str = "reject",
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        self.caption_column, self.empty_captions = caption_column, empty_captions
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(self.folder)!r}; allowed: a folder of images with "
                f"captions in {METADATA} or in a .txt beside each"
            )
        files = dict(list_files(self.folder, (*SUFFIXES, ".txt", METADATA)))
        self._listing = files
        self._entries: list[tuple[str, dict | Rejection | None]] = []
        if METADATA in files:
            self._entries += self._metadata()
        listed = {name for name, _ in self._entries}
        images = sorted(name for name in files if name.lower().endswith(SUFFIXES))
        if not images:
            raise ValueError(
                f"the folder {str(self.folder)!r} holds no image; allowed: {', '.join(SUFFIXES)} "
                f"files, with captions in {METADATA} or in a .txt beside each"
            )
        self._entries += [(name, None) for name in images if name not in listed]

    def identity(self) -> dict[str, Any]:
        """What tells this source's content from another's: names and sizes of its files."""
        return {"files": hash_of(sorted(self._listing.items()))}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Entry:
        name, row = self._entries[index]
        if isinstance(row, Rejection):
            return row
        try:
            return Item(name, self._caption(name, row), self.folder / name)
        except RejectedError as error:
            return Rejection(name, error.reason, error.detail)

    def _metadata(self) -> Iterator[tuple[str, dict | Rejection]]:
        with (self.folder / METADATA).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{METADATA}:{number}"
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                except ValueError as error:
                    yield where, Rejection(where, "a metadata line that is not JSON", str(error))
                    continue
                name = row.get("file_name") if isinstance(row, dict) else None
                if not isinstance(name, str) or not name:
                    yield where, Rejection(where, "a metadata line without file_name")
                    continue
                path = PurePosixPath(name.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or Path(name).drive:
                    yield name, Rejection(name, "a file outside of the folder")
                    continue
                yield path.as_posix(), row

    def _caption(self, name: str, row: dict | None) -> str:
        if row and self.caption_column in row:
            return check_caption(row[self.caption_column], self.empty_captions, "null")
        beside = (self.folder / name).with_suffix(".txt")
        if not beside.is_file():
            missing = f"no {beside.name} beside it"
            if row:
                missing += f"; no {self.caption_column!r} in its line, which has {', '.join(row)}"
            raise RejectedError("no caption", missing)
        try:
            text = beside.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RejectedError("a caption that is not UTF-8", str(error)) from error
        except OSError as error:
            raise RejectedError("a file that cannot be read", str(error)) from error
        return check_caption(text, self.empty_captions)


def list_files(folder: Path, ends: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Name below the folder, with forward slashes, and size in bytes of each file.

    Args:
        folder: to look in, and in the folders in it.
        ends: of the names that count, in lower case; names that begin with a dot do not.
    """
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(ends) and not name.startswith("."):
                path = Path(where, name)
                yield path.relative_to(folder).as_posix(), path.stat().st_size


def hash_of(value: object) -> str:
    """A short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


# -------------------------------------------------------------------- the datasets library


class DatasetsSource(MapSource):
    """A data set that the ``datasets`` library can load; it is loaded when it is first read.

    Args:
        path: an id on the Hugging Face hub, a folder, or a parquet file. A folder may also be one
            that ``save_to_disk`` wrote.
        revision: the commit of an id, 40 hexadecimal digits.
        image_column: the images' name.
        caption_column: the captions' name.
        empty_captions: ``"reject"`` or ``"keep"``.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for an id without a commit.
    """

    def __init__(
        self, path: str, *, revision: str | None = None, image_column: str = "image",
        caption_column: str = "text", empty_captions: str = "reject",
    ) -> None:  # fmt: skip
        self.path, self.revision = path, revision
        self.image_column, self.caption_column = image_column, caption_column
        self.empty_captions = empty_captions
        self.local = Path(path).exists()
        if self.local:
            return
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) or path.endswith(".parquet"):
            raise FileNotFoundError(
                f"{path!r} is not there; allowed: a folder, a .parquet file, or an id on the hub "
                f"such as 'owner/name'"
            )
        if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
            raise ValueError(
                f"data_revision is {revision!r}, and there is no file or folder {path!r}; allowed "
                f"for an id on the hub: its commit, 40 hexadecimal digits, so that the data stay "
                f"the same"
            )

    def identity(self) -> dict[str, Any]:
        """What tells this source's content from another's."""
        if not self.local:
            return {"id": self.path, "revision": self.revision}
        path = Path(self.path)
        files = [(path.name, path.stat().st_size)] if path.is_file() else list_files(path, ("",))
        return {"files": hash_of(sorted(files))}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Entry:
        row = self.rows[index]
        name, image = f"row {index}", row[self.image_column]
        try:
            picture = self._picture(image)
            caption = check_caption(row[self.caption_column], self.empty_captions)
        except RejectedError as error:
            return Rejection(name, error.reason, error.detail)
        return Item(name, caption, picture)

    @staticmethod
    def _picture(image: dict | None) -> Picture:
        if image and image.get("bytes"):
            return image["bytes"]
        if image and image.get("path"):
            return Path(image["path"])
        raise RejectedError("no image")

    @cached_property
    def rows(self) -> Dataset:
        """The data set, images not decoded."""
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"data='datasets' needs {error.name}; install it with `pip install "
                f"slam_edu[data]`",
                name=error.name,
            ) from error
        rows = self._one_split(self._load(datasets))
        for column in (self.image_column, self.caption_column):
            if column not in rows.column_names:
                raise ValueError(
                    f"{self.path!r} has no column {column!r}; allowed as image_column and "
                    f"caption_column: {', '.join(map(repr, rows.column_names))}"
                )
        kind = rows.features[self.caption_column]
        if getattr(kind, "dtype", None) not in ("string", "large_string"):
            raise ValueError(
                f"the column {self.caption_column!r} of {self.path!r} holds {kind}; allowed as "
                f"caption_column: one of text"
            )
        rows = rows.select_columns([self.image_column, self.caption_column])
        kind = rows.features[self.image_column]
        try:
            rows = rows.cast_column(self.image_column, datasets.Image(decode=False))
        except Exception as error:  # what Arrow raises depends on the column's type
            raise ValueError(
                f"the column {self.image_column!r} of {self.path!r} holds {kind}; allowed as "
                f"image_column: one of images"
            ) from error
        if not len(rows):
            raise ValueError(f"{self.path!r} is empty; allowed: a data set with rows")
        return rows

    def _one_split(self, loaded: Any) -> Dataset:
        """The split 'train', or the only one."""
        if not isinstance(loaded, dict):
            return loaded
        if "train" in loaded:
            return loaded["train"]
        if len(loaded) == 1:
            return next(iter(loaded.values()))
        raise ValueError(
            f"{self.path!r} has the splits {', '.join(map(repr, loaded))}; allowed: one split, or "
            f"one named 'train'"
        )

    def _load(self, datasets: Any) -> Any:
        path = Path(self.path)
        if self.local:
            if path.is_file():
                return self._loaded(datasets.load_dataset, "parquet", data_files=str(path))
            if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                return self._loaded(datasets.load_from_disk, str(path))
            return self._loaded(datasets.load_dataset, str(path))
        try:
            return self._loaded(datasets.load_dataset, self.path, revision=self.revision)
        except ConnectionError as error:
            raise ConnectionError(
                f"the data set {self.path!r} cannot be fetched ({error}). Connect to the network; "
                f"or fetch it elsewhere with `hf download {self.path} --repo-type dataset "
                f"--revision {self.revision} --local-dir FOLDER` and set data_path=FOLDER"
            ) from error

    def _loaded(self, load: Callable[..., Any], *arguments: str, **options: str) -> Any:
        try:
            return load(*arguments, **options)
        except ConnectionError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.path!r} cannot be loaded ({error}); allowed: a folder or file that the "
                f"datasets library reads, or an id on the hub that you may read (`hf auth login` "
                f"for a gated one)"
            ) from error
        except Exception as error:  # the library's own kinds, and its readers'
            raise ValueError(
                f"{self.path!r} cannot be loaded by the datasets library: {error}"
            ) from error


def take(items: Iterator[tuple[Position, Entry]], count: int) -> list[tuple[Position, Entry]]:
    """The next entries, fewer at the end."""
    return list(islice(items, count))

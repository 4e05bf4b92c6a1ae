"""Images and captions: of a shipped model, a folder, or the ``datasets`` library.

Folders are read here and not by ``datasets``: its image folders know no ``.txt`` captions, leave
out images without metadata, and fail as a whole for one line that is wrong.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch

from slam_edu.images import SUFFIXES, RejectedError, list_files
from slam_edu.io import data_path
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.entries import (
    Entry,
    Item,
    attempt,
    by_count,
    check_caption,
    content_hash,
    decoded,
)
from slam_edu.sd.data.shards import ShardSource
from slam_edu.shipped import ShippedModel, shipped

if TYPE_CHECKING:
    from datasets import Dataset

METADATA = "metadata.jsonl"


class MapSource:
    """A source with ``len(source)``, whose entries ``source[indices]`` come in any order.

    ``unused`` counts what lies among the data and is no entry, by reason.
    """

    start = 0
    unused: Mapping[str, int] = {}

    def read(self, position: int, most: int) -> tuple[list[Entry], int]:
        """The next entries from a position on, and the position after them."""
        indices = range(position, min(position + most, len(self)))
        return (self[indices] if indices else []), indices.stop


class ShippedSource(MapSource):
    """The data of a model that comes with the course."""

    def __init__(self, name: str, model: ShippedModel) -> None:
        self.name, self.data = name, model.data()

    def identity(self, _kept: Path) -> dict[str, Any]:
        """The data's own."""
        return self.data.identity

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: Sequence[int]) -> list[Entry]:
        found = zip(indices, self.data.__getitems__(indices), strict=True)
        return [Item(f"{self.name} {i}", caption, image) for i, (image, caption) in found]


# -------------------------------------------------------------------- a folder


class FolderSource(MapSource):
    """Images in a folder and the folders in it; names that begin with a dot are left out.

    Captions are in a ``metadata.jsonl``, of any folder, one JSON object a line with the caption
    and a ``file_name`` from there on; or in a ``.txt`` beside an image. The order is that of the
    metadata's lines, then the names of images that they do not list.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image.
    """

    def __init__(self, config: SDConfig) -> None:
        self.config, self.folder = config, Path(config.data_path)
        where = f"captions in {METADATA} or in a .txt beside each"
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {config.data_path!r}; allowed: one of images with {where}"
            )
        names, self.unused = list_files(self.folder)
        images, metadata, others, self._texts = [], [], [], {}
        for name in names:
            path = PurePosixPath(name)
            if path.name.lower() == METADATA:
                metadata.append(name)
            elif name.lower().endswith(SUFFIXES):
                images.append(name)
            elif path.suffix.lower() == ".txt" and _stem(name) not in self._texts:
                self._texts[_stem(name)] = name
            else:
                others.append(name)
        self._rows = [row for name in metadata for row in self._lines(name)]
        listed = {name for name, _ in self._rows}
        self._rows += [(name, {}) for name in images if name not in listed]
        kinds = (PurePosixPath(name).suffix.lower() for name in others if name not in listed)
        self.unused.update(kind or "a name without an end" for kind in kinds)
        if not self._rows:
            there = f", but {by_count(self.unused)}" if self.unused else ""
            raise ValueError(
                f"the folder {config.data_path!r} holds no image{there}; allowed: "
                f"{', '.join(SUFFIXES)} files, with {where}"
            )
        column = config.caption_column
        plain = [(name, row) for name, row in self._rows if isinstance(row, dict)]
        taken = {_stem(name) for name, row in plain if column not in row}
        for stem in self._texts.keys() - taken:
            self.unused["a .txt that no image takes"] += 1
            del self._texts[stem]
        self._used = sorted({*(name for name, _ in plain), *self._texts.values(), *metadata})

    def identity(self, kept: Path) -> dict[str, Any]:
        """Names and contents of its files."""
        files = content_hash({name: self.folder / name for name in self._used}, kept)
        return {"files": files, "caption_column": self.config.caption_column}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: Sequence[int]) -> list[Entry]:
        rows = (self._rows[index] for index in indices)
        return [
            row if isinstance(row, RejectedError) else attempt(self._item, name, row)
            for name, row in rows
        ]

    def _item(self, name: str, row: dict[str, Any]) -> Item:
        return Item(name, self._caption(name, row), self.folder / name)

    def _lines(self, metadata: str) -> Iterator[tuple[str, dict[str, Any] | RejectedError]]:
        try:
            lines = (self.folder / metadata).read_bytes().split(b"\n")
        except OSError as error:
            yield metadata, RejectedError("a file that cannot be read", str(error), metadata)
            return
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
                path = PurePosixPath(row["file_name"].replace("\\", "/"))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                name, reason = f"{metadata}:{number}", "a metadata line without JSON and file_name"
                yield name, RejectedError(reason, repr(error), name)
                continue
            name = (PurePosixPath(metadata).parent / path).as_posix()
            if path.is_absolute() or ".." in path.parts or Path(path).drive:
                row = RejectedError("a file outside of the folder", name=name)
            yield name, row

    def _caption(self, name: str, row: dict[str, Any]) -> str:
        column, empty = self.config.caption_column, self.config.empty_captions
        if column in row:
            return check_caption(row[column], empty, "null")
        beside = self._texts.get(_stem(name))
        if beside is None:
            missing = f"no {PurePosixPath(_stem(name)).name}.txt beside it"
            if row:
                missing += f"; no {column!r} in its line, which has {', '.join(row)}"
            raise RejectedError("no caption", missing)
        try:
            return check_caption(decoded((self.folder / beside).read_bytes()), empty)
        except OSError as error:
            raise RejectedError("a file that cannot be read", str(error)) from error


def _stem(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix)


# -------------------------------------------------------------------- the datasets library


class DatasetsSource(MapSource):
    """A data set that the ``datasets`` library can load; it is loaded when it is first read.

    ``data_path`` is an id on the Hugging Face hub, with its commit ``data_revision``, a parquet
    file, or a folder, also of ``save_to_disk``.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for an id without a commit.
    """

    def __init__(self, config: SDConfig) -> None:
        path, revision = config.data_path, config.data_revision
        self.path, self.revision, self.empty_captions = path, revision, config.empty_captions
        self.columns = {name: getattr(config, name) for name in ("image_column", "caption_column")}
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

    def identity(self, kept: Path) -> dict[str, Any]:
        """The commit, or names and contents of the files."""
        if not self.local:
            return {"id": self.path, "revision": self.revision, **self.columns}
        path = Path(self.path)
        names = [path.name] if path.is_file() else list_files(path)[0]
        folder = path.parent if path.is_file() else path
        files = content_hash({name: folder / name for name in names}, kept)
        return {"files": files, **self.columns}

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, indices: Sequence[int]) -> list[Entry]:
        rows = zip(indices, self._dataset.__getitems__(list(indices)), strict=True)
        return [
            attempt(self._item, f"row {i}", *map(row.get, self.columns.values()))
            for i, row in rows
        ]

    def _item(self, name: str, image: dict[str, Any] | None, caption: object) -> Item:
        picture = image and (image.get("bytes") or (image.get("path") and Path(image["path"])))
        if not picture:
            raise RejectedError("no image")
        return Item(name, check_caption(caption, self.empty_captions), picture)

    @cached_property
    def _dataset(self) -> Dataset:
        """The data set's two columns, images not decoded."""
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"data='datasets' needs {error.name}; install it with `pip install "
                f"slam_edu[data]`",
                name=error.name,
            ) from error
        try:
            rows = self._load(datasets)
            if isinstance(rows, dict):
                if "train" not in rows and len(rows) != 1:
                    raise ValueError(f"the splits are {[*rows]}; allowed: one, or one 'train'")
                splits, rows = rows, rows.get("train", next(iter(rows.values())))
                others = {
                    f"rows of split {n!r}": len(s) for n, s in splits.items() if s is not rows
                }
                self.unused = Counter(others)
            image, caption = self.columns.values()
            return rows.select_columns([image, caption]).cast_column(
                image, datasets.Image(decode=False)
            )
        except ConnectionError as error:
            raise ConnectionError(
                f"the data set {self.path!r} cannot be fetched ({error}). Connect to the network; "
                f"or fetch it elsewhere with `hf download {self.path} --repo-type dataset "
                f"--revision {self.revision} --local-dir FOLDER` and set data_path=FOLDER"
            ) from error
        except Exception as error:  # the library's own kinds, its readers' and Arrow's
            raise ValueError(
                f"{self.path!r} cannot be loaded by the datasets library ({error}); allowed: "
                f"a folder or file that it reads, or an id on the hub that you may read (`hf auth "
                f"login` for a gated one), with images and text in its columns {self.columns}"
            ) from error

    def _load(self, datasets: Any) -> Any:
        path = Path(self.path)
        if path.is_file():
            return datasets.load_dataset("parquet", data_files=self.path)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(self.path)
        return datasets.load_dataset(self.path, revision=None if self.local else self.revision)


KINDS = {"folder": FolderSource, "webdataset": ShardSource, "datasets": DatasetsSource}


def check_inputs(config: SDConfig) -> None:
    """Look at the files that a configuration names, before anything is loaded.

    Errors are those of :func:`open_source` and :func:`read_prompts`.
    """
    if config.data in KINDS:
        open_source(config)
    elif config.data == "prompts" and config.data_path is not None:
        read_prompts(config.data_path)
    if config.sample_prompts is not None:
        read_prompts(config.sample_prompts)


def open_source(config: SDConfig) -> MapSource | ShardSource:
    """The source that ``data`` and ``data_path`` name.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is empty, or has no images.
    """
    if config.data in KINDS:
        return KINDS[config.data](config)
    model = shipped(config.data)
    if model is None:
        raise ValueError(
            f"data is {config.data!r}, which has no images; allowed here: 'digits', 'folder', "
            f"'webdataset', 'datasets'"
        )
    return ShippedSource(config.data, model)


# -------------------------------------------------------------------- prompts


def read_prompts(path: str | os.PathLike[str] | None = None) -> list[str]:
    """One prompt a line, in order; empty lines and those that begin with ``#`` are left out.

    Without a path, of a UTF-8 text, these are the shipped list of everyday things, with which
    students are evaluated; none of them is among :func:`grammar_prompts`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no text or holds no prompt.
    """
    path = Path(data_path("prompts/everyday.txt") if path is None else path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is not a file; allowed: a text file with one prompt a line"
        )
    try:
        lines = [" ".join(line.split()) for line in path.read_text("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is no UTF-8 text ({error}); allowed: one prompt a line"
        ) from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{str(path)!r} holds no prompt; allowed: one or more, one a line")
    return prompts


def grammar_prompts() -> list[str]:
    """About 9,800 prompts for training, in a mixed order that is always the same.

    Each subject of ``prompts/grammar.txt`` with each circumstance of its kind, once plain and once
    with a look.
    """
    text = re.sub("^#.*$", "", data_path("prompts/grammar.txt").read_text("utf-8"), flags=re.M)
    parts = {
        name: [" ".join(item.split()) for item in items.split(";")]
        for name, items in re.findall(r"^\[(.+)\]$([^\[]+)", text, re.M)
    }
    looks, pairs = parts.pop("look"), []
    for name, items in parts.items():
        kind, _, part = name.partition(": ")
        if part == "subject":
            pairs += itertools.product(items, parts[f"{kind}: circumstance"])
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pairs), generator=generator).tolist()
    look = torch.randint(len(looks), (len(pairs),), generator=generator).tolist()
    return [
        " ".join(pairs[i]) + f", {looks[look[i]]}" * ((place + turn) % 2)
        for turn in range(2) for place, i in enumerate(order)
    ]  # fmt: skip


def default_prompts(teacher: str) -> list[str]:
    """What is drawn from a teacher where no prompts are named: a shipped one has its own."""
    model = shipped(teacher)
    return grammar_prompts() if model is None else model.prompts()

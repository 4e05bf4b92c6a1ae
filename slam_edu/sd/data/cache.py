"""Latents and text conditions, computed once and kept in a folder.

A ``shard-00000.safetensors`` has, for its n samples, ``latents`` (n, C, h, w) and ``rows`` (n,),
the number of each sample's caption among all distinct captions in the order in which they first
come; for Stable Diffusion XL also ``time_ids`` (n, 6). Of the captions that come for the first
time in it, it has ``states`` (m, L, D) and, for XL, ``pooled`` (m, P). Its metadata hold the
captions, how much of the source was read and what was rejected, so that a cache that was
interrupted goes on after its last shard. ``empty.safetensors`` has the empty condition, and
``index.json``, with the files' checksums, is written last: where it is, the cache is finished.
``data.json`` has the checksums of the data's own files.

All is a function of teacher, data and settings: a cache that was interrupted and finished later
holds the same bytes as one made at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slam_edu.images import RejectedError
from slam_edu.io import (
    atomic_path,
    clear_temporaries,
    locked,
    make_folder,
    save_tensors,
    sha256_of,
)
from slam_edu.sd.components import TextCondition, is_xl
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.entries import Position, SampleCounts
from slam_edu.sd.data.latents import Encoder, open_latents

if TYPE_CHECKING:
    from slam_edu.sd.data.latents import LatentSource, Pipeline

INDEX, EMPTY, DATA = "index.json", "empty.safetensors", "data.json"
#: A cache up to this size, in bytes, is compared with its checksums when it is opened.
SMALL = 256 * 2**20
_AGAIN = "run `slam-edu cache` again with the same settings"
Show = Callable[[str], None]


def shard_name(number: int) -> str:
    """The file of shard ``number``, from 0."""
    return f"shard-{number:05}.safetensors"


@dataclass(frozen=True)
class ShardHeader:
    """A shard's metadata: what the cache depends on, new captions, position after it, counts."""

    settings: dict[str, Any]
    captions: list[str]
    position: Position
    counts: SampleCounts


# -------------------------------------------------------------------- making one


def make_cache(
    config: SDConfig, pipeline: Pipeline, folder: str | os.PathLike[str], *, show: Show = print
) -> LatentCache:
    """Encode the images and captions of a configuration, or draw them from the teacher.

    Interrupted at any time, the same call goes on after the last finished shard. Where the cache
    is finished nothing is done; a shard that is missing or damaged is made again. The networks are
    used where they are, the autoencoder in float32; ``show`` receives lines of text.

    Raises:
        ValueError: for a cache of other data, another teacher or other settings in the folder, or
            more rejected samples than ``max_rejected`` allows.
        OSError: if the disk is full. Finished shards stay.
    """
    folder = make_folder(folder)
    with locked(folder):
        source = open_latents(config, pipeline)
        names = ("data", "resolution", "max_samples", "empty_captions", "cache_dtype")
        settings = {name: getattr(config, name) for name in names} | source.identity(folder / DATA)
        settings = {f"data: {name}": value for name, value in settings.items()}
        settings |= source.encoder.identity()
        if (folder / INDEX).is_file():
            index = _read_index(folder)
            _require_same(index["settings"], settings, folder)
            damaged = _damaged(folder, index["files"])
            if not damaged:
                return LatentCache(folder)
            for name in damaged:
                show(f"cache: {name} is missing or damaged and is made again")
                (folder / name).unlink(missing_ok=True)
            (folder / INDEX).unlink()
        what = f"{source.total:,} samples" if source.total else "samples"
        verb = "drawn from the teacher" if config.data == "prompts" else "encoded"
        show(f"cache: {what} of data={config.data} are {verb}, once, to {str(folder)!r}")
        clear_temporaries(folder)
        show(f"cache: {_make(folder, source, settings, show)}")
        cache = LatentCache(folder)
        show(f"cache: {cache.bytes / 2**20:,.0f} MiB in {str(folder)!r}")
    return cache


def _make(
    folder: Path, source: LatentSource, settings: dict[str, Any], show: Show
) -> SampleCounts:
    """Write the shards that are missing, in their order, and the index."""
    from tqdm import tqdm

    # rows: the number of each caption so far; there: shards that need not be made
    counts, rows, position, there = SampleCounts(), {}, source.start, 0
    counts.unused |= source.unused
    # In a terminal alone (disable=None): in a notebook it would stand there in red, as an error.
    look = {"unit": "sample", "leave": False, "mininterval": 0.5, "disable": None}
    with tqdm(desc="cache", total=source.total, **look) as bar:
        for number in itertools.count():
            path = folder / shard_name(number)
            header = _header(path, settings)
            if header is not None:
                there += 1
                bar.update(header.counts.accepted + header.counts.rejected)
            else:
                if there == number > 0:
                    done = f"{counts.accepted:,} samples in {number} finished shards"
                    show(f"cache: going on from {done}")
                header = _shard(path, source, settings, position, counts, rows, bar.update)
            counts += header.counts
            if not header.counts.accepted:
                break
            position = header.position
            for caption in header.captions:
                rows.setdefault(caption, len(rows))
    counts.check(source.encoder.config.max_rejected, final=True)
    with atomic_path(folder / EMPTY) as temporary:
        save_tensors(_tensors(source.encoder.empty()), temporary)
    paths = [folder / name for name in (*map(shard_name, range(number)), EMPTY)]
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in paths}
    index = {"settings": settings, "counts": dataclasses.asdict(counts), "files": files}
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", "utf-8")
    return counts


def _shard(
    path: Path, source: LatentSource, settings: dict[str, Any], position: Position,
    before: SampleCounts, rows: dict[str, int], advance: Callable[[int], Any],
) -> ShardHeader:  # fmt: skip
    """Write the next shard; no file if there is nothing more."""
    encoder, config = source.encoder, source.encoder.config
    room = source.shard
    if config.max_samples is not None:
        room = min(room, config.max_samples - before.accepted)
    samples, counts, found = [], SampleCounts(), [None]
    while len(samples) < room and found:
        found, position = source.read(position, room - len(samples))
        for one in found:
            if isinstance(one, RejectedError):
                counts.reject(one)
            else:
                samples.append(one)
        counts.accepted = len(samples)
        (before + counts).check(config.max_rejected)
        advance(len(found))
    known = len(rows)
    row_of = [rows.setdefault(sample.caption, len(rows)) for sample in samples]
    header = ShardHeader(settings, list(rows)[known:], position, counts)
    if not samples:
        return header
    dtype = getattr(torch, config.cache_dtype)
    tensors = {
        "latents": torch.stack([sample.picture for sample in samples]).to(dtype),
        "rows": torch.tensor(row_of),
    }
    if is_xl(encoder.pipeline):
        ids = [sample.time_ids for sample in samples]
        tensors["time_ids"] = torch.tensor(ids, dtype=torch.float32)
    if header.captions:
        tensors |= _tensors(encoder.condition(header.captions).to(dtype))
    try:
        with atomic_path(path) as temporary:
            text = json.dumps(dataclasses.asdict(header), sort_keys=True)
            save_tensors(tensors, temporary, {"header": text})
    except OSError as error:
        raise OSError(
            f"{error}. The finished shards of the cache stay: the same command goes on from there"
        ) from error
    return header


def _tensors(cond: TextCondition) -> dict[str, Tensor]:
    return {name: part.cpu() for name, part in vars(cond).items() if part is not None}


def _require_same(there: dict[str, Any], ours: dict[str, Any], folder: Path) -> None:
    names = sorted(n for n in there.keys() | ours.keys() if there.get(n) != ours.get(n))
    if names:
        odd = [f"{n} is {there.get(n)!r} there and {ours.get(n)!r} here" for n in names]
        raise ValueError(
            f"the folder {str(folder)!r} holds a cache of other things: {'; '.join(odd)}. "
            f"Allowed: the same settings, data and teacher; or another cache_folder; or delete "
            f"the folder"
        )


def _header(path: Path, settings: dict[str, Any]) -> ShardHeader | None:
    """That of a finished shard; None if it must be made."""
    from safetensors import SafetensorError

    try:
        about = json.loads(_map(path)[1]["header"])
        header = ShardHeader(**{**about, "counts": SampleCounts(**about["counts"])})
    except (SafetensorError, OSError):
        return None  # not there or cut short
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is no shard of a cache, or of an older version; allowed: another "
            f"cache_folder, or this one without it"
        ) from error
    _require_same(header.settings, settings, path.parent)
    return header


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        index["counts"] = SampleCounts(**index["counts"])
        return {name: index[name] for name in ("settings", "counts", "files")}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(folder / INDEX)!r} is no index of a cache, or damaged, or of an older version "
            f"({error!r}); allowed: another cache_folder, or this one without it: {_AGAIN}"
        ) from error


def _damaged(folder: Path, files: dict[str, Any]) -> list[str]:
    """Names of files that are missing, of another size or, if all are small, of other content."""
    small = sum(about["bytes"] for about in files.values()) <= SMALL

    def whole(path: Path, about: dict[str, Any]) -> bool:
        if not path.is_file() or path.stat().st_size != about["bytes"]:
            return False
        return not small or sha256_of(path) == about["sha256"]

    return [name for name, about in files.items() if not whole(folder / name, about)]


# -------------------------------------------------------------------- reading one


class LatentCache:
    """A finished cache, read a batch at a time; the files of a large one are mapped into memory.

    Attributes:
        latent_shape: (C, h, w) of one latent.
        counts: of the samples that were read for it.
        empty: the empty condition, one row, float32.
        bytes: the size of its files.

    Raises:
        FileNotFoundError: if there is no cache, or it is not finished.
        ValueError: if a file is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            begun = (self.folder / shard_name(0)).is_file()
            what = "is not finished" if begun else "is not there"
            raise FileNotFoundError(
                f"the cache in {str(self.folder)!r} {what}: it has no {INDEX}; run `slam-edu "
                f"cache` with the same settings{', which goes on with it' if begun else ''}"
            )
        index = _read_index(self.folder)
        self.settings, self.counts, files = index["settings"], index["counts"], index["files"]
        self.latent_shape = tuple(self.settings["teacher: latent_shape"])
        self.bytes = sum(about["bytes"] for about in files.values())
        if damaged := _damaged(self.folder, files):
            raise ValueError(
                f"in the cache {str(self.folder)!r} {', '.join(damaged)} is missing or damaged: "
                f"size or checksum differ; {_AGAIN}, which makes it anew"
            )
        empty, _ = _map(self.folder / EMPTY)
        self.empty = TextCondition(**empty).to("cpu", copy=True)
        shards = [_map(self.folder / name) for name in files if name != EMPTY]
        headers = [json.loads(about["header"]) for _, about in shards]
        self._distinct = [caption for header in headers for caption in header["captions"]]
        self._captions = torch.cat([tensors["rows"] for tensors, _ in shards])
        self._parts = {}
        for name in ("latents", *empty):
            rows = [tensors[name] for tensors, _ in shards if name in tensors]
            self._parts[name] = [torch.cat(rows)] if self.bytes <= SMALL else rows

    def __len__(self) -> int:
        return len(self._captions)

    @property
    def captions(self) -> list[str]:
        """The caption of each sample."""
        return [self._distinct[row] for row in self._captions.tolist()]

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, TextCondition]:
        """Latents (B, C, h, w) and conditions of samples; float32, on the CPU.

        Raises:
            ValueError: for an index that is not in the cache.
        """
        indices = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        outside = indices[(indices < 0) | (indices >= len(self))]
        if len(outside):
            raise ValueError(f"index is {int(outside[0])}; allowed: 0 to {len(self) - 1}")
        own, captions = indices.tolist(), self._captions[indices].tolist()
        found = {
            name: _rows(parts, own if name in ("latents", "time_ids") else captions)
            for name, parts in self._parts.items()
        }
        return found.pop("latents"), TextCondition(**found)

    def check(self, config: SDConfig, pipeline: Pipeline) -> None:
        """Raise ValueError unless the cache is of this teacher, at this resolution."""
        ours = Encoder(config, pipeline).identity()
        _require_same({name: self.settings.get(name) for name in ours}, ours, self.folder)


def _map(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, in memory only where they are touched, and its metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def _rows(parts: list[Tensor], rows: list[int]) -> Tensor:
    """Some rows, float32, of several tensors as if they were one."""
    ends = list(itertools.accumulate(map(len, parts)))
    out = torch.empty((len(rows), *parts[0].shape[1:]))
    for place, row in enumerate(rows):
        part = bisect_right(ends, row)
        out[place] = parts[part][row - ends[part]]  # counted from its end
    return out

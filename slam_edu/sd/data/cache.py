"""Latents and text conditions, computed once and kept in a folder.

The folder holds ``shard-00000.safetensors`` and so on, ``empty.safetensors`` and ``index.json``. A
shard has, for its samples, ``latents`` (n, C, h, w) and ``rows`` (n,), the number of each sample's
caption among all distinct captions in the order in which they first come; for Stable Diffusion XL
also ``time_ids`` (n, 6). Of the captions that come for the first time in it, it has ``states``
(m, L, D) and, for XL, ``pooled`` (m, P). Its metadata tell the captions, how much of the source
was read and what was rejected, so that a cache that was interrupted goes on after its last shard.
``index.json`` is written last: where it is, the cache is finished.

Everything is a function of the teacher, the data and the settings alone: a cache that was
interrupted and finished later holds the same bytes as one made at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slam_edu.io import atomic_path, save_tensors
from slam_edu.sd.components import TextCondition, is_xl
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.counts import Counts
from slam_edu.sd.data.encode import (
    empty_of,
    states_of,
    teacher_identity,
    vae_in_float32,
)
from slam_edu.sd.data.feeds import Feed, open_feed

if TYPE_CHECKING:
    from slam_edu.sd.data.encode import Pipeline

INDEX, EMPTY, LOCK = "index.json", "empty.safetensors", ".lock"
FORMAT = 1
#: A cache up to this size, in bytes, is read when it is opened, and compared with its checksums.
SMALL = 256 * 2**20


def shard_name(number: int) -> str:
    """The file of shard ``number``, from 0."""
    return f"shard-{number:05}.safetensors"


@dataclass(frozen=True)
class _About:
    """What a shard says of itself.

    Attributes:
        settings: what the cache depends on; the same in all shards.
        captions: the distinct captions that come for the first time in it.
        samples: how many it has.
        position: how much of the source is read after it.
        done: whether that is all.
        counts: of the samples that were read for it.
    """

    settings: dict[str, Any]
    captions: list[str]
    samples: int
    position: Any
    done: bool
    counts: Counts = field(default_factory=Counts)

    def metadata(self) -> dict[str, str]:
        """As a safetensors file holds it."""
        return {"about": json.dumps(dataclasses.asdict(self), sort_keys=True)}

    @classmethod
    def read(cls, metadata: dict[str, str] | None) -> _About:
        about = json.loads((metadata or {})["about"])
        return cls(**{**about, "counts": Counts(**about["counts"])})


# -------------------------------------------------------------------- making one


def make_cache(
    config: SDConfig,
    pipeline: Pipeline,
    folder: str | os.PathLike[str],
    *,
    show: Callable[[str], None] = print,
) -> LatentCache:
    """Encode the images and captions of a configuration, or draw them from the teacher.

    Interrupted at any time, the same call goes on after the last finished shard. Where the cache
    is finished nothing is done; a shard that is missing or damaged is made again.

    Args:
        config: its section data.
        pipeline: the teacher; its networks are used where they are, the autoencoder in float32.
        folder: of the cache; made if need be.
        show: told what is done, a line at a time.

    Returns:
        The finished cache.

    Raises:
        ValueError: for a cache of other data, another teacher or other settings in the folder, or
            more rejected samples than ``max_rejected`` allows.
        BlockingIOError: if another process is making a cache there.
        OSError: if the disk is full. Finished shards stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _remove_temporaries(folder)
        feed = open_feed(config, pipeline)
        settings = _settings(config, pipeline, feed)
        if _is_finished(folder, settings, show):
            return LatentCache(folder)
        what = f"{feed.total():,} samples" if feed.total() else "samples"
        verb = "drawn from the teacher" if config.data == "prompts" else "encoded"
        show(f"cache: {what} of data={config.data} are {verb}, once, to {str(folder)!r}")
        with vae_in_float32(pipeline):
            counts = _Maker(config, pipeline, folder, feed, settings, show).run()
        show(f"cache: {counts}")
        cache = LatentCache(folder)
        show(f"cache: {cache.bytes / 2**20:,.0f} MiB in {str(folder)!r}")
    return cache


class _Maker:
    """Makes the shards that are missing, in their order, and then the index."""

    def __init__(
        self, config: SDConfig, pipeline: Pipeline, folder: Path, feed: Feed,
        settings: dict[str, Any], show: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.config, self.pipeline, self.folder = config, pipeline, folder
        self.feed, self.settings, self.show = feed, settings, show
        self.counts = Counts()
        self.known: dict[str, int] = {}  # the number of each caption so far
        self.records: list[dict[str, Any]] = []
        self.kept: int | None = 0  # shards that were there at the start; None: said

    def run(self) -> Counts:
        from tqdm import tqdm

        position, done = self.feed.start, False
        # In a terminal alone (None): in a notebook it would stand there in red, as an error.
        bar = tqdm(
            desc="cache", unit="sample", total=self.feed.total(), leave=False, mininterval=0.5,
            disable=None,
        )  # fmt: skip
        with bar:
            while not done:
                path = self.folder / shard_name(len(self.records))
                about = _whole_shard(path, self.settings, self.folder)
                if about is None:
                    self._say_kept()
                    about = self._make(path, position, bar.update)
                else:
                    self.kept = None if self.kept is None else self.kept + 1
                    bar.update(about.counts.accepted + about.counts.rejected)
                first = len(self.known)
                self.known |= {c: first + i for i, c in enumerate(about.captions)}
                self.counts.add(about.counts)
                if about.samples:
                    self.records.append(_record(path, about))
                position, done = about.position, about.done
        self._say_kept()
        self.counts.check(self.config.max_rejected, final=True)
        self._write_index()
        return self.counts

    def _make(self, path: Path, position: Any, advance: Callable[[int], Any]) -> _About:
        """Write the shard that begins at a position; none if there is nothing more."""
        part = self.feed.part(position, self.counts, advance)
        fresh = [c for c in dict.fromkeys(part.captions) if c not in self.known]
        number = self.known | {c: len(self.known) + i for i, c in enumerate(fresh)}
        about = _About(
            self.settings, fresh, len(part.captions), part.position, part.done, part.counts
        )
        if not about.samples:
            return about
        dtype = getattr(torch, self.config.cache_dtype)
        tensors = {
            "latents": part.latents.to(dtype),
            "rows": torch.tensor([number[c] for c in part.captions]),
        }
        if is_xl(self.pipeline):
            tensors["time_ids"] = torch.tensor(part.time_ids, dtype=torch.float32)
        if fresh:
            tensors |= _named(states_of(fresh, self.pipeline).to("cpu", dtype))
        self._write(path, tensors, about.metadata())
        return about

    def _write_index(self) -> None:
        empty = empty_of(self.config, self.pipeline).to("cpu")
        self._write(self.folder / EMPTY, _named(empty), {})
        index = {
            "settings": self.settings,
            "counts": dataclasses.asdict(self.counts),
            "shards": self.records,
        }
        path = self.folder / INDEX
        with self._explained(path), atomic_path(path) as temporary:
            temporary.write_text(json.dumps(index, indent=1) + "\n", "utf-8")

    def _write(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        with self._explained(path), atomic_path(path) as temporary:
            save_tensors(tensors, temporary, metadata)

    @contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        """An error of writing says what is kept and what to do."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{str(path)!r} cannot be written: {error}. {len(self.records)} finished shards "
                f"of the cache stay; make room, and run the same command again: it goes on from "
                f"there"
            ) from error

    def _say_kept(self) -> None:
        if self.kept:
            self.show(
                f"cache: going on from {self.counts.accepted:,} samples in {self.kept} finished "
                f"shards"
            )
        self.kept = None


def _settings(config: SDConfig, pipeline: Pipeline, feed: Feed) -> dict[str, Any]:
    """All that the cache's content depends on, as JSON gives it back."""
    names = ("resolution", "max_samples", "empty_captions", "cache_dtype")
    data = {"data": config.data, **{name: getattr(config, name) for name in names}}
    settings = {
        "format": FORMAT,
        "teacher": teacher_identity(config, pipeline),
        "data": {**data, **feed.identity()},
    }
    return json.loads(json.dumps(settings))


def _same(settings: dict[str, Any], ours: dict[str, Any], folder: Path) -> None:
    """Require what is there to be what would be made."""
    if settings == ours:
        return
    odd = _differences(settings, ours)
    raise ValueError(
        f"the folder {str(folder)!r} holds a cache of other things: {'; '.join(odd)}. Allowed: "
        f"the same settings, data and teacher; or another cache_folder; or delete the folder"
    )


def _differences(there: dict[str, Any], ours: dict[str, Any], above: str = "") -> list[str]:
    odd = []
    for name in sorted(there.keys() | ours.keys()):
        a, b = there.get(name), ours.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            odd += _differences(a, b, f"{above}{name}: ")
        elif a != b:
            odd.append(f"{above}{name} is {a!r} there and {b!r} here")
    return odd


def _is_finished(
    folder: Path, settings: dict[str, Any], show: Callable[[str], None]
) -> bool:
    """Whether the folder holds all of the cache; the index of a damaged one is removed."""
    path = folder / INDEX
    if not path.is_file():
        return False
    index = _read_index(path)
    _same(index["settings"], settings, folder)
    records = index["shards"]
    small = sum(record["bytes"] for record in records) <= SMALL
    damaged = [r["file"] for r in records if not _as_recorded(folder / r["file"], r, small)]
    if not damaged and _readable(folder / EMPTY):
        return True
    for name in damaged:
        show(f"cache: {name} is missing or damaged and is made again")
        (folder / name).unlink(missing_ok=True)
    path.unlink()
    return False


def _whole_shard(path: Path, settings: dict[str, Any], folder: Path) -> _About | None:
    """What a finished shard says of itself; None if it must be made."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = _About.read(file.metadata())
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None  # cut short: it is made again
    _same(about.settings, settings, folder)
    return about


def _record(path: Path, about: _About) -> dict[str, Any]:
    return {
        "file": path.name, "samples": about.samples, "captions": len(about.captions),
        "bytes": path.stat().st_size, "crc32": _checksum(path),
    }  # fmt: skip


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def _as_recorded(path: Path, record: dict[str, Any], read: bool = True) -> bool:
    """Whether a shard has its size and, if it is read for it, its checksum."""
    try:
        if path.stat().st_size != record["bytes"]:
            return False
        return not read or _checksum(path) == record["crc32"]
    except OSError:
        return False


def _readable(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return "states" in file.keys()
    except (SafetensorError, OSError):
        return False


def _named(cond: TextCondition) -> dict[str, Tensor]:
    parts = {"states": cond.states, "pooled": cond.pooled, "time_ids": cond.time_ids}
    return {name: part.contiguous() for name, part in parts.items() if part is not None}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second process from making the same cache; a killed process leaves no lock."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"another process is making a cache in {str(folder)!r}; allowed: one at a time, or "
            f"another cache_folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remove_temporaries(folder: Path) -> None:
    """What atomic_path left behind when a process was killed."""
    for begin in ("shard", "index", "empty"):
        for path in folder.glob(f".{begin}-*"):
            path.unlink(missing_ok=True)


# -------------------------------------------------------------------- reading one


class LatentCache:
    """A finished cache, read a batch at a time.

    The files of a large one are mapped into memory: what is not asked for is not read, and no
    memory is taken but the system's own for files.

    Args:
        folder: that :func:`make_cache` filled.

    Attributes:
        folder: the same.
        latent_shape: (C, h, w) of one latent.
        counts: of the samples that were read for it.
        empty: the empty condition, one row, float32.
        bytes: the size of the shards.

    Raises:
        FileNotFoundError: if there is no cache, or it is not finished.
        ValueError: if a file is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            begun = (self.folder / shard_name(0)).is_file()
            what = "is not finished" if begun else "is not there"
            raise FileNotFoundError(
                f"the cache in {str(self.folder)!r} {what}: it has no {INDEX}; run `slam-edu "
                f"cache` with the same settings{', which goes on with it' if begun else ''}"
            )
        index = _read_index(path)
        self.settings = index["settings"]
        self.counts = Counts(**index["counts"])
        self.latent_shape = tuple(self.settings["teacher"]["latent_shape"])
        self.bytes = sum(record["bytes"] for record in index["shards"])
        self._records = index["shards"]
        self._open()
        if self.bytes <= SMALL:
            self.verify()

    def _open(self) -> None:
        self._distinct: list[str] = []
        parts: list[dict[str, Tensor]] = []
        for record in self._records:
            path = self.folder / record["file"]
            tensors, metadata = self._map(path)
            try:
                self._distinct += _About.read(metadata).captions
            except (KeyError, TypeError, ValueError) as error:
                raise _damaged(path, str(error)) from error
            parts.append(tensors)
        rows = _Rows if self.bytes > SMALL else _KeptRows
        self._latents = rows([part["latents"] for part in parts])
        self._captions = torch.cat([part["rows"] for part in parts])
        texts = [part for part in parts if "states" in part]
        self._states = rows([part["states"] for part in texts])
        self._pooled = self._time_ids = None
        if "pooled" in texts[0]:
            self._pooled = rows([part["pooled"] for part in texts])
            self._time_ids = rows([part["time_ids"] for part in parts])
        empty, _ = self._map(self.folder / EMPTY)
        self.empty = TextCondition(
            *(None if empty.get(n) is None else empty[n].clone() for n in
              ("states", "pooled", "time_ids"))
        )  # fmt: skip

    def _map(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of a file, in memory only where they are touched, and its metadata."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                return tensors, file.metadata()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{str(path)!r} is missing; {_AGAIN}") from error
        except SafetensorError as error:
            raise _damaged(path, str(error)) from error

    def verify(self) -> None:
        """Compare all shards with their checksums, which reads all of them.

        Raises:
            ValueError: naming the first that is damaged.
        """
        for record in self._records:
            path = self.folder / record["file"]
            if not _as_recorded(path, record):
                raise _damaged(path, "its checksum differs")

    def __len__(self) -> int:
        return len(self._captions)

    @property
    def captions(self) -> list[str]:
        """The caption of each sample."""
        return [self._distinct[row] for row in self._captions.tolist()]

    def caption(self, index: int) -> str:
        """The caption of one sample."""
        return self._distinct[int(self._captions[index])]

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, TextCondition]:
        """Latents and text conditions of some samples.

        Args:
            indices: from 0 to ``len(self) - 1``, of shape (B,).

        Returns:
            latents of shape (B, C, h, w) and B rows of conditions; float32, on the CPU.

        Raises:
            ValueError: for an index that is not in the cache.
        """
        indices = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        outside = indices[(indices < 0) | (indices >= len(self))]
        if len(outside):
            raise ValueError(f"index is {int(outside[0])}; allowed: 0 to {len(self) - 1}")
        rows = self._captions[indices]
        cond = TextCondition(
            self._states[rows],
            None if self._pooled is None else self._pooled[rows],
            None if self._time_ids is None else self._time_ids[indices],
        )
        return self._latents[indices], cond

    def check(self, config: SDConfig, pipeline: Pipeline) -> None:
        """Require the cache to be of this teacher, at this size.

        Args:
            config: its resolution.
            pipeline: the teacher.

        Raises:
            ValueError: naming what differs.
        """
        ours, there = teacher_identity(config, pipeline), self.settings["teacher"]
        if there["latent_shape"] != ours["latent_shape"]:
            raise ValueError(
                f"the cache in {str(self.folder)!r} holds latents of shape "
                f"{tuple(there['latent_shape'])}; allowed: {tuple(ours['latent_shape'])}, for "
                f"which the teacher and resolution={config.resolution} ask"
            )
        odd = _differences(there, ours)
        if odd:
            raise ValueError(
                f"the cache in {str(self.folder)!r} was made with another teacher: "
                f"{'; '.join(odd)}; allowed: the cache of this teacher"
            )


class _Rows:
    """The rows of several tensors, as if they were one."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some rows, float32."""
        out = torch.empty((len(rows), *self.parts[0].shape[1:]))
        where: dict[int, tuple[list[int], list[int]]] = {}
        for place, row in enumerate(rows.tolist()):
            part = bisect_right(self.ends, row)
            begin = self.ends[part - 1] if part else 0
            places, inside = where.setdefault(part, ([], []))
            places.append(place)
            inside.append(row - begin)
        for part, (places, inside) in where.items():
            out[places] = self.parts[part][inside].float()
        return out


class _KeptRows:
    """The rows of several tensors, copied into one."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.rows = torch.cat(parts)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some rows, float32."""
        return self.rows[rows].float()


_AGAIN = "run `slam-edu cache` again with the same settings, which makes that file anew"


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{str(path)!r} is damaged ({why}); delete it and {_AGAIN}")


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text("utf-8"))
        if index["settings"]["format"] != FORMAT or not index["shards"]:
            raise ValueError(f"its format is not {FORMAT}")
        Counts(**index["counts"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    return index

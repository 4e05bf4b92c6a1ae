"""Shards of webdataset: tar files in which the files of a sample stand one after the other.

A sample is what has one name up to the first dot: ``000042.jpg`` with ``000042.txt``, or with a
``000042.json`` that holds the caption. Shards are local files or addresses, and are read from
front to end, never as a whole. Tar files are read and grouped by the ``webdataset`` library; files
and addresses are opened here, because that library takes a Windows path for an address, hands what
begins with ``pipe:`` to a shell, and has addresses fetched by ``curl``, which says little of what
went wrong and cannot go on in the middle.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import http.client
import io
import json
import lzma
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from slam_edu.sd.data.counts import RejectedError, Rejection
from slam_edu.sd.data.images import SUFFIXES
from slam_edu.sd.data.sources import Entry, Item, Position, Source, check_caption, hash_of

ENDS = (".tar", ".tar.gz", ".tgz")
IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
#: Seconds to wait before each new attempt at an address.
WAITS = (1.0, 4.0, 15.0)
#: Seconds without an answer after which an attempt has failed.
TIMEOUT = 30.0

_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_CUT = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class ShardSource(Source):
    """Images and captions in webdataset shards, in the order of the shards and within them.

    Args:
        shards: paths or http(s) addresses with braces, ``shards-{0000..0099}.tar``, a path with
            ``*``, or a folder of .tar, .tar.gz and .tgz files.
        caption_column: the caption's name in a sample's JSON; ``caption`` is looked for next.
            A .txt comes before both.
        empty_captions: ``"reject"`` or ``"keep"``.

    Attributes:
        shards: paths and addresses of all shards.

    Raises:
        FileNotFoundError: if a local shard is not there.
        ValueError: for an address of another kind, or no shard at all.
        ModuleNotFoundError: without webdataset.
    """

    start = (0, 0)

    def __init__(
        self, shards: str, *, caption_column: str = "text", empty_captions: str = "reject"
    ) -> None:
        try:
            import webdataset  # noqa: F401 - missing, it is missed before anything is done
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"data='webdataset' needs {error.name}; install it with `pip install "
                f"slam_edu[sd]`",
                name=error.name,
            ) from error
        self.caption_column, self.empty_captions = caption_column, empty_captions
        self.shards = expand_shards(shards)

    def identity(self) -> dict[str, Any]:
        """What tells this source's content from another's.

        It is the files' names and sizes, and addresses without what comes after a "?", which may
        be a key that does not last.
        """
        known = [
            shard.split("?")[0] if is_address(shard)
            else [Path(shard).name, Path(shard).stat().st_size]
            for shard in self.shards
        ]  # fmt: skip
        return {"shards": hash_of(known)}

    def items(self, position: Position) -> Iterator[tuple[Position, Entry]]:
        """The entries from a position (shard, entries of it) on, each with the one after it."""
        first, skipped = position
        for index in range(first, len(self.shards)):
            for place, entry in enumerate(self.shard(index), 1):
                if index > first or place > skipped:
                    yield [index, place], entry

    def shard(self, index: int) -> Iterator[Entry]:
        """The entries of one shard.

        A shard that is cut short gives its whole samples, then one rejection.

        Raises:
            ConnectionError: if an address cannot be read.
        """
        from webdataset.tariterators import group_by_keys, tar_file_iterator

        address = self.shards[index]
        name = address.split("?")[0].replace("\\", "/").rsplit("/", 1)[-1]
        faults: list[Rejection] = []

        def files() -> Iterator[dict[str, Any]]:
            headers: list[str] = []
            try:
                with _open(address) as raw:
                    watched = _Watched(_decompressed(raw), name)
                    for file in tar_file_iterator(
                        watched, select_files=lambda name: headers.append(name) or True
                    ):
                        yield {**file, "__url__": address}
                    if not watched.ends_with_zeros():
                        faults.append(Rejection(name, "a shard that is cut short", "no end mark"))
            except _CUT as error:
                reason = "a shard that is cut short" if headers else "a shard that cannot be read"
                faults.append(Rejection(name, reason, str(error)))

        def doubled(error: Exception) -> bool:
            faults.append(Rejection(name, "a file name twice in a shard", str(error.args[0])))
            return True

        for sample in group_by_keys(files(), handler=doubled):
            entry = self._entry(name, sample)
            # The files of the last sample may be missing because of the cut, which is counted.
            if not (faults and faults[-1].reason.startswith("a shard") and _rejected(entry)):
                yield entry
        yield from faults

    def _entry(self, shard: str, sample: dict[str, Any]) -> Entry:
        name = f"{shard}/{sample['__key__']}"
        kinds = sorted(key for key in sample if not key.startswith("__"))
        picture = next((sample[kind] for kind in IMAGES if kind in sample), None)
        try:
            if picture is None:
                raise RejectedError("no image", f"its files: {', '.join(kinds)}")
            caption = check_caption(
                self._caption(sample), self.empty_captions, f"its files: {', '.join(kinds)}"
            )
        except RejectedError as error:
            return Rejection(name, error.reason, error.detail)
        return Item(name, caption, picture)

    def _caption(self, sample: dict[str, Any]) -> object:
        if "txt" in sample:
            try:
                return sample["txt"].decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise RejectedError("a caption that is not UTF-8", str(error)) from error
        if "json" not in sample:
            return None
        try:
            about = json.loads(sample["json"].decode("utf-8-sig"))
        except ValueError as error:
            raise RejectedError("a caption file that is not JSON", str(error)) from error
        if not isinstance(about, dict):
            raise RejectedError("a caption file that is not JSON", "no object")
        names = (self.caption_column, "caption")
        return next((about[name] for name in names if name in about), None)


def _rejected(entry: Entry) -> bool:
    return isinstance(entry, Rejection)


def is_address(shard: str) -> bool:
    """Whether a shard is read over the network."""
    return shard.lower().startswith(("http://", "https://"))


def expand_shards(text: str) -> list[str]:
    """The paths and addresses that a text stands for, in its order.

    Args:
        text: see :class:`ShardSource`.

    Raises:
        FileNotFoundError: if a local file is not there.
        ValueError: for an address of another kind, braces that do not fit, or no shard at all.
    """
    from braceexpand import UnbalancedBracesError, braceexpand

    if ("://" in text and not is_address(text)) or text.startswith("pipe:"):
        raise ValueError(
            f"data_path is {text!r}; allowed: shards as paths or as http:// or https:// addresses"
        )
    folder = Path(text)
    if folder.is_dir():
        shards = sorted(str(p) for p in folder.iterdir() if p.name.lower().endswith(ENDS))
        if not shards:
            raise ValueError(
                f"the folder {text!r} holds no shard; allowed: files that end in "
                f"{', '.join(ENDS)}"
            )
        return shards
    try:
        # A backslash is part of a Windows path here, not an escape.
        shards = list(braceexpand(text, escape=False))
    except UnbalancedBracesError as error:
        raise ValueError(
            f"data_path is {text!r} ({error}); allowed: braces in pairs, such as "
            f"shards-{{0000..0099}}.tar"
        ) from error
    if is_address(text):
        return shards
    found = []
    for shard in shards:
        found += sorted(glob.glob(shard)) if "*" in shard else [shard]
    missing = [path for path in found if not Path(path).is_file()]
    if missing or not found:
        raise FileNotFoundError(
            f"data_path is {text!r}, and {missing[0] if missing else text!r} is not there; "
            f"allowed: shards that exist ({len(missing)} of {len(found)} are missing)"
        )
    return found


class _Watched:
    """A file that remembers the last bytes that were read: a whole tar file ends in zeros."""

    MARK = 1024

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name, self.tail = file, name, b""

    def __str__(self) -> str:  # the library puts it into its errors
        return self.name

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.tail = (self.tail + data)[-self.MARK :]
        return data

    def ends_with_zeros(self) -> bool:
        while self.read(1 << 20):
            pass
        return self.tail == bytes(self.MARK)


def _open(shard: str) -> BinaryIO:
    if not is_address(shard):
        return open(shard, "rb")
    return io.BufferedReader(Download(shard), 1 << 20)


def _decompressed(raw: io.BufferedReader) -> BinaryIO:
    """What is in a compressed file; it knows where the file should end, as tarfile's does not."""
    begin = raw.peek(8)[:8]
    for mark, opener in _COMPRESSED.items():
        if begin.startswith(mark):
            return opener(raw)
    return raw


class Download(io.RawIOBase):
    """A file at an address, read once from front to end.

    Where the connection is lost, it is made again and reading goes on at the same byte.

    Args:
        address: http or https.

    Raises:
        ConnectionError: if the address does not answer, or not with a file.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.place, self.size = 0, None
        self._response, self._lost = None, 0
        self._connect(WAITS[:1])

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; none at the end."""
        while True:
            lost = False
            try:
                count = self._response.readinto(buffer)
            except (OSError, http.client.HTTPException):
                count, lost = 0, True
            if count:
                self.place += count
                self._lost = 0
                return count
            if not lost and (self.size is None or self.place >= self.size):
                return 0
            self._lost += 1
            if self._lost > len(WAITS):
                raise self._error(f"the connection is lost at byte {self.place:,} each time")
            self._connect(WAITS)

    def close(self) -> None:
        """Close the connection."""
        if self._response is not None:
            self._response.close()
        super().close()

    def _connect(self, waits: tuple[float, ...]) -> None:
        for wait in (*waits, None):
            try:
                return self._request()
            except urllib.error.HTTPError as error:
                fault = f"it answered {error.code} {error.reason}"
                error.close()
                if error.code < 500 and error.code != 429:
                    break  # it will say the same again
            except (OSError, http.client.HTTPException) as error:
                fault = str(getattr(error, "reason", error))
            if wait is not None:
                time.sleep(wait)
        raise self._error(fault)

    def _error(self, fault: str) -> ConnectionError:
        return ConnectionError(
            f"the shard {self.address!r} cannot be read: {fault}. Check the address and the "
            f"network, or copy the shards to a folder and set data_path to it; what is done so "
            f"far is kept"
        )

    def _request(self) -> None:
        if self._response is not None:
            self._response.close()
        request = urllib.request.Request(self.address)
        if self.place:
            request.add_header("Range", f"bytes={self.place}-")
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
        self._response = response
        length = response.headers.get("Content-Length")
        whole = not self.place or response.status != 206
        if length is not None:
            self.size = int(length) + (0 if whole else self.place)
        behind = self.place if whole else 0
        while behind:  # a server that cannot begin in the middle
            data = response.read(min(behind, 1 << 20))
            if not data:
                raise ConnectionError("the connection was lost again")
            behind -= len(data)

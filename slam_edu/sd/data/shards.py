"""Webdataset shards: tar files in which the files of a sample stand one after the other.

A sample is what has one name up to the first dot: ``000042.jpg`` with ``000042.txt``, or with a
``000042.json`` that holds the caption. Shards are files or addresses, read from front to end.

``datasets`` reads such shards too, but one sample of another kind, a caption that is not UTF-8 or
a shard that is cut short ends its stream, where here they are counted; and fsspec, which needs
aiohttp for addresses, does not go on in the middle of a file when a connection is lost.
"""

from __future__ import annotations

import glob
import http.client
import json
import re
import tarfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from slam_edu.images import SUFFIXES, RejectedError, list_files
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data import entries
from slam_edu.sd.data.entries import Entry, Item, Position, check_caption

ENDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: Seconds before each new attempt at an address, and until an attempt without an answer fails.
WAITS, TIMEOUT = (1.0, 4.0, 15.0), 30.0
CUT, NO_TAR = "a shard that is cut short", "a shard that cannot be read"
NO_FILE = "a link, or a name without an end, in a shard"


class ShardSource:
    """Images and captions in shards, in the shards' order and within them.

    ``data_path`` is paths or http(s) addresses with braces, ``shards-{0000..0099}.tar``, a path
    with ``*``, or a folder of .tar files, also compressed ones. A caption is in a sample's .txt,
    or in its JSON by the name ``caption_column``, or else ``caption``.

    Raises:
        FileNotFoundError: if a local shard is not there.
        ValueError: for an address of another kind, or no shard at all.
    """

    start = (0, 0)

    def __init__(self, config: SDConfig) -> None:
        self.config, self.shards = config, expand_shards(config.data_path)
        self.unused: Counter[str] = Counter()
        if Path(config.data_path).is_dir():
            names, self.unused = list_files(config.data_path)
            others = (name for name in names if not name.lower().endswith(ENDS))
            self.unused.update(
                PurePath(n).suffix.lower() or "a name without an end" for n in others
            )
        self._position: Any = None

    def identity(self, kept: Path) -> dict[str, Any]:
        """Names and contents of files; addresses without what follows "?", such as a key."""
        addresses = [shard.split("?")[0] for shard in self.shards if is_address(shard)]
        names = {f"{n}: {Path(s).name}": Path(s) for n, s in enumerate(self.shards)}
        known = addresses or entries.content_hash(names, kept)
        return {"shards": entries.hash_of(known), "caption_column": self.config.caption_column}

    def read(self, position: Position, most: int) -> tuple[list[Entry], Position]:
        """The next entries from a position [shard, entries of it] on, and the position after them.

        Where reading goes on, the shard is still open.
        """
        if position != self._position:
            self._entries = self._from(*position)
        found = list(islice(self._entries, most))
        self._position = found[-1][0] if found else position
        return [one for _, one in found], self._position

    def _from(self, first: int, skipped: int) -> Iterator[tuple[Position, Entry]]:
        for index in range(first, len(self.shards)):
            for place, one in enumerate(self.shard(index), 1):
                if index > first or place > skipped:
                    yield [index, place], one

    def shard(self, index: int) -> Iterator[Entry]:
        """The entries of one shard; one that is cut short gives its whole samples, then why.

        Raises:
            ConnectionError: if an address cannot be read.
        """
        address = self.shards[index]
        shard = address.split("?")[0].replace("\\", "/").rsplit("/", 1)[-1]
        faults: list[RejectedError] = []
        with closing(_Download(address) if is_address(address) else open(address, "rb")) as file:
            for key, group in groupby(_files(file, shard, faults), itemgetter(0)):
                files: dict[str, bytes] = {}  # by what follows the first dot
                for _, name, content in group:
                    end = name[len(key) + 1 :].lower()
                    if end in files:
                        faults.append(RejectedError("a file name twice in a shard", name, shard))
                    files.setdefault(end, content)
                found = entries.attempt(self._item, f"{shard}/{key}", files)
                # Files of the last sample may be missing because of the cut, which is counted.
                cut = faults and faults[-1].reason in (CUT, NO_TAR)
                if not (cut and isinstance(found, RejectedError)):
                    yield found
        yield from faults

    def _item(self, name: str, files: dict[str, bytes]) -> Item:
        kinds = f"its files: {', '.join(sorted(files))}"
        pictures = [files[suffix[1:]] for suffix in SUFFIXES if suffix[1:] in files]
        if not pictures:
            raise RejectedError("no image", kinds)
        caption = check_caption(self._caption(files), self.config.empty_captions, kinds)
        return Item(name, caption, pictures[0])

    def _caption(self, files: dict[str, bytes]) -> object:
        if "txt" in files:
            return entries.decoded(files["txt"])
        text = entries.decoded(files.get("json", b"{}"))
        try:
            about = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RejectedError("a caption file that is not JSON", str(error)) from error
        if not isinstance(about, dict):
            raise RejectedError("a caption file that is not JSON", "no object")
        return about.get(self.config.caption_column, about.get("caption"))


def _files(
    file: BinaryIO | _Download, shard: str, faults: list[RejectedError]
) -> Iterator[tuple[str, str, bytes]]:
    """Sample, name and content of each file; a shard that is not whole is added to the faults."""
    begun = False
    try:
        with tarfile.open(fileobj=file, mode="r|*", bufsize=1 << 20) as tar:
            for member in tar:
                begun = True
                tar.members.clear()  # else all headers stay in memory
                hidden = re.search(r"(^|/)\.[^/]+$", member.name)  # such as macOS adds
                named = re.fullmatch(r"((?:.*/)?[^./]+)\.[^/]*", member.name)
                if named and member.isfile():
                    yield named[1], member.name, tar.extractfile(member).read()
                elif not (hidden or member.isdir()):
                    faults.append(RejectedError(NO_FILE, member.name, shard))
            # A whole tar file ends in two blocks of zeros, of which one was read.
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark")
    except (tarfile.TarError, EOFError) as error:
        faults.append(RejectedError(CUT if begun else NO_TAR, str(error), shard))


def is_address(shard: str) -> bool:
    """Whether a shard is read over the network."""
    return shard.lower().startswith(("http://", "https://"))


def expand_shards(text: str) -> list[str]:
    """The paths and addresses that a text stands for, in order; see :class:`ShardSource`."""
    if ("://" in text and not is_address(text)) or text.startswith("pipe:"):
        raise ValueError(
            f"data_path is {text!r}; allowed: shards as paths or as http:// or https:// addresses"
        )
    folder = Path(text)
    if folder.is_dir():
        shards = [str(folder / n) for n in list_files(folder)[0] if n.lower().endswith(ENDS)]
        if not shards:
            raise ValueError(
                f"the folder {text!r} holds no shard; allowed: files that end in {', '.join(ENDS)}"
            )
        return shards
    shards = _expand_braces(text)
    if re.search("[{}]", shards[0]):
        raise ValueError(
            f"data_path is {text!r}; allowed: braces in pairs, such as shards-{{0000..0099}}.tar"
        )
    if is_address(text):
        return shards
    found = [p for s in shards for p in (sorted(glob.glob(s)) if "*" in s else [s])]
    missing = [path for path in found if not Path(path).is_file()]
    if missing or not found:
        raise FileNotFoundError(
            f"data_path is {text!r}, and {missing[0] if missing else text!r} is not there; "
            f"allowed: shards that exist ({len(missing)} of {len(found)} are missing)"
        )
    return found


def _expand_braces(text: str) -> list[str]:
    """``a-{08..10}`` and ``{a,b}`` as a shell expands them."""
    braces = re.search(r"\{([^{}]*)\}", text)
    if not braces:
        return [text]
    parts = braces[1].split(",")
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", braces[1]):
        low, high = numbers.groups()
        parts = [f"{n:0{len(low)}}" for n in range(int(low), int(high) + 1)]
    before, after = text[: braces.start()], text[braces.end() :]
    return [whole for part in parts for whole in _expand_braces(before + part + after)]


class _Download:
    """A file at an address, read once; where the connection is lost it goes on at that byte."""

    def __init__(self, address: str) -> None:
        self.address, self.place, self.size = address, 0, None
        self._response: Any = None

    def read(self, most: int) -> bytes:
        fault = ""
        for wait in (*WAITS, None):
            try:
                if self._response is None:
                    self._connect()
                content = self._response.read(most)
                self.place += len(content)
                if content or self.size is None or self.place >= self.size:
                    return content
                fault = f"the connection is lost at byte {self.place:,} each time"
            except urllib.error.HTTPError as error:
                fault = f"it answered {error.code} {error.reason}"
                if error.code < 500 and error.code != 429:
                    break  # it will say the same again
            except (OSError, http.client.HTTPException) as error:
                fault = str(getattr(error, "reason", error))
            self._response = None
            if wait is not None:
                time.sleep(wait)
        raise ConnectionError(
            f"the shard {self.address!r} cannot be read: {fault}. Check the address and the "
            f"network, or copy the shards to a folder and set data_path to it; what is done so "
            f"far is kept"
        )

    def _connect(self) -> None:
        request = urllib.request.Request(self.address)
        if self.place:
            request.add_header("Range", f"bytes={self.place}-")
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
        length = response.headers.get("Content-Length")
        behind = 0 if response.status == 206 else self.place
        if length is not None:
            self.size = int(length) + self.place - behind
        while behind:  # a server that cannot begin in the middle
            data = response.read(min(behind, 1 << 20))
            if not data:
                raise ConnectionError("the connection is lost again")
            behind -= len(data)
        self._response = response

    def close(self) -> None:
        if self._response is not None:
            self._response.close()

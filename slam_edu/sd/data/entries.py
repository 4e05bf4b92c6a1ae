"""What a source gives, and the count of what was rejected.

A source gives entries in an order that never changes, each an :class:`Item`, not yet decoded, or
the :class:`~slam_edu.images.RejectedError` that tells why it cannot be used. A *position*, an
integer or a list of two, is how much of it was read: from ``start`` on, ``read(position, most)``
gives entries, none at the end, and the position after them, where another process may go on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from slam_edu.images import RejectedError
from slam_edu.io import atomic_path, sha256_of

#: The fraction of rejected samples is looked at when so many were seen; so many are named.
ENOUGH, NAMED = 20, 5

Position = int | Sequence[int]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Item:
    """An image with its caption: not read yet, as a file's content or path; read; or encoded.

    Attributes:
        picture: a tensor is an image (3, H, W) in [-1, 1], or its latent (C, h, w).
        time_ids: Stable Diffusion XL's, once it is read: height and width before resizing, top and
            left of the crop in the resized image, H and W; in pixels.
    """

    name: str
    caption: str
    picture: bytes | Path | Tensor
    time_ids: tuple[float, ...] = ()


Entry = Item | RejectedError


@dataclass
class SampleCounts:
    """How many samples were used, how many were rejected by reason, and the first few of these.

    ``unused`` counts, by reason, what lies among the data and is no sample.
    """

    accepted: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)

    @property
    def rejected(self) -> int:
        """How many were not used."""
        return sum(self.reasons.values())

    def reject(self, error: RejectedError) -> bool:
        """Count one more that is not used; whether it is the first with its reason."""
        self.reasons[error.reason] = self.reasons.get(error.reason, 0) + 1
        if len(self.examples) < NAMED and str(error) not in self.examples:
            self.examples.append(str(error))
        return self.reasons[error.reason] == 1

    def __add__(self, other: SampleCounts) -> SampleCounts:
        reasons = dict(Counter(self.reasons) + Counter(other.reasons))
        examples = list(dict.fromkeys([*self.examples, *other.examples]))[:NAMED]
        unused = dict(Counter(self.unused) + Counter(other.unused))
        return SampleCounts(self.accepted + other.accepted, reasons, examples, unused)

    def check(self, max_rejected: float, final: bool = False) -> None:
        """Stop when too many were rejected.

        Of n samples, p n may be rejected at the end (``final``), and before it two standard
        deviations of chance more: the few bad samples may come first.

        Raises:
            ValueError: for a fraction above ``max_rejected``, p, or at the end without a sample.
        """
        rejected, seen = self.rejected, self.accepted + self.rejected
        if not final and seen < ENOUGH:
            return
        by_reason = by_count(self.reasons) or "There was none"
        why = f"By reason: {by_reason}. The first: {'; '.join(self.examples)}{self._not_used()}"
        if rejected > max_rejected * seen + (0 if final else 2 * math.sqrt(max_rejected * seen)):
            raise ValueError(
                f"{rejected:,} of {seen:,} samples were rejected, a fraction of "
                f"{rejected / seen:.2f}; allowed: max_rejected={max_rejected:g}. {why}"
            )
        if final and not self.accepted:
            raise ValueError(
                f"no sample was accepted, {rejected:,} were rejected; allowed: at least one. {why}"
            )

    def __str__(self) -> str:
        text = f"{self.accepted:,} samples accepted, {self.rejected:,} rejected"
        text += f" ({by_count(self.reasons)})" if self.reasons else ""
        return text + self._not_used()

    def _not_used(self) -> str:
        return f"; not used: {by_count(self.unused)}" if self.unused else ""


def by_count(reasons: Mapping[str, int]) -> str:
    """Reasons with their counts, the most frequent first."""
    most_first = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{reason}: {count:,}" for reason, count in most_first)


def check_caption(caption: object, empty_captions: str, missing: str = "") -> str:
    """A caption on one line; ``missing`` is the detail of one that is None.

    Raises:
        RejectedError: for no caption, one that is no text or that UTF-8 does not hold, or an empty
            one unless it is kept.
    """
    if caption is None:
        raise RejectedError("no caption", missing)
    if not isinstance(caption, str):
        raise RejectedError("a caption that is no text", type(caption).__name__)
    caption = " ".join(caption.split())
    try:
        caption.encode()
    except UnicodeEncodeError as error:  # half of a pair of surrogates
        raise RejectedError("a caption that is not UTF-8", str(error)) from error
    if not caption and empty_captions == "reject":
        raise RejectedError("an empty caption", "empty_captions='keep' would keep it")
    return caption


def decoded(content: bytes) -> str:
    """A caption file's text.

    Raises:
        RejectedError: if it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RejectedError("a caption that is not UTF-8", str(error)) from error


def attempt(make: Callable[..., Made], name: str, *details: Any) -> Made | RejectedError:
    """``make(name, *details)``, or the rejection that it raises, with the sample's name."""
    try:
        return make(name, *details)
    except RejectedError as error:
        error.name = name
        return error


def hash_of(value: object) -> str:
    """A short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def content_hash(paths: Mapping[str, Path], kept: Path) -> str:
    """A short hash of the names and contents of files; of one that cannot be read, of its name.

    The checksums are kept in the file ``kept``. One is used again while size and times (ns) of its
    file are the same, so that of data that did not change nothing is read.
    """
    from tqdm import tqdm

    try:
        before = dict(json.loads(kept.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        before = {}

    def look(name: str) -> list[Any] | None:
        try:
            about = paths[name].stat()
            # A change that leaves the time of the content as it was sets that of the entry.
            place = [
                str(paths[name].resolve()),
                about.st_size,
                about.st_mtime_ns,
                about.st_ctime_ns,
            ]
            known = before.get(name)
            if isinstance(known, list) and known[:-1] == place:
                return known
            return [*place, sha256_of(paths[name])]
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor() as pool:
        about = {"desc": "data: checksums", "unit": "file", "leave": False, "disable": None}
        found = tqdm(pool.map(look, paths), total=len(paths), **about)
        now = dict(zip(paths, found, strict=True))
    if now != before:
        with atomic_path(kept) as temporary:
            temporary.write_text(json.dumps(now), "utf-8")
    return hash_of([[name, about and about[-1]] for name, about in now.items()])

"""Small data sets made on the spot, for the tests of the data."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CAPTIONS = ["a red seven on a yellow background", "handwritten 3", "a blue two", "the number 5"]


def picture(number: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A smooth image of its own for each number; size is (width, height)."""
    random = np.random.default_rng(number)
    small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The content of an image's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def values(image: Image.Image) -> torch.Tensor:
    """An image's values in [-1, 1], of shape (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def quiet(_: str) -> None:
    """In place of print."""


def caption(number: int) -> str:
    return CAPTIONS[number % len(CAPTIONS)]


def image_folder(folder: Path, count: int = 6, *, metadata: bool = True) -> Path:
    """A folder of PNG images with captions in metadata.jsonl, or in a .txt beside each."""
    folder.mkdir(parents=True)
    lines = []
    for n in range(count):
        (folder / f"{n:03}.png").write_bytes(encoded(picture(n)))
        lines.append(json.dumps({"file_name": f"{n:03}.png", "text": caption(n)}))
        if not metadata:
            (folder / f"{n:03}.txt").write_text(caption(n) + "\n", "utf-8")
    if metadata:
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def sample_files(number: int, key: str | None = None) -> dict[str, bytes]:
    """The two files of a sample in a shard."""
    key = f"{number:03}" if key is None else key
    return {f"{key}.png": encoded(picture(number)), f"{key}.txt": caption(number).encode()}


def tar_of(files: list[tuple[str, bytes]] | dict[str, bytes], mode: str = "w") -> bytes:
    """A tar file's content; names may come twice."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items() if isinstance(files, dict) else files:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return buffer.getvalue()


def shards(folder: Path, sizes: tuple[int, ...] = (4, 4, 3)) -> str:
    """Shards of so many samples each; returns what data_path takes."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, size in enumerate(sizes):
        files: dict[str, bytes] = {}
        for _ in range(size):
            files |= sample_files(number)
            number += 1
        (folder / f"shard-{shard:02}.tar").write_bytes(tar_of(files))
    return str(folder / f"shard-{{00..{len(sizes) - 1:02}}}.tar")

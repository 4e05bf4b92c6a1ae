"""A zoo of inputs: no traceback, nothing lost in silence, no error without what to do.

``python -m tests.sd.test_zoo`` prints the counts.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import shutil
import struct
import sys
import tarfile
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slam_edu.images import RejectedError
from slam_edu.sd.config import SDConfig, load_config
from slam_edu.sd.data import SampleCounts, open_source
from slam_edu.sd.data.entries import attempt
from slam_edu.sd.data.latents import fit
from slam_edu.sd.published import architecture_of
from slam_edu.sd.teacher import load_teacher, quiet
from slam_edu.sd.tiny import tiny_pipeline, tiny_xl_pipeline
from tests.sd.images import encoded, picture, tar_of

#: What an error's sentence has that says what to do.
REMEDY = r"allowed|did you mean|install|run `"
PNG = encoded(picture(0))
JPEG = encoded(picture(0), "JPEG")
GOOD, BAD, EITHER = "used", "rejected", "either"


# -------------------------------------------------------------------- the inputs


def pictures():
    """Name, content, and whether its pixels can be read."""
    modes = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"),
        "TIFF": ("1", "L", "RGB", "CMYK", "I;16", "LAB", "YCbCr"), "GIF": ("P", "RGB"),
        "WEBP": ("RGB", "RGBA"), "BMP": ("1", "RGB"), "PPM": ("L", "RGB"), "TGA": ("RGB", "RGBA"),
        "ICO": ("RGBA",),
    }  # fmt: skip
    ends = {"PNG": ".png", "JPEG": ".JFIF", "TIFF": ".tif", "GIF": ".gif", "WEBP": ".webp",
            "BMP": ".bmp", "PPM": ".ppm", "TGA": ".tga", "ICO": ".png"}  # fmt: skip
    for kind, found in modes.items():
        for mode in found:
            if mode == "I;16":
                image = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64)
            else:
                image = picture(1).convert(mode)
            yield f"{kind}-{mode}{ends[kind]}", encoded(image, kind), GOOD
    frames = [picture(n) for n in range(3)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        yield f"animated{ends[kind]}", content, GOOD
    for end in (".jpg", ".jpeg", ".jpe", ".tiff", ".avif", ".heic", ".PnG"):
        yield f"another-kind-than-its-name{end}", PNG, GOOD
    text = zlib.compress(bytes(2**26))
    for name, kind, content in (
        ("text", b"zTXt", b"k\0\0" + text), ("profile", b"iCCP", b"n\0\0" + text),
        ("exif", b"eXIf", b"no"), ("time", b"tIME", b""), ("dots", b"pHYs", b"1"),
    ):  # fmt: skip
        chunk = kind + content
        chunk = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        yield f"png-{name}.png", PNG[:33] + chunk + PNG[33:], GOOD
    for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xFE):
        for content in (
            b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
            b"ICC_PROFILE\0",
            b"MPF\0no",
            b"JFIF\0",
        ):
            segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
            yield f"jpeg-{marker:x}-{content[:3].hex()}.jpg", JPEG[:2] + segment + JPEG[2:], GOOD
    yield "empty.png", b"", BAD
    yield "page.png", b"<html>404</html>", BAD
    yield "zeros.png", bytes(1000), BAD
    yield "real.tif", encoded(Image.new("F", (32, 32)), "TIFF"), BAD
    yield "small.png", encoded(Image.new("RGB", (1, 1))), BAD
    yield "thin.png", encoded(Image.new("RGB", (1, 400))), BAD
    for part in (0.1, 0.5, 0.9):
        yield f"cut-{part}.png", PNG[: int(part * len(PNG))], BAD
    draw = random.Random(0)
    for n in range(30):
        content = bytearray(draw.choice((PNG, JPEG, encoded(picture(1), "WEBP"))))
        for _ in range(draw.choice((1, 5, 50))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        yield f"damaged-{n:02}.png", bytes(content), EITHER


def captions():
    """Name, content of its .txt, and whether it is one."""
    yield from (
        ("plain", b"a seven", GOOD), ("mark", b"\xef\xbb\xbfa seven", GOOD),
        ("lines", b"a\r\nseven\r\n", GOOD), ("long", b"seven " * 200_000, GOOD),
        ("other", "七 🙂 ü".encode(), GOOD), ("null", b"a\0seven", GOOD), ("empty", b"", BAD),
        ("space", b" \n\t ", BAD), ("latin", "ü".encode("latin-1"), BAD),
        ("sixteen", "a seven".encode("utf-16"), BAD), ("half", b"a \xed\xa0\xbd", BAD),
        ("missing", None, BAD),
    )  # fmt: skip


LINES = [
    (r'{"file_name": "NAME", "text": "fine"}', GOOD),
    (r'{"file_name": "NAME", "text": "\ud83d\ude42"}', GOOD),
    (r'{"file_name": ".\\NAME", "text": "as Windows has it"}', GOOD),
    (r'{"file_name": "NAME", "text": "more", "n": [1, {"a": null}]}', GOOD),
    (r'{"file_name": "NAME", "text": "half \ud83d"}', BAD),
    (r'{"file_name": "NAME", "text": null}', BAD), (r'{"file_name": "NAME", "text": 7}', BAD),
    (r'{"file_name": "NAME", "text": [""]}', BAD), (r'{"file_name": "NAME"}', BAD),
    (r'{"file_name": "NAME\u0000", "text": "a"}', BAD),
    (r'{"file_name": "\ud83d", "text": "a"}', BAD),
    (r'{"file_name": "/NAME", "text": "a"}', BAD),
    (r'{"file_name": "../NAME", "text": "a"}', BAD),
    (r'{"file_name": "", "text": "a"}', BAD), (r'{"file_name": ".", "text": "a"}', BAD),
    (r'{"file_name": 7, "text": "a"}', BAD), ('{"file_name": "' + "n" * 5000 + '"}', BAD),
    ("{", BAD), ("[1]", BAD), ("7", BAD), ("[" * 100_000, BAD),
    ('{"text": ' + "9" * 5000 + "}", BAD),
]  # fmt: skip


def shards():
    """Name, content, and how many samples of it are used and how many are not."""
    pair = [("a.png", PNG), ("a.txt", b"a seven")]
    whole = tar_of(pair)
    for end in ("", ":gz", ":bz2", ":xz"):
        yield f"whole{end.replace(':', '.')}.tar", tar_of(pair, "w" + end), (1, 0)
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(fileobj=(file := io.BytesIO()), mode="w", format=kind) as tar:
            for name, content in (("ü/" * 40 + "a.png", PNG), ("ü/" * 40 + "a.txt", b"seven")):
                about = tarfile.TarInfo(name)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
        yield f"format-{kind}.tar", file.getvalue(), (1, 0)
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            about = tarfile.TarInfo("link.png")
            about.type, about.linkname = kind, "/etc/passwd"
            tar.addfile(about)
        about = tarfile.TarInfo("folder")
        about.type = tarfile.DIRTYPE
        tar.addfile(about)
    yield "links.tar", file.getvalue(), (0, 3)
    yield "empty.tar", tar_of([]), (0, 0)
    yield "nothing.tar", b"", (0, 1)
    yield "page.tar", b"<html>404</html>" * 100, (0, 1)
    yield "cut.tar", tar_of([*pair, ("b.png", PNG), ("b.txt", b"b")])[:3500], (1, 1)
    yield "no-end.tar", whole[: 2 * 512 + 2048 + 512], (1, 1)
    yield "cut.tar.gz", gzip.compress(whole)[:-100], (None, 1)
    for name, files, counts in (
        ("twice", [*pair, ("a.png", PNG)], (1, 1)), ("no-dot", [*pair, ("README", b"")], (1, 1)),
        ("no-picture", [("a.txt", b"seven")], (0, 1)), ("no-text", [("a.png", PNG)], (0, 1)),
        ("json", [("a.png", PNG), ("a.json", b'{"caption": "7"}')], (1, 0)),
        ("bad-json", [("a.png", PNG), ("a.json", b"[" * 100_000)], (0, 1)),
        ("half-json", [("a.png", PNG), ("a.json", rb'{"text": "\ud83d"}')], (0, 1)),
        ("latin", [("a.png", PNG), ("a.txt", b"\xfc")], (0, 1)),
        ("gif", [("a.gif", PNG), ("a.txt", b"seven")], (1, 0)),
        ("mac", [*pair, ("._a.png", b"x"), (".DS_Store", b"x")], (1, 0)),
        ("damaged", [("a.png", PNG[:99]), ("a.txt", b"seven")], (0, 1)),
    ):  # fmt: skip
        yield f"{name}.tar", tar_of(files), counts


CONFIGS = [
    ("mixed_precision: no", GOOD), ("{\n\t\"lr\":\t1e-3\n}", GOOD), ("lr: 1e-3", GOOD),
    ('{"out": "\\ud83d\\ude42"}', GOOD), (f"revision: {'7' * 40}", GOOD), ("threads: ~", GOOD),
    ("out: 2024-01-01", GOOD), ("out: ~/x", GOOD), ("\ufefflr: 1", GOOD), ("lr: 1  # high", GOOD),
    ("", BAD), ("-", BAD), ("lr", BAD), ("- lr", BAD), ("lr: [1]", BAD), ("lr: fast", BAD),
    ("lr: 1\nlr: 2", BAD), ('{"lr": 1, "lr": 2}', BAD), ("lr:\t1", BAD), ("\x00", BAD),
    ("a: 1", BAD), ("# slam_edu 9.9\na: 1", BAD), ("out: ''", BAD), ('out: "\\ud83d"', BAD),
    ("out: {a: 1}", BAD), ("? [a]\n: 1", BAD), ("[" * 9999, BAD), ("{" * 9999, BAD), ("'", BAD),
    ("lr: 1\n---\nlr: 1", BAD), ("!!python/object:os.system x", BAD), ('{"lr": NaN}', BAD),
    ("batch: 1e400", BAD), ("batch: 2.5", BAD), ("cache: yes", BAD), ("seed: -1", BAD),
    ("lr: .inf", BAD), ("updates: 0", BAD), ("teacher: null", BAD), ("*a", BAD),
]  # fmt: skip

TOKENIZER, VAE, UNET = "tokenizer/tokenizer_config.json", "vae/config.json", "unet/config.json"
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
TEACHERS = [
    ("sd", TOKENIZER, {"model_max_length": None}, GOOD),
    ("xl", "tokenizer_2/tokenizer_config.json", {"model_max_length": 1e30}, GOOD),
    ("sd", VAE, {"scaling_factor": None}, GOOD), ("sd", VAE, {"scaling_factor": "x"}, BAD),
    ("sd", UNET, {"sample_size": None}, BAD), ("sd", UNET, {"sample_size": [8, 8]}, GOOD),
    ("sd", UNET, {"decay": 0.99, "optimization_step": 3, "use_ema_warmup": False}, GOOD),
    ("xl", VAE, {"latents_mean": [0] * 4, "latents_std": [1] * 4}, GOOD),
    ("xl", VAE, {"latents_mean": 1e30}, BAD), ("sd", UNET, {"cross_attention_dim": 64}, BAD),
    ("sd", "text_encoder/config.json", {"max_position_embeddings": None}, BAD),
    ("xl", UNET, {"projection_class_embeddings_input_dim": None}, BAD),
    ("sd", SCHEDULER, {"prediction_type": None}, GOOD),
    ("sd", SCHEDULER, {"beta_start": None}, BAD),
    ("sd", INDEX, {"unet": None}, BAD), ("sd", INDEX, {"_class_name": 7}, BAD),
]  # fmt: skip


# -------------------------------------------------------------------- what comes of them


class Zoo:
    """Counts what came of each input; ``faults`` are those that must not be."""

    def __init__(self) -> None:
        self.counts, self.faults = Counter(), []

    def see(self, name: str, call, *args) -> object:
        """What a call gives; None for an error that says what to do, which is counted."""
        self.counts["inputs"] += 1
        try:
            return call(*args)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            self.counts["errors that say what to do"] += 1
            if not re.search(REMEDY, str(error)) or type(error) not in (
                ValueError, FileNotFoundError, OSError, ModuleNotFoundError
            ):  # fmt: skip
                self.faults.append(f"{name}: no remedy: {error!r}")
        except Exception as error:
            self.faults.append(f"{name}: a traceback: {error!r}")
        return None

    def expect(self, name: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.faults.append(f"{name}: {found}, where {wanted} is right")


def tally(kind: str, path: object) -> SampleCounts:
    """What of a source is used; the images are read, not encoded."""
    source = open_source(SDConfig(data=kind, data_path=str(path)))
    counts, position = SampleCounts(unused=dict(source.unused)), source.start
    entries = [None]
    while entries:
        entries, position = source.read(position, 1000)
        for one in entries:
            found = one if isinstance(one, RejectedError) else attempt(
                lambda _, item=one: fit(item.picture, (32, 32)), one.name)  # fmt: skip
            if isinstance(found, RejectedError):
                counts.reject(found)
            else:
                counts.accepted += 1
    str(counts).encode()
    return counts


def folder_of(folder: Path, files: dict[str, bytes | None]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def visit(place: Path) -> Zoo:
    """Every input, each in a place of its own."""
    zoo, good = Zoo(), {"good.png": PNG, "good.txt": b"good"}

    def look(name: str, files: dict[str, bytes | None], wanted: str, others: int = 0) -> None:
        folder = folder_of(place / f"{len(list(place.iterdir()))}", {**good, **files})
        counts = zoo.see(name, tally, "folder", folder)
        if counts is not None:
            found = (counts.accepted, counts.rejected, sum(counts.unused.values()))
            used = found[0] - 1 if wanted == EITHER else int(wanted == GOOD)
            zoo.expect(name, found, (1 + used, 1 - used, others))

    for name, content, wanted in pictures():
        look(name, {name: content, f"{Path(name).stem}.TXT": b"a seven"}, wanted)
    for name, content, wanted in captions():
        look(f"caption {name}", {"a.png": PNG, "a.txt": content}, wanted)
    for n, (line, wanted) in enumerate(LINES):
        files = {"metadata.jsonl": line.replace("NAME", "a.bin").encode(), "a.bin": PNG}
        listed = wanted == GOOD or '"NAME"' in line
        look(f"line {n}", files, wanted, others=0 if listed else 1)
    for name in (".heic", ".mp4", ".npy", ".csv", ".txt", "", ".TXT"):
        folder = folder_of(
            place / f"other{len(list(place.iterdir()))}", {**good, f"a{name}": b"x"}
        )
        counts = zoo.see(f"a{name}", tally, "folder", folder)
        zoo.expect(f"a{name}", counts.rejected + sum(counts.unused.values()), 1)
    for name, content, (used, not_used) in shards():
        path = place / name
        path.write_bytes(content)
        counts = zoo.see(name, tally, "webdataset", path)
        if counts is not None:
            used = counts.accepted if used is None else used
            zoo.expect(name, (counts.accepted, counts.rejected), (used, not_used))
    for n, (text, wanted) in enumerate(CONFIGS):
        path = place / f"{n}.yaml"
        path.write_text(text, "utf-8")
        found = zoo.see(f"config {text[:40]!r}", load_config, "digits", path)
        zoo.expect(f"config {text[:40]!r}", GOOD if found else BAD, wanted)
    with quiet():
        for kind, make in (("sd", tiny_pipeline), ("xl", tiny_xl_pipeline)):
            make().save_pretrained(place / kind)
    for n, (kind, file, changes, wanted) in enumerate(TEACHERS):
        folder = Path(shutil.copytree(place / kind, place / f"teacher{n}", copy_function=os.link))
        values = json.loads((folder / file).read_text("utf-8")) | changes
        (folder / file).unlink()
        (folder / file).write_text(json.dumps(values), "utf-8")
        config, name = SDConfig(teacher=str(folder)), f"teacher {kind} {file} {changes}"
        zoo.expect(name, GOOD if zoo.see(name, load_teacher, config) else BAD, wanted)
        if file == UNET:
            zoo.see(f"plan of {name}", lambda c=config: architecture_of(c).build_unet())
    return zoo


@pytest.mark.skipif(sys.platform == "win32", reason="names of files that Windows refuses")
def test_no_traceback_no_silent_loss_no_error_without_a_remedy(tmp_path):
    zoo = visit(tmp_path)
    assert zoo.faults == []
    assert zoo.counts["inputs"] > 200


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        found = visit(Path(made))
    for what, count in {**found.counts, "faults": len(found.faults)}.items():
        print(f"{count:6,} {what}")
    print(*found.faults, sep="\n")

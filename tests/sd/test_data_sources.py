"""Folders and the datasets library as sources; every faulty entry has its reason."""

import os
import re
from pathlib import Path

import pytest

from slam_edu.images import RejectedError
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data import SampleCounts, default_prompts, open_source, read_prompts
from slam_edu.sd.data.entries import Item, attempt
from slam_edu.sd.data.latents import fit
from tests.sd.images import CAPTIONS, caption, encoded, image_folder, picture


def folder_of(path, **changes):
    return open_source(SDConfig(data="folder", data_path=str(path), **changes))


def library(path, **changes):
    return open_source(SDConfig(data="datasets", data_path=str(path), **changes))


def summary(source):
    """Caption of each item, reason of each rejection."""
    entries = source[range(len(source))]
    return {e.name: e.caption if isinstance(e, Item) else e.reason for e in entries}


# -------------------------------------------------------------------- a shipped model


def test_digits():
    source = open_source(SDConfig(data="digits"))
    assert len(source) == 16_000
    assert source.identity(Path("none")) == {"seed": 0}
    entries, position = source.read(15_990, 20)
    assert [e.caption for e in entries] == [source.data[n][1] for n in range(15_990, 16_000)]
    assert (position, source.read(position, 20)) == (16_000, ([], 16_000))


# -------------------------------------------------------------------- a folder


def test_every_kind_of_faulty_entry(tmp_path):
    folder = image_folder(tmp_path / "data", 3)
    lines = [
        '{"file_name": "000.png", "text": "  a red\\tseven\\non it "}',
        '{"file_name": "001.png", "text": ""}',
        '{"file_name": "002.png", "text": null}',
        "",
        "not JSON",
        '["a", "list"]',
        '{"file_name": "../secret.png", "text": "outside"}',
        '{"file_name": "/etc/secret.png", "text": "outside"}',
        '{"file_name": "003.jpg", "text": 7}',
        '{"file_name": "sub/004.PNG", "caption": "in a column of another name"}',
        '{"file_name": "sub\\\\005.png", "text": "a Windows name"}',
        '{"file_name": "006.png", "text": "the image is not there"}',
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "sub").mkdir()
    for name in ("003.jpg", "sub/004.PNG", "sub/005.png", "sub/007.bmp", "008.webp", "009.jpeg"):
        (folder / name).write_bytes(encoded(picture(0)))
    (folder / "sub" / "007.txt").write_text("from a .txt,\nin two lines\n", "utf-8-sig")
    (folder / "009.txt").write_bytes(b"\xff\xfe\xfa")
    (folder / "notes.md").write_text("is left out")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.png").write_bytes(b"")
    source = folder_of(folder)
    assert list(summary(source).items()) == [
        ("000.png", "a red seven on it"),
        ("001.png", "an empty caption"),
        ("002.png", "no caption"),
        ("metadata.jsonl:5", "a metadata line without JSON and file_name"),
        ("metadata.jsonl:6", "a metadata line without JSON and file_name"),
        ("../secret.png", "a file outside of the folder"),
        ("/etc/secret.png", "a file outside of the folder"),
        ("003.jpg", "a caption that is no text"),
        ("sub/004.PNG", "no caption"),
        ("sub/005.png", "a Windows name"),
        ("006.png", "the image is not there"),  # found out when it is read
        ("008.webp", "no caption"),
        ("009.jpeg", "a caption that is not UTF-8"),
        ("sub/007.bmp", "from a .txt, in two lines"),
    ]
    assert "which has file_name, caption" in source[[8]][0].detail
    named = folder_of(folder, caption_column="caption", empty_captions="keep")
    assert summary(named)["sub/004.PNG"] == "in a column of another name"
    assert str(source[[11]][0]) == "008.webp: no caption (no 008.txt beside it)"


def test_what_is_in_a_folder_is_read_or_counted(tmp_path):
    folder, elsewhere = image_folder(tmp_path / "data", 1, metadata=False), tmp_path / "elsewhere"
    for name in ("a.JFIF", "b.tif", "c.gif", "d.heic", "sub/e.png", "sub/f.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(encoded(picture(0)))
        (folder / name).with_suffix(".TXT").write_text(name, "utf-8")
    (folder / "sub" / "f.TXT").unlink()
    (folder / "sub" / "Metadata.jsonl").write_text('{"file_name": "f.png", "text": "below"}')
    image_folder(elsewhere, 2)
    os.mkfifo(folder / "pipe.png")
    for link, to in (("linked", elsewhere), ("again", elsewhere), ("up", folder), ("g.png", "no")):
        (folder / link).symlink_to(to)
    for name in ("readme.txt", "notes.md", "list.csv", "no_end", "sub/x.csv", ".hidden"):
        (folder / name).write_text("x")
    source = folder_of(folder)
    assert summary(source) == {
        "again/000.png": caption(0), "again/001.png": caption(1), "sub/f.png": "below",
        "000.png": caption(0), "a.JFIF": "a.JFIF", "b.tif": "b.tif", "c.gif": "c.gif",
        "d.heic": "d.heic",  # rejected, if Pillow cannot read it
        "g.png": "no caption", "sub/e.png": "sub/e.png",
    }  # fmt: skip
    assert source.unused == {
        ".csv": 2, ".md": 1, "a name without an end": 1, "a .txt that no image takes": 1,
        "hidden": 1, "neither a file nor a folder": 1, "a link to a folder that is read anyway": 2,
    }  # fmt: skip
    counts = SampleCounts(10, unused=source.unused)
    assert str(counts).startswith("10 samples accepted, 0 rejected; not used: .csv: 2, a link to")


def test_text_that_utf_8_or_the_system_refuses_is_one_rejected_sample(tmp_path):
    folder, png = tmp_path / "data", encoded(picture(0))
    folder.mkdir()
    (folder / "a.png").write_bytes(png)
    names = (r"a.png", r"b\u0000.png", r"c\ud83d.png", "d" * 300 + ".png", r"\ud83d\ude00.png")
    lines = [f'{{"file_name": "{name}", "text": "fine"}}' for name in names]
    lines += [r'{"file_name": "a.png", "text": "half \ud83d"}', "[" * 100_000]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    with open(os.fsencode(folder) + b"/\xff.png", "wb") as file:
        file.write(png)
    source, found = folder_of(folder), []
    for one in source[range(len(source))]:
        if isinstance(one, Item):
            one = attempt(lambda _, item=one: fit(item.picture, (32, 32)), one.name)
        found.append(one.reason if isinstance(one, RejectedError) else "used")
        str(one).encode()  # it can be printed
    assert found == [
        "used", *["a file that cannot be read"] * 3, "a missing file",
        "a caption that is not UTF-8", "a metadata line without JSON and file_name", "no caption",
    ]  # fmt: skip
    source.identity(tmp_path / "kept.json")


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'; allowed: one"):
        folder_of(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"holds no image; allowed: \.png, \.jpg, "):
        folder_of(tmp_path)
    with pytest.raises(ValueError, match="data is 'prompts', which has no images"):
        open_source(SDConfig(data="prompts"))


# -------------------------------------------------------------------- the datasets library


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The library keeps what it converts, and its locks, in here."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


COLUMNS = {"image_column": "picture", "caption_column": "words"}


def table_of(datasets):
    png = encoded(picture(0))
    pictures = [{"bytes": png, "path": None}] * 3 + [None, {"bytes": png[:50], "path": "x"}]
    words = ["a red seven", None, " ", "no picture", "cut short"]
    rows = {"picture": pictures, "words": words, "n": [0, 1, 2, 3, 4]}
    return datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image(decode=False))


WANTED = {
    "row 0": "a red seven",
    "row 1": "no caption",
    "row 2": "an empty caption",
    "row 3": "no image",
    "row 4": "cut short",  # found out when it is read
}


def test_parquet_files_and_folders_of_save_to_disk(hub_cache, tmp_path):
    table = table_of(hub_cache)
    path = tmp_path / "rows.parquet"
    table.to_parquet(str(path))
    source = library(path, **COLUMNS)
    assert summary(source) == WANTED
    assert source[[0]][0].picture == encoded(picture(0))
    for columns, message in (
        (
            {"image_column": "image"},
            r"\['image'\] not in .*\['picture', 'words', 'n'\].*allowed: ",
        ),
        ({"image_column": "n"}, r"int64.*images and text in its columns {'image_column': 'n', "),
    ):
        with pytest.raises(ValueError, match=message):
            len(library(path, **{**COLUMNS, **columns}))
    splits = hub_cache.DatasetDict({"a": table, "train": table.select([0])})
    splits.save_to_disk(str(tmp_path / "splits"))
    assert summary(library(tmp_path / "splits", **COLUMNS)) == {
        "row 0": "a red seven"
    }  # fmt: skip
    splits["b"] = splits.pop("train")
    splits.save_to_disk(str(tmp_path / "two"))
    assert set(summary(library(path, **{**COLUMNS, "caption_column": "n"})).values()) == {
        "a caption that is no text", "no image"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"the splits are \['a', 'b'\]; allowed: one, or one"):
        len(library(tmp_path / "two", **COLUMNS))


def test_what_the_library_makes_of_an_image_folder(hub_cache, tmp_path):
    """Paths, not bytes."""
    source = library(image_folder(tmp_path / "data", 3))
    assert set(summary(source).values()) == set(CAPTIONS[:3])
    assert Path(source[[0]][0].picture).is_file()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 it is not")
    with pytest.raises(ValueError, match=r"bad.parquet' cannot be loaded by the datasets library"):
        len(library(tmp_path / "bad.parquet"))


def test_a_path_that_is_not_there_and_an_id_without_a_commit():
    for path in ("./none", "/nowhere/data", "none.parquet", "C:\\none", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"is not there; allowed: a folder, a \.parq"):
            library(path)
    for revision in (None, "main", "a" * 39, "A" * 40):
        with pytest.raises(ValueError, match=rf"data_revision is {revision!r}.*40 hexadecimal"):
            library("owner/name", data_revision=revision)


def test_a_commit_of_a_data_set_without_a_network(hub_cache):
    """The tests have none: see conftest.py."""
    source = library("owner/name", data_revision="a" * 40)
    assert source.identity(Path("none"))["revision"] == "a" * 40
    fetch = f"hf download owner/name --repo-type dataset --revision {'a' * 40} --local-dir FOLDER"
    with pytest.raises(ConnectionError, match=rf"'owner/name' cannot be fetched \(.*{fetch}"):
        len(source)


# -------------------------------------------------------------------- counts and prompts


def filled(accepted, rejected):
    counts = SampleCounts(accepted)
    for n in range(rejected):
        reason = "not an image" if n % 3 else "no caption"
        counts.reject(RejectedError(reason, "why", f"{n}.png"))
    return counts


def test_counts():
    counts = filled(1000, 10)
    assert str(counts) == "1,000 samples accepted, 10 rejected (not an image: 6, no caption: 4)"
    assert counts.examples[0] == "0.png: no caption (why)"
    assert len(counts.examples) == 5
    assert str(filled(3, 0)) == "3 samples accepted, 0 rejected"
    both = counts + filled(5, 1)
    assert (both.accepted, both.reasons["no caption"], counts.accepted) == (1005, 5, 1000)


def test_too_many_rejected():
    filled(16, 4).check(0.1)  # by chance
    filled(9, 10).check(0.1)  # too few to judge by
    filled(18, 2).check(0.1, final=True)
    filled(0, 30).check(1.0)
    for counts, limit, final, message in (
        (filled(15, 5), 0.1, False, "5 of 20 samples were rejected, a fraction of 0.25; allowed: "
         "max_rejected=0.1. By reason: not an image: 3, no caption: 2. The first: 0.png: no cap"),
        (filled(17, 3), 0.1, True, "3 of 20 samples were rejected"),
        (filled(879, 121), 0.1, False, "121 of 1,000 samples were rejected"),
        (filled(19, 1), 0, False, "1 of 20 samples were rejected"),
        (filled(9, 10), 0.1, True, "10 of 19 samples were rejected"),
        (filled(0, 30), 1.0, True, "no sample was accepted, 30 were rejected"),
        (SampleCounts(), 0.1, True, "no sample was accepted, 0 were rejected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            counts.check(limit, final=final)


def test_prompts(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("\ufeff# a comment\n\n  a  cat \n#another\na dog, #1\n\na cat\n", "utf-8")
    assert read_prompts(path) == ["a cat", "a dog, #1", "a cat"]
    training = default_prompts("some/model")
    assert len(training) == len(set(training)) >= 5000
    assert len(read_prompts()) == len({*read_prompts()} - {*training}) >= 150
    assert training[:2] == default_prompts("some/other/model")[:2]
    assert len(default_prompts("digits")) == 512
    for content, message in (
        (b"# a comment\n\n", "holds no prompt"),
        (b"\xff\xfe\x00", "no UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_prompts(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.txt' is not a file; allowed: a text"):
        read_prompts(tmp_path / "nowhere.txt")

"""The digits, folders and the datasets library as sources; every faulty entry has its reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slam_edu.digits.data import CaptionedDigits
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data.counts import Rejection
from slam_edu.sd.data.sources import (
    DatasetsSource,
    DigitsSource,
    FolderSource,
    Item,
    check_caption,
    open_source,
)
from tests.sd.images import CAPTIONS, encoded, image_folder, picture


def summary(source):
    """Caption of each item, reason of each rejection."""
    entries = [source[i] for i in range(len(source))]
    in_order = [entry for _, entry in source.items(source.start)]
    assert list(map(str, in_order)) == list(map(str, entries))
    return {e.name: e.caption if isinstance(e, Item) else e.reason for e in entries}


# -------------------------------------------------------------------- captions


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [("a cat", "a cat"), ("  a\tcat\non a  mat \n", "a cat on a mat"), ("ü 七", "ü 七")],
)
def test_a_caption_is_one_line(caption, wanted):
    assert check_caption(caption, "reject") == wanted


def test_captions_that_are_none():
    faults = {"no caption": None, "an empty caption": " \n", "a caption that is no text": ["a"]}
    for reason, caption in faults.items():
        with pytest.raises(Exception, match=reason):
            check_caption(caption, "reject")
    assert check_caption(" \n", "keep") == ""
    with pytest.raises(Exception, match="no caption"):
        check_caption(None, "keep")


# -------------------------------------------------------------------- the digits


def test_digits():
    source = open_source(SDConfig(data="digits"))
    assert isinstance(source, DigitsSource)
    assert source.total() == len(source) == 16_000
    batch = CaptionedDigits("train").batch([15_990, 15_999])
    entries = list(source.items(15_990))
    assert [position for position, _ in entries] == list(range(15_991, 16_001))
    assert entries[0][1].caption == source[15_990].caption == batch.captions[0]
    torch.testing.assert_close(entries[9][1].picture, batch.images[1])
    torch.testing.assert_close(source[15_999].picture, batch.images[1])


# -------------------------------------------------------------------- a folder


@pytest.mark.parametrize("metadata", [True, False])
def test_a_folder(metadata, tmp_path):
    source = FolderSource(image_folder(tmp_path / "data", 6, metadata=metadata))
    assert summary(source) == {f"{n:03}.png": CAPTIONS[n % 4] for n in range(6)}
    assert source[2].picture == tmp_path / "data" / "002.png"
    assert [p for p, _ in source.items(4)] == [5, 6]


def test_a_folder_in_a_configuration(tmp_path):
    folder = image_folder(tmp_path / "data", 2)
    (folder / "metadata.jsonl").write_text('{"file_name": "000.png", "words": ""}\n', "utf-8")
    config = SDConfig(
        data="folder", data_path=str(folder), caption_column="words", empty_captions="keep"
    )
    assert summary(open_source(config)) == {"000.png": "", "001.png": "no caption"}


def test_every_kind_of_faulty_entry(tmp_path):
    folder = image_folder(tmp_path / "data", 3)
    lines = [
        '{"file_name": "000.png", "text": "a red seven"}',
        '{"file_name": "001.png", "text": ""}',
        '{"file_name": "002.png", "text": null}',
        "",
        "not JSON",
        '["a", "list"]',
        '{"text": "no file"}',
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
    (folder / "sub" / "007.txt").write_text("from a .txt,\nin two lines\n", "utf-8")
    (folder / "009.txt").write_bytes(b"\xff\xfe\xfa")
    (folder / "notes.md").write_text("is left out")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.png").write_bytes(b"")
    source = FolderSource(folder)
    assert summary(source) == {
        "000.png": "a red seven",
        "001.png": "an empty caption",
        "002.png": "no caption",
        "metadata.jsonl:5": "a metadata line that is not JSON",
        "metadata.jsonl:6": "a metadata line without file_name",
        "metadata.jsonl:7": "a metadata line without file_name",
        "../secret.png": "a file outside of the folder",
        "/etc/secret.png": "a file outside of the folder",
        "003.jpg": "a caption that is no text",
        "sub/004.PNG": "no caption",
        "sub/005.png": "a Windows name",
        "006.png": "the image is not there",  # found out when it is read
        "008.webp": "no caption",
        "009.jpeg": "a caption that is not UTF-8",
        "sub/007.bmp": "from a .txt, in two lines",
    }
    assert "which has file_name, caption" in source[9].detail
    assert source[12].detail == "no 008.txt beside it"


def test_a_byte_order_mark(tmp_path):
    folder = image_folder(tmp_path / "data", 1, metadata=False)
    (folder / "000.txt").write_text("a seven", "utf-8-sig")
    assert summary(FolderSource(folder)) == {"000.png": "a seven"}
    line = json.dumps({"file_name": "000.png", "text": "a two"})
    (folder / "metadata.jsonl").write_text(line, "utf-8-sig")
    assert summary(FolderSource(folder)) == {"000.png": "a two"}


def test_an_image_listed_twice_comes_twice(tmp_path):
    folder = image_folder(tmp_path / "data", 1)
    lines = ['{"file_name": "000.png", "text": "one"}', '{"file_name": "000.png", "text": "two"}']
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    source = FolderSource(folder)
    assert [source[i].caption for i in range(len(source))] == ["one", "two"]


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'; allowed: a"):
        FolderSource(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    message = r"holds no image; allowed: \.png, \.jpg, \.jpeg, \.webp, \.bmp files"
    with pytest.raises(ValueError, match=message):
        FolderSource(tmp_path)


def test_the_identity_of_a_folder_follows_its_files(tmp_path):
    folder = image_folder(tmp_path / "data", 3)
    identity = FolderSource(folder).identity()
    assert FolderSource(folder).identity() == identity
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text() + " ")
    changed = FolderSource(folder).identity()
    (folder / "003.png").write_bytes(encoded(picture(3)))
    assert len({str(i) for i in (identity, changed, FolderSource(folder).identity())}) == 3


@pytest.mark.parametrize("data", ["prompts", "cache"])
def test_what_has_no_images(data, tmp_path):
    with pytest.raises(ValueError, match=f"data is '{data}', which has no images"):
        open_source(SDConfig(data=data, data_path=str(tmp_path)))


# -------------------------------------------------------------------- the datasets library


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The library keeps what it converts, and its locks, in here."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def rows():
    png = encoded(picture(0))
    return {
        "picture": [{"bytes": png, "path": None}] * 3 + [None, {"bytes": png[:50], "path": "x"}],
        "words": ["a red seven", None, " ", "no picture", "cut short"],
        "n": [0, 1, 2, 3, 4],
    }


COLUMNS = {"image_column": "picture", "caption_column": "words"}


def parquet(datasets, path, data=None):
    table = datasets.Dataset.from_dict(rows() if data is None else data)
    if "picture" in table.column_names:
        table = table.cast_column("picture", datasets.Image(decode=False))
    table.to_parquet(str(path))
    return str(path)


WANTED = {
    "row 0": "a red seven",
    "row 1": "no caption",
    "row 2": "an empty caption",
    "row 3": "no image",
    "row 4": "cut short",  # found out when it is read
}


def test_a_parquet_file(hub_cache, tmp_path):
    path = parquet(hub_cache, tmp_path / "rows.parquet")
    config = SDConfig(data="datasets", data_path=path, **COLUMNS)
    source = open_source(config)
    assert source.total() == 5
    assert summary(source) == WANTED
    assert source[0].picture == encoded(picture(0))


def test_a_folder_of_parquet_files_and_one_of_save_to_disk(hub_cache, tmp_path):
    (tmp_path / "data").mkdir()
    parquet(hub_cache, tmp_path / "data" / "train.parquet")
    assert summary(DatasetsSource(str(tmp_path / "data"), **COLUMNS)) == WANTED
    table = hub_cache.Dataset.from_dict(rows()).cast_column("picture", hub_cache.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    assert summary(DatasetsSource(str(tmp_path / "saved"), **COLUMNS)) == WANTED
    splits = hub_cache.DatasetDict({"a": table, "train": table.select([0])})
    splits.save_to_disk(str(tmp_path / "splits"))
    assert len(DatasetsSource(str(tmp_path / "splits"), **COLUMNS)) == 1
    del splits["train"]
    splits["b"] = table
    splits.save_to_disk(str(tmp_path / "two"))
    with pytest.raises(ValueError, match="has the splits 'a', 'b'; allowed: one split, or one"):
        len(DatasetsSource(str(tmp_path / "two"), **COLUMNS))


def test_an_image_folder(hub_cache, tmp_path):
    """What the library makes of a folder of images: paths, not bytes."""
    folder = image_folder(tmp_path / "data", 3)
    source = DatasetsSource(str(folder))
    assert {e.caption for _, e in source.items(0)} == set(CAPTIONS[:3])
    assert Path(source[0].picture).is_file()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_column": "image"}, r"no column 'image'; .*: 'picture', 'words', 'n'"),
        ({"caption_column": "text"}, r"no column 'text'; .*: 'picture', 'words', 'n'"),
        ({"image_column": "n"}, r"column 'n' of .* holds Value\('int64'\); allowed as image_col"),
        ({"caption_column": "n"}, r"column 'n' of .* holds Value\('int64'\); allowed as caption"),
    ],
)
def test_wrong_columns(columns, message, hub_cache, tmp_path):
    path = parquet(hub_cache, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=message):
        len(DatasetsSource(path, **{**COLUMNS, **columns}))


def test_data_that_are_no_data_set(hub_cache, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 it is not")
    with pytest.raises(ValueError, match=r"bad.parquet' cannot be loaded by the datasets library"):
        len(DatasetsSource(str(tmp_path / "bad.parquet")))
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=r"empty' cannot be loaded"):
        len(DatasetsSource(str(tmp_path / "empty")))
    path = parquet(hub_cache, tmp_path / "none.parquet", {"picture": [], "words": []})
    with pytest.raises(ValueError, match=r"none.parquet' .*"):
        len(DatasetsSource(path, **COLUMNS))


@pytest.mark.parametrize("path", ["./none", "/nowhere/data", "none.parquet", "C:\\none", "a/b/c"])
def test_a_path_that_is_not_there(path):
    with pytest.raises(FileNotFoundError, match=r"is not there; allowed: a folder, a \.parquet"):
        DatasetsSource(path)


@pytest.mark.parametrize("revision", [None, "main", "a" * 39, "A" * 40])
def test_an_id_needs_a_commit(revision):
    config = SDConfig(data="datasets", data_path="owner/name", data_revision=revision)
    with pytest.raises(ValueError, match=rf"data_revision is {revision!r}.*40 hexadecimal digits"):
        open_source(config)


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def test_no_network(tmp_path):
    pytest.importorskip("datasets")
    code = (
        "from slam_edu.sd.data.sources import DatasetsSource\n"
        f"source = DatasetsSource('owner/name', revision='{'a' * 40}')\n"
        f"assert source.identity() == {{'id': 'owner/name', 'revision': '{'a' * 40}'}}\n"
        "try:\n    len(source)\n"
        "except ConnectionError as error:\n    print(error)\n"
    )
    done = run(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "the data set 'owner/name' cannot be fetched (" in done.stdout
    fetch = f"hf download owner/name --repo-type dataset --revision {'a' * 40} --local-dir FOLDER"
    assert fetch in done.stdout
    assert "data_path=FOLDER" in done.stdout


@pytest.mark.parametrize(("package", "extra"), [("datasets", "data"), ("webdataset", "sd")])
def test_without_the_package(package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    config = SDConfig(data=package, data_path="data")
    message = rf"data='{package}' needs {package}; install .* `pip install slam_edu\[{extra}\]`"
    with pytest.raises(ModuleNotFoundError, match=message):
        len(open_source(config))


def test_heavy_libraries_are_imported_when_they_are_needed():
    heavy = ("diffusers", "transformers", "PIL", "webdataset", "datasets", "filelock", "tqdm")
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nimport slam_edu.sd.data\n"
        f"print([n for n in {heavy} if n in sys.modules and n not in before])"
    )
    done = run(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_rejection_in_words():
    assert str(Rejection("a.png", "no caption")) == "a.png: no caption"
    assert str(Rejection("a.png", "no caption", "null")) == "a.png: no caption (null)"

"""Files are written whole or not at all; logs; where the course's data are found."""

import os
import stat
import sys
from pathlib import Path

import pytest

from slam_edu import io
from slam_edu.io import append_row, atomic_path, data_path, read_rows, replaced_folder, shorten


def test_an_interruption_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    old = tmp_path / "a.png"
    with atomic_path(old) as path:
        assert (path.suffix, path.parent) == (".png", tmp_path)
        path.write_text("old")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(old.stat().st_mode) == 0o666 & ~umask

    def write():
        with atomic_path(old) as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(ValueError, match="is a file"), replaced_folder(old):
        pass
    with pytest.raises(ValueError, match="is a folder"), atomic_path(tmp_path):
        pass
    with pytest.raises(ValueError, match="does not exist"), atomic_path(tmp_path / "no" / "a.txt"):
        pass


# -------------------------------------------------------------------- whole folders


def test_a_folder_is_replaced_and_keeps_what_is_named(tmp_path):
    out = tmp_path / "made" / "out"
    with replaced_folder(out) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a.txt").write_text("1")
        assert not out.exists()
    (out / "card.md").write_text("by hand")
    with replaced_folder(out, keep=("card.md", "none.md")) as folder:
        (folder / "b.txt").write_text("2")
        (folder / "b.txt").chmod(0o600)
        assert (out / "part" / "a.txt").read_text() == "1"
    assert sorted(path.name for path in out.iterdir()) == ["b.txt", "card.md"]
    assert (out / "card.md").read_text() == "by hand"
    assert os.listdir(tmp_path / "made") == ["out"]
    if sys.platform != "win32":
        assert stat.S_IMODE((out / "b.txt").stat().st_mode) == 0o644


def test_an_interruption_keeps_the_old_folder(tmp_path, monkeypatch):
    """While it is filled, and at the last moment, when the old one is moved away already."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("old")

    def write(fail):
        with replaced_folder(out) as folder:
            (folder / "a.txt").write_text("new")
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(fail=True)
    moved, rename = [], Path.rename

    def failing(self, target):
        moved.append(self.name)
        if len(moved) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        write(fail=False)
    assert len(moved) == 3
    assert (out / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


# -------------------------------------------------------------------- logs


def test_a_log_is_cut_back_to_a_checkpoint(tmp_path):
    path, columns = tmp_path / "log.csv", ("update", "loss", "seconds")
    assert read_rows(path) == []
    for update in (2, 4, 6):
        append_row(path, columns, [update, 1 / update, 10.0 * update])
    with path.open("a") as file:
        file.write("8,0.1")  # killed while it was written
    assert [row["update"] for row in read_rows(path)] == [2, 4, 6]
    assert shorten(path, columns, 5) == 40.0
    assert read_rows(path) == [
        {"update": 2, "loss": 0.5, "seconds": 20}, {"update": 4, "loss": 0.25, "seconds": 40}
    ]  # fmt: skip
    path.write_text("update,loss\n1,x\n2,3\n")
    with pytest.raises(ValueError, match=r"row 2, cannot be read"):
        read_rows(path)


# -------------------------------------------------------------------- the course's data


def test_the_wheels_own_copy_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "_PACKAGE", tmp_path / "slam_edu")
    for folder in (tmp_path / "data", tmp_path / "slam_edu" / "_data"):
        (folder / "pictures").mkdir(parents=True)
        (folder / "pictures" / "a.png").touch()
        assert data_path("pictures/a.png") == folder / "pictures" / "a.png"
        assert data_path("pictures") == folder / "pictures"


def test_a_missing_file_is_named_with_the_places_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "_PACKAGE", tmp_path / "slam_edu")
    with pytest.raises(FileNotFoundError, match=r"'a/none\.png' is missing: ") as caught:
        data_path("a/none.png")
    for folder in (tmp_path / "slam_edu" / "_data", tmp_path / "data"):
        assert str(folder / "a" / "none.png") in str(caught.value)


def test_a_path_out_of_the_folder_is_refused():
    for name in ("", "/etc/passwd", "a/../../b", "a\\b"):
        with pytest.raises(ValueError, match="a path below data/") as caught:
            data_path(name)
        assert repr(name) in str(caught.value)

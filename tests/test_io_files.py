"""Files are written whole or not at all."""

import os
import stat
import sys
from pathlib import Path

import pytest

from slam_edu.io import atomic_path, replaced_folder


def test_writes_the_file(tmp_path):
    with atomic_path(tmp_path / "a.txt") as path:
        path.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not replace an open file")
def test_a_reader_of_the_old_file_never_sees_half_of_the_new_one(tmp_path):
    old = tmp_path / "a.txt"
    old.write_text("old")
    with old.open() as reader:
        with atomic_path(old) as path:
            path.write_text("new")
        # The name points to another file now; the open one was not written to.
        assert reader.read() == "old"
    assert old.read_text() == "new"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_the_old_file_and_leaves_nothing_else(tmp_path, interruption):
    old = tmp_path / "a.txt"
    old.write_text("old")

    def write():
        with atomic_path(old) as path:
            path.write_text("half")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_keeps_the_suffix_and_the_usual_permissions(tmp_path):
    with atomic_path(tmp_path / "a.png") as path:
        assert path.suffix == ".png"
        assert path.parent == tmp_path
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o666 & ~umask


def test_refuses_a_folder_and_a_missing_folder(tmp_path):
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


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interruption_keeps_the_old_folder(tmp_path, interruption, monkeypatch):
    """While it is filled, and at the last moment, when the old one is moved away already."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("old")

    def write(fail):
        with replaced_folder(out) as folder:
            (folder / "a.txt").write_text("new")
            if fail:
                raise interruption

    with pytest.raises(interruption):
        write(fail=True)
    moved, rename = [], Path.rename

    def failing(self, target):
        moved.append(self.name)
        if len(moved) == 2:
            raise interruption
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(interruption):
        write(fail=False)
    assert moved[0] == "out"
    assert len(moved) == 3
    assert (out / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_no_folder_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ValueError, match="is a file"), replaced_folder(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"

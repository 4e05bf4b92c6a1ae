"""Files are written whole or not at all."""

import os
import stat
import sys

import pytest

from slam_edu.files import atomic_path


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

"""Files are written whole or not at all; logs; where the course's data are found."""

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from slam_edu import io
from slam_edu.io import (
    CHECKSUMS,
    append_row,
    atomic_path,
    check_output,
    data_path,
    locked,
    make_folder,
    read_rows,
    replaced_folder,
    sha256_of,
    shorten,
)


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


def write(out, files, **options):
    with replaced_folder(out, **options) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def contents(folder):
    """Name to text of all files, but the list of checksums."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != CHECKSUMS
    }


def test_only_what_was_written_is_replaced(tmp_path):
    out = tmp_path / "made" / "out"
    write(out, {"card.md": "1", "part/a": "1", "old/b": "1"})
    theirs = {".git/HEAD": "ref", "notes.txt": "mine", "mine/a": "mine"}
    for name, text in theirs.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    write(out, {"card.md": "2", "part/c": "2"})
    assert contents(out) == {"card.md": "2", "part/c": "2", **theirs}
    assert not (out / "old").exists()
    assert os.listdir(tmp_path / "made") == ["out"]
    if sys.platform != "win32":
        assert stat.S_IMODE((out / "card.md").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda out: (out / "card.md").write_text("edited"), "card.md"),
        (lambda out: (out / "part" / "more").write_text("added"), "part/more"),
        (lambda out: (out / "new").write_text("of the same name"), "new"),
        (lambda out: (out / CHECKSUMS).unlink(), "card.md, part/a"),
        (lambda out: (out / CHECKSUMS).write_text('{"card.md": "a4e6"}'), "checksums.json"),
        (lambda out: [(out / "part" / "a").unlink(), (out / "part" / "a").symlink_to("b")],
         "part/a"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_refused_by_name(tmp_path, change, named):
    out, said = tmp_path / "out", []
    write(out, {"card.md": "1", "part/a": "1"})
    change(out)
    before, new = contents(out), {"card.md": "2", "part/a": "2", "new": "2"}
    with pytest.raises(ValueError, match="slam_edu did not write") as caught:
        write(out, new)
    assert named in str(caught.value)
    assert "--force" not in str(caught.value)
    assert contents(out) == before
    with pytest.raises(ValueError, match=r"\(--force deletes them\)"):
        write(out, new, force=False, parts=new)
    write(out, new, force=True, show=said.append)
    assert contents(out) == new
    assert named in " ".join(said)


def test_a_list_of_somebody_else_leads_nowhere(tmp_path):
    """A list is data: a path in it that leaves the folder is followed by nobody."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.write_text("theirs")
    names = ("../outside", str(outside))
    listed = {name: sha256_of(outside) for name in names}
    (out / CHECKSUMS).write_text(json.dumps({"slam_edu": listed}))
    write(out, {"a": "1"})
    assert outside.read_text() == "theirs"
    assert contents(out) == {"a": "1"}


class _Interrupted(dict):
    def items(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize("last", range(7))
def test_an_interruption_keeps_the_old_folder(tmp_path, monkeypatch, last):
    """While it is filled, and at each of the moves."""
    out, done, rename = tmp_path / "out", [], Path.rename
    write(out, {"a": "1", "b": "1"})
    before = contents(out)

    def failing(self, target):
        done.append(self.name)
        if len(done) == last:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        write(out, {"a": "2", "c": "2"} if last else _Interrupted())
    assert contents(out) == before
    assert sorted(os.listdir(out)) == ["a", "b", CHECKSUMS]
    monkeypatch.undo()
    write(out, {"a": "3"})
    assert contents(out) == {"a": "3"}


KILLED = """
import os, signal, sys
from pathlib import Path
from slam_edu.io import atomic_path, replaced_folder
rename, done = Path.rename, []
def kill(self, target):
    done.append(self)
    if len(done) > int(folder.name):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = kill
for folder in map(Path, sys.argv[1:]):
    if not os.fork():
        with replaced_folder(folder) as new:
            for name in "abc":
                (new / name).write_text("2")
    os.wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_kill_leaves_no_mixture_and_what_it_left_is_cleared(tmp_path):
    folders = [tmp_path / str(moves) for moves in range(7)]  # 3 go, 4 come
    for out in folders:
        write(out, {"a": "1", "b": "1"})
        (out / ".slam_edu-mine").write_text("theirs")
    subprocess.run([sys.executable, "-c", KILLED, *folders], check=True)
    for out in folders:
        assert len([path for path in out.iterdir() if path.is_dir()]) == 1
        assert len({(out / name).read_text() for name in "abc" if (out / name).exists()}) <= 1
        write(out, {"a": "3"})
        assert contents(out) == {"a": "3", ".slam_edu-mine": "theirs"}


# -------------------------------------------------------------------- what the system refuses


def test_the_systems_errors_name_the_file_and_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/a/b' cannot be written \(Not a directory.* are free"):
        make_folder(tmp_path / "file" / "a" / "b")
    with pytest.raises(ValueError, match="is a file; allowed: the name of a folder"):
        make_folder(tmp_path / "file")

    def full(*_words, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    for write_it in (
        lambda path: atomic_path(path).__enter__(),
        check_output,
        lambda path: append_row(path, ("update",), [1.0]),
    ):
        monkeypatch.setattr(Path, "open", full)
        words = r"cannot be written \(No space left on device\); .* MB are free there\. Make room"
        with pytest.raises(OSError, match=rf"log.csv' {words}"):
            write_it(tmp_path / "log.csv")


def test_a_folder_in_use(tmp_path):
    with locked(tmp_path):
        with pytest.raises(ValueError, match="is in use by another process"):
            write(tmp_path, {})
        assert os.listdir(tmp_path) == [".lock"]
    assert os.listdir(tmp_path) == []


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

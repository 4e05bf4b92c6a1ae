"""Webdataset shards, whole and cut short, from files and from a server of this process."""

import gzip
import http.server
import json
import re
import threading

import pytest

from slam_edu.sd.config import SDConfig
from slam_edu.sd.data import open_source
from slam_edu.sd.data import shards as module
from slam_edu.sd.data.entries import Item
from slam_edu.sd.data.shards import CUT, NO_TAR, expand_shards
from tests.sd.images import CAPTIONS, caption, encoded, picture, sample_files, shards, tar_of


def names(source, position=(0, 0)):
    """Caption of each item, reason of each rejection, in order."""
    entries, _ = source.read(position, 1000)
    return [(e.name, e.caption if isinstance(e, Item) else e.reason) for e in entries]


def source_of(path, **changes):
    return open_source(SDConfig(data="webdataset", data_path=str(path), **changes))


def of_bytes(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    return source_of(tmp_path / "a.tar")


def three_samples():
    return {**sample_files(0), **sample_files(1), **sample_files(2)}


# -------------------------------------------------------------------- which shards


def test_braces(tmp_path, monkeypatch):
    pattern = shards(tmp_path, (1, 1, 1))
    files = [str(tmp_path / f"shard-{n:02}.tar") for n in range(3)]
    for text in (pattern, str(tmp_path), str(tmp_path / "shard-*.tar")):
        assert expand_shards(text) == files
    assert expand_shards(str(tmp_path / "shard-{02,00}.tar")) == [files[2], files[0]]
    assert expand_shards("https://example.org/{a,b}-{08..10}.tar")[:4] == [
        f"https://example.org/{x}.tar" for x in ("a-08", "a-09", "a-10", "b-08")
    ]
    monkeypatch.setattr(module.Path, "is_file", lambda path: True)  # of Windows
    assert expand_shards(r"C:\data\s-{0..1}.tar") == [r"C:\data\s-0.tar", r"C:\data\s-1.tar"]


def test_shards_that_are_not_there(tmp_path):
    for text in ("pipe:cat a.tar", "s3://bucket/a.tar", "file:///tmp/a.tar"):
        with pytest.raises(ValueError, match=re.escape(text) + r".*as http:// or https:// addr"):
            expand_shards(text)
    shards(tmp_path / "data", (1, 1))
    with pytest.raises(FileNotFoundError, match=r"shard-02.tar' is not there; .*\(2 of 4 are"):
        expand_shards(str(tmp_path / "data" / "shard-{00..03}.tar"))
    with pytest.raises(FileNotFoundError, match=r"x\*\.tar' is not there"):
        expand_shards(str(tmp_path / "x*.tar"))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none' holds no shard; allowed: files that end in"):
        expand_shards(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="allowed: braces in pairs"):
        expand_shards(str(tmp_path / "a{0..1.tar"))


# -------------------------------------------------------------------- samples


def test_samples_in_order(tmp_path):
    source = source_of(shards(tmp_path))
    wanted = [
        (f"shard-{shard:02}.tar/{n:03}", caption(n))
        for n, shard in enumerate([0] * 4 + [1] * 4 + [2] * 3)
    ]
    assert names(source) == wanted
    assert source.read([1, 2], 1)[0][0].picture == encoded(picture(6))
    position = source.start
    for k in range(1, len(wanted) + 1):  # from any position on, as JSON gives it back
        entries, position = source.read(position, 1)
        assert entries[0].name == wanted[k - 1][0]
        assert names(source_of(tmp_path), json.loads(json.dumps(position))) == wanted[k:]


def test_captions_and_faulty_samples(tmp_path):
    png = encoded(picture(0))
    files = [
        ("a.jpg", png), ("a.json", b'{"text": "from json", "caption": "not this"}'),
        ("b.webp", png), ("b.json", b'{"caption": "by its usual name"}'), ("b.cls", b"3"),
        ("sub.d/c.PNG", png), ("sub.d/c.txt", b"in a folder\n"), ("sub.d/c.json", b"no"),
        ("no_dot", b"{}"),
        ("d.png", png),
        ("e.txt", b"no picture"),
        ("f.png", png), ("f.txt", b"  "),
        ("g.png", png), ("g.json", b"{"),
        ("h.png", png), ("h.json", b'["a"]'),
        ("i.png", png), ("i.txt", b"\xff\xfe\xfa"),
        ("j.png", png), ("j.txt", b"good"), ("j.png", png),
        ("k.gif", png), ("k.txt", b"its pixels decide"),
    ]  # fmt: skip
    source = of_bytes(tmp_path, tar_of(files))
    assert names(source) == [
        ("a.tar/a", "from json"),
        ("a.tar/b", "by its usual name"),
        ("a.tar/sub.d/c", "in a folder"),
        ("a.tar/d", "no caption"),
        ("a.tar/e", "no image"),
        ("a.tar/f", "an empty caption"),
        ("a.tar/g", "a caption file that is not JSON"),
        ("a.tar/h", "a caption file that is not JSON"),
        ("a.tar/i", "a caption that is not UTF-8"),
        ("a.tar/j", "good"),
        ("a.tar/k", "its pixels decide"),
        ("a.tar", "a link, or a name without an end, in a shard"),
        ("a.tar", "a file name twice in a shard"),
    ]
    source = source_of(source.shards[0], caption_column="caption", empty_captions="keep")
    assert [names(source)[n] for n in (0, 5)] == [("a.tar/a", "not this"), ("a.tar/f", "")]


@pytest.mark.parametrize("change", [bytes, gzip.compress])
def test_cut_at_every_place(change, tmp_path):
    """Wherever a shard is cut, its whole samples are used and the cut is noticed."""
    plain = change is bytes
    content = change(tar_of(three_samples()))
    whole = [(f"a.tar/{n:03}", caption(n)) for n in range(3)]
    assert names(of_bytes(tmp_path, content)) == whole
    # A tar ends with zeros; this is where its last file does.
    end = -(-len(content.rstrip(b"\0")) // 512) * 512 if plain else len(content) - 1
    seen = set()
    for cut in {*range(1, end, 499), *range(512, end, 512), end}:
        found = names(of_bytes(tmp_path, content[:cut]))
        samples = [one for one in found if one in whole]
        seen.add(len(samples))
        assert samples == whole[: len(samples)], cut
        if found == whole and not plain:  # the zeros take a few bytes
            continue
        [fault] = found[len(samples) :]
        assert fault in [("a.tar", CUT)] + [("a.tar", NO_TAR)] * (not plain or cut < 512), cut
    assert seen >= ({0, 1, 2, 3} if plain else {0, 3})


def test_what_is_cut_is_rejected_once(tmp_path):
    """The last image is whole, its caption is behind the cut: one rejection, not two."""
    content = tar_of(three_samples())
    second = content.index(b"001.txt")
    source = of_bytes(tmp_path, content[:second])
    assert names(source) == [("a.tar/000", caption(0)), ("a.tar", CUT)]
    assert str(list(source.shard(0))[-1]) == "a.tar: a shard that is cut short (no end mark)"
    for no_shard in (b"", b"<html>404</html>" * 100, bytes(range(256)) * 20):
        assert names(of_bytes(tmp_path, no_shard)) == [("a.tar", NO_TAR)]


# -------------------------------------------------------------------- over the network


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, begin = self.server, self.headers.get("Range")
        server.asked.append((self.path, begin))
        content = server.files.get(self.path.split("?")[0])
        if server.codes:
            return self.send_error(server.codes.pop(0))
        if content is None:
            return self.send_error(404)
        content = content[int(begin[6:-1]) if begin and server.ranges else 0 :]
        self.send_response(206 if begin and server.ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if server.drops:  # the connection is closed half-way
            server.drops -= 1
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "WAITS", (0.0, 0.0, 0.0))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.files, server.ranges, server.drops, server.codes, server.asked = {}, True, 0, [], []
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_streamed_shards(server, tmp_path):
    shards(tmp_path, (2, 1))
    server.files = {f"/{p.name}": p.read_bytes() for p in tmp_path.glob("*.tar")}
    server.codes = [503]  # it is busy at first
    source = source_of(server.address + "/shard-{00..01}.tar?key=1")
    assert [text for _, text in names(source)] == CAPTIONS[:3]
    assert [path for path, _ in server.asked] == [
        "/shard-00.tar?key=1", "/shard-00.tar?key=1", "/shard-01.tar?key=1"
    ]  # fmt: skip
    server.asked.clear()  # one after the other, when it is needed: not all at the start
    source.read(source.start, 2)
    assert len(server.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_lost_connection_is_made_again(ranges, server):
    content = bytes(range(256)) * 4000
    server.files, server.ranges, server.drops = {"/a": content}, ranges, 3
    file, parts = module._Download(server.address + "/a"), [b" "]
    while parts[-1]:
        parts.append(file.read(1 << 20))
    file.close()
    assert b"".join(parts[1:]) == content
    assert len(server.asked) == 4
    assert server.asked[1] == ("/a", f"bytes={len(content) // 2}-")


def test_an_address_that_cannot_be_read(server):
    source = source_of(server.address + "/a.tar")
    with pytest.raises(ConnectionError, match=r"a.tar' cannot be read: it answered 404 Not Found"):
        names(source)
    assert len(server.asked) == 1  # asked again it would say the same
    server.files, server.ranges, server.drops = {"/a.tar": tar_of(three_samples())}, False, 100
    with pytest.raises(ConnectionError, match=r"the connection is lost"):
        names(source)
    server.shutdown()
    server.server_close()
    message = r"refused.* Check the address and the network, or copy the shards to a folder"
    with pytest.raises(ConnectionError, match=message):
        names(source)

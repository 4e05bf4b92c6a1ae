"""Webdataset shards, whole and cut short, from files and from a server of this process."""

import gzip
import http.server
import io
import json
import lzma
import re
import threading

import pytest

from slam_edu.sd.config import SDConfig
from slam_edu.sd.data import shards as module
from slam_edu.sd.data.shards import Download, ShardSource, expand_shards
from slam_edu.sd.data.sources import Item, open_source
from tests.sd.images import CAPTIONS, caption, encoded, picture, sample_files, shards, tar_of

CUT = "a shard that is cut short"


def names(source, position=None):
    """Caption of each item, reason of each rejection, in order."""
    entries = source.items(source.start if position is None else position)
    return [(e.name, e.caption if isinstance(e, Item) else e.reason) for _, e in entries]


def of_bytes(tmp_path, content, name="a.tar"):
    (tmp_path / name).write_bytes(content)
    return ShardSource(str(tmp_path / name))


# -------------------------------------------------------------------- which shards


def test_braces(tmp_path):
    pattern = shards(tmp_path, (1, 1, 1))
    assert expand_shards(pattern) == [str(tmp_path / f"shard-{n:02}.tar") for n in range(3)]
    assert expand_shards(str(tmp_path)) == expand_shards(pattern)
    assert expand_shards(str(tmp_path / "shard-*.tar")) == expand_shards(pattern)
    two = expand_shards(str(tmp_path / "shard-{02,00}.tar"))
    assert two == [str(tmp_path / f"shard-{n:02}.tar") for n in (2, 0)]
    addresses = expand_shards("https://example.org/{a,b}-{08..10}.tar")
    assert addresses[:4] == [
        f"https://example.org/{x}.tar" for x in ("a-08", "a-09", "a-10", "b-08")
    ]


def test_a_windows_path_keeps_its_backslashes(monkeypatch):
    monkeypatch.setattr(module.Path, "is_file", lambda path: True)
    assert expand_shards(r"C:\data\s-{0..1}.tar") == [r"C:\data\s-0.tar", r"C:\data\s-1.tar"]


@pytest.mark.parametrize("text", ["pipe:cat a.tar", "s3://bucket/a.tar", "file:///tmp/a.tar"])
def test_addresses_of_other_kinds(text):
    message = r"allowed: shards as paths or as http:// or https:// addresses"
    with pytest.raises(ValueError, match=re.escape(text) + ".*" + message):
        expand_shards(text)


def test_shards_that_are_not_there(tmp_path):
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
    source = open_source(SDConfig(data="webdataset", data_path=shards(tmp_path)))
    wanted = [
        (f"shard-{shard:02}.tar/{n:03}", caption(n))
        for n, shard in enumerate([0] * 4 + [1] * 4 + [2] * 3)
    ]
    assert names(source) == wanted
    assert [p for p, _ in source.items([0, 0])] == [
        [shard, place] for shard, size in ((0, 4), (1, 4), (2, 3)) for place in range(1, size + 1)
    ]
    assert next(source.items([1, 2]))[1].picture == encoded(picture(6))
    # From any position on, as JSON gives it back.
    for k, (position, _) in enumerate(list(source.items(source.start)), 1):
        assert names(source, json.loads(json.dumps(position))) == wanted[k:]


def test_captions_in_json_and_other_names(tmp_path):
    png = encoded(picture(0))
    files = {
        "a.jpg": png, "a.json": b'{"text": "from json", "caption": "not this"}',
        "b.webp": png, "b.json": b'{"caption": "by its usual name"}', "b.cls": b"3",
        "sub/c.PNG": png, "sub/c.txt": b"in a folder\n", "sub/c.json": b"not looked at",
        "__meta__": b"{}",
    }  # fmt: skip
    source = of_bytes(tmp_path, tar_of(files))
    assert names(source) == [
        ("a.tar/a", "from json"), ("a.tar/b", "by its usual name"), ("a.tar/sub/c", "in a folder")
    ]  # fmt: skip
    source = ShardSource(str(tmp_path / "a.tar"), caption_column="caption")
    assert names(source)[0] == ("a.tar/a", "not this")


def test_faulty_samples(tmp_path):
    png = encoded(picture(0))
    files = [
        ("a.png", png),
        ("b.txt", b"no picture"),
        ("c.png", png), ("c.txt", b"  "),
        ("d.png", png), ("d.json", b"{"),
        ("e.png", png), ("e.json", b'["a"]'),
        ("f.png", png), ("f.json", b'{"text": null}'),
        ("g.png", png), ("g.txt", b"\xff\xfe\xfa"),
        ("h.png", png), ("h.txt", b"good"), ("h.png", png),
        ("i.gif", png), ("i.txt", b"a kind that is not read"),
    ]  # fmt: skip
    assert names(of_bytes(tmp_path, tar_of(files))) == [
        ("a.tar/a", "no caption"),
        ("a.tar/b", "no image"),
        ("a.tar/c", "an empty caption"),
        ("a.tar/d", "a caption file that is not JSON"),
        ("a.tar/e", "a caption file that is not JSON"),
        ("a.tar/f", "no caption"),
        ("a.tar/g", "a caption that is not UTF-8"),
        ("a.tar/h", "good"),
        ("a.tar/i", "no image"),
        ("a.tar", "a file name twice in a shard"),
    ]
    keep = ShardSource(str(tmp_path / "a.tar"), empty_captions="keep")
    assert names(keep)[2] == ("a.tar/c", "")


def three_samples():
    return {**sample_files(0), **sample_files(1), **sample_files(2)}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(gzip.compress, id="gz"),
        pytest.param(lzma.compress, id="xz"),
        pytest.param(lambda content: content, id="tar"),
    ],
)
def test_compressed_and_cut_at_every_place(change, tmp_path):
    """Wherever a shard is cut, its whole samples are used and the cut is noticed."""
    content = change(tar_of(three_samples()))
    whole = [(f"a.tar/{n:03}", caption(n)) for n in range(3)]
    assert names(of_bytes(tmp_path, content)) == whole
    seen = set()
    plain = change(b"") == b""
    # A plain tar ends with 1024 zeros and more padding; this is where the last file ends.
    end = -(-len(content.rstrip(b"\0")) // 512) * 512 if plain else len(content) - 1
    for cut in {*range(1, end, 499), *range(512, end, 512), end}:
        found = names(of_bytes(tmp_path, content[:cut]))
        *samples, fault = found
        assert samples == whole[: len(samples)], cut
        assert fault[0] == "a.tar", cut
        if plain and cut >= 512:  # with less nothing says that it is a tar file
            assert fault[1] == CUT, cut
        assert fault[1] in (CUT, "a shard that cannot be read"), cut
        seen.add(len(samples))
    assert seen >= ({0, 1, 2, 3} if plain else {0})


def test_a_cut_between_two_files_of_a_sample(tmp_path):
    """The image is whole, its caption is behind the cut: one rejection, not two."""
    content = tar_of(three_samples())
    second = content.index(b"001.txt")
    assert second % 512 == 0
    assert names(of_bytes(tmp_path, content[:second])) == [
        ("a.tar/000", caption(0)), ("a.tar", CUT)
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100, bytes(range(256)) * 20])
def test_a_file_that_is_no_shard(content, tmp_path):
    assert names(of_bytes(tmp_path, content)) == [("a.tar", "a shard that cannot be read")]


def test_the_reason_names_what_was_wrong(tmp_path):
    source = of_bytes(tmp_path, tar_of(three_samples())[:2000])
    *_, (_, cut) = source.items([0, 0])
    assert str(cut) == "a.tar: a shard that is cut short (unexpected end of data @ a.tar)"


# -------------------------------------------------------------------- over the network


class Server(http.server.ThreadingHTTPServer):
    """Serves what is in ``files``; ``drops`` connections are closed half-way."""

    daemon_threads = True

    def __init__(self, files, ranges=True):
        self.files, self.ranges = files, ranges
        self.drops, self.codes, self.asked = 0, [], []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        begin = self.headers.get("Range")
        server.asked.append((self.path, begin))
        content = server.files.get(self.path.split("?")[0])
        if server.codes:
            return self.send_error(server.codes.pop(0))
        if content is None:
            return self.send_error(404)
        skip = int(begin[6:-1]) if begin and server.ranges else 0
        content = content[skip:]
        self.send_response(206 if skip else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if server.drops:
            server.drops -= 1
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(module, "WAITS", (0.0, 0.0, 0.0))
    servers = []

    def start(files, **options):
        server = Server(files, **options)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_streamed_shards(serve, tmp_path):
    shards(tmp_path, (2, 1))
    server = serve({f"/{p.name}": p.read_bytes() for p in tmp_path.glob("*.tar")})
    source = ShardSource(server.address + "/shard-{00..01}.tar?key=1")
    assert names(source) == [
        ("shard-00.tar/000", CAPTIONS[0]), ("shard-00.tar/001", CAPTIONS[1]),
        ("shard-01.tar/002", CAPTIONS[2]),
    ]  # fmt: skip
    assert server.asked == [("/shard-00.tar?key=1", None), ("/shard-01.tar?key=1", None)]
    # One after the other, when it is needed: not all at the start.
    server.asked.clear()
    items = source.items([0, 0])
    next(items), next(items)
    assert len(server.asked) == 1
    items.close()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_lost_connection_is_made_again(ranges, serve):
    content = bytes(range(256)) * 4000
    server = serve({"/a": content}, ranges=ranges)
    server.drops = 3
    assert io.BufferedReader(Download(server.address + "/a"), 1 << 16).read() == content
    assert server.asked[0] == ("/a", None)
    assert len(server.asked) == 4
    assert server.asked[1][1] == f"bytes={len(content) // 2}-"


def test_a_connection_that_is_always_lost(serve):
    server = serve({"/a.tar": tar_of(three_samples())}, ranges=False)
    server.drops = 100
    message = r"a.tar' cannot be read: the connection is lost at byte [\d,]+ each time|lost again"
    with pytest.raises(ConnectionError, match=message):
        names(ShardSource(server.address + "/a.tar"))


def test_a_server_that_is_busy_at_first(serve):
    server = serve({"/a.tar": tar_of(three_samples())})
    server.codes = [503]
    assert len(names(ShardSource(server.address + "/a.tar"))) == 3


def test_an_answer_that_is_no_file(serve):
    server = serve({})
    with pytest.raises(ConnectionError, match=r"a.tar' cannot be read: it answered 404 Not Found"):
        names(ShardSource(server.address + "/a.tar"))
    assert len(server.asked) == 1  # asked again it would say the same


def test_an_address_that_cannot_be_reached(serve):
    server = serve({})
    address = server.address
    server.shutdown()
    server.server_close()
    message = (
        r"the shard 'http://127.0.0.1:\d+/a.tar' cannot be read: .*refused.* Check the address "
        r"and the network, or copy the shards to a folder"
    )
    with pytest.raises(ConnectionError, match=message):
        names(ShardSource(f"{address}/a.tar"))


def test_a_shard_that_is_cut_short_on_the_server(serve):
    server = serve({"/a.tar": tar_of(three_samples())[:2000]})
    *_, fault = names(ShardSource(server.address + "/a.tar"))
    assert fault == ("a.tar", CUT)
    assert len(server.asked) == 1

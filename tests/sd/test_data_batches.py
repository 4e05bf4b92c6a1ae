"""Sample number n is the same for all who ask, whatever was asked before."""

from collections import Counter

import pytest
import torch

from slam_edu.sd.components import encode_images, text_condition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data import (
    CachedBatches,
    EncodedBatches,
    StreamBatches,
    make_cache,
    open_batches,
    open_source,
)
from slam_edu.sd.data import batches as module
from slam_edu.sd.data.batches import place_in_epoch
from slam_edu.sd.tiny import tiny_pipeline, tiny_xl_pipeline
from tests.sd.images import (
    CAPTIONS,
    caption,
    encoded,
    image_folder,
    picture,
    quiet,
    sample_files,
    tar_of,
    values,
)
from tests.sd.images import shards as make_shards


@pytest.fixture(scope="module")
def sd():
    return tiny_pipeline()


def folder_config(path, **changes):
    settings = {"data": "folder", "data_path": str(path), "cache_dtype": "float32"}
    return SDConfig(**{**settings, **changes})


def latents_of(pipeline, numbers):
    """Of the images with these numbers, by hand."""
    return encode_images(pipeline.vae, torch.stack([values(picture(n)) for n in numbers]))


def which(pipeline, batch, count):
    """Numbers of the images that have a batch's latents."""
    every = latents_of(pipeline, range(count))
    distance = (batch[0][:, None] - every).abs().amax((2, 3, 4))
    assert (distance.min(1).values < 1e-3).all()
    return distance.argmin(1).tolist()


def test_each_epoch_has_all_in_an_order_of_its_own():
    epochs = [[place_in_epoch(n, 50, 3) for n in range(e * 50, e * 50 + 50)] for e in range(6)]
    assert all(sorted(order) == list(range(50)) for order in epochs)
    assert len(set(map(tuple, epochs))) == 6
    assert [place_in_epoch(n, 50, 3) for n in range(99, 49, -1)] == epochs[1][::-1]
    assert [place_in_epoch(n, 50, 4) for n in range(50)] != epochs[0]
    # Old runs go on with these.
    assert [place_in_epoch(n, 16_000, 0) for n in (0, 1, 16_000)] == [8502, 12874, 3791]


def test_cached_and_encoded_batches_are_the_same(tmp_path):
    pipeline = tiny_xl_pipeline()
    config = folder_config(image_folder(tmp_path / "data", 10))
    cached = CachedBatches(make_cache(config, pipeline, tmp_path / "c", show=quiet), seed=7)
    direct = EncodedBatches(open_source(config), pipeline, 7, config)
    assert cached.latent_shape == direct.latent_shape == (4, 8, 8)
    for numbers in ([0, 1, 2], [9, 10, 11, 25], [3]):
        (a, c), (b, d) = cached.get(numbers), direct.get(numbers)
        assert a.dtype == b.dtype == c.states.dtype == d.states.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        places = [place_in_epoch(n, 10, 7) for n in numbers]
        torch.testing.assert_close(a, latents_of(pipeline, places), rtol=1e-4, atol=1e-5)
        wanted = text_condition(pipeline, [caption(p) for p in places])
        for part in ("states", "pooled", "time_ids"):
            torch.testing.assert_close(getattr(c, part), getattr(d, part))
            torch.testing.assert_close(getattr(c, part), getattr(wanted, part))


def test_a_rejected_image_is_replaced_by_the_next(sd, tmp_path):
    folder = image_folder(tmp_path / "data", 24)
    for n in (4, 5):
        (folder / f"{n:03}.png").write_bytes(encoded(picture(n))[:100])
    config = folder_config(folder, max_rejected=0.2)
    wanted = [{4: 6, 5: 6}.get(p, p) for p in (place_in_epoch(n, 24, 0) for n in range(24))]
    batches = EncodedBatches(open_source(config), sd, 0, config)
    batch = batches.get(range(24))
    assert which(sd, batch, 24) == wanted
    torch.testing.assert_close(
        batch[1].states, text_condition(sd, [caption(n) for n in wanted]).states
    )
    assert batches.counts.accepted == 24
    assert batches.counts.reasons == {"a damaged image": 3}  # 4 and 5, and 5 again after 4
    for n in (23, 3):  # one by one and in another order as well
        assert which(sd, batches.get([n]), 24) == [wanted[n]]
    strict = EncodedBatches(open_source(config), sd, 0, config.replace(max_rejected=0.005))
    with pytest.raises(ValueError, match=r"samples were rejected, .* a damaged image: "):
        strict.get(range(24))
    first = EncodedBatches(open_source(config), sd, 0, config.replace(max_samples=4))
    assert sorted(which(sd, first.get(range(4)), 24)) == [0, 1, 2, 3]
    assert first.captions == CAPTIONS
    for path in folder.glob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match="no sample was accepted, 24 were rejected"):
        EncodedBatches(open_source(config), sd, 0, config.replace(max_rejected=1)).get([0])


# -------------------------------------------------------------------- streamed


def stream_config(pattern, **changes):
    return SDConfig(data="webdataset", data_path=pattern, cache=False, **changes)


def stream(pattern, pipeline, rank=0, world=1, start=0, seed=0, **changes):
    return StreamBatches(stream_config(pattern, **changes), pipeline, seed, rank, world, start)


def test_a_stream_gives_each_sample_once_an_epoch(sd, tmp_path):
    """Shard by shard, in another order each time; and two processes share it."""
    pattern = make_shards(tmp_path / "data", (3, 4, 2, 3))
    batches = stream(pattern, sd)
    epochs = [which(sd, batches.get(range(12)), 12) for _ in range(5)]
    groups = {0: [0, 1, 2], 3: [3, 4, 5, 6], 7: [7, 8], 9: [9, 10, 11]}
    for epoch in epochs:
        heads = [n for n in epoch if n in groups]
        assert sorted(epoch) == list(range(12))
        assert [n for head in heads for n in groups[head]] == epoch
    assert len(set(map(tuple, epochs))) > 1
    other = stream(pattern, sd, seed=5)
    assert [which(sd, other.get(range(12)), 12) for _ in range(5)] != epochs
    ranks = [stream(make_shards(tmp_path / "even", (3,) * 4), sd, rank, 2) for rank in (0, 1)]
    for _ in range(3):
        both = [which(sd, batches.get(range(6)), 12) for batches in ranks]
        assert sorted(both[0] + both[1]) == list(range(12))


def faulty_shards(folder):
    """Three shards of 26 samples; of some the image or the caption is bad, one shard is cut."""
    folder.mkdir()
    for shard, numbers in enumerate((range(9), range(9, 17), range(17, 26))):
        files = {}
        for n in numbers:
            sample = sample_files(n)
            if n in (3, 4, 12):
                sample[f"{n:03}.png"] = sample[f"{n:03}.png"][:100]
            if n == 6:
                del sample[f"{n:03}.txt"]
            files |= sample
        content = tar_of(files)
        if shard == 1:
            content = content[: content.index(b"015.png") + 600]
        (folder / f"shard-{shard:02}.tar").write_bytes(content)
    return str(folder / "shard-{00..02}.tar")


def test_a_resumed_stream_goes_on_where_it_was(sd, tmp_path, monkeypatch):
    pattern = faulty_shards(tmp_path / "data")
    whole = stream(pattern, sd, max_rejected=0.6)
    samples = which(sd, whole.get(range(92)), 26)  # four epochs
    counts = Counter(samples)
    assert not counts.keys() & {3, 4, 6, 12, 15, 16}
    assert {n: counts[n] for n in (2, 5, 13, 14)} == {2: 4, 5: 12, 13: 8, 14: 4}  # stand-ins
    assert set(whole.counts.reasons) == {
        "a damaged image", "no caption", "a shard that is cut short"
    }  # fmt: skip
    for start in (1, 4, 5, 22, 41, 91):
        resumed = stream(pattern, sd, start=start, max_rejected=0.6)
        assert which(sd, resumed.get(range(92 - start)), 26) == samples[start:], start
    sizes, again = [7, 1, 20, 3, 30, 31], stream(pattern, sd, max_rejected=0.6)
    assert [n for k in sizes for n in which(sd, again.get(range(k)), 26)] == samples
    # What is skipped is not decoded, and a shard that was counted is not read again.
    opened, open_ = [], module.ShardSource.shard
    monkeypatch.setattr(module.ShardSource, "shard", lambda s, i: opened.append(i) or open_(s, i))
    loads, load = [], module.Encoder.load
    monkeypatch.setattr(module.Encoder, "load", lambda e, x: loads.extend(x) or load(e, x))
    stream(pattern, sd, start=22 * 1000, max_rejected=0.6).get([0])
    assert sorted(opened[:3]) == [0, 1, 2]
    assert len(opened) <= 5
    assert len(loads) <= 3


def test_a_resumed_stream_does_not_judge_by_what_it_skips(sd, tmp_path):
    """A tenth has no caption, which is seen when the good ones are skipped."""
    files = {}
    for n in range(300):
        files |= sample_files(n % 7, f"{n:03}")
        if n % 10 == 3:
            del files[f"{n:03}.txt"]
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    late = stream(str(tmp_path / "a.tar"), sd, start=270 * 20)
    late.get([0, 1])
    assert late.counts.reasons == {"no caption": 30}


def test_what_a_stream_cannot_do(sd, tmp_path):
    pattern = make_shards(tmp_path / "data", (3, 3))
    message = r"there are 2 shards for 3 processes; allowed: at least one for each\. Cut the data"
    with pytest.raises(ValueError, match=message):
        stream(pattern, sd, 0, 3)
    with pytest.raises(ValueError, match="rank is 2; allowed: an integer from 0 to 1"):
        stream(pattern, sd, 2, 2)
    with pytest.raises(ValueError, match="max_samples is 5 with cache=False and data='webd"):
        stream(pattern, sd, max_samples=5)
    with pytest.raises(ValueError, match="data is 'digits'; allowed in a stream: 'webdataset'"):
        StreamBatches(SDConfig(cache=False), sd, 0)
    (tmp_path / "a.tar").write_bytes(tar_of({"a.txt": b"words", "b.txt": b"words"}))
    with pytest.raises(ValueError, match=r"2 .*no image: 2"):
        stream(str(tmp_path / "a.tar"), sd, max_rejected=1).get([0])
    (tmp_path / "b.tar").write_bytes(tar_of({"a.png": b"nothing", "a.txt": b"words"}))
    with pytest.raises(ValueError, match=r"20 of 20 samples.*not an image: 20"):
        stream(str(tmp_path / "b.tar"), sd).get([0])


# -------------------------------------------------------------------- what the engine asks for


def test_open_batches_with_a_cache(sd, tmp_path, capsys):
    config = folder_config(image_folder(tmp_path / "data", 5))
    waits = []
    batches = open_batches(config, sd, tmp_path / "c", wait=lambda: waits.append(1))
    assert (len(batches.cache), batches.counts.accepted, waits) == (5, 5, [1])
    assert "5 samples accepted, 0 rejected" in capsys.readouterr().out
    second = open_batches(config, sd, tmp_path / "c", rank=1, world=2)
    assert capsys.readouterr().out == ""
    assert torch.equal(second.get([7])[0], batches.get([7])[0])
    named = SDConfig(data="cache", data_path=str(tmp_path / "c"), seed=3)
    again = open_batches(named, sd, tmp_path / "x")
    assert torch.equal(again.get([0])[0], batches.cache.batch([place_in_epoch(0, 5, 3)])[0])
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match=r"latent_shape is \[4, 8, 8\] there and \[4, 16, 16\]"):
        open_batches(named.replace(resolution=64), sd, tmp_path / "x")
    # Where the cache cannot be made, the other processes are let go, with an error of their own.
    (tmp_path / "data" / "more.png").write_bytes(b"")
    with pytest.raises(ValueError, match="data: files is"):
        open_batches(config, sd, tmp_path / "c", wait=lambda: waits.append(2))
    assert waits == [1, 2]
    with pytest.raises(FileNotFoundError, match=r"is not there: it has no index\.json"):
        open_batches(config, sd, tmp_path / "d", rank=1, world=2)


def test_open_batches_without_a_cache(sd, tmp_path):
    config = folder_config(image_folder(tmp_path / "data", 5), cache=False)
    assert isinstance(open_batches(config, sd, tmp_path / "c"), EncodedBatches)
    assert not (tmp_path / "c").exists()
    pattern = make_shards(tmp_path / "shards", (4, 4, 4, 4))
    config = stream_config(pattern, batch=1, accumulate=3)
    start = open_batches(config, sd, tmp_path / "c", rank=1, world=2, start_update=2)
    seen = which(sd, stream(pattern, sd, 1, 2).get(range(10)), 16)
    assert which(sd, start.get(range(4)), 16) == seen[6:]

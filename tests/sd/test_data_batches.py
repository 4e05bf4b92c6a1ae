"""Sample number n is the same for all who ask, whatever was asked before."""

import inspect
from collections import Counter

import pytest
import torch

from slam_edu.sd.components import encode_images, text_condition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data import (
    CachedBatches,
    EncodedBatches,
    LatentCache,
    StreamBatches,
    make_cache,
    open_batches,
    open_source,
)
from slam_edu.sd.data import batches as module
from slam_edu.sd.data.batches import place_in_epoch
from tests.sd.images import CAPTIONS, caption, encoded, image_folder, picture, sample_files, tar_of
from tests.sd.images import shards as make_shards
from tests.sd.test_cache import quiet
from tests.sd.tiny import tiny_sd_pipeline, tiny_xl_pipeline


@pytest.fixture(scope="module")
def sd():
    return tiny_sd_pipeline()


@pytest.fixture(scope="module")
def xl():
    return tiny_xl_pipeline()


def folder_config(path, **changes):
    settings = {"data": "folder", "data_path": str(path), "cache_dtype": "float32"}
    return SDConfig(**{**settings, **changes})


def latents_of(pipeline, numbers):
    """Of the images with these numbers, by hand."""
    images = torch.stack([
        torch.frombuffer(bytearray(picture(n).tobytes()), dtype=torch.uint8)
        .reshape(32, 32, 3).permute(2, 0, 1).float() / 127.5 - 1
        for n in numbers
    ])  # fmt: skip
    return encode_images(pipeline.vae, images)


def which(pipeline, latents, count):
    """Numbers of the images that have these latents."""
    all_ = latents_of(pipeline, range(count))
    distance = (latents[:, None] - all_).abs().amax((2, 3, 4))
    assert (distance.min(1).values < 1e-3).all()
    return distance.argmin(1).tolist()


def spoil(folder, *numbers):
    for n in numbers:
        (folder / f"{n:03}.png").write_bytes(encoded(picture(n))[:100])


# -------------------------------------------------------------------- the order


def test_each_epoch_has_all_in_an_order_of_its_own():
    epochs = [[place_in_epoch(n, 50, 3) for n in range(e * 50, e * 50 + 50)] for e in range(6)]
    for order in epochs:
        assert sorted(order) == list(range(50))
    assert len({tuple(order) for order in epochs}) == 6
    again = [place_in_epoch(n, 50, 3) for n in range(99, 49, -1)]
    assert again == epochs[1][::-1]
    assert [place_in_epoch(n, 50, 4) for n in range(50)] != epochs[0]
    assert {place_in_epoch(n, 1, 0) for n in range(5)} == {0}


# -------------------------------------------------------------------- from a cache


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_cached_and_encoded_batches_are_the_same(kind, request, tmp_path):
    pipeline = request.getfixturevalue(kind)
    config = folder_config(image_folder(tmp_path / "data", 10))
    cache = make_cache(config, pipeline, tmp_path / "c", show=quiet)
    cached = CachedBatches(cache, seed=7)
    encoded_ = EncodedBatches(open_source(config), pipeline, 7, config)
    assert cached.latent_shape == encoded_.latent_shape == (4, 8, 8)
    for numbers in ([0, 1, 2], [9, 10, 11, 25], [3]):
        (a, c), (b, d) = cached.get(numbers), encoded_.get(numbers)
        assert a.dtype == b.dtype == c.states.dtype == d.states.dtype == torch.float32
        assert a.shape == b.shape == (len(numbers), 4, 8, 8)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        places = [place_in_epoch(n, 10, 7) for n in numbers]
        torch.testing.assert_close(a, latents_of(pipeline, places), rtol=1e-4, atol=1e-5)
        wanted = text_condition(pipeline, [caption(p) for p in places])
        for part in ("states", "pooled", "time_ids") if kind == "xl" else ("states",):
            torch.testing.assert_close(getattr(c, part), getattr(d, part))
            torch.testing.assert_close(getattr(c, part), getattr(wanted, part))
            assert torch.equal(getattr(cached.empty, part), getattr(encoded_.empty, part))
    assert cached.captions == [caption(n) for n in range(10)]
    assert encoded_.captions == cached.captions


def test_any_number_of_processes_sees_the_same_samples(sd, tmp_path):
    config = folder_config(image_folder(tmp_path / "data", 7))
    batches = CachedBatches(make_cache(config, sd, tmp_path / "c", show=quiet), seed=0)
    one = batches.get(list(range(24)))
    two = [batches.get(list(range(i, i + 4))) for i in (20, 0, 8, 16, 4, 12)]
    two = [two[k] for k in (1, 4, 2, 5, 3, 0)]
    assert torch.equal(one[0], torch.cat([x for x, _ in two]))
    assert torch.equal(one[1].states, torch.cat([c.states for _, c in two]))


# -------------------------------------------------------------------- encoded at each call


def test_a_rejected_image_is_replaced_by_the_next(sd, tmp_path):
    folder = image_folder(tmp_path / "data", 24)
    spoil(folder, 4, 5)
    config = folder_config(folder, max_rejected=0.2)
    numbers = list(range(24))
    wanted = [{4: 6, 5: 6}.get(p, p) for p in (place_in_epoch(n, 24, 0) for n in numbers)]
    batches = EncodedBatches(open_source(config), sd, 0, config)
    latents, cond = batches.get(numbers)
    assert which(sd, latents, 24) == wanted
    torch.testing.assert_close(
        cond.states, text_condition(sd, [caption(n) for n in wanted]).states
    )
    assert batches.counts.accepted == 24
    assert batches.counts.reasons == {"a damaged image": 3}  # 4 and 5, and 5 again after 4
    # One by one and in another order as well.
    for n in (23, 3, 11):
        assert which(sd, batches.get([n])[0], 24) == [wanted[n]]
    strict = EncodedBatches(open_source(config), sd, 0, config.replace(max_rejected=0.005))
    with pytest.raises(ValueError, match=r"samples were rejected, .* a damaged image: "):
        strict.get(numbers)


def test_encoded_batches_without_a_good_image(sd, tmp_path):
    folder = image_folder(tmp_path / "data", 3)
    spoil(folder, 0, 1, 2)
    config = folder_config(folder, max_rejected=1)
    batches = EncodedBatches(open_source(config), sd, 0, config)
    with pytest.raises(ValueError, match="no sample was accepted, 3 were rejected"):
        batches.get([0, 1])


def test_max_samples_takes_the_first(sd, tmp_path):
    config = folder_config(image_folder(tmp_path / "data", 10), max_samples=4)
    batches = EncodedBatches(open_source(config), sd, 0, config)
    assert sorted(which(sd, batches.get(range(4))[0], 10)) == [0, 1, 2, 3]
    assert batches.captions == CAPTIONS


# -------------------------------------------------------------------- streamed


def stream_config(pattern, **changes):
    return SDConfig(data="webdataset", data_path=pattern, cache=False, **changes)


def stream(pattern, pipeline, rank=0, world=1, start=0, seed=0, **changes):
    return StreamBatches(stream_config(pattern, **changes), pipeline, seed, rank, world, start)


def test_a_stream_gives_each_sample_once_an_epoch(sd, tmp_path):
    pattern = make_shards(tmp_path / "data", (3, 4, 2, 3))
    batches = stream(pattern, sd)
    epochs = [which(sd, batches.get(range(12))[0], 12) for _ in range(5)]
    groups = {0: [0, 1, 2], 3: [3, 4, 5, 6], 7: [7, 8], 9: [9, 10, 11]}
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
        heads = [n for n in epoch if n in groups]
        assert [n for head in heads for n in groups[head]] == epoch  # shard by shard
    assert len(set(map(tuple, epochs))) > 1
    other = stream(pattern, sd, seed=5)
    assert [which(sd, other.get(range(12))[0], 12) for _ in range(5)] != epochs
    assert batches.counts.accepted == 60


def test_conditions_of_a_stream(xl, tmp_path):
    batches = stream(make_shards(tmp_path / "data", (5,)), xl)
    latents, cond = batches.get([0, 1, 2, 3, 4])
    wanted = text_condition(xl, [caption(n) for n in range(5)])
    torch.testing.assert_close(cond.states, wanted.states)
    torch.testing.assert_close(cond.pooled, wanted.pooled)
    assert cond.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]] * 5
    assert latents.shape == (5, *batches.latent_shape)
    assert batches.empty.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]]


def test_two_processes_share_an_epoch(sd, tmp_path):
    pattern = make_shards(tmp_path / "data", (3, 3, 3, 3))
    ranks = [stream(pattern, sd, rank, 2) for rank in (0, 1)]
    for _ in range(3):
        both = [which(sd, batches.get(range(6))[0], 12) for batches in ranks]
        assert sorted(both[0] + both[1]) == list(range(12))


def faulty_shards(folder):
    """Three shards of 26 samples; of some the image or the caption is bad, one shard is cut."""
    folder.mkdir()
    number = 0
    for shard, size in enumerate((9, 8, 9)):
        files = {}
        for _ in range(size):
            sample = sample_files(number)
            if number in (3, 4, 12):
                sample[f"{number:03}.png"] = sample[f"{number:03}.png"][:100]
            if number == 6:
                del sample[f"{number:03}.txt"]
            files |= sample
            number += 1
        content = tar_of(files)
        if shard == 1:
            content = content[: content.index(b"015.png") + 600]
        (folder / f"shard-{shard:02}.tar").write_bytes(content)
    return str(folder / "shard-{00..02}.tar")


def test_a_resumed_stream_goes_on_where_it_was(sd, tmp_path):
    pattern = faulty_shards(tmp_path / "data")
    whole = stream(pattern, sd, max_rejected=0.6)
    samples = which(sd, whole.get(range(92))[0], 26)  # four epochs
    counts = Counter(samples)
    assert not counts.keys() & {3, 4, 6, 12, 15, 16}
    assert {n: counts[n] for n in (2, 5, 13, 14)} == {2: 4, 5: 12, 13: 8, 14: 4}  # stand-ins
    assert set(whole.counts.reasons) == {
        "a damaged image", "no caption", "a shard that is cut short"
    }  # fmt: skip
    for start in (1, 3, 4, 5, 8, 21, 22, 40, 41, 91):
        resumed = stream(pattern, sd, start=start, max_rejected=0.6)
        assert which(sd, resumed.get(range(92 - start))[0], 26) == samples[start:], start
    # In batches of any size.
    sizes, again = [7, 1, 20, 3, 30, 31], stream(pattern, sd, max_rejected=0.6)
    assert [n for k in sizes for n in which(sd, again.get(range(k))[0], 26)] == samples
    for rank in (0, 1):
        all_ = which(sd, stream(pattern, sd, rank, 2, max_rejected=0.6).get(range(50))[0], 26)
        late = stream(pattern, sd, rank, 2, start=33, max_rejected=0.6)
        assert which(sd, late.get(range(17))[0], 26) == all_[33:]


def test_skipping_reads_no_image_and_each_shard_once(sd, tmp_path, monkeypatch):
    pattern = make_shards(tmp_path / "data", (3, 4, 3))
    loads, opened = [], []
    load, open_ = module.load, module.ShardSource.shard
    monkeypatch.setattr(module, "load", lambda item, size: loads.append(item) or load(item, size))
    monkeypatch.setattr(module.ShardSource, "shard", lambda s, i: opened.append(i) or open_(s, i))
    late = stream(pattern, sd, start=10 * 1000)
    assert opened == []
    got = which(sd, late.get(range(2))[0], 10)
    assert len(loads) == 2
    assert sorted(opened[:3]) == [0, 1, 2]
    assert len(opened) == 4  # all once to count them, then the one that is needed
    monkeypatch.undo()
    early = stream(pattern, sd, start=10 * 999)
    assert which(sd, early.get(range(12))[0], 10)[10:] == got


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


def test_too_few_shards(sd, tmp_path):
    pattern = make_shards(tmp_path / "data", (3, 3))
    message = r"there are 2 shards for 3 processes; allowed: at least one for each\. Cut the data"
    with pytest.raises(ValueError, match=message):
        stream(pattern, sd, 0, 3)
    stream(pattern, sd, 1, 2)
    with pytest.raises(ValueError, match="rank is 2; allowed: an integer from 0 to 1"):
        stream(pattern, sd, 2, 2)


def test_a_stream_without_a_sample(sd, tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of({"a.txt": b"words", "b.txt": b"words"}))
    for limit in (0.1, 1.0):
        batches = stream(str(tmp_path / "a.tar"), sd, max_rejected=limit)
        with pytest.raises(ValueError, match=r"2 .*no image: 2"):
            batches.get([0])
    (tmp_path / "b.tar").write_bytes(tar_of({"a.png": b"nothing", "a.txt": b"words"}))
    with pytest.raises(ValueError, match=r"20 of 20 samples.*not an image: 20"):
        stream(str(tmp_path / "b.tar"), sd).get([0])


def test_what_a_stream_cannot_do(sd, tmp_path):
    pattern = make_shards(tmp_path / "data", (3, 3))
    with pytest.raises(ValueError, match="max_samples is 5 with cache=False and data='webd"):
        stream(pattern, sd, max_samples=5)
    config = folder_config(image_folder(tmp_path / "f", 2), cache=False)
    with pytest.raises(ValueError, match="data is 'folder'; allowed in a stream: 'webdataset'"):
        StreamBatches(config, sd, 0)


# -------------------------------------------------------------------- what the engine asks for


def test_open_batches_makes_the_cache_and_opens_it(sd, tmp_path):
    config = folder_config(image_folder(tmp_path / "data", 5))
    lines, waits = [], []
    batches = open_batches(
        config, sd, tmp_path / "c", wait=lambda: waits.append(1), show=lines.append
    )
    assert isinstance(batches, CachedBatches)
    assert len(batches.cache) == 5
    assert batches.counts.accepted == 5
    assert waits == [1]
    assert lines
    # Another folder, and a cache that is named as the data.
    other = open_batches(
        config.replace(cache_folder=str(tmp_path / "d")), sd, tmp_path / "x", show=quiet
    )
    assert other.cache.folder == tmp_path / "d"
    assert not (tmp_path / "x").exists()
    named = SDConfig(data="cache", data_path=str(tmp_path / "c"), seed=3)
    again = open_batches(named, sd, tmp_path / "x")
    assert again.seed == 3
    assert torch.equal(again.get([0])[0], batches.cache.batch([place_in_epoch(0, 5, 3)])[0])
    with pytest.raises(ValueError, match="holds latents of shape"):
        open_batches(named.replace(resolution=64), sd, tmp_path / "x")


def test_other_processes_wait_for_the_cache(sd, tmp_path):
    config = folder_config(image_folder(tmp_path / "data", 5))
    path = tmp_path / "c"
    batches = open_batches(
        config, sd, path, rank=1, world=2, wait=lambda: make_cache(config, sd, path, show=quiet)
    )
    assert isinstance(batches.cache, LatentCache)
    shared = open_batches(config, sd, tmp_path / "d", rank=1, is_main=True, show=quiet)
    assert len(shared.cache) == 5


def test_no_process_waits_for_ever(sd, tmp_path):
    """Where the cache cannot be made, the others are let go and end with an error of their own."""
    config = folder_config(tmp_path / "nowhere")
    waits = []
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_batches(config, sd, tmp_path / "c", wait=lambda: waits.append(1))
    assert waits == [1]
    with pytest.raises(FileNotFoundError, match=r"is not there: it has no index\.json"):
        open_batches(config, sd, tmp_path / "c", rank=1, world=2)


def test_open_batches_without_a_cache(sd, tmp_path):
    config = folder_config(image_folder(tmp_path / "data", 5), cache=False)
    batches = open_batches(config, sd, tmp_path / "c")
    assert isinstance(batches, EncodedBatches)
    assert not (tmp_path / "c").exists()
    pattern = make_shards(tmp_path / "shards", (4, 4, 4, 4))
    config = stream_config(pattern, batch=1, accumulate=3)
    start = open_batches(config, sd, tmp_path / "c", rank=1, world=2, start_update=2)
    assert isinstance(start, StreamBatches)
    seen = which(sd, stream(pattern, sd, 1, 2).get(range(10))[0], 16)
    assert len(set(seen[:8])) == 8
    assert which(sd, start.get(range(4))[0], 16) == seen[6:]


def test_the_engines_call_fits():
    assert {"rank", "world", "start_update", "wait", "show"} <= set(
        inspect.signature(open_batches).parameters
    )


def test_only_the_first_process_speaks_of_the_cache(sd, tmp_path, capsys):
    config = folder_config(image_folder(tmp_path / "data", 3))
    open_batches(config, sd, tmp_path / "c")
    assert "3 samples accepted, 0 rejected" in capsys.readouterr().out
    open_batches(config, sd, tmp_path / "c", rank=1, world=2)
    assert capsys.readouterr().out == ""

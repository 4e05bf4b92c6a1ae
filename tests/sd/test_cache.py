"""The cache holds what the teacher's parts compute, and survives what may happen to it."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from slam_edu.sd.components import empty_condition, encode_images, text_condition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data import LatentCache, make_cache
from slam_edu.sd.data import cache as module
from slam_edu.sd.data.feeds import EncodedFeed
from tests.sd.images import CAPTIONS, caption, encoded, image_folder, picture, sample_files, tar_of
from tests.sd.images import shards as make_shards
from tests.sd.tiny import tiny_sd_pipeline, tiny_xl_pipeline


def quiet(_):
    pass


@pytest.fixture(scope="module")
def sd():
    pipeline = tiny_sd_pipeline()
    pipeline.vae.register_to_config(scaling_factor=0.6)
    return pipeline


@pytest.fixture(scope="module")
def xl():
    return tiny_xl_pipeline()


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(EncodedFeed, "SHARD", 4)
    monkeypatch.setattr(EncodedFeed, "BATCH", 3)


def config_of(folder, **changes):
    settings = {"data": "folder", "data_path": str(folder), "cache_dtype": "float32"}
    return SDConfig(**{**settings, **changes})


def contents(folder):
    """Every file but the lock."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


# -------------------------------------------------------------------- what it holds


@pytest.mark.parametrize("kind", ["sd", "xl"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_cache_is_what_the_parts_compute(kind, dtype, request, tmp_path, small_shards):
    pipeline = request.getfixturevalue(kind)
    folder = image_folder(tmp_path / "data", 11)
    wide = picture(3, (80, 40))
    (folder / "003.png").write_bytes(encoded(wide))
    cache = make_cache(
        config_of(folder, cache_dtype=dtype), pipeline, tmp_path / "cache", show=quiet
    )
    assert len(cache) == 11
    assert cache.latent_shape == (4, 8, 8)
    assert cache.captions == [caption(n) for n in range(11)]
    assert cache.caption(5) == caption(5)
    images = [picture(n) for n in range(11)]
    images[3] = wide.resize((64, 32), Image.Resampling.LANCZOS).crop((16, 0, 48, 32))
    stacked = torch.stack([
        torch.from_numpy(np.array(i)).permute(2, 0, 1).float() / 127.5 - 1 for i in images
    ])  # fmt: skip
    close = {"rtol": 1e-3, "atol": 1e-3} if dtype == "float16" else {"rtol": 1e-4, "atol": 1e-5}
    some = torch.tensor([10, 3, 0, 3, 7])
    latents, cond = cache.batch(some)
    assert latents.dtype == cond.states.dtype == torch.float32
    wanted = encode_images(pipeline.vae, stacked[some])
    others = [i for i in range(5) if some[i] != 3]
    torch.testing.assert_close(latents[others], wanted[others], **close)
    torch.testing.assert_close(latents, wanted, rtol=0, atol=0.05)  # a rounding of the resized one
    texts = text_condition(pipeline, [caption(int(n)) for n in some])
    torch.testing.assert_close(cond.states, texts.states, **close)
    empty = empty_condition(pipeline)
    torch.testing.assert_close(cache.empty.states, empty.states)
    assert len(cache.empty) == 1
    if kind == "sd":
        assert cond.pooled is cond.time_ids is cache.empty.pooled is None
        return
    torch.testing.assert_close(cond.pooled, texts.pooled, **close)
    assert cond.time_ids.tolist() == [
        [40, 80, 0, 16, 32, 32] if n == 3 else [32, 32, 0, 0, 32, 32] for n in some
    ]
    torch.testing.assert_close(cache.empty.pooled, empty.pooled)
    assert cache.empty.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]]


def test_the_scaling_factor_matters(sd, tmp_path):
    """Else the test above would not see that it is left out."""
    assert sd.vae.config.scaling_factor == 0.6
    one = make_cache(config_of(image_folder(tmp_path / "a", 2)), sd, tmp_path / "c", show=quiet)
    image = torch.from_numpy(np.array(picture(1))).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        mean = sd.vae.encode(image).latent_dist.mean
    torch.testing.assert_close(one.batch([1])[0], 0.6 * mean, rtol=1e-4, atol=1e-5)


def test_the_files(sd, tmp_path, small_shards):
    make_cache(config_of(image_folder(tmp_path / "data", 9)), sd, tmp_path / "c", show=quiet)
    found = contents(tmp_path / "c")
    assert set(found) == {
        "index.json", "empty.safetensors", *(f"shard-{n:05}.safetensors" for n in range(3))
    }  # fmt: skip
    index = json.loads(found["index.json"])
    assert [r["samples"] for r in index["shards"]] == [4, 4, 1]
    assert [r["captions"] for r in index["shards"]] == [4, 0, 0]
    assert [r["bytes"] for r in index["shards"]] == [
        len(found[r["file"]]) for r in index["shards"]
    ]
    assert index["counts"] == {"accepted": 9, "reasons": {}, "examples": []}
    teacher = index["settings"]["teacher"]
    assert teacher["scaling_factor"] == 0.6
    assert teacher["latent_shape"] == [4, 8, 8]
    assert {"vae", "text_encoder"} < set(teacher)
    assert index["settings"]["data"]["data"] == "folder"


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_each_distinct_caption_is_encoded_once(kind, request, tmp_path, small_shards):
    pipeline = request.getfixturevalue(kind)
    seen = []
    hook = pipeline.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs.get("input_ids", args and args[0]))),
        with_kwargs=True,
    )
    try:
        folder = image_folder(tmp_path / "data", 11)
        make_cache(config_of(folder), pipeline, tmp_path / "c", show=quiet)
    finally:
        hook.remove()
    assert seen == [len(CAPTIONS), 1]  # the second is the empty one


def test_the_autoencoder_runs_in_float32(tmp_path):
    pipeline = tiny_sd_pipeline()
    folder = image_folder(tmp_path / "data", 2)
    whole = make_cache(config_of(folder), pipeline, tmp_path / "a", show=quiet)
    pipeline.vae.to(torch.float16)
    seen = []
    hook = pipeline.vae.encoder.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].dtype)
    )
    half = make_cache(config_of(folder), pipeline, tmp_path / "b", show=quiet)
    hook.remove()
    assert set(seen) == {torch.float32}
    assert pipeline.vae.dtype == torch.float16  # as it was
    difference = (half.batch([0, 1])[0] - whole.batch([0, 1])[0]).abs().max()
    assert 0 < difference < 1e-2  # the weights were rounded
    half.check(config_of(folder), pipeline)  # and are still taken for the same


def test_digits(sd, tmp_path):
    from slam_edu.digits.data import CaptionedDigits

    lines = []
    config = SDConfig(data="digits", max_samples=100, cache_dtype="float32")
    cache = make_cache(config, sd, tmp_path / "c", show=lines.append)
    batch = CaptionedDigits("train").batch(range(100))
    assert cache.captions == batch.captions
    wanted = encode_images(sd.vae, batch.images)
    torch.testing.assert_close(cache.batch(range(100))[0], wanted, rtol=1e-4, atol=1e-5)
    assert lines[0].startswith("cache: 100 samples of data=digits are encoded, once, to ")
    assert lines[1] == "cache: 100 samples accepted, 0 rejected"


def test_another_resolution(sd, tmp_path):
    config = config_of(image_folder(tmp_path / "data", 2), resolution=48)
    cache = make_cache(config, sd, tmp_path / "c", show=quiet)
    assert cache.latent_shape == tuple(cache.batch([0])[0].shape[1:]) == (4, 12, 12)
    with pytest.raises(ValueError, match="resolution is 50; allowed: a multiple of 4"):
        make_cache(config.replace(resolution=50), sd, tmp_path / "d", show=quiet)


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_an_index_that_is_not_there(index, sd, tmp_path):
    cache = make_cache(config_of(image_folder(tmp_path / "a", 3)), sd, tmp_path / "c", show=quiet)
    with pytest.raises(ValueError, match=rf"index is {index}; allowed: 0 to 2"):
        cache.batch(torch.tensor([0, index]))


# -------------------------------------------------------------------- what is rejected


def faulty_folder(folder):
    """25 images, of which one is cut short, one is text, and one has no caption."""
    image_folder(folder, 25)
    (folder / "004.png").write_bytes(encoded(picture(4))[:200])
    (folder / "010.png").write_text("not an image", "utf-8")
    (folder / "extra.png").write_bytes(encoded(picture(0)))
    return folder


def test_rejected_samples_are_counted_with_their_reasons(sd, tmp_path, small_shards):
    lines = []
    folder = faulty_folder(tmp_path / "data")
    cache = make_cache(config_of(folder, max_rejected=0.2), sd, tmp_path / "c", show=lines.append)
    assert len(cache) == 23
    assert cache.captions == [caption(n) for n in range(25) if n not in (4, 10)]
    assert cache.counts.reasons == {"a damaged image": 1, "not an image": 1, "no caption": 1}
    assert lines[-2] == (
        "cache: 23 samples accepted, 3 rejected (a damaged image: 1, no caption: 1, "
        "not an image: 1)"
    )
    assert LatentCache(tmp_path / "c").counts == cache.counts


def test_too_many_rejected(sd, tmp_path, small_shards):
    folder = faulty_folder(tmp_path / "data")
    message = (
        r"3 of 26 samples were rejected, a fraction of 0.12; allowed: max_rejected=0.1. By "
        r"reason: a damaged image: 1, no caption: 1, not an image: 1. The first: 004.png: a dam"
    )
    with pytest.raises(ValueError, match=message):
        make_cache(config_of(folder), sd, tmp_path / "c", show=quiet)
    with pytest.raises(FileNotFoundError, match="is not finished"):
        LatentCache(tmp_path / "c")
    # With another limit, which is no setting of the data, it goes on.
    seen = []
    make_cache(config_of(folder, max_rejected=0.5), sd, tmp_path / "c", show=seen.append)
    assert "cache: going on from 23 samples in 6 finished shards" in seen


def test_it_stops_early_where_all_are_bad(sd, tmp_path):
    folder = image_folder(tmp_path / "data", 100, metadata=False)
    for path in folder.glob("*.txt"):
        path.write_text(" ", "utf-8")
    with pytest.raises(ValueError, match=r"32 of 32 samples .* an empty caption: 32"):
        make_cache(config_of(folder), sd, tmp_path / "c", show=quiet)
    with pytest.raises(ValueError, match="no sample was accepted, 100 were rejected"):
        make_cache(config_of(folder, max_rejected=1), sd, tmp_path / "c", show=quiet)
    kept = make_cache(config_of(folder, empty_captions="keep"), sd, tmp_path / "c", show=quiet)
    torch.testing.assert_close(kept.batch([3])[1].states, kept.empty.states)


def test_all_shards_so_far_are_judged_together(sd, tmp_path, small_shards):
    """A shard has too few samples to judge by; it stops long before the end all the same."""
    folder = image_folder(tmp_path / "data", 100)
    for n in range(0, 100, 2):
        (folder / f"{n:03}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\d of 2\d samples were .* an empty file: 1\d"):
        make_cache(config_of(folder), sd, tmp_path / "c", show=quiet)


def test_a_latent_that_is_not_finite_is_rejected(tmp_path):
    pipeline = tiny_sd_pipeline()
    folder = image_folder(tmp_path / "data", 6)

    def spoil(module, args, output):
        output[:, :, 0, 0] = torch.where(args[0][:, :1, 0, 0] > 0.2, torch.nan, output[:, :, 0, 0])
        return output

    pipeline.vae.encoder.register_forward_hook(spoil)
    first = [np.array(picture(n))[0, 0, 0] / 127.5 - 1 > 0.2 for n in range(6)]
    assert 0 < sum(first) < 6
    cache = make_cache(config_of(folder, max_rejected=1), pipeline, tmp_path / "c", show=quiet)
    assert cache.captions == [caption(n) for n in range(6) if not first[n]]
    assert cache.counts.reasons == {"a latent that is not finite": sum(first)}
    assert cache.batch(range(len(cache)))[0].isfinite().all()


def test_max_samples(sd, tmp_path, small_shards):
    folder = faulty_folder(tmp_path / "data")
    cache = make_cache(
        config_of(folder, max_samples=10, max_rejected=0.2), sd, tmp_path / "c", show=quiet
    )
    assert cache.captions == [caption(n) for n in range(12) if n not in (4, 10)]
    assert [r["samples"] for r in cache._records] == [4, 4, 2]


def test_a_shard_that_is_cut_short(sd, tmp_path, small_shards):
    pattern = make_shards(tmp_path / "data", (10, 10, 2))
    first = tmp_path / "data" / "shard-00.tar"
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    lines = []
    config = config_of(pattern, data="webdataset")
    cache = make_cache(config, sd, tmp_path / "c", show=lines.append)
    assert cache.captions[-12:] == [caption(n) for n in range(10, 22)]
    assert 0 < len(cache) - 12 < 10
    assert cache.counts.reasons == {"a shard that is cut short": 1}
    assert cache.counts.examples[0].startswith("shard-00.tar: a shard that is cut short (")
    assert "1 rejected (a shard that is cut short: 1)" in lines[-2]


def test_a_shard_of_no_use_at_the_end(sd, tmp_path, small_shards):
    """A shard of the cache is never empty, though what was rejected last is counted."""
    files = {}
    for n in range(8):
        files |= sample_files(n)
    (tmp_path / "a.tar").write_bytes(tar_of({**files, "x.png": b"", "x.txt": b"words"}))
    config = config_of(tmp_path / "a.tar", data="webdataset", max_rejected=0.5)
    cache = make_cache(config, sd, tmp_path / "c", show=quiet)
    assert [r["samples"] for r in cache._records] == [4, 4]
    assert cache.counts.reasons == {"an empty file": 1}


# -------------------------------------------------------------------- killed, and gone on with


class Killed(BaseException):
    """As if the process had ended."""


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
@pytest.mark.parametrize("seed", [0, 1])
def test_interrupted_anywhere_it_ends_the_same(
    kind, seed, sd, tmp_path, small_shards, monkeypatch
):
    if kind == "folder":
        path = faulty_folder(tmp_path / "data")
    else:
        path = make_shards(tmp_path / "data", (5, 9, 7, 4))
        third = tmp_path / "data" / "shard-02.tar"
        third.write_bytes(third.read_bytes()[:5000])
    config = config_of(path, data=kind, max_rejected=0.3)
    make_cache(config, sd, tmp_path / "whole", show=quiet)

    write, random = module._Maker._write, np.random.default_rng(seed)
    left = [0]

    def writing(maker, path, *rest):
        """Dies before, in the middle of, or after the writing of a file."""
        if left[0] == 0:
            with module.atomic_path(path) as temporary:
                temporary.write_bytes(b"half of it")
                shutil.copy(temporary, path.parent / f".{path.stem}-left.safetensors")
                raise Killed
        left[0] -= 1
        write(maker, path, *rest)

    monkeypatch.setattr(module._Maker, "_write", writing)
    deaths = 0
    while True:
        left[0] = int(random.integers(0, 3))
        try:
            make_cache(config, sd, tmp_path / "parts", show=quiet)
            break
        except Killed:
            deaths += 1
            assert deaths < 50
            with pytest.raises(FileNotFoundError):
                LatentCache(tmp_path / "parts")
    assert deaths >= 3
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_finished_shards_are_not_made_again(sd, tmp_path, small_shards, monkeypatch):
    config = config_of(image_folder(tmp_path / "data", 10))
    parts, part = [], EncodedFeed.part

    def counted(feed, position, *rest):
        parts.append(position)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return part(feed, position, *rest)

    monkeypatch.setattr(EncodedFeed, "part", counted)
    with pytest.raises(KeyboardInterrupt):
        make_cache(config, sd, tmp_path / "c", show=quiet)
    lines = []
    make_cache(config, sd, tmp_path / "c", show=lines.append)
    assert parts == [0, 4, 8, 8]
    assert "cache: going on from 8 samples in 2 finished shards" in lines
    # Where all is done, nothing is.
    lines.clear()
    make_cache(config, sd, tmp_path / "c", show=lines.append)
    assert parts == [0, 4, 8, 8]
    assert lines == []


def test_killed_for_real(sd, tmp_path, small_shards):
    """SIGKILL in another process, which leaves its lock and its temporary files."""
    folder = image_folder(tmp_path / "data", 40)
    config = config_of(folder)
    code = (
        "import time\n"
        "from slam_edu.sd.config import SDConfig\n"
        "from slam_edu.sd.data import make_cache\n"
        "from slam_edu.sd.data.feeds import EncodedFeed\n"
        "from tests.sd.tiny import tiny_sd_pipeline\n"
        "EncodedFeed.SHARD, EncodedFeed.BATCH = 4, 3\n"
        "pipeline = tiny_sd_pipeline()\n"
        "pipeline.vae.register_to_config(scaling_factor=0.6)\n"
        "pipeline.vae.encoder.register_forward_pre_hook(lambda *_: time.sleep(0.05))\n"
        f"config = SDConfig(data='folder', data_path={str(folder)!r}, cache_dtype='float32')\n"
        f"make_cache(config, pipeline, {str(tmp_path / 'parts')!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        third = tmp_path / "parts" / "shard-00002.safetensors"
        while not third.exists() and process.poll() is None:
            time.sleep(0.002)
        if process.poll() is None:
            with pytest.raises(BlockingIOError, match="another process is making a cache in"):
                make_cache(config, sd, tmp_path / "parts", show=quiet)
    finally:
        process.kill()
    _, errors = process.communicate()
    assert third.exists(), errors.decode()
    assert not (tmp_path / "parts" / "index.json").exists()
    make_cache(config, sd, tmp_path / "parts", show=quiet)
    make_cache(config, sd, tmp_path / "whole", show=quiet)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_one_process_at_a_time(sd, tmp_path):
    config = config_of(image_folder(tmp_path / "data", 2))
    (tmp_path / "c").mkdir()
    with FileLock(tmp_path / "c" / ".lock"):
        message = r"another process is making a cache in '.*c'; allowed: one at a time, or another"
        with pytest.raises(BlockingIOError, match=message):
            make_cache(config, sd, tmp_path / "c", show=quiet)
    make_cache(config, sd, tmp_path / "c", show=quiet)


# -------------------------------------------------------------------- other things in the folder


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_dtype": "float16"}, "data: cache_dtype is 'float32' there and 'float16' here"),
        ({"empty_captions": "keep"}, "data: empty_captions is 'reject' there and 'keep' here"),
        ({"max_samples": 3}, "data: max_samples is None there and 3 here"),
        ({"resolution": 64}, r"teacher: latent_shape is \[4, 8, 8\] there and \[4, 16, 16\] here"),
        ({"data": "digits"}, "data: data is 'folder' there and 'digits' here"),
    ],
)
def test_other_settings(finished, changes, message, sd, tmp_path):
    config = config_of(image_folder(tmp_path / "data", 2))
    make_cache(config, sd, tmp_path / "c", show=quiet)
    if not finished:
        (tmp_path / "c" / "index.json").unlink()
    before = contents(tmp_path / "c")
    with pytest.raises(ValueError, match=rf"holds a cache of other things: .*{message}"):
        make_cache(config.replace(**changes), sd, tmp_path / "c", show=quiet)
    assert contents(tmp_path / "c") == before


def test_other_data_and_another_teacher(sd, tmp_path):
    folder = image_folder(tmp_path / "data", 2)
    config = config_of(folder)
    cache = make_cache(config, sd, tmp_path / "c", show=quiet)
    other = tiny_sd_pipeline(seed=1)
    other.vae.register_to_config(scaling_factor=0.6)
    with pytest.raises(ValueError, match=r"teacher: text_encoder is .*; teacher: vae is"):
        make_cache(config, other, tmp_path / "c", show=quiet)
    message = "was made with another teacher: text_encoder is .*; allowed: the cache of this"
    with pytest.raises(ValueError, match=message):
        cache.check(config, other)
    cache.check(config, sd)
    image_folder(tmp_path / "more", 1)
    shutil.copy(tmp_path / "more" / "000.png", folder / "002.png")
    with pytest.raises(ValueError, match="data: files is"):
        make_cache(config, sd, tmp_path / "c", show=quiet)


def test_a_latent_size_that_does_not_match(sd, tmp_path):
    config = config_of(image_folder(tmp_path / "data", 2))
    cache = make_cache(config, sd, tmp_path / "c", show=quiet)
    message = (
        r"holds latents of shape \(4, 8, 8\); allowed: \(4, 16, 16\), for which the teacher and "
        r"resolution=64 ask"
    )
    with pytest.raises(ValueError, match=message):
        cache.check(config.replace(resolution=64), sd)
    large = tiny_sd_pipeline()
    large.unet.register_to_config(sample_size=16)
    with pytest.raises(ValueError, match=r"allowed: \(4, 16, 16\), .* resolution=None"):
        cache.check(config, large)
    other = tiny_sd_pipeline()
    other.unet.register_to_config(in_channels=9)
    message = (
        r"the autoencoder makes latents of shape \(4, 8, 8\) of images of 32 x 32 pixels; "
        r"allowed: what the UNet takes, \(9, 8, 8\)"
    )
    with pytest.raises(ValueError, match=message):
        make_cache(config, other, tmp_path / "d", show=quiet)


def test_the_sizes_of_xl_are_those_of_the_resolution(xl, tmp_path):
    config = config_of(image_folder(tmp_path / "data", 2), resolution=64)
    cache = make_cache(config, xl, tmp_path / "c", show=quiet)
    assert cache.empty.time_ids.tolist() == [[64, 64, 0, 0, 64, 64]]
    assert cache.batch([0])[1].time_ids.tolist() == [[32, 32, 0, 0, 64, 64]]


# -------------------------------------------------------------------- damage


@pytest.fixture
def made(sd, tmp_path, small_shards):
    """A finished cache of three shards; its folder, its configuration, its files' bytes."""
    config = config_of(image_folder(tmp_path / "data", 9))
    make_cache(config, sd, tmp_path / "c", show=quiet)
    return tmp_path / "c", config, contents(tmp_path / "c")


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "empty.safetensors", "index.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "other"])
def test_damaged_files(name, damage, made, sd):
    folder, config, files = made
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        content = {"cut": files[name][:-40], "empty": b"", "other": b"x" * len(files[name])}
        path.write_bytes(content[damage])
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        LatentCache(folder)
    text = str(error.value)
    assert str(folder) in text
    assert name in text
    assert "`slam-edu cache`" in text
    if damage != "missing":
        assert f"{str(path)!r} is damaged (" in text
        assert "delete it and run `slam-edu cache` again with the same settings" in text
        path.unlink()
    make_cache(config, sd, folder, show=quiet)
    assert contents(folder) == files


def test_one_wrong_byte_in_a_shard(made, sd):
    folder, config, files = made
    path = folder / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00000.safetensors' is damaged \(its checksum"):
        LatentCache(folder)
    lines = []  # without deleting it as well
    make_cache(config, sd, folder, show=lines.append)
    assert "cache: shard-00000.safetensors is missing or damaged and is made again" in lines
    assert contents(folder) == files


def test_a_large_cache_is_not_read_when_it_is_opened(made, monkeypatch):
    folder, _, _ = made
    monkeypatch.setattr(module, "SMALL", 10)
    path = folder / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    cache = LatentCache(folder)
    with pytest.raises(ValueError, match="its checksum differs"):
        cache.verify()


def test_a_large_cache_gives_the_same(made, monkeypatch):
    """Mapped into memory, or read when it is opened."""
    folder, _, _ = made
    small = LatentCache(folder)
    monkeypatch.setattr(module, "SMALL", 10)
    large = LatentCache(folder)
    assert type(large._latents) is not type(small._latents)
    for indices in ([0], [8, 0, 8, 3, 4], range(9)):
        (a, c), (b, d) = small.batch(indices), large.batch(indices)
        assert torch.equal(a, b)
        assert torch.equal(c.states, d.states)


def test_no_cache(tmp_path):
    message = "is not there: it has no index.json; run `slam-edu cache` with the same settings"
    with pytest.raises(FileNotFoundError, match=message):
        LatentCache(tmp_path / "nowhere")


def test_a_shard_without_its_index_entry_is_used_only_if_whole(made, sd):
    """Killed before the index was written, and a shard was cut by something else."""
    folder, config, files = made
    (folder / "index.json").unlink()
    path = folder / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    make_cache(config, sd, folder, show=quiet)
    assert contents(folder) == files


def test_a_full_disk(made, sd, tmp_path):
    """The limit on a file's size stands for it: the same error, at the same place, of the system.

    The first shard has two captions and fits; the second has four more and does not.
    """
    resource = pytest.importorskip("resource")
    _, config, _ = made
    folder = tmp_path / "data"
    captions = ["a seven", "a two", "a seven", "a two", "one", "three", "four", "five", "six"]
    lines = [
        json.dumps({"file_name": f"{n:03}.png", "text": words}) for n, words in enumerate(captions)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    whole = tmp_path / "whole"
    make_cache(config, sd, whole, show=quiet)
    sizes = [(whole / f"shard-0000{n}.safetensors").stat().st_size for n in range(2)]
    assert sizes[0] < sizes[1] - 3000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0] + 1000, before[1]))
    try:
        with pytest.raises(OSError, match="shard-00001") as error:
            make_cache(config, sd, tmp_path / "full", show=quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "1 finished shards of the cache stay; make room, and run the same" in str(error.value)
    assert "File too large" in str(error.value)
    assert isinstance(error.value.__cause__, OSError)
    assert set(contents(tmp_path / "full")) == {"shard-00000.safetensors"}
    make_cache(config, sd, tmp_path / "full", show=quiet)
    assert contents(tmp_path / "full") == contents(whole)

"""The cache holds what the teacher's parts compute or draw, and survives what happens to it."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from slam_edu import NoiseSchedule, last, sample_pf_ode
from slam_edu.io import locked
from slam_edu.sd.components import empty_condition, encode_images, text_condition, unet_output
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data import LatentCache, entries, make_cache
from slam_edu.sd.data import cache as module
from slam_edu.sd.data.latents import DRAWN, DrawnLatents, EncodedLatents, fit, open_latents
from slam_edu.sd.tiny import tiny_pipeline, tiny_xl_pipeline
from slam_edu.seeding import sample_generator
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
    pipeline = tiny_pipeline()
    pipeline.vae.register_to_config(scaling_factor=0.6)
    return pipeline


@pytest.fixture(scope="module")
def xl():
    return tiny_xl_pipeline()


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(EncodedLatents, "shard", 4)
    monkeypatch.setattr(EncodedLatents, "batch", 3)


def config_of(folder, **changes):
    settings = {"data": "folder", "data_path": str(folder), "cache_dtype": "float32"}
    return SDConfig(**{**settings, **changes})


def contents(folder):
    """Every file but the lock and the checksums of the data's files, which have their times."""
    others = (".lock", "data.json")
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name not in others}


# -------------------------------------------------------------------- images at a size


def test_images_at_a_size():
    """A wide image loses its sides; the crop's corner is in pixels of the resized image."""
    wide = Image.new("RGB", (96, 32), "white")
    wide.paste("red", (32, 0, 64, 32))
    image, time_ids = fit(encoded(wide), (32, 32))
    assert (image[0] == 1).all()
    assert (image[1:] == -1).all()
    assert time_ids == (32, 96, 0, 32, 32, 32)
    image, time_ids = fit(encoded(wide.transpose(Image.Transpose.ROTATE_90)), (16, 16))
    assert image[1].max() < -0.8
    assert time_ids == (96, 32, 16, 0, 16, 16)
    assert torch.equal(fit(encoded(picture(1)), (32, 32))[0], values(picture(1)))
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # fine stripes become their mean; without a filter they would alias
    assert fit(encoded(Image.fromarray(stripes)), (32, 32))[0].abs().max() < 0.05
    assert fit(encoded(picture(0, (8, 8))), (32, 32))[0].shape == (3, 32, 32)
    message = r"a very small image \(7 x 90 pixels; allowed: enlarged to 32 x 32 by at most 4\)"
    with pytest.raises(ValueError, match=message):
        fit(encoded(picture(0, (7, 90))), (32, 32))
    image = values(picture(2))
    assert fit(image, (32, 32))[0] is image
    halved, time_ids = fit(image, (16, 16))
    assert time_ids == (32, 32, 0, 0, 16, 16)
    torch.testing.assert_close(halved.mean((1, 2)), image.mean((1, 2)), rtol=0, atol=0.02)


# -------------------------------------------------------------------- what it holds


@pytest.mark.parametrize(("kind", "dtype"), [("sd", "float32"), ("xl", "float16")])
def test_the_cache_is_what_the_parts_compute(kind, dtype, request, tmp_path, small_shards):
    pipeline = request.getfixturevalue(kind)
    folder = image_folder(tmp_path / "data", 11)
    wide = picture(3, (80, 40))
    (folder / "003.png").write_bytes(encoded(wide))
    encodings = []
    hook = pipeline.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: encodings.append(
            len(kwargs.get("input_ids", args and args[0]))
        ),
        with_kwargs=True,
    )
    config = config_of(folder, cache_dtype=dtype)
    cache = make_cache(config, pipeline, tmp_path / "cache", show=quiet)
    hook.remove()
    assert encodings == [len(CAPTIONS), 1]  # each once, and the empty one
    assert cache.latent_shape == (4, 8, 8)
    assert cache.captions == [caption(n) for n in range(11)]
    images = [picture(n) for n in range(11)]
    images[3] = wide.resize((64, 32), Image.Resampling.LANCZOS).crop((16, 0, 48, 32))
    close = {"rtol": 1e-3, "atol": 1e-3} if dtype == "float16" else {"rtol": 1e-4, "atol": 1e-5}
    some = [10, 3, 0, 3, 7]
    latents, cond = cache.batch(some)
    assert latents.dtype == cond.states.dtype == torch.float32
    wanted = encode_images(pipeline.vae, torch.stack([values(images[n]) for n in some]))
    torch.testing.assert_close(latents[::2], wanted[::2], **close)
    torch.testing.assert_close(latents, wanted, rtol=0, atol=0.05)  # a rounding of the resized one
    texts = text_condition(pipeline, [caption(n) for n in some])
    torch.testing.assert_close(cond.states, texts.states, **close)
    empty = empty_condition(pipeline)
    torch.testing.assert_close(cache.empty.states, empty.states)
    if kind == "sd":
        assert cond.pooled is cond.time_ids is cache.empty.pooled is None
        with torch.no_grad():
            mean = pipeline.vae.encode(values(picture(10))[None]).latent_dist.mean
        torch.testing.assert_close(latents[:1], 0.6 * mean, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(cond.pooled, texts.pooled, **close)
        whole, cut = [32, 32, 0, 0, 32, 32], [40, 80, 0, 16, 32, 32]
        assert cond.time_ids.tolist() == [cut if n == 3 else whole for n in some]
        torch.testing.assert_close(cache.empty.pooled, empty.pooled)
        assert cache.empty.time_ids.tolist() == [whole]
    for index in (-1, 11):
        with pytest.raises(ValueError, match=rf"index is {index}; allowed: 0 to 10"):
            cache.batch([0, index])


def test_the_autoencoder_runs_in_float32(tmp_path):
    pipeline = tiny_pipeline()
    config = config_of(image_folder(tmp_path / "data", 2))
    whole = make_cache(config, pipeline, tmp_path / "a", show=quiet)
    pipeline.vae.to(torch.float16)
    half = make_cache(config, pipeline, tmp_path / "b", show=quiet)
    assert pipeline.vae.dtype == torch.float32
    difference = (half.batch([0, 1])[0] - whole.batch([0, 1])[0]).abs().max()
    assert 0 < difference < 1e-2  # the weights were rounded, and are still taken for the same
    half.check(config, tiny_pipeline())


def test_digits_and_another_resolution(sd, tmp_path):
    from slam_edu.digits.data import CaptionedDigits

    lines = []
    config = SDConfig(data="digits", max_samples=40, cache_dtype="float32")
    cache = make_cache(config, sd, tmp_path / "c", show=lines.append)
    batch = CaptionedDigits("train").batch(range(40))
    assert cache.captions == batch.captions
    wanted = encode_images(sd.vae, batch.images)
    torch.testing.assert_close(cache.batch(range(40))[0], wanted, rtol=1e-4, atol=1e-5)
    assert lines[0].startswith("cache: 40 samples of data=digits are encoded, once, to ")
    assert lines[1] == "cache: 40 samples accepted, 0 rejected"
    cache = make_cache(config.replace(resolution=48), sd, tmp_path / "d", show=quiet)
    assert cache.latent_shape == tuple(cache.batch([0])[0].shape[1:]) == (4, 12, 12)
    with pytest.raises(ValueError, match="resolution is 50; allowed: a multiple of 4"):
        make_cache(config.replace(resolution=50), sd, tmp_path / "e", show=quiet)


# -------------------------------------------------------------------- latents that are drawn


def prompts_config(tmp_path, **changes):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(CAPTIONS), "utf-8")
    settings = {
        "data": "prompts", "data_path": str(path), "draw_steps": 3, "guidance": 2.0, "batch": 3,
        "cache_dtype": "float32", "teacher": "some/where",
    }  # fmt: skip
    return SDConfig(**{**settings, **changes})


def test_drawn_latents_are_the_solvers(tmp_path):
    """The same noise through the sampler of the core, one prompt at a time."""
    pipeline = tiny_xl_pipeline(prediction_type="v_prediction")
    cache = make_cache(prompts_config(tmp_path), pipeline, tmp_path / "c", show=quiet)
    assert cache.captions == CAPTIONS
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    latents, cond = cache.batch(range(4))
    for n, prompt in enumerate(CAPTIONS):
        noise = torch.randn(4, 8, 8, generator=sample_generator(0, n, DRAWN))
        with torch.no_grad():
            wanted = last(
                sample_pf_ode(
                    lambda x, t, c: unet_output(pipeline.unet, x, t, c), noise[None], schedule, 3,
                    method="dpmpp_2m", prediction_type="v_prediction", guidance=2.0,
                    cond=text_condition(pipeline, [prompt]), uncond=empty_condition(pipeline),
                )
            )  # fmt: skip
        torch.testing.assert_close(latents[n], wanted[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cond.states, text_condition(pipeline, CAPTIONS).states)
    assert cond.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]] * 4


def test_what_drawn_latents_depend_on(tmp_path, monkeypatch):
    """Prompt, guidance, steps and seed; not the batch, nor how many are drawn."""
    pipeline = tiny_pipeline()

    def drawn(**changes):
        return open_latents(prompts_config(tmp_path, **changes), pipeline).draw(range(4))

    base = drawn()
    for changes in ({"guidance": 1.0}, {"draw_guidance": 0.0}, {"draw_steps": 2}, {"seed": 1}):
        assert (drawn(**changes) - base).abs().amax((1, 2, 3)).min() > 1e-3, changes
    config = prompts_config(tmp_path, draw_count=2, draw_guidance=2.0, guidance=7.0)
    monkeypatch.setattr(DrawnLatents, "shard", 4)
    calls, draw = [], DrawnLatents.draw

    def interrupted(latents, numbers):
        calls.append(list(numbers))
        if len(calls) == 4:  # in the second shard
            raise KeyboardInterrupt
        return draw(latents, numbers)

    cache = make_cache(config, pipeline, tmp_path / "whole", show=quiet)
    torch.testing.assert_close(cache.batch(range(4))[0], base, rtol=1e-3, atol=1e-4)
    assert cache.captions == CAPTIONS * 2
    monkeypatch.setattr(DrawnLatents, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_cache(config, pipeline, tmp_path / "c", show=quiet)
    make_cache(config, pipeline, tmp_path / "c", show=quiet)
    assert calls == [[0, 1, 2], [3], [4, 5, 6], [7], [4, 5, 6], [7]]
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    monkeypatch.undo()
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"draw_guidance is 2.0 there and 3.0 here.*unet is"):
        make_cache(config.replace(draw_guidance=3.0), pipeline, tmp_path / "c", show=quiet)
    with pytest.raises(ValueError, match=r"were rejected.* a latent that is not finite: "):
        make_cache(config, pipeline, tmp_path / "nan", show=quiet)


# -------------------------------------------------------------------- what is rejected


def faulty_folder(folder):
    """25 images, of which one is cut short, one is text; and one without a caption."""
    image_folder(folder, 25)
    (folder / "004.png").write_bytes(encoded(picture(4))[:200])
    (folder / "010.png").write_text("not an image", "utf-8")
    (folder / "extra.png").write_bytes(encoded(picture(0)))
    return folder


def test_rejected_samples_are_counted_with_their_reasons(sd, tmp_path, small_shards):
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
    lines, config = [], config_of(folder, max_rejected=0.2)
    cache = make_cache(config, sd, tmp_path / "c", show=lines.append)
    assert "cache: going on from 23 samples in 6 finished shards" in lines
    assert cache.captions == [caption(n) for n in range(25) if n not in (4, 10)]
    reasons = "(a damaged image: 1, no caption: 1, not an image: 1)"
    assert lines[-2] == f"cache: 23 samples accepted, 3 rejected {reasons}"
    assert LatentCache(tmp_path / "c").counts == cache.counts
    few = make_cache(config.replace(max_samples=10), sd, tmp_path / "d", show=quiet)
    assert few.captions == [caption(n) for n in range(12) if n not in (4, 10)]


def test_it_stops_early_where_many_are_bad(sd, tmp_path, small_shards):
    """All shards so far are judged together: one has too few samples to judge by."""
    folder = image_folder(tmp_path / "data", 60, metadata=False)
    for path in sorted(folder.glob("*.txt"))[::2]:
        path.write_text(" ", "utf-8")
    config = config_of(folder)
    with pytest.raises(ValueError, match=r"1\d of 2\d samples .* an empty caption: 1\d"):
        make_cache(config, sd, tmp_path / "c", show=quiet)
    kept = make_cache(config.replace(empty_captions="keep"), sd, tmp_path / "d", show=quiet)
    torch.testing.assert_close(kept.batch([2])[1].states, kept.empty.states)


def test_a_latent_that_is_not_finite_is_rejected(tmp_path):
    pipeline = tiny_pipeline()

    def spoil(module, args, output):
        output[:, :, 0, 0] = torch.where(args[0][:, :1, 0, 0] > 0.2, torch.nan, output[:, :, 0, 0])
        return output

    pipeline.vae.encoder.register_forward_hook(spoil)
    bad = [values(picture(n))[0, 0, 0] > 0.2 for n in range(6)]
    assert 0 < sum(bad) < 6
    config = config_of(image_folder(tmp_path / "data", 6), max_rejected=1)
    cache = make_cache(config, pipeline, tmp_path / "c", show=quiet)
    assert cache.captions == [caption(n) for n in range(6) if not bad[n]]
    assert cache.counts.reasons == {"a latent that is not finite": sum(bad)}
    assert cache.batch(range(len(cache)))[0].isfinite().all()


# -------------------------------------------------------------------- killed, and gone on with


class Killed(BaseException):
    """As if the process had ended."""


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_interrupted_anywhere_it_ends_the_same(kind, sd, tmp_path, small_shards, monkeypatch):
    if kind == "folder":
        path, reasons = faulty_folder(tmp_path / "data"), {"no caption", "a damaged image"}
        reasons.add("not an image")
    else:
        path = make_shards(tmp_path / "data", (5, 9, 7, 4))
        *_, third, fourth = sorted((tmp_path / "data").iterdir())
        third.write_bytes(third.read_bytes()[:5000])
        files = [item for n in range(4) for item in sample_files(n).items()]
        fourth.write_bytes(tar_of([*files, ("x.png", b""), ("x.txt", b"ends with a rejected")]))
        reasons = {"a shard that is cut short", "an empty file"}
    config = config_of(path, data=kind, max_rejected=0.3)
    whole = make_cache(config, sd, tmp_path / "whole", show=quiet)
    assert whole.counts.reasons == dict.fromkeys(reasons, 1)
    save, random, left = module.save_tensors, np.random.default_rng(0), [0]

    def saving(tensors, path, *rest):
        """Dies in the middle of the writing of a file, now and then."""
        if left[0] == 0:
            path.write_bytes(b"half of it")
            shutil.copy(path, path.parent / ".slam_edu-abcdefgh.safetensors")
            raise Killed
        left[0] -= 1
        save(tensors, path, *rest)

    monkeypatch.setattr(module, "save_tensors", saving)
    deaths = 0
    while not (tmp_path / "parts" / "index.json").exists():
        left[0] = int(random.integers(0, 3))
        try:
            make_cache(config, sd, tmp_path / "parts", show=quiet)
        except Killed:
            deaths += 1
            assert deaths < 50
    assert deaths >= 3
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    lines = []  # where all is done, nothing is
    make_cache(config, sd, tmp_path / "parts", show=lines.append)
    assert lines == []


def test_one_process_at_a_time(sd, tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="is in use by another process"):
        make_cache(config_of(tmp_path), sd, tmp_path, show=quiet)


def test_files_of_others_stay(sd, tmp_path):
    """The names of a cache with other content, and names that look like its temporaries."""
    config = config_of(image_folder(tmp_path / "data", 2))
    for name, content in (
        ("shard-00000.safetensors", save({"a": torch.zeros(2)})), ("index.json", b'{"a": 1}'),
        (".my-notes", b"kept"),
    ):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        if name == ".my-notes":
            make_cache(config, sd, folder, show=quiet)
        else:
            with pytest.raises(ValueError, match=r"allowed: another cache_folder, or this one wi"):
                make_cache(config, sd, folder, show=quiet)
        assert (folder / name).read_bytes() == content


def test_a_full_disk(sd, tmp_path, small_shards, monkeypatch):
    config = config_of(image_folder(tmp_path / "data", 9))
    save, saved = module.save_tensors, []

    def saving(tensors, path, *rest):
        saved.append(path)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "no space left")
        save(tensors, path, *rest)

    monkeypatch.setattr(module, "save_tensors", saving)
    with pytest.raises(OSError, match=r"shard-00001.*no space left.*the same command goes on"):
        make_cache(config, sd, tmp_path / "full", show=quiet)
    assert set(contents(tmp_path / "full")) == {"shard-00000.safetensors"}


# -------------------------------------------------------------------- other things, and damage


@pytest.fixture
def made(sd, tmp_path, small_shards):
    """A finished cache of three shards; its folder, its configuration, its files' bytes."""
    config = config_of(image_folder(tmp_path / "data", 9))
    make_cache(config, sd, tmp_path / "c", show=quiet)
    return tmp_path / "c", config, contents(tmp_path / "c")


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_data_and_teachers(finished, made, sd):
    folder, config, _ = made
    cache = LatentCache(folder)
    if not finished:
        (folder / "index.json").unlink()
    before = contents(folder)
    for changes, message in (
        ({"cache_dtype": "float16"}, "data: cache_dtype is 'float32' there and 'float16' here"),
        ({"empty_captions": "keep"}, "data: empty_captions is 'reject' there and 'keep' here"),
        ({"max_samples": 3}, "data: max_samples is None there and 3 here"),
        ({"resolution": 64}, r"teacher: latent_shape is \[4, 8, 8\] there and \[4, 16, 16\]"),
        ({"data": "digits"}, "data: data is 'folder' there and 'digits' here"),
    ):
        with pytest.raises(ValueError, match=rf"holds a cache of other things: .*{message}"):
            make_cache(config.replace(**changes), sd, folder, show=quiet)
    other = tiny_pipeline(seed=1)
    with pytest.raises(ValueError, match=r"teacher: scaling_factor .* text_encoder is .*vae is"):
        make_cache(config, other, folder, show=quiet)
    with pytest.raises(ValueError, match=r"scaling_factor .* text_encoder is .*vae is"):
        cache.check(config, other)
    cache.check(config, sd)
    edit_in_place(Path(config.data_path) / "metadata.jsonl")
    with pytest.raises(ValueError, match="data: files is"):
        make_cache(config, sd, folder, show=quiet)
    assert contents(folder) == before


def edit_in_place(path):
    """One letter of it; its size and its time stay."""
    about, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"seven", b"eleve"))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)


def test_data_that_did_not_change_are_not_read_again(sd, tmp_path, monkeypatch):
    config, read = config_of(image_folder(tmp_path / "data", 5)), []
    before = entries.sha256_of

    def counting(path):
        read.append(path.name)
        return before(path)

    monkeypatch.setattr(entries, "sha256_of", counting)
    make_cache(config, sd, tmp_path / "c", show=quiet)
    assert len(read) == 6
    make_cache(config, sd, tmp_path / "c", show=quiet)
    assert len(read) == 6
    path = tmp_path / "data" / "003.png"
    path.write_bytes(path.read_bytes())  # another time, the same picture
    make_cache(config, sd, tmp_path / "c", show=quiet)
    assert read[6:] == ["003.png"]
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    make_cache(config.replace(data_path=str(tmp_path / "moved")), sd, tmp_path / "c", show=quiet)


@pytest.mark.parametrize("kind", ["webdataset", "weights"])
def test_other_content_of_the_same_size(kind, sd, tmp_path):
    """Shards and the teacher's weights, too, are told by what they hold."""
    config = config_of(make_shards(tmp_path / "data", (2, 2)), data="webdataset")
    other = tiny_pipeline()
    other.vae.register_to_config(scaling_factor=0.6)
    make_cache(config, sd, tmp_path / "c", show=quiet)
    make_cache(config, other, tmp_path / "c", show=quiet)
    if kind == "weights":
        with torch.no_grad():
            other.vae.decoder.conv_in.weight[3, 1, 2, 0] += 0.5
    else:
        edit_in_place(tmp_path / "data" / "shard-00.tar")
    named = {"webdataset": "data: shards is", "weights": "teacher: vae is"}[kind]
    with pytest.raises(ValueError, match=named):
        make_cache(config, other, tmp_path / "c", show=quiet)


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "empty.safetensors", "index.json"])
def test_damaged_files(name, made, sd):
    folder, config, files = made
    wrong = bytearray(files[name])
    wrong[-100] ^= 1
    for content in (files[name][:-40], b"x" * len(files[name]), bytes(wrong), None):
        if name == "index.json" and content == wrong:
            continue
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            LatentCache(folder)
        assert name in str(error.value)
        assert "`slam-edu cache`" in str(error.value)
        lines = []
        if name == "index.json":
            (folder / name).unlink(missing_ok=True)  # as the message says
        make_cache(config, sd, folder, show=lines.append)
        if name != "index.json":
            assert f"cache: {name} is missing or damaged and is made again" in lines
        assert contents(folder) == files
    if name == "shard-00001.safetensors":  # killed before the index, cut by something else
        (folder / "index.json").unlink()
        (folder / name).write_bytes(files[name][:-1])
        make_cache(config, sd, folder, show=quiet)
        assert contents(folder) == files
    with pytest.raises(FileNotFoundError, match="is not there: it has no index"):
        LatentCache(folder / "nowhere")


def test_a_large_cache_is_mapped_and_not_read_when_it_is_opened(made, monkeypatch):
    folder, _, files = made
    small = LatentCache(folder)
    monkeypatch.setattr(module, "SMALL", 10)
    content = files["shard-00002.safetensors"]
    (folder / "shard-00002.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    large = LatentCache(folder)
    assert len(large._parts["latents"]) == 3
    (a, c), (b, d) = small.batch([7, 0, 3, 4]), large.batch([7, 0, 3, 4])
    assert torch.equal(a, b)
    assert torch.equal(c.states, d.states)
    (folder / "shard-00002.safetensors").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"'.*c' shard-00002.safetensors is missing or damaged"):
        LatentCache(folder)

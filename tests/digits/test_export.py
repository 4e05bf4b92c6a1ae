"""The exported folders: what loads from them, and what happens when they are not whole."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from slam_edu.digits import DigitClassifier, load_classifier, load_pipeline
from slam_edu.digits.pipeline import CHECKSUMS, check_files, write_checksums
from slam_edu.digits.train import export
from slam_edu.digits.train.export import export_classifier, export_pipeline
from tests.digits.conftest import finished_run, same_weights, tiny_pipeline

PROMPTS = ["a red seven on a yellow background", "handwritten 3"]
NETWORKS = ("vae", "unet", "text_encoder")
MEND = (r"get the files back with `git checkout -- data/digits-sd` in a checkout, or with "
        r"`pip install --force-reinstall --no-deps slam_edu`")  # fmt: skip


def draw(pipeline):
    """Images as diffusers draws them, in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipeline(
        PROMPTS, num_inference_steps=4, guidance_scale=3.0, latents=noise, output_type="pt"
    ).images


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A pipeline, its images before the export, and the folder."""
    place = tmp_path_factory.mktemp("export")
    pipeline = tiny_pipeline("v_prediction")
    pipeline.vae.register_to_config(scaling_factor=1.7)
    before = draw(pipeline)
    for name in ("vae", "diffusion"):
        finished_run(place / "runs" / name, part=name)
    runs = {name: place / "runs" / name for name in ("vae", "diffusion")}
    export_pipeline(pipeline, place / "digits-sd", runs)
    return pipeline, before, place / "digits-sd"


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exported folder, to be damaged."""
    return Path(shutil.copytree(exported[2], tmp_path / "digits-sd"))


# -------------------------------------------------------------------- the folder


def test_from_pretrained_alone(exported):
    """All in float32, and the images of the pipeline that was exported."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    pipeline, before, folder = exported
    loaded = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert isinstance(loaded.text_encoder, CLIPTextModel)
    assert isinstance(loaded.tokenizer, CLIPTokenizer)
    assert isinstance(loaded.scheduler, DDIMScheduler)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert loaded.scheduler.config.timestep_spacing == "trailing"
    assert loaded.scheduler.config.beta_schedule == "scaled_linear"
    assert loaded.vae.config.scaling_factor == 1.7
    assert loaded.safety_checker is None
    for name in NETWORKS:
        network = getattr(loaded, name)
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert not network.training
        for key, value in network.state_dict().items():
            expected = getattr(pipeline, name).state_dict()[key]
            torch.testing.assert_close(value, expected, rtol=0, atol=0)
    images = draw(loaded)
    assert images.dtype == torch.float32
    assert (images - before).abs().max() < 5e-3  # half precision has 11 bits
    assert images.std() > 0.01  # and they show something
    assert (images[0] - images[1]).abs().max() > 0.01


def test_the_pipeline_is_left_in_float32_and_drawing_the_same(exported):
    pipeline, before, folder = exported
    for name in NETWORKS:
        assert {p.dtype for p in getattr(pipeline, name).parameters()} == {torch.float32}
    assert torch.equal(draw(pipeline), draw(load_pipeline(folder)))
    assert (draw(pipeline) - before).abs().max() < 5e-3


def test_the_folder_is_in_half_precision_with_all_that_made_it(exported):
    from safetensors import safe_open

    _, _, folder = exported
    weights = list(folder.glob("*/*.safetensors"))
    assert sorted(path.parent.name for path in weights) == sorted(NETWORKS)
    for path in weights:
        with safe_open(path, framework="pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}
    about = json.loads((folder / "training" / "vae.json").read_text("utf-8"))
    assert about["config"] == {"part": "vae"}
    assert about["minutes"] == 2.5
    log = (folder / "training" / "diffusion.csv").read_text("utf-8")
    assert log.startswith("update,loss,grad_norm,lr,seconds\n100,0.5,")
    listed = json.loads((folder / CHECKSUMS).read_text("utf-8"))
    found = contents(folder)
    assert listed.keys() == found.keys() - {CHECKSUMS}
    assert "training/vae.csv" in listed
    for name, digest in listed.items():
        assert digest == hashlib.sha256(found[name]).hexdigest()
    # Others may read it.
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.rglob("*"))


def test_load_pipeline(exported, capfd):
    _, before, folder = exported
    pipeline = load_pipeline(folder)
    assert (draw(pipeline) - before).abs().max() < 5e-3
    assert str(pipeline.device) == "cpu"
    pipeline = load_pipeline(str(folder))
    pipeline("a seven", num_inference_steps=2)  # without a bar
    assert capfd.readouterr() == ("", "")


def test_loading_does_not_switch_bars_off_for_others(exported):
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [library.is_progress_bar_enabled() for library in libraries]
    try:
        for library, shown in zip(libraries, (True, False), strict=True):
            library.enable_progress_bar() if shown else library.disable_progress_bar()
        load_pipeline(exported[2])
        assert [library.is_progress_bar_enabled() for library in libraries] == [True, False]
    finally:
        for library, shown in zip(libraries, before, strict=True):
            library.enable_progress_bar() if shown else library.disable_progress_bar()


def test_an_error_leaves_the_old_folder(folder, tmp_path, monkeypatch):
    """Of the runs, of the writing, and of the checksums; nothing half-written stays about."""
    (folder / "README.md").write_text("# card", "utf-8")
    before = contents(folder)
    pipeline = tiny_pipeline(seed=1)
    beside = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        export_pipeline(pipeline, folder, {"vae": tmp_path / "none"})

    def failing(*_):
        raise OSError("no space left on device")

    for place, name in ((export, "write_checksums"), (type(pipeline), "save_pretrained")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, failing)
            with pytest.raises(OSError, match="no space"):
                export_pipeline(pipeline, folder, {})
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == beside
    load_pipeline(folder)


def test_the_card_is_kept_and_the_rest_is_new(folder, tmp_path, runs):
    (folder / "README.md").write_text("# card", "utf-8")
    (folder / "old.txt").write_text("of the last export", "utf-8")
    pipeline = tiny_pipeline(seed=1)
    export_pipeline(pipeline, folder, {"vae": runs["vae"]})
    assert (folder / "README.md").read_text("utf-8") == "# card"
    assert not (folder / "old.txt").exists()
    assert not (folder / "training" / "diffusion.csv").exists()
    assert same_weights(load_pipeline(folder).unet, pipeline.unet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-sd", "runs"]
    # A change of the card is no damage, also where it was there when the list was made.
    write_checksums(folder)
    (folder / "README.md").write_text("# another card", "utf-8")
    check_files(folder)


# -------------------------------------------------------------------- damage


def damaged(folder, kind, *parts):
    """Refused by a message that names the file and the way to mend it."""
    with pytest.raises(kind, match=MEND) as caught:
        load_pipeline(folder)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["unet/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "model_index.json",
     "training/vae.csv"],
)  # fmt: skip
def test_a_missing_truncated_or_changed_file(folder, name):
    path = folder / name
    content = path.read_bytes()
    half = len(content) // 2
    changed = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    for wrong in (content[:half], b"", changed, content + b"\n"):
        path.write_bytes(wrong)
        size = f"{str(path)!r}, {len(wrong):,} bytes long, is not the file that was shipped"
        damaged(folder, ValueError, size, "checksum differs")
    path.unlink()
    damaged(folder, FileNotFoundError, f"{str(path)!r} is missing")
    path.write_bytes(content)
    load_pipeline(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "3", b"\xff\xfe\x00"])
def test_checksums_that_cannot_be_read(folder, text):
    path = folder / CHECKSUMS
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    damaged(folder, ValueError, f"{str(path)!r} is damaged")


def test_checksums_that_are_missing(folder):
    (folder / CHECKSUMS).unlink()
    damaged(folder, FileNotFoundError, f"{str(folder / CHECKSUMS)!r} is missing")


def test_a_missing_folder(tmp_path):
    for load in (load_pipeline, load_classifier):
        with pytest.raises(FileNotFoundError, match="there is no folder") as caught:
            load(tmp_path / "none")
        assert repr(str(tmp_path / "none")) in str(caught.value)
        assert "slam_edu.digits.train export" in str(caught.value)


def test_without_the_shipped_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("slam_edu.io._PACKAGE", tmp_path / "slam_edu")
    for load, name in ((load_pipeline, "digits-sd"), (load_classifier, "digits-classifier")):
        with pytest.raises(FileNotFoundError, match=f"'{name}' is missing.*Reinstall slam_edu"):
            load()


# -------------------------------------------------------------------- the classifier's folder


def test_the_classifiers_folder(tmp_path, runs):
    torch.manual_seed(0)
    network = DigitClassifier().eval()
    for module in network.modules():  # as if it had been trained
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(4001)
    folder = tmp_path / "digits-classifier"
    folder.mkdir()
    (folder / "README.md").write_text("# card", "utf-8")
    export_classifier(network, folder, runs["classifier"])
    assert (folder / "README.md").read_text("utf-8") == "# card"
    assert sorted(contents(folder)) == [
        "README.md", CHECKSUMS, "classifier.safetensors", "training/classifier.csv",
        "training/classifier.json",
    ]  # fmt: skip
    loaded = load_classifier(folder)
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        before = network.state_dict()[name]
        assert value.dtype == before.dtype
        half = before.half().float() if before.is_floating_point() else before
        assert torch.equal(value, half)
    assert not any(p.requires_grad for p in loaded.parameters())
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(loaded(images), network(images), rtol=5e-3, atol=5e-3)
    path = folder / "classifier.safetensors"
    content = path.read_bytes()
    for wrong in (content[:1000], content[:-1] + b"\x00\x01"):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="git checkout -- data/digits-classifier"):
            load_classifier(folder)

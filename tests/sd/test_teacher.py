"""Teachers: from the shipped folder, a folder and the hub's cache; and what cannot be one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slam_edu.digits.pipeline import load_pipeline
from slam_edu.sd.components import (
    decode_latents,
    encode_images,
    is_xl,
    latent_shape,
    text_condition,
)
from slam_edu.sd.config import SDConfig
from slam_edu.sd.export import export_pipeline
from slam_edu.sd.networks import build_networks
from slam_edu.sd.published import architecture_of
from slam_edu.sd.teacher import check_teacher, load_pipeline_folder, load_teacher, quiet
from tests.digits.conftest import same_weights, tiny_pipeline
from tests.sd.tiny import tiny_sd_pipeline, tiny_xl_pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "somebody/tiny-diffusion"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name to (pipeline, its folder)."""
    place = tmp_path_factory.mktemp("teachers")
    made = {"sd": tiny_sd_pipeline(), "xl": tiny_xl_pipeline()}
    with quiet():
        for name, pipeline in made.items():
            pipeline.save_pretrained(place / name)
    return {name: (pipeline, place / name) for name, pipeline in made.items()}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of a Stable Diffusion 1's folder, to be damaged."""
    return Path(shutil.copytree(folders["sd"][1], tmp_path / "teacher"))


def teacher(path, **settings):
    return load_teacher(SDConfig(teacher=str(path), **settings))


def edit(path, **changes):
    values = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "removed"}), "utf-8")


def dtypes(pipeline):
    """Of the UNet, and of the other networks."""
    networks = {n: m for n, m in pipeline.components.items() if isinstance(m, torch.nn.Module)}
    unet = {p.dtype for p in networks.pop("unet").parameters()}
    return unet, {p.dtype for network in networks.values() for p in network.parameters()}


# -------------------------------------------------------------------- what can be loaded


def test_digits():
    pipeline = load_teacher(SDConfig())
    shipped = load_pipeline()
    for name in ("unet", "vae", "text_encoder"):
        assert same_weights(getattr(pipeline, name), getattr(shipped, name))
    assert list(load_pipeline_folder("digits").unet.config.block_out_channels) == [64, 128]


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_a_folder(folders, name, capfd):
    expected, path = folders[name]
    pipeline = teacher(path)
    assert type(pipeline) is type(expected)
    assert is_xl(pipeline) == (name == "xl")
    assert dtypes(pipeline) == ({torch.float32}, {torch.float32})
    for part, network in expected.components.items():
        if isinstance(network, torch.nn.Module):
            assert same_weights(getattr(pipeline, part), network)
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.components.get("feature_extractor") is None
    pipeline("a seven", num_inference_steps=2)
    assert capfd.readouterr() == ("", "")


def test_a_variant_in_half_precision(folders, folder):
    """Its UNet in half precision alone: the others come from the plain files, all in float32."""
    pipeline, _ = folders["sd"]
    with pytest.raises(FileNotFoundError, match=r"no weights of variant 'fp16'"):
        teacher(folder, variant="fp16")
    weights = {k: (v + 1).half() for k, v in load_file(
        folder / "unet" / "diffusion_pytorch_model.safetensors").items()}  # fmt: skip
    path = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file(weights, path, {"format": "pt"})
    found = teacher(folder, variant="fp16")
    assert dtypes(found) == ({torch.float32}, {torch.float32})
    torch.testing.assert_close(
        found.unet.conv_in.weight, (pipeline.unet.conv_in.weight + 1).half().float()
    )
    assert same_weights(found.vae, pipeline.vae)
    assert not same_weights(teacher(folder).unet, found.unet)


def test_half_precision_files_are_loaded_in_float32(folder):
    """transformers alone would take such a text encoder as it is, and the pipeline break.

    With adapters the base is loaded as it is kept; a full fine-tune starts from all digits.
    """
    path = folder / "text_encoder" / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path, {"format": "pt"})
    edit(folder / "text_encoder" / "config.json", dtype="float16")
    pipeline = teacher(folder, train="full", frozen_dtype="bfloat16")
    assert dtypes(pipeline) == ({torch.float32}, {torch.float32})
    pipeline("a seven", num_inference_steps=1)
    base = teacher(folder, train="lora", frozen_dtype="bfloat16")
    assert dtypes(base) == ({torch.bfloat16}, {torch.float32})


def test_weights_in_shards(folders, tmp_path):
    pipeline, _ = folders["sd"]
    with quiet():
        pipeline.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    [shard] = (tmp_path / "sharded" / "unet").glob("*-00002-of-*.safetensors")
    assert same_weights(teacher(tmp_path / "sharded").unet, pipeline.unet)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks its unet: unet/{shard.name}"):
        teacher(tmp_path / "sharded")


# -------------------------------------------------------------------- folders that are not whole


def test_missing_parts(folder, folders, tmp_path):
    for part, file in (
        ("unet", "config.json"), ("text_encoder", "model.safetensors"),
        ("tokenizer", "tokenizer.json"), ("scheduler", "scheduler_config.json"),
    ):  # fmt: skip
        content = (folder / part / file).read_bytes()
        (folder / part / file).unlink()
        message = rf"lacks its {part}: {part}/{file} is missing"
        with pytest.raises(FileNotFoundError, match=message) as caught:
            teacher(folder)
        assert repr(str(folder)) in str(caught.value)
        (folder / part / file).write_bytes(content)
    path = Path(shutil.copytree(folders["xl"][1], tmp_path / "xl"))
    shutil.rmtree(path / "tokenizer_2")
    with pytest.raises(FileNotFoundError, match=r"lacks its tokenizer_2: tokenizer_2/"):
        teacher(path)
    edit(path / "model_index.json", tokenizer_2=[None, None])
    with pytest.raises(ValueError, match=r"names no tokenizer_2; allowed: a StableDiffusionXLPi"):
        teacher(path)


def test_weights_that_may_hold_code_or_are_cut_short(folder):
    path = folder / "text_encoder" / "model.safetensors"
    content = path.read_bytes()
    for size in (0, 1000, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="is damaged") as caught:
            teacher(folder)
        assert f"{str(path)!r}, {size:,} bytes long" in str(caught.value)
    path.write_bytes(content)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"model\.bin cannot be read: it may hold code"):
        teacher(folder)


def test_weights_that_are_not_finite(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"unet' hold NaN or Inf in 1 tensors, such as conv_in"):
        teacher(folder)


def test_weights_without_a_tensor(folder):
    """Else it would be drawn at random, without a word."""
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights.pop(sorted(weights)[3])
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"hold [\d,]+ values and the network that its config"):
        teacher(folder)


def test_not_a_pipelines_folder(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model_index\.json"):
        teacher(tmp_path)
    path = folder / "model_index.json"
    for text in (b"{", b"\xff\xfe\x00", b"[1]"):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"model_index\.json' is damaged"):
            teacher(folder)
    path.write_text('{"_class_name": "FluxPipeline"}', "utf-8")
    with pytest.raises(ValueError, match="is of a FluxPipeline; allowed: StableDiffusionPipe"):
        teacher(folder)
    shutil.rmtree(folder)
    folder.write_text("a file", "utf-8")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        teacher(folder)


# -------------------------------------------------------------------- settings that are lacking

TOKENIZER, VAE, UNET = "tokenizer/tokenizer_config.json", "vae/config.json", "unet/config.json"


def test_what_configurations_lack_is_what_diffusers_takes(folders, folder):
    """Missing, null and 1e30; and what diffusers' EMAModel adds to a UNet is left out."""
    added = {"decay": 0.99, "inv_gamma": 1.0, "optimization_step": 7, "use_ema_warmup": False}
    wanted = text_condition(folders["sd"][0], ["a seven"]).states
    for length, factor, size in (("removed",) * 3, (None,) * 3, (10**30, None, 1e30)):
        edit(folder / TOKENIZER, model_max_length=length)
        edit(folder / VAE, scaling_factor=factor, latents_mean=None)
        edit(folder / UNET, sample_size=size, **added)
        config = SDConfig(teacher=str(folder), resolution=48)
        pipeline = load_teacher(config)
        torch.testing.assert_close(text_condition(pipeline, ["a seven"]).states, wanted)
        assert pipeline.vae.config.scaling_factor == 0.18215
        assert latent_shape(pipeline) == architecture_of(config).latent_shape(48) == (4, 12, 12)
        assert architecture_of(config).build_unet().config.in_channels == 4
        message = r"sample_size is .*, so that its own resolution is not known; allowed: resolut"
        for call in (teacher, load_pipeline_folder, lambda f: architecture_of(
                SDConfig(teacher=str(f))).latent_shape()):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                call(folder)


def test_an_export_says_what_the_teacher_lacks(folder, tmp_path):
    """Stock diffusers would not pad its prompts, and could not decode."""
    edit(folder / TOKENIZER, model_max_length="removed")
    edit(folder / VAE, scaling_factor=None)
    config = SDConfig(teacher=str(folder))
    pipeline = load_teacher(config)
    out = export_pipeline(
        build_networks(config, pipeline.unet), pipeline, config, tmp_path / "out"
    )
    assert json.loads((out / TOKENIZER).read_text("utf-8"))["model_max_length"] == 24
    assert json.loads((out / VAE).read_text("utf-8"))["scaling_factor"] == 0.18215


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_means_and_deviations_of_latents_by_channel(folders, name, tmp_path):
    """As the pipelines read them: that of XL alone does."""
    path = Path(shutil.copytree(folders[name][1], tmp_path / name))
    edit(path / VAE, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    pipeline = teacher(path)
    latents = torch.randn(1, *latent_shape(pipeline), generator=torch.Generator().manual_seed(0))
    ours = decode_latents(pipeline.vae, latents)
    with torch.no_grad():
        theirs = pipeline(
            "a", num_inference_steps=1, output_type="pt", guidance_scale=1.0, latents=latents,
            callback_on_step_end=lambda *_: {"latents": latents},
        ).images  # fmt: skip
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=0, atol=1e-4)
    encoded = encode_images(pipeline.vae, ours)
    mean = pipeline.vae.encode(ours).latent_dist.mean
    shift = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1) if name == "xl" else 0.0
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1) if name == "xl" else 1.0
    torch.testing.assert_close(encoded, (mean - shift) * 0.18215 / scale)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (VAE, {"scaling_factor": 0}, "scaling_factor is 0; allowed: a number > 0"),
        (VAE, {"latents_mean": [0.0], "latents_std": [1.0]}, r"latents_mean is \[0.0\]; allowed"),
        (
            VAE,
            {"latents_std": 1e30},
            r"latents_std is 1e\+30; allowed: null, or a number for each",
        ),
    ],
)
def test_settings_for_which_there_is_nothing_to_take(folders, tmp_path, file, changes, message):
    path = Path(shutil.copytree(folders["xl"][1], tmp_path / "xl"))
    edit(path / file, **changes)
    with pytest.raises(ValueError, match=message):
        teacher(path)


def test_parts_of_other_models():
    """Else the first caption would fail, after the data were looked at."""
    for pipeline, part, changes, message in (
        (tiny_sd_pipeline(), "unet", {"cross_attention_dim": 64}, "are 32 wide.*_dim = 64; all"),
        (tiny_xl_pipeline(), "unet", {"projection_class_embeddings_input_dim": 7}, "68 wide.* 7;"),
        (tiny_sd_pipeline(), "text_encoder", {"vocab_size": 99}, "tokens and its text encoder 99"),
    ):
        config = getattr(pipeline, part).config
        if part == "unet":
            pipeline.unet.register_to_config(**changes)
        else:
            config.vocab_size = changes["vocab_size"]
        with pytest.raises(ValueError, match=message):
            check_teacher(pipeline)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subpaths": 30}, "sub-paths is 30, which does not divide the 1000 timesteps"),
        ({"teacher_steps": 3}, "teacher_steps is 3, which does not divide"),
        ({"resolution": 50}, "resolution is 50; allowed: a multiple of 4"),
    ],
)
def test_settings_that_the_teacher_does_not_fit(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        teacher(folder, **changes)


# -------------------------------------------------------------------- models that cannot be one


def test_prediction_types(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    edit(path, prediction_type="sample")
    message = r"cannot be distilled: prediction_type is 'sample'; allowed: 'epsilon', 'v_predicti"
    with pytest.raises(ValueError, match=message):
        teacher(folder)
    edit(path, prediction_type="removed")  # where the file names none it is diffusers' default
    assert teacher(folder).scheduler.config.prediction_type == "epsilon"


def test_inpainting_a_distilled_unet_and_flow_matching():
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = tiny_pipeline()
    unet = pipeline.unet
    unet.register_to_config(time_cond_proj_dim=256)
    with pytest.raises(ValueError, match="time_cond_proj_dim = 256, it is a distilled model"):
        check_teacher(pipeline)
    unet.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match=r"UNet takes 9 channels and gives 4.*latents have 4"):
        check_teacher(pipeline)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    message = "cannot be distilled: FlowMatchEulerDiscreteScheduler has no alphas_cumprod"
    with pytest.raises(ValueError, match=message):
        check_teacher(pipeline)


# -------------------------------------------------------------------- the hub


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the hub's files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_an_id_needs_a_commit():
    with pytest.raises(ValueError, match="needs a pinned commit") as caught:
        teacher(ID)
    assert repr(ID) in str(caught.value)
    for name in ("none", "./none/of/these", "/none", r"C:\none", "~/none-of-these"):
        with pytest.raises(FileNotFoundError, match="is no folder; allowed: a folder, or an id"):
            teacher(name, revision=COMMIT)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network(cache, monkeypatch, offline, capfd):
    """Neither HF_HUB_OFFLINE nor an address where nobody answers."""
    if not offline:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        for place in ("constants.ENDPOINT", "hf_api.api.endpoint"):
            monkeypatch.setattr(f"huggingface_hub.{place}", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError) as caught:
        teacher(ID, revision=COMMIT)
    message = str(caught.value)
    for part in (repr(ID), COMMIT, "Give a folder", "run this once with a network",
                 repr(str(cache))):  # fmt: skip
        assert part in message
    assert ("offline mode" in message) == offline
    assert capfd.readouterr().out == ""


def test_what_the_hub_kept(folders, cache):
    """As an earlier download left it: loaded with no network."""
    pipeline, path = folders["sd"]
    repo = cache / f"models--{ID.replace('/', '--')}"
    shutil.copytree(path, repo / "snapshots" / COMMIT)
    found = teacher(ID, revision=COMMIT)
    assert same_weights(found.unet, pipeline.unet)
    with pytest.raises(ConnectionError):
        teacher(ID, revision=COMMIT[::-1])

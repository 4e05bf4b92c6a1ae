"""Students as files that diffusers alone can run."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slam_edu import NoiseSchedule, last, sample_consistency
from slam_edu.io import CHECKSUMS
from slam_edu.sd import export
from slam_edu.sd.checkpoint import save_checkpoint
from slam_edu.sd.components import quiet, text_condition
from slam_edu.sd.config import SDXL, SDConfig, save_config
from slam_edu.sd.export import (
    CHECKPOINT,
    export_lora,
    export_pipeline,
    export_single_file,
    lcm_scheduler,
    push_to_hub,
)
from slam_edu.sd.networks import build_networks
from slam_edu.sd.teacher import load_pipeline_folder, load_teacher
from tests.sd.tiny import fresh_pipeline, perturb, train_state

PROMPTS = ["a red seven on a yellow background", "handwritten 3"]
STEPS = (1, 4)

#: Pythons with the oldest supported readers, for the weekly workflow; beside the one that runs.
READERS = [sys.executable, *filter(None, os.environ.get("SLAM_EDU_READERS", "").split(os.pathsep))]

#: Runs exported folders where slam_edu cannot be imported.
STOCK = """
import json, os, sys, warnings

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("slam_edu", "tests"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
about = json.loads(sys.argv[1])
if about["strict"]:
    warnings.simplefilter("error")
import torch
from safetensors.torch import save_file
import diffusers
from diffusers import DiffusionPipeline, LCMScheduler, StableDiffusionPipeline

torch.set_num_threads(1)
found = {}
for name, folder in about["folders"].items():
    if os.path.exists(folder + "/model_index.json"):
        pipeline = DiffusionPipeline.from_pretrained(folder)
    else:
        pipeline = StableDiffusionPipeline.from_single_file(
            folder + "/student.safetensors", config=about["folders"]["folded"],
            local_files_only=True, safety_checker=None,
        )
        pipeline.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
    pipeline.set_progress_bar_config(disable=True)
    calls = []
    pipeline.unet.register_forward_pre_hook(lambda _unet, args: calls.append(len(args[0])))
    for steps in about["steps"]:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(2, 4, 8, 8, generator=generator)
        found[f"{name}/{steps}"] = pipeline(
            about["prompts"], num_inference_steps=steps, guidance_scale=1.0, latents=noise,
            generator=generator, output_type="latent",
        ).images
    assert calls == [2] * sum(about["steps"]), calls  # no guidance
save_file(found, about["out"])
"""

#: Name to (model, settings, prediction type, whether gamma is folded).
EXPORTS = {
    "folded": ("sd", {"conditioning": "gamma", "subpaths": 25}, "epsilon", True),
    "kept": ("sd", {"conditioning": "gamma", "timestep_scaling": 7.0}, "v_prediction", False),
    "lora": ("sd", {"train": "lora", "conditioning": "gamma"}, "epsilon", False),
    "xl": ("xl", {}, "v_prediction", True),
    "single": ("sd", {"conditioning": "gamma", "subpaths": 25}, "epsilon", None),
}


class Run:
    """Networks that look trained, and the pipeline of their teacher."""

    def __init__(self, model="sd", prediction="epsilon", **settings):
        self.config = SDConfig(**{"teacher": "some/teacher", "lora_rank": 4, **settings})
        self.pipeline = fresh_pipeline(model, prediction)
        self.networks = perturb(build_networks(self.config, self.pipeline.unet))

    def parts(self):
        return self.networks, self.pipeline, self.config

    def latents(self, steps, weights="target"):
        """The library's own samples, noise and fresh noise as a pipeline draws them."""
        network = getattr(self.networks, weights)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(2, 4, 8, 8, generator=generator)
        with torch.no_grad():
            return last(sample_consistency(
                network, noise, NoiseSchedule.from_scheduler(self.pipeline.scheduler), steps,
                generator=generator, subpaths=self.config.distillation.subpaths,
                conditioning=self.config.distillation.conditioning,
                prediction_type=self.pipeline.scheduler.config.prediction_type,
                cond=text_condition(self.pipeline, PROMPTS),
                timestep_scaling=self.config.distillation.timestep_scaling,
            ))  # fmt: skip


def draw(pipeline):
    """Latents of two steps by a pipeline's own call, with the noise of :meth:`Run.latents`."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS, num_inference_steps=2, guidance_scale=1.0, latents=noise, generator=generator,
        output_type="latent",
    ).images  # fmt: skip


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def difference(a, b):
    return float((a - b).abs().max())


# -------------------------------------------------------------------- in plain diffusers


@pytest.fixture(scope="module", params=READERS)
def drawn(tmp_path_factory, request):
    """What each export draws in a process without slam_edu, and its run."""
    place = tmp_path_factory.mktemp("exports")
    runs = {}
    for name, (model, settings, prediction, fold) in EXPORTS.items():
        runs[name] = Run(model, prediction, **settings)
        if fold is None:
            export_single_file(*runs[name].parts(), place / name, dtype="float32")
        else:
            export_pipeline(*runs[name].parts(), place / name, fold=fold, dtype="float32")
    about = {
        "strict": request.param == sys.executable,
        "folders": {name: str(place / name) for name in EXPORTS}, "steps": STEPS,
        "prompts": PROMPTS, "out": str(place / "latents.safetensors"),
    }  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [request.param, "-I", "-c", STOCK, json.dumps(about)], cwd=place, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return runs, load_file(place / "latents.safetensors"), place


@pytest.mark.parametrize("name", EXPORTS)
def test_stock_diffusers_draws_the_student(drawn, name):
    """The library's own samples of the target, from the same noise."""
    runs, latents, place = drawn
    for steps in STEPS:
        assert difference(latents[f"{name}/{steps}"], runs[name].latents(steps)) <= 1e-4
    # The other weights would be noticed.
    assert difference(runs[name].latents(1, "student"), latents[f"{name}/1"]) > 1e-2
    if name != "single":
        unet = json.loads((place / name / "unet" / "config.json").read_text("utf-8"))
        assert unet["time_cond_proj_dim"] == (256 if name in ("kept", "lora") else None)
        encoder = load_file(place / name / "text_encoder" / "model.safetensors")
        assert all(key.startswith("text_model.") for key in encoder)  # transformers 4 wants it
    found = contents(place / name)
    listed = json.loads(found[CHECKSUMS])["slam_edu"]
    assert listed.keys() == found.keys() - {CHECKSUMS}
    for path, digest in listed.items():
        assert digest == hashlib.sha256(found[path]).hexdigest()
    assert not any(str(place).encode() in text for text in found.values())


# -------------------------------------------------------------------- files


def test_half_precision(tmp_path):
    """The UNet's file alone: what from_pretrained gives is float32, and draws nearly the same."""
    run = Run(conditioning="gamma")
    out = export_pipeline(*run.parts(), tmp_path / "out", weights="student")
    tensors = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    expected = run.latents(2, "student")
    assert 0 < difference(draw(load_pipeline_folder(out)), expected) < 5e-3 * expected.abs().max()


def teachers_folder(tmp_path, **changes):
    """A pipeline's folder as an older version left it, and a run of it."""
    place = tmp_path / "teacher"
    with quiet():
        fresh_pipeline("sd").save_pretrained(place)
    # transformers 4's names and keys, a variant, and what is not needed.
    encoder = place / "text_encoder"
    weights = load_file(encoder / "model.safetensors")
    save_file(
        {f"text_model.{k}": v.half() for k, v in weights.items()},
        encoder / "model.fp16.safetensors", {"format": "pt"},
    )  # fmt: skip
    settings = json.loads((encoder / "config.json").read_text("utf-8"))
    settings.pop("dtype")
    (encoder / "config.json").write_text(json.dumps(settings | {"torch_dtype": "float16"}))
    (encoder / "pytorch_model.bin").write_bytes(b"old")
    (place / "tokenizer" / "special_tokens_map.json").write_text("{}", "utf-8")
    (place / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A teacher\n", "utf-8")
    return place, SDConfig(teacher=str(place), lora_rank=4, **changes)


def test_the_teachers_other_files_are_copied(tmp_path):
    place, config = teachers_folder(tmp_path, variant="fp16")
    pipeline = load_teacher(config)
    networks = perturb(build_networks(config, pipeline.unet))
    out = export_pipeline(networks, pipeline, config, tmp_path / "out")
    before, after = contents(place), contents(out)
    for name in after:
        if name.split("/")[0] in ("vae", "tokenizer") and name in before:
            assert after[name] == before[name], name
    assert {"special_tokens_map.json", "tokenizer.json", "vocab.json", "merges.txt"} <= {
        path.name for path in (out / "tokenizer").iterdir()
    }
    # The variant that was loaded, by the plain name, and old keys with it.
    assert after["text_encoder/model.safetensors"] == before["text_encoder/model.fp16.safetensors"]
    assert "text_encoder/pytorch_model.bin" not in after
    assert not any("fp16" in name for name in after)
    settings = json.loads(after["text_encoder/config.json"])
    assert settings["dtype"] == "float32"
    assert "torch_dtype" not in settings
    loaded = load_pipeline_folder(out)
    for name, value in pipeline.text_encoder.state_dict().items():
        assert torch.equal(loaded.text_encoder.state_dict()[name], value)
    assert "license: cc-by-4.0" in after["README.md"].decode()
    assert str(tmp_path) not in after["README.md"].decode()


def test_the_shipped_teacher_at_another_size(tmp_path):
    """The pipeline draws at the size that was trained."""
    config = SDConfig(resolution=64)
    pipeline = load_teacher(config)
    weight = pipeline.unet.conv_in.weight.clone()
    networks = build_networks(config, pipeline.unet)
    loaded = load_pipeline_folder(export_pipeline(networks, pipeline, config, tmp_path / "out"))
    assert torch.equal(loaded.unet.conv_in.weight, weight)
    image = loaded("a seven", num_inference_steps=1, guidance_scale=1.0).images[0]
    assert image.size == (64, 64)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "license: mit" in card
    assert "# A few-step student of digits-sd" in card


def test_schedulers_of_other_kinds():
    """The levels are the teacher's, whatever its scheduler is and calls its betas."""
    import diffusers

    pipeline, config = fresh_pipeline("sd"), SDConfig()
    betas = torch.linspace(0.001, 0.02, 1000).square().tolist()
    for kind, options in (
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
        ("DDIMScheduler", {"trained_betas": betas}),
        ("DDIMScheduler", {"num_train_timesteps": 500}),
    ):
        pipeline.scheduler = getattr(diffusers, kind)(**options)
        found = lcm_scheduler(pipeline, config)
        torch.testing.assert_close(
            found.alphas_cumprod, pipeline.scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7
        )
    found.set_timesteps(4)
    assert found.timesteps.tolist() == [499, 379, 249, 129]


def test_what_would_be_lost(tmp_path):
    """No other pipeline is replaced, nor the teacher's own; an earlier export is."""
    run, work = Run(train="lora"), tmp_path / "work"
    with quiet():
        run.pipeline.save_pretrained(work)
    (work / "scheduler" / "mine.txt").write_text("mine", "utf-8")
    (work / "thesis.tex").write_text("years", "utf-8")
    before = contents(work)
    for write in (export_pipeline, export_lora):
        for out, options, message in (
            (work, {}, r"mine.txt.*\(--force deletes them\)"),
            (work / "thesis.tex", {}, "is a file; allowed: the name of a folder"),
            (tmp_path / "out", {"weights": "average"}, "weights is 'average'; allowed: 'target'"),
            (tmp_path / "out", {"dtype": "bfloat16"}, "dtype is 'bfloat16'; allowed: 'float16'"),
        ):
            with pytest.raises(ValueError, match=message):
                write(*run.parts(), out, **options)
    assert contents(work) == before
    export_lora(*run.parts(), work, force=True)
    after = contents(work)
    assert before.keys() - after.keys() == {"scheduler/mine.txt"}
    assert all(after[name] == before[name] for name in before if "scheduler/" not in name)
    place, config = teachers_folder(tmp_path)
    pipeline = load_teacher(config)
    with pytest.raises(ValueError, match="is the teacher's own folder"):
        export_pipeline(build_networks(config, pipeline.unet), pipeline, config, place)
    before = contents(export_pipeline(*run.parts(), tmp_path / "out"))
    again = contents(export_pipeline(*run.parts(), tmp_path / "out", weights="student"))
    assert {name for name in before if before[name] != again[name]} == {
        CHECKSUMS, "README.md", "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip


def test_the_model_card(tmp_path):
    hub = {"teacher": SDXL[0], "revision": SDXL[1], "data": "prompts", "guidance": 7.0}
    run = Run("xl", train="lora", conditioning="gamma", **hub)
    rows = [{"sampler": "lcm", "steps": 4, "clip_score": 31.23456, "frechet": None}]
    about = {"updates done": 123, "figures": rows, "folder": Path("/secret")}
    out = export_pipeline(*run.parts(), tmp_path / "out", fold=False, about=about)
    card = (out / "README.md").read_text("utf-8")
    for part in (
        "license: openrail++", f"base_model: {SDXL[0]}", SDXL[1], "guidance_scale=1.0",
        "StableDiffusionXLPipeline.from_pretrained", "| gammas | uniform |", "| lora_rank | 4 |",
        "w = 7 (a scale of 8)", "latents drawn from the teacher itself", "| updates done | 123 |",
        "| sampler | steps | clip_score | frechet |", "| lcm | 4 | 31.23 |  |", "e(0)",
        "arXiv 2404.13903", "sub-path linear approximation",
    ):  # fmt: skip
        assert part in card, part
    assert "/secret" not in card
    control = Run(method="lcd")
    out = export_pipeline(*control.parts(), tmp_path / "control")
    card = (out / "README.md").read_text("utf-8")
    assert "by latent consistency distillation" in card
    assert "e(0)" not in card
    for settings, method in (
        ({"reach": 2}, "on a chord continued past its noisy end, to gamma = 2"),
        ({"slope": "middle", "coupling": "linear", "reach": 1}, "slope of the sub-path's middle"),
    ):
        assert method in export._method(SDConfig(**settings))
    assert "license:" not in card
    assert "look it up" in card


# -------------------------------------------------------------------- LoRA files


def test_what_a_checkpoint_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="allowed for a single file: Stable Diffusion 1 and 2"):
        export_single_file(*Run("xl").parts(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kohya", [False, True])
@pytest.mark.parametrize(
    ("model", "settings"),
    [("sd", {"lora_alpha": 7, "conditioning": "gamma", "gamma_input": "smooth"}),
     ("xl", {"lora_targets": "attention"})],
)  # fmt: skip
def test_a_lora_loads_into_the_teacher(tmp_path, model, settings, kohya):
    """The stock teacher draws the library's samples with it, and its own without."""
    from diffusers import LCMScheduler

    run = Run(model, train="lora", **settings)
    out = export_lora(*run.parts(), tmp_path / "out", kohya=kohya)
    names = load_file(out / "pytorch_lora_weights.safetensors")
    assert all(name.startswith("lora_unet_" if kohya else "unet.") for name in names)
    assert sorted(contents(out)) == [
        "README.md", CHECKSUMS, "pytorch_lora_weights.safetensors",
        "scheduler/scheduler_config.json",
    ]  # fmt: skip
    teacher = fresh_pipeline(model)
    teacher.scheduler = LCMScheduler.from_pretrained(out, subfolder="scheduler")
    without = draw(teacher)
    teacher.load_lora_weights(str(out))
    for weights in ("target", "student"):
        expected = run.latents(2, weights)
        near = difference(draw(teacher), expected) <= 1e-4
        assert near == (weights == "target")
        assert difference(without, expected) > 1e-2
    teacher.unload_lora_weights()
    assert difference(draw(teacher), without) < 1e-5


def test_a_lora_that_loads_as_another_is_not_written(tmp_path, monkeypatch):
    """Keys that are dropped on loading, and a scale that is lost."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers

    run = Run(train="lora", lora_alpha=7)
    save = StableDiffusionPipeline.save_lora_weights

    def writes(keep, change):
        def wrong(folder, unet_lora_layers, **metadata):
            save(folder, unet_lora_layers=change(unet_lora_layers), **metadata if keep else {})

        monkeypatch.setattr(StableDiffusionPipeline, "save_lora_weights", wrong)

    few = " [1-9][0-9]* differ, such as .*; lora_alpha is 7 instead of 7"
    for keep, change, message in (
        (False, dict, " 0 differ; lora_alpha is 4 instead of 7"),
        (True, lambda state: {k: 1.01 * v for k, v in state.items()}, few),
        (True, convert_state_dict_to_diffusers, few),
    ):
        writes(keep, change)
        with pytest.raises(RuntimeError, match=f"loads as another student: .*{message}"):
            export_lora(*run.parts(), tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_what_a_lora_file_cannot_hold(tmp_path):
    told = Run(train="lora", conditioning="gamma")
    with pytest.raises(ValueError, match=r"gamma_input is 'official'.* no place for it"):
        export_lora(*told.parts(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------- the hub, the command


def test_push_to_hub(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="allowed: 'owner/name'"):
        push_to_hub(tmp_path, "a/b/c")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PermissionError, match=r"there is no token .* `hf auth login`"):
        push_to_hub(tmp_path, "somebody/student")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(ConnectionError, match="cannot be reached"):
        push_to_hub(tmp_path, "somebody/student")  # HF_HUB_OFFLINE is set in tests


def command(*arguments):
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return export.run(parser.parse_args([str(a) for a in arguments]))


def test_the_command(tmp_path, capsys):
    """On a run of a tiny teacher after 3 of its 9 updates."""
    _, config = teachers_folder(tmp_path, conditioning="gamma", updates=9)
    networks = perturb(build_networks(config, load_teacher(config).unet))
    folder = tmp_path / "run"
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    optimizer = torch.optim.AdamW(networks.trained.values())
    save_checkpoint(folder, train_state(optimizer, update=3), networks)
    (tmp_path / "figures.json").write_text('{"rows": [{"steps": 4, "clip_score": 1.5}]}')
    assert command(
        folder, "--out", tmp_path / "out", "--dtype", "float32", "--keep-gamma", "--weights",
        "student", "--figures", tmp_path / "figures.json",
    ) == 0  # fmt: skip
    assert "after update 3 of 9" in capsys.readouterr().out
    unet = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    expected = networks.plain_unet("student", fold=False).state_dict()
    assert unet.keys() == expected.keys()
    assert all(torch.equal(unet[name], expected[name]) for name in unet)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "| updates done | 3 |" in card
    assert "| 4 | 1.5 |" in card
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml"):
        command(tmp_path, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match="--keep-gamma with --format lora"):
        command(folder, "--out", tmp_path / "out", "--format", "lora", "--keep-gamma")
    with pytest.raises(ValueError, match="train is 'full': there are no adapters to write"):
        command(folder, "--out", tmp_path / "lora", "--format", "kohya-lora")
    command(folder, "--out", tmp_path / "single", "--format", "single-file")
    assert (tmp_path / "single" / CHECKPOINT).is_file()
    assert "models/checkpoints" in (tmp_path / "single" / "README.md").read_text("utf-8")

r"""A student as files that diffusers alone can run: a pipeline's folder, or a LoRA file.

In both the student is the network at :math:`\gamma = 1`, sampled by ``LCMScheduler`` at
``guidance_scale=1``: the guidance w of the distillation is in its weights.

- :func:`export_pipeline`: the teacher's folder with the student's UNet and the scheduler.
- :func:`export_lora`: the adapters, for ``load_lora_weights`` on the teacher's own pipeline.

Files of the teacher that stay as they are (autoencoder, text encoders, tokenizers) are copied and
not written anew where they lie in a folder: what transformers 5 writes, older versions may not
read.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slam_edu._validation import check_choice
from slam_edu.io import replaced_folder, write_checksums
from slam_edu.sd.components import PARTS, XL_PARTS, TextCondition, is_xl, quiet, unet_output
from slam_edu.sd.config import SD15, SDXL, WEIGHTS, SDConfig
from slam_edu.sd.evaluate import figures_table, read_results
from slam_edu.sd.networks import DTYPES, TARGET, LoraNetworks, Networks
from slam_edu.sd.teacher import HUB_ID, network_error, weight_files
from slam_edu.shipped import shipped

if TYPE_CHECKING:
    from diffusers import (
        LCMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

EXPORT_DTYPES = ("float16", "float32")
CARD, INDEX, LORA = "README.md", "model_index.json", "pytorch_lora_weights.safetensors"

#: Licences of teachers that name none in their folder.
LICENCES = {"digits": "mit", SD15[0]: "creativeml-openrail-m", SDXL[0]: "openrail++"}
#: What ``SDConfig.data`` stands for, in a model card.
DATA = {
    "digits": "the course's coloured digits with captions (MNIST)",
    "folder": "a folder of images with captions",
    "webdataset": "webdataset shards of images with captions",
    "datasets": "images with captions of the data set {data_path} on the Hugging Face hub, at "
    "commit {data_revision}",
    "prompts": "no images: latents drawn from the teacher itself for a list of prompts "
    "({draw_steps} steps, w = {draw:g})",
    "cache": "latents and text states that were encoded before",
}


# -------------------------------------------------------------------- a pipeline's folder


def export_pipeline(
    networks: Networks,
    pipeline: Pipeline,
    config: SDConfig,
    out: str | Path,
    *,
    weights: str = TARGET,
    fold: bool = True,
    dtype: str = "float16",
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the student as a stock pipeline's folder, with a model card and checksums.

    The folder is written beside its place and then moved there, so that an error leaves an older
    one as it was.

    Args:
        networks: of the run.
        pipeline: the teacher's; its other parts are copied from the folder that it was loaded
            from, or else saved.
        config: of the run.
        out: the folder; one that is there must be an earlier export.
        weights: ``"target"``, the moving average, or ``"student"``.
        fold: put gamma = 1 into the weights, which gives the teacher's architecture. Else an
            embedding of the official kind is kept, which the pipeline feeds with e(0) at
            ``guidance_scale=1``; adapters are merged in any case.
        dtype: of the UNet's file; ``from_pretrained`` alone loads it in float32.
        about: for the model card; ``"figures"`` may be rows for a table, as
            :func:`slam_edu.sd.evaluate.evaluate_pipeline` gives them.

    Raises:
        ValueError: for an unknown ``weights`` or ``dtype``, or an ``out`` that holds something
            else or is the teacher's own folder.
        OSError: if it cannot be written, as on a full disk.
    """
    out = _checked_out(out, INDEX, weights, dtype)
    source = _source(pipeline)
    if source is not None and out.resolve() == source.resolve():
        raise ValueError(f"{str(out)!r} is the teacher's own folder; allowed: another one")
    unet = networks.plain_unet(weights, fold)
    if config.resolution is not None:  # the pipeline draws at the size that was trained
        unet.register_to_config(sample_size=config.resolution // pipeline.vae_scale_factor)
    nn.Module.to(unet, DTYPES[dtype])  # diffusers' own `to` warns about nothing
    student = _with(pipeline, unet, lcm_scheduler(pipeline, config))
    with replaced_folder(out) as folder, quiet(), _disk_errors(out):
        student.save_config(folder)
        unet.save_pretrained(folder / "unet")
        _edit(folder / "unet" / "config.json", "_name_or_path")  # a path of this machine
        student.scheduler.save_pretrained(folder / "scheduler")
        for name in PARTS + (XL_PARTS if is_xl(pipeline) else ()):
            if name not in ("unet", "scheduler"):
                _write_part(getattr(pipeline, name), name, folder, source, config.variant)
        card = _card(config, pipeline, unet, weights, about or {})
        (folder / CARD).write_text(card, "utf-8")
        write_checksums(folder)
    return out


def lcm_scheduler(pipeline: Pipeline, config: SDConfig) -> LCMScheduler:
    """The scheduler that samples a student: the teacher's levels and the run's sub-paths."""
    from diffusers import LCMScheduler

    teacher = pipeline.scheduler
    names = ("beta_start", "beta_end", "beta_schedule", "trained_betas")
    options = {name: teacher.config[name] for name in names if name in teacher.config}
    options |= {
        "num_train_timesteps": len(teacher.alphas_cumprod),
        "original_inference_steps": config.distillation.subpaths,
        "timestep_scaling": config.distillation.timestep_scaling,
        "prediction_type": teacher.config.prediction_type,
        # None of them is used by LCMScheduler, but pipelines warn of other values.
        "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False,
    }  # fmt: skip
    wanted = torch.as_tensor(teacher.alphas_cumprod).float()
    try:
        found = LCMScheduler(**options)
        if torch.allclose(found.alphas_cumprod, wanted, rtol=1e-5, atol=1e-8):
            return found
    except NotImplementedError:  # a schedule of betas that it does not know
        pass
    before = torch.cat([torch.ones(1, dtype=torch.float64), wanted.double()[:-1]])
    return LCMScheduler(**options | {"trained_betas": (1 - wanted.double() / before).tolist()})


def _with(pipeline: Pipeline, unet: UNet2DConditionModel, scheduler: object) -> Pipeline:
    """A pipeline of the teacher's class and parts, with another UNet and scheduler."""
    if is_xl(pipeline):
        zeros = pipeline.config.force_zeros_for_empty_prompt
        extra = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    else:
        extra = dict.fromkeys(("safety_checker", "feature_extractor"))
        extra["requires_safety_checker"] = False
    names = PARTS + (XL_PARTS if is_xl(pipeline) else ())
    parts = {name: getattr(pipeline, name) for name in names}
    with quiet():
        made = type(pipeline)(**parts | {"unet": unet, "scheduler": scheduler}, **extra)
    made.set_progress_bar_config(disable=True)
    return made


def _source(pipeline: Pipeline) -> Path | None:
    """The folder that a pipeline was loaded from."""
    name = pipeline.name_or_path
    return Path(name) if name and Path(name).is_dir() else None


def _checked_out(out: str | Path, marker: str, weights: str, dtype: str) -> Path:
    """The folder, which must be new or empty, or have an earlier export's file."""
    check_choice(weights, WEIGHTS, "weights")
    check_choice(dtype, EXPORT_DTYPES, "dtype")
    out = Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / marker).is_file():
        raise ValueError(
            f"{str(out)!r} is a folder with other files, which would be lost; allowed: a new "
            f"folder, or that of an earlier export (with {marker})"
        )
    return out


def _write_part(
    part: Any, name: str, folder: Path, source: Path | None, variant: str | None
) -> None:
    """A part that the student shares with its teacher: the teacher's files where there are any."""
    place = folder / name
    weights = [] if source is None or "tokenizer" in name else weight_files(source, name, variant)
    if source is None or len(weights) > 1:
        part.save_pretrained(place)
        _edit(place / "config.json", "_name_or_path")
    else:
        place.mkdir()
        for path in (source / name).iterdir():
            if path.suffix in (".json", ".txt", ".model") and ".index." not in path.name:
                shutil.copyfile(path, place / path.name)
        for path in weights:  # without the variant's name
            shutil.copyfile(path, place / f"{path.name.split('.')[0]}.safetensors")
    if name.startswith("text_encoder"):
        # transformers 5 loads a text encoder in the dtype that its file names, diffusers the other
        # parts in float32: with "float32" in the file, from_pretrained alone gives one dtype.
        _edit(place / "config.json", "torch_dtype", dtype="float32")


def _edit(path: Path, *without: str, **values: object) -> None:
    """Edit a JSON file, if it is there: some entries taken out, some set."""
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        kept = {k: v for k, v in found.items() if k not in without} | values
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", "utf-8")


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        free = shutil.disk_usage(out.resolve().parent).free
        raise OSError(
            f"{str(out)!r} could not be written ({error}); {free / 1e6:,.1f} MB are free there"
        ) from error


# -------------------------------------------------------------------- a LoRA file


def export_lora(
    networks: Networks,
    pipeline: Pipeline,
    config: SDConfig,
    out: str | Path,
    *,
    weights: str = TARGET,
    dtype: str = "float32",
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the adapters, to be loaded into the teacher's pipeline by ``load_lora_weights``.

    The folder holds ``pytorch_lora_weights.safetensors``, the scheduler's configuration and a
    model card. The file is read back into a copy of the teacher's UNet before it is moved to its
    place, and must give the student's output. The arguments are those of :func:`export_pipeline`.

    Raises:
        ValueError: for networks without adapters; a gamma embedding of the official kind, which a
            LoRA file has no place for (the smooth one is zero at gamma = 1); an unknown
            ``weights`` or ``dtype``; or an ``out`` that holds something else.
        RuntimeError: if what was written does not load as the student.
        OSError: if it cannot be written, as on a full disk.
    """
    out = _checked_out(out, LORA, weights, dtype)
    if not isinstance(networks, LoraNetworks):
        raise ValueError(
            f"train is {config.train!r}: there are no adapters to write; allowed: a run with "
            f"train='lora', or a pipeline's folder instead"
        )
    if networks.gamma_weight(weights) is not None and config.gamma_input != "smooth":
        raise ValueError(
            f"gamma_input is {config.gamma_input!r}: that embedding is not zero at gamma = 1, and "
            f"a LoRA file has no place for it; allowed: a pipeline's folder instead, or a run "
            f"with gamma_input='smooth' or conditioning='level'"
        )
    from peft import get_peft_model_state_dict

    adapter = TARGET if weights == TARGET else "online"
    # As peft has it. diffusers' convert_state_dict_to_diffusers would mix two formats here, of
    # which one is dropped on loading (huggingface/diffusers#11790).
    found = get_peft_model_state_dict(networks.unet, adapter_name=adapter)
    state = {k: v.detach().cpu().to(DTYPES[dtype]).contiguous() for k, v in found.items()}
    metadata = networks.lora_config.to_dict()  # else alpha would silently become r
    with replaced_folder(out) as folder, quiet(), _disk_errors(out):
        type(pipeline).save_lora_weights(
            folder, unet_lora_layers=state, unet_lora_adapter_metadata=metadata
        )
        lcm_scheduler(pipeline, config).save_pretrained(folder / "scheduler")
        _check_lora(networks, pipeline, state, folder, weights)
        card = _card(config, pipeline, networks.unet, weights, about or {}, lora=True)
        (folder / CARD).write_text(card, "utf-8")
        write_checksums(folder)
    return out


@torch.no_grad()
def _check_lora(
    networks: LoraNetworks,
    pipeline: Pipeline,
    state: Mapping[str, Tensor],
    folder: Path,
    weights: str,
) -> None:
    """Load the file into the teacher's UNet and compare weights and output with the student's."""
    from peft import get_peft_model_state_dict

    base = copy.deepcopy(networks.unet).cpu()
    base.disable_gradient_checkpointing()
    base.time_embedding.cond_proj = None
    base.register_to_config(time_cond_proj_dim=None)
    base.unload_lora()
    nn.Module.to(base, torch.float32).eval()
    inputs = _trial(base)
    before = unet_output(base, *inputs)
    with warnings.catch_warnings():
        # peft's, of keys that do not fit; the comparison below names them.
        warnings.simplefilter("ignore", RuntimeWarning)
        _with(pipeline, base, pipeline.scheduler).load_lora_weights(
            str(folder), weight_name=LORA, adapter_name="check"
        )
    there = get_peft_model_state_dict(base, adapter_name="check")
    if there.keys() != state.keys():
        odd = sorted(there.keys() ^ state.keys())
        raise RuntimeError(
            f"of the LoRA file's {len(state)} tensors {len(there)} are loaded; {odd[0]} is one "
            f"that is not"
        )
    output = unet_output(base, *inputs)
    del base, there
    wanted = unet_output(networks.plain_unet(weights), *inputs)
    error, change = (output - wanted).abs().max(), (wanted - before).abs().max()
    half = next(iter(state.values())).dtype == torch.float16
    if not error <= (1e-2 if half else 1e-3) * change + 1e-5 * wanted.abs().max():
        raise RuntimeError(
            f"the LoRA file loads as another student: outputs differ by {error:.2g}, where the "
            f"adapters change them by {change:.2g}"
        )


def _trial(unet: UNet2DConditionModel) -> tuple[Tensor, Tensor, TextCondition]:
    """Some input of a UNet: small latents, a timestep, a condition."""
    generator, settings = torch.Generator().manual_seed(0), unet.config

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = drawn(1, settings.in_channels, 16, 16)
    cond = TextCondition(drawn(1, 8, settings.cross_attention_dim))
    if settings.addition_embed_type == "text_time":
        ids = torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]])
        widths = settings.projection_class_embeddings_input_dim
        pooled = drawn(1, widths - 6 * settings.addition_time_embed_dim)
        cond = TextCondition(cond.states, pooled, ids)
    return x, torch.tensor([499]), cond


# -------------------------------------------------------------------- the model card

_TEXT = """\
---
{front}
---

# A few-step student of {teacher}{lora}

{teacher}{at}, distilled with slam_edu by {method}.

## How to sample

```python
{usage}
image = pipeline(
    "a prompt", num_inference_steps=4, guidance_scale=1.0,
).images[0]
```

One to eight steps; four are a good start. `guidance_scale` stays at 1: the guidance of w = {w:g} \
(a scale of {scale:g}) is in the weights.
{embedding}
## How it was made

| setting | value |
|---|---|
{settings}

Training data: {data}.
{figures}
## Licence

{licence}

## Source

Xu, Song, Feng, Li, Ge, Zheng, Wang: Accelerating Image Generation with Sub-path Linear \
Approximation Model, ECCV 2024, arXiv 2404.13903.
"""
_EMBEDDING = """\
At 1 the pipeline feeds the UNet's embedding with e(0), which stands for gamma = 1; any other \
scale would ask for another place on the sub-path.
"""
_USE_PIPELINE = """\
from diffusers import {kind}

pipeline = {kind}.from_pretrained("path/to/this/folder")"""
_USE_LORA = """\
from diffusers import LCMScheduler, {kind}

pipeline = {kind}.from_pretrained({where})
pipeline.load_lora_weights("path/to/this/folder")
pipeline.scheduler = LCMScheduler.from_pretrained(
    "path/to/this/folder", subfolder="scheduler"
)"""


def _card(
    config: SDConfig,
    pipeline: Pipeline,
    unet: UNet2DConditionModel,
    weights: str,
    about: Mapping[str, Any],
    lora: bool = False,
) -> str:
    """The model card, in Markdown."""
    settings, w, commit = config.settings(), config.distillation.guidance, config.revision
    # Of a folder its name alone: the path is this machine's business.
    teacher = config.teacher if commit else Path(config.teacher).resolve().name
    if shipped(config.teacher) is not None:
        teacher = f"{config.teacher}-sd"
    licence = _licence(config, _source(pipeline))
    front = {
        "license": licence,
        "base_model": config.teacher if commit else None,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": json.dumps(["slam_edu", "latent-consistency", *["lora"] * lora]),
    }
    shown = [
        "method", "subpaths", "guidance", "coupling", "conditioning", "gammas", "reach", "loss",
        "train", *["lora_rank", "lora_alpha", "lora_targets"] * (config.train == "lora"),
        *["gamma_input"] * config.gamma_conditioned, "updates", "batch", "accumulate", "lr",
        "ema_rate", "mixed_precision", "resolution", "seed",
    ]  # fmt: skip
    table = {name: settings[name] for name in shown}
    table["weights"] = "moving average of the student" if weights == TARGET else "the student's"
    table |= {k: v for k, v in about.items() if isinstance(v, str | int | float)}
    draw = w if config.draw_guidance is None else config.draw_guidance
    figures = about.get("figures")
    where = f'"{config.teacher}", revision="{commit}"' if commit else '"path/to/the/teacher"'
    embedded = not lora and unet.config.time_cond_proj_dim is not None
    return _TEXT.format(
        front="\n".join(f"{k}: {v}" for k, v in front.items() if v),
        teacher=teacher,
        lora=" (LoRA)" if lora else "",
        at=f" at commit `{commit}`" if commit else "",
        method=_method(config),
        usage=(_USE_LORA if lora else _USE_PIPELINE).format(
            kind=type(pipeline).__name__, where=where
        ),
        w=w,
        scale=w + 1,
        embedding=_EMBEDDING if embedded else "",
        settings="\n".join(f"| {name} | {value} |" for name, value in table.items()),
        data=DATA[config.data].format(**settings, draw=draw),
        figures="\n".join(["", "## Figures", "", *figures_table(figures), ""]) if figures else "",
        licence=f"That of {teacher}: {licence}. Its terms hold for these weights too." if licence
        else f"That of {teacher}, whose files name none: look it up before you share these.",
    )  # fmt: skip


def _method(config: SDConfig) -> str:
    method = config.distill()
    if method.gammas == "one" and method.reach == 1:
        return "latent consistency distillation (Luo et al. 2023)"
    return "sub-path linear approximation (SLAM, also SPLAM; Xu et al. 2024)"


def _licence(config: SDConfig, source: Path | None) -> str | None:
    """What the teacher's model card names, or what is known of it."""
    card = source / CARD if source is not None else None
    if card is not None and card.is_file():
        text = card.read_text("utf-8", errors="replace")
        head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        found = re.search(r"^license:\s*(\S+)\s*$", head[1], re.MULTILINE) if head else None
        if found:
            return found[1].strip("'\"")
    return LICENCES.get(config.teacher)


# -------------------------------------------------------------------- the hub


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Upload an export to the Hugging Face hub, which needs a network and a token.

    Returns:
        the address of the repository ``repo_id``, which is made if it is not there.

    Raises:
        FileNotFoundError: for a folder that is no export.
        ValueError: for a name that is not ``owner/name``.
        PermissionError: without a token, or with one that may not write there.
        ConnectionError: without a network.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (INDEX, LORA)):
        raise FileNotFoundError(
            f"{str(folder)!r} is no export; allowed: a folder that `slam-edu export` wrote"
        )
    if not re.fullmatch(HUB_ID, repo_id):
        raise ValueError(f"repo_id is {repo_id!r}; allowed: 'owner/name'")
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    written = f"{str(folder)!r} is written in any case"
    if get_token() is None:
        raise PermissionError(
            f"there is no token for the Hugging Face hub; log in with `hf auth login`, or set "
            f"HF_TOKEN. {written}"
        )
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload of slam_edu")
    except HfHubHTTPError as error:
        raise PermissionError(
            f"the Hugging Face hub refused the upload to {repo_id!r} ({error}); {written}"
        ) from error
    except Exception as error:
        if not network_error(error):
            raise
        raise ConnectionError(
            f"the Hugging Face hub cannot be reached ({error}); {written}, upload it later with "
            f"`hf upload {repo_id} {folder}`"
        ) from error
    return str(address)


# -------------------------------------------------------------------- slam-edu export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``slam-edu export``."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="folder of a run")
    add("--out", type=Path, required=True, metavar="DIR", help="what is written")
    add(
        "--weights",
        choices=WEIGHTS,
        default=TARGET,
        help="the moving average (default), or the student itself",
    )
    add(
        "--lora",
        action="store_true",
        help="write the adapters alone, for load_lora_weights on the teacher's pipeline",
    )
    add(
        "--keep-gamma",
        action="store_true",
        help="keep a gamma embedding of the official kind, instead of folding gamma = 1 into the "
        "weights",
    )
    add("--dtype", choices=EXPORT_DTYPES, default="float16", help="of the file (default: float16)")
    add(
        "--figures",
        type=Path,
        metavar="FILE",
        help="results of `slam-edu evaluate --out FILE`, for the model card",
    )
    add("--push-to-hub", metavar="OWNER/NAME", help="upload it afterwards, as a private repository"
        )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Write the export of a run's newest checkpoint; returns the exit status."""
    from slam_edu.sd.run import load_run

    if options.lora and options.keep_gamma:
        raise ValueError("--keep-gamma with --lora: a LoRA file has no place for it; allowed: one")
    figures = None if options.figures is None else read_results(options.figures)["rows"]
    found = load_run(options.run_folder)
    about = {"updates done": found.update, "updates skipped": found.skipped, "figures": figures}
    shared = {"weights": options.weights, "dtype": options.dtype, "about": about}
    parts = (found.networks, found.pipeline, found.config, options.out)
    if options.lora:
        export_lora(*parts, **shared)
    else:
        export_pipeline(*parts, fold=not options.keep_gamma, **shared)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(
        f"wrote {options.out} ({size / 1e6:,.1f} MB) after update {found.update:,} of "
        f"{found.config.training.updates:,}; {CARD} there tells how to sample"
    )
    if options.push_to_hub:
        print(f"uploaded to {push_to_hub(options.out, options.push_to_hub)}")
    return 0

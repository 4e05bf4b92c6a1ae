r"""A student as files that other programs run: a pipeline's folder, a checkpoint, or a LoRA file.

In all of them the student is the network at :math:`\gamma = 1`, sampled by ``LCMScheduler`` at
``guidance_scale=1``: the guidance w of the distillation is in its weights.

- :func:`export_pipeline`: the teacher's folder with the student's UNet and the scheduler.
- :func:`export_single_file`: all networks in Stable Diffusion's original checkpoint;
- :func:`export_lora`: the adapters, for ``load_lora_weights`` on the teacher's own pipeline, or in
  kohya's names.

Files of the teacher that stay as they are (autoencoder, text encoders, tokenizers) are copied
where they lie in a folder, and completed so that older versions of transformers read them, too.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from slam_edu._validation import check_choice
from slam_edu.io import replaced_folder
from slam_edu.sd.components import PARTS, XL_PARTS, is_xl, quiet
from slam_edu.sd.config import SD15, SDXL, WEIGHTS, SDConfig
from slam_edu.sd.evaluate import figures_table, read_results, scheduler_levels
from slam_edu.sd.layouts import classic_layout, kohya_state, original_state
from slam_edu.sd.networks import DTYPES, TARGET, LoraNetworks, Networks
from slam_edu.sd.teacher import HUB_ID, network_error, weight_files
from slam_edu.shipped import shipped

if TYPE_CHECKING:
    from diffusers import LCMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

EXPORT_DTYPES = ("float16", "float32")
CARD, INDEX, LORA = "README.md", "model_index.json", "pytorch_lora_weights.safetensors"
CHECKPOINT = "student.safetensors"
FORMATS = ("diffusers", "single-file", "lora", "kohya-lora")

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
    force: bool = False,
) -> Path:
    """Write the student as a stock pipeline's folder, with a model card and checksums.

    An earlier export there is replaced, as :func:`slam_edu.io.replaced_folder` does it.

    Args:
        pipeline: the teacher's; its other parts are copied from the folder that it was loaded
            from, or else saved.
        out: the folder; what is there and in the way must be as an earlier export left it.
        weights: ``"target"``, the moving average, or ``"student"``.
        fold: put gamma = 1 into the weights, which gives the teacher's architecture. Else an
            embedding of the official kind is kept, which the pipeline feeds with e(0) at
            ``guidance_scale=1``; adapters are merged in any case.
        dtype: of the UNet's file; ``from_pretrained`` alone loads it in float32.
        about: for the model card; ``"figures"`` may be rows for a table, as
            :func:`slam_edu.sd.evaluate.evaluate_pipeline` gives them.
        force: delete what else is in the way; each file is named.

    Raises:
        ValueError: for an unknown ``weights`` or ``dtype``, or an ``out`` that holds what is in
            the way or is the teacher's own folder.
        OSError: if it cannot be written, as on a full disk.
    """
    out, source = Path(out), _source(pipeline)
    if source is not None and out.resolve() == source.resolve():
        raise ValueError(f"{str(out)!r} is the teacher's own folder; allowed: another one")
    check_choice(weights, WEIGHTS, "weights")
    check_choice(dtype, EXPORT_DTYPES, "dtype")
    parts = PARTS + (XL_PARTS if is_xl(pipeline) else ())
    with replaced_folder(out, (INDEX, CARD, *parts), force=force) as folder, quiet():
        unet = networks.plain_unet(weights, fold)
        if config.resolution is not None:  # the pipeline draws at the size that was trained
            unet.register_to_config(sample_size=config.resolution // pipeline.vae_scale_factor)
        nn.Module.to(unet, DTYPES[dtype])  # diffusers' own `to` warns about nothing
        unet.save_pretrained(folder / "unet")
        _edit(folder / "unet" / "config.json")
        scheduler = lcm_scheduler(pipeline, config)
        scheduler.save_pretrained(folder / "scheduler")
        student = _with(pipeline, unet=unet, scheduler=scheduler)
        student.save_config(folder)
        _edit(folder / INDEX)
        for name in parts:
            if name not in ("unet", "scheduler"):
                _write_part(getattr(pipeline, name), name, folder, source, config.variant)
        classic_layout(folder, {n: getattr(pipeline, n) for n in parts if "tokenizer" in n})
        embedded = unet.config.time_cond_proj_dim is not None
        card = _card(config, pipeline, weights, about or {}, embedded=embedded)
        (folder / CARD).write_text(card, "utf-8")
    return out


def lcm_scheduler(pipeline: Pipeline, config: SDConfig) -> LCMScheduler:
    """The scheduler that samples a student: the teacher's levels and the run's sub-paths."""
    from diffusers import LCMScheduler

    wanted = torch.as_tensor(pipeline.scheduler.alphas_cumprod)
    options = scheduler_levels(pipeline.scheduler) | {
        "original_inference_steps": config.distillation.subpaths,
        "timestep_scaling": config.distillation.timestep_scaling,
        # None of them is used by LCMScheduler, but pipelines warn of other values.
        "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False,
    }  # fmt: skip
    try:
        found = LCMScheduler(**options)
        if torch.allclose(found.alphas_cumprod, wanted.float(), rtol=1e-5, atol=1e-8):
            return found
    except NotImplementedError:  # a schedule of betas that it does not know
        pass
    before = torch.cat([torch.ones(1, dtype=torch.float64), wanted.double()[:-1]])
    return LCMScheduler(**options | {"trained_betas": (1 - wanted.double() / before).tolist()})


def _with(pipeline: Pipeline, **parts: object) -> Pipeline:
    """The pipeline with other parts, and without those that only judge what it draws."""
    made = copy.copy(pipeline)
    gone = {"safety_checker", "feature_extractor", "image_encoder"} & pipeline.components.keys()
    made.register_modules(**parts, **dict.fromkeys(gone))
    if "safety_checker" in gone:
        made.register_to_config(requires_safety_checker=False)
    return made


def _source(pipeline: Pipeline) -> Path | None:
    """The folder that a pipeline was loaded from."""
    name = pipeline.name_or_path
    return Path(name) if name and Path(name).is_dir() else None


def _write_part(
    part: Any, name: str, folder: Path, source: Path | None, variant: str | None
) -> None:
    """A part that the student shares with its teacher: the teacher's files where there are any."""
    place = folder / name
    weights = [] if source is None or "tokenizer" in name else weight_files(source, name, variant)
    if source is None or len(weights) > 1 or getattr(part, "completed", False):
        part.save_pretrained(place)
        _edit(place / "config.json")
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
        _edit(place / "config.json", dtype="float32")


def _edit(path: Path, **values: str) -> None:
    """Set entries of a JSON file, if it is there, and drop this machine's path and old names."""
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        for name in ("_name_or_path", "torch_dtype"):
            found.pop(name, None)
        path.write_text(json.dumps(found | values, indent=2, sort_keys=True) + "\n", "utf-8")


# -------------------------------------------------------------------- one checkpoint


def export_single_file(
    networks: Networks,
    pipeline: StableDiffusionPipeline,
    config: SDConfig,
    out: str | Path,
    *,
    weights: str = TARGET,
    dtype: str = "float16",
    about: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write ``student.safetensors``, Stable Diffusion's original checkpoint, with a model card.

    gamma = 1 is folded in. The folder holds the scheduler's configuration as well, for diffusers.
    The arguments are those of :func:`export_pipeline`.

    Raises:
        ValueError: for an unknown ``weights`` or ``dtype``, a network that the original
            checkpoint has no place for (XL), or an ``out`` that holds what is in the way.
        OSError: if it cannot be written, as on a full disk.
    """
    check_choice(weights, WEIGHTS, "weights")
    check_choice(dtype, EXPORT_DTYPES, "dtype")
    with (
        replaced_folder(Path(out), (CHECKPOINT, CARD, "scheduler"), force=force) as folder,
        quiet(),
    ):
        state = original_state(_with(pipeline, unet=networks.plain_unet(weights, fold=True)))
        save_file(_stored(state, dtype), folder / CHECKPOINT)
        lcm_scheduler(pipeline, config).save_pretrained(folder / "scheduler")
        card = _card(config, pipeline, weights, about or {}, kind="single-file")
        (folder / CARD).write_text(card, "utf-8")
    return Path(out)


def _stored(state: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Tensors as a file holds them."""
    return {k: v.detach().cpu().to(DTYPES[dtype]).contiguous() for k, v in state.items()}


# -------------------------------------------------------------------- a LoRA file


def export_lora(
    networks: Networks,
    pipeline: Pipeline,
    config: SDConfig,
    out: str | Path,
    *,
    weights: str = TARGET,
    kohya: bool = False,
    dtype: str = "float32",
    about: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write the adapters, to be loaded into the teacher's pipeline by ``load_lora_weights``.

    With ``kohya`` they have the names that ComfyUI and the web interfaces read. The folder holds
    ``pytorch_lora_weights.safetensors``, the scheduler's configuration and a model card. The file
    is loaded into a copy of the teacher's UNet before it is moved to its place, and must give the
    student's adapters. The arguments are those of :func:`export_pipeline`.

    Raises:
        ValueError: for networks without adapters; a gamma embedding of the official kind, which a
            LoRA file has no place for (the smooth one is zero at gamma = 1); an unknown
            ``weights`` or ``dtype``; or an ``out`` that holds what is in the way.
        RuntimeError: if what was written does not load as the student.
        OSError: if it cannot be written, as on a full disk.
    """
    if not isinstance(networks, LoraNetworks):
        raise ValueError(
            f"train is {config.train!r}: there are no adapters to write; allowed: a run with "
            f"train='lora', or a pipeline's folder instead"
        )
    if config.gamma_conditioned and config.gamma_input != "smooth":
        raise ValueError(
            f"gamma_input is {config.gamma_input!r}: that embedding is not zero at gamma = 1, and "
            f"a LoRA file has no place for it; allowed: a pipeline's folder instead, or a run "
            f"with gamma_input='smooth' or conditioning='level'"
        )
    out = Path(out)
    check_choice(weights, WEIGHTS, "weights")
    check_choice(dtype, EXPORT_DTYPES, "dtype")
    with replaced_folder(out, (LORA, CARD, "scheduler"), force=force) as folder, quiet():
        # As peft has it. diffusers' convert_state_dict_to_diffusers would mix two formats here, of
        # which one is dropped on loading (huggingface/diffusers#11790).
        state = _stored(_adapters(networks.unet, weights), dtype)
        if kohya:
            save_file(kohya_state(state, networks.lora_config.lora_alpha), folder / LORA)
        else:
            type(pipeline).save_lora_weights(
                folder,
                unet_lora_layers=state,
                # else alpha would silently become r
                unet_lora_adapter_metadata=networks.lora_config.to_dict(),
            )
        lcm_scheduler(pipeline, config).save_pretrained(folder / "scheduler")
        _check_lora(networks, pipeline, state, folder)
        kind = "kohya-lora" if kohya else "lora"
        card = _card(config, pipeline, weights, about or {}, kind=kind)
        (folder / CARD).write_text(card, "utf-8")
    return out


def _adapters(unet: nn.Module, adapter: str) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(unet, adapter_name=adapter)


def _check_lora(
    networks: LoraNetworks, pipeline: Pipeline, state: Mapping[str, Tensor], folder: Path
) -> None:
    """Load the file as a user will, and compare the adapters and their scale."""
    base = copy.deepcopy(networks.unet).cpu()
    base.unload_lora()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of keys that do not fit
        _with(pipeline, unet=base).load_lora_weights(
            str(folder), weight_name=LORA, adapter_name="check"
        )
    there, scale = _adapters(base, "check"), base.peft_config["check"].lora_alpha
    odd = sorted(
        name for name in there.keys() | state.keys()
        if name not in there or name not in state
        or not torch.equal(there[name].to(state[name].dtype), state[name])
    )  # fmt: skip
    if odd or scale != networks.lora_config.lora_alpha:
        raise RuntimeError(
            f"the LoRA file loads as another student: of {len(state)} tensors {len(odd)} differ"
            f"{', such as ' + odd[0] if odd else ''}; lora_alpha is {scale} instead of "
            f"{networks.lora_config.lora_alpha}"
        )


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
(a scale of {scale:g}) is in the weights.{elsewhere}
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
_ELSEWHERE = {
    "single-file": """ \
In ComfyUI the file belongs into `models/checkpoints`: sampler `lcm`, scheduler `sgm_uniform`, \
4 steps, cfg 1.""",
    "kohya-lora": """ \
In ComfyUI the file belongs into `models/loras`, beside the teacher's checkpoint: sampler `lcm`, \
scheduler `sgm_uniform`, 4 steps, cfg 1.""",
}
_EMBEDDING = """\
At 1 the pipeline feeds the UNet's embedding with e(0), which stands for gamma = 1; any other \
scale would ask for another place on the sub-path.
"""
_USE_PIPELINE = """\
from diffusers import {kind}

pipeline = {kind}.from_pretrained("path/to/this/folder")"""
_USE_SINGLE_FILE = """\
from diffusers import LCMScheduler, {kind}

pipeline = {kind}.from_single_file(
    "path/to/this/folder/student.safetensors", config={where}
)
pipeline.scheduler = LCMScheduler.from_pretrained(
    "path/to/this/folder", subfolder="scheduler"
)"""
_USE_LORA = """\
from diffusers import LCMScheduler, {kind}

pipeline = {kind}.from_pretrained({where})
pipeline.load_lora_weights("path/to/this/folder")
pipeline.scheduler = LCMScheduler.from_pretrained(
    "path/to/this/folder", subfolder="scheduler"
)"""


def _card(
    config: SDConfig, pipeline: Pipeline, weights: str, about: Mapping[str, Any], *,
    embedded: bool = False, kind: str = "diffusers",
) -> str:  # fmt: skip
    """The model card, in Markdown."""
    settings, w, commit = config.settings(), config.distillation.guidance, config.revision
    lora = kind.endswith("lora")
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
        "method", "subpaths", "guidance", "coupling", "conditioning", "gammas", "slope", "reach",
        "loss", "train", *["lora_rank", "lora_alpha", "lora_targets"] * (config.train == "lora"),
        *["gamma_input"] * config.gamma_conditioned, "updates", "batch", "accumulate", "lr",
        "ema_rate", "mixed_precision", "resolution", "seed",
    ]  # fmt: skip
    table = {name: settings[name] for name in shown}
    table["weights"] = "moving average of the student" if weights == TARGET else "the student's"
    table |= {k: v for k, v in about.items() if isinstance(v, str | int | float)}
    figures = about.get("figures")
    draw, place = config.draw_guidance, f'"{config.teacher}", revision="{commit}"'
    use = {"diffusers": _USE_PIPELINE, "single-file": _USE_SINGLE_FILE}.get(kind, _USE_LORA)
    return _TEXT.format(
        front="\n".join(f"{k}: {v}" for k, v in front.items() if v),
        teacher=teacher,
        lora=" (LoRA)" if lora else "",
        at=f" at commit `{commit}`" if commit else "",
        method=_method(config),
        usage=use.format(
            kind=type(pipeline).__name__, where=place if commit else '"path/to/the/teacher"'
        ),
        elsewhere=_ELSEWHERE.get(kind, ""),
        w=w,
        scale=w + 1,
        embedding=_EMBEDDING if embedded else "",
        settings="\n".join(f"| {name} | {value} |" for name, value in table.items()),
        data=DATA[config.data].format(**settings, draw=w if draw is None else draw),
        figures="\n".join(["", "## Figures", "", *figures_table(figures), ""]) if figures else "",
        licence=f"That of {teacher}: {licence}. Its terms hold for these weights too." if licence
        else f"That of {teacher}, whose files name none: look it up before you share these.",
    )  # fmt: skip


def _method(config: SDConfig) -> str:
    """What the run trained, with its source."""
    method = config.distill()
    if config.continued:
        return (
            f"sub-path linear approximation (SLAM; Xu et al. 2024) on a chord continued past its "
            f"noisy end, to gamma = {config.reach:g}, a variant by slam_edu"
        )
    if method.slope == "middle":
        return (
            "sub-path linear approximation (SLAM; Xu et al. 2024) with the slope of the "
            "sub-path's middle, a variant by slam_edu"
        )
    if method.gammas == "one":
        return "latent consistency distillation (Luo et al. 2023)"
    return "sub-path linear approximation (SLAM, also SPLAM; Xu et al. 2024)"


def _licence(config: SDConfig, source: Path | None) -> str | None:
    """What the teacher's model card names, or what is known of it."""
    from huggingface_hub import metadata_load

    there = source is not None and (source / CARD).is_file()
    found = metadata_load(source / CARD) if there else None
    return (found or {}).get("license") or LICENCES.get(config.teacher)


# -------------------------------------------------------------------- the hub


def push_to_hub(folder: str | Path, repo_id: str) -> str:
    """Upload an export to the Hugging Face hub as a private repository; returns its address.

    It is made if it is not there.

    Raises:
        ValueError: for a name that is not ``owner/name``.
        PermissionError: without a token, or with one that may not write there.
        ConnectionError: without a network.
    """
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
        address = api.create_repo(repo_id, private=True, exist_ok=True)
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
    for name, options in {
        "run_folder": {"metavar": "RUN", "type": Path, "help": "folder of a run"},
        "--out": {"type": Path, "required": True, "metavar": "DIR", "help": "what is written"},
        "--weights": {"choices": WEIGHTS, "default": TARGET,
                      "help": "the moving average (default), or the student itself"},
        "--format": {"choices": FORMATS, "default": FORMATS[0], "help": "a pipeline's folder "
                     "(default); one file in Stable Diffusion's original layout; or the adapters "
                     "alone, for load_lora_weights or, in kohya's names, for ComfyUI and the web "
                     "interfaces"},
        "--keep-gamma": {"action": "store_true", "help": "keep a gamma embedding of the official "
                         "kind, instead of folding gamma = 1 into the weights"},
        "--dtype": {"choices": EXPORT_DTYPES, "default": "float16",
                    "help": "of the file (default: float16)"},
        "--figures": {"type": Path, "metavar": "FILE", "help": "results of `slam-edu evaluate "
                      "--out FILE`, for the model card"},
        "--force": {"action": "store_true", "help": "delete what is in the way in DIR and was not "
                    "written by an earlier export; each file is named"},
        "--push-to-hub": {"metavar": "OWNER/NAME",
                          "help": "upload it afterwards, as a private repository"},
    }.items():  # fmt: skip
        parser.add_argument(name, **options)


def run(options: argparse.Namespace) -> int:
    """Write the export of a run's newest checkpoint; returns the exit status."""
    from slam_edu.sd.run import load_run

    if options.keep_gamma and options.format != "diffusers":
        raise ValueError(
            f"--keep-gamma with --format {options.format}: that has no place for it; allowed: "
            f"with --format diffusers"
        )
    figures = None if options.figures is None else read_results(options.figures)
    found = load_run(options.run_folder)
    about = {"updates done": found.update, "updates skipped": found.skipped, "figures": figures}
    shared = {"weights": options.weights, "dtype": options.dtype, "about": about}
    shared["force"] = options.force
    parts = (found.networks, found.pipeline, found.config, options.out)
    if options.format == "diffusers":
        export_pipeline(*parts, fold=not options.keep_gamma, **shared)
    elif options.format == "single-file":
        export_single_file(*parts, **shared)
    else:
        export_lora(*parts, kohya=options.format == "kohya-lora", **shared)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(
        f"wrote {options.out} ({size / 1e6:,.1f} MB) after update {found.update:,} of "
        f"{found.config.training.updates:,}; {CARD} there tells how to sample"
    )
    if options.push_to_hub:
        print(f"uploaded to {push_to_hub(options.out, options.push_to_hub)}")
    return 0

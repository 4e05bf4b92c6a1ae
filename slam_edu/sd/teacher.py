"""The teacher: a Stable Diffusion that is shipped, in a folder, or on the hub at one commit.

Only safetensors are read and no code but diffusers' and transformers' own is run. Every part is
looked at before anything is loaded, so that what is missing or cut short is named. dtypes are
always given: transformers takes a half-precision file in half precision, diffusers in float32, and
a pipeline of both cannot run.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slam_edu._validation import check_choice
from slam_edu.distill import SubPathDistiller
from slam_edu.io import atomic_path, weights_digest
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import PARTS, XL_PARTS, is_xl, latent_shape, quiet
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import DTYPES
from slam_edu.shipped import shipped

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
#: What the engine distils; samplers of "sample" exist, Stable Diffusions of it do not.
PREDICTIONS = ("epsilon", "v_prediction")
#: An id on the hub.
HUB_ID = r"[\w][\w.-]*/[\w][\w.-]*"
#: Files of the weights without their ends, by part.
WEIGHTS = {
    **dict.fromkeys(("unet", "vae"), "diffusion_pytorch_model"),
    **dict.fromkeys(("text_encoder", "text_encoder_2"), "model"),
}


def load_teacher(config: SDConfig) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """The pipeline that is to be distilled, on the CPU.

    Text encoders and autoencoder come in float32. So does the UNet of a full fine-tune, because
    the student is a copy of it; with adapters it comes in ``frozen_dtype``. Errors are those of
    :func:`folder_or_download`, :func:`load_pipeline_folder`, :func:`check_teacher` and of
    :class:`~slam_edu.distill.SubPathDistiller`, so that none waits for the data.
    """
    folder: str | Path = config.teacher
    if shipped(config.teacher) is None:
        folder = model_folder(config.teacher, config.revision, config.variant)
    dtype = DTYPES["float32" if config.train == "full" else config.frozen_dtype]
    pipeline = load_pipeline_folder(
        folder, variant=config.variant, unet_dtype=dtype, resolution=config.resolution
    )
    check_teacher(pipeline, config.teacher)
    latent_shape(pipeline, config.resolution)
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    SubPathDistiller(schedule, config.distill(pipeline.scheduler.config.prediction_type))
    return pipeline


def model_folder(model: str, revision: str | None = None, variant: str | None = None) -> Path:
    """The folder of a pipeline; of a hub id, what :func:`folder_or_download` gives."""

    def download() -> str:
        with quiet(bars=True):  # gigabytes
            from diffusers import DiffusionPipeline

            return DiffusionPipeline.download(
                model, revision=revision, variant=variant, use_safetensors=True,
                safety_checker=None, feature_extractor=None, image_encoder=None,
            )  # fmt: skip

    return folder_or_download(model, revision, download)


def folder_or_download(model: str, revision: str | None, download: Callable[[], str]) -> Path:
    """A path's folder, or what ``download`` gives of a hub id ``owner/name`` at one commit.

    Raises:
        FileNotFoundError: for a path that is no folder.
        ValueError: for an id without a commit.
        ConnectionError: for an id that is neither on this machine nor to be had.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(HUB_ID, model):
        raise FileNotFoundError(
            f"{model!r} is no folder; allowed: a folder, or an id 'owner/name' on the Hugging "
            f"Face hub with its revision"
        )
    if revision is None:
        raise ValueError(
            f"{model!r} is no folder here, and as an id on the Hugging Face hub it needs a pinned "
            f"commit; allowed: a folder that exists, or an id with revision=<the commit's 40 "
            f"hexadecimal digits>"
        )
    try:
        return Path(download())
    except Exception as error:
        if not network_error(error):
            raise
        from huggingface_hub import constants

        cause = error
        while inner := cause.__cause__ or cause.__context__:
            cause = inner
        raise ConnectionError(
            f"{model!r} at {revision} is not on this machine and cannot be downloaded ({cause}). "
            f"Give a folder, or run this once with a network and without HF_HUB_OFFLINE: the "
            f"files are then kept in {constants.HF_HUB_CACHE!r} (copy that folder to a machine "
            f"without one)"
        ) from error


def network_error(error: BaseException) -> bool:
    """Whether an error is of the network or the hub: such as no connection, or no such file."""
    # huggingface_hub 1 speaks through httpx, 2 through httpx2.
    return isinstance(error, OSError) or type(error).__module__.startswith("httpx")


# -------------------------------------------------------------------- a folder


def load_pipeline_folder(
    folder: str | os.PathLike[str],
    *,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    unet_dtype: torch.dtype | None = None,
    resolution: int | None = None,
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A pipeline from its folder, on the CPU, without a safety checker and without bars.

    The folder is as diffusers writes it, or the name of a shipped model, which is float32. A part
    that has weights of the variant, such as ``"fp16"``, is loaded from those. ``dtype`` is of text
    encoders and autoencoder, and of the UNet unless it has its own. What configurations lack is
    filled in (:func:`complete`); a size that they lack is ``resolution``, in pixels.

    Raises:
        FileNotFoundError: if the folder or a part of it is missing.
        ValueError: if it is no Stable Diffusion's, or its weights are damaged.
    """
    if not Path(folder).is_dir() and (model := shipped(str(folder))) is not None:
        return model.load_teacher()
    folder = Path(folder)
    held = check_folder(folder, variant)
    options: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    options |= {"add_watermarker": False} if "text_encoder_2" in held else {
        "safety_checker": None, "requires_safety_checker": False,
    }  # fmt: skip
    with quiet():
        import diffusers

        try:
            pipeline = getattr(diffusers, PIPELINES["text_encoder_2" in held]).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, variant=variant,
                dtype={"unet": unet_dtype or dtype, "default": dtype}, **options,
            )  # fmt: skip
        except Exception as error:  # the libraries have many kinds
            raise ValueError(
                f"the pipeline in {str(folder)!r} cannot be loaded ({error}); allowed: weights "
                f"and configurations of one model, as this version of diffusers knows them"
            ) from error
    pipeline.set_progress_bar_config(disable=True)
    for name, count in held.items():
        network = getattr(pipeline, name)
        wanted = sum(p.numel() for p in network.parameters())
        # What a file lacks would be drawn at random, with no more than a notice.
        if count < wanted:
            raise ValueError(
                f"the weights of {str(folder / name)!r} hold {count:,} values and the network "
                f"that its config.json describes has {wanted:,}; allowed: weights and "
                f"configuration of one model"
            )
        if odd := [key for key, p in network.named_parameters() if not p.isfinite().all()]:
            raise ValueError(
                f"the weights of {str(folder / name)!r} hold NaN or Inf in {len(odd)} tensors, "
                f"such as {odd[0]}; allowed: finite numbers"
            )
    try:
        complete(pipeline, resolution)
    except ValueError as error:
        raise ValueError(f"the pipeline in {str(folder)!r} cannot be used: {error}") from error
    return pipeline


def complete(
    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline, resolution: int | None = None
) -> None:
    """Fill in what real checkpoints' configurations lack: entries missing, null or 1e30.

    Of a part whose files no longer say what it is, ``completed`` is then true.

    Raises:
        ValueError: where there is nothing to take for it.
    """
    vae = pipeline.vae
    for tokenizer, encoder in encoders_of(pipeline):
        most, length = encoder.config.max_position_embeddings, tokenizer.model_max_length
        if not (isinstance(length, int) and 0 < length <= most):
            tokenizer.model_max_length, tokenizer.completed = most, True
    if vae.config.get("scaling_factor") is None:
        default = inspect.signature(type(vae)).parameters["scaling_factor"].default
        vae.register_to_config(scaling_factor=default)
        vae.completed = True
    if pipeline.scheduler.config.get("prediction_type") is None:
        pipeline.scheduler.register_to_config(prediction_type="epsilon")
    factor = vae.config.scaling_factor
    if not (isinstance(factor, int | float) and 0 < factor < math.inf):
        raise ValueError(f"the autoencoder's scaling_factor is {factor!r}; allowed: a number > 0")
    if not is_xl(pipeline):  # its pipeline reads neither
        vae.register_to_config(latents_mean=None, latents_std=None)
    channels = vae.config.latent_channels
    for name in ("latents_mean", "latents_std"):
        values = vae.config.get(name)
        numbers = [
            one
            for one in (values if isinstance(values, list | tuple) else ())
            if isinstance(one, int | float) and math.isfinite(one)
        ]
        if values is not None and (len(numbers) != channels or len(values) != channels):
            raise ValueError(
                f"the autoencoder's {name} is {values!r}; allowed: null, or a number for each of "
                f"its {channels} channels"
            )
    try:
        latent_shape(pipeline)
    except ValueError:
        _, height, width = latent_shape(pipeline, resolution)
        pipeline.unet.register_to_config(sample_size=[height, width])


def check_folder(folder: Path, variant: str | None = None) -> dict[str, int]:
    """See that a pipeline's folder is whole, by the files' names and heads.

    Returns the number of values that each network's weights hold, by part; raises as
    :func:`load_pipeline_folder`.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no model_index.json; allowed: a pipeline's folder, as "
            f"diffusers' save_pretrained writes it"
        )
    index = _read_json(path)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise ValueError(f"{str(path)!r} is of a {kind}; allowed: {', '.join(PIPELINES)}")
    parts = PARTS + (XL_PARTS if kind == PIPELINES[1] else ())
    held = {}
    for name in parts:
        entry = index.get(name)
        if not isinstance(entry, list) or None in entry:
            raise ValueError(
                f"{str(path)!r} names no {name}; allowed: a {kind} with {', '.join(parts)}"
            )
        if name in WEIGHTS:
            _file(folder, name, "config.json")
            held[name] = sum(map(_count_values, weight_files(folder, name, variant)))
        elif name == "scheduler":
            _file(folder, name, "scheduler_config.json")
        else:
            _file(folder, name, "tokenizer.json", "vocab.json")
    found = [path for name in held for path in weight_files(folder, name, variant)]
    if variant and not any(f".{variant}" in path.name for path in found):
        raise FileNotFoundError(
            f"{str(folder)!r} has no weights of variant {variant!r}; allowed: a variant that it "
            f"has, or none"
        )
    return held


def weight_files(folder: Path, name: str, variant: str | None) -> list[Path]:
    """A part's weights as diffusers and transformers find them: one file, or an index's shards."""
    base = f"{WEIGHTS[name]}.safetensors"
    of_variant = (f"{WEIGHTS[name]}.{variant}.safetensors", f"{base}.index.{variant}.json")
    found = _file(folder, name, base, f"{base}.index.json", *(of_variant if variant else ())[::-1])
    if found.suffix != ".json":
        return [found]
    shards = sorted(set(_read_json(found).get("weight_map", {}).values()))
    return [_file(folder, name, shard) for shard in shards]


def _file(folder: Path, part: str, *names: str) -> Path:
    """The last of ``names`` that a part has."""
    for name in reversed(names):
        if (folder / part / name).is_file():
            return folder / part / name
    there = ", ".join(path.name for path in (folder / part).glob("*.bin"))
    hint = f" ({there} cannot be read: it may hold code)" if there else ""
    raise FileNotFoundError(
        f"the pipeline in {str(folder)!r} lacks its {part}: {part}/{names[0]} is missing{hint}"
    )


def _count_values(path: Path) -> int:
    """Number of values in a safetensors file, from its head; a file cut short is noticed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{str(path)!r}, {path.stat().st_size:,} bytes long, is damaged ({error}); allowed: "
            f"the whole file"
        ) from error
    return sum(torch.Size(shape).numel() for shape in shapes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); allowed: JSON") from error


# -------------------------------------------------------------------- what can be a teacher


def check_teacher(
    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline, name: str = "the teacher"
) -> None:
    """See that a pipeline can be distilled.

    A ``ValueError`` names a scheduler without discrete levels (flow matching), a prediction type
    other than epsilon and v_prediction, a UNet whose input is more than the latents (inpainting),
    one that is distilled already, or parts whose widths differ.
    """
    scheduler, unet = pipeline.scheduler, pipeline.unet.config
    try:
        NoiseSchedule.from_scheduler(scheduler)
        check_choice(scheduler.config.get("prediction_type"), PREDICTIONS, "prediction_type")
    except ValueError as error:
        raise ValueError(f"{name!r} cannot be distilled: {error}") from error
    channels = pipeline.vae.config.latent_channels
    if (unet.in_channels, unet.out_channels) != (channels, channels):
        raise ValueError(
            f"{name!r} cannot be distilled: its UNet takes {unet.in_channels} channels and gives "
            f"{unet.out_channels}, and its latents have {channels} (an inpainting model, or one "
            f"that is conditioned on images); allowed: {channels} and {channels}"
        )
    encoders = encoders_of(pipeline)
    width = sum(encoder.config.hidden_size for _, encoder in encoders)
    widths = [("states", "cross_attention_dim", width)] if unet.encoder_hid_dim is None else []
    if is_xl(pipeline):
        pooled = encoders[1][1].config.projection_dim + 6 * (unet.addition_time_embed_dim or 0)
        widths.append(("embedding and sizes", "projection_class_embeddings_input_dim", pooled))
    for what, setting, width in widths:
        wanted = unet[setting]
        if any(one != width for one in (wanted if isinstance(wanted, list | tuple) else [wanted])):
            raise ValueError(
                f"{name!r} cannot be distilled: its text encoder's {what} are {width} wide, and "
                f"its UNet has {setting} = {wanted}; allowed: parts of one model"
            )
    for tokenizer, encoder in encoders:
        if len(tokenizer) > encoder.config.vocab_size:
            raise ValueError(
                f"{name!r} cannot be distilled: its tokenizer has {len(tokenizer):,} tokens and "
                f"its text encoder {encoder.config.vocab_size:,}; allowed: parts of one model"
            )
    if unet.time_cond_proj_dim is not None:
        raise ValueError(
            f"{name!r} cannot be distilled: its UNet has time_cond_proj_dim = "
            f"{unet.time_cond_proj_dim}, it is a distilled model; allowed: a diffusion model's "
            f"UNet, without one"
        )


def encoders_of(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline) -> list[tuple]:
    """Tokenizer and text encoder, of Stable Diffusion XL two of each."""
    parts = ("tokenizer", "text_encoder")
    found = [[getattr(pipeline, part + end, None) for part in parts] for end in ("", "_2")]
    return [(tokenizer, encoder) for tokenizer, encoder in found if encoder is not None]


# -------------------------------------------------------------------- the same teacher again


def keep_teacher(
    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline, path: Path, begun: bool
) -> None:
    """Write what tells a run's teacher from another; once the run has begun, compare with it.

    Raises:
        ValueError: for another teacher than that of the run.
    """
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    parts = {name: getattr(pipeline, name, None) for name in names}
    ours = {name: weights_digest(part) for name, part in parts.items() if part is not None}
    ours["scheduler"] = {k: str(v) for k, v in pipeline.scheduler.config.items() if k[0] != "_"}
    if begun:
        there = _read_json(path) if path.is_file() else ours  # a run of an older version
        if odd := [name for name in ours if there.get(name) != ours[name]]:
            raise ValueError(
                f"the teacher is not the one that the run in {str(path.parent)!r} began with: "
                f"{', '.join(odd)} differ; allowed: that teacher, or another folder (out=...)"
            )
        return
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(ours, indent=1) + "\n", "utf-8")

"""The configuration of a distillation: every setting, its meaning, its presets.

A run is described by one :class:`SDConfig`. It is made from a preset, a file and ``name=value``
settings, each overriding what comes before (:func:`load_config`), is printed with the meaning of
every setting (:func:`describe`), and is saved with the run as ``config.yaml``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam_edu._validation import check_choice
from slam_edu.distill import CONDITIONINGS, GAMMAS, HOPS, LOSSES, DistillConfig
from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.io import atomic_path
from slam_edu.prediction import PREDICTION_TYPES
from slam_edu.subpath import COUPLINGS

METHODS = ("slam", "lcd")
TRAINED = ("full", "lora")
LORA_TARGETS = ("attention", "all")
SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "adamw8bit")
PRECISIONS = ("no", "fp16", "bf16")
DTYPES = ("float32", "float16", "bfloat16")
DATA = ("digits", "folder", "webdataset", "datasets", "prompts", "cache")
EMPTY_CAPTIONS = ("reject", "keep")
TRACKERS = ("tensorboard", "wandb", "trackio", "none")
DEVICES = ("auto", "cpu", "cuda", "mps")
WEIGHTS = ("target", "student")

#: What the ids on the hub resolve to; each is one commit.
SD15 = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14")
SDXL = ("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b")

SECTIONS = ("teacher", "method", "student", "optimisation", "data", "run")


def _setting(
    default: Any,
    section: str,
    doc: str,
    *,
    choices: Iterable[object] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """A field of :class:`SDConfig` with its meaning and what it may be."""
    rule = {"section": section, "doc": doc, "choices": choices and tuple(choices)}
    return dataclasses.field(
        default=default, metadata={**rule, "low": low, "high": high, "above": above}
    )


@dataclass(frozen=True, kw_only=True)
class SDConfig:
    """A distillation of a Stable Diffusion, every setting of it.

    ``slam-edu distill --help-config`` prints all settings with their meaning.

    Raises:
        ValueError: for a value that is not allowed; it names the setting, the value and what is
            allowed.
    """

    # ---- teacher
    teacher: str = _setting(
        "digits", "teacher",
        "the diffusion model to distil: 'digits' (shipped), a pipeline's folder, or an id on the "
        "Hugging Face hub",
    )  # fmt: skip
    revision: str | None = _setting(
        None, "teacher", "the commit of a hub id, 40 hexadecimal digits; an id needs one"
    )
    variant: str | None = _setting(
        None, "teacher", "which of its weight files, such as 'fp16'; none: the plain ones"
    )
    frozen_dtype: str = _setting(
        "float32", "teacher",
        "dtype of weights that are not trained: the teacher's and, with LoRA, the base's",
        choices=DTYPES,
    )  # fmt: skip

    # ---- method
    method: str = _setting(
        "slam", "method",
        "'slam', or 'lcd' for latent consistency distillation, which is gamma = 1 everywhere",
        choices=METHODS,
    )  # fmt: skip
    subpaths: int = _setting(50, "method", "number N of sub-paths", low=1)
    guidance: float = _setting(
        3.0, "method",
        "w of eps_c + w (eps_c - eps_u), distilled into the student; diffusers' scale less 1",
        low=0, high=100,
    )  # fmt: skip
    coupling: str = _setting(
        "linear", "method", "of the chord's level: 'markov' (official) or 'linear' (exact)",
        choices=COUPLINGS,
    )  # fmt: skip
    conditioning: str = _setting(
        "level", "method",
        "how the student knows its place: 'gamma' (official, an embedding) or 'level' (its own "
        "real-valued timestep; stock architecture)",
        choices=CONDITIONINGS,
    )  # fmt: skip
    gammas: str = _setting(
        "uniform", "method", "how gamma is drawn; see DistillConfig", choices=GAMMAS
    )
    hop: str = _setting(
        "full", "method", "'random': consistency distillation with random hops, a control",
        choices=HOPS,
    )  # fmt: skip
    reach: float = _setting(
        1.0, "method", "gamma is drawn up to this; above 1 the chord goes on past x_t", low=1
    )
    teacher_steps: int = _setting(1, "method", "the teacher's DDIM steps a hop", low=1)
    loss: str = _setting("l2", "method", "'l2' or pseudo-Huber", choices=LOSSES)
    huber_c: float = _setting(1e-3, "method", "c of the pseudo-Huber loss", above=0)
    timestep_scaling: float = _setting(10.0, "method", "of the boundary scalings", above=0)

    # ---- student
    train: str = _setting(
        "full", "student", "all of the UNet's weights, or low-rank adapters", choices=TRAINED
    )
    gamma_input: str = _setting(
        "official", "student",
        "with conditioning=gamma: the embedding e(10 - 10 gamma), or a smooth one that is zero at "
        "gamma = 1",
        choices=GAMMA_INPUTS,
    )  # fmt: skip
    gamma_lr: float = _setting(
        1.0, "student", "learning rate of the gamma embedding's weights, as a fraction of lr",
        low=0, high=100,
    )  # fmt: skip
    lora_rank: int = _setting(64, "student", "rank r of the adapters", low=1)
    lora_alpha: float | None = _setting(
        None, "student", "the adapters are scaled by alpha/r; none: alpha = r", above=0
    )
    lora_targets: str = _setting(
        "all", "student",
        "layers with an adapter: 'attention' alone, or 'all' (also convolutions, feed-forward "
        "and time layers)",
        choices=LORA_TARGETS,
    )  # fmt: skip
    gradient_checkpointing: bool = _setting(
        False, "student", "compute activations twice instead of keeping them"
    )

    # ---- optimisation
    updates: int = _setting(500, "optimisation", "number of optimiser steps", low=1)
    batch: int = _setting(32, "optimisation", "samples a process takes at a time", low=1)
    accumulate: int = _setting(
        1, "optimisation", "batches an update: processes x batch x accumulate samples", low=1
    )
    lr: float = _setting(1e-4, "optimisation", "AdamW's highest learning rate", above=0)
    schedule: str = _setting(
        "cosine", "optimisation", "how the rate falls after the warm-up", choices=SCHEDULES
    )
    warmup: int = _setting(0, "optimisation", "updates over which the rate rises from 0", low=0)
    final_lr: float = _setting(
        0.0, "optimisation", "what the rate falls to, as a fraction of lr", low=0, high=1
    )
    optimizer: str = _setting(
        "adamw", "optimisation", "'adamw8bit' needs bitsandbytes and a CUDA GPU",
        choices=OPTIMIZERS,
    )  # fmt: skip
    weight_decay: float = _setting(0.0, "optimisation", "AdamW's weight decay", low=0)
    clip: float = _setting(1.0, "optimisation", "largest norm of the gradient", above=0)
    ema_rate: float = _setting(
        0.95, "optimisation", "r of the target's moving average", low=0, high=1
    )
    mixed_precision: str = _setting(
        "no", "optimisation",
        "autocast of the networks' calls; latents, schedule and algebra stay float32",
        choices=PRECISIONS,
    )  # fmt: skip
    max_skipped: int = _setting(
        10, "optimisation", "updates in a row that may be skipped for a loss that is not finite",
        low=0,
    )  # fmt: skip
    seed: int = _setting(0, "optimisation", "of everything that is drawn", low=0)

    # ---- data
    data: str = _setting(
        "digits", "data",
        "'digits'; 'folder' of images with captions; 'webdataset' shards; 'datasets', an id; "
        "'prompts', no data at all: latents drawn from the teacher; or 'cache', made before",
        choices=DATA,
    )  # fmt: skip
    data_path: str | None = _setting(
        None, "data",
        "the folder, the shards (shards-{0000..0099}.tar, paths or addresses), the id, the file "
        "of prompts, or the cache",
    )  # fmt: skip
    data_revision: str | None = _setting(None, "data", "the commit of a datasets id")
    image_column: str = _setting("image", "data", "of a datasets id")
    caption_column: str = _setting("text", "data", "of a datasets id and of metadata.jsonl")
    resolution: int | None = _setting(
        None, "data", "pixels of a side; none: the teacher's own size", low=8
    )
    max_samples: int | None = _setting(
        None, "data", "stop after this many; none: all there are", low=1
    )
    max_rejected: float = _setting(
        0.1, "data", "largest fraction of samples that may be rejected", low=0, high=1
    )
    empty_captions: str = _setting(
        "reject", "data", "what is done with an image whose caption is empty",
        choices=EMPTY_CAPTIONS,
    )  # fmt: skip
    cache: bool = _setting(
        True, "data", "encode images and captions once, before the training, into safetensors"
    )
    cache_folder: str | None = _setting(
        None, "data", "where they are kept; none: in the run's folder"
    )
    cache_dtype: str = _setting("float16", "data", "what they are kept in", choices=DTYPES)
    draw_steps: int = _setting(
        25, "data", "with data=prompts: DPM-Solver++ steps of the teacher a latent", low=1
    )
    draw_guidance: float | None = _setting(
        None, "data", "with data=prompts: w of the drawing; none: guidance", low=0, high=100
    )
    draw_count: int = _setting(1, "data", "with data=prompts: latents a prompt", low=1)

    # ---- run
    out: str = _setting("runs/distill", "run", "the run's folder")
    save_every: int = _setting(100, "run", "updates a checkpoint", low=1)
    keep: int = _setting(2, "run", "checkpoints that are kept", low=1)
    log_every: int = _setting(10, "run", "updates a row of log.csv", low=1)
    sample_every: int = _setting(
        250, "run", "updates a grid of samples; 0: at the start and the end alone", low=0
    )
    sample_prompts: str | None = _setting(
        None, "run", "file of prompts for the grids, one a line; none: from the data"
    )
    sample_count: int = _setting(8, "run", "prompts of a grid; 0: no grids", low=0, high=64)
    tracker: str = _setting(
        "tensorboard", "run", "where losses and grids are also written", choices=TRACKERS
    )
    device: str = _setting("auto", "run", "what to compute on", choices=DEVICES)
    threads: int | None = _setting(None, "run", "of torch on a CPU; none: torch's choice", low=1)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.warmup > self.updates:
            raise ValueError(
                f"warmup is {self.warmup}; allowed: at most updates, which is {self.updates}"
            )
        if self.data in ("folder", "webdataset", "datasets", "cache") and not self.data_path:
            raise ValueError(
                f"data is {self.data!r} without a data_path; allowed: data_path=..., "
                f"{type(self).data_path_doc()}"
            )
        if self.data == "prompts" and not self.cache:
            raise ValueError(
                "cache is False with data='prompts'; allowed: True, because the latents are drawn "
                "once, before the training"
            )
        if self.revision is not None and not _is_commit(self.revision):
            raise ValueError(
                f"revision is {self.revision!r}; allowed: a commit's 40 hexadecimal digits"
            )
        self.distill()  # the method's own checks

    @classmethod
    def data_path_doc(cls) -> str:
        """What ``data_path`` may be."""
        return cls.__dataclass_fields__["data_path"].metadata["doc"]

    @property
    def gamma_conditioned(self) -> bool:
        """Whether the student has an embedding of gamma."""
        return self.conditioning == "gamma"

    def distill(self, prediction_type: str = "epsilon") -> DistillConfig:
        """The method's part, for :class:`slam_edu.distill.SubPathDistiller`.

        Args:
            prediction_type: what the teacher predicts, from its scheduler's configuration.
        """
        check_choice(prediction_type, PREDICTION_TYPES, "prediction_type")
        names = {field.name for field in dataclasses.fields(DistillConfig)}
        ours = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        shared = {name: value for name, value in ours.items() if name in names}
        if self.method == "lcd":
            shared |= {"gammas": "one", "hop": "full", "reach": 1.0}
        return DistillConfig(**shared, teacher_prediction_type=prediction_type)

    def lr_at(self, update: int) -> float:
        """The learning rate of update ``0 ... updates-1``: linear warm-up, then the schedule."""
        if update < self.warmup:
            return self.lr * (update + 1) / self.warmup
        progress = (update - self.warmup) / max(1, self.updates - self.warmup)
        falling = {
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
            "linear": 1 - progress,
            "constant": 1.0,
        }[self.schedule]
        return self.lr * (self.final_lr + (1 - self.final_lr) * falling)

    def replace(self, **changes: object) -> SDConfig:
        """A copy with some settings changed, validated again.

        Raises:
            ValueError: for an unknown setting, or a value that is not allowed.
        """
        _known(changes)
        return dataclasses.replace(self, **changes)


def _is_commit(text: str) -> bool:
    return len(text) == 40 and set(text) <= set("0123456789abcdef")


@functools.cache
def _types() -> dict[str, tuple[type, bool]]:
    """Of each setting its plain type, and whether it may be None."""
    found = {}
    for name, hint in typing.get_type_hints(SDConfig).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        [plain] = [option for option in options if option is not types.NoneType]
        found[name] = (plain, types.NoneType in options)
    return found


def _check(field: dataclasses.Field, value: object) -> None:
    """Type, set and bounds of one setting."""
    rule, (kind, optional) = field.metadata, _types()[field.name]
    if value is None and optional:
        return
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (kind is not bool and isinstance(value, bool)):
        article = {int: "an integer", float: "a number", bool: "true or false", str: "text"}[kind]
        raise ValueError(f"{field.name} is {value!r}; allowed: {article}{_bounds(rule)}")
    if rule["choices"]:
        check_choice(value, rule["choices"], field.name)
    if kind in (int, float):
        low, high, above = rule["low"], rule["high"], rule["above"]
        inside = (
            math.isfinite(value)
            and (low is None or value >= low)
            and (high is None or value <= high)
            and (above is None or value > above)
        )
        if not inside:
            raise ValueError(f"{field.name} is {value!r}; allowed: a finite number{_bounds(rule)}")


def _bounds(rule: Mapping[str, Any]) -> str:
    words = [
        f"{sign} {rule[name]:g}"
        for name, sign in (("low", ">="), ("above", ">"), ("high", "<="))
        if rule[name] is not None
    ]
    return f" {' and '.join(words)}" if words else ""


def _known(names: Iterable[str]) -> None:
    fields = [field.name for field in dataclasses.fields(SDConfig)]
    for name in names:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"{name!r} is no setting{hint} Allowed: {', '.join(fields)}")


# -------------------------------------------------------------------- presets

_DIGITS = {"teacher": "digits", "data": "digits", "guidance": 3.0, "cache_dtype": "float32"}
_SD15 = {
    "teacher": SD15[0], "revision": SD15[1], "variant": "fp16", "frozen_dtype": "float16",
    "guidance": 8.0, "data": "prompts", "resolution": 512, "loss": "huber",
    "gradient_checkpointing": True, "sample_every": 250, "save_every": 250,
}  # fmt: skip
_SDXL = {
    **_SD15, "teacher": SDXL[0], "revision": SDXL[1], "guidance": 7.0, "resolution": 1024,
}  # fmt: skip
_LORA = {"train": "lora", "lr": 1e-4, "warmup": 50}

#: Name to (what it is for, the settings that differ from the defaults).
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": (
        "the shipped digits model, all weights, on a laptop's CPU",
        {**_DIGITS},
    ),
    "digits-lora": (
        "the shipped digits model with low-rank adapters",
        {**_DIGITS, "train": "lora", "lora_rank": 16, "lr": 1e-3},
    ),
    "digits-official": (
        "the digits model by the official recipe: gamma embedding, Markov coupling",
        {**_DIGITS, "conditioning": "gamma", "coupling": "markov"},
    ),
    "sd15-t4-lora": (
        "Stable Diffusion 1.5 with adapters on a 16 GB T4 (Colab, Kaggle)",
        {**_SD15, **_LORA, "mixed_precision": "fp16", "batch": 8, "accumulate": 2,
         "updates": 1000},
    ),
    "sd15-24gb": (
        "Stable Diffusion 1.5, all weights, on a 24 GB card",
        {**_SD15, "mixed_precision": "bf16", "optimizer": "adamw8bit", "batch": 12, "lr": 8e-6,
         "updates": 4000},
    ),
    "sd15-a100": (
        "Stable Diffusion 1.5, all weights, on 40 or 80 GB cards",
        {**_SD15, "mixed_precision": "bf16", "optimizer": "adamw8bit", "batch": 32, "lr": 8e-6,
         "updates": 10_000, "warmup": 100},
    ),
    "sd15-official": (
        "Stable Diffusion 1.5 by the official script's settings",
        {**_SD15, "conditioning": "gamma", "coupling": "markov", "mixed_precision": "fp16",
         "optimizer": "adamw8bit", "batch": 12, "lr": 8e-6, "schedule": "constant",
         "updates": 1000},
    ),
    "sdxl-lora": (
        "Stable Diffusion XL with adapters on a 24 GB card",
        {**_SDXL, **_LORA, "mixed_precision": "bf16", "batch": 2, "accumulate": 8,
         "updates": 2000},
    ),
    "sdxl-a100": (
        "Stable Diffusion XL, all weights, on an 80 GB card",
        {**_SDXL, "mixed_precision": "bf16", "optimizer": "adamw8bit", "batch": 8,
         "accumulate": 4, "lr": 8e-6, "updates": 10_000, "warmup": 100},
    ),
}  # fmt: skip


def load_config(
    preset: str = "digits",
    file: str | os.PathLike[str] | None = None,
    settings: Iterable[str] = (),
) -> SDConfig:
    """A configuration from a preset, then a file, then ``name=value`` settings.

    Args:
        preset: a name of :data:`PRESETS`.
        file: YAML or JSON with settings by name.
        settings: each ``name=value``; ``none``, ``true`` and ``false`` as in YAML.

    Raises:
        ValueError: for an unknown preset, a file that cannot be read, a misspelt setting, or a
            value that is not allowed.
    """
    check_choice(preset, PRESETS, "preset")
    values = dict(PRESETS[preset][1])
    if file is not None:
        values |= read_settings(Path(file))
    values |= dict(_parse(text) for text in settings)
    _known(values)
    return SDConfig(**values)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML or JSON file.

    Raises:
        ValueError: if it cannot be read, holds no settings, or a setting is misspelt.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); allowed: a YAML or JSON file of settings"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{str(path)!r} holds {type(found).__name__}; allowed: settings as name: value"
        )
    _known(map(str, found))
    # YAML reads 1e-4 as text.
    return {name: _read(name, value) for name, value in found.items()}


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is no setting; allowed: name=value")
    _known([name])
    return name, _read(name, value)


def _read(name: str, value: Any) -> Any:
    """A setting's value from text, as its type; what does not fit is left for the checks."""
    kind, optional = _types()[name]
    if not isinstance(value, str):
        return value
    if optional and value.lower() in ("none", "null", ""):
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        return kind(value)
    except ValueError:
        return value


def describe(config: SDConfig, documented: bool = True) -> str:
    """All settings as YAML, by section; what differs from the default is marked.

    Args:
        config: to print.
        documented: with the meaning of each setting.
    """
    import yaml

    lines = []
    for section in SECTIONS:
        lines.append(f"# ---- {section}")
        for field in dataclasses.fields(config):
            if field.metadata["section"] != section:
                continue
            value = getattr(config, field.name)
            text = yaml.safe_dump({field.name: value}, allow_unicode=True, width=10_000).strip()
            if documented:
                rule = field.metadata
                allowed = f" ({', '.join(map(str, rule['choices']))})" if rule["choices"] else ""
                lines.append(f"# {rule['doc']}{allowed}")
            mark = "" if value == field.default else f"  # default: {field.default}"
            lines.append(text + mark)
    return "\n".join(lines) + "\n"


def save_config(config: SDConfig, path: Path) -> None:
    """Write the configuration as documented YAML."""
    with atomic_path(path) as temporary:
        temporary.write_text(describe(config), "utf-8")


def read_config(path: Path) -> SDConfig:
    """The configuration that :func:`save_config` wrote.

    Raises:
        ValueError: if it cannot be read or is not valid.
    """
    return SDConfig(**read_settings(path))

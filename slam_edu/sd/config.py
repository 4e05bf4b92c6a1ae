"""The configuration of a distillation: every setting, its meaning, its presets.

A run is described by one :class:`SDConfig`, which holds the step's
:class:`~slam_edu.distill.DistillConfig` and the loop's :class:`~slam_edu.training.TrainConfig`.
Users see one flat list of settings: a preset, a file and ``name=value``, each overriding what
comes before (:func:`load_config`). :func:`describe` prints it, ``config.yaml`` keeps it.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import json
import math
import os
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from slam_edu._validation import check_choice
from slam_edu.distill import CONDITIONINGS, LOSSES, SLOPES, DistillConfig
from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.io import atomic_path
from slam_edu.subpath import COUPLINGS
from slam_edu.training import SCHEDULES, TrainConfig

DTYPES = ("float32", "float16", "bfloat16")
DATA = ("digits", "folder", "webdataset", "datasets", "prompts", "cache")
WEIGHTS = ("target", "student")

#: What the ids on the hub resolve to; each is one commit.
SD15 = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14")
SDXL = ("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b")

#: Settings that name files and folders.
PATHS = ("teacher", "data_path", "cache_folder", "sample_prompts", "out")

#: The sections of the settings, by the field that each begins with.
SECTIONS = {
    "teacher": "teacher", "method": "method", "train": "student", "training": "optimisation",
    "data": "data", "out": "run",
}  # fmt: skip


def _setting(default: Any, doc: str, choices: Iterable[str] = (), **bounds: float) -> Any:
    """A field of :class:`SDConfig` with its meaning and what it may be, as in :class:`Rule`."""
    rule = {"doc": doc, "choices": tuple(choices), **bounds}
    return dataclasses.field(default=default, metadata=rule)


def _part(default: Any, **docs: str | tuple[str, Iterable[str]]) -> Any:
    """A field that holds a configuration: the meanings, and choices, of what can be set of it."""
    return dataclasses.field(default=default, metadata={"docs": docs})


# fmt: off
@dataclass(frozen=True, init=False)
class SDConfig:
    """A distillation of a Stable Diffusion, every setting of it.

    All settings are keywords, those of ``distillation`` and ``training`` too: what
    ``SDConfig(lr=1e-3)`` sets is read as ``config.training.lr``. ``slam-edu distill
    --help-config`` prints their meanings.

    Raises:
        ValueError: for an unknown setting or a value that is not allowed; it names both.
    """

    teacher: str = _setting(
        "digits", "the diffusion model to distil: 'digits' (shipped), a pipeline's folder, or an "
        "id on the Hugging Face hub")
    revision: str | None = _setting(
        None, "the commit of a hub id, 40 hexadecimal digits; an id needs one")
    variant: str | None = _setting(
        None, "which of its weight files, such as 'fp16'; none: the plain ones")
    frozen_dtype: str = _setting(
        "float32", "dtype of weights that are not trained: the teacher's and, with LoRA, the "
        "base's", DTYPES)

    method: str = _setting(
        "slam", "'slam', or 'lcd' for latent consistency distillation, which is gamma = 1 "
        "everywhere", ("slam", "lcd"))
    distillation: DistillConfig = _part(  # noqa: RUF009
        DistillConfig(subpaths=50, slope="end", gammas="uniform", guidance=3.0),
        subpaths="number N of sub-paths",
        guidance="w of eps_c + w (eps_c - eps_u), distilled into the student; diffusers' scale "
                 "less 1",
        coupling=("of the chord's level: 'markov' (official) or 'linear' (exact)", COUPLINGS),
        conditioning=(
            "how the student knows its place: 'gamma' (official, an embedding) or 'level' (its "
            "own real-valued timestep; stock architecture)", CONDITIONINGS),
        gammas=("how gamma is drawn; see DistillConfig", ("uniform", "one")),
        slope=("of the chord: the trajectory's at its noisy end (official) or in its middle",
               SLOPES),
        off_grid="sub-paths begin at any timestep, not at the grid's alone",
        teacher_steps="the teacher's DDIM steps a hop",
        loss=("'l2' or pseudo-Huber", LOSSES),
        huber_c="c of the pseudo-Huber loss",
        timestep_scaling="of the boundary scalings")
    reach: float = _setting(
        1.0, "gamma is drawn up to this; above 1 the chord goes on past x_t", low=1, high=1000)

    train: str = _setting(
        "full", "all of the UNet's weights, or low-rank adapters", ("full", "lora"))
    gamma_input: str = _setting(
        "official", "with conditioning=gamma: the embedding e(10 - 10 gamma), or a smooth one "
        "that is zero at gamma = 1", GAMMA_INPUTS)
    gamma_lr: float = _setting(
        1.0, "learning rate of the gamma embedding's weights, as a fraction of lr",
        low=0, high=100)
    lora_rank: int = _setting(64, "rank r of the adapters", low=1)
    lora_alpha: float | None = _setting(
        None, "the adapters are scaled by alpha/r; none: alpha = r", above=0)
    lora_targets: str = _setting(
        "all", "layers with an adapter: 'attention' alone, or 'all' (also convolutions, "
        "feed-forward and time layers)", ("attention", "all"))
    gradient_checkpointing: bool = _setting(
        False, "compute activations twice instead of keeping them")

    training: TrainConfig = _part(  # noqa: RUF009
        TrainConfig(updates=500, batch=32, lr=1e-4),
        updates="number of optimiser steps",
        batch="samples a process takes at a time",
        accumulate="batches an update: processes x batch x accumulate samples",
        lr="AdamW's highest learning rate",
        schedule=("how the rate falls after the warm-up", SCHEDULES),
        warmup="updates over which the rate rises from 0",
        final_lr="what the rate falls to, as a fraction of lr",
        weight_decay="AdamW's weight decay",
        clip="largest norm of the gradient",
        ema_rate="r of the target's moving average",
        max_skipped="updates in a row that may be skipped for a loss that is not finite")
    optimizer: str = _setting(
        "adamw", "'adamw8bit' needs bitsandbytes and a CUDA GPU", ("adamw", "adamw8bit"))
    mixed_precision: str = _setting(
        "no", "autocast of the networks' calls; latents, schedule and algebra stay float32",
        ("no", "fp16", "bf16"))
    seed: int = _setting(0, "of everything that is drawn", low=0)

    data: str = _setting(
        "digits", "'digits'; 'folder' of images with captions; 'webdataset' shards; 'datasets', "
        "an id; 'prompts', no data at all: latents drawn from the teacher; or 'cache', made "
        "before", DATA)
    data_path: str | None = _setting(
        None, "the folder, the shards (shards-{0000..0099}.tar, paths or addresses), the id, the "
        "file of prompts, or the cache")
    data_revision: str | None = _setting(None, "the commit of a datasets id")
    image_column: str = _setting("image", "of a datasets id")
    caption_column: str = _setting("text", "of a datasets id and of metadata.jsonl")
    resolution: int | None = _setting(
        None, "pixels of a side; none: the teacher's own size", low=8)
    max_samples: int | None = _setting(None, "stop after this many; none: all there are", low=1)
    max_rejected: float = _setting(
        0.1, "largest fraction of samples that may be rejected", low=0, high=1)
    empty_captions: str = _setting(
        "reject", "what is done with an image whose caption is empty", ("reject", "keep"))
    cache: bool = _setting(
        True, "encode images and captions once, before the training, into safetensors")
    cache_folder: str | None = _setting(None, "where they are kept; none: in the run's folder")
    cache_dtype: str = _setting("float16", "what they are kept in", DTYPES)
    draw_steps: int = _setting(
        25, "with data=prompts: DPM-Solver++ steps of the teacher a latent", low=1)
    draw_guidance: float | None = _setting(
        None, "with data=prompts: w of the drawing; none: guidance", low=0, high=100)
    draw_count: int = _setting(1, "with data=prompts: latents a prompt", low=1)

    out: str = _setting("runs/distill", "the run's folder")
    save_every: int = _setting(100, "updates a checkpoint", low=1)
    keep: int = _setting(2, "checkpoints that are kept", low=1)
    log_every: int = _setting(10, "updates a row of log.csv", low=1)
    sample_every: int = _setting(
        250, "updates a grid of samples; 0: at the start and the end alone", low=0)
    sample_prompts: str | None = _setting(
        None, "file of prompts for the grids, one a line; none: from the data")
    sample_count: int = _setting(8, "prompts of a grid; 0: no grids", low=0, high=64)
    tracker: str = _setting(
        "tensorboard", "where losses and grids are also written",
        ("tensorboard", "wandb", "trackio", "none"))
    device: str = _setting("auto", "what to compute on", ("auto", "cpu", "cuda", "mps"))
    threads: int | None = _setting(None, "of torch on a CPU; none: torch's choice", low=1)
    # fmt: on

    def __init__(self, **settings: Any) -> None:
        for name, value in settings.items():
            if name not in ("distillation", "training"):
                setting_rule(name).check(name, value)
        for field in dataclasses.fields(self):
            value = settings.get(field.name, field.default)
            if field.name in PATHS and value is not None:
                value = os.path.expanduser(value)
            if "docs" in field.metadata:
                inside = field.metadata["docs"].keys() & settings.keys()
                value = dataclasses.replace(value, **{name: settings[name] for name in inside})
            object.__setattr__(self, field.name, value)
        self._check_together()

    def _check_together(self) -> None:
        if self.data in ("folder", "webdataset", "datasets", "cache") and not self.data_path:
            raise ValueError(
                f"data is {self.data!r} without a data_path; allowed: data_path=..., "
                f"{RULES['data_path'].doc}"
            )
        if self.data == "prompts" and not self.cache:
            raise ValueError(
                "cache is False with data='prompts'; allowed: True, because the latents are drawn "
                "once, before the training"
            )
        distillation = self.distillation
        if self.reach > 1 and (
            (distillation.conditioning, distillation.coupling, distillation.slope)
            != ("level", "linear", "end")
        ):
            raise ValueError(
                f"reach is {self.reach} with conditioning={distillation.conditioning!r}, "
                f"coupling={distillation.coupling!r}, slope={distillation.slope!r}; allowed: 1, "
                f"or 'level', 'linear' and 'end'"
            )
        if self.revision is not None and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"revision is {self.revision!r}; allowed: a commit's 40 hexadecimal digits"
            )

    @property
    def gamma_conditioned(self) -> bool:
        """Whether the student has an embedding of gamma."""
        return self.distillation.conditioning == "gamma"

    @property
    def continued(self) -> bool:
        """Whether the chord goes on past its noisy end."""
        return self.method == "slam" and self.reach > 1

    def located(self) -> SDConfig:
        """A copy whose paths are absolute, so that it means the same from every folder."""
        changes = {}
        for name in PATHS:
            value = getattr(self, name)
            # What the hub or a shipped model may be meant by is a folder if there is one.
            id_ = name == "teacher" or (name, self.data) == ("data_path", "datasets")
            if value and "://" not in value and value not in DATA:
                if not id_ or os.path.exists(value):
                    changes[name] = os.path.abspath(value)
        return self.replace(**changes)

    def distill(self, prediction_type: str = "epsilon") -> DistillConfig:
        """The method's part, for a teacher that predicts ``prediction_type``."""
        lcd = {"gammas": "one", "slope": "end"} if self.method == "lcd" else {}
        return self.distillation.replace(**lcd, teacher_prediction_type=prediction_type)

    def settings(self) -> dict[str, Any]:
        """All settings by their flat names."""
        parts = {None: self, "distillation": self.distillation, "training": self.training}
        return {name: getattr(parts[rule.part], name) for name, rule in RULES.items()}

    def replace(self, **changes: Any) -> SDConfig:
        """A copy with some settings changed, validated again."""
        return SDConfig(**{**vars(self), **changes})


class Rule(NamedTuple):
    """Of one setting: its section, meaning, default, and what it may be."""

    section: str
    doc: str
    default: Any
    kind: type
    optional: bool
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    part: str | None = None  # the field of SDConfig that holds it

    def check(self, name: str, value: object) -> None:
        """Type, set and bounds."""
        if value is None and self.optional:
            return
        signs = ((">=", self.low), (">", self.above), ("<=", self.high))
        words = " and ".join(f"{sign} {bound:g}" for sign, bound in signs if math.isfinite(bound))
        words = words and f" {words}"
        fits = isinstance(value, (int, float) if self.kind is float else self.kind)
        if not fits or (self.kind is not bool and isinstance(value, bool)):
            raise ValueError(f"{name} is {value!r}; allowed: {_KINDS[self.kind]}{words}")
        if self.kind is str and (not value.strip() or re.search("[\0\ud800-\udfff]", value)):
            raise ValueError(f"{name} is {value!r}; allowed: text, not empty, that UTF-8 can hold")
        if self.choices:
            check_choice(value, self.choices, name)
        if self.kind in (int, float) and not (
            math.isfinite(value) and self.low <= value <= self.high and value > self.above
        ):
            raise ValueError(f"{name} is {value!r}; allowed: a finite number{words}")


_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def _rules() -> dict[str, Rule]:
    found, section = {}, ""

    def add(owner: type, name: str, doc: str, default: Any, **rest: Any) -> None:
        hint = typing.get_type_hints(owner)[name]
        options = typing.get_args(hint) or (hint,)
        kind = next(k for k in _KINDS if k in options)
        found[name] = Rule(section, doc, default, kind, type(None) in options, **rest)

    for field in dataclasses.fields(SDConfig):
        default, section = field.default, SECTIONS.get(field.name, section)
        if "doc" in field.metadata:
            add(SDConfig, field.name, default=default, **field.metadata)
        for name, doc in field.metadata.get("docs", {}).items():
            doc, choices = (doc, ()) if isinstance(doc, str) else doc
            rest = {"choices": tuple(choices), "part": field.name}
            add(type(default), name, doc, getattr(default, name), **rest)
    return found


RULES = _rules()
"""Of every setting, by its flat name."""


def setting_rule(name: str) -> Rule:
    """The rule of a setting; for a name that is none, a ``ValueError`` with the nearest."""
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"{name!r} is no setting; {hint}allowed: {', '.join(RULES)}")
    return RULES[name]


# -------------------------------------------------------------------- presets

_DIGITS = {"teacher": "digits", "data": "digits", "guidance": 3.0, "cache_dtype": "float32"}
_SD15 = {
    "teacher": SD15[0], "revision": SD15[1], "variant": "fp16", "frozen_dtype": "float16",
    "guidance": 8.0, "data": "prompts", "resolution": 512, "loss": "huber",
    "gradient_checkpointing": True, "sample_every": 250, "save_every": 250,
}  # fmt: skip
_SDXL = {**_SD15, "teacher": SDXL[0], "revision": SDXL[1], "guidance": 7.0, "resolution": 1024}
_LORA = {"train": "lora", "lr": 1e-4, "warmup": 50}

#: Name to (what it is for, the settings that differ from the defaults).
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("the shipped digits model, all weights, on a laptop's CPU", _DIGITS),
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
         "updates": 1000, "max_samples": 2000},
    ),
    "sd15-24gb": (
        "Stable Diffusion 1.5, all weights, on a 24 GB card",
        {**_SD15, "mixed_precision": "bf16", "optimizer": "adamw8bit", "batch": 12, "lr": 8e-6,
         "updates": 4000},
    ),
    "sd15-a100": (
        "Stable Diffusion 1.5, all weights, on 40 or 80 GB cards",
        {**_SD15, "mixed_precision": "bf16", "optimizer": "adamw8bit", "batch": 32, "lr": 8e-6,
         "updates": 10_000, "warmup": 100, "draw_count": 4},
    ),
    "sd15-official": (
        "Stable Diffusion 1.5 by the official script's settings",
        {**_SD15, "conditioning": "gamma", "coupling": "markov", "mixed_precision": "fp16",
         "optimizer": "adamw8bit", "batch": 12, "lr": 8e-6, "schedule": "constant",
         "updates": 1000, "max_samples": 4000},
    ),
    "sdxl-lora": (
        "Stable Diffusion XL with adapters on a 24 GB card",
        {**_SDXL, **_LORA, "mixed_precision": "bf16", "batch": 2, "accumulate": 8,
         "updates": 2000, "max_samples": 4000},
    ),
    "sdxl-a100": (
        "Stable Diffusion XL, all weights, on an 80 GB card",
        {**_SDXL, "mixed_precision": "bf16", "optimizer": "adamw8bit", "batch": 8,
         "accumulate": 4, "lr": 8e-6, "updates": 10_000, "warmup": 100, "draw_count": 2},
    ),
}  # fmt: skip


def load_config(
    preset: str = "digits",
    file: str | os.PathLike[str] | None = None,
    settings: Iterable[str] = (),
) -> SDConfig:
    """A configuration from a preset, then a YAML or JSON file, then ``name=value`` settings."""
    check_choice(preset, PRESETS, "preset")
    values = dict(PRESETS[preset][1])
    if file is not None:
        values |= read_settings(Path(file))
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is no setting; allowed: name=value")
        values[name] = _read(name, value)
    return SDConfig(**values)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a JSON file, or of a YAML file, whose values are text until they are read.

    So no YAML's rules turn a ``no`` or a commit of digits into something else.
    """
    from ruamel.yaml import YAML, YAMLError

    from slam_edu import __version__

    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".json" or text.lstrip().startswith("{"):
            found = json.loads(text, object_pairs_hook=_unlike)
        else:
            found = YAML(typ="base", pure=True).load(text)
    except (OSError, ValueError, YAMLError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({' '.join(str(error).split())}); allowed: a YAML or "
            f"JSON file of settings"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{str(path)!r} holds {type(found).__name__}; allowed: settings as name: value"
        )
    if found.get("hop") == "full":  # of older runs
        del found["hop"]
    try:
        values = {str(name): _read(str(name), value) for name, value in found.items()}
        for name, value in values.items():
            setting_rule(name).check(name, value)
    except ValueError as error:
        made = re.match(r"# slam_edu (\S+)", text)
        other = made and made[1] != __version__
        hint = f" (it is of slam_edu {made[1]}, and this is {__version__})" if other else ""
        raise ValueError(f"{str(path)!r}{hint}: {error}") from error
    return values


def _unlike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose names may not come twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _read(name: str, value: Any) -> Any:
    """A setting's value from text, as its type; what does not fit is left for the checks."""
    rule = setting_rule(name)
    if not isinstance(value, str):
        return value
    if value.lower() in ("null", "~") or (rule.optional and value.lower() in ("none", "")):
        return None
    if rule.kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        return rule.kind(value)  # YAML, too, reads 1e-4 as text
    except ValueError:
        return value


def describe(config: SDConfig, documented: bool = True) -> str:
    """All settings as YAML, by section; what differs from the default is marked."""
    from ruamel.yaml import YAML

    from slam_edu import __version__

    yaml = YAML(typ="safe", pure=True)
    yaml.width, yaml.default_flow_style = 10_000, False
    lines, section = [f"# slam_edu {__version__}"], ""
    for name, value in config.settings().items():
        rule = RULES[name]
        if rule.section != section:
            section = rule.section
            lines.append(f"# ---- {section}")
        if documented:
            allowed = f" ({', '.join(rule.choices)})" if rule.choices else ""
            lines.append(f"# {rule.doc}{allowed}")
        yaml.dump({name: value}, written := io.StringIO())
        text = written.getvalue().strip()
        lines.append(text + ("" if value == rule.default else f"  # default: {rule.default}"))
    return "\n".join(lines) + "\n"


def save_config(config: SDConfig, path: Path) -> None:
    """Write the configuration as documented YAML, with absolute paths."""
    with atomic_path(path) as temporary:
        temporary.write_text(describe(config.located()), "utf-8")


def read_config(path: Path) -> SDConfig:
    """The configuration that :func:`save_config` wrote."""
    return SDConfig(**read_settings(path))


# -------------------------------------------------------------------- the command line


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command has that needs a configuration: preset, file, settings."""
    listed = "; ".join(f"{name}: {what}" for name, (what, _) in PRESETS.items())
    parser.add_argument(
        "--preset", default="digits", choices=list(PRESETS), metavar="NAME",
        help=f"settings to begin with (default: digits). {listed}".replace("%", "%%"),
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML or JSON with settings, over the preset's"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="name=value",
        help="settings over both, such as lr=2e-4 (--help-config explains all)",
    )  # fmt: skip
    parser.add_argument(
        "--help-config", action=_HelpConfig, nargs=0,
        help="print every setting of the preset with its meaning, and stop",
    )  # fmt: skip


def chosen_config(options: argparse.Namespace) -> SDConfig:
    """The configuration that the arguments of :func:`add_config_arguments` name."""
    return load_config(options.preset, options.config, options.settings)


class _HelpConfig(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object
    ) -> None:
        """Print the settings as a configuration file; the preset is the one named before."""
        print(describe(load_config(getattr(namespace, "preset", None) or "digits")), end="")
        parser.exit()

r"""What a distillation will take, before anything is loaded: ``slam-edu plan``.

From the configuration alone: the networks are built without data and a step of them is traced
(:mod:`slam_edu.sd.trace`). What is counted and what is assumed:

- **counted**: parameters, weights, gradients, the optimiser's state, half-precision copies of
  weights, activations at each moment of a step, the autoencoder's working memory, multiplications
  and additions (one of each is two operations);
- **assumed**: what a device's libraries and its allocator take (:func:`overhead`), and how many
  operations a card does per second in such networks (:data:`CARDS`). Times are estimates.

A step is not the only thing that must fit: before the training the images or prompts are encoded,
and along it the autoencoder decodes sample grids. A plan has all three as :class:`Phase`.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from slam_edu._validation import check_choice, check_count
from slam_edu.sd.config import SDConfig
from slam_edu.sd.memory import GIB, REST, available_bytes
from slam_edu.sd.published import Architecture, architecture_of
from slam_edu.sd.trace import (
    COPIES,
    GRADIENTS,
    StepTrace,
    count_parameters,
    trace_coding,
    trace_step,
)

#: Images that a sample grid decodes at a time (:class:`slam_edu.sd.tracking.Sampler`).
GRID_BATCH = 4
#: Largest batch that is looked for.
MOST = 4096
ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU.

    Attributes:
        name: of it.
        gib: what torch can use of it.
        half: assumed sustained TFLOP/s of half-precision training, about a third of what the
            maker publishes.
        single: the same in float32, without TF32.
    """

    name: str
    gib: float
    half: float
    single: float


#: By the name that ``slam-edu plan --card`` takes.
CARDS = {
    "t4": Card(name="T4 16 GB", gib=14.7, half=18, single=4),
    "rtx3090": Card(name="RTX 3090 24 GB", gib=23.6, half=25, single=14),
    "rtx4090": Card(name="RTX 4090 24 GB", gib=23.6, half=60, single=30),
    "a100-40": Card(name="A100 40 GB", gib=39.4, half=100, single=12),
    "a100-80": Card(name="A100 80 GB", gib=79.1, half=100, single=12),
    "h100": Card(name="H100 80 GB", gib=79.1, half=250, single=30),
}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What is in memory when a part of a run needs most.

    Attributes:
        name: of it.
        parts: bytes by part.
    """

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a distillation will take. Made by :func:`make_plan`.

    Attributes:
        config: of the run.
        architecture: of the teacher.
        device: kind of it, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        processes: of the run, each with a device of its own.
        card_gib: memory to plan for; None: none was named.
        trace: of a step.
        parameters: number of parameters by part.
    """

    config: SDConfig
    architecture: Architecture
    device: str
    processes: int
    card_gib: float | None
    trace: StepTrace
    parameters: Mapping[str, int]

    # ---- memory

    def update(self, batch: int | None = None) -> Phase:
        """An update's fullest moment, on one device.

        Args:
            batch: samples a process takes at a time; default the configuration's.
        """
        batch = self.config.training.batch if batch is None else batch
        check_count(batch, "batch")
        full = self.gradient_bytes if self.config.training.accumulate > 1 else None
        moment = self.trace.fullest(batch, full)
        ending = {GRADIENTS: self.gradient_bytes, COPIES: 0, REST: 0}
        moment = max(moment, ending, key=lambda parts: sum(parts.values()))
        parts = {**self._networks(), **moment}
        if not self.config.cache or self.device != "cuda":  # elsewhere they share the memory
            parts |= self._encoders()
        return self._phase("an update", parts)

    def phases(self, batch: int | None = None) -> list[Phase]:
        """All that must fit, the largest first.

        Args:
            batch: as for :meth:`update`.
        """
        found = [self.update(batch)]
        config = self.config
        size = self.architecture.latent_shape(config.resolution)[1:]
        pixels = size[0] * size[1] * self.architecture.factor**2
        if config.data != "cache":
            from slam_edu.sd.data.latents import PIXELS

            images = max(1, min(32, PIXELS // pixels))
            found.append(
                self._phase(
                    f"encoding {images} images",
                    {
                        "teacher's UNet": self._loaded_unet(),
                        **self._encoders(),
                        "working memory": self._coding("encode", images)[0],
                    },
                )
            )
        if config.sample_count:
            found.append(
                self._phase(
                    f"decoding {GRID_BATCH} samples",
                    {
                        **self._networks(),
                        GRADIENTS: self.gradient_bytes,
                        **self._encoders(all_=self.device != "cuda" or not config.cache),
                        "working memory": self._coding("decode", GRID_BATCH)[0],
                    },
                )
            )
        return sorted(found, key=lambda phase: phase.total, reverse=True)

    def total(self, batch: int | None = None) -> int:
        """Bytes that a device must have, for all phases.

        Args:
            batch: as for :meth:`update`.
        """
        return self.phases(batch)[0].total

    def largest_batch(self, gib: float) -> int:
        """The largest batch that fits; 0 if none does.

        Args:
            gib: memory that can be used.
        """
        low, high = 0, 1
        while high <= MOST and self.total(high) <= gib * GIB:
            low, high = high, 2 * high
        high = min(high, MOST + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.total(middle) <= gib * GIB else (low, middle)
        return low

    @property
    def gradient_bytes(self) -> int:
        """Of all gradients, float32."""
        return 4 * self.trace.parameters["trained"]

    @property
    def optimizer_bytes(self) -> int:
        """Of AdamW's two moments."""
        count = self.trace.parameters["trained"]
        # 8 bits a value and a float32 scale for each 256 of them; small tensors, which stay in
        # float32, are too few to count.
        return round(count * (2 + 8 / 256)) if self.config.optimizer == "adamw8bit" else 8 * count

    def _networks(self) -> dict[str, int]:
        """What a run has in memory all the time."""
        names = {
            "full": ("teacher's UNet", "student's UNet", "target's UNet"),
            "lora": ("base UNet", "adapters", "their average"),
        }[self.config.train]
        parts = dict(zip(names, self.trace.weights.values(), strict=True))
        parts["optimiser's state"] = self.optimizer_bytes
        if self.processes > 1:
            parts["gradients on their way to other processes"] = self.gradient_bytes
        return parts

    def _encoders(self, all_: bool = True) -> dict[str, int]:
        """Autoencoder and text encoders, float32."""
        parts = {"autoencoder": 4 * self.parameters["autoencoder"]}
        return parts | ({"text encoders": 4 * self.parameters["text encoders"]} if all_ else {})

    def _loaded_unet(self) -> int:
        count = self.parameters["teacher's UNet"]
        # A student is a float32 copy of it, so it is loaded as that.
        return count * (4 if self.config.train == "full" else ITEM[self.config.frozen_dtype])

    def _coding(self, kind: str, batch: int) -> tuple[int, int]:
        return trace_coding(self.architecture, kind, batch, self.config.resolution)

    def _phase(self, name: str, parts: Mapping[str, int]) -> Phase:
        parts = {part: size for part, size in parts.items() if size}
        moving = sum(parts.get(part, 0) for part in (REST, "working memory"))
        parts["libraries and allocator (assumed)"] = overhead(
            self.device, sum(parts.values()), moving
        )
        return Phase(name=name, parts=parts)

    # ---- computation and disk

    @property
    def sample_flops(self) -> int:
        """Operations of one sample in an update: teacher, target, student and gradient."""
        flops, config = self.trace.flops, self.config
        calls = config.distillation.teacher_steps * (2 if config.distillation.guidance else 1)
        total = calls * flops["teacher"] + flops["target"] + flops["forward"] + flops["backward"]
        return total + (0 if config.cache else self._coding("encode", 1)[1])

    @property
    def update_flops(self) -> int:
        """Operations of an update on one device."""
        return self.sample_flops * self.config.training.batch * self.config.training.accumulate

    @property
    def half(self) -> bool:
        """Whether the networks compute in half precision."""
        config = self.config
        frozen = config.train == "lora" and config.frozen_dtype != "float32"
        return config.mixed_precision != "no" or frozen

    def seconds(self, tflops: float) -> float:
        """An estimate of the training's time, without encoding, checkpoints and grids.

        Args:
            tflops: 1e12 operations a second that a device sustains.
        """
        return self.config.training.updates * self.update_flops / (1e12 * tflops)

    def drawing_seconds(self, tflops: float) -> float:
        """An estimate of the time in which the teacher draws one latent (``data=prompts``).

        Args:
            tflops: as for :meth:`seconds`.
        """
        config = self.config
        w = config.distillation.guidance if config.draw_guidance is None else config.draw_guidance
        calls = config.draw_steps * (2 if w else 1)
        return calls * self.trace.flops["teacher"] / (1e12 * tflops)

    def disk(self) -> dict[str, int]:
        """Bytes on disk: the teacher's files, the checkpoints, and the cache of a sample."""
        config, count = self.config, self.trace.parameters["trained"]
        channels, height, width = self.architecture.latent_shape(config.resolution)
        length, states = self.architecture.text_shape
        values = channels * height * width + length * states
        values += self.architecture.pooled_width or 0
        one = 8 * count + self.optimizer_bytes
        return {
            "teacher": sum(self.parameters[name] for name in (
                "teacher's UNet", "autoencoder", "text encoders"
            )) * (2 if config.variant == "fp16" else 4),
            # one more while it is written
            "checkpoints": (config.keep + 1) * one,
            "cache of a sample": values * ITEM[config.cache_dtype],
        }  # fmt: skip

    # ---- words

    def as_text(self) -> str:
        """The plan as a page of text."""
        config = self.config
        _channels, height, width = self.architecture.latent_shape(config.resolution)
        f = self.architecture.factor
        lines = [
            f"{self.architecture.name}, {f * height} x {f * width} pixels, "
            f"train={config.train}, batch {config.training.batch} x accumulate "
            f"{config.training.accumulate} x "
            f"{self.processes} process{'es' if self.processes > 1 else ''}, on {self.device}",
            "",
            "parameters",
            *(f"  {name:<42}{count:>16,}" for name, count in self.parameters.items()),
            "",
            f"memory at the fullest moment of an update, batch {config.training.batch}",
            *_table(self.update()),
        ]
        for phase in self.phases():
            if phase.name != "an update":
                lines.append(
                    f"  {phase.name + ' needs':<42}{_size(phase.total)}, of that "
                    f"{_size(phase.parts['working memory']).strip()} working memory"
                )
        plain, kept = self.saved()
        lines += [
            f"  a sample kept for the backward pass{_size(plain):>18}, with gradient "
            f"checkpointing {_size(kept).strip()}",
            "",
            "disk",
            *(f"  {name:<42}{_size(size)}" for name, size in self.disk().items()),
            "",
            *self._time_lines(),
        ]
        return "\n".join(lines)

    def saved(self) -> tuple[int, int]:
        """Bytes kept of a sample for the backward pass, without and with checkpointing."""
        found = [
            trace_step(
                self.config.replace(gradient_checkpointing=on), self.architecture,
                self.device == "cuda",
            ).saved
            for on in (False, True)
        ]  # fmt: skip
        return found[0], found[1]

    def _time_lines(self) -> list[str]:
        config, flops = self.config, self.trace.flops
        calls = config.distillation.teacher_steps * (2 if config.distillation.guidance else 1)
        tera = {name: count / 1e12 for name, count in flops.items()}
        lines = [
            f"computation: {_number(self.sample_flops / 1e12)} TFLOP a sample (teacher {calls} x "
            f"{_number(tera['teacher'])}, target {_number(tera['target'])}, student "
            f"{_number(tera['forward'])}, backward {_number(tera['backward'])}), "
            f"{_number(self.update_flops / 1e12)} an update",
        ]
        if self.device != "cuda":
            speed = cpu_tflops()
            lines += [
                f"time, an ESTIMATE: {_duration(self.seconds(speed))} for "
                f"{config.training.updates:,} updates at {1000 * speed:.0f} GFLOP/s, which "
                f"a convolution reaches just now on {torch.get_num_threads()} thread(s); "
                f"small networks may take twice as long",
            ]
            return lines
        lines += [
            f"time, an ESTIMATE, for {config.training.updates:,} updates, at an assumed "
            f"{'half-precision' if self.half else 'float32'} rate; measured rates differ by a "
            f"factor of two",
            f"  {'card':<18}{'GiB':>6}{'fits':>6}{'largest batch':>15}{'TFLOP/s':>9}{'time':>10}"
            + (f"{'1,000 latents drawn':>22}" if config.data == "prompts" else ""),
        ]
        cards = dict(CARDS)
        if self.card_gib is not None and self.card_gib not in {c.gib for c in cards.values()}:
            lines.append(
                f"  {'this one':<18}{self.card_gib:>6.1f}"
                f"{'yes' if self.total() <= self.card_gib * GIB else 'no':>6}"
                f"{self.largest_batch(self.card_gib):>15}{'?':>9}{'?':>10}"
            )
        for card in cards.values():
            speed = card.half if self.half else card.single
            fits = self.total() <= card.gib * GIB
            line = (
                f"  {card.name:<18}{card.gib:>6.1f}{'yes' if fits else 'no':>6}"
                f"{self.largest_batch(card.gib):>15}{speed:>9.0f}"
                f"{_duration(self.seconds(speed)) if fits else '-':>10}"
            )
            if config.data == "prompts":
                line += f"{_duration(1000 * self.drawing_seconds(speed)):>22}"
            lines.append(line)
        return lines


def make_plan(
    config: SDConfig,
    *,
    card_gib: float | None = None,
    device: str | None = None,
    processes: int = 1,
) -> Plan:
    """Plan a distillation; nothing is loaded.

    Args:
        config: of the run.
        card_gib: memory to plan for, beside the known cards.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``; None: the configuration's, and where that is
            ``"auto"`` a GPU if there is one, if ``card_gib`` is given, or if the configuration is
            of half precision.
        processes: of the run, each with a device of its own.

    Raises:
        FileNotFoundError: for a teacher's folder that lacks a configuration.
        ValueError: for a teacher whose architecture is not known, a teacher that cannot be
            distilled, or a value that is not allowed.
    """
    check_count(processes, "processes")
    if card_gib is not None and not 0 < card_gib < float("inf"):
        raise ValueError(f"card_gib is {card_gib!r}; allowed: a finite number > 0")
    architecture = architecture_of(config)
    device = _device(config, device, card_gib)
    trace = trace_step(config, architecture, device == "cuda")
    trained = trace.parameters["trained"]
    names = (
        ("student's UNet, trained", "target's UNet")
        if config.train == "full"
        else ("adapters, trained", "their average")
    )
    return Plan(
        config=config,
        architecture=architecture,
        device=device,
        processes=processes,
        card_gib=card_gib,
        trace=trace,
        parameters={
            "teacher's UNet": trace.parameters["teacher"],
            names[0]: trained,
            names[1]: trace.parameters["average"],
            **count_parameters(architecture),
        },
    )


def _device(config: SDConfig, device: str | None, card_gib: float | None) -> str:
    named = device or config.device
    kind = _likely_device(config, card_gib) if named == "auto" else torch.device(named).type
    check_choice(kind, ("cpu", "cuda", "mps"), "device")
    return kind


def _likely_device(config: SDConfig, card_gib: float | None) -> str:
    meant = card_gib is not None or config.mixed_precision != "no"
    return "cuda" if meant or torch.cuda.is_available() else "cpu"


def overhead(device: str, tensors: int, moving: int) -> int:
    """What is taken besides tensors, in bytes: an assumption.

    Args:
        device: kind of it.
        tensors: bytes of all tensors.
        moving: those of them that come and go, in whose place an allocator leaves gaps.
    """
    if device == "cuda":  # its context, and the workspaces of its libraries
        return round(0.8 * GIB + 0.05 * moving)
    # The interpreter and the libraries; then weights as convolutions reorder them, and gaps. The
    # fifth is what the full-size run took (data/full-size/doctor.json).
    return round(0.6 * GIB + 0.2 * tensors)


# -------------------------------------------------------------------- what cannot fit


def check_fits(config: SDConfig, plan: Plan, available_bytes: int) -> None:
    """Refuse what cannot fit.

    Args:
        config: of the run.
        plan: of it.
        available_bytes: of a device, for one process.

    Raises:
        ValueError: with the numbers by part, and what would fit.
    """
    phase = plan.phases()[0]
    if phase.total <= available_bytes:
        return
    parts = ", ".join(f"{name} {_size(size).strip()}" for name, size in phase.parts.items())
    raise ValueError(
        f"this does not fit in memory: {phase.name} needs about {phase.total / GIB:.2f} GiB on "
        f"{plan.device} ({parts}) and {available_bytes / GIB:.2f} GiB are available; "
        f"{_suggestion(config, plan, available_bytes)}"
    )


def _suggestion(config: SDConfig, plan: Plan, available: int) -> str:
    gib = available / GIB
    batch = min(plan.largest_batch(gib), config.training.batch - 1)
    if batch:
        parts = -(-config.training.batch * config.training.accumulate // batch)
        return f"what fits: batch={batch} (accumulate={parts} for as many samples an update)"
    tried: dict[str, object] = {}
    for name, value in (
        ("gradient_checkpointing", True),
        ("optimizer", "adamw8bit" if plan.device == "cuda" else config.optimizer),
        ("train", "lora"),
        ("frozen_dtype", "bfloat16" if config.mixed_precision == "bf16" else "float16"),
        ("lora_rank", 16),
        ("sample_count", 0),
    ):
        if config.settings()[name] == value or (name == "frozen_dtype" and plan.device != "cuda"):
            continue
        tried[name] = value
        other = make_plan(config.replace(**tried), device=plan.device, processes=plan.processes)
        batch = min(other.largest_batch(gib), config.training.batch)
        if batch:
            settings = " ".join(f"{k}={str(v).lower()}" for k, v in tried.items())
            smaller = f" batch={batch}" if batch < config.training.batch else ""
            return f"what fits: {settings}{smaller}"
    return (
        "no setting makes it fit: take a smaller resolution, a smaller teacher, or a larger device"
    )


def check_memory(
    config: SDConfig, device: torch.device | str, *, processes: int = 1
) -> Plan | None:
    """Refuse, before anything is loaded, what cannot fit on this machine.

    Args:
        config: of the run.
        device: computed on.
        processes: of the run.

    Returns:
        the plan; None for a teacher whose architecture is not known before it is loaded.

    Raises:
        ValueError: with the numbers by part, and what would fit.
    """
    try:
        architecture_of(config)
    except (FileNotFoundError, ValueError):
        return None  # the loading says what is wrong, or finds that nothing is
    device = torch.device(device)
    plan = make_plan(config, device=device.type, processes=processes)
    room = available_bytes(device)
    if device.type != "cuda":  # they share the machine's
        room //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    check_fits(config, plan, room)
    return plan


# -------------------------------------------------------------------- speed and words


@functools.lru_cache(maxsize=1)
def cpu_tflops() -> float:
    """TFLOP/s of a convolution on this CPU, measured in a moment, with torch's threads."""
    x, weight = torch.randn(4, 128, 32, 32), torch.randn(128, 128, 3, 3)
    flops = 2 * 4 * 32 * 32 * 128 * 128 * 9
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        torch.nn.functional.conv2d(x, weight, padding=1)
        best = max(best, flops / (time.perf_counter() - begin) / 1e12)
    return best


def _table(phase: Phase) -> list[str]:
    lines = [f"  {name:<42}{_size(size)}" for name, size in phase.parts.items()]
    return [*lines, f"  {'total':<42}{_size(phase.total)}"]


def _size(size: float) -> str:
    value, unit = (size / 2**20, "MiB") if size < GIB / 10 else (size / GIB, "GiB")
    return f"{value:>9.2f} {unit}"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


# -------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
    from slam_edu.sd.cli import add_config_arguments

    add_config_arguments(parser)
    parser.add_argument(
        "--card", metavar="NAME",
        help=f"plan for it: {', '.join(CARDS)}, or a number of GiB",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="each with a device of its own"
    )


def run(options: argparse.Namespace) -> int:
    """Print the plan; returns the exit status, 1 where it does not fit the card named."""
    from slam_edu.sd.cli import chosen_config

    config, gib = chosen_config(options), None
    if options.card is not None:
        gib = _card_gib(options.card)
    plan = make_plan(config, card_gib=gib, processes=options.processes)
    print(plan.as_text())
    if gib is None:
        return 0
    try:
        check_fits(config, plan, round(gib * GIB))
    except ValueError as error:
        print(f"\n{options.card}: {error}")
        return 1
    print(f"\n{options.card}: fits, up to batch={plan.largest_batch(gib)}")
    return 0


def _card_gib(text: str) -> float:
    if text.lower() in CARDS:
        return CARDS[text.lower()].gib
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"card is {text!r}; allowed: {', '.join(map(repr, CARDS))}, or a number of GiB"
        ) from None

r"""What a distillation will take, before anything is loaded: ``slam-edu plan``.

- **Counted**, on the true networks without their weights (:mod:`slam_edu.sd.trace`): parameters,
  weights, gradients, the optimiser's state, half-precision copies of weights, activations, the
  autoencoder's working memory, operations (a multiplication and an addition are two).
- **Assumed**: what libraries and allocator take, and how many operations a card does per second
  in such networks (:data:`CARDS`). Times are estimates.

A step is not all that must fit: before the training the images are encoded, and along it the
autoencoder decodes sample grids. A plan has all three as :class:`Phase`.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer

from slam_edu._validation import check_choice, check_count
from slam_edu.sd.config import SDConfig, add_config_arguments, chosen_config
from slam_edu.sd.data.latents import PIXELS
from slam_edu.sd.published import Architecture, architecture_of
from slam_edu.sd.trace import (
    COPIES,
    GRADIENTS,
    REST,
    StepTrace,
    count_parameters,
    trace_coding,
    trace_step,
)

GIB = 2**30
#: Images that a sample grid decodes at a time (:class:`slam_edu.sd.tracking.Sampler`).
GRID_BATCH = 4
#: Largest batch that is looked for.
MOST = 4096
ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}
WORKING = "working memory"
#: Of the networks in a plan: teacher or base, trained, moving average.
NAMES = {
    "full": ("teacher's UNet", "student's UNet", "target's UNet"),
    "lora": ("base UNet", "adapters", "their average"),
}


class Card(NamedTuple):
    """A GPU: what torch can use of it, and an assumed sustained speed of training in TFLOP/s.

    ``half`` precision is about a third of what the maker publishes, ``single`` is without TF32.
    """

    name: str
    gib: float
    half: float
    single: float


#: By the name that ``slam-edu plan --card`` takes.
CARDS = {
    "t4": Card("T4 16 GB", 14.7, 18, 4),
    "rtx3090": Card("RTX 3090 24 GB", 23.6, 25, 14),
    "rtx4090": Card("RTX 4090 24 GB", 23.6, 60, 30),
    "a100-40": Card("A100 40 GB", 39.4, 100, 12),
    "a100-80": Card("A100 80 GB", 79.1, 100, 12),
    "h100": Card("H100 80 GB", 79.1, 250, 30),
}


class Phase(NamedTuple):
    """Bytes by part when a part of a run needs most."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a distillation will take. Made by :func:`make_plan`.

    Attributes:
        device: kind of it, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        processes: of the run, each with a device of its own.
        trace: of a step.
        parameters: number of parameters by part.
    """

    config: SDConfig
    architecture: Architecture
    device: str
    processes: int
    trace: StepTrace
    parameters: Mapping[str, int]

    def update(self, batch: int | None = None) -> Phase:
        """An update's fullest moment, on one device; ``batch`` is by default the run's."""
        training = self.config.training
        full = self.gradient_bytes if training.accumulate > 1 else None
        moment = self.trace.fullest(batch or training.batch, full)
        ending = {GRADIENTS: self.gradient_bytes, COPIES: 0, REST: 0}
        parts = self._networks() | max(moment, ending, key=lambda parts: sum(parts.values()))
        if not self.config.cache or self.device != "cuda":  # elsewhere they share the memory
            parts |= self._encoders()
        return self._phase("an update", parts)

    def phases(self, batch: int | None = None) -> list[Phase]:
        """All that must fit, the largest first."""
        config, found = self.config, [self.update(batch)]
        if config.data != "cache":
            images = max(1, min(32, PIXELS // math.prod(self._image_size)))
            # A student of all weights is a float32 copy of the teacher, which is loaded as that.
            item = 4 if config.train == "full" else ITEM[config.frozen_dtype]
            parts = {"teacher's UNet": item * self.parameters["teacher's UNet"]}
            parts |= self._encoders() | {WORKING: self._coding("encode", images)[0]}
            found.append(self._phase(f"encoding {images} images", parts))
        if config.sample_count:
            parts = self._networks() | {GRADIENTS: self.gradient_bytes} | self._encoders()
            if self.device == "cuda" and config.cache:
                del parts["text encoders"]
            parts[WORKING] = self._coding("decode", GRID_BATCH)[0]
            found.append(self._phase(f"decoding {GRID_BATCH} samples", parts))
        return sorted(found, key=lambda phase: phase.total, reverse=True)

    def total(self, batch: int | None = None) -> int:
        """Bytes that a device must have."""
        return self.phases(batch)[0].total

    def largest_batch(self, gib: float) -> int:
        """The largest batch that fits into so many GiB; 0 if none does."""
        return bisect.bisect_right(range(1, MOST + 1), gib * GIB, key=self.total)

    @property
    def gradient_bytes(self) -> int:
        """Of all gradients, float32."""
        return 4 * self.trace.parameters["trained"]

    @property
    def optimizer_bytes(self) -> int:
        """Of AdamW's two moments; in 8 bits with a float32 scale for each 256 values."""
        each = 2 + 8 / 256 if self.config.optimizer == "adamw8bit" else 8
        return round(each * self.trace.parameters["trained"])

    def _networks(self) -> dict[str, int]:
        """What a run has in memory all the time."""
        names = NAMES[self.config.train]
        parts = dict(zip(names, self.trace.weights.values(), strict=True))
        parts["optimiser's state"] = self.optimizer_bytes
        if self.processes > 1:
            parts["gradients on their way to other processes"] = self.gradient_bytes
        return parts

    @property
    def _image_size(self) -> tuple[int, ...]:
        latent = self.architecture.latent_shape(self.config.resolution)
        return tuple(self.architecture.factor * side for side in latent[1:])

    def _encoders(self) -> dict[str, int]:
        return {name: 4 * self.parameters[name] for name in ("autoencoder", "text encoders")}

    def _coding(self, kind: str, batch: int) -> tuple[int, int]:
        return trace_coding(self.architecture, kind, batch, self.config.resolution)

    def _phase(self, name: str, parts: Mapping[str, int]) -> Phase:
        parts = {part: size for part, size in parts.items() if size}
        if self.device == "cuda":  # context and libraries' workspaces; gaps that the allocator has
            moving = parts.get(REST, 0) + parts.get(WORKING, 0)
            rest = round(0.8 * GIB + 0.05 * moving)
        else:
            # The interpreter and the libraries; then weights as convolutions reorder them, and
            # gaps. The fifth is what a run at full size took (data/full-size/doctor.json).
            rest = round(0.6 * GIB + 0.2 * sum(parts.values()))
        return Phase(name, parts | {"libraries and allocator (assumed)": rest})

    # ---- operations, time, disk

    @property
    def teacher_calls(self) -> int:
        """Of one sample in an update; guidance takes two."""
        method = self.config.distillation
        return method.teacher_steps * (2 if method.guidance else 1)

    @property
    def sample_flops(self) -> int:
        """Operations of one sample in an update: teacher, target, student and gradient."""
        flops = self.trace.flops
        total = (self.teacher_calls - 1) * flops["teacher"] + sum(flops.values())
        return total + (0 if self.config.cache else self._coding("encode", 1)[1])

    @property
    def update_flops(self) -> int:
        """Operations of an update on one device."""
        return self.sample_flops * self.config.training.batch * self.config.training.accumulate

    def seconds(self, tflops: float) -> float:
        """An estimate of the training's time, without encoding, checkpoints and grids.

        ``tflops`` are 1e12 operations a second that a device sustains.
        """
        return self.config.training.updates * self.update_flops / (1e12 * tflops)

    def drawing_seconds(self, tflops: float) -> float:
        """An estimate of the time in which the teacher draws one latent (``data=prompts``)."""
        config = self.config
        w = config.distillation.guidance if config.draw_guidance is None else config.draw_guidance
        calls = config.draw_steps * (2 if w else 1)
        return calls * self.trace.flops["teacher"] / (1e12 * tflops)

    def disk(self) -> dict[str, int]:
        """Bytes on disk: the teacher's files, the checkpoints, and the cache of a sample."""
        config, architecture = self.config, self.architecture
        values = math.prod(architecture.latent_shape(config.resolution))
        values += math.prod(architecture.text_shape) + (architecture.pooled_width or 0)
        names = ("teacher's UNet", "autoencoder", "text encoders")
        count = sum(self.parameters[name] for name in names)
        one = 8 * self.trace.parameters["trained"] + self.optimizer_bytes
        return {
            "teacher": count * (2 if config.variant == "fp16" else 4),
            "checkpoints": (config.keep + 1) * one,  # one more while it is written
            "cache of a sample": values * ITEM[config.cache_dtype],
        }

    # ---- text

    def as_text(self) -> str:
        """The plan as a page of text."""
        config, training, flops = self.config, self.config.training, self.trace.flops
        (height, width), update = self._image_size, self.update()
        tera = {name: f"{count / 1e12:.3g}" for name, count in flops.items()}
        sizes = [*update.parts.items(), ("total", update.total)]
        lines = [
            f"{self.architecture.name}, {height} x {width} pixels, train={config.train}, "
            f"batch {training.batch} x accumulate {training.accumulate} x {self.processes} "
            f"process{'es' if self.processes > 1 else ''}, on {self.device}",
            "",
            "parameters",
            *(f"  {name:<42}{count:>16,}" for name, count in self.parameters.items()),
            "",
            f"memory at the fullest moment of an update, batch {training.batch}",
            *(f"  {name:<42}{_size(size):>13}" for name, size in sizes),
            *(
                f"  {phase.name + ' needs':<42}{_size(phase.total):>13}, of that "
                f"{_size(phase.parts[WORKING])} {WORKING}"
                for phase in self.phases()
                if phase.name != update.name
            ),
            "",
            "disk",
            *(f"  {name:<42}{_size(size):>13}" for name, size in self.disk().items()),
            "",
            f"computation: {self.sample_flops / 1e12:.3g} TFLOP a sample (teacher "
            f"{self.teacher_calls} x {tera['teacher']}, target {tera['target']}, student "
            f"{tera['forward']}, backward {tera['backward']}), {self.update_flops / 1e12:.3g} an "
            f"update",
        ]
        estimate = f"time, an ESTIMATE, for {training.updates:,} updates"
        if self.device != "cuda":
            speed = cpu_tflops()
            lines.append(
                f"{estimate}: {_duration(self.seconds(speed))} at {1000 * speed:.0f} GFLOP/s, "
                f"which a convolution reaches just now on {torch.get_num_threads()} thread(s); "
                f"small networks may take twice as long"
            )
            return "\n".join(lines)
        half = config.mixed_precision != "no" or (
            config.train == "lora" and config.frozen_dtype != "float32"
        )
        lines.append(f"{estimate}, at an assumed {'half-precision' if half else 'float32'} rate; "
                     f"measured rates differ by a factor of two")  # fmt: skip
        drawn = config.data == "prompts"
        head = ("card", "GiB", "fits", "largest batch", "TFLOP/s", "time")
        lines.append("  {:<18}{:>6}{:>6}{:>15}{:>9}{:>10}".format(*head))
        lines[-1] += f"{'1,000 latents drawn':>22}" * drawn
        for card in CARDS.values():
            fits, speed = self.total() <= card.gib * GIB, card.half if half else card.single
            lines.append(
                f"  {card.name:<18}{card.gib:>6.1f}{'yes' if fits else 'no':>6}"
                f"{self.largest_batch(card.gib):>15}{speed:>9}"
                f"{_duration(self.seconds(speed)) if fits else '-':>10}"
            )
            lines[-1] += f"{_duration(1000 * self.drawing_seconds(speed)):>22}" * drawn
        return "\n".join(lines)


def make_plan(config: SDConfig, *, device: str | None = None, processes: int = 1) -> MemoryPlan:
    """Plan a distillation; nothing is loaded.

    The ``device``, ``"cpu"``, ``"cuda"`` or ``"mps"``, is by default the configuration's, and
    where that is ``"auto"`` a GPU if there is one or the configuration is of half precision. Each
    of the ``processes`` has one of its own.

    Raises:
        FileNotFoundError: for a teacher's folder that lacks a configuration.
        ValueError: for a teacher whose architecture is not known, a teacher that cannot be
            distilled, or a value that is not allowed.
    """
    check_count(processes, "processes")
    device = device or config.device
    if device == "auto":
        half = config.mixed_precision != "no"
        device = "cuda" if half or torch.cuda.is_available() else "cpu"
    device = torch.device(device).type
    check_choice(device, ("cpu", "cuda", "mps"), "device")
    architecture = architecture_of(config)
    trace = trace_step(config, architecture, device == "cuda")
    _, trained, average = NAMES[config.train]
    names = ("teacher's UNet", f"{trained}, trained", average)
    counts = dict(zip(names, trace.parameters.values(), strict=True))
    return MemoryPlan(
        config=config, architecture=architecture, device=device, processes=processes, trace=trace,
        parameters=counts | count_parameters(architecture),
    )  # fmt: skip


# -------------------------------------------------------------------- what there is, what fits


def available_bytes(device: torch.device | str) -> int:
    """What can still be taken on a device: a GPU's free memory, or the machine's.

    Of the machine's, the operating system's estimate counts, and a container's limit (Linux's
    control groups, version 2) where there is one.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return min(psutil.virtual_memory().available, _container_room())


def _container_room(folder: Path = Path("/sys/fs/cgroup")) -> float:
    try:
        limit, taken = (int((folder / f"memory.{n}").read_text()) for n in ("max", "current"))
        stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # there is none, or it is "max"
        return math.inf
    # Files that were read count as taken, and are given up when memory is asked for.
    return max(0, limit - taken + int(stats.get("inactive_file", 0)))


def free_disk(folder: str | os.PathLike[str]) -> int:
    """Free bytes where a folder is, or will be."""
    path = Path(folder).expanduser().resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_fits(plan: MemoryPlan, available: int) -> None:
    """Refuse what cannot fit into the bytes that one process has.

    Raises:
        ValueError: with the numbers by part, and what would fit.
    """
    phase, gib = plan.phases()[0], available / GIB
    if phase.total <= available:
        return
    parts = ", ".join(f"{name} {_size(size)}" for name, size in phase.parts.items())
    raise ValueError(
        f"this does not fit in memory: {phase.name} needs about {phase.total / GIB:.2f} GiB on "
        f"{plan.device} ({parts}) and {gib:.2f} GiB are available; {_suggestion(plan, gib)}"
    )


def _suggestion(plan: MemoryPlan, gib: float) -> str:
    config, training, now = plan.config, plan.config.training, plan.config.settings()
    batch = min(plan.largest_batch(gib), training.batch - 1)
    if batch:
        parts = -(-training.batch * training.accumulate // batch)
        return f"what fits: batch={batch} (accumulate={parts} for as many samples an update)"
    tries: dict[str, object] = {"gradient_checkpointing": True, "train": "lora"}
    if plan.device == "cuda":
        frozen = "bfloat16" if config.mixed_precision == "bf16" else "float16"
        tries |= {"optimizer": "adamw8bit", "frozen_dtype": frozen}
    changes: dict[str, object] = {}
    for name, value in {**tries, "lora_rank": 16, "sample_count": 0}.items():
        if now[name] == value:
            continue
        changes[name] = value
        other = make_plan(config.replace(**changes), device=plan.device, processes=plan.processes)
        if batch := min(other.largest_batch(gib), training.batch):
            settings = " ".join(f"{k}={str(v).lower()}" for k, v in changes.items())
            return f"what fits: {settings}" + (f" batch={batch}" if batch < training.batch else "")
    return (
        "no setting makes it fit: take a smaller resolution, a smaller teacher, or a larger device"
    )


def check_memory(
    config: SDConfig, device: torch.device | str, *, processes: int = 1
) -> MemoryPlan | None:
    """Refuse, before anything is loaded, what cannot fit on this machine; else give the plan.

    There is none for a teacher whose architecture is not known before it is loaded.

    Raises:
        ValueError: with the numbers by part, and what would fit.
    """
    try:
        architecture_of(config)
    except (FileNotFoundError, ValueError):
        return None  # the loading names what is wrong, or finds that nothing is
    device = torch.device(device)
    plan = make_plan(config, device=device.type, processes=processes)
    room = available_bytes(device)
    if device.type != "cuda":  # they share the machine's
        room //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    check_fits(plan, room)
    return plan


@functools.lru_cache(maxsize=1)
def cpu_tflops() -> float:
    """TFLOP/s of a convolution on this CPU, measured in a moment, with torch's threads."""
    x, weight = torch.randn(4, 128, 32, 32), torch.randn(128, 128, 3, 3)
    timer = Timer(
        "conv2d(x, weight, padding=1)", "from torch.nn.functional import conv2d",
        globals={"x": x, "weight": weight}, num_threads=torch.get_num_threads(),
    )  # fmt: skip
    flops = 2 * x.numel() * weight.shape[0] * 9
    return flops / min(timer.timeit(1).mean for _ in range(5)) / 1e12


def _size(size: float) -> str:
    return f"{size / 2**20:.2f} MiB" if size < GIB / 10 else f"{size / GIB:.2f} GiB"


def _duration(seconds: float) -> str:
    for most, unit, name in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < most:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``slam-edu plan``."""
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
    config, card, gib = chosen_config(options), options.card, None
    if card is not None:
        try:
            gib = CARDS[card.lower()].gib if card.lower() in CARDS else float(card)
        except ValueError:
            raise ValueError(
                f"card is {card!r}; allowed: {', '.join(map(repr, CARDS))}, or a number of GiB"
            ) from None
        if not 0 < gib < math.inf:
            raise ValueError(f"card is {card!r}; allowed: a finite number of GiB > 0")
    device = "cuda" if gib is not None and config.device == "auto" else None
    plan = make_plan(config, device=device, processes=options.processes)
    print(plan.as_text())
    if gib is None:
        return 0
    try:
        check_fits(plan, round(gib * GIB))
    except ValueError as error:
        print(f"\n{card}: {error}")
        return 1
    print(f"\n{card}: fits, up to batch={plan.largest_batch(gib)}")
    return 0

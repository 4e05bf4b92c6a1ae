"""A distillation in a folder: begun, stopped, gone on with, read again.

A run's folder holds

    config.yaml        every setting, with its meaning; fixed from the first checkpoint on
    teacher.json       checksums of the teacher's parts
    log.csv            means over some updates (:mod:`slam_edu.sd.tracking`)
    checkpoints/       the newest few (:mod:`slam_edu.sd.checkpoint`)
    samples/           grids of samples from fixed noise
    cache/             latents and text states, unless they are elsewhere
    tensorboard/       the same log, for TensorBoard

:class:`DistillRun` trains, one update per turn of a ``for`` loop; the command ``slam-edu distill``
is such a loop. Stopped at any moment, by SIGTERM, by SIGINT or without any warning, the same
configuration in the same folder goes on from the last checkpoint, on the CPU to the last bit.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slam_edu.distill import SubPathDistiller
from slam_edu.io import clear_temporaries, locked, make_folder, writing
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.checkpoint import (
    FOLDER,
    checkpoint_paths,
    load_newest,
    save_checkpoint,
    updates_done,
)
from slam_edu.sd.components import empty_condition, text_condition
from slam_edu.sd.config import SDConfig, describe, read_config, save_config
from slam_edu.sd.continued import ContinuedChord
from slam_edu.sd.engine import (
    Engine,
    EngineState,
    MakeDistiller,
    make_autocast,
    optimizer_class,
)
from slam_edu.sd.networks import Networks, build_networks
from slam_edu.sd.tracking import (
    COLUMNS,
    LOG,
    SAMPLES,
    STUDENT_STEPS,
    RunLog,
    Sampler,
    save_grid,
    show_image,
)

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

CONFIG, TEACHER, TENSORBOARD, CACHE = "config.yaml", "teacher.json", "tensorboard", "cache"

#: A run says so if it shows a latent more often.
LOOPS = 10

#: Settings that may differ when a run goes on: they do not change what it computes.
FREE = (
    "out", "save_every", "keep", "log_every", "sample_every", "sample_prompts", "sample_count",
    "tracker", "device", "threads", "max_skipped", "cache_folder", "max_rejected",
)  # fmt: skip


class DistillRun:
    """A distillation, as an iterable of :class:`slam_edu.sd.engine.EngineState`.

    Iterating trains; it starts where the newest readable checkpoint of the folder ``config.out``
    is. Made on the way: the teacher's ``pipeline``, ``networks``, ``engine``, ``row`` (the log's
    newest, by column) and ``stopped``, the signal that ended the run early, or None. ``show``
    prints a line; ``distiller`` makes the step from the schedule and ``config.distill(...)``.

    Raises:
        ValueError: on iterating, for a folder with another configuration or in use by another
            process, a configuration that cannot work, or data that are no good.
        FloatingPointError: when too many updates in a row were not finite.
        OSError: when a checkpoint cannot be written; older ones are as they were.
    """

    def __init__(
        self,
        config: SDConfig,
        *,
        show: Callable[[str], None] = print,
        distiller: MakeDistiller = SubPathDistiller,
    ) -> None:
        self.config, self.folder = config, Path(config.out)
        if config.continued:
            distiller = functools.partial(ContinuedChord, reach=config.reach)
        self._show, self._distiller = show, distiller
        self.stopped: int | None = None
        self.row: dict[str, float] = {}

    def __iter__(self) -> Iterator[EngineState]:
        config, self.stopped = self.config, None
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        accelerator = make_accelerator(config, self.folder)
        main = accelerator.is_main_process
        show = self._show if main else lambda _line: None
        tracked = main and config.tracker != "none"
        with contextlib.ExitStack() as stack:
            if main:
                make_folder(self.folder)
                stack.enter_context(locked(self.folder))
                clear_temporaries(self.folder, self.folder / FOLDER, self.folder / SAMPLES)
                keep_config(config, self.folder)
            accelerator.wait_for_everyone()
            received = stack.enter_context(signals_kept())
            sampler = self._prepare(accelerator, show)
            resume = load_newest(self.folder, self.networks, show)
            if tracked:
                values = config.settings().items()
                plain = {k: v if isinstance(v, int | float) else str(v) for k, v in values}
                with writing(self.folder / TENSORBOARD):
                    accelerator.init_trackers("slam_edu", config=plain)
                for tracker in accelerator.trackers:
                    stack.callback(tracker.finish)

            def grid(update: int, teacher: bool = False) -> None:
                if not config.sample_count:
                    return
                rows = [sampler.teacher()] if teacher else []
                rows += [sampler.student(steps) for steps in STUDENT_STEPS]
                pixels = save_grid(rows, self.folder / SAMPLES / f"{update:08d}.png")
                if tracked:
                    show_image(accelerator, "samples", pixels, update)

            begun, end = resume.update if resume else 0, config.training.updates
            if begun:
                word = "finished:" if begun >= end else "going on after"
                show(f"{word} update {begun:,} of {end:,}")
            elif main:
                show(
                    f"{end:,} updates of {self.engine.batch} samples; the guidance w = "
                    f"{config.distillation.guidance:g} goes into the student, which is sampled at "
                    f"guidance_scale 1 (gamma = 1)"
                )
                grid(0, teacher=True)
            if main:
                shown = accelerator if tracked else None
                log = RunLog(self.folder, config, self.engine.batch, begun, shown)
            for state in self.engine.updates(lambda: bool(received), resume):
                resume = None  # its moments are the optimiser's now
                done = state.update == end
                if main:
                    self.row = log.add(state, end=state.stop) or self.row
                    if done or (config.sample_every and state.update % config.sample_every == 0):
                        grid(state.update)
                    if done or state.stop or state.update % config.save_every == 0:
                        save_checkpoint(self.folder, state, self.networks, config.keep)
                yield state
                if state.stop and not done:
                    self.stopped = received[0] if received else signal.SIGTERM
                    done = f"stopped after update {state.update:,} of {end:,}"
                    show(f"{done}; the same command goes on from there")
                    return

    def _prepare(self, accelerator: Accelerator, show: Callable[[str], None]) -> Sampler:
        """Teacher, data, networks, engine."""
        from slam_edu.sd.data import check_inputs, open_batches
        from slam_edu.sd.plan import check_memory
        from slam_edu.sd.teacher import keep_teacher, load_teacher

        config, device = self.config, accelerator.device
        check_inputs(config)
        optimizer_class(config, device)
        try:
            check_memory(config, device, processes=accelerator.num_processes)
        except ValueError as error:
            if not updates_done(self.folder):
                raise
            raise ValueError(f"{error}, in another folder (out=...)") from error
        self.pipeline = pipeline = load_teacher(config)
        if accelerator.is_main_process:
            keep_teacher(pipeline, self.folder / TEACHER, bool(updates_done(self.folder)))
        schedule = NoiseSchedule.from_scheduler(pipeline.scheduler).to(device)
        encoders = [m for n, m in pipeline.components.items() if n.startswith("text_encoder")]
        parts = [m for m in (pipeline.vae, *encoders) if m is not None]
        for part in (*parts, pipeline.unet):
            part.requires_grad_(False).eval().to(device)
        # The lock keeps other processes out; these wait for the one that makes the cache.
        batches = open_batches(
            config, pipeline, self.folder / CACHE,
            rank=accelerator.process_index, world=accelerator.num_processes,
            start_update=updates_done(self.folder), wait=accelerator.wait_for_everyone, show=show,
        )  # fmt: skip
        if config.cache:
            shown = config.training.updates * config.training.batch * config.training.accumulate
            loops = shown * accelerator.num_processes / len(batches.cache)
            if loops > LOOPS:
                show(
                    f"data: each of {len(batches.cache):,} latents is shown {loops:,.0f} times; "
                    f"more data, or a larger draw_count with data=prompts, teach more"
                )
        prompts = grid_prompts(config, batches)
        cond, empty = text_condition(pipeline, prompts), empty_condition(pipeline)
        if config.cache:  # they are not needed any more
            for part in parts:
                part.to("cpu")
        self.networks = build_networks(config, pipeline.unet, make_autocast(config, device))
        self.engine = Engine(
            config, schedule, self.networks, batches, accelerator=accelerator,
            prediction_type=pipeline.scheduler.config.prediction_type, distiller=self._distiller,
        )  # fmt: skip
        return Sampler(config, pipeline, self.networks, schedule, cond, empty)


def distill(config: SDConfig, **options: Any) -> DistillRun:
    """A distillation, to be iterated; see :class:`DistillRun`."""
    return DistillRun(config, **options)


@dataclass(frozen=True)
class LoadedRun:
    """A run as its newest readable checkpoint has it, after ``update`` updates."""

    config: SDConfig
    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline
    networks: Networks
    schedule: NoiseSchedule
    update: int
    skipped: int


def load_run(
    folder: str | Path, *, device: str = "cpu", show: Callable[[str], None] = print
) -> LoadedRun:
    """Teacher, student and target of a run.

    Raises:
        FileNotFoundError: if the folder holds no run, or one without a checkpoint.
        ValueError: if its configuration or none of its checkpoints can be read.
    """
    from slam_edu.sd.teacher import keep_teacher, load_teacher

    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {CONFIG}; allowed: the folder of a run of `slam-edu distill`"
        )
    config = read_config(folder / CONFIG)
    if not checkpoint_paths(folder):
        raise FileNotFoundError(
            f"{str(folder)!r} has no checkpoint yet; allowed: a run with one (it writes one every "
            f"{config.save_every} updates and when it is stopped)"
        )
    pipeline = load_teacher(config)
    keep_teacher(pipeline, folder / TEACHER, begun=True)
    pipeline.unet.to(device)
    networks = build_networks(config, pipeline.unet, make_autocast(config, torch.device(device)))
    found = load_newest(folder, networks, show)
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler).to(device)
    return LoadedRun(config, pipeline, networks, schedule, found.update, found.skipped)


def keep_config(config: SDConfig, folder: Path) -> None:
    """Write the configuration; from the first checkpoint on it is the same in all that counts.

    Raises:
        ValueError: for a run with other settings, or files that no run wrote.
    """
    config = config.located()
    path, log, begun = folder / CONFIG, folder / LOG, checkpoint_paths(folder)
    if begun and path.exists():
        there = read_config(path).settings()
        if odd := [
            f"{name}: {there[name]!r} there, {value!r} here"
            for name, value in config.settings().items()
            if name not in FREE and there[name] != value
        ]:
            raise ValueError(
                f"{str(folder)!r} holds a run with other settings ({'; '.join(odd)}); allowed: "
                f"the same settings, or another folder (out=...)"
            )
        if there == config.settings():
            return
    others = [] if begun or not path.exists() or _described(path) else [CONFIG]
    if log.is_file():
        with log.open(encoding="utf-8", errors="replace") as file:
            if not ",".join(COLUMNS).startswith(file.readline().strip()):
                others.append(LOG)
    if others:
        raise ValueError(
            f"{str(folder)!r} holds {' and '.join(others)}, not as a run writes it; allowed: "
            f"another folder (out=...), or this one without it"
        )
    save_config(config, path)


def _described(path: Path) -> bool:
    """Whether a file is a configuration that was written, to the letter."""
    try:
        return path.read_text("utf-8") == describe(read_config(path))
    except (OSError, ValueError):
        return False


def grid_prompts(config: SDConfig, batches: Any) -> list[str]:
    """The prompts of the grids: from ``sample_prompts``, the data's captions, or a list."""
    from slam_edu.sd.data import default_prompts, read_prompts

    count = max(1, config.sample_count)
    if config.sample_prompts is not None:
        found = read_prompts(config.sample_prompts)
    elif getattr(batches, "captions", None):
        found = list(dict.fromkeys(batches.captions))
    else:
        found = default_prompts(config.teacher)
    step = max(1, len(found) // count)
    return list(found[: step * count : step])[:count]


def make_accelerator(config: SDConfig, folder: Path) -> Accelerator:
    """What joins the processes of ``accelerate launch``; one process without it.

    Mixed precision is the engine's own, whatever the launcher's settings say: what is to run in
    half precision are the networks' calls alone.
    """
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(config.device, True):
        found = ", ".join(repr(name) for name, yes in {"cpu": True, **there}.items() if yes)
        raise ValueError(f"device is {config.device!r}; allowed on this machine: 'auto', {found}")
    if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
        raise ModuleNotFoundError(
            f"tracker is {config.tracker!r}, which is not installed; install it with `pip install "
            f"{config.tracker}`, or use tracker=none (log.csv is written in any case)",
            name=config.tracker,
        )
    return Accelerator(
        mixed_precision="no",
        cpu=config.device == "cpu",
        log_with=None if config.tracker == "none" else config.tracker,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / TENSORBOARD)),
    )


@contextlib.contextmanager
def signals_kept() -> Iterator[list[int]]:
    """SIGTERM and SIGINT that come while the block runs, instead of their usual effect.

    An update is then finished and saved; a second SIGINT interrupts at once. Outside of the main
    thread, to which signals belong, this does nothing.
    """
    received: list[int] = []

    def receive(number: int, _frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, receive) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

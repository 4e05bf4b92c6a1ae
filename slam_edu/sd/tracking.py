"""What is seen of a run while it runs: the log, grids of samples, TensorBoard and its like."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slam_edu.io import append_row, atomic_path, make_folder, shorten
from slam_edu.sampling import last, sample_pf_ode
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import TextCondition, decode_latents, latent_shape
from slam_edu.sd.config import SDConfig
from slam_edu.sd.engine import BINS, EngineState
from slam_edu.sd.networks import Networks
from slam_edu.sd.sampling import student_latents
from slam_edu.seeding import sample_generator

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator

LOG, SAMPLES = "log.csv", "samples"
BIN_COLUMNS = tuple(f"loss_bin{i}" for i in range(BINS))
COLUMNS = (
    "update", "loss", "grad_norm", "lr", "skipped", "samples_per_second", "seconds", *BIN_COLUMNS,
)  # fmt: skip
#: Steps of the student's rows in a grid, and of the teacher's row.
STUDENT_STEPS, TEACHER_STEPS = (1, 2, 4), 25


class RunLog:
    """Means over ``log_every`` updates, as rows of ``log.csv`` and to a tracker.

    ``seconds`` are of training so far, stops left out; ``loss_bin0`` and so on the mean squared
    error of the samples in each tenth of the timesteps, the cleanest first (empty ones are
    ``nan``). A run that goes on from an update drops the rows after it. An update has ``batch``
    samples; the accelerator's trackers get the rows too.
    """

    def __init__(
        self,
        folder: Path,
        config: SDConfig,
        batch: int,
        update: int = 0,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.path, self.accelerator = folder / LOG, accelerator
        self._every, self._last, self._batch = config.log_every, config.training.updates, batch
        self._before = shorten(self.path, COLUMNS, update) if update else 0.0
        if not update:  # of a run that was stopped before its first checkpoint
            self.path.unlink(missing_ok=True)
        self._start = time.perf_counter()
        self._clear()

    def add(self, state: EngineState, end: bool = False) -> dict[str, float] | None:
        """Count an update in; ``end`` asks for a row now. Returns the row, if one was written."""
        self._sums += torch.tensor([state.loss, state.grad_norm], dtype=torch.float64)
        self._bins += torch.stack((state.bins, state.counts))
        self._updates += 1
        if state.update % self._every and state.update != self._last and not end:
            return None
        now = time.perf_counter()
        loss, norm = (self._sums / self._updates).tolist()
        speed = self._updates * self._batch / max(now - self._since, 1e-9)
        seconds = self._before + now - self._start
        by_bin = (self._bins[0] / self._bins[1]).tolist()
        values = [state.update, loss, norm, state.lr, state.skipped, speed, seconds, *by_bin]
        append_row(self.path, COLUMNS, values)
        row = dict(zip(COLUMNS, values, strict=True))
        if self.accelerator is not None:
            shown = {k: v for k, v in row.items() if k != "update" and v == v}  # no NaN
            self.accelerator.log(shown, step=state.update)
        self._clear()
        return row

    def _clear(self) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._bins = torch.zeros(2, BINS, dtype=torch.float64)
        self._updates, self._since = 0, time.perf_counter()


class Sampler:
    """Grids of samples from fixed noise: the teacher once, the student along the run.

    ``cond`` are the conditions of the grid's prompts and ``empty`` is the empty one, one row; the
    autoencoder is moved to the schedule's device for decoding.
    """

    def __init__(
        self,
        config: SDConfig,
        pipeline: Any,
        networks: Networks,
        schedule: NoiseSchedule,
        cond: TextCondition,
        empty: TextCondition,
    ) -> None:
        self.config, self.schedule, self.vae = config, schedule, pipeline.vae
        self.networks, self.prediction_type = networks, pipeline.scheduler.config.prediction_type
        self.cond, self.empty = cond.to(schedule.device), empty.to(schedule.device)
        shape = latent_shape(pipeline, config.resolution)
        generators = [sample_generator(config.seed, i, 1) for i in range(len(cond))]
        rows = [torch.randn(shape, generator=generator) for generator in generators]
        self.noise = torch.stack(rows).to(schedule.device)

    @torch.no_grad()
    def teacher(self) -> Tensor:
        """The teacher's images, (B, 3, H, W) in [-1, 1], by DDIM with the distilled guidance."""
        w = self.config.distillation.guidance
        states = sample_pf_ode(
            self.networks.teacher, self.noise, self.schedule, TEACHER_STEPS,
            prediction_type=self.prediction_type, cond=self.cond, guidance=w,
            uncond=self.empty.expand(len(self.noise)) if w else None,
        )  # fmt: skip
        return self._decode(last(states))

    @torch.no_grad()
    def student(self, steps: int) -> Tensor:
        """The target's images, (B, 3, H, W) in [-1, 1], at gamma = 1.

        In a pipeline that is guidance_scale 1: the guidance w that was distilled is in the
        weights.
        """
        generator = torch.Generator(self.noise.device).manual_seed(self.config.seed)
        return self._decode(
            student_latents(
                self.networks, self.config, self, self.cond, self.noise, steps, generator=generator
            )
        )

    def _decode(self, latents: Tensor) -> Tensor:
        before = self.vae.device
        self.vae.to(latents.device)
        images = decode_latents(self.vae, latents, batch=4).float().cpu()
        self.vae.to(before)
        return images


def save_grid(rows: Sequence[Tensor], path: Path, least: int = 64) -> np.ndarray:
    """Write rows of images (B, 3, H, W) in [-1, 1] as one PNG file, whose folder is made.

    Small images are enlarged, by a whole factor, to ``least`` pixels of width. Returns the
    picture, (height, width, 3), 0 to 255.
    """
    from PIL import Image

    images = torch.stack([*rows])  # (rows, B, 3, H, W)
    factor = max(1, least // images.shape[-1])
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    images = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0)
    picture = images.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    pixels = ((picture + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)
    return pixels


def show_image(accelerator: Accelerator, name: str, pixels: np.ndarray, update: int) -> None:
    """Hand a picture, (height, width, 3), to the trackers that show pictures."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels[None]}, step=update, **options)

"""What an update of the shipped teacher's distillation costs: ``python -m studies.bench_sd``.

Ours, :class:`slam_edu.sd.engine.Engine` with latents and text states at hand, and once more
encoding them itself, against :class:`OfficialStep`, a plain transcription of the official script's
update. Both take the same batch with the same networks, and train all of the student's weights in
float32, on one thread; the table has the ratio of the medians of their CPU time.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slam_edu.bench import compare
from slam_edu.consistency import boundary_scalings
from slam_edu.embedding import guidance_scale_embedding
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import (
    TextCondition,
    empty_condition,
    encode_images,
    text_condition,
    token_ids,
    unet_output,
)
from slam_edu.sd.config import load_config
from slam_edu.sd.engine import Engine
from slam_edu.sd.networks import build_networks
from slam_edu.seeding import seeded
from slam_edu.shipped import shipped

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class OfficialStep:
    """The official script's update, line by line, in float32 on one process.

    It encodes the images and the prompts, asks the teacher twice, always asks the target, draws
    ``cond_proj`` at random, and averages the weights one parameter at a time. Source:
    MCG-NJU/SPLAM, ``train_splam_distill_sd_wds.py``, the training loop; its settings of N = 50,
    w = 8, EMA .95.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, images: Tensor, prompts: list[str]
    ) -> None:
        from diffusers import UNet2DConditionModel

        self.pipeline, self.images, self.prompts = pipeline, images, prompts
        self.teacher = copy.deepcopy(pipeline.unet).requires_grad_(False)
        config = pipeline.unet.config
        self.unet = seeded(
            lambda: UNet2DConditionModel.from_config(config, time_cond_proj_dim=256), 0
        )
        self.unet.load_state_dict(self.teacher.state_dict(), strict=False)
        self.target = copy.deepcopy(self.unet).requires_grad_(False)
        self.unet.train()
        schedule = NoiseSchedule.stable_diffusion()
        self.alpha, self.sigma = schedule.alpha, schedule.sigma
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=8e-6, weight_decay=0.0)
        self.empty = empty_condition(pipeline).states
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> float:
        """One update; returns its loss."""
        vae, encoder = self.pipeline.vae, self.pipeline.text_encoder
        size, generator = len(self.images), self.generator
        with torch.no_grad():
            # in parts of 32, as vae_encode_batch_size
            parts = [vae.encode(x).latent_dist.sample(generator) for x in self.images.split(32)]
            x0 = torch.cat(parts) * vae.config.scaling_factor
            ids = token_ids(self.pipeline.tokenizer, self.prompts)
            cond = encoder(input_ids=ids).last_hidden_state
        noise = torch.randn(x0.shape, generator=generator)
        index = torch.randint(50, (size,), generator=generator)
        start = index * 20 + 19
        end = (start - 20).clamp(min=0)
        gamma = torch.rand(size, generator=generator)
        levels = (self.alpha[start], self.sigma[start], self.alpha[end], self.sigma[end])
        scalings = (*boundary_scalings(start), *boundary_scalings(end))
        a_t, s_t, a_s, s_s, skip_start, out_start, skip_end, out_end, g = (
            value[:, None, None, None] for value in (*levels, *scalings, gamma)
        )
        x_t = a_t * x0 + s_t * noise
        with torch.no_grad():
            eps_c = unet_output(self.teacher, x_t, start, cond)
            x0_c = (x_t - s_t * eps_c) / a_t
            eps_u = unet_output(self.teacher, x_t, start, self.empty.expand(size, -1, -1))
            x0_u = (x_t - s_t * eps_u) / a_t
            clean, eps = x0_c + 8.0 * (x0_c - x0_u), eps_c + 8.0 * (eps_c - eps_u)
            x_s = a_s * clean + s_s * eps
            a = a_t / a_s
            x_gamma = g * x_t + (1 - g) * a * x_s
            sigma = ((a * s_s) ** 2 + g**2 * (1 - a**2)).sqrt()
        embedded = guidance_scale_embedding(10 - 10 * gamma)
        output = unet_output(self.unet, x_gamma, start, cond, embedded)
        prediction = skip_start * x_gamma + out_start * (x_gamma - sigma * output) / a_t
        with torch.no_grad():
            one = guidance_scale_embedding(torch.zeros(size))
            output = unet_output(self.target, x_s, end, cond, one)
            wanted = skip_end * x_s + out_end * (x_s - s_s * output) / a_s
        loss = ((prediction - wanted).square() + 1e-6).sqrt().sub(1e-3).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            pairs = zip(self.target.parameters(), self.unet.parameters(), strict=True)
            for average, weight in pairs:
                average.mul_(0.95).add_(weight, alpha=0.05)
        return loss.item()


def our_update(problem: OfficialStep, cached: bool) -> Callable[[], object]:
    """One update of the engine, as a function; its batch is encoded before, or at each call."""
    config = load_config("digits", settings=[
        f"batch={len(problem.images)}", "updates=1000000", "guidance=8", "lr=8e-6", "loss=huber",
        "conditioning=gamma", "coupling=markov",
    ])  # fmt: skip
    pipeline = problem.pipeline

    def encode() -> tuple[Tensor, TextCondition]:
        x0 = encode_images(pipeline.vae, problem.images)
        return x0, text_condition(pipeline, problem.prompts)

    made = encode() if cached else None
    batches = SimpleNamespace(empty=empty_condition(pipeline), get=lambda _: made or encode())
    networks = build_networks(config, copy.deepcopy(pipeline.unet))
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    states = Engine(config, schedule, networks, batches).updates()
    return lambda: next(states)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m studies.bench_sd")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=10, help="updates of each side")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = shipped("digits")
    images, prompts = zip(*model.data().__getitems__(range(options.batch)), strict=True)
    official = OfficialStep(model.load_teacher(), torch.stack(images), list(prompts))
    official()  # the first call allocates
    for name, cached in (("latents and text states at hand", True), ("encoding them", False)):
        update = our_update(official, cached)
        update()
        theirs, ours = compare(official, update, options.repeat, number=1)
        print(f"update, {name:<34}{ours / theirs:6.2f} of the official step's time")


if __name__ == "__main__":
    main()

"""What an update costs: ``python -m slam_edu.bench sd``.

Ours, :class:`slam_edu.sd.engine.Engine` with latents and text states at hand, and once more
encoding them itself, against :class:`OfficialStep`, a plain transcription of the official
script's update. Both take the same batch with the same networks, and train all of the student's
weights in float32. The rows are the digits' teacher, and a small random Stable Diffusion with an
autoencoder of f = 8 as the large ones have.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
from slam_edu.sd.memory import LiveBytes
from slam_edu.sd.networks import build_networks
from slam_edu.seeding import seeded

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

#: Largest ratio of our time to the official step's, with what it needs at hand, and without.
TARGET_CACHED, TARGET_ENCODING = 0.6, 0.85


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is distilled.

    Attributes:
        name: for the table.
        pipeline: the teacher's.
        images: one batch, of shape (B, 3, H, W), in [-1, 1].
        prompts: of the batch.
    """

    name: str
    pipeline: StableDiffusionPipeline
    images: Tensor
    prompts: Sequence[str]


def digits_problem(batch: int = 16) -> Problem:
    """The shipped teacher and its first training images."""
    from slam_edu.digits import CaptionedDigits, load_pipeline

    drawn = CaptionedDigits("train").batch(range(batch))
    return Problem(
        name="digits", pipeline=load_pipeline(), images=drawn.images, prompts=drawn.captions
    )


def random_problem(batch: int = 8) -> Problem:
    """A random Stable Diffusion: 64 x 64 pixels, f = 8, 0.8 million parameters in the UNet."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from studies.digits.train.networks import (
        TextToLatents,
        build_pipeline,
        build_text_encoder,
        build_tokenizer,
    )

    unet = seeded(
        lambda: UNet2DConditionModel(
            sample_size=8, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
            attention_head_dim=8, cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        0,
    )  # fmt: skip
    vae = seeded(
        lambda: AutoencoderKL(
            latent_channels=4, block_out_channels=(16,) * 4, norm_num_groups=8, sample_size=64,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        0,
    )  # fmt: skip
    tokenizer = build_tokenizer()
    pipeline = build_pipeline(
        vae.eval(), TextToLatents(unet, build_text_encoder(tokenizer, 0, 32)).eval()
    )
    images = torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Problem(
        name="random SD, f = 8", pipeline=pipeline, images=images, prompts=["a red two"] * batch
    )


class OfficialStep:
    """The official script's update, line by line, in float32 on one process.

    It encodes the images and the prompts, asks the teacher twice, always asks the target, draws
    ``cond_proj`` at random, and averages the weights one parameter at a time. Source:
    MCG-NJU/SPLAM, ``train_splam_distill_sd_wds.py``, the training loop; its settings of N = 50,
    w = 8, EMA .95.

    Args:
        problem: what is distilled.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        pipeline = problem.pipeline
        self.teacher = copy.deepcopy(pipeline.unet).requires_grad_(False)
        from diffusers import UNet2DConditionModel

        config = pipeline.unet.config
        self.unet = seeded(
            lambda: UNet2DConditionModel.from_config(config, time_cond_proj_dim=256), 0
        )
        self.unet.load_state_dict(self.teacher.state_dict(), strict=False)
        self.target = copy.deepcopy(self.unet).requires_grad_(False)
        self.unet.train()
        abar = NoiseSchedule.stable_diffusion()
        self.alpha, self.sigma = abar.alpha, abar.sigma
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=8e-6, weight_decay=0.0)
        self.empty = empty_condition(pipeline).states
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> float:
        """One update; returns its loss."""
        vae, encoder = self.problem.pipeline.vae, self.problem.pipeline.text_encoder
        size, generator = len(self.problem.images), self.generator
        with torch.no_grad():
            # in parts of 32, as vae_encode_batch_size
            parts = self.problem.images.split(32)
            latents = [vae.encode(x).latent_dist.sample(generator) for x in parts]
            x0 = torch.cat(latents) * vae.config.scaling_factor
            ids = token_ids(self.problem.pipeline.tokenizer, self.problem.prompts)
            cond = encoder(input_ids=ids).last_hidden_state
        noise = torch.randn(x0.shape, generator=generator)
        index = torch.randint(50, (size,), generator=generator)
        start = index * 20 + 19
        end = (start - 20).clamp(min=0)
        gamma = torch.rand(size, generator=generator)
        skip_start, out_start = self._scalings(start)
        skip_end, out_end = self._scalings(end)
        a_t, s_t = self.alpha[start][:, None, None, None], self.sigma[start][:, None, None, None]
        a_s, s_s = self.alpha[end][:, None, None, None], self.sigma[end][:, None, None, None]
        x_t = a_t * x0 + s_t * noise
        g = gamma[:, None, None, None]
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
        told = guidance_scale_embedding(10 - 10 * gamma)
        output = unet_output(self.unet, x_gamma, start, cond, told)
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

    def _scalings(self, t: Tensor) -> list[Tensor]:
        return [c[:, None, None, None] for c in boundary_scalings(t)]


class _Fixed:
    """One batch, again and again: encoded before, or at each call."""

    def __init__(self, problem: Problem, cached: bool) -> None:
        self.problem, self.cached = problem, cached
        self.empty = empty_condition(problem.pipeline)
        self._made = self._encode()

    def get(self, numbers: list[int]) -> tuple[Tensor, TextCondition]:
        return self._made if self.cached else self._encode()

    def _encode(self) -> tuple[Tensor, TextCondition]:
        pipeline = self.problem.pipeline
        x0 = encode_images(pipeline.vae, self.problem.images)
        return x0, text_condition(pipeline, self.problem.prompts)


def our_update(problem: Problem, cached: bool) -> Callable[[], object]:
    """One update of the engine, as a function.

    Args:
        problem: what is distilled.
        cached: latents and text states are at hand.
    """
    settings = [
        f"batch={len(problem.images)}", "updates=1000000", "guidance=8", "lr=8e-6", "loss=huber",
        "conditioning=gamma", "coupling=markov",
    ]  # fmt: skip
    config = load_config("digits", settings=settings)
    networks = build_networks(config, copy.deepcopy(problem.pipeline.unet))
    schedule = NoiseSchedule.from_scheduler(problem.pipeline.scheduler)
    states = Engine(config, schedule, networks, _Fixed(problem, cached)).updates()
    return lambda: next(states)


def peak_bytes(update: Callable[[], object]) -> int:
    """Most bytes of tensors that an update makes and that are alive at once.

    What was there before it, weights and the optimiser's state among them, is not counted.

    Args:
        update: has run before.
    """
    with LiveBytes() as live:
        update()
    return sum(live.peak.values())


def parts(problem: Problem) -> Iterator[tuple[str, Callable[[], object]]]:
    """What an update consists of, as functions by name, for a profile of where its time goes.

    Args:
        problem: what is distilled.
    """
    pipeline = problem.pipeline
    config = load_config("digits", settings=["conditioning=gamma", "coupling=markov"])
    networks = build_networks(config, copy.deepcopy(pipeline.unet))
    x, cond = _Fixed(problem, True).get([])
    t = torch.randint(1000, x.shape[:1], generator=torch.Generator().manual_seed(0))
    one = torch.ones(len(x))
    trained = list(networks.trained.values())
    yield "encode images", lambda: encode_images(pipeline.vae, problem.images)
    yield "encode prompts", lambda: text_condition(pipeline, problem.prompts)
    yield "teacher, one call", lambda: networks.teacher(x, t, cond)
    yield "target, one call", lambda: networks.target(x, t, cond, one)

    def student() -> None:
        networks.student(x, t, cond, one).square().mean().backward()

    yield "student, forward and backward", student
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    yield "AdamW", optimizer.step

    from slam_edu.ema import average_tensors

    detached = {k: p.detach() for k, p in networks.trained.items()}
    yield "moving average", lambda: average_tensors(networks.average, detached, 0.95)

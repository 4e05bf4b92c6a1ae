"""Checks of lesson 06: the scaling of latents, guided noise, and a text-to-image sampler."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from slam_course.checks import (
    Wrong,
    call,
    compare,
    exercise,
    known_mistakes,
    refuse,
    require,
    require_close,
    require_function,
    require_shape,
    unchanged,
    worked_out,
)
from slam_edu.prediction import network_predictor
from slam_edu.sampling import spaced_timesteps
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.solver import pf_ode_trajectory

KNOWN = known_mistakes(__file__)


def _agree(answer: Tensor, other: Tensor) -> bool:
    return torch.allclose(answer.to(other), other, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------- exercise 1


class _Posterior:
    """A normal distribution of latents, as diffusers' autoencoders return it."""

    def __init__(self, mean: Tensor) -> None:
        self.mean, self.std = mean, torch.full_like(mean, 0.05)

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.std * noise


class _Autoencoder:
    """Stands in for an ``AutoencoderKL``: four channels, half the height and width."""

    config = SimpleNamespace(scaling_factor=0.37)

    def encode(self, images: Tensor) -> SimpleNamespace:
        small = torch.nn.functional.avg_pool2d(images, 2)
        mean = 2.1 * torch.cat([small, small.mean(1, keepdim=True)], 1) + 0.3
        return SimpleNamespace(latent_dist=_Posterior(mean))

    def decode(self, latents: Tensor) -> SimpleNamespace:
        small = (latents[:, :3] - 0.3) / 2.1
        return SimpleNamespace(sample=small.repeat_interleave(2, 2).repeat_interleave(2, 3))


@exercise("Exercise 1, latents and their scale")
def scaling(
    encode: Callable[[object, Tensor], Tensor], decode: Callable[[object, Tensor], Tensor]
) -> str:
    """``encode(vae, images) -> x0`` and ``decode(vae, x0) -> images``."""
    require_function(encode)
    require_function(decode)
    vae = _Autoencoder()
    scale = vae.config.scaling_factor
    generator = torch.Generator().manual_seed(61)
    # Few and blocky, so that this autoencoder loses nothing and mistakes are exact.
    images = (2 * torch.rand(3, 3, 4, 4, generator=generator) - 1) * 0.5
    images = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    changes = "encode changes the images themselves; make a new tensor."
    x0 = unchanged(changes, encode, vae, images)
    if isinstance(x0, _Posterior):
        raise Wrong("encode returns a distribution; take its mean.")
    if isinstance(x0, SimpleNamespace):
        raise Wrong("encode returns the autoencoder's whole answer; the distribution is in it as "
                    "latent_dist.")  # fmt: skip
    x0 = require_shape(x0, (3, 4, 4, 4), "What encode returns")
    mean = vae.encode(images).latent_dist.mean
    refuse(x0, worked_out(KNOWN["encode"], m=mean, s=scale))
    require(
        _agree(x0, encode(vae, images)),
        "Two calls of encode with the same image gave two latents, so it draws from the "
        "distribution. Take its mean.",
    )
    require_close(
        x0,
        mean * scale,
        "The shape of the latents fits, their values do not. Two lines are enough: the mean of "
        "the autoencoder's distribution, and one operation with the scaling factor.",
    )
    changes = "decode changes the latents themselves; make a new tensor."
    decoded = unchanged(changes, decode, vae, x0)
    if isinstance(decoded, SimpleNamespace):
        raise Wrong("decode returns the autoencoder's whole answer; the images are in it as "
                    "sample.")  # fmt: skip
    decoded = require_shape(decoded, (3, 3, 8, 8), "What decode returns")
    mistakes = worked_out(KNOWN["decode"], of=lambda y: vae.decode(y).sample, x=x0, s=scale)
    mistakes += [(wrong.clamp(-1, 1), sentence) for wrong, sentence in mistakes]
    compare(
        decoded,
        images,
        mistakes,
        "The shape of the images fits, their values do not: decode should give back what encode "
        "was given.",
    )
    return "Latents of unit variance for the schedule, the autoencoder's own scale for decoding."


# -------------------------------------------------------------------- exercise 2


class _Network:
    """``network(x, t, cond) -> eps`` for latents, which counts the latents it is shown."""

    def __init__(self) -> None:
        self.rows, self.times = 0, []

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=x.dtype)
        if len(cond) != len(x) or (t.ndim and len(t) not in (1, len(x))):
            raise ValueError(
                f"the network was given {len(x)} latents with {len(cond)} conditions and "
                f"timesteps of shape {tuple(t.shape)}; allowed: one each"
            )
        self.rows += len(x)
        self.times.append(float(t.max()))
        words = cond.mean((1, 2))[:, None, None, None]
        noise = 1 + 0.3 * (t.reshape(-1, 1, 1, 1) / 1000)
        return torch.tanh(0.4 * x * noise + words) - 0.2 * words * x.roll(1, 1)


def _drawn(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, text states of prompts and of the empty prompt, both (count, 5, 6)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, 8, 8, generator=generator, dtype=torch.float64)
    cond = torch.randn(count, 5, 6, generator=generator, dtype=torch.float64) + 0.4
    uncond = torch.randn(1, 5, 6, generator=generator, dtype=torch.float64) - 0.4
    return x, cond, uncond.expand(count, -1, -1).clone()


@exercise("Exercise 2, guided noise")
def guided(answer: Callable[..., Tensor]) -> str:
    """``answer(network, x, t, cond, uncond, guidance_scale) -> eps`` of ``x``'s shape."""
    x, cond, uncond = _drawn(3, 62)
    t = torch.tensor([700, 700, 700])
    network, scale = _Network(), 4.0
    eps = call(
        answer, (3, 4, 8, 8), network=network, x=x, t=t, cond=cond, uncond=uncond,
        guidance_scale=scale,
    )  # fmt: skip
    rows = network.rows
    e_c, e_u = network(x, t, cond), network(x, t, uncond)
    compare(
        eps,
        e_c + (scale - 1) * (e_c - e_u),
        worked_out(KNOWN["guided"], c=e_c, u=e_u, s=scale),
        "The shape fits, the values do not. Two predictions at the same x and t, one for cond, "
        "one for uncond; then the formula with w.",
    )
    require(
        rows == 6,
        f"The values are right, but the network was shown {rows} latents; for 3 latents 6 are "
        f"enough, each once with its prompt and once with the empty one.",
    )
    network = _Network()
    alone = answer(network, x, t, cond, uncond, 1.0)
    require(
        _agree(require_shape(alone, (3, 4, 8, 8), "At guidance_scale 1, what it returns"), e_c),
        "Right at guidance_scale 4; at 1 it should be eps_c alone.",
    )
    require(
        network.rows == 3,
        "The values are right, but at guidance_scale 1 the answer for the empty prompt is "
        "computed and then multiplied by 0: half of the work is for nothing. Do not ask for it "
        "there.",
    )
    return "Two predictions, w = guidance_scale - 1, and half the work where w is 0."


# -------------------------------------------------------------------- exercise 3


@exercise("Exercise 3, from noise and words to a latent")
def sampler(answer: Callable[..., Tensor]) -> str:
    """``answer(network, x, schedule, steps, cond, uncond, guidance_scale) -> latents``."""
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    x, cond, uncond = _drawn(2, 63)
    network, steps, scale = _Network(), 4, 3.0
    end = call(
        answer, (2, 4, 8, 8), network=network, x=x, schedule=schedule, steps=steps, cond=cond,
        uncond=uncond, guidance_scale=scale,
    )  # fmt: skip
    rows, times = network.rows, network.times

    def walk(
        n: int = steps, s: float = scale, cond: Tensor = cond, spacing: str = "trailing",
        stop: int = 0, end: int | None = None,
    ) -> Tensor:  # fmt: skip
        """The right latents, or with one thing wrong."""
        levels = schedule(spaced_timesteps(n, schedule, spacing))
        last = Level.clean(levels.alpha[:1]) if end is None else schedule(torch.tensor([end]))
        predictor = network_predictor(
            _Network(), schedule, cond=cond, uncond=uncond, guidance=s - 1
        )
        return pf_ode_trajectory(predictor, x, Level.cat([levels, last]))[n - stop]

    refuse(end, worked_out(KNOWN["sampler"], x=x, s=scale, walk=walk, uncond=uncond))
    if not _agree(end, walk()):
        again = answer(_Network(), x, schedule, steps, cond, uncond, scale)
        require(
            _agree(again, end),
            "Two calls with the same noise gave two answers, so fresh noise is drawn. DDIM draws "
            "none: the step ends with the predicted noise.",
        )
        asked = [float(t) for t in spaced_timesteps(steps, schedule)]
        met = sorted(set(times), reverse=True)
        if met != asked:
            shown = ", ".join(f"{t:g}" for t in met) or "none"
            raise Wrong(
                f"The network was called at t = {shown}; the timesteps of the stub are "
                f"{', '.join(f'{t:g}' for t in asked)}."
            )
        raise Wrong(
            "The network is called at the right timesteps, the values are wrong. In each step: "
            "guided noise at x and t, the guess of the clean latent, and the same noise again at "
            "the next level. Print x after the first step and compare it with a step by hand."
        )
    require(
        rows == 2 * 2 * steps,
        f"The values are right, but the network was shown {rows} latents; {2 * 2 * steps} are "
        f"enough: in each step each latent twice.",
    )
    return "The whole of Stable Diffusion's sampling: what is left is to decode."

"""Checks of lesson 06: the scaling of latents, guided noise, and a text-to-image sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL  # here: the first import may take longer than a check may
from torch import Tensor

from slam_course.checks import Asked, exercise, hold, known_mistakes, worked_out
from slam_edu.prediction import network_predictor
from slam_edu.sampling import spaced_timesteps
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.solver import pf_ode_trajectory

KNOWN = known_mistakes(__file__)

# -------------------------------------------------------------------- exercise 1


def _autoencoder(scale: float) -> AutoencoderKL:
    """One of diffusers' own, tiny and random: four channels, half the height and width."""
    torch.manual_seed(61)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=8, scaling_factor=scale,
    )  # fmt: skip
    vae.requires_grad_(False).decoder.conv_out.weight *= 0.2  # images within [-1, 1]
    return vae.eval()


@exercise("Exercise 1, latents and their scale")
def scaling(
    encode: Callable[[object, Tensor], Tensor], decode: Callable[[object, Tensor], Tensor]
) -> str:
    """``encode(vae, images) -> x0`` and ``decode(vae, x0) -> images``."""

    def encoded(vae: AutoencoderKL, images: Tensor) -> Tensor:
        return vae.encode(images).latent_dist.mean * vae.config.scaling_factor

    def decoded(vae: AutoencoderKL, x0: Tensor) -> Tensor:
        return vae.decode(x0 / vae.config.scaling_factor).sample

    for scale, count in ((0.37, 3), (1.9, 2)):
        vae = _autoencoder(scale)
        images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(61)) - 0.5
        x0 = hold(
            encode, encoded, {"vae": vae, "images": images},
            worked_out(KNOWN["encode"], m=vae.encode(images).latent_dist.mean, s=scale),
            "The shape of the latents fits, their values do not. Two lines are enough: the mean "
            "of the autoencoder's distribution, and one operation with the scaling factor.",
            what="What encode returns", gradient=(),
        )  # fmt: skip
        hold(
            decode, decoded, {"vae": vae, "x0": x0},
            worked_out(KNOWN["decode"], of=lambda y, v=vae: v.decode(y).sample, x=x0, s=scale),
            "The shape of the images fits, their values do not: decode should give back what "
            "encode was given.",
            what="What decode returns", gradient=(),
        )  # fmt: skip
    return "Latents of unit variance for the schedule, the autoencoder's own scale for decoding."


# -------------------------------------------------------------------- exercise 2


def _noise_of(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """Stands in for a network of latents, which words and timesteps matter to."""
    t = torch.as_tensor(t, dtype=x.dtype)
    if len(cond) != len(x) or t.ndim != 1 or len(t) not in (1, len(x)):
        raise ValueError(
            f"the network was given {len(x)} latents with {len(cond)} conditions and "
            f"timesteps of shape {tuple(t.shape)}; allowed: one each"
        )
    words = cond.mean((1, 2))[:, None, None, None]
    noise = 1 + 0.3 * (t.reshape(-1, 1, 1, 1) / 1000)
    return torch.tanh(0.4 * x * noise + words) - 0.2 * words * x.roll(1, 1)


def _drawn(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, text states of prompts and of the empty prompt, both (count, 5, 6)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, 8, 8, generator=generator, dtype=torch.float64)
    cond = torch.randn(count, 5, 6, generator=generator, dtype=torch.float64) + 0.4
    uncond = torch.randn(count, 5, 6, generator=generator, dtype=torch.float64) - 0.4
    return x, cond, uncond


@exercise("Exercise 2, guided noise")
def guided(answer: Callable[..., Tensor]) -> str:
    """``answer(network, x, t, cond, uncond, guidance_scale) -> eps`` of ``x``'s shape."""

    def right(
        network: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        cond: Tensor,
        uncond: Tensor,
        g: float,
    ) -> Tensor:
        eps = network(x, t, cond)
        return eps if g == 1 else eps + (g - 1) * (eps - network(x, t, uncond))

    def at(scale: float, *times: int) -> dict[str, Any]:
        (x, cond, uncond), t = _drawn(len(times), 62), torch.tensor(times)
        found = {"network": Asked(_noise_of), "x": x, "t": t, "cond": cond, "uncond": uncond}
        return {**found, "guidance_scale": scale}

    inputs = at(4.0, 700, 300, 40)
    network, x, t, cond, uncond, scale = inputs.values()
    hold(
        answer, right, inputs,
        worked_out(
            KNOWN["guided"], c=network(x, t, cond), u=network(x, t, uncond), s=scale, n=network,
            x=x, t=t, cond=cond, uncond=uncond,
        ),
        "The shape fits, the values do not. Two predictions at the same x and t, one for cond, "
        "one for uncond; then the formula with w.",
        waste="Each latent counts once with its prompt and once with the empty one.",
        gradient=("x",),
    )  # fmt: skip
    for case in ((7.5, 999), (1.5, 10, 20), (1.0, 700, 300)):
        hold(
            answer, right, at(*case), (),
            f"Right at guidance_scale 4; at {case[0]:g} it should be eps_c and {case[0] - 1:g} "
            f"times the difference.",
            waste="At guidance_scale 1 the answer for the empty prompt is multiplied by 0: ask "
            "for the prompt's alone, and once.",
            gradient=("x",),
        )  # fmt: skip
    return "Two predictions, w = guidance_scale - 1, and half the work where w is 0."


# -------------------------------------------------------------------- exercise 3


@exercise("Exercise 3, from noise and words to a latent")
def sampler(answer: Callable[..., Tensor]) -> str:
    """``answer(network, x, schedule, steps, cond, uncond, guidance_scale) -> latents``."""

    def walk(
        n: int | None = None, s: float | None = None, cond: Tensor | None = None,
        spacing: str = "trailing", stop: int = 0, end: int | None = None,
    ) -> Tensor:  # fmt: skip
        """The right latents of the inputs, or with one thing wrong."""
        levels = schedule(spaced_timesteps(n or steps, schedule, spacing))
        last = Level.clean(levels.alpha[:1]) if end is None else schedule(torch.tensor([end]))
        predictor = network_predictor(
            network, schedule, cond=inputs["cond"] if cond is None else cond, uncond=uncond,
            guidance=(s or scale) - 1,
        )  # fmt: skip
        return pf_ode_trajectory(predictor, x, Level.cat([levels, last]))[(n or steps) - stop]

    def otherwise() -> str:
        wanted = spaced_timesteps(steps, schedule).tolist()
        if (met := network.met()) != wanted:
            return f"The network was called at t = {met}; the stub's timesteps are {wanted}."
        return (
            "The network is called at the right timesteps, the values are wrong. In each step: "
            "guided noise at x and t, the guess of the clean latent, and the same noise again at "
            "the next level. Print x after the first step and compare it with a step by hand."
        )

    usual = NoiseSchedule.stable_diffusion(torch.float64)
    other = NoiseSchedule.from_alphas_cumprod(torch.linspace(0.999, 0.02, 1000), torch.float64)
    known = KNOWN["sampler"]
    for schedule, steps, scale, count in (
        (usual, 4, 3.0, 2), (other, 3, 7.5, 1), (usual, 1, 2.0, 3), (other, 6, 1.0, 2),
    ):  # fmt: skip
        x, cond, uncond = _drawn(count, 63)
        network = Asked(_noise_of)
        inputs = {
            "network": network, "x": x, "schedule": schedule, "steps": steps, "cond": cond,
            "uncond": uncond, "guidance_scale": scale,
        }  # fmt: skip
        mistakes = worked_out(known, x=x, s=scale, walk=walk, uncond=uncond)
        # A sampler may be under no_grad.
        hold(
            answer, lambda *_: walk(), inputs, mistakes, otherwise, gradient=(),
            waste="In each step each latent counts twice, and once where guidance_scale is 1.",
        )  # fmt: skip
        known = ()  # with fewer steps or no guidance, some of them are right
    return "The whole of Stable Diffusion's sampling: what is left is to decode."

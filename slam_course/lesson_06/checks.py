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
    refuse,
    require,
    require_function,
    require_shape,
)
from slam_edu.prediction import Prediction
from slam_edu.sampling import last, sample_ddim, spaced_timesteps
from slam_edu.schedule import NoiseSchedule
from slam_edu.solver import ddim_step

_CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def _agree(answer: Tensor, other: Tensor) -> bool:
    return torch.allclose(answer.to(other), other, **_CLOSE)


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

    def __init__(self) -> None:
        self.config = SimpleNamespace(scaling_factor=0.37)

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
    before = images.clone()
    x0 = encode(vae, images)
    if isinstance(x0, _Posterior):
        raise Wrong("encode returns a distribution; take its mean.")
    if isinstance(x0, SimpleNamespace):
        raise Wrong("encode returns the autoencoder's whole answer; the distribution is in it as "
                    "latent_dist.")  # fmt: skip
    x0 = require_shape(x0, (3, 4, 4, 4), "What encode returns")
    require(
        torch.equal(images, before), "encode changes the images themselves; make a new tensor."
    )
    mean = vae.encode(images).latent_dist.mean
    refuse(
        x0,
        (
            (mean, "encode returns the autoencoder's own latent. Its standard deviation is not 1: "
             "the scaling factor is missing."),
            (mean / scale, "encode divides by the scaling factor. It is 1 over the standard "
             "deviation of the latents: which operation makes that 1?"),
            (mean * scale**2, "encode applies the scaling factor twice."),
            ((mean - mean.mean()) / mean.std(), "encode normalises this batch by its own mean and "
             "deviation; the next batch would get other numbers, and decode could not undo it. "
             "Use the constant vae.config.scaling_factor."),
            (mean / mean.std(), "encode divides by the deviation of this batch; the next one "
             "would get another number. Use the constant vae.config.scaling_factor."),
        ),
        **_CLOSE,
    )  # fmt: skip
    again = encode(vae, images)
    require(
        _agree(x0, again),
        "Two calls of encode with the same image gave two latents, so it draws from the "
        "distribution. Take its mean.",
    )
    require(
        _agree(x0, mean * scale),
        "The shape of the latents fits, their values do not. Two lines are enough: the mean of "
        "the autoencoder's distribution, and one operation with the scaling factor.",
    )
    kept = x0.clone()
    decoded = decode(vae, x0)
    if isinstance(decoded, SimpleNamespace):
        raise Wrong("decode returns the autoencoder's whole answer; the images are in it as "
                    "sample.")  # fmt: skip
    decoded = require_shape(decoded, (3, 3, 8, 8), "What decode returns")
    require(torch.equal(x0, kept), "decode changes the latents themselves; make a new tensor.")

    def of(latents: Tensor) -> Tensor:
        return vae.decode(latents).sample

    tried = (
        (x0, "decode hands the scaled latents to the autoencoder, which knows them unscaled "
         "only."),
        (x0 * scale, "decode multiplies by the scaling factor once more; it should undo what "
         "encode did."),
        (x0 / scale**2, "decode divides by the scaling factor twice."),
    )  # fmt: skip
    for latents, sentence in tried:
        for wrong in (of(latents), of(latents).clamp(-1, 1)):
            refuse(decoded, ((wrong, sentence),), **_CLOSE)
    refuse(
        decoded,
        (
            (images / 2 + 0.5, "decode returns images in [0, 1]; those of this lesson lie in "
             "[-1, 1]."),
            (of(x0 / scale) / scale, "decode rescales the images, too. Only latents have a scale "
             "to undo."),
            (of(x0) / scale, "decode divides after the autoencoder. The scale belongs to the "
             "latents: divide before."),
        ),
        **_CLOSE,
    )  # fmt: skip
    require(
        _agree(decoded, images),
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


def _conditions(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Text states of prompts and of the empty prompt, both (count, 5, 6)."""
    cond = torch.randn(count, 5, 6, generator=generator, dtype=torch.float64) + 0.4
    uncond = torch.randn(1, 5, 6, generator=generator, dtype=torch.float64) - 0.4
    return cond, uncond.expand(count, -1, -1).clone()


@exercise("Exercise 2, guided noise")
def guided(answer: Callable[..., Tensor]) -> str:
    """``answer(network, x, t, cond, uncond, guidance_scale) -> eps`` of ``x``'s shape."""
    generator = torch.Generator().manual_seed(62)
    x = torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64)
    cond, uncond = _conditions(3, generator)
    t = torch.tensor([700, 700, 700])
    network, scale = _Network(), 4.0
    eps = call(
        answer, (3, 4, 8, 8), network=network, x=x, t=t, cond=cond, uncond=uncond,
        guidance_scale=scale,
    )  # fmt: skip
    rows = network.rows
    e_c, e_u = network(x, t, cond), network(x, t, uncond)
    w = scale - 1
    off_by_one = (
        "One too much: you use the number as w. diffusers' guidance_scale is another one, see the "
        "line above the exercise."
    )
    compare(
        eps,
        e_c + w * (e_c - e_u),
        (
            (e_c + scale * (e_c - e_u), off_by_one),
            (e_u + w * (e_c - e_u), "One too little: with w = 0 this is eps_u, and it should be "
             "eps_c. From eps_u on the difference counts w + 1 times, from eps_c on w times."),
            (e_c + w * (e_u - e_c), "The difference has the wrong sign: this leads away from the "
             "prompt."),
            (e_u + w * (e_u - e_c), "eps_c and eps_u are in each other's place: this leads away "
             "from the prompt. If you made one call for both, in which order did they go in?"),
            (e_u + scale * (e_u - e_c), "eps_c and eps_u are in each other's place: this leads "
             "away from the prompt."),
            (e_c, "This is eps_c: the empty prompt has no say, so there is no guidance."),
            (e_u, "This is eps_u, the noise for the empty prompt."),
            (w * (e_c - e_u), "This is the change that guidance makes; add it to eps_c."),
            (scale * (e_c - e_u), "This is a multiple of the difference alone; start from one of "
             "the two predictions."),
            ((e_c + e_u) / 2, "This is the mean of the two; guidance goes beyond eps_c, not "
             "between the two."),
            (e_u + (e_c - e_u) / scale, "You divide by guidance_scale: that stays between the two "
             "predictions. Guidance goes beyond eps_c."),
            (scale * e_c - e_u, "The two factors should add up to 1, or a prediction on which "
             "both agree would be changed."),
            (scale * e_c, "eps_c is enlarged; the empty prompt has no say."),
        ),
        "The shape fits, the values do not. Two predictions at the same x and t, one for cond, "
        "one for uncond; then the formula with w.",
        **_CLOSE,
    )  # fmt: skip
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
    generator = torch.Generator().manual_seed(63)
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    x = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    cond, uncond = _conditions(2, generator)
    network, steps, scale = _Network(), 4, 3.0
    end = call(
        answer, (2, 4, 8, 8), network=network, x=x, schedule=schedule, steps=steps, cond=cond,
        uncond=uncond, guidance_scale=scale,
    )  # fmt: skip
    rows, times = network.rows, network.times

    def of(n: int = steps, guidance: float = scale - 1, spacing: str = "trailing") -> Tensor:
        return last(
            sample_ddim(
                _Network(), x, schedule, n, cond=cond, uncond=uncond, guidance=guidance,
                spacing=spacing,
            )
        )  # fmt: skip

    plain, empty = _Network(), _Network()

    def walk(*, skip_last: bool = False, to: str = "clean") -> Tensor:
        """The right sampler with one thing wrong."""
        t = spaced_timesteps(steps, schedule)
        here, state = schedule(t), x
        for i in range(steps - skip_last):
            at = t[i].expand(2)
            e_c, e_u = plain(state, at, cond), empty(state, at, uncond)
            eps = e_c + (scale - 1) * (e_c - e_u)
            prediction = Prediction((state - here[i].sigma * eps) / here[i].alpha, eps)
            final = i + 1 == steps
            if final and to == "t = 0":
                return ddim_step(prediction, schedule(0))
            state = prediction.x0 if final else ddim_step(prediction, here[i + 1])
        return state

    mistakes = (
        (x, "This is the noise: no step has been taken."),
        (of(guidance=0.0), "There is no guidance in it: these are the latents for w = 0."),
        (of(guidance=scale), "Guidance is one too much: guidance_scale is w + 1."),
        (last(sample_ddim(_Network(), x, schedule, steps, cond=uncond)), "These are the latents "
         "of the empty prompt: cond has no say."),
        (of(1), "This goes from t = 999 to clean data in one step."),
        (of(spacing="leading"), "The timesteps are not those of the stub: yours start below 999."),
        (of(spacing="linspace"), "The timesteps are not those of the stub: yours end at 0."),
        (walk(skip_last=True), "The last step is missing: x is still at the level of the last "
         "timestep, with its noise in it. From there one more step leads to clean data."),
        (walk(to="t = 0"), "The last step ends at t = 0, where a little noise is left. It should "
         "end at the clean level, alpha = 1 and sigma = 0."),
    )  # fmt: skip
    refuse(end, mistakes, **_CLOSE)
    right = of()
    if not _agree(end, right):
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

"""The checks of lesson 06: right answers in several styles pass, plausible mistakes are named."""

from itertools import pairwise

import pytest
import torch

from slam_course.lesson_06 import checks as checks
from slam_edu import Level, ddim_step, spaced_timesteps
from slam_edu.prediction import Prediction, network_predictor
from slam_edu.sampling import last, sample_ddim
from slam_edu.solver import pf_ode_trajectory

# -------------------------------------------------------------------- exercise 1


def encode(vae, images):
    return vae.encode(images).latent_dist.mean * vae.config.scaling_factor


def decode(vae, x0):
    return vae.decode(x0 / vae.config.scaling_factor).sample


def encode_by_mode(vae, images):
    s = vae.config.scaling_factor
    return s * vae.encode(images).latent_dist.mode()


def decode_and_clamp(vae, x0):
    unscaled = x0 * (1 / vae.config.scaling_factor)
    images = vae.decode(unscaled).sample
    return images.clamp(-1, 1)


@pytest.mark.parametrize("right", [(encode, decode), (encode_by_mode, decode_and_clamp)])
def test_right_scalings(right):
    verdict = checks.scaling(*right)
    assert verdict.passed, verdict.message


def encodes(change):
    """A wrong encode from the mean and the factor."""
    return lambda vae, images: change(
        vae.encode(images).latent_dist.mean, vae.config.scaling_factor
    )


def draws(vae, images):
    return vae.encode(images).latent_dist.sample() * vae.config.scaling_factor


def encode_in_place(vae, images):
    images *= 1.0001
    return encode(vae, images)


def decode_in_place(vae, x0):
    x0 /= vae.config.scaling_factor
    return vae.decode(x0).sample


WRONG_SCALINGS = {
    "no factor": (encodes(lambda m, s: m), decode, "the scaling factor is missing"),
    "divides": (encodes(lambda m, s: m / s), decode, "encode divides by the scaling factor"),
    "twice": (encodes(lambda m, s: m * s**2), decode, "applies the scaling factor twice"),
    "own mean": (
        encodes(lambda m, s: (m - m.mean()) / m.std()), decode, "normalises this batch",
    ),
    "own deviation": (encodes(lambda m, s: m / m.std()), decode, "deviation of this batch"),
    "SD 1.5's": (encodes(lambda m, s: m * 0.18215), decode, "shape of the latents fits"),
    "draws": (draws, decode, "it draws from the distribution"),
    "distribution": (lambda vae, x: vae.encode(x).latent_dist, decode, "take its mean"),
    "whole answer": (lambda vae, x: vae.encode(x), decode, "as latent_dist"),
    "images": (lambda vae, x: x, decode, "has shape (3, 3, 8, 8)"),
    "in place": (encode_in_place, decode, "changes the images"),
    "no way back": (encode, lambda vae, x: vae.decode(x).sample, "hands the scaled latents"),
    "no way back, clamped": (
        encode, lambda vae, x: vae.decode(x).sample.clamp(-1, 1), "hands the scaled latents",
    ),
    "multiplies": (encode, lambda vae, x: vae.decode(encode_by(vae, x)).sample, "once more"),
    "divides twice": (
        encode, lambda vae, x: vae.decode(x / vae.config.scaling_factor**2).sample, "twice",
    ),
    "divides after": (
        encode, lambda vae, x: vae.decode(x).sample / vae.config.scaling_factor, "divide before",
    ),
    "rescales images": (
        encode, lambda vae, x: decode(vae, x) / vae.config.scaling_factor, "Only latents have",
    ),
    "zero to one": (encode, lambda vae, x: decode(vae, x) / 2 + 0.5, "images in [0, 1]"),
    "latents returned": (encode, lambda vae, x: x, "has shape (3, 4, 4, 4)"),
    "decoder's answer": (
        encode, lambda vae, x: vae.decode(x / vae.config.scaling_factor), "in it as sample",
    ),
    "other values": (encode, lambda vae, x: 0.9 * decode(vae, x), "give back what encode"),
    "decodes in place": (encode, decode_in_place, "changes the latents"),
    "one stub": (encode, lambda vae, x: ..., "no answer yet"),
    "stubs": (lambda vae, x: ..., lambda vae, x: ..., "no answer yet"),
    "no function": (encode, 3.0, "give it your function"),
}  # fmt: skip


def encode_by(vae, x):
    return x * vae.config.scaling_factor


@pytest.mark.parametrize(("first", "second", "sentence"), WRONG_SCALINGS.values(),
                         ids=WRONG_SCALINGS)  # fmt: skip
def test_wrong_scalings(first, second, sentence):
    verdict = checks.scaling(first, second)
    assert not verdict.passed
    assert sentence in verdict.message


# -------------------------------------------------------------------- exercise 2


def guided(network, x, t, cond, uncond, guidance_scale):
    w = guidance_scale - 1
    eps_c = network(x, t, cond)
    return eps_c if w == 0 else eps_c + w * (eps_c - network(x, t, uncond))


def guided_in_one_call(network, x, t, cond, uncond, guidance_scale):
    if guidance_scale == 1:
        return network(x, t, cond)
    both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([uncond, cond]))
    eps_u, eps_c = both.chunk(2)
    return eps_u + guidance_scale * (eps_c - eps_u)  # diffusers' way to write it


def guided_by_timestep(network, x, t, cond, uncond, guidance_scale):
    """The timestep as one number, as diffusers' pipelines pass it."""
    time = t[0]
    eps_c = network(x, time, cond)
    if guidance_scale > 1:
        eps_c = guidance_scale * eps_c - (guidance_scale - 1) * network(x, time, uncond)
    return eps_c


@pytest.mark.parametrize("answer", [guided, guided_in_one_call, guided_by_timestep])
def test_right_guidance(answer):
    verdict = checks.guided(answer)
    assert verdict.passed, verdict.message


def combines(formula):
    """A wrong answer from both predictions and the scale."""

    def answer(network, x, t, cond, uncond, s):
        return formula(network(x, t, cond), network(x, t, uncond), s)

    return answer


def chunks_exchanged(network, x, t, cond, uncond, s):
    both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([uncond, cond]))
    c, u = both.chunk(2)
    return c + (s - 1) * (c - u)


def mixes_conditions(network, x, t, cond, uncond, s):
    return network(x, t, cond + (s - 1) * (cond - uncond))


def asks_three_times(network, x, t, cond, uncond, s):
    return network(x, t, cond) + (s - 1) * (network(x, t, cond) - network(x, t, uncond))


def guides_in_place(network, x, t, cond, uncond, s):
    x += 1e-4
    return guided(network, x, t, cond, uncond, s)


def only_above_one(network, x, t, cond, uncond, s):
    return guided(network, x, t, cond, uncond, max(s, 2.0))


WRONG_GUIDANCE = {
    "w": (combines(lambda c, u, s: c + s * (c - u)), "One too much"),
    "from eps_u": (combines(lambda c, u, s: u + (s - 1) * (c - u)), "One too little"),
    "w - 1": (combines(lambda c, u, s: c + (s - 2) * (c - u)), "One too little"),
    "sign": (combines(lambda c, u, s: c + (s - 1) * (u - c)), "has the wrong sign"),
    "sign and w": (combines(lambda c, u, s: c + s * (u - c)), "in each other's place"),
    "exchanged": (chunks_exchanged, "in which order"),
    "exchanged, from eps_c": (combines(lambda c, u, s: u + s * (u - c)), "in each other's place"),
    "no guidance": (combines(lambda c, u, s: c), "no guidance"),
    "empty": (combines(lambda c, u, s: u), "noise for the empty prompt"),
    "change": (combines(lambda c, u, s: (s - 1) * (c - u)), "add it to eps_c"),
    "difference": (combines(lambda c, u, s: s * (c - u)), "difference alone"),
    "mean": (combines(lambda c, u, s: (c + u) / 2), "mean of the two"),
    "divides": (combines(lambda c, u, s: u + (c - u) / s), "You divide"),
    "no factor": (combines(lambda c, u, s: s * c - u), "add up to 1"),
    "enlarged": (combines(lambda c, u, s: s * c), "eps_c is enlarged"),
    "mixes": (mixes_conditions, "values do not"),
    "three": (asks_three_times, "shown 9 latents"),
    "always two": (combines(lambda c, u, s: c + (s - 1) * (c - u)), "half of the work"),
    "at one": (only_above_one, "at 1 it should be eps_c alone"),
    "in place": (guides_in_place, "changes one of its inputs"),
    "raises": (lambda network, x, t, c, u, s: network(x, t[:2], c), "raised ValueError"),
    "arguments": (lambda network, x: x, "raised TypeError"),
    "shape": (lambda network, x, t, c, u, s: network(x, t, c)[0], "has shape (4, 8, 8)"),
    "stub": (lambda network, x, t, c, u, s: ..., "no answer yet"),
    "no function": (2, "give it your function"),
}


@pytest.mark.parametrize(("answer", "sentence"), WRONG_GUIDANCE.values(), ids=WRONG_GUIDANCE)
def test_wrong_guidance(answer, sentence):
    verdict = checks.guided(answer)
    assert not verdict.passed
    assert sentence in verdict.message


# -------------------------------------------------------------------- exercise 3


def sample(network, x, schedule, steps, cond, uncond, guidance_scale):
    times = spaced_timesteps(steps, schedule)
    for i, t in enumerate(times):
        at = schedule(t)
        eps = guided(network, x, t.expand(len(x)), cond, uncond, guidance_scale)
        x0 = (x - at.sigma * eps) / at.alpha
        if i + 1 == steps:
            return x0
        after = schedule(times[i + 1])
        x = after.alpha * x0 + after.sigma * eps
    return None


def sample_with_the_library(network, x, schedule, steps, cond, uncond, guidance_scale):
    options = {"cond": cond, "uncond": uncond, "guidance": guidance_scale - 1}
    return last(sample_ddim(network, x, schedule, steps, **options))


def sample_in_z(network, x, schedule, steps, cond, uncond, guidance_scale):
    levels = schedule(spaced_timesteps(steps, schedule))
    levels = Level.cat([levels, Level.clean(levels.alpha[:1])])
    predictor = network_predictor(
        network, schedule, cond=cond, uncond=uncond, guidance=guidance_scale - 1
    )
    return pf_ode_trajectory(predictor, x, levels)[-1]


@pytest.mark.parametrize("answer", [sample, sample_with_the_library, sample_in_z])
def test_right_samplers(answer):
    verdict = checks.sampler(answer)
    assert verdict.passed, verdict.message


def walks(*, scale=lambda s: s, spacing="trailing", steps=lambda n: n, stop=0, end=None,
          draw=False, extra=False, level=None, who=None):  # fmt: skip
    """The sampler with one thing wrong."""

    def answer(network, x, schedule, n, cond, uncond, guidance_scale):
        times = spaced_timesteps(steps(n), schedule, spacing)
        levels = schedule(times)
        clean = end(schedule) if end else Level.clean(levels.alpha[:1])
        levels = Level.cat([levels, clean])
        for i in range(len(times) - stop):
            t = times[i].expand(len(x))
            if extra:
                network(x, t, cond)
            chosen = who(cond, uncond) if who else (cond, uncond)
            eps = guided(network, x, t, *chosen, scale(guidance_scale))
            at = level(levels, i) if level else levels[i]
            x0 = (x - at.sigma * eps) / at.alpha
            x = ddim_step(Prediction(x0, torch.randn_like(x) if draw else eps), levels[i + 1])
        return x

    return answer


def starts_in_place(network, x, schedule, steps, cond, uncond, s):
    x *= 0.999
    return sample(network, x, schedule, steps, cond, uncond, s)


def plain_euler_in_x(network, x, schedule, steps, cond, uncond, s):
    times = [*spaced_timesteps(steps, schedule), None]
    for t, after in pairwise(times):
        eps = guided(network, x, t.expand(len(x)), cond, uncond, s)
        x = x - (schedule(t).sigma - (0 if after is None else schedule(after).sigma)) * eps
    return x


WRONG_SAMPLERS = {
    "noise": (lambda network, x, *rest: x.clone(), "no step has been taken"),
    "unguided": (walks(scale=lambda s: 1.0), "no guidance in it"),
    "off by one": (walks(scale=lambda s: s + 1), "Guidance is one too much"),
    "empty": (walks(who=lambda c, u: (u, u)), "cond has no say"),
    "one step": (walks(steps=lambda n: 1), "in one step"),
    "leading": (walks(spacing="leading"), "yours start below 999"),
    "linspace": (walks(spacing="linspace"), "yours end at 0"),
    "last missing": (walks(stop=1), "last step is missing"),
    "ends at 0": (walks(end=lambda schedule: schedule(torch.tensor([0]))), "ends at t = 0"),
    "draws": (walks(draw=True), "fresh noise is drawn"),
    "too many": (walks(steps=lambda n: n + 1), "was called at t = 999, 799"),
    "level": (walks(level=lambda levels, i: levels[0]), "In each step: guided noise"),
    "exchanged": (walks(who=lambda c, u: (u, c)), "values are wrong"),
    "Euler in x": (plain_euler_in_x, "values are wrong"),
    "wasteful": (walks(extra=True), "shown 24 latents; 16"),
    "in place": (starts_in_place, "changes the noise"),
    "shape": (lambda network, x, *rest: x[0], "has shape (4, 8, 8)"),
    "raises": (lambda network, x, schedule, *rest: schedule.steps, "raised AttributeError"),
    "stub": (lambda *given: ..., "no answer yet"),
    "no function": ("sample", "give it your function"),
}


@pytest.mark.parametrize(("answer", "sentence"), WRONG_SAMPLERS.values(), ids=WRONG_SAMPLERS)
def test_wrong_samplers(answer, sentence):
    verdict = checks.sampler(answer)
    assert not verdict.passed
    assert sentence in verdict.message


def test_every_verdict_names_its_exercise():
    assert repr(checks.scaling(encode, decode)).startswith("Exercise 1, latents and their scale: ")
    assert repr(checks.guided(...)).startswith("Exercise 2, guided noise: not yet. ")
    assert repr(checks.sampler(sample)).startswith("Exercise 3, from noise and words to a latent:")

"""Lesson 06: its checks, the maps of the words, its figures and its explorer."""

import pytest
import torch

from slam_course.images import image_rows, mosaic, prompt_grid
from slam_course.lesson_06 import explorer, figures
from slam_course.lesson_06.attention import prompt_tokens, recorded_attention, word_attention
from slam_course.lesson_06.checks import KNOWN, guided, sampler, scaling
from slam_edu import Level, NoiseSchedule, ddim_step, spaced_timesteps
from slam_edu.digits import load_pipeline
from slam_edu.prediction import Prediction
from slam_edu.sampling import last, sample_ddim
from slam_edu.sd import LatentDiffusion
from slam_edu.sd.tiny import tiny_pipeline
from tests.course import trying
from tests.helpers import assert_near

# -------------------------------------------------------------------- checks


def encoders(text):
    return lambda vae, images: eval(
        text,
        {"m": (d := vae.encode(images).latent_dist).mean, "s": vae.config.scaling_factor, "d": d,
         "vae": vae, "images": images},
    )  # fmt: skip


def decoders(text):
    return lambda vae, x: eval(
        text, {"of": lambda y: vae.decode(y).sample, "s": vae.config.scaling_factor, "x": x,
               "vae": vae}
    )  # fmt: skip


ENCODE, DECODE = encoders("m * s"), decoders("of(x / s)")
ENCODERS = {
    **dict(KNOWN["encode"]),
    "m * 0.18215": "shape of the latents fits",
    "d.sample() * s": "fresh noise is drawn",
    "d": "is a DiagonalGaussianDistribution; it should be a torch.Tensor",
    "vae.encode(images)": "is a AutoencoderKLOutput",
    "images": "has shape (3, 3, 8, 8)",
    "(m * s, images.mul_(2))[0]": "changes images itself",
    "m * s * vae.requires_grad_(True).training + m * s": "leave its parameters",
    "...": "no answer yet",
}
DECODERS = {
    **dict(KNOWN["decode"]),
    "of(x).clamp(-1, 1)": "hands the scaled latents",
    "x": "has shape (3, 4, 4, 4)",
    "vae.decode(x / s)": "is a DecoderOutput",
    "0.9 * of(x / s)": "give back what encode",
    "of(x.div_(s))": "changes x itself",
    "...": "no answer yet",
}


def test_scaling():
    right = [
        (ENCODE, DECODE),
        (encoders("d.mode() * s"), decoders("of(x / s).clamp(-1, 1)")),
        (
            encoders("vae.encode(images, return_dict=False)[0].mean * s"),
            decoders("vae.decode(x / s, return_dict=False)[0]"),
        ),
    ]
    for answers in right:
        assert scaling(*answers).passed
    wrong = [((encoders(text), DECODE), words) for text, words in ENCODERS.items()]
    wrong += [((ENCODE, decoders(text)), words) for text, words in DECODERS.items()]
    wrong += [((ENCODE, 3.0), "give it your function")]
    for answers, sentence in wrong:
        verdict = scaling(*answers)
        assert not verdict.passed
        assert sentence in verdict.message


def guidance(network, x, t, cond, uncond, guidance_scale):
    w = guidance_scale - 1
    eps_c = network(x, t, cond)
    return eps_c if w == 0 else eps_c + w * (eps_c - network(x, t, uncond))


def in_one_call(network, x, t, cond, uncond, s, turn=False):
    if s == 1:
        return network(x, t, cond)
    both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([uncond, cond]))
    eps_u, eps_c = both.chunk(2)[::-1] if turn else both.chunk(2)
    return eps_u + s * (eps_c - eps_u)  # diffusers' way to write it


BOTH = "(lambda c, u: {})(f(x, t, p), f(x, t, e))"
GUIDED = trying.formulas("f, x, t, p, e, s", globals(), {
    **{BOTH.format(text): words for text, words in KNOWN["guided"]},
    BOTH.format("c + (s - 1) * (c - u)"): "and once",
    "in_one_call(f, x, t, p, e, s, turn=True)": "in which order",
    "f(x, t, p + (s - 1) * (p - e))": "values do not",
    "guidance(f, x, t, p, e, int(s))": "at 7.5 it should be",
    "guidance(f, x, t[:1].expand_as(t), p, e, s)": "values do not",
    "guidance(f, x, t, p, e, s).detach()": "comes back to x",
    "(f(x, t, p), guidance(f, x, t, p, e, s))[1]": "shown 9 samples",
    "guidance(f, x, t, p, e, max(s, 2))": "at 1.5 it should be eps_c and 0.5 times",
    "guidance(f, x.add_(1e-4), t, p, e, s)": "changes x itself",
    "f(x, t[:2], p)": "raised ValueError",
    "f(x, t, p)[0]": "has shape (4, 8, 8)",
    "...": "no answer yet",
})  # fmt: skip


def walk(f, x, schedule, n, cond, uncond, s, spacing="trailing", stop=0, end=None, level=None,
         draw=False):  # fmt: skip
    """The right sampler, or with one thing wrong."""
    times = spaced_timesteps(n, schedule, spacing)
    levels = schedule(times)
    clean = Level.clean(levels.alpha[:1]) if end is None else schedule(torch.tensor([end]))
    levels = Level.cat([levels, clean])
    for i in range(len(times) - stop):
        eps = guidance(f, x, times[i].expand(len(x)), cond, uncond, s)
        at = levels[i if level is None else level]
        x0 = (x - at.sigma * eps) / at.alpha
        x = ddim_step(Prediction(x0, torch.randn_like(x) if draw else eps), levels[i + 1])
    return x


def with_the_library(f, x, schedule, n, cond, uncond, s):
    return last(sample_ddim(f, x, schedule, n, cond=cond, uncond=uncond, guidance=s - 1))


def reaches_round(x, t, cond):
    return torch.tanh(x)


USUAL = NoiseSchedule.stable_diffusion(torch.float64)
WALK = (
    "(lambda walk: {})"
    "(lambda **k: walk(f, x, a, **{{'n': n, 'cond': c, 'uncond': uncond, 's': s}} | k))"
)
SAMPLED = trying.formulas("f, x, a, n, c, uncond, s", globals(), {
    **{WALK.format(text): words for text, words in KNOWN["sampler"]},
    "walk(f, x, a, n, c, uncond, s, draw=True)": "fresh noise is drawn",
    "walk(f, x, a, n + 1, c, uncond, s)": "was called at t = [999, 799",
    "walk(f, x, a, n, c, uncond, s, level=0)": "In each step: guided noise",
    "walk(f, x, a, n, uncond, c, s)": "values are wrong",
    "walk(f, x, a, 4, c, uncond, s)": "the stub's timesteps are [999, 666, 332]",
    "walk(f, x, USUAL, n, c, uncond, s)": "values are wrong",
    "walk(reaches_round, x, a, n, c, uncond, s)": "never calls `network`",
    "(f(x, torch.tensor([999]), c), walk(f, x, a, n, c, uncond, s))[1]": "shown 18 samples; 16",
    "walk(f, x.mul_(0.999), a, n, c, uncond, s)": "changes x itself",
    "x[0]": "has shape (4, 8, 8)",
    "...": "no answer yet",
})  # fmt: skip
GROUPS = [
    (guided, [guidance, in_one_call], GUIDED),
    (sampler, [walk, with_the_library, torch.no_grad()(walk)], SAMPLED),
]


test_accepts, test_rejects = trying.tests(GROUPS)


# -------------------------------------------------------------------- attention

PROMPTS = ["a red seven", "a blue two on a white background"]


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny_pipeline())


def noise(model, count=2):
    return model.draw_noise(count, torch.Generator().manual_seed(0))


def test_tokens_of_known_and_unknown_words():
    tokenizer = load_pipeline().tokenizer
    assert prompt_tokens(tokenizer, "a red Seven") == ["[start]", "a", "red", "seven", "[end]"]
    pieces = prompt_tokens(tokenizer, "a mauve")[2:-1]
    assert "".join(piece.rstrip("-") for piece in pieces) == "mauve"
    assert [piece.endswith("-") for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert len(prompt_tokens(tokenizer, "a " * 100)) == tokenizer.model_max_length


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_maps_add_up_to_one_and_disturb_nothing(model, w):
    latents, maps = word_attention(model, PROMPTS, noise(model), guidance=w, steps=2)
    assert maps.shape == (2, 2, model.encode_prompts("").shape[1], *latents.shape[2:])
    assert_near(maps.sum(2), torch.ones_like(maps.sum(2)), rtol=0, atol=1e-5)
    cond, uncond = model.encode_prompts(PROMPTS), model.encode_prompts(["", ""])
    options = {"cond": cond, "uncond": uncond, "guidance": w}
    with torch.no_grad():
        expected = last(sample_ddim(model.network, noise(model), model.schedule, 2, **options))
    assert_near(latents, expected, rtol=1e-3, atol=1e-3)
    # Those of the prompt, not of the empty one: the first step's do not depend on w.
    _, alone = word_attention(model, PROMPTS, noise(model), steps=2)
    assert_near(alone[0], maps[0], rtol=0, atol=1e-6)


def test_a_map_is_the_softmax_of_queries_and_keys(model):
    """One layer by hand, from what goes into it."""
    unet, seen = model.pipeline.unet, []
    layers = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    hook = layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0], kwargs["encoder_hidden_states"])),
        with_kwargs=True,
    )
    with torch.no_grad(), recorded_attention(unet) as maps:
        model.network(noise(model), torch.full((2,), 500.0), model.encode_prompts(PROMPTS))
    hook.remove()
    [(x, states)], layer = seen, layers[0]
    queries = layer.to_q(x).unflatten(2, (layer.heads, -1)).transpose(1, 2)
    keys = layer.to_k(states).unflatten(2, (layer.heads, -1)).transpose(1, 2)
    scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
    assert len(maps) == len(layers)
    assert_near(maps[0], scores.softmax(-1).mean(1).detach(), rtol=1e-5, atol=1e-6)


def test_the_networks_own_processors_come_back(model):
    unet = model.pipeline.unet
    before = {name: id(processor) for name, processor in unet.attn_processors.items()}
    with pytest.raises(RuntimeError, match="on purpose"), recorded_attention(unet):
        raise RuntimeError("on purpose")
    assert before == {name: id(each) for name, each in unet.attn_processors.items()}
    assert not any("get_attention_scores" in vars(layer) for layer in unet.modules())


# -------------------------------------------------------------------- explorer and figures


def test_wording():
    assert explorer.prompt_of("one", "red", "yellow") == "a red one on a yellow background"
    assert explorer.prompt_of("eight", "any", "any") == "an eight"
    assert explorer.prompt_of("any", "any", "white") == "a digit on a white background"


def test_the_explorer_starts_as_the_lesson_says_and_draws_the_samplers_images(model):
    box = explorer.prompts(model, guidance=(0.0, 1.0), steps=(1, 16))
    start = {control.description: control.value for control in box.children[:-2]}
    assert start == {"digit": "zero", "stroke": "black", "background": "white",
                     "guidance": 1.0, "steps": 16, "seed": 0}  # fmt: skip
    fig = explorer.prompt_figure(model, PROMPTS[0], 1.0, 1, 3)
    x = model.draw_noise(8, torch.Generator().manual_seed(3))
    cond, uncond = (model.encode_prompts([text] * 8) for text in (PROMPTS[0], ""))
    options = {"cond": cond, "uncond": uncond, "guidance": 1.0}
    with torch.no_grad():
        x = last(sample_ddim(model.network, x, model.schedule, 1, **options))
        expected = mosaic(model.decode(x), 4)
    assert_near(torch.as_tensor(fig.axes[0].images[0].get_array()), expected, atol=1e-4, rtol=0)
    trying.described(fig)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_images_stand_in_their_rows_and_columns():
    rows = {"first": numbers(3, 3, 32, 32).tanh(), "second": numbers(3, 3, 32, 32, seed=1).tanh()}
    fig = image_rows(rows, columns=("a", "b", "c"), gaps=(1,), alt="Six images of noise.")
    ax = fig.axes[0]
    sheet = torch.as_tensor(ax.images[0].get_array())
    for y, row in zip(ax.get_yticks(), rows.values(), strict=True):
        for x, image in zip(ax.get_xticks(), row, strict=True):
            top, left = round(y - 15.5), round(x - 15.5)
            seen = sheet[top : top + 32, left : left + 32]
            assert_near(seen.float(), (image.permute(1, 2, 0) + 1) / 2, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="rows of \\[3\\] images with 1 names"):
        image_rows(rows, columns=("a",), alt="Six images of noise.")
    trying.described(fig)
    trying.described(prompt_grid(torch.cat(list(rows.values())), ["zero", "one"], ["a", "b", "c"]))


def test_figures_are_described():
    images, maps = numbers(2, 3, 32, 32).tanh(), numbers(2, 8, 8).abs()
    change = {"w = 0": numbers(3, 6).abs()}
    curve = {"ddim": {1: 0.9, 4: 0.4, 50: 0.02}, "dpmpp_2m": {1: 0.9, 4: 0.2, 50: 0.01}}
    planes = {f"w = {w}": (numbers(5, 3, 2), numbers(9, 2)) for w in (0, 3)}
    words = figures.word_maps(images, {"red": maps, "two": 2 * maps}, {"red to\nblue": maps})
    assert "attention to red, two, the others what changes with red to blue" in words.alt
    for fig in (
        figures.latent_channels(images, numbers(2, 4, 8, 8), images),
        words,
        figures.guided_planes(planes, numbers(20, 2), numbers(30, 2)),
        figures.latent_bends(torch.tensor([999, 599, 299, 0]), change, "Curves over the time."),
        figures.solver_errors({"w = 0": curve, "w = 3": curve}),
    ):
        trying.described(fig)

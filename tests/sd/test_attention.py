"""The maps of the words: they are the layers' own, add up to 1, and disturb nothing."""

import pytest
import torch
from torch import nn

from slam_course.lesson_06.attention import prompt_tokens, recorded_attention, word_attention
from slam_edu.sampling import last, sample_ddim
from slam_edu.sd import LatentDiffusion
from slam_edu.solver import ddim_step
from studies.digits.train.networks import (
    TextToLatents,
    build_pipeline,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from tests.helpers import assert_near

PROMPTS = ["a red seven", "a blue two on a white background"]


@pytest.fixture(scope="module")
def model():
    tokenizer = build_tokenizer()
    network = TextToLatents(build_unet(0, (16, 32)), build_text_encoder(tokenizer))
    return LatentDiffusion(build_pipeline(build_vae(0, (8, 16, 16)), network))


def noise(model, count=2):
    return model.draw_noise(count, torch.Generator().manual_seed(0))


def test_tokens_of_known_and_unknown_words():
    tokenizer = build_tokenizer()
    known = prompt_tokens(tokenizer, "a red Seven")
    assert known == ["[start]", "a", "red", "seven", "[end]"]
    unknown = prompt_tokens(tokenizer, "a mauve")
    assert unknown[:2] == ["[start]", "a"]
    assert len(unknown) > 4
    assert "".join(piece.rstrip("-") for piece in unknown[2:-1]) == "mauve"
    goes_on = [piece.endswith("-") for piece in unknown[2:-1]]
    assert goes_on == [True] * (len(goes_on) - 1) + [False]
    assert prompt_tokens(tokenizer, "") == ["[start]", "[end]"]
    assert len(prompt_tokens(tokenizer, "a " * 100)) == tokenizer.model_max_length


def test_maps_have_the_latents_shape_and_add_up_to_one(model):
    latents, maps = word_attention(model, PROMPTS, noise(model), guidance=2.0, steps=3)
    assert latents.shape == (2, 4, 8, 8)
    assert maps.shape == (3, 2, 24, 8, 8)
    assert_near(maps.sum(2), torch.ones(3, 2, 8, 8), rtol=0, atol=1e-5)
    assert bool((maps >= 0).all())


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_sampling_is_what_it_is_without_recording(model, guidance):
    latents, _ = word_attention(model, PROMPTS, noise(model), guidance=guidance, steps=2)
    with torch.no_grad():
        expected = last(
            sample_ddim(
                model.network,
                noise(model),
                model.schedule,
                2,
                cond=model.encode_prompts(PROMPTS),
                uncond=model.encode_prompts(["", ""]),
                guidance=guidance,
            )
        )
    assert_near(latents, expected, rtol=1e-3, atol=1e-3)  # they reach 30


def test_maps_are_those_of_the_prompt_not_of_the_empty_one(model):
    """At w = 0 only the prompt is asked for; the first step's maps do not depend on w."""
    _, alone = word_attention(model, PROMPTS, noise(model), steps=1)
    _, guided = word_attention(model, PROMPTS, noise(model), guidance=3.0, steps=1)
    assert_near(alone, guided, rtol=0, atol=1e-6)
    _, nothing = word_attention(model, ["", ""], noise(model), steps=1)
    assert (alone - nothing).abs().max() > 1e-4


def test_each_step_has_its_own_maps(model):
    """The second step's are those of a single call where the first step ended."""
    _, maps = word_attention(model, PROMPTS, noise(model), guidance=2.0, steps=2)
    levels = model.schedule(torch.tensor([999, 499]))
    predictor = model.predictor(PROMPTS, 2.0)
    with torch.no_grad():
        x = ddim_step(predictor(noise(model), levels[0]), levels[1])
        with recorded_attention(model.pipeline.unet) as recorded:
            predictor(x, levels[1])
    full = [layer[:2].transpose(1, 2) for layer in recorded if layer.shape[1] == 64]
    small = [layer[:2].transpose(1, 2) for layer in recorded if layer.shape[1] == 16]
    assert len(full) + len(small) == len(recorded)
    # Mean over an enlarged place is the small layer's own number.
    pooled = torch.nn.functional.avg_pool2d(maps[1], 2)
    pooled_full = [torch.nn.functional.avg_pool2d(m.unflatten(2, (8, 8)), 2) for m in full]
    expected = torch.stack(pooled_full + [m.unflatten(2, (4, 4)) for m in small]).mean(0)
    assert_near(pooled, expected, rtol=0, atol=1e-6)
    assert (maps[0] - maps[1]).abs().max() > 1e-5


def test_a_map_is_the_softmax_of_queries_and_keys(model):
    """One layer by hand, from what goes into it."""
    unet = model.pipeline.unet
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    seen = []

    def keep(module, args, kwargs):
        seen.append((args[0], kwargs["encoder_hidden_states"]))

    hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
    cond = model.encode_prompts(PROMPTS)
    with torch.no_grad(), recorded_attention(unet) as maps:
        model.network(noise(model), torch.tensor([500.0, 500.0]), cond)
    hook.remove()
    [(x, states)] = seen
    queries = layer.to_q(x).unflatten(2, (layer.heads, -1)).transpose(1, 2)
    keys = layer.to_k(states).unflatten(2, (layer.heads, -1)).transpose(1, 2)
    scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
    expected = scores.softmax(-1).mean(1).detach()
    assert len(maps) == sum(name.endswith("attn2") for name, _ in unet.named_modules())
    assert_near(maps[0], expected, rtol=1e-5, atol=1e-6)


def test_pictures_keep_places(model):
    """A map of 16 places is enlarged to 8 by 8 without a turn: rows stay rows."""
    from slam_course.lesson_06.attention import _as_picture

    maps = torch.arange(16.0).reshape(1, 16, 1)
    picture = _as_picture(maps, torch.Size([8, 8]))
    assert picture.shape == (1, 1, 8, 8)
    assert picture[0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert picture[0, 0, :, 0].tolist() == [0, 0, 4, 4, 8, 8, 12, 12]


def test_the_networks_own_processors_come_back(model):
    unet = model.pipeline.unet
    before = [(name, id(processor)) for name, processor in unet.attn_processors.items()]
    with pytest.raises(RuntimeError, match="on purpose"), recorded_attention(unet):
        raise RuntimeError("on purpose")
    assert before == [(name, id(processor)) for name, processor in unet.attn_processors.items()]
    layers = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    assert not any("get_attention_scores" in vars(layer) for layer in layers)


def test_wrong_input(model):
    with pytest.raises(ValueError, match="a Linear has no layer named attn2"):
        recorded_attention(nn.Linear(2, 2)).__enter__()
    with pytest.raises(ValueError, match="1 prompts for 2 latents; allowed: one each"):
        word_attention(model, ["a seven"], noise(model))
    with pytest.raises(ValueError, match="steps is 0"):
        word_attention(model, PROMPTS, noise(model), steps=0)

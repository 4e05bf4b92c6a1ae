"""The explorer of lesson 06: its prompts, its images, how it is controlled, how fast it is."""

import time

import pytest
import torch
from slam_course.lesson_08.digit_figures import mosaic

from slam_course.lesson_06 import explorer as latents
from slam_course.lesson_06.explorer import (
    ANY,
    STEPS,
    prompt_figure,
    prompt_of,
    prompts,
)
from slam_edu.sampling import last, sample_ddim
from slam_edu.sd import LatentDiffusion
from studies.digits.train.networks import (
    TextToLatents,
    build_pipeline,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from tests.helpers import assert_near

TEXT_ENCODER = build_text_encoder(build_tokenizer())


def make(unet, vae):
    return LatentDiffusion(build_pipeline(vae, TextToLatents(unet, TEXT_ENCODER)))


@pytest.fixture(scope="module")
def model():
    return make(build_unet(0, (16, 32)), build_vae(0, (8, 16, 16)))


# -------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("parts", "prompt"),
    [
        (("seven", "red", "yellow"), "a red seven on a yellow background"),
        (("eight", ANY, ANY), "an eight"),
        (("one", ANY, "white"), "a one on a white background"),
        ((ANY, "blue", ANY), "a blue digit"),
        ((ANY, ANY, ANY), "a digit"),
        (("two", "red", "red"), "a red two on a red background"),
    ],
)
def test_wording(parts, prompt):
    assert prompt_of(*parts) == prompt


# -------------------------------------------------------------------- images


def image_of(fig):
    return torch.as_tensor(fig.axes[0].images[0].get_array())


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_images_are_those_of_the_sampler(model, guidance):
    prompt = "a red seven"
    with torch.no_grad():
        x = last(
            sample_ddim(
                model.network,
                model.draw_noise(8, torch.Generator().manual_seed(3)),
                model.schedule,
                2,
                cond=model.encode_prompts([prompt] * 8),
                uncond=model.encode_prompts([""] * 8),
                guidance=guidance,
            )
        )
        expected = mosaic(model.decode(x), 4)
    fig = prompt_figure(model, prompt, guidance, 2, 3)
    assert_near(image_of(fig), expected, rtol=0, atol=1e-4)
    assert fig.alt == f'Eight images for "a red seven" with w = {guidance:g}, 2 steps, seed 3.'


def test_at_no_guidance_the_empty_prompt_is_not_asked_for(model, monkeypatch):
    seen = []
    whole = model.network
    monkeypatch.setattr(model, "network", lambda x, t, c: (seen.append(len(x)), whole(x, t, c))[1])
    prompt_figure(model, "a seven", 0.0, 2)
    prompt_figure(model, "a seven", 1.0, 2)
    assert seen == [8, 8, 16, 16]


def test_figure_repeats(model):
    assert prompt_figure(model, "", 1.0, 1).png() == prompt_figure(model, "", 1.0, 1).png()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: prompt_of("ten", "red", "blue"), "digit is 'ten'; allowed: 'zero'"),
        (lambda model: prompt_of("two", "pink", "blue"), "stroke is 'pink'; allowed: 'black'"),
        (lambda model: prompt_of("two", "red", "pink"), "background is 'pink'; allowed: 'white'"),
        (lambda model: prompt_figure(model, "a two", -1.0, 2), "guidance"),
        (lambda model: prompt_figure(model, "a two", 0.0, 0), "steps is 0"),
        (lambda model: prompt_figure(model, "a two", 0.0, 1, -1), "seed is -1"),
        (lambda model: prompts(model, first=(1.5, 16)), r"first guidance is 1\.5; allowed: 0\.0"),
        (lambda model: prompts(model, first=(1.0, 5)), "first steps is 5; allowed: 1, 2"),
    ],
)
def test_wrong_input(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


# -------------------------------------------------------------------- the explorer


def test_explorer_has_six_controls_and_starts_where_it_is_told(model):
    box = prompts(model, steps=(1, 2), first=(1.0, 2))
    *controls, picture, caption = box.children
    assert [control.description for control in controls] == [
        "digit",
        "stroke",
        "background",
        "guidance",
        "steps",
        "seed",
    ]
    assert [c.value for c in controls] == ["zero", "black", "white", 1.0, 2, 0]
    prompt = "a black zero on a white background"
    assert picture.value == prompt_figure(model, prompt, 1.0, 2, 0).png()
    assert f'Eight images for "{prompt}" with w = 1, 2 steps, seed 0.' in caption.value


def test_every_control_changes_the_picture(model):
    *controls, picture, _ = prompts(model, steps=(1, 2), first=(1.0, 1)).children
    for control in controls:
        before = picture.value
        control.value = control.options[(control.options.index(control.value) + 1)]
        assert picture.value != before, control.description


def test_a_setting_is_drawn_once(model, monkeypatch):
    calls = []
    whole = prompt_figure
    monkeypatch.setattr(
        latents, "prompt_figure", lambda *given: (calls.append(given[1:]), whole(*given))[1]
    )
    *_, seed, _, _ = prompts(model, steps=(1, 2), first=(1.0, 1)).children
    seed.value = 4
    seed.value = 0
    seed.value = 4
    assert len(calls) == len(set(calls))


def test_a_picture_costs_its_network_calls_and_little_more():
    """With networks of the shipped sizes; in seconds it would measure the machine's other work."""
    large = make(build_unet(0, (64, 128)), build_vae(0))
    steps, prompt = max(STEPS), "a red seven on a yellow background"
    x, t = torch.randn(16, 4, 8, 8), torch.full((16,), 500)  # guided: eight images, twice
    cond = large.encode_prompts([prompt] * 16)
    ratios = []
    for _ in range(2):
        begin = time.process_time()
        with torch.no_grad():
            for _ in range(10):
                large.network(x, t, cond)
        middle = time.process_time()
        prompt_figure(large, prompt, 10.0, steps).png()
        a_call = (middle - begin) / 10
        ratios.append((time.process_time() - middle) / (steps * a_call))
    assert min(ratios) < 2

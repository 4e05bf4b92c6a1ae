"""A pipeline taken apart draws what the pipeline draws."""

from types import SimpleNamespace

import pytest
import torch

from slam_edu import solve_pf_ode
from slam_edu.schedule import Level
from slam_edu.sd import LatentDiffusion
from tests.digits.conftest import tiny_pipeline
from tests.helpers import max_error

PROMPTS = ["a red seven on a yellow background", "handwritten 3", ""]
LONG = "red " * 60


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request):
    pipeline = tiny_pipeline(request.param)
    pipeline.vae.register_to_config(scaling_factor=0.6)
    return LatentDiffusion(pipeline)


@pytest.fixture(scope="module")
def one():
    return LatentDiffusion(tiny_pipeline())


def draw_noise(model, count=3, seed=0):
    return model.draw_noise(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_the_predictor_in_a_solver_is_the_pipeline(guidance, model):
    """DDIM's steps by ``solve_pf_ode`` along the pipeline's own timesteps."""
    noise = draw_noise(model)
    expected = model.pipeline(
        PROMPTS, latents=noise, num_inference_steps=10, guidance_scale=guidance + 1,
        output_type="latent",
    ).images  # fmt: skip
    noisy = model.schedule(torch.arange(999, 0, -100))
    levels = Level(
        torch.cat([noisy.alpha, torch.ones(1)]), torch.cat([noisy.sigma, torch.zeros(1)])
    )
    with torch.no_grad():
        *_, state = solve_pf_ode(model.predictor(PROMPTS, guidance), noise, levels)
    assert max_error(state.x, expected) <= 1e-5 * expected.abs().max()


# -------------------------------------------------------------------- the parts


def test_prompts_are_encoded_as_the_pipeline_does(one):
    prompts = [*PROMPTS, LONG, "übermäßig 七"]
    ours = one.encode_prompts(prompts)
    with torch.no_grad():
        theirs, uncond = one.pipeline.encode_prompt(prompts, "cpu", 1, True)
    assert ours.shape == (5, 24, 32)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    empty = one.encode_prompts([""] * 5)
    torch.testing.assert_close(empty, uncond, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.encode_prompts(""), empty[:1], rtol=1e-5, atol=1e-6)
    single = one.encode_prompts(PROMPTS[0])
    torch.testing.assert_close(single, ours[:1], rtol=1e-5, atol=1e-6)
    assert max_error(one.encode_prompts(tuple(prompts)), ours) == 0


def test_images_to_latents_and_back(model):
    vae = model.pipeline.vae
    images = 2 * torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    latents = model.encode_images(images, batch=2)
    assert latents.shape == (5, 4, 8, 8)
    assert not latents.requires_grad
    with torch.no_grad():
        expected = 0.6 * vae.encode(images).latent_dist.mean
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)
    decoded = model.decode(latents, batch=3)
    assert decoded.shape == (5, 3, 32, 32)
    assert not decoded.requires_grad
    with torch.no_grad():
        raw = vae.decode(latents / 0.6).sample
        far = vae.decode(100 * latents / 0.6).sample
    torch.testing.assert_close(decoded, raw.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    assert far.abs().max() > 1  # else clipping would not show
    clipped = model.decode(100 * latents)
    torch.testing.assert_close(clipped, far.clamp(-1, 1), rtol=1e-3, atol=1e-4)


def test_guidance_asks_once_for_both(one):
    seen = []
    handle = one.pipeline.unet.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0]))
    )
    x, here = draw_noise(one, 3), one.schedule(500)
    try:
        with torch.no_grad():
            plain = one.predictor(PROMPTS)(x, here)
            guided = one.predictor(PROMPTS, 2.0)(x, here)
            empty = one.predictor([""] * 3)(x, here)
    finally:
        handle.remove()
    assert seen == [3, 6, 3]
    assert max_error(guided.eps, plain.eps + 2 * (plain.eps - empty.eps)) < 1e-5
    assert max_error(guided.x0, plain.x0 + 2 * (plain.x0 - empty.x0)) < 1e-4


def test_noise_is_the_pipelines(one):
    first = draw_noise(one, 20, seed=5)
    theirs = one.pipeline.prepare_latents(
        20, 4, 32, 32, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(5)
    )
    assert torch.equal(first, theirs)


# -------------------------------------------------------------------- wrong input


def test_a_missing_part_or_a_wrong_count(one):
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    parts = {name: getattr(one.pipeline, name) for name in names}
    message = r"a SimpleNamespace without vae was passed in; allowed: a pipeline with vae, "
    with pytest.raises(ValueError, match=message):
        LatentDiffusion(SimpleNamespace(**{**parts, "vae": None}))
    with pytest.raises(ValueError, match=r"count is 0; allowed: an integer >= 1"):
        one.draw_noise(0, torch.Generator())

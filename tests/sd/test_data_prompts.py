"""Lists of prompts, and latents that the teacher draws for them."""

import re

import pytest
import torch

from slam_edu import NoiseSchedule, last, sample_dpmpp_2m
from slam_edu.digits.captions import read_prompt
from slam_edu.digits.data import CaptionedDigits
from slam_edu.sd.components import empty_condition, text_condition, unet_output
from slam_edu.sd.config import SDConfig
from slam_edu.sd.data import default_prompts, make_cache, read_prompts
from slam_edu.sd.data.feeds import DRAWN, DrawnFeed
from slam_edu.seeding import sample_generator
from tests.sd.images import CAPTIONS
from tests.sd.test_cache import contents, quiet
from tests.sd.tiny import tiny_sd_pipeline, tiny_xl_pipeline

PIPELINES = {
    "sd": tiny_sd_pipeline,
    "sd-v": lambda: tiny_sd_pipeline(prediction_type="v_prediction"),
    "xl": tiny_xl_pipeline,
}


@pytest.fixture(scope="module", params=list(PIPELINES))
def pipeline(request):
    return PIPELINES[request.param]()


def config_of(tmp_path, **changes):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(CAPTIONS), "utf-8")
    settings = {
        "data": "prompts", "data_path": str(path), "draw_steps": 3, "guidance": 2.0,
        "cache_dtype": "float32", "batch": 3, "teacher": "some/where",
    }  # fmt: skip
    return SDConfig(**{**settings, **changes})


# -------------------------------------------------------------------- lists


def test_read_prompts(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("\ufeff# a comment\n\n  a  cat \n#another\na dog, #1\n\na cat\n", "utf-8")
    assert read_prompts(path) == ["a cat", "a dog, #1", "a cat"]


def test_lists_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.txt' is not a file; allowed: a text"):
        read_prompts(tmp_path / "nowhere.txt")
    path = tmp_path / "p.txt"
    path.write_text("# a comment alone\n\n", "utf-8")
    with pytest.raises(ValueError, match="holds no prompt; allowed: one or more"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        read_prompts(path)


def test_the_shipped_list():
    prompts = read_prompts()
    assert prompts == default_prompts("some/model")
    assert 150 <= len(prompts) == len(set(prompts)) <= 250
    for prompt in prompts:
        # CLIP reads 75 tokens; a word has rarely more than two.
        assert 2 <= len(prompt.split()) <= 25
        assert prompt == prompt.strip()
        assert re.fullmatch(r"[A-Za-z0-9 ,.'-]+", prompt), prompt


def test_the_digits_own_prompts():
    prompts = default_prompts("digits")
    assert len(prompts) == len(set(prompts)) == 512
    known = set(CaptionedDigits("train").batch(range(2000)).captions)
    assert set(prompts) <= known
    assert {read_prompt(p).digit for p in prompts} >= set(range(10))


# -------------------------------------------------------------------- drawing


def test_the_latents_are_the_solvers(pipeline, tmp_path):
    """The same noise through the sampler of the core, one prompt at a time."""
    xl = hasattr(pipeline, "text_encoder_2")
    cache = make_cache(config_of(tmp_path), pipeline, tmp_path / "c", show=quiet)
    assert cache.captions == CAPTIONS
    assert cache.latent_shape == (4, 8, 8)
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    latents, cond = cache.batch(range(4))
    for n, prompt in enumerate(CAPTIONS):
        noise = torch.randn(4, 8, 8, generator=sample_generator(0, n, DRAWN))
        with torch.no_grad():
            wanted = last(
                sample_dpmpp_2m(
                    lambda x, t, c: unet_output(pipeline.unet, x, t, c), noise[None], schedule, 3,
                    prediction_type=pipeline.scheduler.config.prediction_type,
                    cond=text_condition(pipeline, [prompt]), uncond=empty_condition(pipeline),
                    guidance=2.0,
                )
            )  # fmt: skip
        torch.testing.assert_close(latents[n], wanted[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cond.states, text_condition(pipeline, CAPTIONS).states)
    assert (cond.time_ids is not None) == xl
    if xl:
        assert cond.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]] * 4


def test_what_the_latents_depend_on(tmp_path):
    """Prompt, guidance, steps and seed; not the batch, nor how many are drawn."""
    pipeline = tiny_sd_pipeline()
    number = iter(range(100))

    def drawn(**changes):
        config = config_of(tmp_path, **changes)
        folder = tmp_path / str(next(number))
        return make_cache(config, pipeline, folder, show=quiet).batch(range(4))[0]

    base = drawn()
    for changes in ({"guidance": 1.0}, {"draw_guidance": 0.0}, {"draw_steps": 2}, {"seed": 1}):
        other = drawn(**changes)
        assert (other - base).abs().amax((1, 2, 3)).min() > 1e-3, changes
    for changes in ({"batch": 1}, {"draw_count": 2}, {"draw_guidance": 2.0, "guidance": 7.0}):
        torch.testing.assert_close(drawn(**changes), base, rtol=1e-3, atol=1e-4)
    assert base.std(0).min() > 1e-3  # each has its own noise


def test_mixed_precision(tmp_path):
    """The UNet's calls alone: the latents stay float32, and nearly the same."""
    pipeline, seen = tiny_sd_pipeline(), []
    config = config_of(tmp_path)
    exact = make_cache(config, pipeline, tmp_path / "a", show=quiet).batch(range(4))[0]
    pipeline.unet.conv_out.register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    config = config.replace(mixed_precision="bf16")
    mixed = make_cache(config, pipeline, tmp_path / "b", show=quiet).batch(range(4))[0]
    assert set(seen) == {torch.bfloat16}
    assert 0 < (mixed - exact).abs().max() < 0.1 * exact.abs().max()


def test_several_latents_a_prompt(tmp_path):
    pipeline = tiny_sd_pipeline()
    config = config_of(tmp_path, draw_count=3)
    cache = make_cache(config, pipeline, tmp_path / "c", show=quiet)
    assert cache.captions == CAPTIONS * 3
    latents = cache.batch(range(12))[0]
    assert (latents[0] - latents[4]).abs().max() > 0.1
    few = make_cache(config.replace(max_samples=6), pipeline, tmp_path / "d", show=quiet)
    assert few.captions == (CAPTIONS * 2)[:6]
    torch.testing.assert_close(few.batch(range(6))[0], latents[:6], rtol=1e-3, atol=1e-4)


def test_interrupted_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(DrawnFeed, "SHARD", 4)
    pipeline = tiny_sd_pipeline()
    config = config_of(tmp_path, draw_count=3)
    make_cache(config, pipeline, tmp_path / "whole", show=quiet)
    calls, draw = [], DrawnFeed.draw

    def interrupted(feed, numbers):
        calls.append(list(numbers))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(feed, numbers)

    monkeypatch.setattr(DrawnFeed, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_cache(config, pipeline, tmp_path / "parts", show=quiet)
    make_cache(config, pipeline, tmp_path / "parts", show=quiet)
    assert calls == [[0, 1, 2], [3], [4, 5, 6], [7], [4, 5, 6], [7], [8, 9, 10], [11]]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_another_unet_is_another_teacher(tmp_path):
    """With images the UNet does not matter; here it does."""
    pipeline = tiny_sd_pipeline()
    config = config_of(tmp_path)
    make_cache(config, pipeline, tmp_path / "c", show=quiet)
    with torch.no_grad():
        for p in pipeline.unet.parameters():
            p.mul_(1.1)
    with pytest.raises(ValueError, match="data: unet is"):
        make_cache(config, pipeline, tmp_path / "c", show=quiet)
    with pytest.raises(ValueError, match=r"data: draw_guidance is 2.0 there and 3.0 here"):
        make_cache(config.replace(guidance=3.0), pipeline, tmp_path / "c", show=quiet)


def test_a_unet_that_gives_nothing_finite(tmp_path):
    pipeline = tiny_sd_pipeline()
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(torch.nan)
    message = r"4 of 4 samples were rejected.* a latent that is not finite: 4"
    with pytest.raises(ValueError, match=message):
        make_cache(config_of(tmp_path), pipeline, tmp_path / "c", show=quiet)


def test_the_list_is_the_default(tmp_path):
    feed = DrawnFeed(config_of(tmp_path, data_path=None, draw_count=2), tiny_sd_pipeline())
    assert feed.prompts == read_prompts()
    assert feed.total() == 2 * len(feed.prompts)
    digits = DrawnFeed(config_of(tmp_path, data_path=None, teacher="digits"), tiny_sd_pipeline())
    assert digits.prompts == default_prompts("digits")

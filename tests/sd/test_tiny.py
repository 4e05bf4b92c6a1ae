"""The random pipelines: real classes, repeatable, and everything that goes in matters."""

import pytest
import torch

from slam_edu.sd.components import TextCondition, text_condition, unet_output, whole_image_ids
from slam_edu.sd.tiny import tiny_pipeline, tiny_xl_pipeline, tiny_xl_unet
from tests.digits.conftest import same_weights

BUILDERS = {"sd": tiny_pipeline, "xl": tiny_xl_pipeline}


@pytest.fixture(scope="module")
def pipelines():
    return {name: build() for name, build in BUILDERS.items()}


@torch.no_grad()
def output(pipeline, prompt="a red two", t=499, change=lambda cond: cond):
    cond = change(text_condition(pipeline, [prompt]))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return unet_output(pipeline.unet, x, torch.tensor([t]), cond)


@pytest.mark.parametrize(("name", "kind"), [("sd", "StableDiffusionPipeline"),
                                            ("xl", "StableDiffusionXLPipeline")])  # fmt: skip
def test_they_are_small_and_of_the_real_classes(pipelines, name, kind):
    pipeline = pipelines[name]
    assert type(pipeline).__name__ == kind
    parts = [m for m in pipeline.components.values() if isinstance(m, torch.nn.Module)]
    assert 2e5 < sum(p.numel() for m in parts for p in m.parameters()) < 1e6
    assert not any(m.training for m in parts)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_seed_gives_the_same_weights_and_leaves_torch_alone(pipelines, name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again, other = BUILDERS[name](0), BUILDERS[name](1)
    assert torch.equal(torch.get_rng_state(), before)
    for part in ("unet", "vae", "text_encoder"):
        assert same_weights(getattr(again, part), getattr(pipelines[name], part))
        assert not same_weights(getattr(other, part), getattr(pipelines[name], part))


@pytest.mark.parametrize("name", BUILDERS)
def test_words_and_timesteps_matter(pipelines, name):
    here = output(pipelines[name])
    for other in (output(pipelines[name], "a blue seven"), output(pipelines[name], t=99)):
        assert (here - other).abs().max() > 0.01 * here.abs().max()


def test_what_xl_adds_matters(pipelines):
    pipeline = pipelines["xl"]
    here = output(pipeline)

    def pooled(cond):
        return TextCondition(cond.states, -cond.pooled, cond.time_ids)

    def cropped(cond):
        return TextCondition(cond.states, cond.pooled, cond.time_ids + 16)

    for change in (pooled, cropped):
        assert (output(pipeline, change=change) - here).abs().max() > 1e-3 * here.abs().max()
    assert whole_image_ids(pipeline).tolist() == [[32, 32, 0, 0, 32, 32]]


@pytest.mark.parametrize("name", BUILDERS)
def test_they_are_saved_and_read(pipelines, name, tmp_path):
    pipeline = pipelines[name]
    pipeline.save_pretrained(tmp_path)
    read = type(pipeline).from_pretrained(tmp_path, local_files_only=True)
    torch.testing.assert_close(output(read), output(pipeline))


@pytest.mark.parametrize("name", BUILDERS)
def test_prediction_type_is_the_schedulers(name):
    pipeline = BUILDERS[name](prediction_type="v_prediction")
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_the_bare_unet_is_the_pipelines_but_for_its_louder_words(pipelines):
    bare, whole = tiny_xl_unet(0).state_dict(), pipelines["xl"].unet.state_dict()
    changed = {name for name, value in bare.items() if not torch.equal(value, whole[name])}
    assert changed
    assert all("attn2" in name for name in changed)

"""The random pipelines: real classes, repeatable, and everything that goes in matters."""

import pytest
import torch

from slam_edu.sd.components import TextCondition, text_condition, unet_output, whole_image_ids
from slam_edu.sd.tiny import tiny_pipeline, tiny_xl_pipeline

BUILDERS = {"sd": tiny_pipeline, "xl": tiny_xl_pipeline}
#: Absolute sums of the UNet's, the autoencoder's and the text encoder's weights.
SUMS = {"sd": [18174.852, 2781.737, 1906.686], "xl": [24825.337, 2781.737, 745.889]}


@torch.no_grad()
def output(pipeline, prompt="a red two", t=499, change=lambda cond: cond):
    cond = change(text_condition(pipeline, [prompt]))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return unet_output(pipeline.unet, x, torch.tensor([t]), cond)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_seed_gives_the_same_weights_and_leaves_torch_alone(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, other = BUILDERS[name](0), BUILDERS[name](1, prediction_type="v_prediction")
    assert torch.equal(torch.get_rng_state(), before)
    modules = (one.unet, one.vae, one.text_encoder)
    found = [sum(p.abs().sum().item() for p in m.parameters()) for m in modules]
    assert found == pytest.approx(SUMS[name], rel=1e-5)
    assert not torch.equal(other.unet.conv_in.weight, one.unet.conv_in.weight)
    assert not any(m.training for m in modules)
    assert other.scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", BUILDERS)
def test_words_and_timesteps_matter_and_files_keep_it_so(name, tmp_path):
    pipeline = BUILDERS[name]()
    here = output(pipeline)
    for other in (output(pipeline, "a blue seven"), output(pipeline, t=99)):
        assert (here - other).abs().max() > 0.01 * here.abs().max()
    pipeline.save_pretrained(tmp_path)
    read = type(pipeline).from_pretrained(tmp_path, local_files_only=True)
    torch.testing.assert_close(output(read), here)


def test_what_xl_adds_matters():
    pipeline = tiny_xl_pipeline()
    here = output(pipeline)
    for change in (
        lambda cond: TextCondition(cond.states, -cond.pooled, cond.time_ids),
        lambda cond: TextCondition(cond.states, cond.pooled, cond.time_ids + 16),
    ):
        assert (output(pipeline, change=change) - here).abs().max() > 1e-3 * here.abs().max()
    assert whole_image_ids(pipeline).tolist() == [[32, 32, 0, 0, 32, 32]]

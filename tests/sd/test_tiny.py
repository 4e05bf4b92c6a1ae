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
def test_weights_are_the_seeds_and_words_and_timesteps_matter(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    pipeline = BUILDERS[name](0)
    assert torch.equal(torch.get_rng_state(), before)
    modules = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    found = [sum(p.abs().sum().item() for p in m.parameters()) for m in modules]
    assert found == pytest.approx(SUMS[name], rel=1e-5)
    assert not any(m.training for m in modules)
    here = output(pipeline)
    for other in (output(pipeline, "a blue seven"), output(pipeline, t=99)):
        assert (here - other).abs().max() > 0.01 * here.abs().max()


def test_what_xl_adds_matters():
    pipeline = tiny_xl_pipeline()
    here = output(pipeline)
    for change in (
        lambda cond: TextCondition(cond.states, -cond.pooled, cond.time_ids),
        lambda cond: TextCondition(cond.states, cond.pooled, cond.time_ids + 16),
    ):
        assert (output(pipeline, change=change) - here).abs().max() > 1e-3 * here.abs().max()
    assert whole_image_ids(pipeline).tolist() == [[32, 32, 0, 0, 32, 32]]

"""What sd asks of a model that comes with the course."""

import torch

from slam_edu.shipped import shipped


def test_digits():
    assert shipped("some/model") is None
    model = shipped("digits")
    data = model.data()
    assert len(data) == 16_000
    assert data.identity == {"seed": 0}
    (image, caption), (last, _) = data.__getitems__([5, 15_999])
    assert torch.equal(image, data[5][0])
    assert caption == data[5][1]
    assert torch.equal(last, data[15_999][0])
    prompts = model.prompts()
    assert len(prompts) == len(set(prompts)) == 512
    assert caption in prompts

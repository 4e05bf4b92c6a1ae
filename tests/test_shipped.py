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


def test_the_judge_asks_for_images_by_steps():
    """A model that draws one grey image is right about next to nothing."""
    asked = []

    def draw(prompts, steps):
        asked.append((len(prompts), steps))
        return torch.zeros(len(prompts), 3, 32, 32)

    rows = list(shipped("digits").evaluate(draw, [1, 4], 20))
    assert asked == [(20, 1), (20, 4)]
    assert [row["steps"] for row in rows] == [1, 4]
    assert rows[0]["all_right"] <= 0.1 < rows[0]["frechet"]

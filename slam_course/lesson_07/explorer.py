"""Explorer of lesson 07: what few steps give, of the teacher and of its students."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import torch
from torch import Tensor

from slam_course.figures import CourseFigure
from slam_course.images import image_grid
from slam_course.widgets import explorer
from slam_edu.digits.captions import WORDS

COUNT = 8

Drawer = Callable[[Sequence[str], Tensor, int], Tensor]
"""``draw(prompts, noise, steps) -> images`` of shape (B, 3, H, W), in [-1, 1]."""


@torch.no_grad()
def steps_figure(
    draw: Drawer, name: str, prompt: str, steps: int, seed: int, shape: Sequence[int]
) -> CourseFigure:
    """Eight images of one prompt, from the eight noises of a seed, latents of a shape."""
    noise = torch.randn((COUNT, *shape), generator=torch.Generator().manual_seed(seed))
    images = draw([prompt] * COUNT, noise, steps)
    in_words = f"{name}, {steps} step{'s' * (steps > 1)}, seed {seed}"
    return image_grid(
        images,
        columns=4,
        title=f'"{prompt}"\n{in_words}',
        alt=f'Eight images for "{prompt}": {in_words}.',
    )


def few_steps(
    networks: Mapping[str, Drawer],
    *,
    shape: Sequence[int] = (4, 8, 8),
    digits: Sequence[str] = WORDS,
    steps: Sequence[int] = (1, 2, 4, 8),
    first: int = 4,
) -> ipywidgets.VBox:
    """Menus for the network and the digit, sliders for steps and seed; the noise stays."""

    def draw(network: str, digit: str, steps: int, seed: int) -> CourseFigure:
        # Two colours, so that a wrong one can be seen.
        prompt = f"a red {digit} on a yellow background"
        return steps_figure(networks[network], network, prompt, steps, seed, shape)

    return explorer(
        draw, slow=True, first={"steps": first}, network=list(networks), digit=digits,
        steps=steps, seed=range(10),
    )  # fmt: skip

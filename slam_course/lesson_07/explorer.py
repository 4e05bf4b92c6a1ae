"""Explorer of lesson 07: what few steps give, of the teacher and of its students."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import torch
from torch import Tensor

from slam_course.figures import CourseFigure
from slam_course.images import image_grid
from slam_course.lesson_06.explorer import prompt_of
from slam_course.widgets import explorer
from slam_edu._validation import check_choice, check_count
from slam_edu.digits.captions import WORDS

STEPS = (1, 2, 4, 8)
SEEDS = tuple(range(10))
COUNT = 8
#: Stroke and background of the digits, so that a wrong colour can be seen.
COLOURS = ("red", "yellow")

Drawer = Callable[[Sequence[str], Tensor, int], Tensor]
"""``draw(prompts, noise, steps) -> images`` of shape (B, 3, H, W), in [-1, 1]."""


@torch.no_grad()
def steps_figure(
    draw: Drawer, name: str, prompt: str, steps: int, seed: int, shape: Sequence[int]
) -> CourseFigure:
    """Eight images of one prompt, from eight noises that belong to the seed.

    Args:
        draw: draws them.
        name: of what draws, for the title.
        prompt: any text.
        steps: of the sampler.
        seed: of the noise.
        shape: of a latent.

    Raises:
        ValueError: for a seed or a number of steps that is not allowed.
    """
    check_count(seed, "seed", low=0)
    check_count(steps, "steps")
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
    steps: Sequence[int] = STEPS,
    first: int = 4,
) -> ipywidgets.VBox:
    """Menus for the network and the digit, sliders for steps and seed; the noise stays.

    Args:
        networks: for each name, what draws.
        shape: of a latent.
        digits: words that can be chosen, the first is shown first.
        steps: numbers of steps.
        first: number of steps that is shown first.

    Raises:
        ValueError: for no network, or a ``first`` that is not among the steps.
    """
    if not networks:
        raise ValueError("there are no networks; allowed: one or more, by name")
    check_choice(first, steps, "first")

    def draw(network: str, digit: str, steps: int, seed: int) -> CourseFigure:
        prompt = prompt_of(digit, *COLOURS)
        return steps_figure(networks[network], network, prompt, steps, seed, shape)

    box = explorer(draw, slow=True, network=list(networks), digit=digits, steps=steps, seed=SEEDS)
    box.children[2].value = first
    return box

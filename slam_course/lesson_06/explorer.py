"""Explorer of lesson 06: what a prompt, a guidance, a number of steps and a seed give."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets
import torch

from slam_course.figures import CourseFigure
from slam_course.images import image_grid
from slam_course.widgets import explorer
from slam_edu.digits.captions import WORDS
from slam_edu.digits.colours import NAMES
from slam_edu.sampling import last, sample_ddim
from slam_edu.sd import LatentDiffusion

ANY = "any"
GUIDANCE = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 20)
# Black on white is what is seen first.
BACKGROUNDS = ("white", *(name for name in NAMES if name != "white"))


def prompt_of(digit: str, stroke: str, background: str) -> str:
    """A prompt in the captions' first wording; what is :data:`ANY` is left out."""
    words = [word for word in (stroke, "digit" if digit == ANY else digit) if word != ANY]
    article = "an" if words[0][0] in "aeiou" and words[0] != "one" else "a"
    ground = "" if background == ANY else f" on a {background} background"
    return f"{article} {' '.join(words)}{ground}"


@torch.no_grad()
def prompt_figure(
    model: LatentDiffusion, prompt: str, guidance: float, steps: int, seed: int = 0
) -> CourseFigure:
    """Eight images of any prompt, by DDIM from the eight noises of a seed."""
    count = 8
    noise = model.draw_noise(count, torch.Generator().manual_seed(seed))
    states = sample_ddim(
        model.network,
        noise,
        model.schedule,
        steps,
        prediction_type=model.prediction_type,
        cond=model.encode_prompts([prompt] * count),
        uncond=model.encode_prompts([""] * count) if guidance else None,
        guidance=guidance,
    )
    in_words = f"w = {guidance:g}, {steps} step{'s' * (steps > 1)}, seed {seed}"
    return image_grid(
        model.decode(last(states)),
        columns=4,
        title=f'"{prompt}"\n{in_words}',
        alt=f'Eight images for "{prompt}" with {in_words}.',
    )


def prompts(
    model: LatentDiffusion,
    *,
    digits: Sequence[str] = (*WORDS, ANY),
    guidance: Sequence[float] = GUIDANCE,
    steps: Sequence[int] = STEPS,
) -> ipywidgets.VBox:
    """Menus for the digit and its colours, sliders for guidance, steps and seed."""

    def draw(
        digit: str, stroke: str, background: str, guidance: float, steps: int, seed: int
    ) -> CourseFigure:
        return prompt_figure(model, prompt_of(digit, stroke, background), guidance, steps, seed)

    return explorer(
        draw,
        slow=True,
        first={"guidance": 1.0, "steps": 16},
        digit=digits,
        stroke=(*NAMES, ANY),
        background=(*BACKGROUNDS, ANY),
        guidance=guidance,
        steps=steps,
        seed=range(10),
    )

"""Models that come with the course, by name: a teacher, its data, prompts and a judge.

What a command line names (``teacher=digits``, ``data=digits``) is looked up here. Nothing of a
model is imported before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class CaptionedImages(Protocol):
    """A map-style data set of images (3, H, W) in [-1, 1] with captions.

    ``identity`` tells its content from another's, as JSON can hold it.
    """

    identity: dict[str, Any]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, str]: ...

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, str]]: ...


@dataclass(frozen=True)
class ShippedModel:
    """What ``sd`` asks of a model that comes with the course.

    Attributes:
        load_teacher: the pipeline, on the CPU in float32.
        data: the images and captions that it was trained on.
        prompts: distinct prompts that it can draw.
        evaluate: ``evaluate(draw, steps, count)`` with ``draw(prompts, n)`` images (count, 3, H,
            W) in [-1, 1]; for each n of ``steps``, the scores by name, ``"steps"`` the first.
    """

    load_teacher: Callable[[], StableDiffusionPipeline]
    data: Callable[[], CaptionedImages]
    prompts: Callable[[], list[str]]
    evaluate: Callable[[Draw, Sequence[int], int], Iterator[dict[str, float]]]


Draw = Callable[[Sequence[str], int], Tensor]


def shipped(name: str) -> ShippedModel | None:
    """The shipped model of a name; None if there is none."""
    if name != "digits":
        return None
    from slam_edu.digits.data import CaptionedDigits, digit_prompts
    from slam_edu.digits.pipeline import load_pipeline

    def evaluate(draw: Draw, steps: Sequence[int], count: int) -> Iterator[dict[str, float]]:
        from slam_edu.digits.evaluate import Evaluator

        judge = Evaluator(count)
        for n in steps:
            yield {"steps": n, **asdict(judge.score(draw(judge.prompts, n)))}

    return ShippedModel(load_pipeline, lambda: CaptionedDigits("train"), digit_prompts, evaluate)

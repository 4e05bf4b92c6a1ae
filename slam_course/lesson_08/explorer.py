"""Explorer of lesson 08: a measure on small sets of images, and how far it spreads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets
from torch import Tensor

from slam_course.figures import CourseFigure
from slam_course.lesson_08.figures import spreads
from slam_course.lesson_08.measures import MEASURES, RIGHT, Judged, estimates
from slam_course.widgets import explorer
from slam_edu._validation import check_count

COUNTS = (20, 50, 100, 200)


def spread_figure(
    sources: Mapping[str, Judged], reference: Tensor, measure: str, count: int
) -> CourseFigure:
    """One measure of small sets of ``count`` images, a row of dots for each source.

    Sources have as many images; distances are measured to reference features (m, 128).
    """
    sizes = {len(judged) for judged in sources.values()}
    if len(sizes) != 1:
        raise ValueError(
            f"sources have {sorted(sizes)} images; allowed: one or more, all with as many"
        )
    found = {name: estimates(measure, j, reference, count) for name, j in sources.items()}
    values = [value for each in found.values() for value in each]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.01
    limits = (low - room, min(high + room, 1.005) if measure == RIGHT else high + room)
    return spreads(found, count, measure, limits)


def spread(
    sources: Mapping[str, Judged], reference: Tensor, counts: Sequence[int] = COUNTS
) -> ipywidgets.VBox:
    """A menu for the measure and a slider for the number of images of a small set.

    Raises:
        ValueError: for sources of unlike sizes, or a count that is not 2 to as many.
    """
    most = min(map(len, sources.values()))
    for count in counts:
        check_count(count, "a number of images", low=2, high=most)

    def draw(measure: str, images: int) -> CourseFigure:
        return spread_figure(sources, reference, measure, images)

    return explorer(draw, slow=True, measure=MEASURES, images=counts)

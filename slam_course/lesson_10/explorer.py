"""Explorer of lesson 10: the board, for any data set and against any method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets

from slam_course.family.results import Choice, Results
from slam_course.figures import CourseFigure
from slam_course.lesson_10.figures import board as board_figure
from slam_course.widgets import explorer


def board(
    results: Results, settings: Mapping[str, Choice], data: Sequence[str]
) -> ipywidgets.VBox:
    """Menus of the data, the method that others are compared with, and the measure."""
    measures = {
        "distance to the data": tuple(f"sw_{n}" for n in (1, 2, 4, 8)),
        "error to f*": ("map_999", "map_499", "map_99"),
    }

    def draw(on: str, against: str, measure: str) -> CourseFigure:
        return board_figure(
            results, settings, data if on == "all" else [on], below=against,
            metrics=measures[measure],
        )  # fmt: skip

    return explorer(
        draw, on=("all", *data), against=tuple(settings), measure=tuple(measures)
    )  # fmt: skip

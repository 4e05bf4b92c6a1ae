"""The figure of the first result: a teacher in many steps and in few, its student in few."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slam_course.figures import COLORS, CourseFigure, figure, plane, points

if TYPE_CHECKING:  # the command in slam_course.demo draws with this module
    from slam_course.demo import DemoResult

_LIMIT = 2.6  # pictures fill a square of about this half-width at unit variance


def plot_demo(result: DemoResult, times: bool = True) -> CourseFigure:
    """The demonstration in one figure: teacher at 50 evaluations, teacher at 2, student at 2.

    Args:
        result: from :func:`slam_course.demo.run`.
        times: whether to write how long each took; without, the figure is equal in every run.
    """
    many, few, student = result.rows
    fig, axes = figure(
        3,
        size=(3.2, 3.75),
        alt=(
            "Three scatter plots. The exact teacher draws the picture with 50 evaluations and a "
            "blob with 2; the distilled student draws the picture with 2."
        ),
    )
    heads = (
        (many, "data", "exact teacher"),
        (few, "teacher", "exact teacher"),
        (student, "student", "distilled student"),
    )
    for ax, (row, color, name) in zip(axes, heads, strict=True):
        points(plane(ax, limit=_LIMIT), row.samples, color, size=1.6, alpha=0.55)
        steps = f"{row.evaluations} evaluations"
        ax.set_title(f"{name}: {steps}", fontsize=11, color=COLORS[color], fontweight="bold")
        note = f"distance to the data {row.distance:.2f}"
        if times:
            note += f"   drawn in {_duration(row.seconds)}"
        ax.set_xlabel(note, fontsize=9)
    if times:
        fig.supxlabel(
            f"distilled in {result.seconds:.0f} s; distance: sliced Wasserstein, "
            f"{result.floor:.2f} between two samples of the data",
            fontsize=8.5,
            color="#555555",
        )
    return fig


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"

"""Figures of the studies of digits that no lesson shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slam_course.figures import COLORS, SOLVER_NAMES, CourseFigure, figure, open_axes, plain_ticks
from slam_course.lesson_08.figures import plain_log, study_legend, with_band
from slam_edu.digits.evaluate import Scores, Setting

#: Columns of grids of images: the digits 0 to 7, each in another pair of colours.
COLUMNS = (
    ("red", "yellow"), ("white", "blue"), ("cyan", "black"), ("yellow", "purple"),
    ("blue", "white"), ("black", "cyan"), ("purple", "green"), ("green", "red"),
)  # fmt: skip


def training_curves(
    logs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
) -> CourseFigure:
    """Loss and gradient norm over updates: by student, by seed, the rows of ``log.csv``."""
    said = "; ".join(
        f"{name} from {runs[0][0]['loss']:.2g} to {runs[0][-1]['loss']:.2g}"
        for name, runs in logs.items()
    )
    alt = f"Training loss and gradient norm over updates: {said}."
    fig, axes = figure(2, size=(4.5, 4.2), alt=alt)
    columns = {"loss": "loss", "grad_norm": "norm of the gradient"}
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        for name, runs in logs.items():
            curve: dict[float, list[float]] = {}
            for rows in runs:
                for row in rows:
                    curve.setdefault(row["update"], []).append(row[column])
            with_band(ax, name, curve, marker="")
        ax.set(yscale="log", xlabel="updates")
        ax.set_title(title, fontsize=9.5)
        plain_ticks(ax.yaxis)
        open_axes(ax)
    study_legend(fig, axes[0])
    return fig


def steps_curve(rows: Sequence[tuple[Setting, Scores]], floor: Scores) -> CourseFigure:
    """Few steps: network calls against images that are as asked for, and against the distance.

    The settings of ``rows`` are of several samplers; ``floor`` has the scores of real images.
    """
    alt = "With 16 or fewer network calls, both samplers lose digits and leave the distribution."
    fig, (left, right) = figure(2, size=(4.2, 3.2), alt=alt)
    styles = {"ddim": ("-", "o"), "dpmpp_2m": ("--", "s")}
    for sampler, (line, marker) in styles.items():
        of = sorted((r for r in rows if r[0].sampler == sampler), key=lambda r: r[0].calls)
        calls = [setting.calls for setting, _ in of]
        style = {"color": COLORS["teacher"], "marker": marker, "label": SOLVER_NAMES[sampler]}
        left.plot(calls, [100 * s.all_right for _, s in of], line, **style)
        right.plot(calls, [s.frechet for _, s in of], line, **style)
    left.set_ylabel("all right, %")
    right.set_ylabel("Fréchet distance")
    right.axhline(floor.frechet, color=COLORS["data"], linestyle=":", label="real images")
    plain_log(right.yaxis, (0.3, 1, 3, 10, 30))
    for ax in (left, right):
        plain_log(ax.xaxis, (2, 4, 8, 16, 32, 100))
        ax.set_xlabel("network calls (guidance takes two a step)")
        ax.legend(fontsize=8, frameon=False)
        ax.grid(alpha=0.2)
    return fig

"""The figures beside the teacher's table, written as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from slam_course.figures import COLORS, SOLVER_NAMES, CourseFigure, figure
from slam_course.images import prompt_grid
from slam_course.lesson_08 import figures as plots
from slam_edu.digits.captions import FULL, WORDS, caption
from slam_edu.digits.evaluate.scores import Scores
from slam_edu.digits.evaluate.table import Setting, draw_images
from slam_edu.sd.components import LatentDiffusion

#: Colour pairs of the grid's columns, (stroke, background).
COLUMNS = (
    ("red", "yellow"), ("white", "blue"), ("cyan", "black"), ("yellow", "purple"),
    ("blue", "white"), ("black", "cyan"), ("purple", "green"), ("green", "red"),
)  # fmt: skip
#: Ways to draw the same eight prompts from the same noise.
WAYS = (
    ("DDIM, 50 steps", "ddim", 50),
    ("DDIM, 8", "ddim", 8),
    ("DDIM, 4", "ddim", 4),
    ("DDIM, 2", "ddim", 2),
    ("DPM++ 2M, 4", "dpmpp_2m", 4),
)
SEED = 1


def write_figures(
    model: LatentDiffusion, results: dict, folder: Path, guidance: float = 2.0
) -> list[Path]:
    """Draw and write ``grid``, ``few_steps``, ``trade_off`` and ``steps``; returns their paths.

    Args:
        model: draws the images.
        results: of :func:`slam_edu.digits.evaluate.table.read_results`.
        folder: made if it is not there.
        guidance: of the images and of the curves over steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [caption(FULL[0], d, *pair) for d in range(10) for pair in COLUMNS]
    noise = model.draw_noise(len(prompts), torch.Generator().manual_seed(SEED))
    grid = draw_images(model, prompts, Setting(steps=50, guidance=guidance), noise)
    n = len(COLUMNS)
    diagonal = [n * i + i for i in range(n)]  # the digits 0 to 7, each in another pair of colours
    few = {
        name: draw_images(
            model,
            [prompts[i] for i in diagonal],
            Setting(sampler=sampler, steps=steps, guidance=guidance),
            noise[diagonal],
        )
        for name, sampler, steps in WAYS
    }
    rows = [(Setting(**row["setting"]), Scores(**row["scores"])) for row in results["rows"]]
    floor = Scores(**results["floor"])
    trade_off = [row for row in rows if row[0].steps == 50 and row[0].sampler == "ddim"]
    curves = [row for row in rows if row[0].guidance == guidance]
    columns = [f"{stroke} on\n{background}" for stroke, background in COLUMNS]
    asked = [f"{stroke} {i}\non {background}" for i, (stroke, background) in enumerate(COLUMNS)]
    figures = {
        "grid": prompt_grid(grid, WORDS, columns),
        "few_steps": prompt_grid(torch.cat(list(few.values())), list(few), asked),
        "trade_off": plots.trade_off(trade_off, floor),
        "steps": steps_curve(curves, floor),
    }
    paths = []
    for name, fig in figures.items():
        paths.append(folder / f"{name}.png")
        fig.save(paths[-1])
    return paths


def steps_curve(rows: Sequence[tuple[Setting, Scores]], floor: Scores) -> CourseFigure:
    """Few steps: network calls against images that are as asked for, and against the distance.

    Args:
        rows: settings with their scores, of several samplers.
        floor: the scores of real images.
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
    plots.plain_log(right.yaxis, (0.3, 1, 3, 10, 30))
    for ax in (left, right):
        plots.plain_log(ax.xaxis, (2, 4, 8, 16, 32, 100))
        ax.set_xlabel("network calls (guidance takes two a step)")
        ax.legend(fontsize=8, frameon=False)
        ax.grid(alpha=0.2)
    return fig

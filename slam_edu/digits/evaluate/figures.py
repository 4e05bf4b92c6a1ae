"""The figures beside the teacher's table, written as PNG files."""

from __future__ import annotations

from pathlib import Path

import torch

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
        "steps": plots.steps_curve(curves, floor),
    }
    paths = []
    for name, fig in figures.items():
        paths.append(folder / f"{name}.png")
        fig.save(paths[-1])
    return paths

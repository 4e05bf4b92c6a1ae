"""Images in rows and grids, drawn pixel by pixel: 32 pixels are few, and all are to be seen.

Images are tensors of shape (B, 3, H, W) in [-1, 1]. A grid of them is put together in one array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from slam_course.figures import CourseFigure, figure

_DPI = 96
_GAP = 3  # white pixels between two images of 32


def mosaic(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Images side by side on white, of shape (rows (H + gap) + gap, columns (W + gap) + gap, 3).

    Its values are in [0, 1], as matplotlib's ``imshow`` has them.
    """
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i, image in enumerate((images.float().clamp(-1, 1) + 1) / 2):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, y : y + height, x : x + width] = image
    return sheet.permute(1, 2, 0)


def image_grid(images: Tensor, *, columns: int, title: str, alt: str) -> CourseFigure:
    """Images row by row under one title."""
    high = 1.25 * -(-len(images) // columns) + 0.5
    fig, (ax,) = figure(size=(1.25 * columns, high), alt=alt)
    ax.imshow(mosaic(images.cpu(), columns).numpy(), interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title, fontsize=10)
    return fig


def image_rows(
    rows: Mapping[str, Tensor],
    *,
    alt: str,
    title: str = "",
    columns: Sequence[str] = (),
    scale: int = 2,
    gaps: Sequence[int] = (),
) -> CourseFigure:
    """Rows of as many images, each with its name on the left.

    ``columns`` are their names, in one line or more; ``scale`` pixels of the screen are one of
    the image, in each direction; before the columns ``gaps``, counted from 0, is twice the gap.

    Raises:
        ValueError: for rows of unlike lengths, or another number of column names.
    """
    lengths = {len(images) for images in rows.values()}
    if len(lengths) != 1 or (columns and len(columns) not in lengths):
        raise ValueError(
            f"rows of {sorted(lengths)} images with {len(columns)} names; allowed: rows of one "
            f"length, and as many names or none"
        )
    [count] = lengths
    images = torch.cat([row.cpu() for row in rows.values()])
    height, width = images.shape[2:]
    canvas = mosaic(images, count, _GAP).numpy()
    pitch = width + _GAP
    starts = [_GAP + i * pitch for i in range(count)]
    for column in sorted(gaps, reverse=True):
        canvas = np.insert(canvas, [column * pitch] * _GAP, 1.0, axis=1)
        starts = [start + _GAP * (i >= column) for i, start in enumerate(starts)]
    # A whole number of the screen's pixels for each of the image's, or they would differ in size.
    lines = max((1 + name.count("\n") for name in columns), default=0)
    high, wide = scale * canvas.shape[0], scale * canvas.shape[1]
    left, right, bottom = 12 + 7 * max(map(len, rows)), 8, 4
    size = (left + wide + right, bottom + high + 6 + 15 * lines + (22 if title else 0))
    fig = CourseFigure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI, alt=alt)
    ax = fig.add_axes((left / size[0], bottom / size[1], wide / size[0], high / size[1]))
    ax.imshow(canvas, interpolation="nearest")
    middles = [_GAP + i * (height + _GAP) + (height - 1) / 2 for i in range(len(rows))]
    ax.set_yticks(middles, list(rows))
    ax.xaxis.tick_top()
    ax.set_xticks([start + (width - 1) / 2 for start in starts] if columns else [], columns)
    ax.tick_params(length=0, labelsize=9)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, fontsize=10, pad=8 + 11 * lines)
    return fig


def prompt_grid(images: Tensor, rows: Sequence[str], columns: Sequence[str]) -> CourseFigure:
    """One image for each pair of a row and a column, row by row, their names at the edges."""
    n, m = len(rows), len(columns)
    names = [name.replace("\n", " ") for name in columns]
    alt = f"{n} by {m} drawn digits: {', '.join(rows)} by {', '.join(names)}."
    fig, (ax,) = figure(size=(0.78 * m + 0.1 * max(map(len, rows)), 0.78 * n + 0.7), alt=alt)
    gap, size = 2, images.shape[-1]
    middles = [gap + (size + gap) * i + (size - 1) / 2 for i in range(max(m, n))]
    ax.imshow(mosaic(images, m, gap).numpy(), interpolation="nearest")
    ax.set_xticks(middles[:m], columns, fontsize=8)
    ax.set_yticks(middles[:n], rows, fontsize=9)
    ax.xaxis.tick_top()
    ax.set_anchor("E")  # what equal scales leave over goes to the names on the left
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig

"""Figures, axes and colours: the grammar that all pictures of the course share.

=====================  ==========  =========================================================
what                   colour      where
=====================  ==========  =========================================================
``COLORS["noise"]``    grey        samples at the noisy end, noise
``COLORS["path"]``     green       the exact PF-ODE: trajectories, solution map, sub-paths
``COLORS["data"]``     near-black  clean data
``COLORS["teacher"]``  vermilion   a diffusion model drawn with a solver in few steps
``COLORS["student"]``  blue        a distilled student
``COLORS["chord"]``    purple      straight lines of the SL-ODE, error bars between two ends
=====================  ==========  =========================================================

The colours are Okabe and Ito's, which colour-blind readers can tell apart; lines differ in style
too. Every function returns a :class:`CourseFigure`, which shows itself in a notebook together with
a sentence that describes it (alternative text), and whose PNG has the same bytes in every run.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from slam_edu.io import atomic_path
from slam_edu.schedule import Level

COLORS = {
    "noise": "#b0b0b0",
    "path": "#009E73",
    "data": "#2b2b2b",
    "teacher": "#D55E00",
    "student": "#0072B2",
    "chord": "#CC79A7",
}
LIMIT = 3.2
"""Half-width of the plane that most figures show: the data sets have unit standard deviation."""

SOLVER_NAMES = {
    "ddim": "DDIM",
    "heun": "Heun",
    "dpmpp_2m": "DPM-Solver++ 2M",
    "rk4": "Runge-Kutta 4",
}
"""How figures call the solvers of :data:`slam_edu.solver.METHODS`."""

_DPI = 96


class CourseFigure(Figure):
    """A matplotlib figure with alternative text that displays itself in a notebook.

    It belongs to no window and no global state of pyplot.

    Attributes:
        alt: one or two sentences that say what is to be seen.
    """

    def __init__(self, *args: Any, alt: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)
        self.alt = alt

    def png(self) -> bytes:
        """The figure as a PNG file, the same bytes in every run.

        With a palette of 256 colours it takes about a third of the bytes; a notebook keeps all of
        its figures, and is to stay small.
        """
        self.canvas.draw()
        image = Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB")
        buffer = io.BytesIO()
        image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            buffer, format="png"
        )
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the figure to a file, whole or not at all; the suffix decides the format."""
        with atomic_path(path) as temporary:
            self.savefig(temporary, dpi=150)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {
            "image/png": base64.b64encode(self.png()).decode("ascii"),
            "text/plain": f"[figure] {self.alt}",
        }


class Animation:
    """Figures shown one after the other, as an animated GIF that a notebook displays.

    Args:
        frames: figures of one size.
        milliseconds: that each of them stays; the last one stays three times as long.
        alt: one or two sentences that say what is to be seen.

    Raises:
        ValueError: for no frames, or frames of different sizes.
    """

    def __init__(self, frames: Sequence[CourseFigure], *, milliseconds: int, alt: str) -> None:
        sizes = {tuple(frame.get_size_inches()) for frame in frames}
        if len(sizes) != 1:
            raise ValueError(
                f"{len(frames)} frames of {len(sizes)} sizes; allowed: one or more, all of one "
                f"size"
            )
        self.frames, self.milliseconds, self.alt = list(frames), milliseconds, alt

    @cached_property
    def _gif(self) -> bytes:
        # Once: a second drawing of a figure may place its axes a hair differently.
        images = [
            Image.open(io.BytesIO(frame.png())).convert("RGB").quantize(
                64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
            )
            for frame in self.frames
        ]  # fmt: skip
        times = [self.milliseconds] * len(images)
        times[-1] *= 3
        buffer = io.BytesIO()
        images[0].save(
            buffer, format="gif", save_all=True, append_images=images[1:], duration=times, loop=0
        )
        return buffer.getvalue()

    def gif(self) -> bytes:
        """The animation as a GIF file, the same bytes in every run."""
        return self._gif

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {
            "image/gif": base64.b64encode(self.gif()).decode("ascii"),
            "text/plain": f"[figure] {self.alt}",
        }


def figure(
    columns: int = 1,
    rows: int = 1,
    *,
    size: tuple[float, float] = (3.0, 3.0),
    alt: str = "",
    **subplots: Any,
) -> tuple[CourseFigure, np.ndarray]:
    """A figure with a grid of axes, each of about ``size`` inches.

    Returns:
        The figure and its axes as a flat array of length ``rows * columns``.
    """
    fig = CourseFigure(
        figsize=(columns * size[0], rows * size[1]), dpi=_DPI, layout="constrained", alt=alt
    )
    axes = fig.subplots(rows, columns, squeeze=False, **subplots)
    return fig, axes.reshape(-1)


# -------------------------------------------------------------------- parts of a figure


def plane(ax: Axes, title: str = "", limit: float = LIMIT) -> Axes:
    """Prepare axes for points of the plane: fixed limits, equal scales, no ticks."""
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=10)
    for spine in ax.spines.values():
        spine.set_color("#d0d0d0")
    return ax


def points(
    ax: Axes, x: Tensor, color: str = "data", *, size: float = 2.0, alpha: float = 0.5, **kw: Any
) -> PathCollection:
    """Scatter points ``(B, 2)`` in a colour of the grammar."""
    x = _numpy(x)
    return ax.scatter(
        x[:, 0], x[:, 1], s=size, color=COLORS.get(color, color), alpha=alpha, linewidths=0, **kw
    )


def paths(
    ax: Axes,
    trajectory: Tensor,
    color: str = "path",
    *,
    width: float = 0.8,
    alpha: float = 0.6,
    **kw: Any,
) -> LineCollection:
    """Draw trajectories ``(steps, B, 2)`` as lines."""
    lines = np.swapaxes(_numpy(trajectory), 0, 1)  # (B, steps, 2)
    collection = LineCollection(
        lines, colors=COLORS.get(color, color), linewidths=width, alpha=alpha, **kw
    )
    ax.add_collection(collection)
    return collection


def grid_points(n: int = 80, limit: float = LIMIT, dtype: torch.dtype = torch.float32) -> Tensor:
    """An ``n`` by ``n`` grid over the plane, shape ``(n * n, 2)``, for densities and maps."""
    axis = torch.linspace(-limit, limit, n, dtype=dtype)
    return torch.cartesian_prod(axis, axis)


def field(
    ax: Axes,
    values: Tensor,
    *,
    limit: float = LIMIT,
    cmap: str = "Greys",
    interpolation: str = "bilinear",
    **kw: Any,
) -> AxesImage:
    """Show values on :func:`grid_points`, shape ``(n * n,)``, as an image."""
    n = round(len(values) ** 0.5)
    image = _numpy(values).reshape(n, n).T  # cartesian_prod runs over x first, images over rows
    return ax.imshow(
        image, origin="lower", extent=(-limit, limit, -limit, limit), cmap=cmap,
        interpolation=interpolation, **kw,
    )  # fmt: skip


def open_axes(ax: Axes) -> Axes:
    """Axes without a box: only the two lines that carry numbers."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
    return ax


def legend_lines(entries: Mapping[str, tuple[str, str]], width: float = 1.6) -> list[Line2D]:
    """Lines for a legend alone: for each label, a colour (of the grammar) and a line style."""
    return [
        Line2D([], [], color=COLORS.get(color, color), ls=style, lw=width, label=label)
        for label, (color, style) in entries.items()
    ]


def legend_below(fig: CourseFigure, handles: Sequence[Artist], columns: int) -> None:
    """One legend for all panels, under them."""
    fig.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )


def evaluations(number: int) -> str:
    """``"1 evaluation"``, ``"2 evaluations"``."""
    return f"{number} evaluation" + "s" * (number != 1)


def arcs(trajectory: Tensor, levels: Level, per_hop: int = 16) -> Tensor:
    """A solver's path between its states, straight in z = x / alpha, as the arcs it is in x.

    Args:
        trajectory: states at ``levels``, shape ``(n + 1, B, D)``; variance preserving.
        levels: shape ``(n + 1,)``.
        per_hop: pieces that a hop is drawn with.

    Returns:
        Points of the path, shape ``(n * per_hop + 1, B, D)``.
    """
    z, rho = trajectory / levels.alpha[:, None, None], levels.rho
    share = torch.linspace(0, 1, per_hop + 1, dtype=rho.dtype)[1:]
    pieces = [trajectory[:1]]
    for i in range(len(levels) - 1):
        # Equal pieces of the angle arctan(rho), whose cosine is alpha.
        angle = torch.lerp(rho[i].atan(), rho[i + 1].atan(), share)
        part = ((angle.tan() - rho[i]) / (rho[i + 1] - rho[i]))[:, None, None]
        pieces.append(angle.cos()[:, None, None] * torch.lerp(z[i], z[i + 1], part))
    return torch.cat(pieces)


def _numpy(x: Tensor | np.ndarray) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


# -------------------------------------------------------------------- whole figures


def snapshots(
    states: Sequence[Tensor],
    titles: Sequence[str],
    *,
    alt: str,
    colors: str | Sequence[str] = "data",
    size: float = 2.0,
    limit: float = LIMIT,
) -> CourseFigure:
    """A strip of panels with fixed limits, one per state of shape ``(B, 2)``.

    Args:
        states: points of each panel.
        titles: of each panel.
        alt: what the strip shows, for those who do not see it.
        colors: of the grammar; one for all panels, or one for each.
        size: width of a panel in inches.
        limit: half-width of the plane shown.
    """
    each = [colors] * len(states) if isinstance(colors, str) else colors
    fig, axes = figure(len(states), size=(size, size + 0.28), alt=alt)
    for ax, x, title, color in zip(axes, states, titles, each, strict=True):
        points(plane(ax, title, limit), x, color, size=0.6 * size)
    return fig

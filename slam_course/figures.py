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
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
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
LIMIT = 3.2  # half-width of the plane: the data sets have unit standard deviation
SOLVER_NAMES = {
    "ddim": "DDIM", "heun": "Heun", "dpmpp_2m": "DPM-Solver++ 2M", "rk4": "Runge-Kutta 4",
}  # fmt: skip

if TYPE_CHECKING:
    from slam_course.results import Ratio

_DPI = 96
_STEPS = ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))


class CourseFigure(Figure):
    """A matplotlib figure with alternative text that shows itself in a notebook, without pyplot.

    ``alt``: one or two sentences that say what is to be seen.
    """

    def __init__(self, *args: Any, alt: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)
        self.alt = alt

    def png(self) -> bytes:
        """A PNG file, the same bytes in every run; 256 colours, which keeps notebooks small."""
        self.canvas.draw()
        image = Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB")
        buffer = io.BytesIO()
        _quantized(image, 256).save(buffer, format="png")
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
    """Figures of one size, one after the other, as an animated GIF that a notebook displays.

    Each stays for so many ``milliseconds``, the last one three times as long.
    """

    def __init__(self, frames: Sequence[CourseFigure], *, milliseconds: int, alt: str) -> None:
        self.frames, self.milliseconds, self.alt = list(frames), milliseconds, alt

    def gif(self) -> bytes:
        """The animation as a GIF file, the same bytes in every run."""
        return self._gif

    @cached_property  # a second drawing of a figure may place its axes a hair differently
    def _gif(self) -> bytes:
        pngs = [Image.open(io.BytesIO(frame.png())).convert("RGB") for frame in self.frames]
        first, *others = [_quantized(image, 64) for image in pngs]
        times = [self.milliseconds] * len(others) + [3 * self.milliseconds]
        buffer = io.BytesIO()
        first.save(
            buffer, format="gif", save_all=True, append_images=others, duration=times, loop=0
        )
        return buffer.getvalue()

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
    """A figure with a grid of axes of about ``size`` inches each; the axes as a flat array."""
    fig = CourseFigure(
        figsize=(columns * size[0], rows * size[1]), dpi=_DPI, layout="constrained", alt=alt
    )
    axes = fig.subplots(rows, columns, squeeze=False, **subplots)
    return fig, axes.reshape(-1)


def plane(ax: Axes, title: str = "", limit: float = LIMIT) -> Axes:
    """Prepare axes for points of the plane: fixed limits, equal scales, no ticks."""
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=10)
    ax.spines[:].set_color("#d0d0d0")
    return ax


def points(
    ax: Axes, x: Tensor, color: str = "data", *, size: float = 2.0, alpha: float = 0.5, **kw: Any
) -> None:
    """Scatter points ``(B, 2)`` in a colour of the grammar."""
    color = COLORS.get(color, color)
    ax.scatter(*_numpy(x).T, s=size, color=color, alpha=alpha, linewidths=0, **kw)


def paths(
    ax: Axes, trajectory: Tensor, color: str = "path", *, width: float = 0.8, alpha: float = 0.6,
    **kw: Any,
) -> None:  # fmt: skip
    """Draw trajectories ``(steps, B, 2)`` as lines."""
    lines = np.swapaxes(_numpy(trajectory), 0, 1)  # (B, steps, 2)
    style = {"colors": COLORS.get(color, color), "linewidths": width, "alpha": alpha, **kw}
    ax.add_collection(LineCollection(lines, **style))


def grid_points(n: int = 80, limit: float = LIMIT, dtype: torch.dtype = torch.float32) -> Tensor:
    """An ``n`` by ``n`` grid over the plane, shape ``(n * n, 2)``, for densities and maps."""
    axis = torch.linspace(-limit, limit, n, dtype=dtype)
    return torch.cartesian_prod(axis, axis)


def on_circles(n: int, *radii: float) -> Tensor:
    """``n`` points on circles around the origin, in turn, evenly spread: ``(n, 2)``, float64."""
    angle = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * torch.pi / n)
    radius = torch.tensor(radii, dtype=torch.float64).repeat(n // len(radii))
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def field(ax: Axes, values: Tensor, *, limit: float = LIMIT, **kw: Any) -> AxesImage:
    """Show values on :func:`grid_points`, shape ``(n * n,)``, as an image."""
    n = round(len(values) ** 0.5)
    image = _numpy(values).reshape(n, n).T  # cartesian_prod runs over x first, images over rows
    style = {"cmap": "Greys", "interpolation": "bilinear", **kw}
    return ax.imshow(image, origin="lower", extent=(-limit, limit, -limit, limit), **style)


def open_axes(
    ax: Axes, size: float = 9, *, title: str = "", legend: str = "", **settings: Any
) -> None:
    """Axes without a box, numbers in this font size; ``settings`` are those of ``Axes.set``.

    ``legend`` is the place of a legend without a frame.
    """
    ax.set(**settings)
    if title:
        ax.set_title(title, fontsize=10)
    if legend:
        ax.legend(frameon=False, fontsize=9, loc=legend)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=size)


def plain_ticks(axis: Axis, most: int = 7, steps: Sequence[Sequence[float]] = _STEPS) -> None:
    """Ticks of a logarithmic axis as plain numbers: the first of ``steps`` that are few enough."""
    low, high = axis.get_view_interval()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for each in steps:
        ticks = [step * power for power in powers for step in each]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) <= most:
            break
    if len(shown) < 2:  # all values are nearly alike
        ticks = ticker.MaxNLocator(3).tick_values(low, high)
        shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, [f"{tick:.4g}" for tick in shown])
    axis.set_minor_locator(ticker.NullLocator())


def note(
    ax: Axes, text: str, at: Sequence[float], shift: tuple[int, int], size: float = 10, **kw: Any
) -> None:
    """A text beside a point, ``shift`` points to the right and up."""
    ax.annotate(text, at, shift, textcoords="offset points", fontsize=size, **kw)


def legend_lines(entries: Mapping[str, str | tuple[str, str]], width: float = 1.6) -> list[Line2D]:
    """Lines for a legend alone: by label a colour (of the grammar), or one and a line style."""
    styles = {label: (it, "-") if isinstance(it, str) else it for label, it in entries.items()}
    return [
        Line2D([], [], color=COLORS.get(color, color), ls=style, lw=width, label=label)
        for label, (color, style) in styles.items()
    ]


def legend_below(
    fig: CourseFigure, handles: Sequence[Artist], columns: int, size: float = 9, **kw: Any
) -> None:
    """One legend for all panels, under them."""
    style = {"frameon": False, "fontsize": size, **kw}
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, **style)


def band(
    ax: Axes, curve: Mapping[float, Sequence[float]], label: str, color: str, **style: Any
) -> None:
    """A line through the geometric means of values by x, a band from their least to their most."""
    x = sorted(curve)
    with np.errstate(divide="ignore"):
        middle = [float(np.exp(np.mean(np.log(curve[at])))) for at in x]
    ax.plot(x, middle, ms=4.5, label=label, color=color, **style)
    low, high = [min(curve[at]) for at in x], [max(curve[at]) for at in x]
    ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0)


def ratio_plot(
    found: Mapping[str, Mapping[str, Ratio]],
    panels: Mapping[str, str],
    color: Callable[[str], str],
    labels: Mapping[str, str],
    *,
    title: str = "",
    unit: str = "below 1: better",
    ticks: Sequence[float] | None = None,
) -> CourseFigure:
    """Ratios with their intervals, a row for each comparison, a panel for each metric.

    ``found`` has the ratios by comparison and metric, ``panels`` the metrics' titles, ``labels``
    those comparisons' that are not called by their own name.
    """
    metrics = list(next(iter(found.values())))
    best = {name: min(row.values(), key=lambda r: r.value).value for name, row in found.items()}
    lowest = min(best, key=best.__getitem__)
    fig, axes = figure(
        len(metrics),
        size=(8.6 / len(metrics), 0.9 + 0.3 * len(found)),
        sharey=True,
        sharex=True,
        alt=f"Ratios with 95 % intervals, {len(found)} comparisons by {len(metrics)} measures; a "
        f"line marks 1. The lowest ratio is {best[lowest]:.2f}, of {lowest}.",
    )
    names = list(found)
    for ax, metric in zip(axes, metrics, strict=True):
        for y, name in enumerate(names):
            ratio = found[name][metric]
            its, clear = color(name), ratio.high < 1 or ratio.low > 1
            ax.plot([ratio.low, ratio.high], [y, y], color=its, lw=2.2)
            ax.plot(ratio.value, y, "o", color=its, ms=6, mfc=its if clear else "white")
        ax.axvline(1, color="#8c8c8c", lw=1, zorder=0)
        ax.set(xscale="log", ylim=(len(names) - 0.5, -0.5))
        ax.set_yticks(range(len(names)), [labels.get(n, n) for n in names], fontsize=8.5)
        ax.set_title(panels[metric], fontsize=9)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_formatter(ticker.ScalarFormatter())
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
        open_axes(ax, 8.5)
    low, high = axes[0].get_xlim()
    if ticks is None:
        ticks = [0.25, 0.5, 1, 2, 4, 8] if high / low > 2.5 else [0.7, 1, 1.4]
        ticks = [0.25, 1, 4, 16] if high / low > 12 else ticks  # more would run into each other
    for ax in axes:
        ax.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    fig.suptitle(title, fontsize=10)
    fig.supxlabel(unit, fontsize=9)
    return fig


def evaluations(number: int) -> str:
    """``"1 evaluation"``, ``"2 evaluations"``."""
    return f"{number} evaluation" + "s" * (number != 1)


def arcs(trajectory: Tensor, levels: Level, per_hop: int = 16) -> Tensor:
    """A solver's path between its states, straight in z = x / alpha, as the arcs it is in x.

    States at ``levels`` are ``(n + 1, B, D)``, variance preserving; the path's points
    ``(n * per_hop + 1, B, D)``.
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


def _quantized(image: Image.Image, colors: int) -> Image.Image:
    return image.quantize(colors, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def snapshots(
    states: Sequence[Tensor],
    titles: Sequence[str],
    *,
    alt: str,
    colors: str | Sequence[str] = "data",
    size: float = 2.0,
    limit: float = LIMIT,
) -> CourseFigure:
    """A strip of panels with fixed limits, one per state ``(B, 2)``, ``size`` inches wide each.

    ``colors`` of the grammar are one for all panels or one for each.
    """
    each = [colors] * len(states) if isinstance(colors, str) else colors
    fig, axes = figure(len(states), size=(size, size + 0.28), alt=alt)
    for ax, x, title, color in zip(axes, states, titles, each, strict=True):
        points(plane(ax, title, limit), x, color, size=0.6 * size)
    return fig

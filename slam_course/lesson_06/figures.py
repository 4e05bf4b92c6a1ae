"""Figures of lesson 06: latents, the words' maps, guidance, latent trajectories."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib import colormaps
from matplotlib.ticker import NullLocator, ScalarFormatter
from torch import Tensor

from slam_course.figures import (
    COLORS,
    SOLVER_NAMES,
    CourseFigure,
    figure,
    open_axes,
    paths,
    plane,
    points,
)
from slam_course.images import image_rows

_LATENT_LIMIT = 3.0  # a latent has about unit variance
_SOLVERS = {
    "ddim": {"color": COLORS["teacher"], "ls": "-", "marker": "o"},
    "dpmpp_2m": {"color": "#f0a35e", "ls": "-.", "marker": "D"},
}
#: Line styles and shades for growing guidance: one colour says "the PF-ODE".
_GUIDED = (("-", "#7fd1b5"), ("-", "#009E73"), ("--", "#006b4f"), (":", "#003d2d"))


def _as_images(values: Tensor, cmap: str, low: float, high: float, size: int) -> Tensor:
    """Numbers (B, h, w) as coloured images (B, 3, size, size)."""
    scaled = ((values.detach().cpu() - low) / (high - low)).clamp(0, 1).numpy()
    rgb = torch.as_tensor(colormaps[cmap](scaled)[..., :3], dtype=torch.float32)  # (B, h, w, 3)
    repeat = size // values.shape[-1]
    image = rgb.permute(0, 3, 1, 2).repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)
    return 2 * image - 1


# -------------------------------------------------------------------- latents


def latent_channels(images: Tensor, latents: Tensor, decoded: Tensor) -> CourseFigure:
    """Images, the channels of their latents (grey is 0, black -3, white 3), and decoded images."""
    channels = latents.shape[1]
    rows = {}
    for i in range(len(images)):
        maps = _as_images(latents[i], "gray", -_LATENT_LIMIT, _LATENT_LIMIT, images.shape[-1])
        rows[" " * i] = torch.cat([images[i : i + 1].cpu(), maps, decoded[i : i + 1].cpu()])
    names = ["image", *(f"channel {i + 1}" for i in range(channels)), "decoded"]
    return image_rows(
        rows,
        columns=names,
        scale=3,
        gaps=(1, channels + 1),
        alt=f"{len(images)} rows. Left a coloured digit, then the {channels} channels of its "
        f"latent as coarse grey pictures in which the digit's place and shape can be made out, "
        f"right the decoded image, which the eye cannot tell from the first.",
    )


# -------------------------------------------------------------------- text


def word_maps(
    images: Tensor, attention: Mapping[str, Tensor], effects: Mapping[str, Tensor]
) -> CourseFigure:
    """Images, and for each where some words are looked at, and where they act; one image a row.

    Attention is shown relative to each word's mean over all rows, with one contrast for all
    words, which the title states; effects, by change of words, from zero to the column's largest
    value. Maps have shape (B, h, w).
    """
    size = images.shape[-1]
    relative = torch.stack([maps / maps.mean() - 1 for maps in attention.values()])
    contrast = relative.abs().quantile(0.98).item()
    columns = [images.cpu()]
    columns += [_as_images(maps, "magma", -contrast, contrast, size) for maps in relative]
    columns += [_as_images(m, "magma", 0.0, m.max().item(), size) for m in effects.values()]
    return image_rows(
        {" " * i: torch.stack(row) for i, row in enumerate(zip(*columns, strict=True))},
        columns=["image", *attention, *effects],
        title=f"attention, {contrast:.0%} below to above a word's mean; "
        "change of the guess when a word changes",
        gaps=(1, 1 + len(attention)),
        alt=f"{len(images)} rows: an image, then coarse maps. The first {len(attention)} show "
        f"the attention to {_listed(attention)}, the others what changes with {_listed(effects)}; "
        f"bright is much.",
    )


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(name.replace("\n", " ") for name in names)


# -------------------------------------------------------------------- guidance


def guided_planes(
    panels: Mapping[str, tuple[Tensor, Tensor]], asked: Tensor, others: Tensor
) -> CourseFigure:
    """Guidance in the plane, one panel per w: trajectories (n, B, 2) and ends (m, 2).

    Data that the prompt asks for are darker than all others.
    """
    fig, axes = figure(
        len(panels),
        size=(2.5, 2.75),
        alt=f"Panels for {', '.join(panels)}. Grey clusters on a ring, the three that are asked "
        f"for darker. Green trajectories lead from the middle to them; with larger w the ends "
        f"crowd into the middle one of the three and leave its neighbours.",
    )
    for ax, (title, (trajectory, ends)) in zip(axes, panels.items(), strict=True):
        plane(ax, title, limit=2.4)
        points(ax, others, "#d9d9d9", size=3, alpha=1)
        points(ax, asked, "#9a9a9a", size=3, alpha=1)
        paths(ax, trajectory, "path", width=0.9, alpha=0.55)
        points(ax, ends, "path", size=5, alpha=0.8, zorder=3)
    return fig


# -------------------------------------------------------------------- trajectories


def latent_bends(timesteps: Tensor, change: Mapping[str, Tensor], alt: str) -> CourseFigure:
    """Change of slope over each sub-path, median over the paths, and which share has happened.

    ``timesteps`` (n + 1,) are the ends of the sub-paths, falling; ``change`` has, by guidance,
    lengths of shape (n, B).
    """
    fig, (left, right) = figure(2, size=(4.3, 3.1), alt=alt)
    starts = timesteps[:-1]
    for (name, value), (style, color) in zip(change.items(), _GUIDED, strict=False):
        left.plot(starts, value.median(dim=1).values, style, color=color, lw=1.8, label=name)
        bent = value.mean(dim=1).cumsum(0)
        right.plot(timesteps[1:], 100 * bent / bent[-1], style, color=color, lw=1.8, label=name)
    left.set(yscale="log")
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.legend(frameon=False, fontsize=9, loc="upper center", ncols=2)
    right.set(ylim=(0, 102))
    titles = ("change of slope per sub-path", "share of it that has happened, per cent")
    for ax, title in zip((left, right), titles, strict=True):
        open_axes(ax, title=title, xlim=(timesteps[0].item(), 0), xlabel="timestep t")
    return fig


def solver_errors(curves: Mapping[str, Mapping[str, Mapping[int, float]]]) -> CourseFigure:
    """Relative error in the latent over steps, by method, one panel per guidance."""
    fig, axes = figure(
        len(curves),
        size=(4.1, 3.2),
        sharey=True,
        alt=f"Panels for {' and '.join(curves)}: the distance from a finely solved latent over "
        f"the number of steps, both logarithmic. All curves fall with more steps; up to four "
        f"steps they are far from the right edge's values.",
    )
    for ax, (title, methods) in zip(axes, curves.items(), strict=True):
        for method, curve in methods.items():
            ax.plot(
                list(curve), list(curve.values()), ms=5, lw=1.5, label=SOLVER_NAMES[method],
                **_SOLVERS[method],
            )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="steps")
        ax.set_xticks(list(next(iter(methods.values()))))
        ax.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_locator(NullLocator())
        open_axes(ax, title=title)
    axes[0].set_ylabel("relative error of the latent")
    axes[0].legend(frameon=False, fontsize=9, loc="lower left")
    return fig

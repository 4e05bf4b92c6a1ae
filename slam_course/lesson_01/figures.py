r"""Figures of lesson 01: noise levels, densities and scores, trajectories, the exact solution map.

Where a horizontal axis shows a trajectory's :math:`t` or :math:`\rho`, it falls from left to
right: noise is on the left, data on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator
from torch import Tensor

from slam_course.figures import (
    COLORS,
    LIMIT,
    CourseFigure,
    figure,
    grid_points,
    open_axes,
    paths,
    plane,
    points,
)
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.toy.mixture import GaussianMixture

_STYLES = ("-", "--", ":", "-.")
_FAINT = "#c4c4c4"  # data that are there for orientation alone
_WIDEST_ARROW = 2.5  # in units of sigma times score, whose mean square is 2 in the plane


def noise_levels(schedule: NoiseSchedule, marks: Sequence[int]) -> CourseFigure:
    r""":math:`\alpha`, :math:`\sigma` and :math:`\rho` over t, and its value at the ``marks``."""
    last = len(schedule) - 1
    fig, (left, right) = figure(
        2,
        size=(4.2, 2.9),
        alt=f"Two panels over t from 0 to {last}. Left: alpha falls from 1 towards 0 and sigma "
        "rises from 0 towards 1; they cross once. Right, on a logarithmic scale: rho = "
        "sigma/alpha rises all the way, steeply at first.",
    )
    t, at = torch.arange(len(schedule)), last * 13 // 20
    alpha, sigma, rho = schedule.alpha.cpu(), schedule.sigma.cpu(), schedule.rho.cpu()
    left.plot(t, alpha, color=COLORS["data"])
    left.plot(t, sigma, "--", color=COLORS["noise"], lw=2)
    _note(left, at, alpha[at], r"$\alpha$, how much data", "above right")
    _note(left, at, sigma[at], r"$\sigma$, how much noise", "below right")
    right.axhline(1, color="#d0d0d0", lw=0.8, zorder=0)
    right.plot(t, rho, color=COLORS["path"])
    for mark in marks:
        right.plot(mark, rho[mark], "o", color=COLORS["path"], ms=5)
        side = "above left" if mark > 0.9 * last else "below right"
        _note(right, mark, rho[mark], f"{rho[mark].item():.3g}", side)
    shared = {"xlim": (-0.02 * last, 1.02 * last), "xlabel": "timestep t"}
    open_axes(left, title="data and noise", ylim=(0, 1.05), **shared)
    title = r"$\rho = \sigma/\alpha$, logarithmic scale"
    open_axes(right, title=title, ylim=(0.015, 30), yscale="log", **shared)
    return fig


def density_panel(ax: Axes, mixture: GaussianMixture, level: Level) -> None:
    r"""Density in ten shades of grey, and :math:`\sigma\nabla\log p`, of order one, as arrows."""
    pixels, arrows = 70, 13
    values = mixture.log_density(grid_points(pixels, dtype=mixture.dtype), level)
    image = (values - values.max()).exp().reshape(pixels, pixels).T.numpy()
    axis, shades = np.linspace(-LIMIT, LIMIT, pixels), np.linspace(0.05, 1.0, 11)
    # Flat shades take few bytes. The darkest is not black, so that arrows stay visible.
    ax.contourf(axis, axis, image, levels=shades, cmap="Greys", vmin=-0.05, vmax=1.4)
    at = grid_points(arrows, LIMIT * (1 - 1 / arrows), dtype=mixture.dtype)
    push = level.sigma * mixture.score(at, level)
    # Far from all data the score has no bound; arrows end at their neighbour's foot.
    push = push * (_WIDEST_ARROW / push.norm(dim=1, keepdim=True)).clamp(max=1)
    ax.quiver(
        *at.T.numpy(), *push.T.numpy(), color=COLORS["path"], angles="xy", scale_units="xy",
        scale=_WIDEST_ARROW * arrows / (2 * LIMIT) * 1.05, width=0.006, headwidth=4.5,
        headlength=4.5, headaxislength=4, minlength=0.5,
    )  # fmt: skip


def densities(
    mixture: GaussianMixture, schedule: NoiseSchedule, timesteps: Sequence[int]
) -> CourseFigure:
    """Density and score at several timesteps, side by side."""
    fig, axes = figure(
        len(timesteps),
        size=(3.1, 3.35),
        alt=f"{len(timesteps)} panels at t = {_names(timesteps)}: the density as shades of grey, "
        "and green arrows of the score, which point to where the density is higher.",
    )
    for ax, t in zip(axes, timesteps, strict=True):
        density_panel(plane(ax, f"t = {t}"), mixture, schedule(t))
    return fig


def denoised(
    x: Sequence[Tensor], means: Sequence[Tensor], data: Tensor, timesteps: Sequence[int]
) -> CourseFigure:
    """Noisy points and their posterior means, ``(B, 2)``, over the data, a panel a timestep."""
    fig, axes = figure(
        len(x),
        size=(3.1, 3.35),
        alt=f"{len(x)} panels at t = {_names(timesteps)}: grey noisy points, each joined by a "
        "thin line to the denoiser's mean in vermilion. At the noisiest level all means lie "
        "near the centre, at the cleanest nearly all lie on the data.",
    )
    for i, (ax, noisy, mean, t) in enumerate(zip(axes, x, means, timesteps, strict=True)):
        plane(ax, f"t = {t}")
        points(ax, data, "data", size=1.5, alpha=0.35, label="data")
        paths(ax, torch.stack([noisy, mean]), "noise", width=0.5, alpha=0.6)
        points(ax, noisy, "noise", size=9, alpha=0.9, label="noisy x")
        points(ax, mean, "teacher", size=9, alpha=0.9, zorder=3, label="mean of $x_0$ given x")
        if i == 0:
            _legend(ax)
    return fig


def plane_paths(trajectory: Tensor, data: Tensor) -> CourseFigure:
    """Trajectories ``(steps, B, 2)`` from grey noise to black ends, over the data ``(n, 2)``."""
    fig, (ax,) = figure(
        size=(4.2, 4.4),
        alt=f"{trajectory.shape[1]} green curves in the plane. Each leads from a grey starting "
        "point of noise, nearly straight at first and bending late, to a black end on a cluster "
        "of the data.",
    )
    plane(ax, "exact trajectories from t = 999 to 0")
    points(ax, data, _FAINT, size=2, alpha=0.7)
    paths(ax, trajectory, width=0.9, alpha=0.8)
    points(ax, trajectory[0], "noise", size=14, alpha=1, zorder=3, label="start: noise")
    points(ax, trajectory[-1], "data", size=14, alpha=1, zorder=3, label="end: data")
    _legend(ax)
    return fig


def two_coordinates(
    trajectory: Tensor, timesteps: Tensor, schedule: NoiseSchedule
) -> CourseFigure:
    r"""First coordinates: x, ``(steps, B, 2)``, over t, z over :math:`\rho`, its tip enlarged.

    Dashed lines join the two ends in each panel.
    """
    level, zoom = schedule(timesteps), 2.0
    x, rho = trajectory[..., 0], level.rho  # (steps, B), (steps,)
    z = x / level.alpha[:, None]
    near = rho <= zoom
    fig, axes = figure(
        3,
        size=(3.1, 3.0),
        alt="The same trajectories three times, with dashed straight lines between their ends. "
        "Left, x over t: the curves leave the straight lines. Middle, z over rho: a fan that "
        "covers its straight lines. Right, the tip of the fan enlarged: the curves bend, most of "
        "all near the data.",
    )
    left, middle, right = axes
    for ax, time, values in ((left, timesteps, x), (middle, rho, z), (right, rho[near], z[near])):
        ax.plot(time, values, color=COLORS["path"], lw=1.0)
        ends = [0, -1]
        chords = ax.plot(time[ends], values[ends], "--", color=COLORS["chord"], lw=0.9, zorder=1)
        chords[0].set_label("straight line")
        for i, color in ((0, "noise"), (-1, "data")):
            at = time[i].expand(values.shape[1])
            ax.plot(at, values[i], "o", color=COLORS[color], ms=3, clip_on=False, zorder=3)
    left.legend(frameon=False, fontsize=9, loc="upper right", borderpad=0)
    last = len(schedule) - 1
    open_axes(left, title="x over t", xlim=(last, 0), ylim=(-LIMIT, LIMIT), xlabel="timestep t")
    open_axes(
        middle, title=r"z over $\rho$", xlim=(rho[0].item(), 0), ylim=(-45, 45),
        xlabel=r"$\rho$", xticks=range(0, 15, 2),
    )  # fmt: skip
    title = rf"z over $\rho$, only $\rho \leq {zoom:g}$"
    open_axes(right, title=title, xlim=(zoom, 0), ylim=(-5.5, 5.5), xlabel=r"$\rho$")
    return fig


def bends(timesteps: Tensor, rho: Tensor, change: Mapping[str, Tensor]) -> CourseFigure:
    r"""How much the slope :math:`\mathrm dz/\mathrm d\rho` of trajectories changes, and where.

    Left, the ``change`` over each sub-path, ``(n, B)``: medians, for the first data set with the
    middle 80 %. Right, for the first data set: which share of all change has happened, beside
    which share of the way in :math:`\rho` is done. The ends of the sub-paths, ``(n + 1,)``, fall.
    """
    first = next(iter(change))
    fig, (left, right) = figure(
        2,
        size=(4.2, 3.0),
        alt=f"Left, for {_names(change)}: the change of slope per sub-path is close to zero from "
        "t = 999 on, grows slowly, and is largest by far on the last sub-paths. Right, for "
        f"{first}: most of the way in rho is done before t = 400, most of the bending happens "
        "after it.",
    )
    starts = timesteps[:-1]
    for style, (name, value) in zip(_STYLES, change.items(), strict=False):
        low, middle, high = value.quantile(value.new_tensor([0.1, 0.5, 0.9]), dim=1)
        left.plot(starts, middle, style, color=COLORS["path"], label=name.replace("_", " "))
        if name == first:
            left.fill_between(starts, low, high, color=COLORS["path"], alpha=0.18, lw=0)
    shared = {"xlim": (timesteps[0].item(), 0), "xlabel": "timestep t"}
    title = "change of slope per sub-path"
    open_axes(left, title=title, legend="upper left", ylim=(0, None), **shared)
    bent = change[first].mean(dim=1).cumsum(0)
    done = 100 * (rho[0] - rho) / (rho[0] - rho[-1])
    bent = 100 * bent / bent[-1]
    right.plot(timesteps, done, "--", color=COLORS["data"])
    right.plot(timesteps[1:], bent, color=COLORS["path"])
    third, half = len(bent) // 3, len(bent) // 2
    _note(right, timesteps[third], done[third], r"of the way in $\rho$", "below right")
    _note(right, timesteps[half + 1], bent[half], "of all change of slope", "above left")
    title = f"share that is done, per cent ({first.replace('_', ' ')})"
    open_axes(right, title=title, ylim=(0, 102), **shared)
    return fig


def end_colors(ends: Tensor) -> np.ndarray:
    """One colour per end point ``(B, 2)``, by its direction from the centre: shape ``(B, 3)``.

    Hues of one lightness and strength, taken from the Oklab colour space (Ottosson 2020).
    """
    angle = torch.atan2(ends[:, 1], ends[:, 0]).cpu().double().numpy() + 0.4
    lightness, a, b = 0.74, 0.115 * np.cos(angle), 0.115 * np.sin(angle)
    lms = np.stack([
        lightness + 0.3963377774 * a + 0.2158037573 * b,
        lightness - 0.1055613458 * a - 0.0638541728 * b,
        lightness - 0.0894841775 * a - 1.2914855480 * b,
    ], axis=-1)  # fmt: skip
    to_rgb = np.array([
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ])  # fmt: skip
    rgb = (lms**3 @ to_rgb.T).clip(0, 1)
    return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)


def solution_regions(plane_ends: Tensor, x: Tensor, ends: Tensor, means: Tensor) -> CourseFigure:
    """Where noise ends: regions of the plane, the ends of points ``x``, and the denoiser's means.

    White lines in the left panel are where neighbouring pixels end far apart: ``plane_ends`` are
    the ends of :func:`grid_points`, ``(n * n, 2)``; all others are ``(B, 2)``.
    """
    n = round(len(plane_ends) ** 0.5)
    fig, (left, middle, right) = figure(
        3,
        size=(3.1, 3.35),
        alt="Left: the plane of noise at t = 999, coloured by where each point ends; sectors "
        "meet at the centre. Middle: the end points in the same colours, on the clusters of the "
        "data. Right: the denoiser's means from the same noise, all in one heap at the centre.",
    )
    plane(left, "noise at t = 999, coloured by its end")
    image = end_colors(plane_ends).reshape(n, n, 3)
    at = plane_ends.reshape(n, n, 2)
    border = torch.zeros(n, n, dtype=torch.bool)
    border[1:] |= (at[1:] - at[:-1]).norm(dim=2) > 0.5
    border[:, 1:] |= (at[:, 1:] - at[:, :-1]).norm(dim=2) > 0.5
    image[border.numpy()] = 1.0
    extent = (-LIMIT, LIMIT, -LIMIT, LIMIT)
    left.imshow(image.swapaxes(0, 1), origin="lower", extent=extent, interpolation="nearest")
    points(left, x, "data", size=2, alpha=0.5)
    plane(middle, "its end by the exact solution map")
    plane(right, r"the denoiser's mean of $x_0$")
    points(right, ends, _FAINT, size=3, alpha=1)
    for ax, where in ((middle, ends), (right, means)):
        ax.scatter(*where.T.numpy(), s=5, c=end_colors(ends), linewidths=0)
    return fig


def staircase(angle: Tensor, end_angle: Tensor, t: int) -> CourseFigure:
    """Direction of the end over direction of the start, degrees ``(n,)``, on a circle at t."""
    low, high = angle[0].item(), angle[-1].item()
    fig, (ax,) = figure(
        size=(4.6, 3.3),
        alt="Direction of the end over direction of the start: a staircase around the circle, "
        "with one nearly flat step per cluster and a nearly vertical riser between two steps.",
    )
    ax.plot([low, high], [low, high], "--", color=COLORS["chord"], lw=1, label="end = start")
    ax.plot(angle, end_angle, color=COLORS["path"], lw=1.6, label="exact solution map")
    ax.xaxis.set_major_locator(MultipleLocator(45))
    ax.yaxis.set_major_locator(MultipleLocator(45))
    open_axes(
        ax, title="a staircase", legend="upper left", xlim=(low, high), ylim=(low, high),
        xlabel=f"direction at t = {t}, degrees", ylabel="direction of the end, degrees",
    )  # fmt: skip
    return fig


def warped_grid(before: Tensor, after: Tensor, data: Tensor, title: str) -> CourseFigure:
    """Lines at t = 999, ``(points on a line, lines, 2)``, before and after the exact map."""
    fig, (left, right) = figure(
        2,
        size=(3.7, 3.95),
        alt="Left: a square grid of lines over the noise. Right: the same lines where the exact "
        "solution map takes them. They never tear; they are pressed together on the data and "
        "pulled far apart across the gaps.",
    )
    paths(plane(left, "a grid at t = 999", 2.6), before, width=0.8, alpha=0.9)
    points(plane(right, title, 2.6), data, _FAINT, size=5, alpha=1)
    paths(right, after, width=0.8, alpha=0.9)
    return fig


def _names(values: Sequence[object] | Mapping[object, object]) -> str:
    return ", ".join(str(value).replace("_", " ") for value in values)


def _note(ax: Axes, x: float, y: float, text: str, side: str) -> None:
    """A label beside a point; ``side`` is such as ``"above right"``."""
    right, above = "right" in side, "above" in side
    ax.annotate(
        text, (float(x), float(y)), xytext=(5 if right else -6, 3 if above else -4),
        textcoords="offset points", ha="left" if right else "right",
        va="bottom" if above else "top", fontsize=9,
    )  # fmt: skip


def _legend(ax: Axes) -> None:
    style = {"loc": "upper left", "edgecolor": "none", "framealpha": 0.85}
    legend = ax.legend(fontsize=8, borderpad=0.3, handletextpad=0.2, **style)
    for handle in legend.legend_handles:
        handle.set(sizes=[18], alpha=1)

r"""Figures of lesson 04: sub-paths and their chords, two sigmas, the error of the target.

Points on a chord are purple; the grey dashes are what one gets without the drift factor. As in
the other figures noise is on the left and data on the right where an axis shows :math:`\rho` or t.
The level plane has :math:`\alpha` to the right and :math:`\sigma` upwards: the schedule is an arc
of the unit circle there, and a ray from the origin holds the levels of one :math:`\rho`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from slam_course.figures import (
    COLORS,
    CourseFigure,
    arcs,
    figure,
    legend_below,
    legend_lines,
    note,
    open_axes,
    paths,
    plane,
    points,
)
from slam_edu.prediction import Prediction
from slam_edu.schedule import Level
from slam_edu.subpath import sub_level

_FAINT = "#d4d4d4"  # data that are there for orientation alone
_NAIVE = "#8c8c8c"
_INK = "#333333"
_STYLES = ("-", "--", "-.", ":")
_STYLE = {"end": "-", "middle": "--"}
_TOUCH = {"end": 1.0, "middle": 0.5}  # the gamma at which a chord of this slope touches the path


def cut_paths(
    cuts: Mapping[int, tuple[Tensor, Level]], exact: Tensor, data: Tensor
) -> CourseFigure:
    """The same exact trajectories cut in several numbers of sub-paths, each replaced by its chord.

    ``cuts`` has for each number exact states ``(n + 1, B, 2)`` and their levels; ``exact`` are
    trajectories at many levels, ``(m, B, 2)``; ``data`` are clean samples, ``(n, 2)``.
    """
    fig, axes = figure(
        len(cuts),
        size=(3.1, 3.6),
        alt=f"Panels for {', '.join(map(str, cuts))} sub-paths. Green curves lead from noise to "
        f"two moons; purple chords join dots on them. The fewer sub-paths, the further the chords "
        f"leave the curves; with {max(cuts)} no gap is to be seen.",
    )
    for ax, (number, (states, levels)) in zip(axes, cuts.items(), strict=True):
        plane(ax, f"N = {number}", 2.4)
        points(ax, data, _FAINT, size=1.5, alpha=0.8)
        paths(ax, exact, "path", width=3.4, alpha=0.9)
        paths(ax, arcs(states, levels), "chord", width=1.2, alpha=1)
        size = 20 if number < 20 else 5
        points(ax, states.reshape(-1, 2), "chord", size=size, alpha=1, zorder=3)
    legend_below(fig, legend_lines({"exact path": "path", "chords": "chord"}, 1.8), 2)
    return fig


def triangle(
    x_t: Tensor, prediction: Prediction, level_t: Level, level_s: Level, data: Tensor
) -> CourseFigure:
    r"""One DDIM hop in the plane of x, and the same points in the plane of levels.

    Both are one picture: :math:`\alpha \hat x_0 + \sigma \hat\epsilon` has the coordinates
    :math:`(\alpha, \sigma)` in the basis of the teacher's two guesses, the ``prediction`` at
    ``x_t``, ``(1, 2)``.
    """
    fig, (left, right) = figure(
        2,
        size=(4.4, 4.4),
        alt="Two pictures of one triangle. Left, in the plane of samples: x_s is pulled towards "
        "the origin to a x_s, and a straight purple chord with dots leads from there to x_t; a "
        "grey dashed line joins x_s and x_t directly. Right, in the plane of levels: t and s lie "
        "on the unit circle, the pulled point lies straight below t, and the chord is vertical: "
        "only the noise changes along it.",
    )
    x_t, x0, eps = x_t[0], prediction.x0[0], prediction.eps[0]
    x_s = level_s.alpha * x0 + level_s.sigma * eps
    points(left, data, _FAINT, size=2, alpha=0.8)
    angle = torch.linspace(0, torch.pi / 2, 181, dtype=x_t.dtype)[:, None]
    axes_of = torch.eye(2, dtype=x_t.dtype)
    t, s = (torch.stack([at.alpha, at.sigma]) for at in (level_t, level_s))
    names = (
        (r"$x_t$", r"$x_s$", r"$a\,x_s$", r"$\hat x_0$", r"$\hat\epsilon$"),
        (r"$t$", r"$s$", r"$(\alpha_t,\ a\,\sigma_s)$", "data", "noise"),
    )
    a = (level_t.alpha / level_s.alpha).item()
    for ax, ends, basis, text in zip(
        (left, right), ((x_t, x_s), (t, s)), ((x0, eps), axes_of), names, strict=True
    ):
        ax.plot(*(angle.cos() * basis[0] + angle.sin() * basis[1]).T, color=_NAIVE, lw=1.2)
        for corner in basis:
            ax.plot(*corner, "s", color=_INK, ms=4)
        _triangle(ax, *ends, a)
        half = 0.5 * ends[0] + 0.5 * a * ends[1]
        places = (ends[0], ends[1], a * ends[1], basis[0], basis[1], half)
        shifts = ((-6, 7), (8, 2), (7, -14), (8, -5), (6, 5), (-17, -3))
        for place, shift, name in zip(places, shifts, (*text, r"$x_\gamma$"), strict=True):
            note(ax, name, place.tolist(), shift, 12)
        ax.plot(0, 0, "+", color=_INK, ms=9, zorder=5)
        note(ax, "0", (0, 0), (-5, -13))
    corners = torch.stack([x_t, x_s, x0, eps, torch.zeros_like(x_t)])
    middle, half = (corners.amax(0) + corners.amin(0)) / 2, corners.amax(0) - corners.amin(0)
    width = 0.62 * half.max()
    low, high = (middle - width).tolist(), (middle + width).tolist()
    plane(left, "one sample")
    left.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    open_axes(
        right, title="its levels", xlim=(-0.1, 1.14), ylim=(-0.1, 1.14), aspect="equal",
        xlabel=r"$\alpha$, how much data", ylabel=r"$\sigma$, how much noise",
    )  # fmt: skip
    entries = {
        "levels of the schedule": (_NAIVE, "-"),
        r"chord: $\gamma\,x_t + (1-\gamma)\,a\,x_s$": ("chord", "-"),
        r"without $a$": (_NAIVE, "--"),
    }
    legend_below(fig, legend_lines(entries, 1.8), 3)
    return fig


def _triangle(ax: Axes, t: Tensor, s: Tensor, a: float) -> None:
    """The chord from a s to t, the straight line from s to t, and the ray to the origin."""
    ax.plot(*torch.stack([0 * s, s]).T, color=_NAIVE, lw=0.8, ls=":", zorder=1)
    ax.plot(*torch.stack([s, t]).T, color=_NAIVE, lw=1.4, ls="--", zorder=2)
    ax.plot(*torch.stack([a * s, t]).T, color=COLORS["chord"], lw=2.4, zorder=2)
    arrow = {"arrowstyle": "-|>", "color": _INK, "lw": 1.1, "shrinkB": 4}
    ax.annotate("", a * s, s, zorder=2, arrowprops=arrow)
    for gamma in (0.25, 0.5, 0.75):
        ax.plot(*(gamma * t + (1 - gamma) * s), "o", mfc="white", mec=_NAIVE, ms=5, zorder=3)
        ax.plot(*(gamma * t + (1 - gamma) * a * s), "o", color=COLORS["chord"], ms=7, zorder=4)
    ax.plot(*t, "o", color="#7d7d7d", ms=8, zorder=5)
    ax.plot(*s, "o", color=COLORS["teacher"], ms=8, zorder=5)
    ax.plot(*(a * s), "o", mfc="white", mec=COLORS["teacher"], mew=1.6, ms=8, zorder=5)


def two_slopes(
    rho: Tensor, curve: Tensor, chords: Mapping[str, Tensor], gammas: Tensor,
    measured: Mapping[str, Mapping[str, Tensor]],
) -> CourseFigure:  # fmt: skip
    r"""Left, one sub-path and its two chords, z over :math:`\rho`; right, how far they leave it.

    One coordinate of the true curve and, by slope, of the chords at falling ``rho``, all ``(m,)``
    with m odd; ``measured`` has by slope and sub-path the deviation in units of b at ``gammas``,
    ``(n,)``.
    """
    fig, (left, right) = figure(
        2,
        size=(4.5, 3.7),
        alt="Left: z over rho, a green curve; a solid purple line touches it at the noisy end and "
        "leaves it towards the clean end, a dashed one touches it in the middle and stays closer. "
        "Right: measured deviations over gamma lie on two parabolas, minus (1 - gamma) squared "
        "for the slope of the end and minus (gamma - 1/2) squared for that of the middle.",
    )
    left.plot(rho, curve, color=COLORS["path"], lw=2.4, label="true sub-path")
    for i, name in ((0, "$t$"), (len(rho) // 2, "$m$"), (-1, "$s$")):
        left.axvline(rho[i].item(), color="#d0d0d0", lw=0.8, zorder=0)
        style = {"xycoords": ("data", "axes fraction"), "color": "#707070"}
        note(left, name, (rho[i].item(), 0), (4 if i == 0 else -11, 5), 11, **style)
    line = torch.linspace(0, 1, 101)
    right.axhline(0, color="#d0d0d0", lw=0.8, zorder=0)
    for slope, chord in chords.items():
        touch, i = _TOUCH[slope], 0 if slope == "end" else len(rho) // 2
        style = {"ls": _STYLE[slope], "color": COLORS["chord"]}
        left.plot(rho, chord, lw=2, label=f"chord, slope of the {slope}", **style)
        left.plot(rho[i], chord[i], "o", color="#7d7d7d", ms=7, zorder=5)
        left.plot(rho[-1], chord[-1], "o", color=COLORS["teacher"], ms=7, zorder=5)
        right.plot(line, -((line - touch) ** 2), lw=1.6, **style)
        for marker, (name, values) in zip("os", measured[slope].items(), strict=False):
            label = name if slope == "end" else None
            right.plot(gammas, values, marker, mfc="none", mec=COLORS["path"], ms=5, label=label)
    left.margins(0.06, 0.14)
    left.invert_xaxis()
    left.legend(frameon=False, fontsize=8.5)
    open_axes(
        left, title="a long sub-path and its two chords", xlabel=r"$\rho$",
        ylabel="z, in the direction of its bend",
    )  # fmt: skip
    note(right, r"end: $-(1-\gamma)^2$", (0.36, -0.41), (-6, -16), ha="right")
    note(right, r"middle: $-(\gamma-\frac{1}{2})^2$", (0.5, 0), (0, 8), ha="center")
    title = r"chord minus path, in units of $b = \frac{1}{2}h^2 z''$"
    limits = {"xlim": (1.05, -0.05), "ylim": (-1.25, 0.25)}
    open_axes(right, title=title, xlabel=r"$\gamma$", **limits)
    right.legend(
        frameon=False, fontsize=8.5, loc="lower left", title="measured on", title_fontsize=8.5
    )
    return fig


def deviation_by_t(measured: Mapping[int, Mapping[int, float]]) -> CourseFigure:
    """How far the teacher's chord misses the true end of a sub-path, on average, by N and t."""
    fig, (ax,) = figure(
        size=(6.2, 3.5),
        alt="Distance between the chord's clean end and the true one over t from 999 to 0, "
        "logarithmic, for several numbers of sub-paths: nearly level curves one below the other, "
        "each of which rises at its last sub-path.",
    )
    for style, marker, (number, curve) in zip(_STYLES, "os^D", measured.items(), strict=False):
        t, values = list(curve), list(curve.values())
        ax.plot(t, values, style, marker=marker, color=COLORS["chord"], lw=1.6, ms=5)
        note(ax, f"N = {number}", (max(t), curve[max(t)]), (-4, 12))
    open_axes(
        ax, title="the chord's clean end, off the true one", yscale="log", xlim=(1020, -20),
        xticks=range(0, 1000, 100), xlabel="noisy end t of the sub-path",
        ylabel="distance in z, mean",
    )  # fmt: skip
    return fig


def two_noises(
    level_t: Level, level_s: Level, gap: Mapping[int, tuple[Tensor, Tensor]]
) -> CourseFigure:
    r"""The two noises of the chord's middle as arrows, and the gap between the two sigmas.

    ``gap`` has for each t gammas and :math:`\sigma_\text{linear}/\sigma_\text{markov} - 1`.
    """
    largest = ", ".join(f"{100 * values.max():.2g} % at {t}" for t, (_, values) in gap.items())
    fig, (left, right) = figure(
        2,
        size=(4.3, 3.7),
        alt="Left, noise as arrows from the origin: if x_s and x_t hold the same noise, points "
        "between them lie on one horizontal ray; if x_t got fresh noise, at a right angle, they "
        "lie on a vertical line, closer to the origin. Right, how much larger the linear sigma is "
        f"than the markov one over gamma; largest {largest}.",
    )
    a_s = (level_t.alpha / level_s.alpha * level_s.sigma).item()
    sigma_t = level_t.sigma.item()
    fresh, gamma = (sigma_t**2 - a_s**2) ** 0.5, 0.5
    g = torch.as_tensor(gamma, dtype=level_t.alpha.dtype)
    linear, markov = (
        sub_level(level_t, level_s, g, coupling).sigma.item() for coupling in ("linear", "markov")
    )
    angle = torch.linspace(0, torch.pi / 2, 91)
    for radius in (sigma_t, a_s):
        left.plot(radius * angle.cos(), radius * angle.sin(), color="#c8c8c8", lw=0.9, zorder=0)
    left.plot([a_s, sigma_t], [0, 0], color=COLORS["chord"], lw=3, zorder=2, clip_on=False)
    left.plot([a_s, a_s], [0, fresh], "--", color=_INK, lw=1.6, zorder=2)
    length = torch.linspace(0, torch.acos(torch.tensor(a_s / markov)).item(), 41)
    left.plot(markov * length.cos(), markov * length.sin(), ":", color=_INK, lw=1.2, zorder=1)
    arrow = {"arrowstyle": "-|>", "lw": 1.3, "shrinkA": 0, "shrinkB": 3}
    left.annotate("", (a_s, gamma * fresh), (0, 0), arrowprops={**arrow, "color": _INK})
    left.plot(0, 0, "+", color=_INK, ms=9, clip_on=False)
    for at, color, fill in (
        ((a_s, 0), COLORS["teacher"], "white"),
        ((sigma_t, 0), "#7d7d7d", "#7d7d7d"),
        ((a_s, fresh), "#7d7d7d", "#7d7d7d"),
        ((linear, 0), COLORS["chord"], COLORS["chord"]),
        ((a_s, gamma * fresh), _INK, _INK),
    ):
        left.plot(*at, "o", mec=color, mfc=fill, mew=1.6, ms=8, zorder=4, clip_on=False)
    note(left, r"$a\sigma_s$", (a_s, 0), (0, -17), ha="center")
    note(left, r"$\sigma_t$", (sigma_t, 0), (0, -17), ha="center")
    note(left, r"$\sigma_t$, fresh noise", (a_s, fresh), (9, 2))
    note(left, "linear", (linear, 0), (0, -17), ha="center", color="#a5457d")
    note(left, "markov", (a_s, gamma * fresh), (9, -3))
    left.set(xlim=(-0.05, 1.05), ylim=(-0.13, 1.05), aspect="equal", xticks=[], yticks=[])
    title = rf"noise in $x_s$, $x_t$ and in $x_\gamma$ at $\gamma = {gamma:g}$"
    left.set_title(title, fontsize=10)
    left.spines[:].set_visible(False)
    for style, (t, (gammas, values)) in zip(_STYLES, gap.items(), strict=False):
        label = f"t = {t}, largest {100 * values.max():.2g} %"
        right.plot(gammas, values, style, color=COLORS["chord"], lw=1.8, label=label)
    top = 1.12 * max(values.max().item() for _, values in gap.values())
    title = r"$\sigma_\mathrm{linear}\, /\, \sigma_\mathrm{markov} - 1$"
    limits = {"xlim": (0, 1), "ylim": (0, top)}
    open_axes(right, title=title, legend="upper right", xlabel=r"$\gamma$", **limits)
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return fig


def target_errors(
    off: Mapping[str, Mapping[float, tuple[Tensor, Tensor]]], gammas: Tensor,
    measured: Mapping[str, Mapping[str, Tensor]], law: Callable[[Tensor, float], Tensor],
    exact_at: Callable[[float], float],
) -> CourseFigure:  # fmt: skip
    r"""Where points of one chord really end, a panel for each slope; right, the target's error.

    ``off`` has by slope and gamma falling :math:`\rho` and the chord minus the true curve from
    the chord's point at gamma, ``(m,)`` each; ``measured`` by slope and sub-path the target minus
    the true end at ``gammas``, ``(n,)``. All in units of b. ``law`` and ``exact_at`` are the
    answers to exercise 4.
    """
    fig, axes = figure(
        3,
        size=(3.4, 3.8),
        sharey=True,
        alt="Left and middle: the chord is a horizontal line, green curves start on it at gamma = "
        "0.5 and 1. With the slope of the end they end off it at s, furthest for gamma = 1; with "
        "the slope of the middle the one from gamma = 1 comes back to it. Right: the distances at "
        "s over gamma lie on two parabolas; the one of the end is -1 at gamma = 1, that of the "
        "middle at most 1/4 from 0, and 0 at gamma = 0 and 1.",
    )
    right, line = axes[2], torch.linspace(0, 1, 101)
    right.axhline(0, color="#d0d0d0", lw=0.8, zorder=0)
    for ax, (slope, by_gamma) in zip(axes, off.items(), strict=False):
        style = {"ls": _STYLE[slope], "color": COLORS["chord"]}
        ax.axhline(0, lw=2.2, zorder=1, **style)
        for gamma, (rho, values) in by_gamma.items():
            start, last, end = rho[0].item(), rho[-1].item(), values[-1].item()
            ax.plot(rho, values, color=COLORS["path"], lw=1.6, zorder=2)
            ax.plot(start, 0, "o", color=COLORS["chord"], ms=7, zorder=4)
            ax.plot(last, end, "o", color=COLORS["path"], ms=6, zorder=4)
            shift = (0, 8) if slope == "end" else (-14, -17)  # away from the curves
            note(ax, rf"$\gamma = {gamma:g}$", (start, 0), shift, 9, ha="center")
            note(ax, f"{gamma:g}", (last, end), (7, -3), 9)
        ax.plot(last, 0, "o", color=COLORS["teacher"], ms=7, zorder=5)
        note(ax, "$x_s$", (last, 0), (0, 8), 11, color=COLORS["teacher"], ha="center")
        length = by_gamma[1.0][0][0].item() - last
        ax.set_xlim(last + 1.22 * length, last - 0.2 * length)
        open_axes(ax, title=f"slope of the {slope}", xlabel=r"$\rho$")
        touch = _TOUCH[slope]
        right.plot(line, law(line, touch), lw=1.8, label=f"slope of the {slope}", **style)
        zero = exact_at(touch)
        if zero <= 1:
            right.plot(zero, 0, "o", color=COLORS["chord"], ms=10, alpha=0.5)
        for marker, (name, values) in zip("osD", measured[slope].items(), strict=False):
            label = name if slope == "middle" else None
            right.plot(gammas, values, marker, mfc="none", mec=COLORS["path"], ms=5, label=label)
    axes[0].set_ylabel("chord minus true path, in units of b")
    legend_below(fig, right.get_legend_handles_labels()[0], 5)
    open_axes(
        right, title="at s: target minus true end", xlim=(1.05, -0.05), ylim=(-1.5, 0.25),
        xlabel=r"$\gamma$",
    )  # fmt: skip
    return fig


def gamma_features(gammas: Tensor, features: Tensor, mean_cosine: Tensor) -> CourseFigure:
    """The embedding of rising gammas, ``(n, D)``, as stripes, and the mean of its cosines."""
    width = features.shape[1]
    fig, (left, right) = figure(
        2,
        size=(4.3, 3.2),
        alt=f"Left: the {width} numbers of the embedding over gamma as stripes, slow ones and "
        "ones too fast to follow. Right: the mean of the cosines lies low for most of [0, 1], "
        "rises steeply at its end and is 1 at gamma = 1 alone.",
    )
    low, high = gammas[0].item(), gammas[-1].item()
    style = {"cmap": "PuOr", "vmin": -1, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    left.imshow(features.T.numpy(), origin="lower", extent=(low, high, 0, width), **style)
    left.set_yticks([width / 4, 3 * width / 4], ["sines", "cosines"], rotation=90, va="center")
    left.tick_params(axis="y", length=0)
    right.plot(gammas, mean_cosine, color=COLORS["student"], lw=1.4)
    right.plot(gammas[-1], mean_cosine[-1], "o", color=COLORS["student"], ms=6)
    right.axhline(0, color="#d0d0d0", lw=0.8, zorder=0)
    open_axes(left, title=r"the features $e(10 - 10\gamma)$", xlabel=r"$\gamma$")
    limits = {"xlim": (low - 0.02, high + 0.02), "ylim": (-0.2, 1.06)}
    open_axes(right, title="mean of the cosines", xlabel=r"$\gamma$", **limits)
    return fig

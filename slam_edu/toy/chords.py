r"""How straight a sub-path is, and what is wrong in what is taught on its chord.

Everything here is in :math:`z = x/\alpha` and :math:`\rho = \sigma/\alpha`. A sub-path runs from
:math:`\rho_t` down to :math:`\rho_s`, :math:`h = \rho_t - \rho_s`; the true one is a curve
:math:`Z(\rho)` of the PF-ODE. The **teacher's chord** is a tangent of :math:`Z`, and the ``slope``
of :class:`slam_edu.DistillConfig` says where: at the noisy end :math:`\rho_t` (``"end"``) or at
:math:`\rho_m = (\rho_t + \rho_s)/2` (``"middle"``). The **exact chord** joins the two ends of
:math:`Z`. With

.. math:: \rho_\gamma = \gamma\rho_t + (1-\gamma)\rho_s, \qquad b = \tfrac12\, h^2\, z'',

where :math:`z''` is the curvature of :math:`Z`, Taylor's formula gives, to leading order in h, for
the chord minus the curve at :math:`\rho_\gamma`

- teacher's chord, end: :math:`-(1-\gamma)^2\, b`, zero at :math:`x_t` alone;
- teacher's chord, middle: :math:`-(\tfrac12-\gamma)^2\, b`, the same at both ends;
- exact chord: :math:`\gamma(1-\gamma)\, b`, zero at both ends and largest halfway.

A student is taught that :math:`x_\gamma`, on the teacher's chord, ends where :math:`x_s` does.
Neighbouring curves are parallel to leading order, so the curve through :math:`x_\gamma` passes
:math:`\rho_s` as far from :math:`Z` as :math:`x_\gamma` is. What is taught minus what is true is
the difference of the chord's deviations at 0 and at :math:`\gamma`,

.. math::
    \delta(\gamma) = -b + (1-\gamma)^2\, b = -\gamma(2-\gamma)\, b \ \text{ (end)}, \qquad
    -\tfrac14 b + (\tfrac12-\gamma)^2\, b = -\gamma(1-\gamma)\, b \ \text{ (middle)}.

:math:`\gamma = 1` is consistency distillation. There the first is largest, and the second zero:
what remains is of third order in h (the midpoint rule). The first is zero again at :math:`\gamma =
2`, past :math:`x_t`, where the slope is that of the longer chord's middle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slam_edu._validation import check_choice
from slam_edu.distill import SLOPES
from slam_edu.schedule import Level
from slam_edu.solver import ddim_step
from slam_edu.subpath import interpolate, sub_level
from slam_edu.toy.mixture import GaussianMixture
from slam_edu.toy.solution import solution_map

# In all functions: the mixture is in float64, x of shape (B, D), level_t and level_s, of shape (),
# the ends of the sub-path, gammas of shape (n,), tol that of the exact solution.

CHORDS = ("teacher", "middle", "exact")

_STEP = 1e-4  # of rho, for the derivative of the slope: an error of 1e-8 in float64
_TOL = 1e-9


def tangent_level(level_t: Level, level_s: Level, slope: str = "end") -> Level:
    r"""Where the chord touches: ``level_t``, or :math:`\rho_m` as a variance-preserving level."""
    check_choice(slope, SLOPES, "slope")
    return level_t if slope == "end" else Level.from_rho((level_t.rho + level_s.rho) / 2)


def bend(
    mixture: GaussianMixture, x: Tensor, level_t: Level, level_s: Level, slope: str = "end"
) -> Tensor:
    r"""How far the true sub-path turns away from its tangent: :math:`b = \tfrac12 h^2 z''`.

    The curvature :math:`z'' = \mathrm d\epsilon/\mathrm d\rho` along the PF-ODE is taken at x,
    which is at :func:`tangent_level`, by a central difference; shape ``(B, D)``, in z.
    """
    level = tangent_level(level_t, level_s, slope)
    z, rho = x / level.alpha, level.rho
    eps, d = mixture.predict(x, level).eps, _STEP * rho
    ahead = mixture.predict(z + d * eps, _in_z(rho + d)).eps
    behind = mixture.predict(z - d * eps, _in_z(rho - d)).eps
    return (level_t.rho - level_s.rho) ** 2 / 2 * (ahead - behind) / (2 * d)


def deviations(
    mixture: GaussianMixture,
    x_t: Tensor,
    level_t: Level,
    level_s: Level,
    gammas: Tensor,
    chord: str = "teacher",
    *,
    tol: float = _TOL,
) -> Tensor:
    r"""The chord minus the true sub-path at the same :math:`\rho`, in z, shape ``(n, B, D)``.

    The true sub-path starts at ``x_t``. ``chord`` is its tangent there, ``"teacher"``, or in its
    ``"middle"``, or, ``"exact"``, the line to its own end.

    Raises:
        ValueError: for an unknown ``chord``, a gamma outside [0, 1], or an s that is not cleaner
            than t.
    """
    check_choice(chord, CHORDS, "chord")
    z_t = x_t / level_t.alpha
    if chord == "teacher":
        x_s = ddim_step(mixture.predict(x_t, level_t), level_s)
    elif chord == "exact":
        x_s = solution_map(mixture, x_t, level_t, level_s, tol=tol).x
    else:
        level_m = tangent_level(level_t, level_s, chord)
        x_m = solution_map(mixture, x_t, level_t, level_m, tol=tol).x
        x_t, x_s = _ends(mixture, x_m, level_t, level_s, chord)
    on_chord = _points(x_t, x_s, level_t, level_s, gammas)
    rho = gammas * level_t.rho + (1 - gammas) * level_s.rho
    start = _in_z(level_t.rho.expand_as(rho))
    return on_chord - _exact(mixture, z_t.expand_as(on_chord), start, rho, tol)


def taught_errors(
    mixture: GaussianMixture,
    x: Tensor,
    level_t: Level,
    level_s: Level,
    gammas: Tensor,
    coupling: str = "linear",
    *,
    slope: str = "end",
    end: Level | None = None,
    tol: float = _TOL,
) -> Tensor:
    r"""What is wrong in ":math:`x_\gamma` ends where :math:`x_s` ends": taught minus true, in z.

    The chord touches the trajectory at ``x``, which is at :func:`tangent_level`: :math:`x_t` at
    ``level_t``, or with ``slope="middle"`` :math:`x_m`. :math:`x_s` is its clean end; the true end
    is where the exact solution map takes :math:`x_\gamma` from the level that ``coupling``
    (:func:`slam_edu.subpath.sub_level`) gives it. The two ends are compared at ``end``, a level no
    noisier than s (default s). Shape ``(n, B, D)``.

    Raises:
        ValueError: for an unknown ``coupling`` or ``slope``, a gamma outside [0, 1], an s that is
            not cleaner than t, or an ``end`` noisier than s.
    """
    x_t, x_s = _ends(mixture, x, level_t, level_s, slope)
    z = _points(x_t, x_s, level_t, level_s, gammas)
    # At gamma = 0 rounding may put the level below s.
    rho = sub_level(level_t, level_s, gammas, coupling).rho.clamp(min=level_s.rho.item())
    rho_end = level_s.rho if end is None else end.rho
    taught = x_s / level_s.alpha
    if end is not None:
        taught = solution_map(mixture, taught, _in_z(level_s.rho), _in_z(rho_end), tol=tol).x
    return taught - _exact(mixture, z, _in_z(rho), rho_end.expand_as(rho), tol)


def curve_below(mixture: GaussianMixture, z: Tensor, rho: Tensor, *, tol: float = _TOL) -> Tensor:
    r"""The PF-ODE's curve from z ``(B, D)`` down through a falling sequence of :math:`\rho`.

    ``z`` is at the first of ``rho``, of shape ``(n,)``. Shape ``(n, B, D)``.
    """
    start = _in_z(rho[:1].expand_as(rho))
    return _exact(mixture, z.expand(len(rho), *z.shape), start, rho, tol)


def _in_z(rho: Tensor) -> Level:
    """The level at which a sample is z itself: alpha = 1, sigma = rho."""
    return Level(torch.ones_like(rho), rho)


def _ends(
    mixture: GaussianMixture, x: Tensor, level_t: Level, level_s: Level, slope: str
) -> tuple[Tensor, Tensor]:
    """x_t and x_s of the chord that touches the trajectory at x."""
    prediction = mixture.predict(x, tangent_level(level_t, level_s, slope))
    return x if slope == "end" else ddim_step(prediction, level_t), ddim_step(prediction, level_s)


def _points(x_t: Tensor, x_s: Tensor, level_t: Level, level_s: Level, gammas: Tensor) -> Tensor:
    """z of the chord's points, ``(n, B, D)``."""
    points = [interpolate(x_t, x_s, level_t, level_s, gamma) for gamma in gammas]
    return torch.stack(points) / level_t.alpha


def _exact(
    mixture: GaussianMixture, z: Tensor, start: Level, rho_end: Tensor, tol: float
) -> Tensor:
    """Exact ends of ``(n, B, D)`` points from n levels to n others, all in one call."""
    batch = z.shape[1]
    level = Level(*(v.repeat_interleave(batch) for v in (start.alpha, start.sigma)))
    end = _in_z(rho_end.repeat_interleave(batch))
    return solution_map(mixture, z.flatten(0, 1), level, end, tol=tol).x.unflatten(0, z.shape[:2])

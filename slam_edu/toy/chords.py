r"""How straight a sub-path is, and what is wrong in what is taught on its chord.

Everything here is in :math:`z = x/\alpha` and :math:`\rho = \sigma/\alpha`. A sub-path runs from
:math:`\rho_t` down to :math:`\rho_s`, :math:`h = \rho_t - \rho_s`; the true one through
:math:`x_t` is a curve :math:`Z(\rho)` of the PF-ODE. The **teacher's chord** joins :math:`x_t` and
the teacher's DDIM step :math:`x_s`: it is the tangent of :math:`Z` at :math:`\rho_t`. The **exact
chord** joins the two ends of :math:`Z`. With

.. math:: \rho_\gamma = \gamma\rho_t + (1-\gamma)\rho_s, \qquad b = \tfrac12\, h^2\, z'',

where :math:`z''` is the curvature of :math:`Z` at :math:`\rho_t`, Taylor's formula gives, to
leading order in h, for the chord minus the curve at :math:`\rho_\gamma`

- teacher's chord: :math:`-(1-\gamma)^2\, b`, zero at :math:`x_t` alone;
- exact chord: :math:`\gamma(1-\gamma)\, b`, zero at both ends and largest halfway.

A student is taught that :math:`x_\gamma`, on the teacher's chord, ends where :math:`x_s` does.
Neighbouring curves are parallel to leading order, so the curve through :math:`x_\gamma` passes
:math:`\rho_s` as far from :math:`Z` as :math:`x_\gamma` is. What is taught minus what is true is
the difference of the chord's deviations at 0 and at :math:`\gamma`,

.. math:: \delta(\gamma) = -b + (1-\gamma)^2\, b = -\gamma(2-\gamma)\, b.

:math:`\gamma = 1` is consistency distillation. At :math:`\gamma = 2`, past :math:`x_t`, it is zero
again: the chord then has the slope of its middle (the midpoint rule).
"""

from __future__ import annotations

import torch
from torch import Tensor

from slam_edu._validation import check_choice
from slam_edu.schedule import Level
from slam_edu.solver import ddim_step
from slam_edu.subpath import interpolate, sub_level
from slam_edu.toy.mixture import GaussianMixture
from slam_edu.toy.solution import solution_map

# In all functions: the mixture is in float64, x_t of shape (B, D) at level_t of shape (), level_s
# the clean end of the sub-path, gammas of shape (n,), tol that of the exact solution.

CHORDS = ("teacher", "exact")

_STEP = 1e-4  # of rho, for the derivative of the slope: an error of 1e-8 in float64
_TOL = 1e-9


def bend(mixture: GaussianMixture, x_t: Tensor, level_t: Level, level_s: Level) -> Tensor:
    r"""How far the true sub-path turns away from its tangent: :math:`b = \tfrac12 h^2 z''`.

    The curvature :math:`z'' = \mathrm d\epsilon/\mathrm d\rho` along the PF-ODE is taken at
    :math:`x_t`, by a central difference; shape ``(B, D)``, in z.
    """
    z, rho = x_t / level_t.alpha, level_t.rho
    slope, d = mixture.predict(x_t, level_t).eps, _STEP * level_t.rho
    ahead = mixture.predict(z + d * slope, _in_z(rho + d)).eps
    behind = mixture.predict(z - d * slope, _in_z(rho - d)).eps
    return (rho - level_s.rho) ** 2 / 2 * (ahead - behind) / (2 * d)


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

    ``chord`` is ``"teacher"``, to the teacher's DDIM step from ``x_t``, or ``"exact"``, to the
    true sub-path's own end.

    Raises:
        ValueError: for an unknown ``chord``, a gamma outside [0, 1], or an s that is not cleaner
            than t.
    """
    check_choice(chord, CHORDS, "chord")
    z_t = x_t / level_t.alpha
    if chord == "teacher":
        x_s = ddim_step(mixture.predict(x_t, level_t), level_s)
    else:
        x_s = solution_map(mixture, x_t, level_t, level_s, tol=tol).x
    on_chord = _points(x_t, x_s, level_t, level_s, gammas, 1.0)
    rho = gammas * level_t.rho + (1 - gammas) * level_s.rho
    start = _in_z(level_t.rho.expand_as(rho))
    return on_chord - _exact(mixture, z_t.expand_as(on_chord), start, rho, tol)


def taught_errors(
    mixture: GaussianMixture,
    x_t: Tensor,
    level_t: Level,
    level_s: Level,
    gammas: Tensor,
    coupling: str = "linear",
    *,
    end: Level | None = None,
    tol: float = _TOL,
) -> Tensor:
    r"""What is wrong in ":math:`x_\gamma` ends where :math:`x_s` ends": taught minus true, in z.

    :math:`x_s` is the teacher's DDIM step; the true end is where the exact solution map takes
    :math:`x_\gamma` from the level that ``coupling`` (:func:`slam_edu.subpath.sub_level`) gives
    it. Above :math:`\gamma = 1` the chord goes on past ``x_t``. The two ends are compared at
    ``end``, a level no noisier than s (default s). Shape ``(n, B, D)``.

    Raises:
        ValueError: for an unknown ``coupling``, a negative gamma, an s that is not cleaner than
            t, or an ``end`` noisier than s.
    """
    reach = max(1.0, gammas.max().item())
    x_s = ddim_step(mixture.predict(x_t, level_t), level_s)
    z = _points(x_t, x_s, level_t, level_s, gammas, reach)
    # At gamma = 0 rounding may put the level below s.
    rho = sub_level(level_t, level_s, gammas, coupling, reach).rho.clamp(min=level_s.rho.item())
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


def _points(
    x_t: Tensor, x_s: Tensor, level_t: Level, level_s: Level, gammas: Tensor, reach: float
) -> Tensor:
    """z of the chord's points, ``(n, B, D)``."""
    points = [interpolate(x_t, x_s, level_t, level_s, gamma, reach) for gamma in gammas]
    return torch.stack(points) / level_t.alpha


def _exact(
    mixture: GaussianMixture, z: Tensor, start: Level, rho_end: Tensor, tol: float
) -> Tensor:
    """Exact ends of ``(n, B, D)`` points from n levels to n others, all in one call."""
    batch = z.shape[1]
    level = Level(*(v.repeat_interleave(batch) for v in (start.alpha, start.sigma)))
    end = _in_z(rho_end.repeat_interleave(batch))
    return solution_map(mixture, z.flatten(0, 1), level, end, tol=tol).x.unflatten(0, z.shape[:2])

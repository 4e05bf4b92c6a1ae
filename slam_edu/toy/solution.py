r"""The exact solution map :math:`f^*(x, t)`: where the probability-flow ODE takes a point.

It is what a consistency model, and a SLAM student, should learn: from :math:`x` at the level of
:math:`t`, follow :math:`\mathrm dz/\mathrm d\rho = \epsilon(x, t)` to a clean level. With the
exact score of a mixture the only error left is the solver's, and this module keeps that below a
tolerance and says how large it is.

**Coordinates.** In :math:`\rho` the ODE is stiff at the clean end, in :math:`\log\rho` it wastes
steps there. With the smallest component's width s and :math:`u = \tfrac12\log(s^2 + \rho^2)`,

.. math:: \frac{\mathrm dz}{\mathrm du} = -(s^2 + \rho^2)\,\nabla_z \log p(z; \rho)
          = \sum_k r_k\,\frac{s^2 + \rho^2}{s_k^2 + \rho^2}\,(z - \mu_k),

which is smooth, of slope 1 near each component, and finite down to :math:`\rho = 0`. For one
Gaussian it is :math:`\mathrm dz/\mathrm du = z - \mu`: there :math:`z - \mu` is proportional to
:math:`\sqrt{s^2 + \rho^2}`.

**Error.** Each point is solved with n steps of a method of order 8 and again with 2n, until the
two differ by at most the tolerance; the finer one is returned. As halving a step divides the error
by about 256, the difference bounds the error with much to spare. Points on the border between two
modes, which the map pulls apart, are the ones that need more steps; those alone are solved again.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slam_edu._validation import check_count, check_samples
from slam_edu.schedule import Level
from slam_edu.toy.mixture import GaussianMixture

_R = math.sqrt(21)
# Cooper and Verner 1972, "Some explicit Runge-Kutta methods of high order": 11 stages, order 8.
# Row i weights the slopes before stage i; a row's sum is where on the step its stage is.
_STAGES = (
    (),
    (1 / 2,),
    (1 / 4, 1 / 4),
    (1 / 7, (-7 - 3 * _R) / 98, (21 + 5 * _R) / 49),
    ((11 + _R) / 84, 0, (18 + 4 * _R) / 63, (21 - _R) / 252),
    ((5 + _R) / 48, 0, (9 + _R) / 36, (-231 + 14 * _R) / 360, (63 - 7 * _R) / 80),
    ((10 - _R) / 42, 0, (-432 + 92 * _R) / 315, (633 - 145 * _R) / 90, (-504 + 115 * _R) / 70,
     (63 - 13 * _R) / 35),
    (1 / 14, 0, 0, 0, (14 - 3 * _R) / 126, (13 - 3 * _R) / 63, 1 / 9),
    (1 / 32, 0, 0, 0, (91 - 21 * _R) / 576, 11 / 72, (-385 - 75 * _R) / 1152,
     (63 + 13 * _R) / 128),
    (1 / 14, 0, 0, 0, 1 / 9, (-733 - 147 * _R) / 2205, (515 + 111 * _R) / 504,
     (-51 - 11 * _R) / 56, (132 + 28 * _R) / 245),
    (0, 0, 0, 0, (-42 + 7 * _R) / 18, (-18 + 28 * _R) / 45, (-273 - 53 * _R) / 72,
     (301 + 53 * _R) / 72, (28 - 28 * _R) / 45, (49 - 7 * _R) / 18),
)  # fmt: skip
_WEIGHTS = (1 / 20, 0, 0, 0, 0, 0, 0, 49 / 180, 16 / 45, 49 / 180, 1 / 20)

# The first step's size in u, where the ODE's own scale is 1. At twice this size the two solutions
# agree by accident for one sample in ten thousand, on the border between two modes.
_FIRST_STEP = 0.25
_MIN_TOL = 1e-12  # below it, float64's rounding over some hundred steps shows


@dataclass(frozen=True)
class Solution:
    """An end point of the PF-ODE and how well it is known.

    Attributes:
        x: samples at the end level, shape ``(B, D)``, in the dtype of the input. A float32 result
            is rounded from float64, which adds up to 6e-8 of its size.
        error: largest change of any coordinate of any sample between the last two step sizes; at
            most the tolerance that was asked for.
        steps: steps taken by the sample that needed most.
    """

    x: Tensor
    error: float
    steps: int


def solution_map(
    mixture: GaussianMixture,
    x: Tensor,
    level: Level,
    level_end: Level,
    *,
    tol: float = 1e-5,
    max_steps: int = 4096,
) -> Solution:
    r"""The exact solution map: where the PF-ODE takes ``x`` from ``level`` to ``level_end``.

    Computed in float64 whatever the dtype of the input (on the CPU if the device has no float64).
    With a schedule, consistency models take ``level_end = schedule(0)``; :math:`\sigma = 0` is
    allowed for a mixture whose components all have a width.

    ``x`` is of shape ``(B, D)``, both levels of ``()`` or ``(B,)``. ``tol`` bounds the change of
    any coordinate when the step is halved.

    Raises:
        ValueError: for samples or levels that are not finite or of another shape, dtype or device,
            an end noisier than the start, :math:`\sigma = 0` at the end with a component of width
            0, or a ``tol`` or ``max_steps`` out of bounds.
        RuntimeError: if a sample needs more than ``max_steps``.
    """
    check_samples(x, "x")
    check_count(max_steps, "max_steps", low=2)
    if not _MIN_TOL <= tol < math.inf:
        raise ValueError(f"tol is {tol}; allowed: a finite number, {_MIN_TOL:g} or more")
    for here in (level, level_end):
        mixture._coordinates(x, here)  # checks shape, dtype, device and sigma
    rho, rho_end = torch.broadcast_tensors(level.rho, level_end.rho)
    if not bool((rho_end <= rho).all()):
        bad = (~(rho_end <= rho)).reshape(-1).nonzero()[0]
        raise ValueError(
            f"level_end has rho = {rho_end.reshape(-1)[bad].item():g} and level has "
            f"{rho.reshape(-1)[bad].item():g}; allowed: an end no noisier than the start"
        )

    device = torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no float64
    exact = copy.deepcopy(mixture).to(device).double()
    start = x.to(device).double()
    alpha, u = _time(exact, level, start)
    alpha_end, u_end = _time(exact, level_end, start)
    z = start / alpha

    steps = max(math.ceil((u - u_end).max().item() / _FIRST_STEP), 1)
    result = alpha_end * _solve(exact, z, u, u_end, steps)
    todo = torch.arange(len(z), device=device)
    # By how much each sample moved when its step was last halved.
    change = torch.full_like(result[:, 0], math.inf)
    while 2 * steps <= max_steps:
        steps *= 2
        finer = alpha_end[todo] * _solve(exact, z[todo], u[todo], u_end[todo], steps)
        change[todo] = (finer - result[todo]).abs().amax(dim=1)
        result[todo] = finer
        todo = todo[change[todo] > tol]
        if len(todo) == 0:
            return Solution(result.to(x), change.max().item(), steps)
    raise RuntimeError(
        f"the solution map is not known to tol = {tol:g} after {steps} steps: {len(todo)} of "
        f"{len(z)} samples still change by up to {change.max().item():.2g}; allow more than "
        f"max_steps = {max_steps}, or a larger tol"
    )


def _time(mixture: GaussianMixture, level: Level, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and u = log(s^2 + rho^2)/2 of a level, one per sample: ``(B, 1)``, in float64."""
    alpha = level.alpha.to(x).expand(len(x)).reshape(-1, 1)
    sigma = level.sigma.to(x).expand(len(x)).reshape(-1, 1)
    return alpha, ((sigma / alpha) ** 2 + mixture.std.min() ** 2).log() / 2


def _solve(mixture: GaussianMixture, z: Tensor, u: Tensor, u_end: Tensor, steps: int) -> Tensor:
    """``steps`` equal Runge-Kutta steps of dz/du; z of shape ``(B, D)``, u of ``(B, 1)``."""
    h = (u_end - u) / steps
    for i in range(steps):
        slopes: list[Tensor] = []
        for row in _STAGES:
            v = (2 * (u + (i + sum(row)) * h)).exp()  # s^2 + rho^2
            slopes.append(_slope(mixture, _advance(z, h, row, slopes), v))
        z = _advance(z, h, _WEIGHTS, slopes)
    return z


def _slope(mixture: GaussianMixture, z: Tensor, v: Tensor) -> Tensor:
    """dz/du at ``v`` = s^2 + rho^2."""
    rho = (v - mixture.std.min() ** 2).clamp(min=0).sqrt()
    m, q, _ = mixture._sums(z, rho)
    return v * (q * z - m)


def _advance(z: Tensor, h: Tensor, row: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(row, slopes, strict=True):
        if weight:
            z = torch.addcmul(z, h, slope, value=weight)
    return z

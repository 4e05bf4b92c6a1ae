r"""Errors of few-step solvers, measured against the exact solution map.

A solver walks through levels :math:`\rho_0 > \rho_1 > \dots > \rho_n`. With the exact solution map
(:func:`slam_edu.toy.solution_map`) and all distances in :math:`z = x/\alpha`:

- the **local error** of hop i starts on the exact trajectory at :math:`\rho_i`, takes that one
  hop, and is the distance to the exact trajectory at :math:`\rho_{i+1}`;
- the **effect at the end** of hop i follows the exact map from where that hop went wrong to the
  last level: what the hop costs when all others are exact;
- the **global error** takes every hop with the solver, and is the distance to the exact end.

A solver of order p has a global error of :math:`O(h^p)` and a local one of :math:`O(h^{p+1})`,
with h the length of a hop (Hairer, Nørsett and Wanner 1993, sections II.3 and III.4). For DDIM,
which is Euler's method, the local error is :math:`\tfrac12 (\rho_i - \rho_{i+1})^2\,|z''|` to
leading order: half of the hop times the change of slope over it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from slam_edu._validation import check_choice, check_count
from slam_edu.schedule import Level
from slam_edu.solver import METHODS, pf_ode_trajectory
from slam_edu.toy.mixture import GaussianMixture
from slam_edu.toy.solution import solution_map

_TOL = 1e-8  # of the exact solution in float64: far below every error that is measured here


def geometric_levels(start: Level, end: Level, hops: int) -> Level:
    r"""Variance-preserving levels from ``start`` to ``end``, evenly spaced in :math:`\log\rho`.

    Both of shape ``()``; ``hops + 1`` levels are returned.

    Raises:
        ValueError: for a number of hops below 1, or an end that is clean or not below the start.
    """
    check_count(hops, "hops")
    rho, rho_end = start.rho, end.rho
    if not 0 < rho_end.item() < rho.item():
        raise ValueError(
            f"end has rho = {rho_end.item():g}; allowed: greater than 0 and less than the "
            f"start's, {rho.item():g}"
        )
    share = torch.linspace(0, 1, hops + 1, dtype=rho.dtype, device=rho.device)
    return Level.from_rho(rho * (rho_end / rho) ** share)


def exact_trajectory(
    mixture: GaussianMixture, x: Tensor, levels: Level, *, tol: float = _TOL
) -> Tensor:
    """The exact PF-ODE trajectory at a sequence of levels, shape ``(n + 1, B, D)``.

    ``x`` of shape ``(B, D)`` is at ``levels[0]``; ``tol`` is that of each hop.

    Raises:
        ValueError: for levels that are no sequence or do not fall, and as ``solution_map``.
    """
    if levels.alpha.ndim != 1 or len(levels) < 2:
        raise ValueError(f"levels have shape {tuple(levels.alpha.shape)}; allowed: (n,), n >= 2")
    states = [x]
    for i in range(len(levels) - 1):
        states.append(solution_map(mixture, states[i], levels[i], levels[i + 1], tol=tol).x)
    return torch.stack(states)


def one_hop(
    mixture: GaussianMixture, exact: Tensor, levels: Level, i: int, method: str = "ddim"
) -> Tensor:
    """Where a solver goes in hop ``i`` if it starts on the exact trajectory, shape ``(B, D)``.

    A multistep method remembers the exact trajectory's level before. ``exact`` is that of
    :func:`exact_trajectory` at the same ``levels``, ``method`` one of
    :data:`slam_edu.solver.METHODS`.

    Raises:
        ValueError: for an unknown method, a hop that does not exist, or an ``exact`` that does not
            belong to the levels.
    """
    check_choice(method, METHODS, "method")
    if len(exact) != len(levels):
        raise ValueError(f"exact has {len(exact)} states; allowed: one per level, {len(levels)}")
    check_count(i, "i", low=0, high=len(levels) - 2)
    previous = None
    if i > 0:
        previous = (mixture.predict(exact[i - 1], levels[i - 1]), levels[i - 1])
    return METHODS[method](mixture.predict, exact[i], levels[i], levels[i + 1], previous)[0]


def local_errors(
    mixture: GaussianMixture, exact: Tensor, levels: Level, method: str = "ddim"
) -> Tensor:
    """Local error of every hop in z, shape ``(n, B)``; see the module, and :func:`one_hop`."""
    hops = range(len(levels) - 1)
    reached = torch.stack([one_hop(mixture, exact, levels, i, method) for i in hops])
    return (reached - exact[1:]).norm(dim=2) / levels.alpha[1:, None]


def effects_at_end(
    mixture: GaussianMixture,
    exact: Tensor,
    levels: Level,
    method: str = "ddim",
    *,
    tol: float = 1e-5,
) -> Tensor:
    """What each hop alone costs at the end if all others are exact, in z, shape ``(n, B)``."""
    last = len(levels) - 1
    effects = []
    for i in range(last):
        x = one_hop(mixture, exact, levels, i, method)
        if i + 1 < last:
            x = solution_map(mixture, x, levels[i + 1], levels[last], tol=tol).x
        effects.append((x - exact[last]).norm(dim=1) / levels.alpha[last])
    return torch.stack(effects)


def global_errors(
    mixture: GaussianMixture, exact: Tensor, levels: Level, method: str = "ddim"
) -> Tensor:
    """Distance of a solver's end from the exact end in z, shape ``(B,)``.

    The first state of ``exact`` is the start and its last the exact end; the states between may
    be left out. ``levels`` are those that the solver walks through.
    """
    end = pf_ode_trajectory(mixture.predict, exact[0], levels, method)[-1]
    return (end - exact[-1]).norm(dim=1) / levels.alpha[-1]


def measured_order(hops: Sequence[int], errors: Sequence[float]) -> float:
    """Order by step halving: minus the least-squares slope of log error over log number of hops.

    Raises:
        ValueError: for fewer than two points, unequal lengths, or a value that is not positive.
    """
    if len(hops) != len(errors) or len(hops) < 2:
        raise ValueError(f"{len(hops)} hops, {len(errors)} errors; allowed: as many, two or more")
    if not all(value > 0 for value in (*hops, *errors)):
        raise ValueError("a number of hops or an error is not positive; allowed: greater than 0")
    return -float(np.polyfit(np.log(hops), np.log(errors), 1)[0])

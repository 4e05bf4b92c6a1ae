r"""How far two sets of samples are apart, and which modes a set has found.

All distances are computed in float64 and are 0 for equal sets. Between two finite samples of the
same distribution they are not: compare against that floor (a second sample of the data), not
against 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slam_edu._validation import check_count, check_samples
from slam_edu.schedule import Level
from slam_edu.toy.mixture import GaussianMixture

_CHUNK = 2**20  # numbers in a table at a time: 8 MB


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, projections: int = 256, generator: torch.Generator | None = None
) -> float:
    r"""Sliced Wasserstein distance of order 2: Wasserstein distances on random lines.

    .. math::
        \mathrm{SW}_2(X, Y) =
        \Big(\tfrac1L \sum_{l=1}^L W_2^2(\theta_l^\top X,\ \theta_l^\top Y)\Big)^{1/2}, \qquad
        \theta_l \text{ uniform on the unit sphere.}

    For a shift by m of the same cloud it tends to :math:`\|m\|/\sqrt D`.
    Computed exactly for the lines that were drawn. Source: Bonneel et al. 2015.

    Args:
        x: samples, shape ``(N, D)``.
        y: samples, shape ``(M, D)``; M may differ from N.
        projections: number L of lines.
        generator: draws the lines. Without one they are always the same, so that two calls can be
            compared.

    Raises:
        ImportError: without POT.
        ValueError: for samples that are not finite, not of rank 2, or differ in D or device, or a
            number of projections below 1.
    """
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "sliced_wasserstein needs POT: pip install pot (the extra slam_edu[course] has it)"
        ) from error
    x, y = _pair(x, y)
    check_count(projections, "projections")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    lines = torch.randn(
        x.shape[1], projections, generator=generator, dtype=torch.float64, device=generator.device
    )
    lines = lines / lines.norm(dim=0)
    distance = ot.sliced_wasserstein_distance(
        x.cpu().numpy(), y.cpu().numpy(), projections=lines.cpu().numpy(), p=2
    )
    return float(distance)


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Energy distance: 0 if and only if the two sets are the same.

    .. math::
        D(X, Y) = \big(2\,\mathbb E\|X - Y\| - \mathbb E\|X - X'\|
        - \mathbb E\|Y - Y'\|\big)^{1/2},

    with the means over all pairs. It has no parameter and no randomness. The square root is
    scipy's convention (``scipy.stats.energy_distance``, for D = 1). Source: Székely and Rizzo
    2013.

    Args:
        x: samples, shape ``(N, D)``.
        y: samples, shape ``(M, D)``.

    Raises:
        ValueError: for samples that are not finite, not of rank 2, or differ in D or device.
    """
    x, y = _pair(x, y)
    squared = 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)
    return max(squared, 0.0) ** 0.5  # rounding may leave -1e-16


@dataclass(frozen=True)
class ModeCoverage:
    """Which components of a mixture a set of samples has found.

    Attributes:
        covered: fraction of the components that have at least half of the samples they should
            have.
        inside: fraction of the samples that lie within the radius of a component.
        counts: samples assigned to each component and within its radius, integers of shape
            ``(K,)``.
    """

    covered: float
    inside: float
    counts: Tensor


def mode_coverage(
    samples: Tensor, mixture: GaussianMixture, *, level: Level | None = None, radius: float = 4.0
) -> ModeCoverage:
    r"""Modes found and samples lost, for a mixture of well-separated components.

    A sample belongs to the component nearest to it in units of that component's std, and counts if
    that distance is at most ``radius``. Of the data's own samples a share :math:`e^{-r^2/2}` lies
    outside (3e-4 in two dimensions for r = 4). A component is covered if it has at least half of
    the :math:`N w_k` samples it should have.

    Args:
        samples: shape ``(N, D)``, in the mixture's dtype.
        mixture: the data.
        level: the level of the samples, shape ``()``, such as ``schedule(0)``; None is clean data.
        radius: in stds of the component.

    Raises:
        ValueError: for samples that are not finite or unlike the mixture in D, dtype or device, a
            level of another shape than ``()``, a radius that is not positive, or a component of
            width 0 at :math:`\sigma = 0`.
    """
    check_samples(samples, "samples")
    if not radius > 0:
        raise ValueError(f"radius is {radius}; allowed: greater than 0")
    if level is not None and level.alpha.ndim != 0:
        raise ValueError(f"level has shape {tuple(level.alpha.shape)}; allowed: ()")
    _, z, rho = mixture._coordinates(samples, level)
    std = mixture._variance(rho).sqrt().expand(len(mixture))
    nearest, distance = [], []
    for part in z.split(max(_CHUNK // len(mixture), 1)):
        table = torch.cdist(part, mixture.means) / std  # (rows, K)
        best = table.min(dim=1)
        nearest.append(best.indices)
        distance.append(best.values)
    inside = torch.cat(distance) <= radius
    counts = torch.bincount(torch.cat(nearest)[inside], minlength=len(mixture))
    wanted = len(samples) * mixture.weights
    return ModeCoverage(
        covered=(counts >= wanted / 2).double().mean().item(),
        inside=inside.double().mean().item(),
        counts=counts,
    )


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets checked and in float64 (on the CPU, if their device has none)."""
    for name, value in (("x", x), ("y", y)):
        check_samples(value, name)
        if value.ndim != 2 or len(value) == 0:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: (N, D) with N >= 1")
    if x.shape[1] != y.shape[1] or x.device != y.device:
        raise ValueError(
            f"x has D = {x.shape[1]} on {x.device}, y has D = {y.shape[1]} on {y.device}; "
            f"allowed: the same of both"
        )
    if x.device.type == "mps":  # has no float64
        x, y = x.cpu(), y.cpu()
    return x.detach().double(), y.detach().double()


def _mean_distance(x: Tensor, y: Tensor) -> float:
    # Without the shortcut by a matrix product, which loses half of the digits of short distances.
    parts = x.split(max(_CHUNK // len(y), 1))
    total = sum(
        torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist").sum().item()
        for part in parts
    )
    return total / (len(x) * len(y))

r"""How far two sets of samples are apart.

All distances are computed in float64 and are 0 for equal sets. Between two finite samples of the
same distribution they are not: compare against that floor (a second sample of the data), not
against 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slam_edu._validation import check_count, check_samples

_CHUNK = 2**20  # numbers in a table at a time: 8 MB


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, projections: int = 256, generator: torch.Generator | None = None
) -> float:
    r"""Sliced Wasserstein distance of order 2: Wasserstein distances on random lines.

    .. math::
        \mathrm{SW}_2(X, Y) =
        \Big(\tfrac1L \sum_{l=1}^L W_2^2(\theta_l^\top X,\ \theta_l^\top Y)\Big)^{1/2}, \qquad
        \theta_l \text{ uniform on the unit sphere.}

    The samples have shapes ``(N, D)`` and ``(M, D)``; L is ``projections``. Without a generator
    the lines are always the same, so that two calls can be compared; for them the distance is
    exact. For a shift by m of the same cloud it tends to :math:`\|m\|/\sqrt D`. Source: Bonneel
    et al. 2015.

    Raises:
        ImportError: without POT.
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
    if len(x) == len(y):  # equal quantiles are then pairs of sorted numbers: much faster
        a, b = ((points.to(lines.device) @ lines).sort(dim=0).values for points in (x, y))
        return (a - b).square().mean().sqrt().item()
    x, y, lines = (tensor.cpu().numpy() for tensor in (x, y, lines))
    return float(ot.sliced_wasserstein_distance(x, y, projections=lines, p=2))


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Energy distance: 0 if and only if the two sets are the same.

    .. math::
        D(X, Y) = \big(2\,\mathbb E\|X - Y\| - \mathbb E\|X - X'\|
        - \mathbb E\|Y - Y'\|\big)^{1/2},

    with the means over all pairs. It has no parameter and no randomness. The square root is
    scipy's convention (``scipy.stats.energy_distance``, for D = 1). Source: Székely and Rizzo
    2013.

    The samples have shapes ``(N, D)`` and ``(M, D)``.
    """
    x, y = _pair(x, y)
    squared = 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)
    return max(squared, 0.0) ** 0.5  # rounding may leave -1e-16


def _pair(x: Tensor, y: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Both sets checked and in float64 (on the CPU, if their device has none)."""
    for name, value in (("x", x), ("y", y)):
        check_samples(value, name)
        if value.ndim != 2 or len(value) < least:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; allowed: (N, D) with N >= {least}"
            )
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
    mode = "donot_use_mm_for_euclid_dist"
    parts = x.split(max(_CHUNK // len(y), 1))
    total = sum(torch.cdist(part, y, compute_mode=mode).sum().item() for part in parts)
    return total / (len(x) * len(y))


# -------------------------------------------------------------------- sets of images' features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Fréchet distance between the normal distributions that fit two sets, (n, D) and (m, D).

    .. math:: \lVert\mu_a-\mu_b\rVert^2 + \operatorname{tr}(C_a + C_b - 2(C_aC_b)^{1/2})

    Too large by about a constant over the number of samples. Source: Heusel et al. 2017 ("FID").
    """
    return frechet_to(b)(a)


def frechet_to(b: Tensor) -> Callable[[Tensor], float]:
    """:func:`frechet_distance` to b, with what belongs to b alone computed once."""
    _, b = _pair(b, b, least=2)
    values, vectors = torch.linalg.eigh(b.T.cov())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    mean, spread = b.mean(0), values.sum()

    def distance(a: Tensor) -> float:
        a, _ = _pair(a, b, least=2)
        covariance = a.T.cov()
        # C_a C_b and its symmetric neighbour C_b^(1/2) C_a C_b^(1/2) have the same eigenvalues.
        both = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0)
        apart = (a.mean(0) - mean).square().sum()
        return float(apart + covariance.trace() + spread - 2 * both.sqrt().sum())

    return distance


def kernel_distance(a: Tensor, b: Tensor) -> float:
    r"""Unbiased squared maximum mean discrepancy between two sets, (n, D) and (m, D).

    With the kernel :math:`(a\cdot b/D + 1)^3`. Its expectation is 0 for two sets of one
    distribution, so it may fall below. Source: Binkowski et al. 2018 ("KID").
    """
    return kernel_to(b)(a)


def kernel_to(b: Tensor) -> Callable[[Tensor], float]:
    """:func:`kernel_distance` to b, with what belongs to b alone computed once."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k, n = kernel(x, x), len(x)
        return (k.sum() - k.trace()) / (n * (n - 1))  # no sample with itself

    _, b = _pair(b, b, least=2)
    own = within(b)

    def distance(a: Tensor) -> float:
        a, _ = _pair(a, b, least=2)
        return float(within(a) + own - 2 * kernel(a, b).mean())

    return distance


def feature_distances(
    real: Tensor, drawn: Tensor, subsets: int = 50, size: int = 500
) -> tuple[float, float, float]:
    """Fréchet distance, kernel distance and its spread, between two sets of features.

    The kernel distance is the mean over random subsets of both, as is usual, its spread their
    standard deviation. The subsets are always the same.
    """
    size = min(size, len(real), len(drawn))
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(subsets):
        a, b = (x[torch.randperm(len(x), generator=generator)[:size]] for x in (real, drawn))
        found.append(kernel_distance(a, b))
    kernel = torch.tensor(found, dtype=torch.float64)
    return frechet_to(real)(drawn), float(kernel.mean()), float(kernel.std(correction=0))

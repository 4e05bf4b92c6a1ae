r"""Two suspects for the official student's failure, and the numbers that tell them apart.

The official student is trained at :math:`\gamma` uniform on [0, 1) and is used, by its own target
and when sampling, at :math:`\gamma = 1`, where the embedding is :math:`e(0)`. Either :math:`e(0)`
is an outlier that the training never saw; or the student hardly hears :math:`\gamma`, and answers
at every gamma for the average point of a chord, which has less noise than its timestep says.

1. :func:`embedding_at_one`: is :math:`e(0)` among the features of gammas below 1?
2. :func:`shift_at_one`: is what a trained student adds to its timestep's embedding there,
   :math:`P e(0)`, among what it adds below, and how loud is it?
3. :func:`errors_by_gamma`: told another gamma of the same point, is the student right? An outlier
   at 1 would leave .9999 right; a student that does not hear is as wrong at every gamma.

In the shipped study the third speaks for the second suspect
(``data/digits-results/students/report.md``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slam_edu._validation import check_choice, check_count
from slam_edu.digits.students.measure import Predict, map_errors
from slam_edu.digits.students.reference import SolutionMap
from slam_edu.distill import SubPathDistiller
from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.sd.components import LatentDiffusion, TextCondition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import Networks
from slam_edu.seeding import sample_generator

DRAWS = 8000
"""Gammas below 1 that are compared with: as many as 250 updates of 32 draw."""

TOLD = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)
"""Gammas that a student is told of the same point."""

_PAIRED = 1000  # points whose neighbours are looked for
_RIDGE = 1e-3  # of the mean variance, so that flat directions count for nothing


def drawn_gammas(draws: int = DRAWS, seed: int = 0) -> Tensor:
    """Gammas uniform on [0, 1), of shape (draws,), float64."""
    check_count(draws, "draws", low=2)
    return torch.rand(draws, generator=sample_generator(seed), dtype=torch.float64)


def embedding_at_one(
    gamma_input: str = "official", draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    r"""Where the features of :math:`\gamma = 1` lie among those of drawn gammas.

    Args:
        gamma_input: which features, ``"official"`` or ``"smooth"``.
        draws: number of gammas below 1.
        seed: of them.

    Returns:
        plain numbers:

        - ``norm_one`` and ``norm_mean``, lengths of the features at 1 and below;
        - ``distance_one``, ``distance_mean`` and ``distance_p99``, to the mean of all below: at 1,
          their mean, their 99 % quantile;
        - ``nearest_one`` and ``nearest_median``, to the nearest neighbour;
        - ``leverage_one``, ``leverage_mean`` and ``leverage_p99``, squared Mahalanobis distances
          to the mean: how far a linear layer that was fitted below 1 may be off;
        - ``leverage_zero``, the same at the other edge, :math:`\gamma = 0`;
        - ``seen``, how many of the draws have features whose cosine with those at 1 is above .9
          (NaN where the features at 1 are zero).

    Raises:
        ValueError: for unknown features, or fewer than 2 draws.
    """
    check_choice(gamma_input, GAMMA_INPUTS, "gamma_input")
    features = GAMMA_INPUTS[gamma_input]
    below = features(drawn_gammas(draws, seed))
    one, zero = features(torch.tensor([1.0, 0.0], dtype=torch.float64))
    cosine = torch.cosine_similarity(below, one[None])
    seen = float((cosine > 0.9).sum()) if one.any() else float("nan")
    return _among(below, one, zero) | {"seen": seen}


def cosines_to_one(gammas: Sequence[float]) -> list[float]:
    r"""Cosines between the official features of :math:`\gamma = 1` and of others."""
    told = torch.tensor([1.0, *gammas], dtype=torch.float64)
    e = GAMMA_INPUTS["official"](told)
    return torch.cosine_similarity(e[1:], e[:1]).tolist()


def shift_at_one(
    networks: Networks, gamma_input: str = "official", draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    r"""Where what a student adds at :math:`\gamma = 1` lies among what it adds below.

    The embedding of gamma is added to the sinusoids of the timestep, which are
    :math:`\sqrt{C/2}` long.

    Args:
        networks: of a student with an embedding of gamma; the moving average is looked at.
        gamma_input: its features.
        draws: number of gammas below 1.
        seed: of them.

    Returns:
        the numbers of :func:`embedding_at_one`, without ``seen``, of the shifts; and
        ``norm_time``, the length of what they are added to.

    Raises:
        ValueError: for a student without an embedding of gamma.
    """
    check_choice(gamma_input, GAMMA_INPUTS, "gamma_input")
    weight = networks.gamma_weight()
    if weight is None:
        raise ValueError(
            "the student has no embedding of gamma; allowed: one trained with conditioning='gamma'"
        )
    features, weight = GAMMA_INPUTS[gamma_input], weight.cpu().double()
    ends = features(torch.tensor([1.0, 0.0], dtype=torch.float64))
    below = features(drawn_gammas(draws, seed)) @ weight.T
    one, zero = ends @ weight.T
    return _among(below, one, zero) | {"norm_time": (len(weight) / 2) ** 0.5}


def errors_by_gamma(
    networks: Networks,
    config: SDConfig,
    model: LatentDiffusion,
    points: SolutionMap,
    told: Sequence[float] = TOLD,
) -> dict[float, dict[str, float]]:
    """Errors to the solution map of a student that is told other gammas than 1.

    The point and its level stay those of gamma = 1; a student whose embedding carries over from
    its training gives nearly the same end when it is told .99.

    Args:
        networks: of a student with an embedding of gamma; the moving average is asked.
        config: of the run.
        model: the teacher.
        points: the solution map.
        told: gammas in [0, 1].

    Returns:
        for each gamma the ``latent_t`` and ``pixel_t`` of
        :func:`slam_edu.digits.students.measure.map_errors`.

    Raises:
        ValueError: for a student that is not told gamma.
    """
    if not config.gamma_conditioned:
        raise ValueError(
            f"conditioning is {config.distillation.conditioning!r}; allowed: 'gamma', a student "
            f"that is given it"
        )
    distiller = SubPathDistiller(model.schedule, config.distill(model.prediction_type))

    def ends(gamma: float) -> Predict:
        def network(x: Tensor, t: Tensor, cond: TextCondition, one: Tensor) -> Tensor:
            return networks.target(x, t, cond, torch.full_like(one, gamma))

        return lambda x, t, cond: distiller.predict(network, x, t, cond)

    return {float(gamma): map_errors(model, points, ends(gamma)) for gamma in told}


def _among(below: Tensor, one: Tensor, zero: Tensor) -> dict[str, float]:
    """Where the rows ``one`` and ``zero`` lie among those of ``below``, (n, F), float64."""
    mean = below.mean(0)
    away = (below - mean).norm(dim=1)
    # Each of some points against all others; its distance to itself is left out.
    some = torch.cdist(below[:_PAIRED], below)
    some[torch.arange(len(some)), torch.arange(len(some))] = float("inf")
    covariance = torch.cov(below.T)
    ridge = _RIDGE * covariance.trace() / len(covariance) + torch.finfo(below.dtype).tiny
    inverse = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance), dtype=below.dtype))

    def leverage(x: Tensor) -> Tensor:
        return torch.einsum("bi,ij,bj->b", x - mean, inverse, x - mean)

    below_1 = leverage(below)
    numbers = {
        "norm_one": one.norm(),
        "norm_mean": below.norm(dim=1).mean(),
        "distance_one": (one - mean).norm(),
        "distance_mean": away.mean(),
        "distance_p99": away.quantile(0.99),
        "nearest_one": (below - one).norm(dim=1).min(),
        "nearest_median": some.amin(1).median(),
        "leverage_one": leverage(one[None])[0],
        "leverage_zero": leverage(zero[None])[0],
        "leverage_mean": below_1.mean(),
        "leverage_p99": below_1.quantile(0.99),
    }
    return {name: float(value) for name, value in numbers.items()}

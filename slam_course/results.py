r"""Paired ratios of what was measured.

Two settings are compared on the same data sets and seeds: for data set d and seed i, with measured
numbers :math:`a_{di}` and :math:`b_{di}`,

.. math:: L_i = \frac1D \sum_d \log\frac{a_{di}}{b_{di}},

and the ratio is :math:`\exp \bar L` with the 95 % interval of Student's t over the seeds,
:math:`\exp(\bar L \pm t_{n-1}\, s_L/\sqrt n)`. Pairing removes what the seeds share: initial
weights, batches, noise. The data sets are taken as given: the interval says how sure the ratio is
for these, not how it would be for others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Ratio:
    """A paired ratio with its 95 % interval (NaN with a single seed); below 1: a is better."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The ratio with its interval, such as ``0.82 [0.78, 0.86]``."""
        if math.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(
    above: Mapping[tuple[str, int], float], below: Mapping[tuple[str, int], float],
    data: Sequence[str],
) -> Ratio:  # fmt: skip
    """The paired ratio of two sets of positive numbers by data set and seed; see the module.

    Raises:
        ValueError: if no seed has both on all of these data sets.
    """
    seeds = sorted(
        {seed for _, seed in above if all((d, seed) in above and (d, seed) in below for d in data)}
    )
    if not seeds:
        raise ValueError(
            f"no seed was run for both settings on all of {', '.join(data)}; run the study"
        )
    logs = np.array([[math.log(above[d, i] / below[d, i]) for i in seeds] for d in data])  # (D, n)
    each = logs.mean(axis=0)
    half = math.nan
    if len(seeds) > 1:
        half = stats.t.ppf(0.975, len(seeds) - 1) * each.std(ddof=1) / len(seeds) ** 0.5
    value = each.mean()
    return Ratio(math.exp(value), math.exp(value - half), math.exp(value + half))

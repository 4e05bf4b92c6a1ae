"""Paired ratios."""

import math

import pytest
from scipy import stats

from slam_course.results import paired_ratio


def test_a_paired_ratio_is_that_of_the_logarithms_of_seeds_that_have_all():
    above = {("a", i): 0.5 + 0.1 * i for i in range(4)} | {("b", i): 0.3 for i in range(5)}
    below = {(d, i): 1.0 + 0.2 * (i == 2) for d in "ab" for i in range(5)}
    found = paired_ratio(above, below, "ab")
    logs = [
        sum(math.log(above[d, i] / below[d, i]) for d in "ab") / 2 for i in range(4)
    ]  # the fifth seed has no a
    low, high = stats.t.interval(0.95, 3, loc=sum(logs) / 4, scale=stats.sem(logs))
    assert found.value == pytest.approx(math.exp(sum(logs) / 4))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert str(found) == f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def test_one_seed_has_no_interval_and_none_no_ratio():
    assert str(paired_ratio({("a", 0): 1.0}, {("a", 0): 2.0}, ["a"])) == "0.50"
    with pytest.raises(ValueError, match="no seed was run for both settings on all of a"):
        paired_ratio({("a", 0): 1.0}, {("a", 1): 2.0}, ["a"])

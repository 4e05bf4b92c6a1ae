"""Shipped results in the plane, and paired ratios."""

import math

import pytest
from scipy import stats

from slam_course.ablations import GAMMA_LAWS
from slam_course.results import (
    CD,
    METHODS,
    ToyResults,
    ToyRow,
    ToySetting,
    paired_ratio,
    read_toy_rows,
    toy_results,
)
from slam_edu.io import data_path


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


def test_values_and_means_are_of_the_setting_the_data_and_the_updates():
    rows = [
        ToyRow(CD, data, seed, after, {"sw_1": 0.1 * (seed + 1)})
        for data in ("ring", "spiral") for seed in (0, 3) for after in (500, 2000)
    ]  # fmt: skip
    results = ToyResults(rows)
    assert results.values(CD, ["ring"], "sw_1", 500) == {("ring", 0): 0.1, ("ring", 3): 0.4}
    assert results.mean(CD, ["ring"], "sw_1") == pytest.approx(0.2)
    assert results.by_seed(CD, ["ring", "spiral"], "sw_1") == pytest.approx([0.1, 0.4])
    assert math.isnan(results.mean(METHODS["SLAM"], ["ring"], "sw_1"))


def test_every_method_was_run_eight_times():
    results = toy_results()
    assert all(len(results.values(s, ["ring"], "sw_1")) == 8 for s in METHODS.values())


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    text = data_path("study/runs.csv").read_text("utf-8").splitlines()[:3]
    path = tmp_path / "runs.csv"
    assert read_toy_rows(path) == []
    path.write_text("\n".join([text[0], text[1].replace("2000", "many", 1)]), "utf-8")
    with pytest.raises(ValueError, match=r"runs\.csv, line 2: .*'many'"):
        read_toy_rows(path)
    path.write_text(text[0].replace("hop", "jump"), "utf-8")
    with pytest.raises(ValueError, match=r"differs in the columns \['hop', 'jump'\]"):
        read_toy_rows(path)


def test_names_of_laws_become_laws():
    assert METHODS["SLAM, gamma in [1.5, 3]"].distill.gammas is GAMMA_LAWS["upper_half"]
    assert METHODS["SLAM"].distill.gammas == "uniform"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hop": "long"}, "hop is 'long'; allowed: 'full', 'random'"),
        ({"gammas": "two"}, "gammas is 'two'; allowed: 'uniform', 'one', 'upper_half'"),
        ({"conditioning": "gamma"}, "gamma_input is None with conditioning='gamma'"),
        ({"lr": -1.0}, "lr is -1.0"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        ToySetting(**changes)

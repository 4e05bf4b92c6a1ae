"""The benchmark compares like with like, and its command line works."""

import pytest
import torch

from slam_edu import bench
from slam_edu.subpath import COUPLINGS
from tests.helpers import assert_near


@pytest.mark.parametrize("conditioning", ["gamma", "level"])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_inlined_step_is_the_step(conditioning, coupling):
    """The same loss and the same gradient: neither side leaves anything out."""
    bare, ours, student = bench.step_problem(conditioning, coupling)
    results = []
    for loss in (bare, ours):
        student.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        results.append((value.detach(), [p.grad.clone() for p in student.parameters()]))
    # The level-conditioned timestep is a difference of logarithms of order 1e-3 of themselves.
    rtol = 1e-5 if conditioning == "gamma" else 1e-4
    assert_near(results[0][0], results[1][0], rtol=rtol)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert_near(one, other, rtol=10 * rtol, atol=10 * rtol * one.abs().max().item())


def test_the_cases_differ():
    """The four problems have four losses, so no case stands in for another."""
    losses = [
        bench.step_problem(conditioning, coupling)[1]().item()
        for conditioning in ("gamma", "level")
        for coupling in COUPLINGS
    ]
    assert len({round(loss, 9) for loss in losses}) == 4


def test_the_problem_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    bench.step_problem("gamma", "markov")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_table(monkeypatch, capsys):
    rows = [
        bench.Row(name="fast", bare=0.010, ours=0.011, target=1.3),
        bench.Row(name="slow", bare=0.010, ours=0.020, target=1.3),
    ]
    monkeypatch.setattr(bench, "core", lambda repeat: iter(rows))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    assert bench.main(["core", "--repeat", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 thread(s), medians of 2" in lines[0]
    assert lines[-2].split() == ["fast", "10.00", "11.00", "1.10", "1.30", "yes"]
    assert lines[-1].split() == ["slow", "10.00", "20.00", "2.00", "1.30", "NO"]


def test_measurements_are_interleaved():
    order = []
    seconds = bench.compare(lambda: order.append("bare"), lambda: order.append("ours"), 4)
    assert order == ["bare", "ours", *["ours", "bare", "bare", "ours"] * 2]
    assert min(seconds) >= 0


@pytest.mark.parametrize("rows", [bench.trajectories, bench.steps, bench.imports])
def test_rows_are_measured(rows, monkeypatch):
    """Small, and once: that the code runs, not how fast."""
    monkeypatch.setattr(bench, "POINTS", 4)
    monkeypatch.setattr(bench, "STEPS_PER_MEASUREMENT", 1)
    monkeypatch.setattr(bench, "EVALUATIONS", {"ddim": 1})
    measured = list(rows(1))
    assert measured
    assert all(row.bare > 0 and row.ours > 0 and row.target >= 1 for row in measured)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: what"),
        (["sd"], "invalid choice: 'sd'"),
        (["core", "--repeat", "0"], "--repeat is 0; allowed: an integer >= 1"),
        (["core", "--threads", "-1"], "--threads is -1; allowed: an integer >= 1"),
    ],
)
def test_wrong_arguments(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(argv)
    assert error.value.code == 2
    assert message in capsys.readouterr().err

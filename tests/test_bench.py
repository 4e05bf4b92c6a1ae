"""The benchmark compares like with like, and its command line works."""

import pytest
import torch

from slam_edu import bench
from tests.helpers import assert_near


@pytest.mark.parametrize(("conditioning", "coupling"), [("gamma", "markov"), ("level", "linear")])
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


def test_the_loops_train_what_they_say():
    """The same batch; gamma is 1 for consistency distillation and not for SLAM."""
    states = {what: next(bench.training(what)) for what in bench.TRAININGS}
    assert states["teacher"].output is None
    baseline, slam = (states[what].output for what in ("consistency distillation", "SLAM"))
    assert baseline.x_t.shape == (512, 2)
    assert torch.equal(baseline.x_t, slam.x_t)
    assert baseline.gamma.unique().tolist() == [1.0]
    assert 0.4 < slam.gamma.mean() < 0.6


def test_the_bare_update_trains():
    """Its weights move, and so does their average: nothing in it is a dead computation."""
    update = bench.bare_update("SLAM")
    cells = dict(zip(update.__code__.co_freevars, update.__closure__, strict=True))
    kept = {name: cells[name].cell_contents for name in ("weights", "averages")}
    before = {name: [p.detach().clone() for p in kept[name]] for name in kept}
    for _ in range(2):  # the output layer starts at zero and holds the others' gradient back
        update()
    for name, tensors in kept.items():
        for p, old in zip(tensors, before[name], strict=True):
            assert not torch.equal(p, old)


@pytest.mark.parametrize(("what", "rows"), [("core", 8), ("toy", 4)])
def test_the_table(what, rows, monkeypatch, capsys):
    """Small, and once: that the code runs, not how fast."""
    monkeypatch.setattr(bench, "POINTS", 4)
    monkeypatch.setattr(bench, "LEVELS", 3)
    monkeypatch.setattr(bench, "BATCH", 4)
    monkeypatch.setattr(bench.compare, "__defaults__", (1,))
    monkeypatch.setattr(bench, "imports", lambda repeat: [("import", 1.0, 1.1)])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    assert bench.main([what, "--repeat", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()[3:]
    assert len(lines) == rows
    for line in lines:
        bare, ours, ratio = map(float, line.split()[-3:])
        assert bare > 0
        assert ratio == pytest.approx(ours / bare, rel=0.1, abs=0.01)


def test_wrong_arguments(capsys):
    for argv, message in (
        (["sdxl"], "invalid choice: 'sdxl'"), (["core", "--repeat", "0"], "--repeat is 0; allowed")
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            bench.main(argv)
        assert message in capsys.readouterr().err

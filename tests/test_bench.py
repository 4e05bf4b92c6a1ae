"""The benchmark compares like with like, and its command line works."""

import collections
import copy
import dataclasses
import math

import pytest
import torch

from slam_edu import bench
from slam_edu.subpath import COUPLINGS
from slam_edu.toy import GaussianMixture
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


class Counting(torch.overrides.TorchFunctionMode):
    """Counts linear layers, backward passes, and the calls that update weights."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("linear", "backward", "_foreach_lerp_"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def passes(run, monkeypatch):
    """What one call of a function does: see ``Counting``, and AdamW's and the teacher's calls."""
    adamw, predict, found = torch.optim.AdamW.step, GaussianMixture.predict, Counting()

    def step(self, *args, **kwargs):
        found.counts["AdamW"] += 1
        return adamw(self, *args, **kwargs)

    def spy(self, *args):
        found.counts["teacher"] += 1
        return predict(self, *args)

    with monkeypatch.context() as patched, found:
        patched.setattr(torch.optim.AdamW, "step", step)
        patched.setattr(GaussianMixture, "predict", spy)
        run()
    return dict(found.counts)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        # A LevelMLP of depth 4 has 6 linear layers: the inputs, the level, 3 hidden, the output.
        ("teacher", {"linear": 6, "backward": 1, "AdamW": 1, "_foreach_lerp_": 1}),
        *(
            (what, {"linear": 12, "backward": 1, "AdamW": 1, "_foreach_lerp_": 1, "teacher": 1})
            for what in ("consistency distillation", "SLAM")
        ),
    ],
)
def test_both_sides_of_a_loop_do_the_same_passes(what, expected, monkeypatch):
    bare, states = bench.bare_update(what), bench.training(what)
    bare(), next(states)  # the first update sets things up
    assert passes(bare, monkeypatch) == expected
    assert passes(lambda: next(states), monkeypatch) == expected


def test_the_loops_train_what_they_say():
    """The same network and batch; gamma is 1 for consistency distillation and not for SLAM."""
    assert tuple(bench.TRAININGS) == ("teacher", "consistency distillation", "SLAM")
    states = {what: next(bench.training(what)) for what in bench.TRAININGS}
    sizes = {
        sum(p.numel() for group in state.optimizer.param_groups for p in group["params"])
        for state in states.values()
    }
    inputs, level, hidden, output = 3 * 128, 15 * 4 * 128, 3 * 129 * 128, 129 * 2
    assert sizes == {inputs + level + hidden + output}
    assert states["teacher"].output is None
    baseline, slam = (states[what].output for what in ("consistency distillation", "SLAM"))
    assert baseline.x_t.shape == slam.x_t.shape == (512, 2)
    assert torch.equal(baseline.x_t, slam.x_t)
    assert baseline.gamma.unique().tolist() == [1.0]
    assert 0.4 < slam.gamma.mean() < 0.6
    assert slam.level_gamma.alpha.shape == (512,)


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


@pytest.mark.parametrize("table", ["core", "toy", "digits"])
def test_the_table(table, monkeypatch, capsys):
    rows = [
        bench.Row(name="fast", bare=0.010, ours=0.011, target=1.3),
        bench.Row(name="slow", bare=0.010, ours=0.020, target=1.3),
    ]
    monkeypatch.setattr(bench, table, lambda repeat: iter(rows))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    assert bench.main([table, "--repeat", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 thread(s), medians of 2" in lines[0]
    assert lines[-2].split() == ["fast", "10.00", "11.00", "1.10", "1.30", "yes"]
    assert lines[-1].split() == ["slow", "10.00", "20.00", "2.00", "1.30", "NO"]


def test_a_line_with_a_rate():
    row = bench.Row(name="update", bare=0.004, ours=0.005, target=1.25, rate="updates")
    words = ["update", "4.00", "5.00", "1.25", "1.25", "yes", "200", "updates/s"]
    assert bench.line(row).split() == words
    missed = dataclasses.replace(row, target=1.2)
    assert bench.line(missed).split()[-3:] == ["NO", "200", "updates/s"]


def test_a_line_without_a_target():
    row = bench.Row(name="update", bare=0.004, ours=0.005, target=math.inf)
    assert bench.line(row).split() == ["update", "4.00", "5.00", "1.25"]


def test_the_digits_update_trains(monkeypatch):
    kept = []
    monkeypatch.setattr(bench, "ema_copy", lambda net: kept.append(net) or copy.deepcopy(net))
    update = bench.digits_update(batch=2, channels=(16, 32), attention=(False, True))
    before = [p.clone() for p in kept[0].parameters()]
    update()
    unet = kept[0].unet
    assert unet.config.down_block_types == ("DownBlock2D", "CrossAttnDownBlock2D")
    assert unet.config.up_block_types == ("CrossAttnUpBlock2D", "UpBlock2D")
    changed = [not torch.equal(p, b) for p, b in zip(kept[0].parameters(), before, strict=True)]
    assert sum(changed) > 0.9 * len(changed)


def test_each_of_the_digits_variants_runs(monkeypatch):
    small = {"batch": 2, "channels": (16, 32)}
    whole = bench.digits_update
    monkeypatch.setattr(bench, "digits_update", lambda **variant: whole(**{**variant, **small}))
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    rows = list(bench.digits(1))
    names = [f"update with {name}" for name in bench.DIGITS_VARIANTS if name != "torch.compile"]
    assert [row.name for row in rows] == names
    assert all(row.bare > 0 and row.ours > 0 for row in rows)


def test_measurements_are_interleaved():
    order = []
    seconds = bench.compare(lambda: order.append("bare"), lambda: order.append("ours"), 4)
    assert order == ["bare", "ours", *["ours", "bare", "bare", "ours"] * 2]
    assert min(seconds) >= 0


def test_a_row_is_of_one_update(monkeypatch):
    """Both sides make as many updates per measurement, and the row divides by that number."""
    calls, updates = [], bench.STEPS_PER_MEASUREMENT

    def compare(bare, ours, repeat):
        calls.append(repeat)
        bare(), ours()
        return 2.0 * updates, 3.0 * updates

    counts = collections.Counter()

    def counting(side):
        def update():
            counts[side] += 1

        return update

    monkeypatch.setattr(bench, "compare", compare)
    monkeypatch.setattr(bench, "bare_update", lambda what: counting(f"bare {what}"))
    monkeypatch.setattr(bench, "training", lambda what: iter(counting(what), "never"))
    rows = list(bench.toy(3))
    assert calls == [60] * 4
    assert [(row.bare, row.ours, row.target) for row in rows] == [(2, 3, 1.25)] * 3 + [(2, 3, 1.1)]
    assert [row.rate for row in rows] == ["updates"] * 3 + [None]
    assert counts == {
        "bare teacher": updates, "teacher": updates,
        "bare consistency distillation": updates, "bare SLAM": updates,
        "consistency distillation": 2 * updates, "SLAM": 2 * updates,
    }  # fmt: skip
    assert [row.name.removeprefix("update of ") for row in rows[:3]] == list(bench.TRAININGS)


@pytest.mark.parametrize(
    "rows", [bench.trajectories, bench.steps, bench.imports, bench.loops, bench.method]
)
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
        (["sdxl"], "invalid choice: 'sdxl'"),
        (["core", "--repeat", "0"], "--repeat is 0; allowed: an integer >= 1"),
        (["core", "--threads", "-1"], "--threads is -1; allowed: an integer >= 1"),
    ],
)
def test_wrong_arguments(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(argv)
    assert error.value.code == 2
    assert message in capsys.readouterr().err

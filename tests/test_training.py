"""The training loop: what one update is, what happens to a bad one, and that runs repeat."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from slam_edu import (
    DistillConfig,
    NoiseSchedule,
    SubPathDistiller,
    TrainConfig,
    ema_copy,
    last,
    sample_consistency,
    train_student,
)
from tests.helpers import NoFloat64, assert_near, column, on_devices


class Net(nn.Module):
    """A small network on points, told the timestep."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(4, 24), nn.SiLU(), nn.Linear(24, 2))
        self.calls = 0
        self.bad: set[int] = set()
        self.poison = math.nan

    def forward(self, x, t, cond=None, gamma=None):
        self.calls += 1
        u = t.to(x.dtype)[:, None] / 1000
        output = self.layers(torch.cat([x, u, torch.cos(3 * u)], dim=1))
        return output * self.poison if self.calls in self.bad else output


def problem(device: str = "cpu", **changes):
    """Points of N(0, 1/4), whose denoiser is known, and a v-predicting student."""
    schedule = NoiseSchedule.stable_diffusion().to(device)
    config = DistillConfig(
        conditioning="level", coupling="linear", teacher_prediction_type="v_prediction"
    )

    def teacher(x, t, cond=None):
        here = schedule(t)
        slope = 0.75 * here.alpha * here.sigma / (here.alpha**2 / 4 + here.sigma**2)
        return column(slope, x) * x

    def draw_data(batch, generator):
        return 0.5 * torch.randn(batch, 2, generator=generator, device=device)

    student = Net().to(device)
    options = {
        "distiller": SubPathDistiller(schedule, config),
        "draw_data": draw_data,
        "teacher": teacher,
        "student": student,
        "target": ema_copy(student),
        "generator": torch.Generator(device).manual_seed(1),
        "config": TrainConfig(updates=30, batch=32, lr=3e-3),
    }
    return {**options, **changes}


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def assert_alike(a: nn.Module, b: nn.Module) -> None:
    """Up to the last bits, in which AdamW's implementations differ."""
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name in a:
        assert_near(a[name], b[name], rtol=1e-4, atol=2e-6)


def test_the_loop_written_out():
    """What AdamW, clipping and the moving average give when written line by line."""
    config = TrainConfig(updates=12, batch=16, lr=2e-3, warmup=3, ema_rate=0.8, clip=0.002)
    given = problem(config=config)
    plain = problem()
    states = list(train_student(**given))

    student, target, generator = plain["student"], plain["target"], plain["generator"]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1.0, weight_decay=0.0)
    clipped = 0
    for i in range(12):
        if i < 3:
            lr = 2e-3 * (i + 1) / 3
        else:
            lr = 2e-3 * (1 + math.cos(math.pi * (i - 3) / 9)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        x0 = plain["draw_data"](16, generator)
        sample = plain["distiller"].draw(x0, generator)
        out = plain["distiller"].step(
            x0, sample, teacher=plain["teacher"], student=student, target=target
        )
        optimizer.zero_grad()
        out.loss.backward()
        norm = nn.utils.clip_grad_norm_(student.parameters(), 0.002)
        clipped += norm > 0.002
        optimizer.step()
        with torch.no_grad():
            for p, q in zip(target.parameters(), student.parameters(), strict=True):
                p.lerp_(q, 0.2)
        assert states[i].update == i + 1
        assert states[i].loss == pytest.approx(out.loss.item(), rel=1e-4)
        assert states[i].grad_norm == pytest.approx(norm.item(), rel=1e-4)
        assert states[i].lr == pytest.approx(lr, rel=1e-12)
        assert states[i].skipped == 0
    assert clipped > 3
    assert_alike(given["student"], student)
    assert_alike(given["target"], target)


def test_the_student_learns():
    """The loss falls, and one step from noise comes near the exact solution map of N(0, 1/4)."""
    given = problem(config=TrainConfig(updates=300, batch=128, lr=5e-3))
    schedule = given["distiller"].schedule
    config = given["distiller"].config.replace(subpaths=5)
    given["distiller"] = SubPathDistiller(schedule, config)
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(9))
    start = schedule(999)
    exact = 0.5 / (0.25 + start.rho**2).sqrt() * x / start.alpha

    @torch.no_grad()
    def error():
        ours = sample_consistency(
            given["student"], x, schedule, 1, generator=torch.Generator(), subpaths=5,
            conditioning="level", prediction_type="v_prediction",
        )  # fmt: skip
        return (last(ours) - exact).square().mean().sqrt().item()

    before = error()
    losses = [state.loss for state in train_student(**given)]
    assert len(losses) == 300
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    assert error() < 0.4 * before


@on_devices
def test_the_same_seeds_give_the_same_bits(device):
    def run(seed):
        given = problem(device, generator=torch.Generator(device).manual_seed(seed))
        losses = [state.loss for state in train_student(**given)]
        return losses, weights(given["student"]), weights(given["target"])

    first = run(1)
    torch.rand(100)  # the global generator does not matter
    second, other = run(1), run(2)
    assert first[0] == second[0]
    assert same(first[1], second[1])
    assert same(first[2], second[2])
    assert first[0] != other[0]
    assert not same(first[1], other[1])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    for _ in train_student(**problem()):
        pass
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_skipped_update_changes_nothing(poison):
    """Student and target stay; the optimiser too, as the updates after it show.

    The reference makes the same draws and never hears of update 5 and 6: no moment of AdamW and no
    count of its steps may differ.
    """
    bad = {5, 6}
    given = problem()
    given["student"].bad, given["student"].poison = bad, poison
    before, states = (weights(given["student"]), weights(given["target"])), []
    for state in train_student(**given):
        now = weights(given["student"]), weights(given["target"])
        changed = [not same(a, b) for a, b in zip(now, before, strict=True)]
        assert changed == ([False, False] if state.update in bad else [True, True])
        assert math.isfinite(state.loss) == (state.update not in bad)
        before = now
        states.append(state)
    assert [state.skipped for state in states] == [0] * 4 + [1] + [2] * 25
    assert [state.update for state in states] == list(range(1, 31))

    plain = problem()
    parameters = list(plain["student"].parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    for i in range(30):
        x0 = plain["draw_data"](32, plain["generator"])
        sample = plain["distiller"].draw(x0, plain["generator"])
        if i + 1 in bad:
            continue
        optimizer.param_groups[0]["lr"] = plain["config"].lr_at(i)
        parts = {name: plain[name] for name in ("teacher", "student", "target")}
        optimizer.zero_grad()
        plain["distiller"].step(x0, sample, **parts).loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for p, q in zip(plain["target"].parameters(), parameters, strict=True):
                p.lerp_(q, 0.05)
    assert_alike(given["student"], plain["student"])
    assert_alike(given["target"], plain["target"])


def test_a_gradient_that_is_not_finite_is_skipped_too():
    """The loss is finite here: only its gradient is not."""

    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * math.nan

    given = problem()
    given["student"].layers.append(end := nn.Identity())
    given["target"].layers.append(nn.Identity())
    end.forward = lambda x: Root.apply(x) if given["student"].calls == 3 else x
    before = weights(given["student"])
    for state in train_student(**given):
        now = weights(given["student"])
        assert same(now, before) == (state.update == 3)
        if state.update == 3:
            assert math.isfinite(state.loss)
            assert not math.isfinite(state.grad_norm)
        before = now
    assert state.skipped == 1


def test_a_teacher_that_overflows_once_is_skipped():
    given = problem()
    teacher, calls = given["teacher"], []

    def overflowing(x, t, cond=None):
        calls.append(t)
        return teacher(x, t) * (math.inf if len(calls) == 2 else 1)

    states = list(train_student(**{**given, "teacher": overflowing}))
    assert [state.skipped for state in states] == [0] + [1] * 29


def test_too_many_skipped_updates_in_a_row_are_an_error():
    given = problem(max_skipped=3)
    given["student"].bad = set(range(5, 100))
    states = train_student(**given)
    assert [next(states).skipped for _ in range(7)] == [0, 0, 0, 0, 1, 2, 3]
    with pytest.raises(FloatingPointError, match=r"last 4 updates up to number 8 .*nan.*0\.003"):
        next(states)


def test_only_a_row_of_them_counts():
    given = problem(max_skipped=1)
    given["student"].bad = {2, 4, 6, 8, 10}
    states = list(train_student(**given))
    assert states[-1].skipped == 5


def test_frozen_parameters_stay():
    given = problem()
    given["student"].layers[0].requires_grad_(False)
    before = weights(given["student"])
    for _ in train_student(**given):
        pass
    now = weights(given["student"])
    frozen = [name for name in now if torch.equal(now[name], before[name])]
    assert frozen == ["layers.0.weight", "layers.0.bias"]


def test_the_loop_is_lazy_and_yields_the_steps_record():
    given = problem()
    before = weights(given["student"])
    states = train_student(**given)
    assert same(weights(given["student"]), before)
    state = next(states)
    assert state.update == 1
    assert state.output.loss.item() == state.loss
    assert state.output.x_t.shape == (32, 2)
    assert given["student"].training
    assert not given["target"].training
    states.close()


@pytest.mark.parametrize("conditioning", ["gamma", "level"])
def test_no_float64_in_float32_mode(conditioning):
    given = problem(config=TrainConfig(updates=3, batch=8))
    distiller = given["distiller"]
    changed = distiller.config.replace(conditioning=conditioning)
    given["distiller"] = SubPathDistiller(distiller.schedule, changed)
    with NoFloat64():
        for _ in train_student(**given):
            pass


def test_the_result_does_not_depend_on_what_the_caller_does_between_updates():
    one, other = problem(), problem()
    for _ in train_student(**one):
        pass
    for _ in train_student(**other):
        copy.deepcopy(other["student"])(torch.rand(3, 2), torch.zeros(3))  # a preview, say
        torch.rand(5)
    assert same(weights(one["student"]), weights(other["student"]))


# -------------------------------------------------------------------- the config


def test_learning_rate():
    config = TrainConfig(updates=100, lr=2.0, warmup=10, final_lr=0.1)
    rates = [config.lr_at(i) for i in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half of the cosine
    assert rates[99] == pytest.approx(0.2, rel=0.01)
    assert all(b < a for a, b in itertools.pairwise(rates[10:]))
    constant = TrainConfig(updates=7, lr=0.5, final_lr=1.0)
    assert [constant.lr_at(i) for i in range(7)] == pytest.approx([0.5] * 7)
    only_warmup = TrainConfig(updates=4, lr=1.0, warmup=4)
    assert [only_warmup.lr_at(i) for i in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert TrainConfig().ema_rate == 0.95
    assert TrainConfig().clip == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updates": 0}, r"updates is 0; allowed: an integer >= 1"),
        ({"batch": 0}, r"batch is 0; allowed: an integer >= 1"),
        ({"batch": 1.5}, r"batch is 1\.5; allowed: an integer >= 1"),
        ({"warmup": -1}, r"warmup is -1; allowed: an integer from 0 to 3000"),
        ({"warmup": 3001}, r"warmup is 3001; allowed: an integer from 0 to 3000"),
        ({"lr": 0.0}, r"lr is 0\.0; allowed: a finite number > 0"),
        ({"lr": math.nan}, r"lr is nan; allowed: a finite number > 0"),
        ({"clip": -1.0}, r"clip is -1\.0; allowed: a finite number > 0"),
        ({"final_lr": 1.5}, r"final_lr is 1\.5; allowed: from 0 to 1"),
        ({"ema_rate": -0.1}, r"ema_rate is -0\.1; allowed: from 0 to 1"),
        ({"ema_rate": math.nan}, r"ema_rate is nan; allowed: from 0 to 1"),
    ],
)
def test_wrong_config(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().lr = 1.0


def test_wrong_data_are_named():
    def broken(batch, generator):
        return torch.full((batch, 2), math.nan)

    with pytest.raises(ValueError, match=r"x0 holds 64 NaN or Inf of 64 values"):
        next(train_student(**problem(draw_data=broken)))


def test_the_teacher_of_this_file_is_exact():
    """v of N(0, 1/4): a check of the tests' own problem."""
    given = problem()
    x, t = torch.tensor([[0.7, -0.2]]), torch.tensor([499])
    here = given["distiller"].schedule(t)
    variance = here.alpha**2 / 4 + here.sigma**2
    x0, eps = here.alpha / 4 / variance * x, here.sigma / variance * x
    assert_near(given["teacher"](x, t), here.alpha * eps - here.sigma * x0, rtol=1e-5, atol=1e-6)

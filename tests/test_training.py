"""The training loops: what one update is, what happens to a bad one; runs repeat, and go on."""

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
    load_training,
    save_training,
    train_student,
    train_teacher,
)
from slam_edu.toy import GaussianMixture
from slam_edu.toy.networks import LevelMLP
from slam_edu.training import clip_gradient, progress, train
from tests.helpers import KINDS, NoFloat64, assert_near, column, on_devices


class Net(nn.Module):
    """A small network on points, given the timestep."""

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


@on_devices
def test_the_same_seeds_give_the_same_bits(device):
    before = torch.get_rng_state()

    def run(seed):
        given = problem(device, generator=torch.Generator(device).manual_seed(seed))
        losses = [state.loss for state in train_student(**given)]
        return losses, weights(given["student"]), weights(given["target"])

    first = run(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)  # the global generator does not matter
    second, other = run(1), run(2)
    assert first[0] == second[0]
    assert same(first[1], second[1])
    assert same(first[2], second[2])
    assert first[0] != other[0]
    assert not same(first[1], other[1])


def test_a_skipped_update_changes_nothing():
    """Student and target stay; the optimiser too, as the updates after it show.

    The reference makes the same draws and never hears of update 5 and 6: no moment of AdamW and no
    count of its steps may differ.
    """
    bad = {5, 6}
    given = problem()
    given["student"].bad = bad
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


def test_too_many_skipped_updates_in_a_row_are_an_error():
    given = problem(config=TrainConfig(updates=30, batch=32, lr=3e-3, max_skipped=3))
    given["student"].bad = set(range(5, 100))
    states = train_student(**given)
    assert [next(states).skipped for _ in range(7)] == [0, 0, 0, 0, 1, 2, 3]
    with pytest.raises(FloatingPointError, match=r"last 4 updates up to number 8 .*nan.*0\.0026"):
        next(states)


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


@pytest.mark.parametrize("scale", [7.3, math.nan])
@pytest.mark.parametrize("share", [0.1, 1.0, 1.001])
def test_clipping_is_pytorchs_to_the_last_bit(scale, share):
    """Also where the norm is close to the largest that is allowed."""

    def gradients():
        generator = torch.Generator().manual_seed(0)
        found = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (4,), (1,), (2, 2))]
        for p in found[:-1]:  # one of them takes no part in the loss
            p.grad = scale / 2 * torch.randn(p.shape, generator=generator)
        return found

    ours, theirs = gradients(), gradients()
    largest = share
    if math.isfinite(scale):
        largest *= math.sqrt(sum(p.grad.square().sum().item() for p in ours[:-1]))
    norm = clip_gradient(ours, largest)
    expected = nn.utils.clip_grad_norm_(theirs, largest).item()
    assert norm == expected or (math.isnan(norm) and math.isnan(expected))
    if math.isfinite(scale):  # an update that is not finite is skipped
        for a, b in zip(ours[:-1], theirs[:-1], strict=True):
            assert torch.equal(a.grad, b.grad)
    assert ours[-1].grad is None


# -------------------------------------------------------------------- a diffusion model


class Recording(LevelMLP):
    """A network that keeps what it was given."""

    def __init__(self, **options) -> None:
        super().__init__(16, 2, **options)
        self.calls = []

    def forward(self, x, t, cond=None, gamma=None):
        self.calls.append((x, t, cond, gamma, self.training))
        return super().forward(x, t, cond, gamma)


def teacher_problem(device: str = "cpu", seed: int = 1, **changes):
    schedule = NoiseSchedule.stable_diffusion().to(device)
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]])
    mixture = GaussianMixture(means, 0.3).to(device)
    network = Recording(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # it starts at zero, where a forgotten input would not show
        network.output.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(5))
    options = {
        "schedule": schedule,
        "draw_data": mixture.sample,
        "network": network.to(device),
        "average": ema_copy(network),
        "generator": torch.Generator(device).manual_seed(seed),
        "config": TrainConfig(updates=20, batch=32, lr=3e-3),
    }
    return {**options, **changes}


@pytest.mark.parametrize("kind", KINDS)
def test_a_teachers_update_written_out(kind):
    """Data, timesteps, noise, in this order; squared error of what is to be predicted; AdamW."""
    config = TrainConfig(updates=4, batch=50, lr=2e-3, clip=0.1, ema_rate=0.7)
    given, plain = teacher_problem(config=config), teacher_problem()
    given["network"].eval()  # as a sampler may have left it
    states = list(train_teacher(**given, prediction_type=kind))
    network, average, g = plain["network"], plain["average"], plain["generator"]
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    alphas_cumprod = torch.cumprod(
        1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0
    )
    for i, state in enumerate(states):
        x0 = plain["draw_data"](50, g)
        t = torch.randint(1000, (50,), generator=g)
        eps = torch.randn(50, 2, generator=g)
        alpha = column(alphas_cumprod[t].sqrt(), x0)
        sigma = column((1 - alphas_cumprod[t]).sqrt(), x0)
        wanted = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[kind]
        loss = (network(alpha * x0 + sigma * eps, t) - wanted).square().mean()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 + math.cos(math.pi * i / 4)) / 2
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
        with torch.no_grad():
            for p, q in zip(average.parameters(), network.parameters(), strict=True):
                p.lerp_(q, 0.3)
        assert state.update == i + 1
        assert state.loss == pytest.approx(loss.item(), rel=1e-4)
        assert state.grad_norm == pytest.approx(norm.item(), rel=1e-4)
        assert state.output is None
        x, told, cond, gamma, training = given["network"].calls[i]
        assert_near(x, alpha * x0 + sigma * eps, rtol=1e-5, atol=1e-6)
        assert torch.equal(told, t)
        assert (cond, gamma, training) == (None, None, True)
    assert_alike(given["network"], network)
    assert_alike(given["average"], average)
    assert given["average"].calls == []


# -------------------------------------------------------------------- its loss, and any loss


def test_a_teacher_is_given_the_condition():
    """Data drawn with a condition: the network gets it with its own samples."""
    given = teacher_problem(config=TrainConfig(updates=3, batch=16))
    draw, drawn, seen = given["draw_data"], [], []
    hook = given["network"].register_forward_pre_hook(
        lambda module, words: seen.append(words[2]) or (*words[:2], None)
    )

    def with_condition(batch, generator):
        drawn.append(draw(batch, generator))
        return drawn[-1], drawn[-1][:, 0] > 0

    list(train_teacher(**{**given, "draw_data": with_condition}))
    hook.remove()
    assert len(seen) == 3
    assert all(torch.equal(cond, x0[:, 0] > 0) for cond, x0 in zip(seen, drawn, strict=True))


def test_batches_that_are_accumulated_are_one_large_batch():
    def run(batch, accumulate):
        network, g = Net(), torch.Generator().manual_seed(0)
        config = TrainConfig(updates=5, batch=batch, accumulate=accumulate, lr=1e-2)

        def loss():
            x = torch.randn(config.batch, 2, generator=g)
            return (network(x, torch.zeros(len(x))) - x).square().mean(), None

        states = train(loss, network, ema_copy(network), config=config)
        return [(state.loss, state.grad_norm) for state in states]

    assert run(8, 3) == [pytest.approx(pair, rel=1e-4) for pair in run(24, 1)]


def test_any_loss_can_be_trained():
    """A least-squares problem; the loop passes on the record, and starts at ``resume``."""
    network = Net()
    average = ema_copy(network)
    g = torch.Generator().manual_seed(0)
    records = []

    def loss():
        x = torch.randn(32, 2, generator=g)
        records.append(object())
        return (network(x, torch.zeros(32)) - 0.5 * x).square().mean(), records[-1]

    config = TrainConfig(updates=200, lr=1e-2)
    states = list(train(loss, network, average, config=config))
    assert [state.update for state in states] == list(range(1, 201))
    assert [state.output for state in states] == records
    assert sum(s.loss for s in states[-20:]) < 0.05 * sum(s.loss for s in states[:20])
    assert not same(weights(network), weights(average))
    with pytest.raises(FloatingPointError, match="last 3 updates up to number 3"):
        list(
            train(lambda: (loss()[0] * math.nan, None), network, average,
                  config=config.replace(max_skipped=2))
        )  # fmt: skip
    assert len(list(itertools.islice(train(loss, network, average), 2))) == 2  # a default config


# -------------------------------------------------------------------- stopping and going on


def run_of(what, device="cpu", config=None, **changes):
    """A loop and its parts: loop(resume), network, average, generator."""
    config = config or TrainConfig(updates=30, batch=16, lr=3e-3, warmup=6, final_lr=0.1)
    make = teacher_problem if what == "teacher" else problem
    given = make(device, config=config, **changes)
    names = ("network", "average") if what == "teacher" else ("student", "target")
    loop = train_teacher if what == "teacher" else train_student

    def start(resume=None):
        return loop(**given, resume=resume)

    return start, given[names[0]], given[names[1]], given["generator"]


def numbers(state):
    return state.update, state.loss, state.grad_norm, state.lr, state.skipped


def all_of(state, network, average, generator):
    """Everything that a later update depends on, in one dictionary."""
    tensors = {f"network.{k}": v for k, v in weights(network).items()}
    tensors |= {f"average.{k}": v for k, v in weights(average).items()}
    for name, p in network.named_parameters():
        for key, value in state.optimizer.state.get(p, {}).items():
            tensors[f"{name}.{key}"] = value.clone()
    return {**tensors, "generator": generator.get_state()}


def stir(network, average, generator):
    """Make sure that nothing but the file can bring the right numbers back."""
    with torch.no_grad():
        for p in [*network.parameters(), *average.parameters()]:
            p.add_(1.0)
    generator.manual_seed(77)


@on_devices
@pytest.mark.parametrize("what", ["teacher", "student"])
@pytest.mark.parametrize("stop", [4, 19])
def test_a_run_goes_on_to_the_last_bit(what, stop, device, tmp_path):
    """In the warm-up, and on the cosine."""
    start, *parts = run_of(what, device)
    whole = list(start())
    expected = all_of(whole[-1], *parts)

    start, *parts = run_of(what, device)
    states = start()
    for state in itertools.islice(states, stop):
        last_state = state
    path = tmp_path / "run.safetensors"
    save_training(path, last_state, *parts)

    start, *parts = run_of(what, device)
    stir(*parts)
    resume = load_training(path, *parts)
    assert (resume.update, resume.skipped) == (stop, 0)
    rest = list(start(resume))
    assert [numbers(state) for state in rest] == [numbers(state) for state in whole[stop:]]
    ended = all_of(rest[-1], *parts)
    assert ended.keys() == expected.keys()
    assert any(name.endswith("exp_avg_sq") for name in ended)
    for name, value in expected.items():
        assert torch.equal(ended[name], value), name


@pytest.mark.parametrize(("stop", "skipped"), [(2, 2), (7, 3)])
def test_skipped_updates_are_remembered(stop, skipped, tmp_path):
    """Also when all updates so far were skipped, and there are no moments yet."""

    def made(calls=0):
        start, *parts = run_of("student")
        parts[0].calls, parts[0].bad = calls, {1, 2, 5}
        return start, parts

    start, parts = made()
    whole = [numbers(state) for state in start()]
    start, parts = made()
    state = list(itertools.islice(start(), stop))[-1]
    save_training(tmp_path / "a.safetensors", state, *parts)
    start, parts = made(calls=stop)
    resume = load_training(tmp_path / "a.safetensors", *parts)
    assert resume.skipped == state.skipped == skipped
    assert (resume.moments == {}) == (stop == 2)
    rest = [numbers(state) for state in start(resume)]
    assert repr(rest) == repr(whole[stop:])  # a NaN is not equal to itself


def test_frozen_parameters_and_buffers_go_along(tmp_path):
    def made():
        start, *parts = run_of("student")
        for network in parts[:2]:
            network.register_buffer("count", torch.zeros(3))
        parts[0].layers[0].requires_grad_(False)
        return start, parts

    start, parts = made()
    whole = list(start())
    expected = weights(parts[1])
    start, parts = made()
    state = list(itertools.islice(start(), 9))[-1]
    parts[0].count.fill_(5.0)
    save_training(tmp_path / "a.safetensors", state, *parts)
    start, parts = made()
    resume = load_training(tmp_path / "a.safetensors", *parts)
    assert sorted(resume.moments) == ["layers.2.bias", "layers.2.weight"]
    assert parts[0].count.tolist() == [5.0] * 3
    assert parts[1].count.tolist() == [0.0] * 3
    rest = list(start(resume))
    assert [numbers(state) for state in rest] == [numbers(state) for state in whole[9:]]
    for name, value in weights(parts[1]).items():
        if name != "count":
            assert torch.equal(value, expected[name])


def test_channels_last_weights_go_on_too(tmp_path):
    """The file has no memory format, which fused optimisers read moments by."""
    config = TrainConfig(updates=12, lr=1e-2)

    def made():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.SiLU(), nn.Conv2d(5, 3, 3))
        network.to(memory_format=torch.channels_last)
        return network, ema_copy(network), torch.Generator().manual_seed(1)

    def loop(network, average, g, resume=None):
        def loss():
            x = torch.randn(4, 3, 8, 8, generator=g)
            return (network(x) - x[:, :, 2:-2, 2:-2]).square().mean(), None

        return train(loss, network, average, config=config, resume=resume)

    whole = [numbers(state) for state in loop(*made())]
    parts = made()
    state = list(itertools.islice(loop(*parts), 5))[-1]
    save_training(tmp_path / "a.safetensors", state, *parts)
    parts = made()
    resume = load_training(tmp_path / "a.safetensors", *parts)
    rest = [numbers(state) for state in loop(*parts, resume)]
    assert [r[0] for r in rest] == list(range(6, 13))
    for ours, expected in zip(rest, whole[5:], strict=True):
        assert ours == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def saved(tmp_path):
    """A good file, and networks and a generator that it fits."""
    start, *parts = run_of("student")
    path = tmp_path / "run.safetensors"
    save_training(path, list(itertools.islice(start(), 3))[-1], *parts)
    _, *parts = run_of("student")
    stir(*parts)
    return path, parts


def refused(path, parts, kind, message):
    """An error that names the file, after which networks and generator are as before."""
    network, average, generator = parts
    before = weights(network), weights(average), generator.get_state()
    with pytest.raises(kind, match=message) as error:
        load_training(path, *parts)
    assert str(path) in str(error.value)
    assert same(weights(network), before[0])
    assert same(weights(average), before[1])
    assert torch.equal(generator.get_state(), before[2])


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.999])
def test_a_truncated_file(saved, kept):
    path, parts = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refused(path, parts, ValueError, r"cannot be read .*; allowed: a whole file of save_training")


def test_a_file_of_something_else(saved):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path, parts = saved
    tensors = load_file(path)
    message = r"cannot be read .*; allowed: a whole file of save_training"
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    for metadata in (None, {"update": "3"}, dict.fromkeys(about, "{}"), dict.fromkeys(about, "x")):
        save_file(tensors, path, metadata)
        refused(path, parts, ValueError, message)
    without = {name: value for name, value in tensors.items() if name != "generator"}
    save_file(without, path, about)
    refused(path, parts, ValueError, message)
    path.write_text("update: 3")
    refused(path, parts, ValueError, message)
    # A state of a generator on a GPU has 16 bytes.
    save_file({**tensors, "generator": torch.zeros(16, dtype=torch.uint8)}, path, about)
    refused(path, parts, ValueError, r"is of another kind of generator than cpu's")


class Wider(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers[2] = nn.Linear(24, 3)


class Longer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (Wider(), r"{0}/layers\.2\.bias, {0}/layers\.2\.weight;"),
        (Longer(), r"{0}/more\.bias, {0}/more\.weight;"),
        (Net().double(), r"{0}/layers\.0\.bias, .*, {0}/layers\.2\.weight;"),
    ],
)
def test_a_file_of_other_networks(saved, other, names):
    path, (network, average, generator) = saved
    for kind, parts in (
        ("trained", (other, average, generator)), ("average", (network, other, generator))
    ):  # fmt: skip
        message = f"is of another network: they differ in {names.format(kind)} allowed: a file of"
        refused(path, parts, ValueError, message)


def test_a_file_that_is_not_there(saved, tmp_path):
    _, parts = saved
    for path in (tmp_path / "no.safetensors", tmp_path / "no" / "a.safetensors", tmp_path):
        refused(path, parts, FileNotFoundError, r"is not a file; allowed: a file of save_training")


def test_a_file_is_written_whole_or_not_at_all(saved, monkeypatch):
    """A crash while writing leaves the older file as it was, and nothing else."""
    path, parts = saved
    start, *others = run_of("student")
    state = list(itertools.islice(start(), 9))[-1]
    content = path.read_bytes()

    def crash(tensors, filename, metadata=None):
        with open(filename, "wb") as file:
            file.write(content[:1000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", crash)
        with pytest.raises(KeyboardInterrupt):
            save_training(path, state, *others)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
    assert load_training(path, *parts).update == 3
    save_training(path, state, *others)
    assert load_training(path, *parts).update == 9


# -------------------------------------------------------------------- the bar


def test_progress_yields_the_same_states_and_shows_a_bar(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    states = list(train_student(**problem()))
    assert capsys.readouterr().err == ""
    seen = list(progress(iter(states), 30, "distilling"))
    assert all(a is b for a, b in zip(seen, states, strict=True))
    printed = capsys.readouterr()
    assert "distilling:   0%" in printed.err
    assert "0/30" in printed.err
    assert printed.out == ""


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
    linear = config.replace(schedule="linear")
    assert [linear.lr_at(i) for i in (10, 55, 99)] == pytest.approx([2.0, 1.1, 0.22])
    assert config.replace(schedule="constant").lr_at(99) == 2.0
    only_warmup = TrainConfig(updates=4, lr=1.0, warmup=4)
    assert [only_warmup.lr_at(i) for i in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert TrainConfig().ema_rate == 0.95
    assert TrainConfig().clip == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updates": 0}, r"updates is 0; allowed: an integer >= 1"),
        ({"accumulate": 0}, r"accumulate is 0; allowed: an integer >= 1"),
        ({"max_skipped": -1}, r"max_skipped is -1; allowed: an integer >= 0"),
        ({"schedule": "step"}, r"schedule is 'step'; allowed: 'cosine', 'linear', 'constant'"),
        ({"weight_decay": -1.0}, r"weight_decay is -1\.0; allowed: a finite number >= 0"),
        ({"batch": 1.5}, r"batch is 1\.5; allowed: an integer >= 1"),
        ({"warmup": 3001}, r"warmup is 3001; allowed: an integer from 0 to 3000"),
        ({"lr": 0.0}, r"lr is 0\.0; allowed: a finite number > 0"),
        ({"lr": math.nan}, r"lr is nan; allowed: a finite number > 0"),
        ({"clip": -1.0}, r"clip is -1\.0; allowed: a finite number > 0"),
        ({"final_lr": 1.5}, r"final_lr is 1\.5; allowed: from 0 to 1"),
        ({"ema_rate": math.nan}, r"ema_rate is nan; allowed: from 0 to 1"),
    ],
)
def test_wrong_config(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().lr = 1.0

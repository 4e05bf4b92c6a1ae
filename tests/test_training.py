"""The training loops: what one update is, what happens to a bad one; runs repeat, and go on."""

import copy
import itertools
import math
from types import SimpleNamespace

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
    update_ema,
)
from slam_edu.toy import GaussianMixture
from slam_edu.toy.networks import LevelMLP
from slam_edu.training import Resume, _laid_out_as, optimise, progress, train
from tests.helpers import KINDS, NoFloat64, assert_near, column, on_devices


class Net(nn.Module):
    """A small network on points, given the timestep."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(4, 24), nn.SiLU(), nn.Linear(24, 2))
        self.calls, self.bad = 0, set()

    def forward(self, x, t, cond=None, gamma=None):
        self.calls += 1
        u = t.to(x.dtype)[:, None] / 1000
        output = self.layers(torch.cat([x, u, torch.cos(3 * u)], dim=1))
        return output * math.nan if self.calls in self.bad else output


def problem(device: str = "cpu", **changes):
    """Points of N(0, 1/4), whose denoiser is known, and a v-predicting student."""
    schedule = NoiseSchedule.stable_diffusion().to(device)
    config = DistillConfig(
        subpaths=50, slope="end", gammas="uniform", teacher_prediction_type="v_prediction"
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


def by_hand(network, average, loss, config, bad=()):
    """AdamW, clipping and moving average line by line: number, loss, norm, rate of each update.

    Of the updates in ``bad`` only the draws are made.
    """
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=config.weight_decay)
    for i in range(config.updates):
        value, after = loss(), i - config.warmup
        if i + 1 in bad:
            continue
        lr = config.lr * (1 + math.cos(math.pi * after / (config.updates - config.warmup))) / 2
        if after < 0:
            lr = config.lr * (i + 1) / config.warmup
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        with torch.no_grad():
            for p, q in zip(average.parameters(), parameters, strict=True):
                p.lerp_(q, 1 - config.ema_rate)
        yield i + 1, value.item(), norm.item(), lr


def rows_of(states):
    return [(s.update, s.loss, s.grad_norm, s.lr) for s in states]


def near(rows):
    return [pytest.approx(row, rel=1e-4) for row in rows]


def test_the_loop_written_out():
    """In a skipped update student, target and, as the updates after it show, optimiser stay."""
    config = TrainConfig(updates=14, batch=16, lr=2e-3, warmup=3, ema_rate=0.8, clip=0.002)
    given, plain, bad, states = problem(config=config), problem(config=config), {6, 7}, []
    networks = [given["student"], given["target"]]
    networks[0].bad, before = bad, [weights(network) for network in networks]
    for state in train_student(**given):
        now = [weights(network) for network in networks]
        assert [same(*pair) for pair in zip(now, before, strict=True)] == [state.update in bad] * 2
        assert math.isfinite(state.loss) == (state.update not in bad)
        before = now
        states.append(state)
    assert [state.skipped for state in states] == [0] * 5 + [1] + [2] * 8
    assert [state.in_a_row for state in states] == [0] * 5 + [1, 2] + [0] * 7

    def loss():
        x0 = plain["draw_data"](config.batch, plain["generator"])
        sample = plain["distiller"].draw(x0, plain["generator"])
        names = ("teacher", "student", "target")
        return plain["distiller"].step(x0, sample, **{name: plain[name] for name in names}).loss

    rows = list(by_hand(plain["student"], plain["target"], loss, config, bad))
    assert rows_of(s for s in states if s.update not in bad) == near(rows)
    assert sum(norm > config.clip for _, _, norm, _ in rows) > 3
    assert_alike(given["student"], plain["student"])
    assert_alike(given["target"], plain["target"])


def test_a_gradient_or_a_loss_alone_that_is_not_finite_is_skipped_too():
    network, g, before = Net(), torch.Generator().manual_seed(0), None
    network.layers[2].bias.register_hook(
        lambda grad: grad * (math.nan if network.calls == 3 else 1)
    )

    def loss():
        x = torch.randn(8, 2, generator=g)
        squared = (network(x, torch.zeros(8)) - x).square().mean()
        return squared + (math.inf if network.calls == 5 else 0), None

    for state in train(loss, network, ema_copy(network), config=TrainConfig(updates=6)):
        now = weights(network)
        assert (before is not None and same(now, before)) == (state.update in (3, 5))
        assert math.isfinite(state.grad_norm) == (state.update != 3)
        assert math.isfinite(state.loss) == (state.update != 5)
        before = now
    assert state.skipped == 2


def test_too_many_skipped_updates_in_a_row_are_an_error():
    given = problem(config=TrainConfig(updates=30, batch=32, lr=3e-3, max_skipped=3))
    given["student"].bad = set(range(5, 100))
    states = train_student(**given)
    assert [next(states).skipped for _ in range(7)] == [0, 0, 0, 0, 1, 2, 3]
    with pytest.raises(FloatingPointError, match=r"last 4 updates up to number 8 .*nan.*0\.0026"):
        next(states)


def test_the_loop_is_lazy_and_yields_the_steps_record_in_float32():
    given = problem()
    before = weights(given["student"])
    states = train_student(**given)
    assert same(weights(given["student"]), before)
    with NoFloat64():
        state = next(states)
    assert state.output.loss.item() == state.loss
    assert state.output.x_t.shape == (32, 2)
    assert given["student"].training
    assert not given["target"].training


# -------------------------------------------------------------------- a diffusion model


class Recording(LevelMLP):
    """A network that keeps what it was given."""

    def __init__(self, **options) -> None:
        super().__init__(16, 2, **options)
        self.calls = []

    def forward(self, x, t, cond=None, gamma=None):
        self.calls.append((x, t, cond, gamma, self.training))
        return super().forward(x, t, gamma=gamma)


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
    """Data and condition, timesteps, noise; squared error of what is to be predicted; AdamW."""
    config = TrainConfig(updates=4, batch=50, lr=2e-3, clip=0.1, weight_decay=9.0)
    given, plain = teacher_problem(config=config), teacher_problem()
    draw = given["draw_data"]
    given["draw_data"] = lambda batch, g: (x0 := draw(batch, g), x0[:, 0] > 0)
    given["network"].eval()  # as a sampler may have left it
    states = list(train_teacher(**given, prediction_type=kind))
    network, average, g = plain["network"], plain["average"], plain["generator"]
    alphas_cumprod = torch.cumprod(
        1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0
    )

    def loss():
        x0 = draw(50, g)
        t = torch.randint(1000, (50,), generator=g)
        eps = torch.randn(50, 2, generator=g)
        alpha = column(alphas_cumprod[t].sqrt(), x0)
        sigma = column((1 - alphas_cumprod[t]).sqrt(), x0)
        wanted = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[kind]
        output = network(alpha * x0 + sigma * eps, t, x0[:, 0] > 0)
        return (output - wanted).square().mean()

    assert rows_of(states) == near(by_hand(network, average, loss, config))
    for ours, theirs in zip(given["network"].calls, network.calls, strict=True):
        assert_near(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(ours[1], theirs[1])
        assert torch.equal(ours[2], theirs[2])
        assert ours[3:] == (None, True)
    assert_alike(given["network"], network)
    assert_alike(given["average"], average)
    assert given["average"].calls == []


# -------------------------------------------------------------------- any loss


def test_batches_that_are_accumulated_are_one_large_batch():
    """The loop passes on the last batch's record."""

    def run(batch, accumulate):
        network, g, records = Net(), torch.Generator().manual_seed(0), []
        config = TrainConfig(updates=5, batch=batch, accumulate=accumulate, lr=1e-2)

        def loss():
            x = torch.randn(config.batch, 2, generator=g)
            records.append(object())
            return (network(x, torch.zeros(len(x))) - x).square().mean(), records[-1]

        states = list(train(loss, network, ema_copy(network), config=config))
        assert [state.output for state in states] == records[accumulate - 1 :: accumulate]
        return rows_of(states)

    assert run(8, 3) == near(run(24, 1))


# -------------------------------------------------------------------- stopping and going on


def run_of(what, device="cpu"):
    """A loop and its parts: loop(resume), network, average, generator."""
    config = TrainConfig(updates=30, batch=16, lr=3e-3, warmup=6, final_lr=0.1)
    make, loop, names = {
        "teacher": (teacher_problem, train_teacher, ("network", "average", "generator")),
        "student": (problem, train_student, ("student", "target", "generator")),
    }[what]
    given = make(device, config=config)
    return lambda resume=None: loop(**given, resume=resume), *(given[name] for name in names)


def numbers(state):
    return state.update, state.loss, state.grad_norm, state.lr, state.skipped, state.in_a_row


def after(states, count):
    """The state after so many updates."""
    return next(itertools.islice(states, count - 1, None))


def all_of(state, network, average, generator):
    """Everything that a later update depends on."""
    moments = [state.optimizer.state.get(p, {}) for p in network.parameters()]
    return weights(network), weights(average), copy.deepcopy(moments), generator.get_state()


def stir(network, average, generator):
    """Make sure that nothing but the file can bring the right numbers back."""
    with torch.no_grad():
        for p in [*network.parameters(), *average.parameters()]:
            p.add_(1.0)
    generator.manual_seed(77)


@on_devices
@pytest.mark.parametrize(("what", "stop"), [("teacher", 4), ("student", 19)])
def test_a_run_goes_on_to_the_last_bit(what, stop, device, tmp_path):
    """In the warm-up, and on the cosine; the global generator does not matter."""
    before = torch.get_rng_state()
    start, *parts = run_of(what, device)
    whole = list(start())
    expected = all_of(whole[-1], *parts)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)

    start, *parts = run_of(what, device)
    path = tmp_path / "run.safetensors"
    save_training(path, after(start(), stop), *parts)

    start, *parts = run_of(what, device)
    stir(*parts)
    rest = list(start(load_training(path, *parts)))
    assert [numbers(state) for state in rest] == [numbers(state) for state in whole[stop:]]
    torch.testing.assert_close(all_of(rest[-1], *parts), expected, rtol=0, atol=0)
    assert "exp_avg_sq" in expected[2][0]


def test_skipped_updates_are_remembered(tmp_path):
    """Also when all updates so far were skipped, and there are no moments yet."""

    def made(calls=0):
        start, *parts = run_of("student")
        parts[0].calls, parts[0].bad = calls, {1, 2, 3, 6}
        return start, parts

    start, parts = made()
    whole = [numbers(state) for state in start()]
    start, parts = made()
    save_training(tmp_path / "a.safetensors", after(start(), 2), *parts)
    start, parts = made(calls=2)
    resume = load_training(tmp_path / "a.safetensors", *parts)
    assert resume == Resume(update=2, skipped=2, in_a_row=2)
    rest = [numbers(state) for state in start(resume)]
    assert repr(rest) == repr(whole[2:])  # a NaN is not equal to itself


def test_frozen_parameters_and_buffers_go_along(tmp_path):
    def made():
        start, *parts = run_of("student")
        for network in parts[:2]:
            network.register_buffer("count", torch.zeros(3))
        parts[0].layers[0].requires_grad_(False)
        return start, parts

    start, _ = made()
    whole = [numbers(state) for state in start()]
    start, parts = made()
    state = after(start(), 9)
    parts[0].count.fill_(5.0)
    state.optimizer.state[parts[0].layers[2].bias]["number"] = 7  # as 8-bit Adam counts its steps
    save_training(tmp_path / "a.safetensors", state, *parts)
    start, parts = made()
    resume = load_training(tmp_path / "a.safetensors", *parts)
    assert sorted(resume.moments) == ["layers.2.bias", "layers.2.weight"]
    assert resume.moments["layers.2.bias"]["number"] == 7
    assert parts[0].count.tolist() == [5.0] * 3
    assert parts[1].count.tolist() == [0.0] * 3
    assert [numbers(state) for state in start(resume)] == whole[9:]


def test_channels_last_weights_go_on_too(tmp_path):
    """The file has no memory format, which fused optimisers read moments by."""

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

        return train(loss, network, average, config=TrainConfig(updates=12), resume=resume)

    whole = rows_of(loop(*made()))
    parts = made()
    save_training(tmp_path / "a.safetensors", after(loop(*parts), 5), *parts)
    parts = made()
    resume = load_training(tmp_path / "a.safetensors", *parts)
    rest = rows_of(loop(*parts, resume))
    assert rest == [pytest.approx(row, rel=1e-5) for row in whole[5:]]


def test_a_loss_scaler_changes_nothing_and_goes_on(tmp_path):
    """Powers of two scale without rounding; here the scale doubles every two updates."""

    def made(enabled):
        network, g = Net(), torch.Generator().manual_seed(0)
        average, trained = ema_copy(network), dict(network.named_parameters())
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=256, growth_interval=2)

        def gradient(_update):
            x = torch.randn(16, 2, generator=g)
            loss = (network(x, torch.zeros(16)) - x).square().mean()
            scaler.scale(loss).backward()
            return loss.detach(), None

        def loop(resume=None):
            optimizer, config = (
                torch.optim.AdamW(trained.values()),
                TrainConfig(updates=6, clip=0.1),
            )
            ema = lambda: update_ema(average, network, 0.9)  # noqa: E731
            return optimise(
                gradient, trained, ema, optimizer, config, resume=resume, scaler=scaler
            )

        return loop, network, average, g

    whole = rows_of(made(enabled=False)[0]())
    loop, *parts = made(enabled=True)
    save_training(tmp_path / "a.safetensors", after(loop(), 3), *parts)
    loop, *parts = made(enabled=True)
    rest = list(loop(load_training(tmp_path / "a.safetensors", *parts)))
    assert rows_of(rest) == near(whole[3:])
    assert [state.scaler["scale"] for state in rest] == [1024, 1024, 2048]


@pytest.fixture
def saved(tmp_path):
    """A good file, and networks and a generator that it fits."""
    start, *parts = run_of("student")
    path = tmp_path / "run.safetensors"
    save_training(path, after(start(), 3), *parts)
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


def test_a_missing_or_damaged_file_or_one_of_something_else(saved):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path, parts = saved
    content, tensors = path.read_bytes(), load_file(path)
    message = r"cannot be read .*; allowed: a whole file of save_training"
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    for missing in (path.with_name("no.safetensors"), path.parent):
        refused(missing, parts, FileNotFoundError, "is not a file; allowed: a file of save_train")
    for kept in (0.0, 0.001, 0.999):
        path.write_bytes(content[: int(kept * len(content))])
        refused(path, parts, ValueError, message)
    for metadata in (None, {"update": "3"}, dict.fromkeys(about, "{}"), dict.fromkeys(about, "x")):
        save_file(tensors, path, metadata)
        refused(path, parts, ValueError, message)
    without = {name: value for name, value in tensors.items() if name != "generator"}
    for other in ({}, {"generator": torch.zeros(16, dtype=torch.uint8)}):  # as of a GPU
        save_file({**without, **other}, path, about)
        refused(path, parts, ValueError, "is of another network: they differ in generator; all")


def test_a_file_of_other_networks(saved):
    path, (network, average, generator) = saved
    wider, longer, shorter = Net(), Net(), Net()
    shorter.layers = shorter.layers[:2]
    wider.layers[2] = nn.Linear(24, 3)
    longer.more = nn.Linear(1, 1)
    for other, names in (
        (wider, r"{0}/layers\.2\.bias, {0}/layers\.2\.weight;"),
        (shorter, r"{0}/layers\.2\.bias, {0}/layers\.2\.weight;"),
        (longer, r"{0}/more\.bias, {0}/more\.weight;"),
        (Net().double(), r"{0}/layers\.0\.bias, .*, {0}/layers\.2\.weight;"),
    ):
        for kind, parts in (
            ("trained", (other, average, generator)), ("average", (network, other, generator))
        ):  # fmt: skip
            message = f"is of another network: they differ in {names.format(kind)} allowed: a file"
            refused(path, parts, ValueError, message)


def test_a_file_is_written_whole_or_not_at_all(saved, monkeypatch):
    """A crash while writing leaves the older file as it was, and nothing else."""
    path, _ = saved
    start, *others = run_of("student")
    content = path.read_bytes()

    def crash(tensors, filename, metadata=None):
        filename.write_bytes(content[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        save_training(path, next(start()), *others)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


# -------------------------------------------------------------------- the bar


def test_progress_yields_the_same_states_and_shows_a_bar(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    states = [SimpleNamespace(update=update, loss=0.5) for update in (1, 100)]
    seen = list(progress(iter(states), 30, "distilling"))
    assert all(a is b for a, b in zip(seen, states, strict=True))
    assert "distilling:   0%" in capsys.readouterr().err


# -------------------------------------------------------------------- the config


def test_learning_rate():
    config = TrainConfig(updates=100, lr=2.0, warmup=10, final_lr=0.1)
    rates = [config.lr_at(i) for i in range(100)]
    assert rates[:11] == pytest.approx([0.2 * (i + 1) for i in range(10)] + [2.0])
    assert rates[55] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half of the cosine
    assert rates[99] == pytest.approx(0.2, rel=0.01)
    assert all(b < a for a, b in itertools.pairwise(rates[10:]))
    linear = config.replace(schedule="linear")
    assert [linear.lr_at(i) for i in (10, 55, 99)] == pytest.approx([2.0, 1.1, 0.22])
    assert config.replace(schedule="constant").lr_at(99) == 2.0
    assert TrainConfig(updates=4, lr=1.0, warmup=4).lr_at(3) == 1.0


def test_wrong_config():
    """What is just outside; what the bounds name is allowed."""
    for change, message in (
        ({"accumulate": 0}, r"accumulate is 0; allowed: an integer >= 1"),
        ({"max_skipped": -1}, r"max_skipped is -1; allowed: an integer >= 0"),
        ({"warmup": 3001}, r"warmup is 3001; allowed: an integer from 0 to 3000"),
        ({"schedule": "step"}, r"schedule is 'step'; allowed: 'cosine', 'linear', 'constant'"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1; allowed: a finite number >= 0"),
        ({"weight_decay": math.inf}, r"weight_decay is inf; allowed: a finite number >= 0"),
        ({"lr": 0.0}, r"lr is 0\.0; allowed: a finite number > 0"),
        ({"lr": math.inf}, r"lr is inf; allowed: a finite number > 0"),
        ({"clip": 0.0}, r"clip is 0\.0; allowed: a finite number > 0"),
        ({"clip": math.nan}, r"clip is nan; allowed: a finite number > 0"),
        ({"final_lr": 1.5}, r"final_lr is 1\.5; allowed: from 0 to 1"),
        ({"final_lr": -0.1}, r"final_lr is -0\.1; allowed: from 0 to 1"),
        ({"ema_rate": math.nan}, r"ema_rate is nan; allowed: from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(**change)
    for bound in (0.0, 1.0):
        TrainConfig(final_lr=bound, ema_rate=bound, warmup=3000, max_skipped=0, weight_decay=0.0)


def test_moments_of_another_kind_than_the_weights():
    """8-bit Adam's counts are plain numbers, others may keep their moments in another dtype."""
    p = torch.zeros(2, 3, dtype=torch.float64)
    assert _laid_out_as(p, 7) == 7
    assert torch.equal(_laid_out_as(p, torch.tensor(3.0)), torch.tensor(3.0))
    moment = torch.full((2, 3), 0.5, dtype=torch.float32)
    assert _laid_out_as(p, moment).dtype == torch.float32
    assert torch.equal(_laid_out_as(p, moment), moment)

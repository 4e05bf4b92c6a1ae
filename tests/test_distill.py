"""One distillation step: its limits, its gradients, its precision, and what it refuses."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import torch

from slam_edu import (
    OFFICIAL,
    DistillConfig,
    Level,
    NoiseSchedule,
    SubPathDistiller,
    SubPathSample,
)
from tests.helpers import (
    KINDS,
    HostReads,
    NoFloat64,
    TinyNet,
    assert_near,
    column,
    f64,
    noise,
    on_devices,
)

CONDITIONINGS = ("gamma", "level")
LEVEL = {"conditioning": "level", "coupling": "linear"}
MIDDLE = {"slope": "middle", "coupling": "linear"}
SD = NoiseSchedule.stable_diffusion(torch.float64)
ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
RHO = np.sqrt(1 / ABAR - 1)


def distiller_for(dtype=torch.float64, **config) -> SubPathDistiller:
    return SubPathDistiller(
        NoiseSchedule.stable_diffusion(dtype), DistillConfig(**OFFICIAL | config)
    )


def sample_for(*shape, index=None, gamma=None, subpaths=50) -> SubPathSample:
    """Fixed draws in float64; the lowest and the highest sub-path are always among them."""
    index = torch.arange(shape[0]) * (subpaths - 1) // (shape[0] - 1) if index is None else index
    gamma = torch.linspace(0, 1, shape[0], dtype=torch.float64) if gamma is None else gamma
    return SubPathSample(index=index, gamma=gamma, noise=noise(*shape, seed=1))


def nets(dtype=torch.float64) -> dict[str, TinyNet]:
    """Three unlike networks, all of them trainable: only the student may get a gradient."""
    return {name: TinyNet(i + 1, dtype) for i, name in enumerate(("teacher", "student", "target"))}


def float32_on(device, **config) -> tuple[SubPathDistiller, dict[str, TinyNet]]:
    """A distiller and its networks."""
    schedule = NoiseSchedule.stable_diffusion().to(device)
    networks = {name: net.to(device) for name, net in nets(torch.float32).items()}
    return SubPathDistiller(schedule, DistillConfig(**OFFICIAL | config)), networks


def tensors_of(output) -> dict[str, torch.Tensor]:
    """All tensors of a step's record by name."""
    found = {}
    for name, value in vars(output).items():
        nested = vars(value) if dataclasses.is_dataclass(value) else {"": value}
        found |= {f"{name}.{key}".rstrip("."): tensor for key, tensor in nested.items()}
    return found


def timestep_of(rho: torch.Tensor) -> torch.Tensor:
    """Between the schedule's timesteps, log rho is interpolated."""
    return torch.from_numpy(np.interp(rho.log().numpy(), np.log(RHO), np.arange(1000)))


def rho_at(t: torch.Tensor) -> torch.Tensor:
    """The inverse."""
    return torch.from_numpy(np.exp(np.interp(t.numpy(), np.arange(1000), np.log(RHO))))


def lcd_step(
    x0, eps, index, *, teacher, student, target, w, cond, uncond, kind, loss_type, real_t, middle
):
    """Latent consistency distillation as diffusers' train_lcm_distill_sd_wds.py writes it.

    It was written from that script, in terms of alphas_cumprod alone, and shares nothing with the
    library. ``real_t``: networks are given a real-valued timestep and no gamma. ``middle``: the
    teacher is called half way in rho, and the midpoint rule goes to both ends.
    """
    alphas_cumprod = torch.from_numpy(ABAR)

    def wide(value):
        return value.reshape(-1, *[1] * (x0.ndim - 1))

    def mixed(x0, noise, abar):
        return wide(abar).sqrt() * x0 + (1 - wide(abar)).sqrt() * noise

    def scalings(t):
        tau = 10.0 * wide(t).double()
        return 0.25 / (tau**2 + 0.25), tau / (tau**2 + 0.25) ** 0.5

    def predicted_origin(out, abar, x):
        alpha, sigma = wide(abar).sqrt(), (1 - wide(abar)).sqrt()
        if kind == "epsilon":
            return (x - sigma * out) / alpha
        return out if kind == "sample" else alpha * x - sigma * out

    def predicted_noise(out, abar, x):
        alpha, sigma = wide(abar).sqrt(), (1 - wide(abar)).sqrt()
        if kind == "epsilon":
            return out
        return (x - alpha * out) / sigma if kind == "sample" else alpha * out + sigma * x

    def consistency(net, x, t, abar):
        out = net(x, t.double() if real_t else t, cond, None if real_t else torch.ones(len(x)))
        c_skip, c_out = scalings(t)
        return c_skip * x + c_out * predicted_origin(out, abar, x)

    start = (index + 1) * 20 - 1
    timesteps = torch.where(start - 20 < 0, torch.zeros_like(start), start - 20)
    abar, prev = alphas_cumprod[start], alphas_cumprod[timesteps]
    asked, here = start, abar
    if middle:
        rho = ((1 / abar - 1).sqrt() + (1 / prev - 1).sqrt()) / 2
        asked, here = timestep_of(rho), 1 / (1 + rho**2)
    with torch.no_grad():
        noisy = mixed(x0, eps, here)
        out = teacher(noisy, asked, cond)
        pred_x0, pred_noise = predicted_origin(out, here, noisy), predicted_noise(out, here, noisy)
        if uncond is not None:
            out = teacher(noisy, asked, uncond)
            pred_x0 = pred_x0 + w * (pred_x0 - predicted_origin(out, here, noisy))
            pred_noise = pred_noise + w * (pred_noise - predicted_noise(out, here, noisy))
        if middle:
            noisy = mixed(pred_x0, pred_noise, abar)
        y = consistency(target, mixed(pred_x0, pred_noise, prev), timesteps, prev)
    model_pred = consistency(student, noisy, start, abar)
    if loss_type == "l2":
        loss = torch.nn.functional.mse_loss(model_pred, y)
    else:
        loss = torch.mean(torch.sqrt((model_pred - y) ** 2 + 0.001**2) - 0.001)
    return loss, model_pred, y


@pytest.mark.parametrize(
    ("conditioning", "more", "kind", "loss", "guided"),
    [
        *itertools.product(CONDITIONINGS, [{}], KINDS, ["l2"], [True]),
        ("gamma", {"coupling": "linear"}, "epsilon", "huber", False),
        *itertools.product(["level"], [MIDDLE], KINDS, ["l2"], [True]),
        ("gamma", MIDDLE, "epsilon", "huber", False),
    ],
)
def test_gamma_one_is_latent_consistency_distillation(conditioning, more, kind, loss, guided):
    """With the slope of the middle, its teacher is the midpoint rule."""
    distiller = distiller_for(
        conditioning=conditioning, loss=loss, gammas="one", teacher_prediction_type=kind, **more
    )
    x0, ours, theirs = noise(50, 4, 2), nets(), nets()
    drawn = distiller.draw(x0, torch.Generator().manual_seed(0))
    sample = dataclasses.replace(drawn, index=torch.arange(50))  # every sub-path
    cond, uncond = noise(50, 1, 1, seed=7), noise(50, 1, 1, seed=8) if guided else None
    output = distiller.step(x0, sample, **ours, cond=cond, uncond=uncond)
    expected, prediction, target = lcd_step(
        x0, sample.noise, sample.index, **theirs, w=8.0, cond=cond, uncond=uncond, kind=kind,
        loss_type=loss, real_t=conditioning == "level", middle=more == MIDDLE,
    )  # fmt: skip
    assert_near(output.loss, expected, rtol=1e-12)
    assert_near(output.prediction, prediction, rtol=1e-11, atol=1e-12)
    assert_near(output.target, target, rtol=1e-11, atol=1e-12)
    output.loss.backward()
    expected.backward()
    assert_near(ours["student"].weight.grad, theirs["student"].weight.grad, rtol=1e-11, atol=1e-12)
    assert torch.equal(output.target[0], output.x_s[0])  # at s = 0, whatever the network
    # The chords end at the grid's levels, from s = 0 to the noisiest, to the last bit.
    ends = zip((output.level_t, output.level_s), (distiller.grid.t, distiller.grid.s), strict=True)
    assert all(torch.equal(level.sigma, SD.sigma[t]) for level, t in ends)
    assert all(torch.equal(level.alpha, SD.alpha[t]) for level, t in ends)


@pytest.mark.parametrize(
    ("config", "kind", "loss"),
    [
        ({}, "epsilon", "huber"),
        ({"conditioning": "level"}, "v_prediction", "huber"),
        ({"coupling": "linear"}, "v_prediction", "l2"),
        (LEVEL, "sample", "l2"),
        ({"off_grid": True}, "sample", "l2"),
        (MIDDLE, "sample", "huber"),
        (LEVEL | MIDDLE, "v_prediction", "l2"),
        (LEVEL | MIDDLE | {"off_grid": True}, "epsilon", "huber"),
        (LEVEL | MIDDLE | {"teacher_timesteps": "integer"}, "epsilon", "l2"),
        (MIDDLE | {"teacher_timesteps": "integer"}, "v_prediction", "l2"),
    ],
)
def test_step_formula_by_formula(config, kind, loss):
    """The whole step, each quantity made from the one before it."""
    distiller = distiller_for(
        **config, loss=loss, huber_c=0.05, guidance=2.5,
        teacher_prediction_type="epsilon", student_prediction_type=kind,
        sigma_data=0.7, timestep_scaling=0.02,  # c_skip then counts at every t
    )  # fmt: skip
    middle, level = config.get("slope") == "middle", config.get("conditioning") == "level"
    x0, sample, ours = noise(12, 3, 2), sample_for(12, 3, 2), nets()
    if config.get("off_grid"):
        sample = dataclasses.replace(sample, index=torch.linspace(-0.9, 49, 12, dtype=x0.dtype))
    cond, uncond = noise(12, 1, 1, seed=7), noise(12, 1, 1, seed=8)
    out = distiller.step(x0, sample, **ours, cond=cond, uncond=uncond)
    nets_again = nets()
    t, gamma = 20 * sample.index + 19, sample.gamma
    s = (t - 20).clamp(min=0)
    rho_t, rho_s, asked = rho_at(t), rho_at(s), t
    rho = rho_t  # where the chord touches
    if middle:
        rho = (rho_t + rho_s) / 2
        asked = timestep_of(rho)
        if "teacher_timesteps" in config:
            asked = asked.round().long()
            rho = rho_at(asked)
            rho_t = 2 * rho - rho_s

    def levels(rho):
        return column((1 + rho**2).rsqrt(), x0), column(rho * (1 + rho**2).rsqrt(), x0)

    (alpha, sigma), (alpha_t, sigma_t), (alpha_s, sigma_s) = map(levels, (rho, rho_t, rho_s))
    x = alpha * x0 + sigma * sample.noise
    e_c, e_u = (nets_again["teacher"](x, asked, c).detach() for c in (cond, uncond))
    e = e_c + 2.5 * (e_c - e_u)
    z = x / alpha
    x_t = alpha_t * (z + column(rho_t - rho, x0) * e)
    x_s = alpha_s * (z + column(rho_s - rho, x0) * e)
    g, a = column(gamma, x0), alpha_t / alpha_s
    x_g = g * x_t + (1 - g) * a * x_s
    if "coupling" in config:
        sigma_g = g * sigma_t + (1 - g) * a * sigma_s
    else:
        sigma_g = ((a * sigma_s) ** 2 + g**2 * (sigma_t**2 - (a * sigma_s) ** 2)).sqrt()

    def f(net, x, t, alpha, sigma, gamma):
        raw = nets_again[net](x, t, cond, gamma)
        if kind == "epsilon":
            clean = (x - sigma * raw) / alpha
        else:
            clean = raw if kind == "sample" else (alpha * x - sigma * raw) / (alpha**2 + sigma**2)
        tau2 = (0.02 * column(t, x)) ** 2
        return 0.49 / (tau2 + 0.49) * x + (tau2 / (tau2 + 0.49)).sqrt() * clean

    y = f("target", x_s, s, alpha_s, sigma_s, None if level else torch.ones_like(gamma))
    if level:
        n = (alpha_t**2 + sigma_g**2).sqrt()
        real_t = timestep_of((sigma_g / alpha_t).flatten())
        p = f("student", x_g / n, real_t, alpha_t / n, sigma_g / n, None)
    else:
        p = f("student", x_g, t, alpha_t, sigma_g, gamma)
    difference = p - y.detach()
    if loss == "l2":
        expected = difference.square().mean()
    else:
        expected = ((difference**2 + 0.05**2).sqrt() - 0.05).mean()

    near = {"rtol": 1e-11, "atol": 1e-11}
    assert_near(out.t, t)
    assert_near(out.s, s)
    assert_near(out.x_t, x_t, **near)
    assert_near(out.teacher.eps, e, **near)
    assert_near(out.x_s, x_s, **near)
    assert_near(out.x_gamma, x_g, **near)
    assert_near(out.level_gamma.sigma, sigma_g.flatten(), **near)
    assert_near(out.level_gamma.alpha, alpha_t.flatten(), rtol=1e-12)
    assert_near(out.target, y, **near)
    assert_near(out.prediction, p, **near)
    assert_near(out.loss, expected, rtol=1e-11)
    out.loss.backward()
    expected.backward()
    gradient = nets_again["student"].weight.grad
    assert_near(ours["student"].weight.grad, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("config", [{"coupling": "linear"}, LEVEL, LEVEL | MIDDLE])
def test_what_the_networks_are_conditioned_on(config):
    """What a value does not show: order, number of calls, integer timesteps, no gamma."""
    x0, sample, ours, order = noise(5, 2), sample_for(5, 2), nets(), []
    cond, uncond = noise(5, 1, seed=7), noise(5, 1, seed=8)
    for name, net in ours.items():
        net.register_forward_pre_hook(lambda module, args, name=name: order.append(name))
    out = distiller_for(**config).step(x0, sample, **ours, cond=cond, uncond=uncond)
    assert order == ["teacher", "teacher", "target", "student"]  # the student last
    for (_, t, c, g), given in zip(ours["teacher"].calls, (cond, uncond), strict=True):
        assert t.is_floating_point() == ("slope" in config)
        assert c is given
        assert g is None
    for name, time in (("target", out.s), ("student", out.t)):
        _, t, c, g = ours[name].calls[0]
        assert c is cond
        if "conditioning" in config:
            assert t.dtype == torch.float64
            assert g is None
        else:
            assert torch.equal(t, time)
            assert torch.equal(g, torch.ones(5) if name == "target" else sample.gamma)
    # Without uncond the teacher is asked once.
    ours["teacher"].calls.clear()
    distiller_for(**config).step(x0, sample, **ours, cond=cond)
    assert len(ours["teacher"].calls) == 1


LATE = NoiseSchedule.from_alphas_cumprod(torch.cumprod(1 - torch.full((4,), 0.01), 0), SD.dtype)
"""Here rho is concave up to the last timestep."""


@pytest.mark.parametrize(("schedule", "subpaths"), [(SD, 10), (SD, 100), (SD, 500), (LATE, 2)])
def test_integer_timesteps(schedule, subpaths):
    """m is the nearest timestep above s, and the middle of a chord that stays on the schedule."""
    config = DistillConfig(conditioning="gamma", subpaths=subpaths, teacher_timesteps="integer")
    distiller, ours = SubPathDistiller(schedule, config), nets()
    x0, sample = noise(subpaths, 2), sample_for(subpaths, 2, subpaths=subpaths)
    out = distiller.step(x0, sample, **ours)
    m, level_s = ours["teacher"].calls[0][1], out.level_s
    assert m.dtype == torch.int64
    assert bool((out.s < m).all())
    assert bool((m < out.t)[out.t > 1].all())  # [0, 1] has no inside
    middle = schedule.timestep(Level.from_rho((schedule(out.t).rho + level_s.rho) / 2))
    assert bool(((m - middle).abs() <= 0.5)[1:-1].all())
    assert bool(((m - middle).abs() < 1)[[0, -1]].all())
    assert bool((out.level_t.rho <= schedule.rho[-1]).all())
    rest = slice(None) if schedule is SD else slice(-1)  # no m of the last has such a chord
    assert_near((out.level_t.rho + level_s.rho)[rest] / 2, schedule(m).rho[rest], rtol=1e-12)


@pytest.mark.parametrize(("steps", "guided"), [(4, True), (20, False)])
def test_teacher_steps(steps, guided):
    """M steps are M DDIM steps, k/M timesteps each."""
    x0, sample, ours, teacher = noise(7, 2), sample_for(7, 2), nets(), TinyNet(1)
    cond, uncond = noise(7, 1, seed=7), noise(7, 1, seed=8) if guided else None
    out = distiller_for(teacher_steps=steps, guidance=3.0).step(
        x0, sample, **ours, cond=cond, uncond=uncond
    )
    assert len(ours["teacher"].calls) == steps * (1 + guided)
    t, abar, hop = 20 * sample.index + 19, torch.from_numpy(ABAR)[:, None], 20 // steps
    x = abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * sample.noise
    for m in range(steps):
        here, there = t - m * hop, (t - (m + 1) * hop).clamp(min=0)
        e = teacher(x, here, cond).detach()
        if guided:
            e = 4 * e - 3 * teacher(x, here, uncond).detach()
        if m == 0:
            assert_near(out.teacher.eps, e, rtol=1e-12, atol=1e-14)
        clean = (x - (1 - abar[here]).sqrt() * e) / abar[here].sqrt()
        x = abar[there].sqrt() * clean + (1 - abar[there]).sqrt() * e
    assert_near(out.x_s, x, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("config", "kind"), [({}, "v_prediction"), ({**LEVEL, "off_grid": True}, "sample")]
)
def test_predict_is_the_steps_target(config, kind):
    """And the student's output at gamma = 1, with its gradient; under the level t may be real."""
    distiller = distiller_for(**config, student_prediction_type=kind)
    x0, ours, cond, ones = noise(50, 3, 2), nets(), noise(50, 1, 1, seed=7), f64([1.0] * 50)
    index = torch.linspace(-0.9, 49, 50, dtype=x0.dtype) if config else None
    out = distiller.step(x0, sample_for(50, 3, 2, index=index, gamma=ones), **ours, cond=cond)
    near = {"rtol": 1e-9, "atol": 1e-12}
    assert_near(distiller.predict(ours["target"], out.x_s, out.s, cond), out.target, **near)
    f = distiller.predict(ours["student"], out.x_t, out.t, cond)
    assert_near(f, out.prediction, **near)
    assert f.requires_grad
    # One timestep for all, as a number or as a tensor.
    x = noise(6, 3, 2)
    first, *others = (distiller.predict(ours["target"], x, t)
                      for t in (979, torch.tensor(979), torch.full((6,), 979)))  # fmt: skip
    assert all(torch.equal(first, other) for other in others)
    _, t, c, g = ours["target"].calls[-1]
    assert c is None
    assert t.tolist() == [979] * 6
    assert t.is_floating_point() == bool(config)
    assert (g is None) == bool(config)


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (noise(4, 2), 1000, r"t is 1000; allowed: 0 <= t <= 999"),
        (noise(4, 2), torch.tensor([0, 1, 2, -1]), r"t is -1; allowed: 0 <= t <= 999"),
        (noise(4, 2), torch.tensor([0, 1, 2]), r"t has shape \(3,\); allowed: \(\) or \(B,\)"),
        (noise(4, 2, dtype=torch.float32), 5, r"level has dtype torch\.float64 but the samples"),
    ],
)
def test_predict_refuses(x, t, message):
    with pytest.raises(ValueError, match=message):
        distiller_for().predict(TinyNet(1, x.dtype), x, t)


@pytest.mark.parametrize("config", [{}, {"conditioning": "level", "teacher_steps": 4}, MIDDLE])
def test_the_gradient_reaches_the_student_alone(config):
    x0, sample, ours, cond = noise(6, 2), sample_for(6, 2), nets(), noise(6, 1, seed=7)
    out = distiller_for(**config).step(x0, sample, **ours, cond=cond, uncond=-cond)
    needs_grad = {name for name, tensor in tensors_of(out).items() if tensor.requires_grad}
    assert needs_grad == {"loss", "prediction"}
    out.loss.backward()
    assert ours["student"].weight.grad.abs().sum() > 0
    assert ours["teacher"].weight.grad is None
    assert ours["target"].weight.grad is None


# -------------------------------------------------------------------- no waiting for a device


STEPS = [
    {"loss": "huber"},
    {"coupling": "linear", "teacher_steps": 2},
    {**LEVEL, "gammas": "one", "student_prediction_type": "v_prediction"},
    LEVEL | MIDDLE | {"off_grid": True},
    MIDDLE | {"teacher_timesteps": "integer"},
]


@on_devices
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("config", STEPS)
def test_a_step_reads_no_value_and_makes_no_float64(config, device):
    """Each read would wait for all the work that is queued; Apple's GPUs have no float64."""
    distiller, ours = float32_on(device, **config)
    x0, cond = (noise(6, *rest, dtype=torch.float32).to(device) for rest in ((4, 8, 8), (1, 1, 1)))
    generator = torch.Generator(device).manual_seed(0)

    def work():
        sample = distiller.draw(x0, generator)
        distiller.step(x0, sample, **ours, cond=cond).loss.backward()
        distiller.step(x0, sample, **ours, cond=cond, uncond=cond)

    work()  # sets up what is set up once
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with HostReads() as reads, NoFloat64():
            work()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert reads.found == []
    with NoFloat64():
        distiller.predict(ours["target"], x0, 19, cond)


@pytest.mark.parametrize("config", STEPS)
def test_a_step_on_a_device_without_values(config):
    """Tensors on "meta" have no values to read, and mix with no others."""
    distiller, ours = float32_on("meta", **config)
    x0 = torch.zeros(6, 4, 8, 8, device="meta")
    index = torch.zeros(6, dtype=None if "off_grid" in config else torch.int64, device="meta")
    sample = SubPathSample(
        index=index, gamma=torch.zeros(6, device="meta"), noise=torch.zeros_like(x0)
    )
    out = distiller.step(x0, sample, **ours, cond=x0, uncond=x0)
    assert {tensor.device.type for tensor in tensors_of(out).values()} == {"meta"}
    assert distiller.predict(ours["target"], x0, 19).device.type == "meta"


# -------------------------------------------------------------------- shapes, precision, devices


@pytest.mark.parametrize("config", [{}, LEVEL, LEVEL | MIDDLE])
def test_rank_does_not_matter(config):
    distiller, outputs = distiller_for(**config), []
    for shape in [(6, 2), (6, 2, 1, 1), (6, 1, 2)]:
        x0, sample = noise(6, 2).reshape(shape), sample_for(6, 2)
        sample = dataclasses.replace(sample, noise=sample.noise.reshape(shape))
        out = distiller.step(x0, sample, **nets())
        assert out.prediction.shape == out.target.shape == out.x_gamma.shape == shape
        assert out.level_gamma.sigma.shape == out.t.shape == (6,)
        outputs.append(out)
    for out in outputs[1:]:
        assert torch.equal(out.loss, outputs[0].loss)
        assert torch.equal(out.prediction.reshape(6, 2), outputs[0].prediction)


@pytest.mark.parametrize("config", [{}, LEVEL | MIDDLE])
def test_float32_algebra_whatever_the_networks_return(config):
    """Only the networks' rounding is left: outputs rounded in float32 give the same bits."""
    (distiller, plain), dtype = float32_on("cpu", **config), torch.bfloat16
    x0 = noise(6, 4, 8, 8, dtype=torch.float32)
    sample = distiller.draw(x0, torch.Generator().manual_seed(0))

    def returning(convert):
        return {name: lambda *args, net=net: convert(net(*args)) for name, net in plain.items()}

    half = distiller.step(x0, sample, **returning(lambda x: x.to(dtype)))
    rounded = distiller.step(x0, sample, **returning(lambda x: x.to(dtype).float()))
    for name, tensor in tensors_of(half).items():
        assert tensor.dtype == (torch.int64 if name in ("t", "s") else torch.float32), name
        assert torch.equal(tensor, tensors_of(rounded)[name]), name


@on_devices
@pytest.mark.parametrize(("config", "late"), [({}, False), (LEVEL | MIDDLE, True)])
def test_a_device_gives_the_cpus_numbers(config, late, device):
    """Also when the schedule is moved ``late``, after the distiller was made."""
    config, schedule = DistillConfig(**OFFICIAL | config), NoiseSchedule.stable_diffusion()
    on_cpu = SubPathDistiller(NoiseSchedule.stable_diffusion(), config)
    there = SubPathDistiller(schedule if late else schedule.to(device), config)
    schedule.to(device)
    x0 = noise(8, 4, 8, 8, dtype=torch.float32)
    sample = on_cpu.draw(x0, torch.Generator().manual_seed(0))
    moved = SubPathSample(**{name: value.to(device) for name, value in vars(sample).items()})
    expected = on_cpu.step(x0, sample, **nets(torch.float32))
    out = there.step(x0.to(device), moved, **float32_on(device)[1])
    assert out.loss.device.type == device
    assert_near(out.loss, expected.loss, rtol=1e-4)
    assert_near(out.prediction, expected.prediction, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", [{"teacher_steps": 2}, LEVEL | MIDDLE])
def test_inputs_are_not_modified(config):
    """Nor is what a network was given written over later."""
    distiller, x0, sample, ours = distiller_for(**config), noise(6, 2), sample_for(6, 2), nets()
    inputs = [x0, *vars(sample).values(), *distiller.schedule.buffers(), distiller.grid.t]
    copies, given = [x.clone() for x in inputs], []
    for net in ours.values():
        net.register_forward_pre_hook(lambda _, args: given.append((args[0], args[0].clone())))
    distiller.step(x0, sample, **ours).loss.backward()
    assert len(given) > 2
    for x, copy in [*zip(inputs, copies, strict=True), *given]:
        assert torch.equal(x, copy)


# -------------------------------------------------------------------- draws


@pytest.mark.parametrize(
    "config",
    [{"gammas": "one"}, {"gammas": torch.sqrt}, {"off_grid": True}, MIDDLE | {"loss": "huber"}],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_methods_draw_alike(config, dtype):
    """Index, u and noise, in this order, and as much of the generator: so in every batch."""
    x0 = noise(1000, 2, 3, dtype=dtype)
    generator, again = (torch.Generator().manual_seed(3) for _ in range(2))
    distiller, law = distiller_for(dtype, **config), config.get("gammas", lambda u: u)
    for _ in range(2):
        drawn = distiller.draw(x0, generator)
        index = torch.randint(50, (1000,), generator=again)
        u = torch.rand(1000, generator=again, dtype=dtype)
        assert "off_grid" in config or torch.equal(drawn.index, index)
        assert torch.equal(drawn.gamma, torch.ones_like(u) if law == "one" else law(u))
        assert torch.equal(drawn.noise, torch.randn(1000, 2, 3, generator=again, dtype=dtype))
    assert torch.equal(generator.get_state(), again.get_state())


@pytest.mark.parametrize("config", [{}, {"off_grid": True}])
def test_a_generator_each(config):
    """Every sample draws what it would alone."""
    x0, distiller = noise(3, 2), distiller_for(**config)
    whole = distiller.draw(x0, [torch.Generator().manual_seed(i) for i in range(3)])
    for i in range(3):
        alone = distiller.draw(x0[i : i + 1], torch.Generator().manual_seed(i))
        for name in ("index", "gamma", "noise"):
            assert torch.equal(getattr(whole, name)[i : i + 1], getattr(alone, name))


@on_devices
def test_off_the_grid_t_is_uniform(device):
    """The other draws are torch's own; its sub-paths end k below, or at 0."""
    distiller, _ = float32_on(device, off_grid=True, subpaths=20)
    x0 = noise(20_000, 2, dtype=torch.float32).to(device)
    sample = distiller.draw(x0, torch.Generator(device).manual_seed(0))
    t, s = (end.cpu() for end in distiller.grid.ends(sample.index))
    assert_near(s, (t - 50).clamp(min=0))
    assert bool(((t > 0.9999) & (t <= 999)).all())
    places = torch.linspace(0, 0.99, 100)
    share = ((t - 1) / 998 < places[:, None]).float().mean(dim=1)
    assert (share - places).abs().max() < 5 * 0.5 / math.sqrt(20_000)
    off = torch.corrcoef(torch.stack([t, sample.gamma.cpu(), *sample.noise.cpu().T]))
    assert (off - torch.eye(4)).abs().max() < 5 / math.sqrt(20_000)


# -------------------------------------------------------------------- the config


def test_config():
    config = DistillConfig()
    assert (config.subpaths, config.guidance, config.coupling) == (20, 8.0, "linear")
    assert (config.conditioning, config.loss, config.huber_c) == ("level", "l2", 1e-3)
    assert (config.gammas, config.teacher_steps, config.output_type) == ("one", 1, "epsilon")
    assert (config.slope, config.off_grid, config.teacher_timesteps) == ("middle", False, "real")
    assert (config.sigma_data, config.timestep_scaling) == (0.5, 10.0)
    other = config.replace(student_prediction_type="v_prediction", subpaths=25, guidance=0.0)
    assert other.output_type == "v_prediction"
    assert DistillConfig(**dataclasses.asdict(other)) == other
    assert SubPathDistiller(SD).config == config
    assert len(SubPathDistiller(SD, other).grid) == 25
    assert SubPathDistiller(SD, DistillConfig(subpaths=500)).grid.k == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subpaths": 50.0}, "subpaths is 50.0; allowed: an integer >= 1"),
        ({"teacher_steps": 0}, "teacher_steps is 0; allowed: an integer >= 1"),
        ({"slope": "start"}, "slope is 'start'; allowed: 'end', 'middle'"),
        ({"teacher_timesteps": "int"}, "timesteps is 'int'; allowed: 'real', 'integer'"),
        ({"coupling": "vp"}, "coupling is 'vp'; allowed: 'markov', 'linear'"),
        ({"conditioning": "snr"}, "conditioning is 'snr'; allowed: 'gamma', 'level'"),
        ({"gammas": "zero"}, "is 'zero'; allowed: 'uniform', 'one', or a function from u to"),
        ({"loss": "l1"}, "loss is 'l1'; allowed: 'l2', 'huber'"),
        ({"teacher_prediction_type": "v"}, "is 'v'; allowed: 'epsilon', 'sample', 'v_predic"),
        ({"student_prediction_type": "x0"}, "is 'x0'; allowed: None, 'epsilon', 'sample'"),
        ({"guidance": math.nan}, "guidance is nan; allowed: a finite number >= 0"),
        ({"huber_c": 0.0}, "huber_c is 0.0; allowed: a finite number > 0"),
        ({"sigma_data": math.inf}, "sigma_data is inf; allowed: a finite number > 0"),
        ({"timestep_scaling": -10}, "timestep_scaling is -10; allowed: a finite number > 0"),
        ({"slope": "middle"}, "coupling is 'markov' with slope='middle'; allowed: 'linear'"),
        ({**MIDDLE, "teacher_steps": 2}, "is 2 with slope='middle', off_grid=False; allowed: 1"),
        ({"off_grid": True, "teacher_steps": 2}, "is 2 with slope='end', off_grid=True; allowed"),
        ({"off_grid": True, "teacher_timesteps": "integer"}, "='integer'; allowed: 'real'"),
    ],
)
def test_wrong_config(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DistillConfig(**OFFICIAL).replace(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subpaths": 30}, "is 30, which does not divide the 1000 timesteps; allowed: 1, 2"),
        ({"subpaths": 1000}, "is 1000 for 1000 timesteps; allowed: at most half as many"),
        ({"teacher_steps": 3}, "is 3, which .* 20 timesteps; allowed: 1, 2, 4, 5, 10, 20"),
    ],
)
def test_config_that_does_not_fit_the_schedule(change, message):
    with pytest.raises(ValueError, match=message):
        distiller_for(**change)


X0, GOOD = noise(4, 2), sample_for(4, 2)
META = torch.device("meta")


@pytest.mark.parametrize(
    ("x0", "fields", "message"),
    [
        (X0.float(), {}, "x0 is torch.float32 on cpu; allowed: the schedule's torch.float64"),
        (X0.to(META), {}, "x0 is torch.float64 on meta; allowed: the schedule's"),
        (X0[:, 0], {"noise": X0[:, 0]}, "x0 has shape (4,); allowed: (B, *) with rank 2"),
        (X0, {"noise": X0[:3]}, "noise has shape (3, 2); allowed: that of x0, (4, 2)"),
        (X0, {"index": GOOD.index[:3]}, "index has shape (3,) on cpu; allowed: (B,) = (4,)"),
        (X0, {"index": GOOD.gamma}, "index has dtype torch.float64; allowed: an integer"),
        (X0, {"index": GOOD.index > 0}, "index has dtype torch.bool; allowed: an integer"),
        (X0, {"gamma": X0[:, :1]}, "gamma has shape (4, 1) on cpu; allowed: (B,) = (4,)"),
        (X0, {"gamma": GOOD.gamma.float()}, "gamma has dtype torch.float32; allowed: x0's"),
        (X0, {"gamma": GOOD.gamma.to(META)}, "gamma has shape (4,) on meta; allowed: "),
    ],
)
def test_wrong_input(x0, fields, message):
    """Refused before any network is called."""
    ours = nets()
    with pytest.raises(ValueError, match=re.escape(message)):
        distiller_for().step(x0, dataclasses.replace(GOOD, **fields), **ours)
    assert [net.calls for net in ours.values()] == [[], [], []]


@pytest.mark.parametrize("index", [GOOD.index, GOOD.gamma.float()])
def test_off_the_grid_an_index_is_real(index):
    sample = dataclasses.replace(GOOD, index=index)
    with pytest.raises(ValueError, match=r"index has dtype .*; allowed: x0's torch\.float64, off"):
        distiller_for(off_grid=True).step(X0, sample, **nets())


@pytest.mark.parametrize("name", ["teacher", "student", "target"])
def test_a_network_of_the_wrong_shape(name):
    ours = nets()
    ours[name] = lambda x, t, cond=None, gamma=None: x[:, :1]
    with pytest.raises(
        ValueError, match=r"output has shape \(4, 1\); allowed: its input's, \(4, 2\)"
    ):
        distiller_for().step(X0, GOOD, **ours)


@pytest.mark.parametrize(
    ("law", "x0", "generators", "message"),
    [
        (lambda u: 2 + u, X0, 1, r"gamma is 2\.\d+; allowed: 0 <= gamma <= 1"),
        (lambda u: u[:2], X0, 1, r"gamma has shape \(2,\); allowed: that of u, \(4,\)"),
        ("one", X0.to(META), 1, "the generator is on cpu but x0 is on meta; allowed"),
        ("one", X0, 3, "there are 3 generators for 4 samples; allowed: one"),
    ],
)
def test_wrong_draw(law, x0, generators, message):
    generator = torch.Generator() if generators == 1 else [torch.Generator()] * generators
    with pytest.raises(ValueError, match=message):
        distiller_for(gammas=law).draw(x0, generator)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x0", float("nan"), "x0 holds 1 NaN or Inf of 8 values"),
        ("noise", float("inf"), "noise holds 1 NaN or Inf of 8 values"),
        ("index", 50, "index is 50; allowed: 0 <= index <= 49"),
        ("index", -0.95, "index is -0.95; allowed: -0.9 <= index <= 49"),
        ("gamma", 1.5, "gamma is 1.5; allowed: 0 <= gamma <= 1"),
    ],
)
def test_values_are_checked_on_request(name, value, message):
    distiller = distiller_for(torch.float32, off_grid=value == -0.95)
    x0, generator = noise(4, 2, dtype=torch.float32), torch.Generator().manual_seed(0)
    sample = distiller.draw(x0, generator)
    distiller.check_values(x0, sample)
    tensor = x0 if name == "x0" else getattr(sample, name)
    tensor.view(-1)[-1] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        distiller.check_values(x0, sample)


@pytest.mark.parametrize("subpaths", [10, 40, 50, 125, 250])
def test_the_lowest_draw_off_the_grid_is_in_range(subpaths, monkeypatch):
    """In float32, where t = 1 has its own rounding."""
    distiller = distiller_for(torch.float32, off_grid=True, subpaths=subpaths)
    x0 = noise(4, 2, dtype=torch.float32)
    monkeypatch.setattr(torch, "rand", lambda n, *, dtype, **_: torch.zeros(n, dtype=dtype))
    sample = distiller.draw(x0, torch.Generator())
    distiller.check_values(x0, sample)
    assert_near(distiller.grid.ends(sample.index)[0], torch.ones(4), rtol=1e-4)

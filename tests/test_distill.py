"""One distillation step: its limits, its gradients, its precision, and what it refuses."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import torch

from slam_edu import (
    DistillConfig,
    NoiseSchedule,
    SubPathDistiller,
    SubPathSample,
    boundary_scalings,
    ddim_step,
    ema_copy,
    interpolate,
    mse,
    pseudo_huber,
    sub_level,
    to_prediction,
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
COUPLINGS = ("markov", "linear")
SD = NoiseSchedule.stable_diffusion(torch.float64)


def distiller_for(dtype=torch.float64, **config) -> SubPathDistiller:
    return SubPathDistiller(NoiseSchedule.stable_diffusion(dtype), DistillConfig(**config))


def sample_for(*shape, index=None, gamma=None, seed=0, subpaths=50) -> SubPathSample:
    """Fixed draws in float64; the lowest and the highest sub-path are always among them."""
    index = torch.arange(shape[0]) * (subpaths - 1) // (shape[0] - 1) if index is None else index
    gamma = torch.linspace(0, 1, shape[0], dtype=torch.float64) if gamma is None else gamma
    return SubPathSample(index=index, gamma=gamma, noise=noise(*shape, seed=seed + 1))


def nets(dtype=torch.float64) -> dict[str, TinyNet]:
    """Three unlike networks, all of them trainable: only the student may get a gradient."""
    return {name: TinyNet(i + 1, dtype) for i, name in enumerate(("teacher", "student", "target"))}


def tensors_of(output) -> dict[str, torch.Tensor]:
    """All tensors of a step's record by name."""
    found = {}
    for field in dataclasses.fields(output):
        value = getattr(output, field.name)
        if dataclasses.is_dataclass(value):
            inner = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            found |= {f"{field.name}.{key}": tensor for key, tensor in inner.items()}
        else:
            found[field.name] = value
    return found


def lcd_step(
    x0, eps, index, *, teacher, student, target, w, cond, uncond, kind, loss_type, real_t
):
    """Latent consistency distillation as diffusers' train_lcm_distill_sd_wds.py writes it.

    It was written from that script, in terms of alphas_cumprod alone, and shares nothing with the
    library. ``real_t``: networks are given a real-valued timestep and no gamma.
    """
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = np.cumprod(1 - beta)
    alpha_schedule = torch.from_numpy(np.sqrt(alphas_cumprod))
    sigma_schedule = torch.from_numpy(np.sqrt(1 - alphas_cumprod))
    topk = 1000 // 50
    ddim_timesteps = torch.from_numpy(np.arange(1, 51) * topk - 1)
    ddim_prev = np.asarray([alphas_cumprod[0], *alphas_cumprod[ddim_timesteps[:-1]]])
    ddim_prev = torch.from_numpy(ddim_prev)

    def at(table, i):
        return table[i].reshape(-1, *[1] * (x0.ndim - 1))

    def scalings(t):
        tau = 10.0 * t.reshape(-1, *[1] * (x0.ndim - 1)).double()
        return 0.25 / (tau**2 + 0.25), tau / (tau**2 + 0.25) ** 0.5

    def predicted_origin(out, t, x):
        alpha, sigma = at(alpha_schedule, t), at(sigma_schedule, t)
        if kind == "epsilon":
            return (x - sigma * out) / alpha
        return out if kind == "sample" else alpha * x - sigma * out

    def predicted_noise(out, t, x):
        alpha, sigma = at(alpha_schedule, t), at(sigma_schedule, t)
        if kind == "epsilon":
            return out
        return (x - alpha * out) / sigma if kind == "sample" else alpha * out + sigma * x

    def network(net, x, t):
        one = None if real_t else torch.ones(len(x), dtype=x.dtype)
        return net(x, t.double() if real_t else t, cond, one)

    start = ddim_timesteps[index]
    timesteps = torch.where(start - topk < 0, torch.zeros_like(start), start - topk)
    c_skip_start, c_out_start = scalings(start)
    c_skip, c_out = scalings(timesteps)
    noisy = at(alpha_schedule, start) * x0 + at(sigma_schedule, start) * eps
    out = network(student, noisy, start)
    model_pred = c_skip_start * noisy + c_out_start * predicted_origin(out, start, noisy)
    with torch.no_grad():
        cond_out = teacher(noisy, start, cond)
        pred_x0 = predicted_origin(cond_out, start, noisy)
        pred_noise = predicted_noise(cond_out, start, noisy)
        if uncond is not None:
            uncond_out = teacher(noisy, start, uncond)
            uncond_x0 = predicted_origin(uncond_out, start, noisy)
            pred_x0 = pred_x0 + w * (pred_x0 - uncond_x0)
            pred_noise = pred_noise + w * (pred_noise - predicted_noise(uncond_out, start, noisy))
        prev = at(ddim_prev, index)
        x_prev = prev.sqrt() * pred_x0 + (1.0 - prev).sqrt() * pred_noise
        out = network(target, x_prev, timesteps)
        y = c_skip * x_prev + c_out * predicted_origin(out, timesteps, x_prev)
    if loss_type == "l2":
        loss = torch.nn.functional.mse_loss(model_pred, y)
    else:
        loss = torch.mean(torch.sqrt((model_pred - y) ** 2 + 0.001**2) - 0.001)
    return loss, model_pred, y


@pytest.mark.parametrize(
    ("conditioning", "coupling", "kind", "loss", "guided"),
    [
        *itertools.product(CONDITIONINGS, ["markov"], KINDS, ["l2"], [True]),
        *itertools.product(CONDITIONINGS, ["linear"], ["epsilon"], ["huber"], [False]),
    ],
)
def test_gamma_one_is_latent_consistency_distillation(conditioning, coupling, kind, loss, guided):
    config = {"conditioning": conditioning, "coupling": coupling, "loss": loss, "gammas": "one"}
    distiller = distiller_for(**config, teacher_prediction_type=kind)
    x0, ours, theirs = noise(50, 4, 2), nets(), nets()
    drawn = distiller.draw(x0, torch.Generator().manual_seed(0))
    sample = dataclasses.replace(drawn, index=torch.arange(50))  # every sub-path
    cond, uncond = noise(50, 1, 1, seed=7), noise(50, 1, 1, seed=8) if guided else None
    output = distiller.step(x0, sample, **ours, cond=cond, uncond=uncond)
    expected, prediction, target = lcd_step(
        x0, sample.noise, sample.index, **theirs, w=8.0, cond=cond, uncond=uncond, kind=kind,
        loss_type=loss, real_t=conditioning == "level",
    )  # fmt: skip
    assert_near(output.loss, expected, rtol=1e-12)
    assert_near(output.prediction, prediction, rtol=1e-11, atol=1e-12)
    assert_near(output.target, target, rtol=1e-11, atol=1e-12)
    output.loss.backward()
    expected.backward()
    assert_near(ours["student"].weight.grad, theirs["student"].weight.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_step_formula_by_formula(coupling, conditioning, kind):
    """The whole step, each quantity made from the one before it."""
    loss = "l2" if coupling == "linear" else "huber"
    distiller = distiller_for(
        coupling=coupling, conditioning=conditioning, loss=loss, huber_c=0.05, guidance=2.5,
        teacher_prediction_type="epsilon", student_prediction_type=kind,
        sigma_data=0.7, timestep_scaling=0.02,  # c_skip then counts at every t
    )  # fmt: skip
    x0, sample, ours = noise(12, 3, 2), sample_for(12, 3, 2), nets()
    cond, uncond = noise(12, 1, 1, seed=7), noise(12, 1, 1, seed=8)
    out = distiller.step(x0, sample, **ours, cond=cond, uncond=uncond)
    nets_again = nets()
    grid = SD.subpaths(50)
    t, s, gamma = grid.t[sample.index], grid.s[sample.index], sample.gamma
    alpha_t, sigma_t = column(SD.alpha[t], x0), column(SD.sigma[t], x0)
    alpha_s, sigma_s = column(SD.alpha[s], x0), column(SD.sigma[s], x0)
    g, a = column(gamma, x0), alpha_t / alpha_s

    x_t = alpha_t * x0 + sigma_t * sample.noise
    e_c, e_u = (nets_again["teacher"](x_t, t, c).detach() for c in (cond, uncond))
    e = e_c + 2.5 * (e_c - e_u)
    x_s = alpha_s * (x_t - sigma_t * e) / alpha_t + sigma_s * e
    x_g = g * x_t + (1 - g) * a * x_s
    if coupling == "linear":
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

    if conditioning == "gamma":
        y = f("target", x_s, s, alpha_s, sigma_s, torch.ones_like(gamma))
        p = f("student", x_g, t, alpha_t, sigma_g, gamma)
    else:
        n = (alpha_t**2 + sigma_g**2).sqrt()
        real_t = SD.timestep(sub_level(SD(t), SD(s), gamma, coupling))
        y = f("target", x_s, s.double(), alpha_s, sigma_s, None)
        p = f("student", x_g / n, real_t, alpha_t / n, sigma_g / n, None)
    difference = p - y.detach()
    if loss == "l2":
        expected = difference.square().mean()
    else:
        expected = ((difference**2 + 0.05**2).sqrt() - 0.05).mean()

    near = {"rtol": 1e-11, "atol": 1e-11}
    assert_near(out.x_t, x_t, **near)
    assert_near(out.teacher.eps, e, **near)
    assert_near(out.x_s, x_s, **near)
    assert_near(out.x_gamma, x_g, **near)
    assert_near(out.level_gamma.sigma, sigma_g.flatten(), **near)
    assert_near(out.level_gamma.alpha, alpha_t.flatten(), rtol=1e-14)
    assert_near(out.target, y, **near)
    assert_near(out.prediction, p, **near)
    assert_near(out.loss, expected, rtol=1e-11)
    out.loss.backward()
    expected.backward()
    gradient = nets_again["student"].weight.grad
    assert_near(ours["student"].weight.grad, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_what_the_networks_are_conditioned_on(conditioning):
    distiller = distiller_for(conditioning=conditioning, coupling="linear")
    x0, sample, ours, order = noise(5, 2), sample_for(5, 2), nets(), []
    cond, uncond = noise(5, 1, seed=7), noise(5, 1, seed=8)
    for name, net in ours.items():
        net.register_forward_pre_hook(lambda module, args, name=name: order.append(name))
    out = distiller.step(x0, sample, **ours, cond=cond, uncond=uncond)
    assert order == ["teacher", "teacher", "target", "student"]  # the student last
    for call, c in zip(ours["teacher"].calls, (cond, uncond), strict=True):
        assert torch.equal(call[0], out.x_t)
        assert torch.equal(call[1], out.t)
        assert call[2] is c
        assert call[3] is None
    x, t, c, g = ours["target"].calls[0]
    assert_near(x, out.x_s, atol=1e-14)
    assert c is cond
    if conditioning == "gamma":
        assert torch.equal(t, out.s)
        assert torch.equal(g, torch.ones(5, dtype=torch.float64))
    else:
        assert t.dtype == torch.float64
        assert t.tolist() == out.s.tolist()
        assert g is None
    x, t, c, g = ours["student"].calls[0]
    assert c is cond
    if conditioning == "gamma":
        assert torch.equal(x, out.x_gamma)
        assert torch.equal(t, out.t)
        assert torch.equal(g, sample.gamma)
    else:
        assert_near(x, out.x_gamma / column(out.level_gamma.norm, x), rtol=1e-12)
        assert_near(SD(t).rho, out.level_gamma.rho, rtol=1e-10)
        assert g is None
    # Without uncond the teacher is asked once.
    ours["teacher"].calls.clear()
    distiller.step(x0, sample, **ours, cond=cond)
    assert len(ours["teacher"].calls) == 1


def test_at_the_lowest_sub_path_the_target_is_x_s():
    x0, ours = noise(4, 2), nets()
    sample = sample_for(4, 2, index=torch.zeros(4, dtype=torch.long))
    for conditioning in CONDITIONINGS:
        out = distiller_for(conditioning=conditioning).step(x0, sample, **ours)
        assert out.s.tolist() == [0, 0, 0, 0]
        assert torch.equal(out.target, out.x_s)


@pytest.mark.parametrize(("steps", "guided"), [(1, True), (2, False), (4, True), (20, False)])
def test_teacher_steps(steps, guided):
    """M steps are M DDIM steps, k/M timesteps each, for every sub-path of every sample."""
    x0, sample, ours = noise(7, 2), sample_for(7, 2), nets()
    cond, uncond = (noise(7, 1, seed=7), noise(7, 1, seed=8)) if guided else (None, None)
    out = distiller_for(teacher_steps=steps, guidance=3.0).step(
        x0, sample, **ours, cond=cond, uncond=uncond
    )
    assert len(ours["teacher"].calls) == steps * (1 + guided)
    teacher = TinyNet(1)
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    for b in range(7):
        t = 20 * int(sample.index[b]) + 19
        path = [max(t - m * (20 // steps), 0) for m in range(steps + 1)]
        assert path[-1] == max(t - 20, 0) == out.s[b]
        c = [None if v is None else v[b : b + 1] for v in (cond, uncond)]
        x = math.sqrt(abar[t]) * x0[b : b + 1] + math.sqrt(1 - abar[t]) * sample.noise[b : b + 1]
        for here, there in itertools.pairwise(path):
            e = teacher(x, torch.tensor([here]), c[0]).detach()
            if guided:
                e = 4 * e - 3 * teacher(x, torch.tensor([here]), c[1]).detach()
            clean = (x - math.sqrt(1 - abar[here]) * e) / math.sqrt(abar[here])
            x = math.sqrt(abar[there]) * clean + math.sqrt(1 - abar[there]) * e
            if here == t:
                assert_near(out.teacher.eps[b : b + 1], e, rtol=1e-12, atol=1e-14)
        assert_near(out.x_s[b : b + 1], x, rtol=1e-12, atol=1e-13)


def level_distiller(dtype=torch.float64, **config) -> SubPathDistiller:
    return distiller_for(dtype, **LEVEL, **config)


@pytest.mark.parametrize(("gammas", "reach"), [("uniform", 1.5), ("one", 2.0), ("uniform", 40)])
def test_reach_multiplies_gamma_up_to_the_noisiest_level(gammas, reach):
    x0 = noise(4000, 2)
    plain = level_distiller(gammas=gammas).draw(x0, torch.Generator().manual_seed(0))
    drawn = level_distiller(gammas=gammas, reach=reach).draw(x0, torch.Generator().manual_seed(0))
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    rho = np.sqrt(1 / abar - 1)
    clipped = 0
    for index, one, many in zip(
        drawn.index.tolist(), plain.gamma.tolist(), drawn.gamma.tolist(), strict=True
    ):
        rho_t, rho_s = rho[20 * index + 19], rho[max(20 * index - 1, 0)]
        here = reach * one * rho_t + (1 - reach * one) * rho_s
        if here > rho[999]:
            clipped += 1
            assert many * rho_t + (1 - many) * rho_s == pytest.approx(rho[999], rel=1e-9)
        else:
            assert many == pytest.approx(reach * one, rel=1e-12)
    assert 0 < clipped < 4000


@on_devices
@pytest.mark.parametrize(("reach", "gammas"), [(1.0, "one"), (1.1, "uniform"), (500.0, "one")])
def test_no_draw_goes_beyond_the_last_timestep(reach, gammas, device):
    """The clipped level may round beyond the last one."""
    distiller = SubPathDistiller(
        NoiseSchedule.stable_diffusion().to(device),
        DistillConfig(**LEVEL, reach=reach, gammas=gammas),
    )
    x0 = noise(2000, 2, dtype=torch.float32).to(device)
    sample = distiller.draw(x0, torch.Generator(device).manual_seed(0))
    assert sample.gamma.dtype == torch.float32
    given = []

    def network(x, t, cond=None, gamma=None):
        given.append(t)
        return x

    out = distiller.step(x0, sample, teacher=network, student=network, target=network)
    assert torch.isfinite(out.loss)
    assert given[-1].max() <= 999
    if gammas == "one" and reach > 1:
        assert given[-1].max() == 999  # of the last sub-path at the latest


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_predict_is_the_steps_target(conditioning, kind):
    """And the student's output at gamma = 1, with its gradient."""
    distiller = distiller_for(conditioning=conditioning, student_prediction_type=kind)
    x0, ours = noise(50, 3, 2), nets()
    ones = torch.ones(50, dtype=torch.float64)
    sample = sample_for(50, 3, 2, index=torch.arange(50), gamma=ones)
    cond = noise(50, 1, 1, seed=7)
    out = distiller.step(x0, sample, **ours, cond=cond)
    near = {"rtol": 1e-9, "atol": 1e-12}
    assert_near(distiller.predict(ours["target"], out.x_s, out.s, cond), out.target, **near)
    f = distiller.predict(ours["student"], out.x_t, out.t, cond)
    assert_near(f, out.prediction, **near)
    assert f.requires_grad
    x = noise(6, 3, 2)
    assert_near(distiller.predict(ours["target"], x, 0), x, 1e-14)
    # One timestep for all, as a number or as a tensor.
    found = [distiller.predict(ours["target"], x, t)
             for t in (979, torch.tensor(979), torch.full((6,), 979))]  # fmt: skip
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    _, t, c, g = ours["target"].calls[-1]
    assert c is None
    assert t.tolist() == [979] * 6
    if conditioning == "gamma":
        assert g.tolist() == [1.0] * 6
        assert not t.is_floating_point()
    else:
        assert g is None
        assert t.dtype == torch.float64


def test_predict_between_timesteps():
    """Under level conditioning timesteps are real."""
    distiller, given = level_distiller(), []
    t, x = f64([3.25, 500.5, 998.75]), noise(3, 2)

    def network(x, t, cond, gamma):
        given.append(t)
        return 0 * x

    f = distiller.predict(network, x, t)
    assert_near(given[0], t, rtol=1e-11)
    c_skip, c_out = boundary_scalings(t)
    assert_near(f, column(c_skip + c_out / SD(t).alpha, x) * x, rtol=1e-9)


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


@pytest.mark.parametrize(("conditioning", "teacher_steps"), [("gamma", 1), ("level", 4)])
@on_devices
def test_the_gradient_reaches_the_student_alone(conditioning, teacher_steps, device):
    dtype = torch.float32
    schedule = NoiseSchedule.stable_diffusion().to(device)
    config = DistillConfig(conditioning=conditioning, teacher_steps=teacher_steps)
    distiller = SubPathDistiller(schedule, config)
    x0 = noise(6, 2, dtype=dtype).to(device)
    ours = {name: net.to(device) for name, net in nets(dtype).items()}
    sample = distiller.draw(x0, torch.Generator(device).manual_seed(0))
    cond = noise(6, 1, seed=7, dtype=dtype).to(device)
    out = distiller.step(x0, sample, **ours, cond=cond, uncond=torch.zeros_like(cond))
    needs_grad = {name for name, tensor in tensors_of(out).items() if tensor.requires_grad}
    assert needs_grad == {"loss", "prediction"}
    out.loss.backward()
    assert ours["student"].weight.grad.abs().sum() > 0
    assert ours["teacher"].weight.grad is None
    assert ours["target"].weight.grad is None


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_one_network_in_all_three_parts(conditioning):
    """As with switched adapters: the gradient is that of three separate copies."""
    distiller = distiller_for(conditioning=conditioning, coupling="linear")
    x0, sample = noise(6, 2), sample_for(6, 2)
    one, copy = TinyNet(2), TinyNet(2)
    distiller.step(x0, sample, teacher=one, student=one, target=one).loss.backward()
    parts = {"teacher": TinyNet(2), "student": copy, "target": ema_copy(copy)}
    distiller.step(x0, sample, **parts).loss.backward()
    assert torch.equal(one.weight.grad, copy.weight.grad)


# -------------------------------------------------------------------- no waiting for a device


STEPS = [
    {"conditioning": "gamma", "loss": "huber"},
    {"conditioning": "gamma", "coupling": "linear", "teacher_steps": 2},
    {"conditioning": "level", "loss": "l2"},
    {**LEVEL, "loss": "huber", "teacher_steps": 2, "reach": 2.0},
    {**LEVEL, "reach": 2.0, "gammas": "one", "student_prediction_type": "v_prediction"},
]


@pytest.mark.parametrize("config", STEPS)
@pytest.mark.parametrize("guided", [False, True])
def test_a_step_reads_no_value_of_a_tensor(config, guided):
    """On an accelerator each would wait for all the work that is queued."""
    distiller, ours = distiller_for(**config), nets()
    x0, cond = noise(6, 4, 8, 8), noise(6, 1, 1, 1, seed=7)
    uncond = noise(6, 1, 1, 1, seed=8) if guided else None
    with HostReads() as drawing:
        sample = distiller.draw(x0, torch.Generator().manual_seed(0))
    with HostReads() as stepping:
        out = distiller.step(x0, sample, **ours, cond=cond, uncond=uncond)
        out.loss.backward()
    assert (drawing.found, stepping.found) == ([], [])


@pytest.mark.parametrize("config", STEPS)
def test_a_step_on_a_device_without_values(config):
    """Tensors on "meta" have no values to read, and mix with no others."""
    distiller = SubPathDistiller(
        NoiseSchedule.stable_diffusion().to("meta"), DistillConfig(**config)
    )
    x0 = torch.zeros(6, 4, 8, 8, device="meta")
    ours = {name: net.to("meta") for name, net in nets(torch.float32).items()}
    sample = SubPathSample(
        index=torch.zeros(6, dtype=torch.int64, device="meta"),
        gamma=torch.zeros(6, device="meta"), noise=torch.zeros_like(x0),
    )  # fmt: skip
    out = distiller.step(x0, sample, **ours, cond=x0, uncond=x0)
    assert {tensor.device.type for tensor in tensors_of(out).values()} == {"meta"}
    f = distiller.predict(ours["target"], x0, 19)
    assert f.device.type == "meta"


if torch.cuda.is_available():

    @pytest.mark.filterwarnings("ignore:Synchronization debug mode")
    @pytest.mark.parametrize("config", STEPS)
    def test_a_step_does_not_synchronise(config):
        schedule = NoiseSchedule.stable_diffusion().cuda()
        distiller = SubPathDistiller(schedule, DistillConfig(**config))
        x0 = noise(6, 4, 8, 8, dtype=torch.float32).cuda()
        cond, uncond = (noise(6, 1, 1, 1, seed=i, dtype=torch.float32).cuda() for i in (7, 8))
        ours = {name: net.cuda() for name, net in nets(torch.float32).items()}
        generator = torch.Generator("cuda").manual_seed(0)
        distiller.step(x0, distiller.draw(x0, generator), **ours)  # what is set up once
        torch.cuda.set_sync_debug_mode("error")
        try:
            sample = distiller.draw(x0, generator)
            out = distiller.step(x0, sample, **ours, cond=cond, uncond=uncond)
            out.loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(out.loss)


# -------------------------------------------------------------------- shapes, precision, devices


@pytest.mark.parametrize(("conditioning", "coupling"), [("gamma", "markov"), ("level", "linear")])
def test_rank_does_not_matter(conditioning, coupling):
    distiller = distiller_for(conditioning=conditioning, coupling=coupling)
    losses, predictions = [], []
    for shape in [(6, 2), (6, 2, 1, 1), (6, 1, 2)]:
        x0, sample = noise(6, 2).reshape(shape), sample_for(6, 2)
        sample = dataclasses.replace(sample, noise=sample.noise.reshape(shape))
        out = distiller.step(x0, sample, **nets())
        assert out.prediction.shape == out.target.shape == out.x_gamma.shape == shape
        assert out.level_gamma.sigma.shape == out.t.shape == (6,)
        losses.append(out.loss)
        predictions.append(out.prediction.reshape(6, 2))
    for loss, prediction in zip(losses, predictions, strict=True):
        assert torch.equal(loss, losses[0])
        assert torch.equal(prediction, predictions[0])
    # (B, 4, 8, 8): the loss is the mean over what columns of it give.
    x0, sample = noise(6, 4, 8, 8), sample_for(6, 4, 8, 8)
    whole = distiller.step(x0, sample, **nets()).loss
    parts = []
    for i in range(0, 256, 64):
        part = dataclasses.replace(sample, noise=sample.noise.flatten(1)[:, i : i + 64])
        parts.append(distiller.step(x0.flatten(1)[:, i : i + 64], part, **nets()).loss)
    assert_near(whole, torch.stack(parts).mean(), rtol=1e-12)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_float32_algebra_whatever_the_networks_return(conditioning, dtype):
    """Only the networks' rounding is left: outputs rounded in float32 give the same bits."""
    distiller = distiller_for(torch.float32, conditioning=conditioning)
    x0 = noise(6, 4, 8, 8, dtype=torch.float32)
    sample = distiller.draw(x0, torch.Generator().manual_seed(0))
    plain = nets(torch.float32)

    def returning(convert):
        return {name: lambda *args, net=net: convert(net(*args)) for name, net in plain.items()}

    half = distiller.step(x0, sample, **returning(lambda x: x.to(dtype)))
    rounded = distiller.step(x0, sample, **returning(lambda x: x.to(dtype).float()))
    exact = distiller.step(x0, sample, **plain)
    for name, tensor in tensors_of(half).items():
        assert tensor.dtype == (torch.int64 if name in ("t", "s") else torch.float32), name
        assert torch.equal(tensor, tensors_of(rounded)[name]), name
    assert torch.equal(half.x_t, exact.x_t)
    assert torch.equal(half.level_gamma.sigma, exact.level_gamma.sigma)
    assert_near(half.loss, exact.loss, rtol=0.05)


@pytest.mark.parametrize("config", STEPS)
def test_no_float64_in_float32_mode(config):
    """What stands in for an Apple GPU here, which has no float64: not one operation makes one."""
    distiller = distiller_for(torch.float32, **config)
    x0, ours = noise(6, 2, dtype=torch.float32), nets(torch.float32)
    cond = noise(6, 1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with NoFloat64():
        sample = distiller.draw(x0, generator)
        out = distiller.step(x0, sample, **ours, cond=cond, uncond=torch.zeros_like(cond))
        out.loss.backward()
        distiller.predict(ours["target"], x0, 19, cond)


@on_devices
@pytest.mark.parametrize(("conditioning", "moved"), [("gamma", "before"), ("level", "after")])
def test_a_device_gives_the_cpus_numbers(device, conditioning, moved):
    """Also when the schedule is moved after the distiller was made."""
    config = DistillConfig(conditioning=conditioning, coupling="linear")
    schedule = NoiseSchedule.stable_diffusion()
    on_cpu = SubPathDistiller(NoiseSchedule.stable_diffusion(), config)
    if moved == "before":
        schedule.to(device)
    there = SubPathDistiller(schedule, config)
    schedule.to(device)
    x0 = noise(8, 4, 8, 8, dtype=torch.float32)
    sample = on_cpu.draw(x0, torch.Generator().manual_seed(0))
    moved_sample = SubPathSample(
        index=sample.index.to(device), gamma=sample.gamma.to(device), noise=sample.noise.to(device)
    )
    expected = on_cpu.step(x0, sample, **nets(torch.float32))
    ours = {name: net.to(device) for name, net in nets(torch.float32).items()}
    out = there.step(x0.to(device), moved_sample, **ours)
    assert out.loss.device.type == device
    assert_near(out.loss, expected.loss, rtol=1e-4)
    assert_near(out.prediction, expected.prediction, rtol=1e-3, atol=1e-4)


def test_inputs_are_not_modified():
    distiller = level_distiller(teacher_steps=2)
    x0, sample, ours = noise(6, 2), sample_for(6, 2), nets()
    cond, uncond = noise(6, 1, seed=7), noise(6, 1, seed=8)
    inputs = [x0, sample.index, sample.gamma, sample.noise, cond, uncond, distiller.schedule.alpha]
    inputs += [distiller.schedule.sigma, distiller.grid.t, *(net.weight for net in ours.values())]
    copies, versions = [x.detach().clone() for x in inputs], [x._version for x in inputs]
    out = distiller.step(x0, sample, **ours, cond=cond, uncond=uncond)
    # What a network was given is not written over later either.
    assert torch.equal(ours["teacher"].calls[0][0], out.x_t)
    out.loss.backward()
    for x, copy, version in zip(inputs, copies, versions, strict=True):
        assert torch.equal(x, copy)
        assert x._version == version


# -------------------------------------------------------------------- draws


def test_draw_order():
    """Index, then gamma, then noise, from one generator."""
    x0 = noise(1000, 2, 3, dtype=torch.float32)
    sample = distiller_for(torch.float32).draw(x0, torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    assert torch.equal(sample.index, torch.randint(50, (1000,), generator=g))
    assert torch.equal(sample.gamma, torch.rand(1000, generator=g))
    assert torch.equal(sample.noise, torch.randn(1000, 2, 3, generator=g))


def test_a_generator_each():
    """Every sample draws what it would alone."""
    x0, distiller = noise(3, 2), level_distiller(reach=2.0)
    whole = distiller.draw(x0, [torch.Generator().manual_seed(i) for i in range(3)])
    for i in range(3):
        alone = distiller.draw(x0[i : i + 1], torch.Generator().manual_seed(i))
        for name in ("index", "gamma", "noise"):
            assert torch.equal(getattr(whole, name)[i : i + 1], getattr(alone, name))


def test_gammas_of_ones_own():
    x0 = noise(5, 2)
    drawn = distiller_for(gammas=lambda u: 1 - u).draw(x0, torch.Generator().manual_seed(3))
    plain = distiller_for().draw(x0, torch.Generator().manual_seed(3))
    assert torch.equal(drawn.gamma, 1 - plain.gamma)
    ones = distiller_for(gammas="one").draw(x0, torch.Generator().manual_seed(3))
    assert ones.gamma.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    "config",
    [
        {"gammas": "one"},
        {"gammas": torch.sqrt},
        {**LEVEL, "reach": 2.0},
        {**LEVEL, "loss": "huber", "teacher_steps": 4},
    ],
)
def test_all_methods_see_the_same_index_and_noise(config):
    """And leave the generator alike, so that they do in every batch of a run."""
    x0, generators = noise(40, 3, 2), [torch.Generator().manual_seed(5) for _ in range(2)]
    for _ in range(3):
        plain = distiller_for().draw(x0, generators[0])
        other = distiller_for(**config).draw(x0, generators[1])
        assert torch.equal(other.index, plain.index)
        assert torch.equal(other.noise, plain.noise)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@on_devices
def test_distribution_of_the_draws(device):
    x0 = noise(20_000, 2, dtype=torch.float32).to(device)
    schedule = NoiseSchedule.stable_diffusion().to(device)
    distiller = SubPathDistiller(schedule, DistillConfig(subpaths=20))
    sample = distiller.draw(x0, torch.Generator(device).manual_seed(0))
    index, gamma, eps = sample.index.cpu(), sample.gamma.cpu(), sample.noise.cpu()
    counts = index.bincount(minlength=20)
    assert len(counts) == 20
    assert bool((counts - 1000).abs().max() < 5 * math.sqrt(1000))
    assert bool(((gamma >= 0) & (gamma < 1)).all())
    places = torch.linspace(0, 0.99, 100)
    share = (gamma[None] < places[:, None]).float().mean(dim=1)
    assert (share - places).abs().max() < 5 * 0.5 / math.sqrt(20_000)
    assert abs(eps.mean().item()) < 0.03
    assert eps.std().item() == pytest.approx(1, abs=0.02)
    # Independent of one another.
    off = torch.corrcoef(torch.stack([index.float(), gamma, eps[:, 0], eps[:, 1]])) - torch.eye(4)
    assert off.abs().max() < 5 / math.sqrt(20_000)


# -------------------------------------------------------------------- the config


def test_config():
    config = DistillConfig()
    assert (config.subpaths, config.guidance, config.coupling) == (50, 8.0, "markov")
    assert (config.conditioning, config.loss, config.huber_c) == ("gamma", "l2", 1e-3)
    assert (config.gammas, config.teacher_steps, config.reach) == ("uniform", 1, 1.0)
    assert (config.teacher_prediction_type, config.output_type) == ("epsilon", "epsilon")
    assert (config.sigma_data, config.timestep_scaling) == (0.5, 10.0)
    other = config.replace(student_prediction_type="v_prediction", subpaths=25)
    assert other.output_type == "v_prediction"
    assert other.subpaths == 25
    assert config.subpaths == 50
    assert DistillConfig(**dataclasses.asdict(other)) == other
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.subpaths = 3
    assert SubPathDistiller(SD).config == config
    assert SubPathDistiller(SD, DistillConfig(subpaths=500)).grid.k == 2
    assert DistillConfig(guidance=0.0, reach=1.0).guidance == 0
    assert len(SubPathDistiller(SD, other).grid) == 25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subpaths": 0}, r"subpaths is 0; allowed: an integer >= 1"),
        ({"subpaths": 50.0}, r"subpaths is 50\.0; allowed: an integer >= 1"),
        ({"teacher_steps": 0}, r"teacher_steps is 0; allowed: an integer >= 1"),
        ({"coupling": "vp"}, r"coupling is 'vp'; allowed: 'markov', 'linear'"),
        ({"conditioning": "snr"}, r"conditioning is 'snr'; allowed: 'gamma', 'level'"),
        (
            {"gammas": "zero"},
            r"gammas is 'zero'; allowed: 'uniform', 'one', or a function from u to gamma",
        ),
        ({**LEVEL, "reach": 0.99}, r"reach is 0\.99; allowed: a finite number >= 1"),
        ({**LEVEL, "reach": math.inf}, r"reach is inf; allowed: a finite number >= 1"),
        ({**LEVEL, "reach": math.nan}, r"reach is nan; allowed: a finite number >= 1"),
        (
            {**LEVEL, "reach": 2.0, "conditioning": "gamma"},
            r"reach is 2\.0 with conditioning='gamma', coupling='linear'; allowed: 1, "
            r"or 'level' and 'linear'",
        ),
        ({**LEVEL, "reach": 1.5, "coupling": "markov"}, r"coupling='markov'; allowed: 1"),
        ({"loss": "l1"}, r"loss is 'l1'; allowed: 'l2', 'huber'"),
        (
            {"teacher_prediction_type": "v"},
            r"is 'v'; allowed: 'epsilon', 'sample', 'v_prediction'",
        ),
        ({"student_prediction_type": "x0"}, r"is 'x0'; allowed: None, 'epsilon', 'sample'"),
        ({"guidance": -1.0}, r"guidance is -1\.0; allowed: a finite number >= 0"),
        ({"guidance": math.nan}, r"guidance is nan; allowed: a finite number >= 0"),
        ({"huber_c": 0.0}, r"huber_c is 0\.0; allowed: a finite number > 0"),
        ({"sigma_data": 0.0}, r"sigma_data is 0\.0; allowed: a finite number > 0"),
        ({"sigma_data": math.inf}, r"sigma_data is inf; allowed: a finite number > 0"),
        ({"timestep_scaling": 0.0}, r"timestep_scaling is 0\.0; allowed: a finite number > 0"),
        ({"timestep_scaling": -10}, r"timestep_scaling is -10; allowed: a finite number > 0"),
    ],
)
def test_wrong_config(change, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**change)
    with pytest.raises(ValueError, match=message):
        DistillConfig().replace(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"subpaths": 30},
            r"sub-paths is 30, which does not divide the 1000 timesteps; allowed: 1, 2",
        ),
        ({"subpaths": 2000}, r"sub-paths is 2000; allowed: an integer from 1 to 1000"),
        (
            {"subpaths": 1000},
            r"subpaths is 1000 for 1000 timesteps; allowed: at most half as many",
        ),
        (
            {"teacher_steps": 3},
            r"is 3, which does not .* 20 timesteps; allowed: 1, 2, 4, 5, 10, 20",
        ),
        ({"teacher_steps": 40}, r"is 40, which does not divide .* allowed: 1, 2, 4, 5, 10, 20"),
    ],
)
def test_config_that_does_not_fit_the_schedule(change, message):
    with pytest.raises(ValueError, match=message):
        SubPathDistiller(SD, DistillConfig(**change))


X0, GOOD = noise(4, 2), sample_for(4, 2)
META = torch.device("meta")


def change(**fields):
    return dataclasses.replace(GOOD, **fields)


@pytest.mark.parametrize(
    ("x0", "sample", "message"),
    [
        (X0.float(), GOOD, r"x0 is torch\.float32 on cpu; allowed: the schedule's torch\.float64"),
        (X0.to(META), GOOD, r"x0 is torch\.float64 on meta; allowed: .* on cpu"),
        (X0[:, 0], change(noise=GOOD.noise[:, 0]), r"x0 has shape \(4,\); allowed: .*rank 2"),
        (X0, change(noise=GOOD.noise[:3]), r"noise has shape \(3, 2\); allowed: .*\(4, 2\)"),
        (X0, change(noise=GOOD.noise.float()), r"noise has dtype torch\.float32; .*x0, .*float64"),
        (X0, change(noise=GOOD.noise.to(META)), r"noise has device meta; allowed: .*cpu"),
        (X0, change(index=GOOD.index[:3]), r"index has shape \(3,\).*allowed: \(B,\) = \(4,\)"),
        (
            X0,
            change(index=GOOD.index.double()),
            r"index has dtype torch\.float64; allowed: an int",
        ),
        (X0, change(index=GOOD.index > 0), r"index has dtype torch\.bool; allowed: an integer"),
        (X0, change(index=GOOD.index.to(META)), r"index has .* on meta; allowed: .*x0's cpu"),
        (X0, change(gamma=GOOD.gamma[:, None]), r"gamma has shape \(4, 1\).*\(B,\) = \(4,\)"),
        (X0, change(gamma=GOOD.gamma.float()), r"gamma has dtype torch\.float32; .*float64"),
        (X0, change(gamma=GOOD.gamma.to(META)), r"gamma has .* on meta; allowed: .*x0's cpu"),
    ],
)
def test_wrong_input(x0, sample, message):
    """Refused before any network is called."""
    ours = nets()
    with pytest.raises(ValueError, match=message):
        distiller_for().step(x0, sample, **ours)
    assert [net.calls for net in ours.values()] == [[], [], []]


@pytest.mark.parametrize("name", ["teacher", "student", "target"])
def test_a_network_of_the_wrong_shape(name):
    ours = nets()
    ours[name] = lambda x, t, cond=None, gamma=None: x[:, :1]
    with pytest.raises(
        ValueError, match=r"output has shape \(4, 1\); allowed: its input's, \(4, 2\)"
    ):
        distiller_for().step(X0, GOOD, **ours)


def test_draw_refuses_other_gammas():
    for law, message in (
        (lambda u: 2 + u, r"gamma is 2\.\d+; allowed: 0 <= gamma <= 1"),
        (lambda u: -u, r"gamma is -0\.\d+; allowed: 0 <= gamma <= 1"),
        (lambda u: u[:2], r"gamma has shape \(2,\); allowed: that of u, \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            distiller_for(gammas=law).draw(X0, torch.Generator().manual_seed(0))


def test_draw_refuses_other_generators():
    with pytest.raises(ValueError, match=r"the generator is on cpu but x0 is on meta; allowed"):
        distiller_for().draw(X0.to(META), torch.Generator())
    with pytest.raises(ValueError, match=r"there are 3 generators for 4 samples; allowed: one"):
        distiller_for().draw(X0, [torch.Generator()] * 3)


@pytest.mark.parametrize("loss", ["l2", "huber"])
def test_a_step_is_its_public_parts(loss):
    """The functions that lessons call one by one give the step's record."""
    distiller = distiller_for(loss=loss, coupling="linear", student_prediction_type="v_prediction")
    x0, sample, ours = noise(6, 2), sample_for(6, 2), nets()
    out = distiller.step(x0, sample, **ours)
    level_t, level_s = SD(out.t), SD(out.s)
    prediction = to_prediction(ours["teacher"](out.x_t, out.t, None), out.x_t, level_t)
    assert_near(ddim_step(prediction, level_s), out.x_s, rtol=1e-14)
    x = interpolate(out.x_t, out.x_s, level_t, level_s, sample.gamma)
    assert torch.equal(x, out.x_gamma)
    here = sub_level(level_t, level_s, sample.gamma, "linear")
    assert torch.equal(here.sigma, out.level_gamma.sigma)
    expected = (mse if loss == "l2" else pseudo_huber)(out.prediction, out.target)
    assert torch.equal(expected, out.loss)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x0", float("nan"), "x0 holds 1 NaN or Inf of 8 values"),
        ("noise", float("inf"), "noise holds 1 NaN or Inf of 8 values"),
        ("index", 50, "index is 50; allowed: 0 <= index <= 49"),
        ("index", -1, "index is -1; allowed: 0 <= index <= 49"),
        ("gamma", 1.5, "gamma is 1.5; allowed: 0 <= gamma <= 1"),
    ],
)
def test_values_are_checked_on_request(name, value, message):
    distiller = SubPathDistiller(NoiseSchedule.stable_diffusion())
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(4, 2, generator=generator)
    sample = distiller.draw(x0, generator)
    distiller.check_values(x0, sample)
    tensor = x0 if name == "x0" else getattr(sample, name)
    tensor.view(-1)[-1] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        distiller.check_values(x0, sample)

"""Noising, the three forms of a prediction, and guidance."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from slam_edu import (
    Level,
    NoiseSchedule,
    Prediction,
    add_noise,
    guided_prediction,
    network_predictor,
    to_output,
    to_prediction,
)
from tests.helpers import (
    KINDS,
    SD,
    SmoothDenoiser,
    assert_near,
    column,
    f64,
    level,
    noise,
    of_order_one,
    properties,
)

T = torch.tensor([0, 1, 19, 259, 499, 999])


@pytest.mark.parametrize("shape", [(6, 2), (6, 4, 8, 8)])
def test_add_noise_is_diffusers(shape):
    scheduler = DDIMScheduler(**SD)
    x0, eps = of_order_one(*shape), of_order_one(*shape, seed=1)
    exact = NoiseSchedule.from_scheduler(scheduler, torch.float64)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    expected = scheduler.add_noise(x0, eps, T)
    assert_near(add_noise(x0, eps, exact(T)), expected, rtol=1e-13, atol=1e-14)
    single = NoiseSchedule.stable_diffusion()
    ours = add_noise(x0.float(), eps.float(), single(T))
    assert ours.dtype == torch.float32
    assert_near(ours, expected, rtol=0, atol=1e-6)
    one = add_noise(x0, eps, exact(499))  # one level for the whole batch
    assert_near(one, exact.alpha[499] * x0 + exact.sigma[499] * eps, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_diffusers(kind):
    """diffusers' DDIM step shows its x0; its noise shows in the step to another level."""
    scheduler = DDIMScheduler(**SD, prediction_type=kind, clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(50)
    schedule = NoiseSchedule.from_scheduler(scheduler, torch.float64)
    x, output = noise(6, 4, 2), noise(6, 4, 2, seed=1)
    ours = to_prediction(output, x, schedule(T), kind)
    for i, t in enumerate(T.tolist()):
        theirs = scheduler.step(output[i], t, x[i], return_dict=True)
        assert_near(ours.x0[i], theirs.pred_original_sample, rtol=1e-12, atol=1e-12)
        previous = schedule(max(t - 20, 0)) if t >= 20 else Level(f64(1.0), f64(0.0))
        expected = theirs.prev_sample - previous.alpha * theirs.pred_original_sample
        assert_near(previous.sigma * ours.eps[i], expected, rtol=1e-11, atol=1e-11)


@properties
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.floats(0.05, 2.0), st.floats(0.05, 2.0),
       st.integers(0, 5))  # fmt: skip
def test_forms_are_converted_at_any_level(kind, other, alpha, sigma, seed):
    """There and back, and through another form, also where alpha^2 + sigma^2 is not 1."""
    x, output = noise(3, 2, 2, seed=seed), noise(3, 2, 2, seed=seed + 10)
    here = Level(f64([alpha, 1.0, alpha]), f64([sigma, sigma, 1.0]))
    first = to_prediction(output, x, here, kind)
    a, s = column(here.alpha, x), column(here.sigma, x)
    assert_near(a * first.x0 + s * first.eps, x, rtol=1e-12, atol=1e-12)
    assert_near(to_output(first, here, kind), output, rtol=1e-12, atol=1e-12)
    second = to_prediction(to_output(first, here, other), x, here, other)
    assert_near(second.x0, first.x0, rtol=1e-9, atol=1e-9)
    assert_near(second.eps, first.eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_algebra_is_in_the_samples_dtype(kind):
    schedule = NoiseSchedule.stable_diffusion()
    x, output = noise(6, 2, dtype=torch.float32), noise(6, 2, seed=1).bfloat16()
    here = to_prediction(output, x, schedule(T), kind)
    after = to_prediction(output.float(), x, schedule(T), kind)
    for name in ("x0", "eps"):
        assert getattr(here, name).dtype == torch.float32
        assert torch.equal(getattr(here, name), getattr(after, name))


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_is_the_pipelines(kind):
    """Predictions are combined here, raw outputs in diffusers: all three forms are linear."""
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    x, out_c, out_u = noise(6, 2), noise(6, 2, seed=1), noise(6, 2, seed=2)
    scale, here = 9.0, schedule(T)
    expected = to_prediction(out_u + scale * (out_c - out_u), x, here, kind)
    ours = guided_prediction(
        to_prediction(out_c, x, here, kind), to_prediction(out_u, x, here, kind), scale - 1
    )
    assert_near(ours.x0, expected.x0, rtol=1e-10, atol=1e-10)
    assert_near(ours.eps, expected.eps, rtol=1e-10, atol=1e-10)


def test_defaults():
    """Noise prediction, and no guidance."""
    schedule, x = NoiseSchedule.stable_diffusion(torch.float64), noise(3, 2)
    one, other = Prediction(x, 2 * x), Prediction(3 * x, 4 * x)
    assert torch.equal(to_output(one, level(0.6, 0.8)), one.eps)
    assert torch.equal(guided_prediction(one, other, 0.0).eps, one.eps)
    assert torch.equal(guided_prediction(one, other, 0.0).x0, one.x0)
    cond = f64([1.0])
    for uncond in (f64(0.5), "", None):  # whatever the network makes of it
        predict = network_predictor(
            lambda x, t, c: x if c is cond else 3 * x, schedule, cond=cond, uncond=uncond
        )
        assert_near(predict(x, schedule(7)).eps, x, rtol=1e-12)


def test_network_predictor_calls_the_network_at_the_levels_timestep():
    """Without uncond there is no guidance, whatever the number."""
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    network, x, here = SmoothDenoiser("v_prediction"), noise(3, 2), schedule(f64(123.25))
    predict = network_predictor(network, schedule, prediction_type="v_prediction", guidance=2.0)
    ours = predict(x, here)
    [(seen, t, cond, _)] = network.calls
    assert torch.equal(seen, x)
    assert_near(t, [123.25] * 3, rtol=1e-12)
    assert cond is None
    v = network(x, f64(123.25))
    assert_near(ours.x0, here.alpha * x - here.sigma * v, rtol=1e-10, atol=1e-12)


class Attending:
    """A network whose every output depends on its own sample, timestep and condition alone."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, x, t, cond):
        self.calls.append((x, t, cond))
        drive = cond.mean(tuple(range(1, cond.ndim))) if cond.ndim else cond
        wave = torch.cos(t / 200) + drive * (1 + t / 500)
        return torch.sin(x) * column(wave.expand(len(x)), x)


@pytest.mark.parametrize(
    ("cond", "uncond", "calls"),
    [
        (noise(3, 5, 6, seed=1), noise(3, 5, 6, seed=2), 1),
        (noise(3, 5, seed=1), noise(3, 4, seed=2), 2),  # prompts of other lengths
        (noise(3, 5, seed=1), noise(1, 5, seed=2), 2),
        (noise(1, 5, seed=1), noise(1, 5, seed=2), 2),  # one condition for the whole batch
        (f64(0.3), f64(-0.1), 2),
    ],
    ids=["one call", "lengths", "one uncond", "one each", "numbers"],
)
def test_network_predictor_guides(cond, uncond, calls):
    """Conditions of one shape, one for each sample: half of the calls, and the same numbers."""
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    network, x, kind = Attending(), noise(3, 2, 4), "v_prediction"
    predict = network_predictor(
        network, schedule, prediction_type=kind, cond=cond, uncond=uncond, guidance=2.5
    )
    for here in (schedule(f64(123.25)), schedule(f64([3.5, 499.0, 998.25]))):
        network.calls.clear()
        ours = predict(x, here)
        seen, times, given = zip(*network.calls, strict=True)
        assert len(seen) == calls
        t = schedule.timestep(here).expand(3)
        assert torch.equal(torch.cat(seen), torch.cat([x, x]))
        assert_near(torch.cat(times), torch.cat([t, t]), rtol=1e-12)
        if calls == 1:
            assert torch.equal(given[0], torch.cat([cond, uncond]))
        else:
            assert given[0] is cond
            assert given[1] is uncond
        one, other = (to_prediction(network(x, t, c), x, here, kind) for c in (cond, uncond))
        expected = guided_prediction(one, other, 2.5)
        assert_near(ours.x0, expected.x0, rtol=1e-11, atol=1e-11)
        assert_near(ours.eps, expected.eps, rtol=1e-11, atol=1e-11)


def test_network_predictor_takes_levels_of_any_scale():
    """The network hears of the same point at its own scale, whatever the solver's is."""
    schedule = NoiseSchedule.stable_diffusion(torch.float64)
    here = schedule(f64([3.5, 499.0, 998.25]))
    scale = f64([0.3, 2.0, 7.0])
    x = noise(3, 2)
    networks = SmoothDenoiser(), SmoothDenoiser()
    one, other = (network_predictor(net, schedule) for net in networks)
    expected = one(x, here)
    scaled = Level(scale * here.alpha, scale * here.sigma)
    ours = other(column(scale, x) * x, scaled)
    assert_near(ours.x0, expected.x0, rtol=1e-9, atol=1e-12)
    assert_near(ours.eps, expected.eps, rtol=1e-9, atol=1e-12)
    assert_near(networks[1].calls[0][0], x, rtol=1e-9)
    assert_near(networks[1].calls[0][1], [3.5, 499.0, 998.25])


# -------------------------------------------------------------------- wrong input

X = torch.zeros(2, 3)
ONE = level(0.8, 0.6, torch.float32)
PAIR = Prediction(X, X)


def per_sample(*shape, device=None):
    return Level(torch.ones(shape, device=device), torch.ones(shape, device=device))


WRONG = [
    (lambda: add_noise(X[0], X[0], ONE), r"x0 has shape \(3,\); allowed.*rank"),
    (lambda: add_noise(X, X[:, :2], ONE), r"noise has shape \(2, 2\); allowed.*\(2, 3\)"),
    (lambda: add_noise(X, X, level(0.8, 0.6)), r"level has dtype torch.float64 but .*float32"),
    (lambda: add_noise(X, X, per_sample(device="meta")), r"level is on meta but .* on cpu"),
    (lambda: add_noise(X, X, per_sample(3)), r"level has 3 values, the samples .* \(2, 3\); "),
    (lambda: add_noise(X, X, per_sample(2, 1)), r"level has shape \(2, 1\); allowed: \(\) or"),
    (lambda: to_prediction(X, X, ONE, "v"), r"prediction_type is 'v'; allowed: 'epsilon'"),
    (lambda: to_prediction(X[:, :2], X, ONE), r"output has shape \(2, 2\); .*\(2, 3\)"),
    (lambda: to_prediction(X, X, per_sample(3)), r"level has 3 values"),
    (lambda: to_output(PAIR, ONE, "x0"), r"prediction_type is 'x0'; allowed"),
    (lambda: to_output(PAIR, per_sample(3), "v_prediction"), r"level has 3 values"),
    (lambda: guided_prediction(PAIR, PAIR, -1.0), r"guidance is -1.0; allowed: .*>= 0"),
    (lambda: guided_prediction(PAIR, PAIR, math.nan), r"guidance is nan; allowed"),
    (lambda: guided_prediction(PAIR, PAIR, math.inf), r"guidance is inf; allowed"),
    (lambda: network_predictor(None, None, prediction_type="flow"), r"n_type is 'flow'; allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

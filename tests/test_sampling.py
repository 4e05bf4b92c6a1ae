"""Samplers against diffusers' schedulers, step for step.

In float32 the samples agree to 1e-6 in absolute value, with inputs and data of order one (on the
way, where values are larger, to 2e-6). A formula that is a little wrong could hide in that, so
each comparison is made in float64 as well, with diffusers' schedulers brought to float64 (their
tables, and DPM-Solver's own rounding of samples): there the two agree to 1e-12.
"""

from unittest import mock

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler
from diffusers.schedulers import scheduling_dpmsolver_multistep

from slam_edu import (
    NoiseSchedule,
    consistency_timesteps,
    last,
    sample_consistency,
    sample_ddim,
    sample_dpmpp_2m,
    sample_pf_ode,
    spaced_timesteps,
)
from slam_edu.solver import METHODS
from tests.helpers import (
    KINDS,
    SD,
    SmoothDenoiser,
    assert_near,
    f64,
    max_error,
    noise,
    of_order_one,
    on_devices,
)

F32, F64 = torch.float32, torch.float64
both = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
SHAPE = (4, 4, 4, 4)

# diffusers' DPM-Solver hands torch tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def ddim(kind: str, spacing: str = "trailing") -> DDIMScheduler:
    return DDIMScheduler(
        **SD, prediction_type=kind, clip_sample=False, timestep_spacing=spacing,
        steps_offset=int(spacing == "leading"),
    )  # fmt: skip


def dpm(kind: str, order: int = 2) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        **SD, prediction_type=kind, algorithm_type="dpmsolver++", solver_order=order,
        solver_type="midpoint", final_sigmas_type="zero", timestep_spacing="trailing",
    )  # fmt: skip


def prepare(scheduler, dtype, **timesteps) -> NoiseSchedule:
    """Set the timesteps, and in float64 diffusers' tables. Returns our schedule."""
    abar = scheduler.alphas_cumprod
    scheduler.set_timesteps(**timesteps)
    if dtype == F64:
        abar = scheduler.alphas_cumprod = abar.double()
        if isinstance(scheduler, DPMSolverMultistepScheduler):
            sigmas = ((1 - abar) / abar).sqrt()[scheduler.timesteps]
            scheduler.sigmas = torch.cat([sigmas, f64([0.0])])
    return NoiseSchedule.from_scheduler(scheduler, dtype)


class TorchWithoutFloat32:
    """``torch``, but for the ``sample.to(torch.float32)`` in DPM-Solver's step."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def diffusers_sample(scheduler, network, x, guided=None, **options):
    """The loop of a pipeline: network, guidance on its raw outputs, scheduler."""
    states = [x]
    for t in scheduler.timesteps.tolist():
        output = network(x, t)
        if guided is not None:
            cond, uncond, scale = guided
            output_u = network(x, t, uncond)
            output = output_u + scale * (network(x, t, cond) - output_u)
        hidden = TorchWithoutFloat32() if x.dtype == F64 else torch
        with mock.patch.object(scheduling_dpmsolver_multistep, "torch", hidden):
            x = scheduler.step(output, t, x, **options).prev_sample
        states.append(x)
    return states


def assert_same_path(ours, theirs) -> None:
    """Every state, and the finished sample more strictly."""
    ours = [state.x for state in ours]
    assert {x.dtype for x in ours} == {ours[0].dtype}
    errors = [max_error(x, y) for x, y in zip(ours, theirs, strict=True)]
    assert max(errors) <= (1e-12 if ours[0].dtype == F64 else 2e-6)
    assert errors[-1] <= (1e-12 if ours[0].dtype == F64 else 1e-6)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spaced_timesteps_are_diffusers(spacing):
    schedule = NoiseSchedule.stable_diffusion()
    offset = 1 if spacing == "leading" else 0
    scheduler = ddim("epsilon", spacing)
    for steps in (*range(1, 51), 333, 999 if offset else 1000):
        scheduler.set_timesteps(steps)
        ours = spaced_timesteps(steps, schedule, spacing, steps_offset=offset)
        assert ours.tolist() == scheduler.timesteps.tolist()
        assert ours.dtype == torch.int64


@pytest.mark.parametrize("subpaths", [10, 50, 100])
def test_consistency_timesteps_are_diffusers(subpaths):
    schedule, scheduler = NoiseSchedule.stable_diffusion(), LCMScheduler(**SD)
    for steps in range(1, min(subpaths, 50) + 1):
        scheduler.set_timesteps(steps, original_inference_steps=subpaths)
        ours = consistency_timesteps(steps, schedule, subpaths)
        assert ours.tolist() == scheduler.timesteps.tolist()


def test_spacings_defaults():
    schedule = NoiseSchedule.stable_diffusion()
    assert spaced_timesteps(4, schedule).tolist() == [999, 749, 499, 249]
    assert spaced_timesteps(4, schedule, "leading").tolist() == [750, 500, 250, 0]
    assert spaced_timesteps(4, schedule.to("meta")).device.type == "meta"


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 1), ("trailing", 20), ("leading", 4)])
def test_ddim_is_diffusers(spacing, steps, kind, dtype):
    scheduler, network = ddim(kind, spacing), SmoothDenoiser(kind)
    schedule = prepare(scheduler, dtype, num_inference_steps=steps)
    x = of_order_one(*SHAPE, dtype=dtype)
    theirs = diffusers_sample(scheduler, network, x)
    offset = int(spacing == "leading")
    ours = sample_ddim(
        network, x, schedule, steps, prediction_type=kind, spacing=spacing, steps_offset=offset
    )
    assert_same_path(ours, theirs)


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 1), ("linspace", 4), ("trailing", 7)])
def test_ddim_walks_through_its_own_timesteps(spacing, steps):
    """Where diffusers' DDIM does not: it steps to ``t - T // n``, whatever the next timestep is.

    The two are the same for "leading", and for "trailing" when n divides T. Otherwise the oracle
    is diffusers' DPM-Solver++ of order 1, which is DDIM along a given list of timesteps.
    """
    timesteps = spaced_timesteps(steps, NoiseSchedule.stable_diffusion(), spacing).tolist()
    scheduler, network = dpm("epsilon", order=1), SmoothDenoiser()
    schedule = prepare(scheduler, F64, timesteps=timesteps)
    x = of_order_one(*SHAPE)
    theirs = diffusers_sample(scheduler, network, x)
    ours = sample_ddim(network, x, schedule, steps, spacing=spacing)
    assert_same_path(ours, theirs)


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_dpmpp_2m_is_diffusers(steps, kind, dtype):
    scheduler, network = dpm(kind), SmoothDenoiser(kind)
    schedule = prepare(scheduler, dtype, num_inference_steps=steps)
    x = of_order_one(*SHAPE, dtype=dtype)
    theirs = diffusers_sample(scheduler, network, x)
    ours = sample_dpmpp_2m(network, x, schedule, steps, prediction_type=kind)
    assert_same_path(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m"])
def test_guided_sampling_is_the_pipelines(method, kind):
    """guidance_scale 3 is w = 2; predictions are combined here, raw outputs there."""
    network, dtype = SmoothDenoiser(kind), F64
    x = of_order_one(*SHAPE)
    cond, uncond = 0.05 * x.new_ones(()), -0.05 * x.new_ones(())
    scheduler = (ddim if method == "ddim" else dpm)(kind)
    schedule = prepare(scheduler, dtype, num_inference_steps=4)
    theirs = diffusers_sample(scheduler, network, x, (cond, uncond, 3.0))
    options = {"method": method, "prediction_type": kind, "cond": cond}
    ours = list(sample_pf_ode(network, x, schedule, 4, uncond=uncond, guidance=2.0, **options))
    assert_same_path(ours, theirs)
    unguided = last(sample_pf_ode(network, x, schedule, 4, **options))
    assert max_error(ours[-1].x, unguided) > 1e-3


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 8])
def test_consistency_sampling_is_diffusers_lcm(steps, kind, dtype):
    scheduler, network = LCMScheduler(**SD, prediction_type=kind), SmoothDenoiser(kind)
    schedule = prepare(scheduler, dtype, num_inference_steps=steps, original_inference_steps=50)
    x = of_order_one(*SHAPE, dtype=dtype)
    generator = torch.Generator()
    theirs = diffusers_sample(scheduler, network, x, generator=generator.manual_seed(5))
    generator.manual_seed(5)
    ours = sample_consistency(
        network, x, schedule, steps, generator=generator, prediction_type=kind, subpaths=50
    )
    assert_same_path(ours, theirs)


def test_consistency_sampling_on_another_grid():
    scheduler, network = LCMScheduler(**SD, timestep_scaling=0.01), SmoothDenoiser()
    schedule = prepare(scheduler, F64, num_inference_steps=4, original_inference_steps=10)
    x, generator = of_order_one(*SHAPE), torch.Generator()
    theirs = diffusers_sample(scheduler, network, x, generator=generator.manual_seed(5))
    generator.manual_seed(5)
    options = {"generator": generator, "subpaths": 10, "timestep_scaling": 0.01}
    ours = last(sample_consistency(network, x, schedule, 4, **options))
    assert max_error(ours, theirs[-1]) <= 1e-12


def test_level_conditioned_consistency_sampling():
    """At gamma = 1 both conditionings ask the same question; only the form differs."""
    schedule, x, cond = NoiseSchedule.stable_diffusion(F64), of_order_one(*SHAPE), f64(0.2)
    ends = []
    for conditioning in ("gamma", "level"):
        network, generator = SmoothDenoiser(), torch.Generator().manual_seed(5)
        states = sample_consistency(
            network, x, schedule, 4, generator=generator, conditioning=conditioning, cond=cond
        )
        ends.append(last(states))
        for _, _, given, gamma in network.calls:
            assert given is cond
            assert (gamma is None) == (conditioning == "level")
    assert torch.equal(*ends)


def test_fresh_noise_comes_from_the_generator_alone():
    schedule, x, network = NoiseSchedule.stable_diffusion(F64), noise(4, 2), SmoothDenoiser()

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return last(sample_consistency(network, x, schedule, 4, generator=generator))

    before = torch.get_rng_state()
    first = run(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)
    # One step draws nothing.
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    last(sample_consistency(network, x, schedule, 1, generator=generator))
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_states_of_a_sampler(method):
    schedule, x, network = NoiseSchedule.stable_diffusion(F64), noise(3, 2), SmoothDenoiser()
    before = x.clone()
    states = list(sample_pf_ode(network, x, schedule, 4, method=method))
    assert [state.index for state in states] == [0, 1, 2, 3, 4]
    assert [state.t for state in states] == [999, 749, 499, 249, None]
    assert torch.equal(states[0].x, before)
    assert states[0].x0 is None
    assert_near(states[-1].x, states[-1].x0, rtol=1e-12)
    calls = {"ddim": 4, "dpmpp_2m": 4, "heun": 7, "rk4": 13}
    assert len(network.calls) == calls[method]


def test_states_of_consistency_sampling():
    schedule, x, network = NoiseSchedule.stable_diffusion(F64), noise(3, 2), SmoothDenoiser()
    before = x.clone()
    generator = torch.Generator().manual_seed(0)
    states = list(sample_consistency(network, x, schedule, 4, generator=generator))
    assert [state.index for state in states] == [0, 1, 2, 3, 4]
    assert [state.t for state in states] == [999, 749, 499, 249, None]
    assert torch.equal(states[0].x, before)
    assert states[0].x0 is None
    assert torch.equal(states[-1].x, states[-1].x0)


def test_a_samplers_defaults():
    schedule, x, network = NoiseSchedule.stable_diffusion(F64), noise(3, 2), SmoothDenoiser()
    plain = last(sample_ddim(network, x, schedule, 3, cond=0.5))
    assert torch.equal(last(sample_pf_ode(network, x, schedule, 3, cond=0.5)), plain)
    assert torch.equal(last(sample_ddim(network, x, schedule, 3, cond=0.5, uncond=-1.0)), plain)
    states = list(sample_ddim(network, x, schedule, 2, spacing="leading"))
    assert [state.t for state in states] == [500, 0, None]
    assert network.calls[-1][2] is None


def test_consistency_sampling_has_the_scalings_of_its_distillation():
    schedule, x, network = NoiseSchedule.stable_diffusion(F64), noise(3, 2), SmoothDenoiser()
    options = {"sigma_data": 0.7, "timestep_scaling": 1e-3, "generator": torch.Generator()}
    ours = last(sample_consistency(network, x, schedule, 1, **options))
    level, tau2 = schedule(999), 0.999**2
    x0 = (x - level.sigma * network(x, 999)) / level.alpha
    expected = 0.49 / (tau2 + 0.49) * x + (tau2 / (tau2 + 0.49)) ** 0.5 * x0
    assert_near(ours, expected, rtol=1e-10, atol=1e-12)


def test_samplers_are_lazy_and_last_wants_a_fresh_one():
    schedule, network = NoiseSchedule.stable_diffusion(F64), SmoothDenoiser()
    states = sample_ddim(network, noise(2, 2), schedule, 3)
    assert network.calls == []
    next(states)
    assert network.calls == []
    next(states)
    assert len(network.calls) == 1
    last(states)
    with pytest.raises(ValueError, match="no states left; allowed: a sampler that was not used"):
        last(states)


@on_devices
@pytest.mark.parametrize("method", [*METHODS, "consistency"])
def test_samplers_on_devices(device, method):
    schedule, network = NoiseSchedule.stable_diffusion().to(device), SmoothDenoiser()
    x = of_order_one(3, 4, 8, 8, dtype=F32).to(device)
    if method == "consistency":
        generator = torch.Generator(device).manual_seed(0)
        end = last(sample_consistency(network, x, schedule, 4, generator=generator))
    else:
        end = last(sample_pf_ode(network, x, schedule, 5, method=method))
    assert end.device.type == device
    assert end.dtype == F32
    assert bool(end.isfinite().all())


# -------------------------------------------------------------------- wrong input


SCHEDULE, X, NET = NoiseSchedule.stable_diffusion(), torch.zeros(2, 2), SmoothDenoiser()


def consistency(x=X, steps=4, **options):
    options = {"generator": torch.Generator(), **options}
    return sample_consistency(NET, x, SCHEDULE, steps, **options)


WRONG = [
    (lambda: spaced_timesteps(0, SCHEDULE), r"steps is 0; allowed: an integer from 1 to 1000"),
    (lambda: spaced_timesteps(4, SCHEDULE, "karras"), r"spacing is 'karras'; allowed: 'trailing'"),
    (lambda: sample_ddim(NET, X, SCHEDULE, 1000, spacing="leading", steps_offset=1),
     r"t is 1000; allowed: 0 <= t <= 999"),
    (lambda: consistency_timesteps(21, SCHEDULE), r"steps is 21; .* from 1 to 20"),
    (lambda: consistency_timesteps(4, SCHEDULE, 30), r"30, which does not divide the 1000"),
    (lambda: sample_pf_ode(NET, X, SCHEDULE, 4, method="euler"), r"method is 'euler'; allowed"),
    (lambda: sample_ddim(NET, X, SCHEDULE, 4, prediction_type="v"), r"is 'v'; allowed: 'eps"),
    (lambda: sample_ddim(NET, X[0], SCHEDULE, 4), r"x has shape \(2,\); allowed: .*rank 2"),
    (lambda: sample_ddim(NET, X.double(), SCHEDULE, 4), r"torch\.float32 .*torch\.float64"),
    (lambda: consistency(conditioning="snr"), r"conditioning is 'snr'; allowed: 'gamma', 'lev"),
    (lambda: consistency(prediction_type="v"), r"prediction_type is 'v'; allowed: 'epsilon'"),
    (lambda: consistency(X[0]), r"x has shape \(2,\); allowed: .*rank 2"),
    (lambda: consistency(X / 0), r"x holds 4 NaN or Inf of 4 values; allowed: finite"),
    (lambda: consistency(X.double()), r"torch\.float32 but the samples have torch\.float64"),
    (lambda: consistency(X.to("meta")), r"the schedule is on cpu but the samples are on meta"),
    (lambda: sample_consistency(NET, X.to("meta"), NoiseSchedule.stable_diffusion().to("meta"), 1,
                                generator=torch.Generator()), r"is on cpu but x is on meta"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_input(call, message):
    """Refused when the sampler is made, before it is advanced."""
    with pytest.raises(ValueError, match=message):
        call()

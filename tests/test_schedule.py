"""Levels, schedules and the grid of sub-paths."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from slam_edu import Level, NoiseSchedule
from tests.helpers import SD, assert_near, f64, noise, on_devices, properties, schedules


@pytest.fixture(scope="module")
def sd() -> NoiseSchedule:
    return NoiseSchedule.stable_diffusion(torch.float64)


@pytest.mark.parametrize("options", [SD, {"beta_schedule": "squaredcos_cap_v2"}])
def test_from_scheduler(options):
    scheduler = DDPMScheduler(**options)
    abar = scheduler.alphas_cumprod.double()
    exact = NoiseSchedule.from_scheduler(scheduler, torch.float64)
    assert_near(exact.alpha, abar.sqrt(), rtol=1e-14)
    assert_near(exact.sigma, (1 - abar).sqrt(), rtol=1e-14)
    learned = NoiseSchedule.from_alphas_cumprod(abar.clone().requires_grad_())
    assert not learned.alpha.requires_grad
    single = NoiseSchedule.from_scheduler(scheduler)
    assert single.dtype == torch.float32
    # Correctly rounded: half a unit in the last place.
    assert_near(single.alpha, exact.alpha, rtol=6e-8)
    assert_near(single.sigma, exact.sigma, rtol=6e-8)


def test_integer_timesteps_are_the_table(sd):
    t = torch.tensor([[0, 1, 499], [500, 998, 999]])
    level = sd(t)
    assert torch.equal(level.alpha, sd.alpha[t])
    assert torch.equal(level.sigma, sd.sigma[t])
    for other in (t.double(), t.float(), t.int(), t.short()):
        assert torch.equal(sd(other).alpha, level.alpha)
        assert torch.equal(sd(other).sigma, level.sigma)
    assert torch.equal(sd(torch.tensor([3], dtype=torch.uint8)).alpha, sd.alpha[3:4])


def test_numbers_as_timesteps(sd):
    assert sd(499).alpha.shape == ()
    assert torch.equal(sd(499).alpha, sd.alpha[499])
    # A Python float keeps the schedule's precision: 499.3 is not a float32.
    assert torch.equal(sd(499.3).alpha, sd(f64(499.3)).alpha)
    assert torch.equal(sd(np.float64(499.3)).alpha, sd(f64(499.3)).alpha)
    assert NoiseSchedule.stable_diffusion()(499.3).alpha.dtype == torch.float32


def test_between_timesteps_log_rho_is_linear_and_variance_is_preserved(sd):
    t = torch.linspace(0, 999, 4321, dtype=torch.float64)
    level, i = sd(t), t.floor().long().clamp(max=998)
    f = t - i
    log_rho = (1 - f) * sd.rho[i].log() + f * sd.rho[i + 1].log()
    assert_near(level.rho.log(), log_rho, rtol=1e-12, atol=1e-13)
    assert_near(level.norm, torch.ones_like(t), rtol=1e-14)
    assert bool((level.rho[1:] > level.rho[:-1]).all())


def test_between_timesteps_the_norm_is_linear(sd):
    norm = 1 + torch.linspace(0, 1, 1000, dtype=torch.float64) ** 2
    bent = NoiseSchedule(norm * sd.alpha, norm * sd.sigma)
    for t in (0.25, 400.5, 998.75):
        i = int(t)
        expected = norm[i] + (t - i) * (norm[i + 1] - norm[i])
        assert_near(bent(t).norm, expected, rtol=1e-12)
        assert_near(bent.rescale(noise(1, 2), sd(t))[1].norm, expected, rtol=1e-9)


@properties
@given(schedules(), st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_timestep_is_the_inverse(schedule, places):
    t = f64(places) * (len(schedule) - 1)
    assert_near(schedule.timestep(schedule(t)), t, rtol=1e-9, atol=1e-9)
    whole = torch.arange(len(schedule))
    assert torch.equal(schedule.timestep(schedule(whole)), whole.double())  # not a bit off


@properties
@given(schedules(), st.floats(0, 1), st.floats(0.1, 10))
def test_rescale(schedule, place, scale):
    t = f64([place * (len(schedule) - 1)])
    on_schedule = schedule(t)
    level = Level(scale * on_schedule.alpha, scale * on_schedule.sigma)
    x0, eps = noise(1, 3), noise(1, 3, seed=1)
    x, own, back = schedule.rescale(level.mix(x0, eps), level)
    for found in (back, schedule.timestep(level)):
        assert_near(found, t, rtol=1e-9, atol=1e-9)
    assert_near(own.alpha, on_schedule.alpha, rtol=1e-9)
    assert_near(own.sigma, on_schedule.sigma, rtol=1e-9)
    assert_near(x, own.alpha * x0 + own.sigma * eps, rtol=1e-9, atol=1e-12)


def test_a_level_at_either_end_survives_rounding(sd):
    for schedule in (sd, NoiseSchedule.stable_diffusion()):
        off = 8 * torch.finfo(schedule.dtype).eps
        for t, factor in itertools.product((0, 999), (1 - off, 1 + off)):
            moved = Level(schedule(t).alpha, schedule(t).sigma * factor)
            assert_near(schedule.timestep(moved), t, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"rho is 0\.0277.*allowed: 0\.0291"):
        sd.timestep(Level(sd(0).alpha, sd(0).sigma * 0.95))


def test_variance_exploding(sd):
    other = sd.variance_exploding()
    assert torch.equal(other.alpha, torch.ones(1000, dtype=torch.float64))
    assert_near(other.sigma, sd.rho, rtol=0)
    assert other.sigma.data_ptr() != sd.rho.data_ptr()  # loading one leaves the other alone
    t = f64([0.0, 17.3, 998.9])
    assert_near(other(t).rho, sd(t).rho, rtol=1e-12)


def test_an_index_of_a_small_integer_type_does_not_wrap_around(sd):
    t, s = sd.subpaths(50).ends(torch.tensor([49], dtype=torch.uint8))
    assert (t.item(), s.item()) == (999, 979)


@properties
@given(st.integers(2, 400), st.data())
def test_sub_paths_tile_any_schedule(steps, data):
    schedule = NoiseSchedule.from_alphas_cumprod(torch.linspace(0.999, 0.01, steps))
    n = data.draw(st.sampled_from([d for d in range(1, steps + 1) if steps % d == 0]))
    grid = schedule.subpaths(n)
    assert grid.k * n == steps
    assert grid.t[-1] == steps - 1
    assert grid.s[0] == 0
    assert torch.equal(grid.s[1:], grid.t[:-1])
    assert bool((grid.t[1:] - grid.s[1:] == grid.k).all())
    for one, other in zip(grid.ends(torch.arange(n)), (grid.t, grid.s), strict=True):
        assert torch.equal(one, other)


def test_level():
    level = Level(f64([0.8, 0.6]), f64([0.6, 1.2]))
    assert_near(level.rho, [0.75, 2.0])
    assert_near(level.norm, [1.0, math.sqrt(1.8)])
    circle = Level.from_rho(level.rho)
    assert_near(circle.norm, [1.0, 1.0])
    assert_near(circle.rho, level.rho)
    assert len(level) == 2
    assert level[1].sigma.item() == 1.2
    assert level[0]  # though of no length
    assert level[:0]
    clean = Level.clean(level.alpha)
    assert clean.alpha.tolist() == [1, 1]
    assert clean.sigma.tolist() == [0, 0]
    joined = Level.cat([level, clean[0]])
    assert joined.alpha.tolist() == [0.8, 0.6, 1.0]
    assert joined.sigma.tolist() == [0.6, 1.2, 0.0]


@on_devices
def test_a_schedule_moves_between_devices(device):
    schedule = NoiseSchedule.stable_diffusion().to(device)
    t = torch.tensor([0, 499, 999], device=device)
    level = schedule(t)
    assert level.alpha.device.type == device
    assert_near(level.alpha, NoiseSchedule.stable_diffusion().alpha[[0, 499, 999]], rtol=1e-6)
    assert_near(schedule.timestep(level), [0.0, 499.0, 999.0], rtol=0)
    assert_near(schedule.timestep(schedule(t / 3)), t / 3, rtol=1e-4, atol=1e-3)
    assert schedule.subpaths(50).t.device.type == device
    assert "timesteps=1000, rho=0.0292...14.6, dtype=torch.float32" in repr(schedule)


def test_a_schedule_is_saved_and_loaded(sd):
    other = NoiseSchedule.from_alphas_cumprod(torch.linspace(0.999, 0.01, 1000), torch.float64)
    other.load_state_dict(sd.state_dict())
    assert torch.equal(other.rho, sd.rho)
    assert_near(other.timestep(sd(torch.tensor([0, 999]))), [0.0, 999.0], rtol=0)


# -------------------------------------------------------------------- wrong input

META = torch.device("meta")
GOOD = torch.linspace(0.9, 0.1, 8, dtype=torch.float64)


def make(alpha, sigma=None):
    return NoiseSchedule(alpha, torch.sqrt(1 - alpha**2) if sigma is None else sigma)


def with_value(i, value):
    table = GOOD.clone()
    table[i] = value
    return table


def meta_level():
    return Level(torch.ones(2, device=META), torch.ones(2, device=META))


WRONG = [
    (lambda s: s(1000), r"t is 1000; allowed: 0 <= t <= 999"),
    (lambda s: s(torch.tensor([3, -1])), r"t is -1; allowed: 0 <= t <= 999"),
    (lambda s: s(999.5), r"t is 999\.5; allowed: 0 <= t <= 999"),
    (lambda s: s(torch.tensor([1.0, math.nan])), r"t is nan; allowed: 0 <= t <= 999"),
    (lambda s: s(torch.zeros(2, device=META)), r"t is on meta .*schedule is on cpu"),
    (lambda s: s.timestep(Level(f64([1.0]), f64([0.0]))), r"rho is 0; allowed: 0\.0291"),
    (lambda s: s.timestep(Level(f64([0.01]), f64([1.0]))), r"rho is 100; allowed: .*14\.6"),
    (lambda s: s.timestep(meta_level()), r"level is on meta .*schedule is on cpu"),
    (lambda s: s.rescale(noise(2, 2), s(torch.tensor([1, 2, 3]))), r"the level has 3 .*\(2, 2\)"),
    (lambda s: s.subpaths(0), r"sub-paths is 0; allowed: an integer from 1 to 1000"),
    (lambda s: s.subpaths(True), r"sub-paths is True; allowed: an integer"),
    (lambda s: s.subpaths(30), r"30, which does not divide the 1000.*1, 2, 4, .* 500, 1000$"),
    (lambda s: Level(f64([1.0]), f64([1.0, 2.0])), r"sigma has shape \(2,\); .*of alpha, \(1,\)"),
    (lambda s: make(GOOD.reshape(2, 4)), r"alpha has shape \(2, 4\); allowed: \(T,\)"),
    (lambda s: make(GOOD[:1]), r"alpha has shape \(1,\); allowed: \(T,\) with T >= 2"),
    (lambda s: make(GOOD, GOOD[:3]), r"sigma has shape \(3,\); allowed.*\(8,\)"),
    (lambda s: make(with_value(3, 0.0)), r"alpha\[3\] is 0; allowed: finite and greater"),
    (lambda s: make(GOOD, with_value(5, math.inf)), r"sigma\[5\] is inf; allowed: finite"),
    (lambda s: make(with_value(4, 0.9)), r"1\.49\d+ to 0\.484\d+ at timestep 4; all"),
    (lambda s: NoiseSchedule.from_alphas_cumprod(f64([0.9, 0.5, 0.0])),
     r"from 0 to 0\.9; allowed: shape \(T,\), every value between 0 and 1"),
    (lambda s: make(with_value(4, GOOD[3])), r"at timestep 4; allowed: increasing"),
    (lambda s: NoiseSchedule.from_alphas_cumprod(f64([[0.9, 0.5]])), r"has shape \(1, 2\)"),
    (lambda s: NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler()),
     r"FlowMatchEulerDiscreteScheduler has no alphas_cumprod; allowed"),
    (lambda s: NoiseSchedule.from_scheduler(DDIMScheduler(rescale_betas_zero_snr=True)),
     r"alphas_cumprod .*values from 0 to .*both excluded"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_input(sd, call, message):
    with pytest.raises(ValueError, match=message):
        call(sd)

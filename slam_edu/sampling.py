r"""Sampling: from noise to data with a diffusion model or with a distilled student.

Every sampler is a generator of :class:`SampleState`, from the initial noise to the finished
sample, so a notebook can draw the whole path and a script can take the last state (:func:`last`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slam_edu._validation import (
    check_choice,
    check_count,
    check_generator,
    check_per_sample,
    check_samples,
)
from slam_edu.consistency import CONDITIONINGS, ConsistencyFunction
from slam_edu.prediction import PREDICTION_TYPES, network_predictor
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.solver import solve_pf_ode

Network = Callable[..., Tensor]
SPACINGS = ("trailing", "leading", "linspace")


@dataclass(frozen=True)
class SampleState:
    """Samples ``x`` ``(B, *)`` after ``index`` steps of a sampler.

    ``t`` is the next timestep to be used, None when the sample is finished; ``x0`` the latest
    predicted clean samples, None before the first step.
    """

    index: int
    t: int | None
    x: Tensor
    x0: Tensor | None


def last(states: Iterator[SampleState]) -> Tensor:
    """Run a sampler to its end and return the finished samples."""
    final = deque(states, maxlen=1)
    if not final:
        raise ValueError(
            "the sampler has no states left; allowed: a sampler that was not used before"
        )
    return final[0].x


def spaced_timesteps(
    steps: int, schedule: NoiseSchedule, spacing: str = "trailing", steps_offset: int = 0
) -> Tensor:
    """``steps`` integer timesteps from noisy to clean, as diffusers spaces them.

    - ``"trailing"``: starts at T-1, the noisiest; ``round(T, T - T/n, ...) - 1``.
    - ``"leading"``: ``(0, T//n, 2(T//n), ...) + steps_offset``, reversed; the first is not T-1.
    - ``"linspace"``: evenly from T-1 to 0, both included.

    Source: Lin et al. 2024, table 2; diffusers ``timestep_spacing``.
    """
    check_choice(spacing, SPACINGS, "spacing")
    check_count(steps, "steps", high=len(schedule))
    total = len(schedule)
    if spacing == "trailing":
        t = np.round(np.arange(total, 0, -total / steps))[:steps] - 1
    elif spacing == "leading":
        t = (np.arange(steps) * (total // steps))[::-1] + steps_offset
    else:
        t = np.linspace(0, total - 1, steps).round()[::-1]
    return torch.as_tensor(t.astype(np.int64), device=schedule.device)


def consistency_timesteps(steps: int, schedule: NoiseSchedule, subpaths: int = 20) -> Tensor:
    """``steps`` of the noisy ends of the ``subpaths`` grid, from T-1 down, evenly by index.

    For Stable Diffusion and N = 50: 1 [999]; 2 [999, 499]; 4 [999, 759, 499, 259].
    Source: diffusers ``LCMScheduler.set_timesteps``.
    """
    grid = schedule.subpaths(subpaths)
    check_count(steps, "steps", high=subpaths)
    index = np.floor(np.linspace(0, subpaths, num=steps, endpoint=False)).astype(np.int64)
    return grid.t.flip(0)[torch.as_tensor(index, device=schedule.device)]


def sample_ddim(
    network: Network, x: Tensor, schedule: NoiseSchedule, steps: int, **options: object
) -> Iterator[SampleState]:
    """:func:`sample_pf_ode` with DDIM (eta = 0), one network evaluation a step; order 1.

    Every step goes to the next timestep of the list. diffusers' ``DDIMScheduler`` goes to ``t - T
    // n``, which is the same for ``"leading"``, and for ``"trailing"`` when n divides T.
    """
    return sample_pf_ode(network, x, schedule, steps, method="ddim", **options)


def sample_dpmpp_2m(
    network: Network, x: Tensor, schedule: NoiseSchedule, steps: int, **options: object
) -> Iterator[SampleState]:
    """:func:`sample_pf_ode` with DPM-Solver++(2M), one network evaluation a step; order 2.

    diffusers' ``DPMSolverMultistepScheduler`` with ``solver_type="midpoint"``,
    ``final_sigmas_type="zero"`` and ``timestep_spacing="trailing"``.
    """
    return sample_pf_ode(network, x, schedule, steps, method="dpmpp_2m", **options)


def sample_pf_ode(
    network: Network,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    method: str = "ddim",
    prediction_type: str = "epsilon",
    cond: object | None = None,
    uncond: object | None = None,
    guidance: float = 0.0,
    spacing: str = "trailing",
    steps_offset: int = 0,
) -> Iterator[SampleState]:
    r"""Sample by following the PF-ODE through ``steps`` timesteps, then to the clean level (1, 0).

    ``network(x, t, cond)`` returns its raw output, of ``prediction_type``, for t of shape
    ``(B,)``; x is the initial noise ``(B, *)``, standard normal for a variance-preserving
    schedule. With ``uncond`` it is guided by :math:`w` = ``guidance`` (diffusers'
    ``guidance_scale`` less 1). ``method`` is one of :data:`slam_edu.solver.METHODS` (``"heun"``
    evaluates twice in all steps but the last); the timesteps are :func:`spaced_timesteps`'s.
    Yields ``steps + 1`` states.
    """
    t = spaced_timesteps(steps, schedule, spacing, steps_offset)
    levels = schedule(t)
    levels = Level.cat([levels, Level.clean(levels.alpha[:1])])
    predictor = network_predictor(
        network, schedule, prediction_type=prediction_type, cond=cond, uncond=uncond,
        guidance=guidance,
    )  # fmt: skip
    states = solve_pf_ode(predictor, x, levels, method)
    following = [*t.tolist(), None]
    return (
        SampleState(
            state.index, following[state.index], state.x, state.prediction and state.prediction.x0
        )
        for state in states
    )


def sample_consistency(
    student: Network,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    generator: torch.Generator,
    subpaths: int = 20,
    conditioning: str = "level",
    prediction_type: str = "epsilon",
    cond: object | None = None,
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
) -> Iterator[SampleState]:
    r"""Multistep consistency sampling: jump to :math:`\hat x_0`, add fresh noise, jump again.

    At each timestep t of :func:`consistency_timesteps`, :math:`f(x, t)` is the student's clean
    sample (at :math:`\gamma = 1`); it is noised to the next timestep with fresh noise. The last
    :math:`f(x, t)` is the sample. Yields ``steps + 1`` states. Source: Song et al. 2023, algorithm
    1; diffusers ``LCMScheduler``.

    The student is called as :class:`slam_edu.consistency.ConsistencyFunction` does; ``subpaths``,
    ``conditioning`` and the boundary scalings are those of its distillation. The initial noise x
    has shape ``(B, *)``; the fresh noise comes from ``generator``, on x's device.
    """
    check_choice(conditioning, CONDITIONINGS, "conditioning")
    check_choice(prediction_type, PREDICTION_TYPES, "prediction_type")
    check_per_sample(schedule.alpha[0], x, "the schedule")
    check_samples(x, "x")
    check_generator(generator, x, "x")
    timesteps = consistency_timesteps(steps, schedule, subpaths)
    f = ConsistencyFunction(
        schedule=schedule, conditioning=conditioning, prediction_type=prediction_type,
        sigma_data=sigma_data, timestep_scaling=timestep_scaling,
    )  # fmt: skip

    def states(x: Tensor) -> Iterator[SampleState]:
        following, levels = [*timesteps.tolist(), None], schedule.at(timesteps)
        yield SampleState(0, following[0], x, None)
        for i in range(steps):
            t = timesteps[i].expand(x.shape[0])
            x = x0 = f(student, x, t, levels[i], cond)
            if i + 1 < steps:
                noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                x = levels[i + 1].mix(x0, noise)
            yield SampleState(i + 1, following[i + 1], x, x0)

    return states(x)

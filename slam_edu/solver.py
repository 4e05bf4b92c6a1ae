r"""Solvers of the probability-flow ODE, as steps from one level to the next.

With :math:`z = x/\alpha` and :math:`\rho = \sigma/\alpha` the PF-ODE loses every coefficient,

.. math:: \frac{\mathrm dz}{\mathrm d\rho} = \epsilon(x, t),

so that DDIM is the Euler step, and Heun, Runge-Kutta and multistep methods follow without a
derivative of the schedule (Song, Meng and Ermon 2021, eq. 14; Karras et al. 2022, eq. 4 with s(t)
= alpha).

A solver takes a ``predictor(x, level) -> Prediction`` and a sequence of levels, noisy to clean.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slam_edu._validation import check_choice, check_per_sample, check_samples
from slam_edu.prediction import Prediction, Predictor
from slam_edu.schedule import Level, expand


@dataclass(frozen=True)
class PFODEState:
    """Samples ``x`` ``(B, *)`` at ``level`` ``()``, after ``index`` steps of a solver.

    ``prediction`` is that of the start of the step that led here, None at index 0.
    """

    index: int
    level: Level
    x: Tensor
    prediction: Prediction | None


def ddim_step(prediction: Prediction, level_s: Level) -> Tensor:
    r"""One DDIM step (eta = 0): :math:`x_s = \alpha_s \hat x_0 + \sigma_s \hat\epsilon`.

    In :math:`(z, \rho)` this is Euler: :math:`z_s = z_t + (\rho_s - \rho_t)\,\hat\epsilon`.
    ``prediction`` is the denoiser's at the step's start; ``level_s``, of shape ``(B,)`` or ``()``,
    its end. Source: Song, Meng and Ermon 2021, eq. 12; official script, ``DDIMSolver.ddim_step``.
    """
    check_per_sample(level_s.alpha, prediction.x0, "level_s")
    return level_s.mix(prediction.x0, prediction.eps)


def heun_step(
    predictor: Predictor, x: Tensor, level: Level, level_s: Level
) -> tuple[Tensor, Prediction]:
    r"""One Heun step: :math:`z_s = z_t + (\rho_s - \rho_t)\,(\hat\epsilon_t + \hat\epsilon_s)/2`.

    :math:`\hat\epsilon_s` is predicted at the end of the Euler step. At :math:`\sigma_s = 0` no
    noise can be predicted, and the Euler step is returned. Two predictions a step, order 2.
    Returns the new sample and the prediction at the step's start. Source: Karras et al. 2022,
    algorithm 1.
    """
    prediction = predictor(x, level)
    euler = level_s.mix(prediction.x0, prediction.eps)
    if bool((level_s.sigma == 0).all()):
        return euler, prediction
    mean = (prediction.eps + predictor(euler, level_s).eps) / 2
    return _move(x, level, level_s, mean), prediction


def rk4_step(
    predictor: Predictor, x: Tensor, level: Level, level_s: Level
) -> tuple[Tensor, Prediction]:
    r"""One classical Runge-Kutta step of :math:`\mathrm dz/\mathrm d\rho = \epsilon`, order 4.

    The midpoint is the variance-preserving level with :math:`\rho = (\rho_t + \rho_s)/2`. Four
    predictions a step, for reference solutions; at :math:`\sigma_s = 0` it falls back to Euler.
    """
    prediction = predictor(x, level)
    if bool((level_s.sigma == 0).all()):
        return level_s.mix(prediction.x0, prediction.eps), prediction
    middle = Level.from_rho((level.rho + level_s.rho) / 2)
    k1 = prediction.eps
    k2 = predictor(_move(x, level, middle, k1), middle).eps
    k3 = predictor(_move(x, level, middle, k2), middle).eps
    k4 = predictor(_move(x, level, level_s, k3), level_s).eps
    return _move(x, level, level_s, (k1 + 2 * k2 + 2 * k3 + k4) / 6), prediction


def dpmpp_2m_step(
    prediction: Prediction,
    x: Tensor,
    level: Level,
    level_s: Level,
    previous: tuple[Prediction, Level] | None = None,
) -> Tensor:
    r"""One step of DPM-Solver++(2M), order 2 with one prediction a step.

    With :math:`\lambda = -\log\rho`, :math:`h = \lambda_s - \lambda_t`, and :math:`r =
    h_\text{previous}/h`:

    .. math::
        D = \hat x_0 + \tfrac{1}{2r}\,(\hat x_0 - \hat x_0^\text{previous}), \qquad
        z_s = \tfrac{\rho_s}{\rho_t}\, z_t + \big(1 - \tfrac{\rho_s}{\rho_t}\big) D.

    Without the ``previous`` step's prediction and level, or at :math:`\sigma_s = 0` where h is
    infinite, :math:`D = \hat x_0`, which is DDIM. Source: Lu et al. 2022 (DPM-Solver++), algorithm
    2; diffusers' ``DPMSolverMultistepScheduler`` with ``solver_type="midpoint"``.
    """
    direction = prediction.x0
    if previous is not None and not bool((level_s.sigma == 0).all()):
        earlier, level_before = previous
        h = (level.rho / level_s.rho).log()
        r = (level_before.rho / level.rho).log() / h
        direction = direction + expand(0.5 / r, x) * (prediction.x0 - earlier.x0)
    # In x: sigma_s/sigma_t = (alpha_s rho_s)/(alpha_t rho_t).
    keep = expand(level_s.sigma / level.sigma, x)
    return keep * x + expand(level_s.alpha * (1 - level_s.rho / level.rho), x) * direction


def _move(x: Tensor, level: Level, level_s: Level, eps: Tensor) -> Tensor:
    r"""Move along a given slope: :math:`z_s = z_t + (\rho_s - \rho_t)\,\epsilon`, written in x."""
    scale = expand(level_s.alpha / level.alpha, x)
    return scale * x + expand(level_s.alpha * (level_s.rho - level.rho), x) * eps


def _ddim(predictor: Predictor, x: Tensor, level: Level, level_s: Level, _: object):
    prediction = predictor(x, level)
    return level_s.mix(prediction.x0, prediction.eps), prediction


def _dpmpp_2m(predictor: Predictor, x: Tensor, level: Level, level_s: Level, previous: object):
    prediction = predictor(x, level)
    return dpmpp_2m_step(prediction, x, level, level_s, previous), prediction


METHODS: dict[str, Callable[..., tuple[Tensor, Prediction]]] = {
    "ddim": _ddim,
    "heun": lambda predictor, x, level, level_s, _: heun_step(predictor, x, level, level_s),
    "dpmpp_2m": _dpmpp_2m,
    "rk4": lambda predictor, x, level, level_s, _: rk4_step(predictor, x, level, level_s),
}
"""Solvers by name: ``(predictor, x, level, level_s, previous) -> (x_s, prediction)``."""


def solve_pf_ode(
    predictor: Predictor, x: Tensor, levels: Level, method: str = "ddim"
) -> Iterator[PFODEState]:
    """Follow the PF-ODE through a sequence of levels, one state at a time.

    A generator: the caller plots, stops or stores as it likes. The start is yielded too, so ``n +
    1`` levels give ``n + 1`` states.

    Args:
        predictor: ``predictor(x, level) -> Prediction``, for instance a mixture's exact one.
        x: samples at ``levels[0]``, shape ``(B, *)``.
        levels: levels from noisy to clean, shape ``(n + 1,)``; the last may be ``(1, 0)``.
        method: ``"ddim"`` (order 1), ``"heun"`` (2), ``"dpmpp_2m"`` (2), or ``"rk4"`` (4).

    Raises:
        ValueError: for an unknown method, levels that do not go from noisy to clean, or samples
            that are not finite or differ from the levels in dtype or device.
    """
    check_choice(method, METHODS, "method")
    if levels.alpha.ndim != 1 or len(levels) < 2:
        raise ValueError(
            f"levels have shape {tuple(levels.alpha.shape)}; allowed: (n,) with n >= 2"
        )
    check_per_sample(levels.alpha[0], x, "levels")
    check_samples(x, "x")
    rho = levels.rho.tolist()  # once a trajectory, so also from another device
    for i, (before, after) in enumerate(itertools.pairwise(rho)):
        if not after < before:
            raise ValueError(
                f"rho goes from {before:g} to {after:g} at levels {i} and {i + 1}; allowed: "
                f"decreasing, from noisy to clean"
            )
    step = METHODS[method]

    def states(x: Tensor) -> Iterator[PFODEState]:
        yield PFODEState(0, levels[0], x, None)
        previous = None
        for i in range(len(levels) - 1):
            level, level_s = levels[i], levels[i + 1]
            x, prediction = step(predictor, x, level, level_s, previous)
            previous = (prediction, level)
            yield PFODEState(i + 1, level_s, x, prediction)

    return states(x)


def pf_ode_trajectory(
    predictor: Predictor, x: Tensor, levels: Level, method: str = "ddim"
) -> Tensor:
    """All states of :func:`solve_pf_ode`, stacked: shape ``(n + 1, B, *)``."""
    return torch.stack([state.x for state in solve_pf_ode(predictor, x, levels, method)])

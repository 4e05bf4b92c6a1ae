r"""What a denoising network predicts, and the conversions between its forms.

At a level :math:`(\alpha, \sigma)`, the sample :math:`x = \alpha x_0 + \sigma\epsilon` and one
prediction determine the other. Under each ``prediction_type``, named as in diffusers, the network
returns one quantity, and the clean sample follows:

- ``"epsilon"``: :math:`\epsilon`, and :math:`x_0 = (x - \sigma\epsilon)/\alpha`
- ``"sample"``: :math:`x_0` itself
- ``"v_prediction"``: :math:`v = \alpha\epsilon - \sigma x_0`, and
  :math:`x_0 = (\alpha x - \sigma v)/(\alpha^2 + \sigma^2)`

The last formula is written for any level, because a point on a sub-path has
:math:`\alpha^2 + \sigma^2 \ne 1`; with :math:`\alpha^2 + \sigma^2 = 1` it is the usual one
(Salimans and Ho 2022, appendix D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slam_edu._validation import check_alike, check_choice, check_per_sample
from slam_edu.schedule import Level, NoiseSchedule, expand

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class Prediction:
    r"""A denoiser's :math:`\hat x_0` and :math:`\hat\epsilon`, of shape ``(B, *)``."""

    x0: Tensor
    eps: Tensor


Predictor = Callable[[Tensor, Level], Prediction]
"""A denoiser as solvers see it: ``predictor(x, level) -> Prediction``."""


def add_noise(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    r"""The forward process: :math:`x_t = \alpha x_0 + \sigma\epsilon`.

    Clean samples and standard normal noise have shape ``(B, *)`` and rank 2 or more, the level
    ``(B,)`` or ``()``.
    """
    if x0.ndim < 2:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; allowed: (B, *) with rank 2 or more")
    check_alike(noise, x0, "noise")
    check_per_sample(level.alpha, x0, "the level")
    return level.mix(x0, noise)


def to_prediction(
    output: Tensor, x: Tensor, level: Level, prediction_type: str = "epsilon"
) -> Prediction:
    r"""Read a network's raw output as ``(x0, eps)``; see the module's table.

    ``output`` is the network's at ``x``, both ``(B, *)``; ``level`` is that of ``x``, ``(B,)`` or
    ``()``. An output in another floating-point dtype (a network under autocast) is converted to
    ``x``'s, in which the algebra is done.
    """
    check_choice(prediction_type, PREDICTION_TYPES, "prediction_type")
    check_per_sample(level.alpha, x, "the level")
    return read_output(output, x, level, prediction_type)


def read_output(output: Tensor, x: Tensor, level: Level, prediction_type: str) -> Prediction:
    """:func:`to_prediction` that checks the output's shape alone."""
    if output.shape != x.shape:
        raise ValueError(
            f"the network's output has shape {tuple(output.shape)}; "
            f"allowed: its input's, {tuple(x.shape)}"
        )
    output = output.to(x.dtype)
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    if prediction_type == "epsilon":
        return Prediction(x0=(x - sigma * output) / alpha, eps=output)
    if prediction_type == "sample":
        return Prediction(x0=output, eps=(x - alpha * output) / sigma)
    norm2 = alpha**2 + sigma**2
    return Prediction(
        x0=(alpha * x - sigma * output) / norm2, eps=(alpha * output + sigma * x) / norm2
    )


def to_output(prediction: Prediction, level: Level, prediction_type: str = "epsilon") -> Tensor:
    r"""The raw output of a network of this type; the inverse of :func:`to_prediction`."""
    check_choice(prediction_type, PREDICTION_TYPES, "prediction_type")
    if prediction_type == "epsilon":
        return prediction.eps
    if prediction_type == "sample":
        return prediction.x0
    check_per_sample(level.alpha, prediction.x0, "the level")
    alpha, sigma = expand(level.alpha, prediction.x0), expand(level.sigma, prediction.x0)
    return alpha * prediction.eps - sigma * prediction.x0


def guided_prediction(cond: Prediction, uncond: Prediction, guidance: float) -> Prediction:
    r"""Classifier-free guidance: :math:`\epsilon = \epsilon_c + w\,(\epsilon_c - \epsilon_u)`.

    ``guidance`` is the paper's :math:`w \ge 0`; diffusers' ``guidance_scale`` is :math:`w + 1`.
    The same combination of :math:`\hat x_0` belongs to the same noise, because both are linear in
    it. Source: Ho and Salimans 2022, eq. 6.
    """
    if not 0 <= guidance < float("inf"):
        raise ValueError(f"guidance is {guidance}; allowed: a finite number >= 0")
    return Prediction(
        x0=cond.x0 + guidance * (cond.x0 - uncond.x0),
        eps=cond.eps + guidance * (cond.eps - uncond.eps),
    )


def network_predictor(
    network: Callable[..., Tensor],
    schedule: NoiseSchedule,
    *,
    prediction_type: str = "epsilon",
    cond: object | None = None,
    uncond: object | None = None,
    guidance: float = 0.0,
) -> Predictor:
    """Wrap ``network(x, t, cond)`` so that a solver, which knows levels alone, can call it.

    The network is called at the real-valued timestep of the level; with ``uncond`` it predicts
    twice and is guided: in one call for both where the conditions are tensors of one shape, as
    diffusers' pipelines do it, else in two.
    """
    check_choice(prediction_type, PREDICTION_TYPES, "prediction_type")
    both = None
    tensors = isinstance(cond, Tensor) and isinstance(uncond, Tensor)
    if tensors and cond.ndim and cond.shape == uncond.shape:
        both = torch.cat([cond, uncond])

    def predict(x: Tensor, level: Level) -> Prediction:
        # The network knows the schedule's own scale; the solver may be at another one.
        x, level, t = schedule.rescale(x, level)
        t = t.expand(x.shape[0])
        if uncond is None:
            return read_output(network(x, t, cond), x, level, prediction_type)
        if both is None or len(both) != 2 * len(x):  # one condition may serve the whole batch
            outputs = network(x, t, cond), network(x, t, uncond)
        else:
            outputs = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        prediction, other = (read_output(o, x, level, prediction_type) for o in outputs)
        return guided_prediction(prediction, other, guidance)

    return predict

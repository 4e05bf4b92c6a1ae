r"""A point on a sub-path: the straight chord between its two ends.

A sub-path runs from a noisy level :math:`t` to a clean level :math:`s`; :math:`a =
\alpha_t/\alpha_s < 1`. The paper interpolates, with :math:`\gamma \in [0, 1]` and a drift factor
:math:`a`,

.. math:: x_\gamma = \gamma\, x_t + (1 - \gamma)\, a\, x_s.

Divided by :math:`\alpha_t` this reads :math:`z_\gamma = \gamma z_t + (1-\gamma) z_s`: the straight
**chord** of the PF-ODE's trajectory in :math:`(z, \rho)`, and :math:`a` is nothing but the change
of coordinates. The sub-path linear ODE (SL-ODE) of the paper is this chord as an ODE in
:math:`\gamma`.

Source: Xu et al. 2024 (SPLAM, arXiv 2404.13903); official script, ``inter_input`` and
``predicted_origin_splam``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slam_edu._validation import (
    check_alike,
    check_between,
    check_choice,
    check_per_sample,
    check_samples,
)
from slam_edu.schedule import Level, expand

COUPLINGS = ("markov", "linear")


def interpolate(x_t: Tensor, x_s: Tensor, level_t: Level, level_s: Level, gamma: Tensor) -> Tensor:
    r"""The point :math:`\gamma x_t + (1-\gamma)\, a\, x_s`, with :math:`a = \alpha_t/\alpha_s`.

    :math:`\gamma = 1` gives :math:`x_t`; :math:`\gamma = 0` gives :math:`a\,x_s`, which has s's
    signal-to-noise ratio at t's signal coefficient.

    The samples have shape ``(B, *)``; their levels, and gamma in [0, 1], ``(B,)`` or ``()``. s is
    to be cleaner than t.
    """
    check_samples(x_t, "x_t")
    check_samples(x_s, "x_s", like=x_t)
    _check_ends(level_t, level_s)
    check_per_sample(level_t.alpha, x_t, "level_t")
    check_per_sample(gamma, x_t, "gamma")
    check_between(gamma, 0.0, 1.0, "gamma")
    return chord_point(x_t, x_s, level_t, level_s, gamma)


def chord_point(x_t: Tensor, x_s: Tensor, level_t: Level, level_s: Level, gamma: Tensor) -> Tensor:
    """:func:`interpolate`, unchecked."""
    g = expand(gamma, x_t)
    a = expand(level_t.alpha / level_s.alpha, x_t)
    return g * x_t + (1 - g) * a * x_s


def sub_level(level_t: Level, level_s: Level, gamma: Tensor, coupling: str = "markov") -> Level:
    r"""The level :math:`(\alpha_t, \sigma_\gamma)` of a sub-path point.

    How the noise in :math:`x_t` and :math:`x_s` belongs together decides :math:`\sigma_\gamma`:

    - ``"markov"`` (the official code): :math:`x_t` is drawn forward from :math:`x_s` with
      independent noise, so variances add, :math:`\sigma_\gamma^2 = (a\sigma_s)^2 +
      \gamma^2\,(\sigma_t^2 - a^2\sigma_s^2)`.
    - ``"linear"``: :math:`x_s` is a DDIM step from :math:`x_t`, so both hold the same noise,
      :math:`\sigma_\gamma = \gamma\,\sigma_t + (1-\gamma)\, a\,\sigma_s`. It is exact for the pair
      that distillation uses: :math:`\rho_\gamma = \gamma\rho_t + (1-\gamma)\rho_s`.

    They agree at both ends; between, the linear one is larger:
    :math:`\sigma_\text{linear}^2 - \sigma_\text{markov}^2 = 2\gamma(1-\gamma)\,a\sigma_s(\sigma_t
    - a\sigma_s)`.

    The levels of the noisy and the clean end have shape ``(B,)`` or ``()``; gamma in [0, 1]
    broadcasts with them.
    """
    check_choice(coupling, COUPLINGS, "coupling")
    _check_ends(level_t, level_s)
    if gamma.dtype != level_t.alpha.dtype or gamma.device != level_t.alpha.device:
        raise ValueError(
            f"gamma is {gamma.dtype} on {gamma.device}; allowed: that of the levels, "
            f"{level_t.alpha.dtype} on {level_t.alpha.device}"
        )
    check_between(gamma, 0.0, 1.0, "gamma")
    return chord_level(level_t, level_s, gamma, coupling)


def chord_level(level_t: Level, level_s: Level, gamma: Tensor, coupling: str) -> Level:
    """:func:`sub_level`, unchecked."""
    sigma_t, sigma_s = level_t.sigma, level_t.alpha / level_s.alpha * level_s.sigma  # a * sigma_s
    if coupling == "linear":
        sigma = gamma * sigma_t + (1 - gamma) * sigma_s
    else:
        sigma = (sigma_s**2 + gamma**2 * (sigma_t**2 - sigma_s**2)).sqrt()
    return Level(level_t.alpha.expand_as(sigma), sigma)


def chord(
    x_t: Tensor, x_s: Tensor, level_t: Level, level_s: Level, gammas: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The chord :math:`z_\gamma = \gamma z_t + (1-\gamma) z_s`, :math:`\rho_\gamma` alike.

    The samples have shape ``(B, *)``, the levels ``()``, and ``gammas`` ``(n,)``; returns ``z`` of
    shape ``(n, B, *)`` and ``rho`` of shape ``(n,)``.
    """
    z = [interpolate(x_t, x_s, level_t, level_s, gamma) / level_t.alpha for gamma in gammas]
    return torch.stack(z), gammas * level_t.rho + (1 - gammas) * level_s.rho


def _check_ends(level_t: Level, level_s: Level) -> None:
    check_alike(level_s.alpha, level_t.alpha, "level_s", "level_t")
    if level_t.alpha.device.type != "cpu":
        return
    cleaner = level_s.rho < level_t.rho
    if not bool(cleaner.all()):
        bad = (~cleaner).reshape(-1).nonzero()[0]
        rho_s, rho_t = level_s.rho.reshape(-1)[bad].item(), level_t.rho.reshape(-1)[bad].item()
        raise ValueError(
            f"the clean end has rho_s = {rho_s:g} and the noisy end rho_t = {rho_t:g}; "
            f"allowed: s < t, that is rho_s < rho_t"
        )

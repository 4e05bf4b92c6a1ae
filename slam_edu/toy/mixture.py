r"""Gaussian mixtures: data whose score, denoiser and density are known at every noise level.

For data :math:`x_0 \sim \sum_k w_k\, \mathcal N(\mu_k, s_k^2 I)`, the sample
:math:`x = \alpha x_0 + \sigma\epsilon` is again a mixture,

.. math::
    p(x) = \sum_k w_k\, \mathcal N(x;\ \alpha\mu_k,\ (\alpha^2 s_k^2 + \sigma^2) I),

so everything that a diffusion model has to learn is a formula here. In :math:`z = x/\alpha` and
:math:`\rho = \sigma/\alpha`, with :math:`v_k = s_k^2 + \rho^2` and the responsibilities
:math:`r_k = \operatorname{softmax}_k(\log w_k - \tfrac D2 \log v_k - \|z - \mu_k\|^2 / 2 v_k)`,

.. math::
    \mathbb E[x_0 \mid x] = \sum_k \frac{r_k}{v_k}\,(\rho^2\mu_k + s_k^2\, z), \qquad
    \mathbb E[\epsilon \mid x] = \sum_k \frac{r_k}{v_k}\,\rho\,(z - \mu_k), \qquad
    \nabla_x \log p(x) = \frac1\alpha \sum_k \frac{r_k}{v_k}\,(\mu_k - z).

The first is Tweedie's formula :math:`\mathbb E[x_0 \mid x] = (x + \sigma^2 \nabla_x\log p)/\alpha`
(Efron 2011) without its cancellation at large :math:`\sigma`; none of them divides by
:math:`\sigma`, so they hold at :math:`\sigma = 0` too if every :math:`s_k > 0`.

**Coordinates.** A point is ``(x, y)`` with y upwards, for pictures too. Data sets are scaled by
:meth:`GaussianMixture.standardized`: mean zero, and a variance of 1 on average over the
coordinates (the aspect ratio is kept). Then the last level of a schedule, of small
:math:`\alpha`, is close to :math:`\mathcal N(0, I)`, where samplers start.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from slam_edu._validation import (
    check_choice,
    check_count,
    check_finite,
    check_per_sample,
    check_samples,
)
from slam_edu.prediction import PREDICTION_TYPES, Prediction, add_noise, to_output
from slam_edu.schedule import Level, NoiseSchedule, expand

# Rows are done in chunks of so many point-component pairs: on a CPU the tables then stay in cache
# (three times faster at 2,000 components), on a GPU they stay under 100 MB.
_CHUNK_CPU, _CHUNK_GPU = 2**17, 2**23


class GaussianMixture(nn.Module):
    r"""A mixture of isotropic Gaussians, :math:`\sum_k w_k\,\mathcal N(\mu_k, s_k^2 I)`.

    Its parameters are buffers: ``.to(device)`` and ``.double()`` work, and nothing is trained. The
    dtype of ``means`` is the precision of everything; samples and levels must have it too. Methods
    take a level of shape ``()`` (one for the batch) or ``(B,)`` (one per sample).

    ``mixture.predict`` is the perfect denoiser as solvers call it, :meth:`network` the same as
    distillation calls a teacher.

    Args:
        means: :math:`\mu_k`, shape ``(K, D)``.
        std: :math:`s_k \ge 0`, a number for all or shape ``(K,)``. With 0 the data are the points
            ``means`` themselves, which have a score and a density at :math:`\sigma > 0` alone.
        weights: :math:`w_k \ge 0`, shape ``(K,)``; they are divided by their sum. Default: equal.

    Raises:
        ValueError: for a wrong shape, dtype or device, a value that is not finite, a negative
            ``std``, or weights that are negative or all zero.
    """

    means: Tensor
    std: Tensor
    weights: Tensor

    def __init__(self, means: Tensor, std: float | Tensor, weights: Tensor | None = None) -> None:
        super().__init__()
        check_samples(means, "means")
        if means.ndim != 2 or means.numel() == 0:
            raise ValueError(
                f"means have shape {tuple(means.shape)}; allowed: (K, D), K and D >= 1"
            )
        count = len(means)
        std = torch.as_tensor(std, dtype=None if isinstance(std, Tensor) else means.dtype)
        std = std.to(means.device) if std.ndim == 0 else std
        weights = torch.ones_like(means[:, 0]) if weights is None else weights
        for name, value in (("std", std), ("weights", weights)):
            if value.shape != (count,) and not (name == "std" and value.ndim == 0):
                shapes = "() or (K,)" if name == "std" else "(K,)"
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}; allowed: {shapes} for means of "
                    f"shape (K, D) = {tuple(means.shape)}"
                )
            if value.dtype != means.dtype or value.device != means.device:
                raise ValueError(
                    f"{name} is {value.dtype} on {value.device}; allowed: that of the means, "
                    f"{means.dtype} on {means.device}"
                )
            check_finite(value, name)
            if bool((value < 0).any()):
                raise ValueError(f"{name} is {value.min().item():g} once; allowed: 0 or more")
        if not bool(weights.sum() > 0):
            raise ValueError("weights are all 0; allowed: at least one greater than 0")
        # One number for all components is kept as one: then v has shape (B, 1) and not (B, K).
        if std.ndim == 1 and bool((std == std[0]).all()):
            std = std[0]
        self.register_buffer("means", means.detach().clone())
        self.register_buffer("std", std.detach().clone())
        self.register_buffer("weights", (weights / weights.sum()).detach())
        self._has_points = bool((std == 0).any())

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters, and of samples and levels given to the methods."""
        return self.means.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.means.device

    @property
    def dim(self) -> int:
        """Dimension D of a point."""
        return self.means.shape[1]

    def __len__(self) -> int:
        return len(self.means)

    def mean(self) -> Tensor:
        r"""Mean of the data, :math:`\sum_k w_k \mu_k`, shape ``(D,)``."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        r"""Covariance of the data, shape ``(D, D)``.

        :math:`\sum_k w_k\,\big((\mu_k - \bar\mu)(\mu_k - \bar\mu)^\top + s_k^2 I\big)`.
        """
        centred = self.means - self.mean()
        within = (self.weights * self.std**2).sum() * torch.eye(self.dim).to(self.means)
        return centred.T @ (self.weights[:, None] * centred) + within

    def standardized(self) -> GaussianMixture:
        r"""The same shape, moved and scaled to mean 0 and :math:`\operatorname{tr}(\Sigma)/D = 1`.

        One factor for all coordinates, so that circles stay circles and components isotropic.

        Raises:
            ValueError: if the mixture is a single point, which has no scale.
        """
        scale = (self.covariance().trace() / self.dim).sqrt()
        if not bool(scale > 0):
            raise ValueError("the mixture is a single point, which cannot be scaled to variance 1")
        return GaussianMixture((self.means - self.mean()) / scale, self.std / scale, self.weights)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` clean samples, shape ``(n, D)``.

        The draw is made on the generator's device, so a CPU generator gives the same points on a
        GPU.
        """
        check_count(n, "n")
        device = self.device if generator is None else generator.device
        weights = self.weights.to(device)
        k = torch.multinomial(weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, dtype=self.dtype, device=device)
        k, noise = k.to(self.device), noise.to(self.device)
        std = self.std if self.std.ndim == 0 else self.std[k, None]
        return self.means[k] + std * noise

    def sample_at(self, level: Level, n: int, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw ``n`` samples of :math:`\alpha x_0 + \sigma\epsilon`, shape ``(n, D)``."""
        x0 = self.sample(n, generator)
        device = self.device if generator is None else generator.device
        noise = torch.randn(n, self.dim, generator=generator, dtype=self.dtype, device=device)
        return add_noise(x0, noise.to(self.device), level)

    def log_density(self, x: Tensor, level: Level | None = None) -> Tensor:
        r"""Log of the density :math:`p(x)` of points ``(B, D)``, shape ``(B,)``.

        No level is :math:`(\alpha, \sigma) = (1, 0)`.

        Raises:
            ValueError: for points that are not finite or of another shape, dtype or device, or at
                :math:`\sigma = 0` when some ``std`` is 0.
        """
        check_samples(x, "x")
        alpha, z, rho = self._coordinates(x, level)
        rows = [self._log_joint(*part).logsumexp(dim=1) for part in self._chunks(z, rho)]
        # dx = alpha^D dz
        constant = self.dim / 2 * math.log(2 * math.pi) + self.dim * alpha.log().reshape(-1)
        return torch.cat(rows) - constant

    def score(self, x: Tensor, level: Level | None = None) -> Tensor:
        r"""The score :math:`\nabla_x \log p(x)`, shape ``(B, D)``; see :meth:`log_density`."""
        check_samples(x, "x")
        alpha, z, rho = self._coordinates(x, level)
        m, q, _ = self._sums(z, rho)
        return (m - q * z) / alpha

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        r"""The perfect denoiser, :math:`\mathbb E[x_0 \mid x]`: the posterior mean, ``(B, D)``."""
        check_samples(x, "x")
        return self.predict(x, level).x0

    def predict(self, x: Tensor, level: Level) -> Prediction:
        r"""The perfect denoiser as solvers call it.

        Its two parts are :math:`\mathbb E[x_0 \mid x]` and :math:`\mathbb E[\epsilon \mid x]`; at
        :math:`\sigma = 0` these are :math:`x/\alpha` and 0. Whether ``x`` is finite is not
        checked: solvers call it in their inner loop and check at their start.

        Raises:
            ValueError: for points or a level of another shape, dtype or device, or at
                :math:`\sigma = 0` when some ``std`` is 0.
        """
        _, z, rho = self._coordinates(x, level)
        m, q, s2 = self._sums(z, rho)
        return Prediction(x0=rho**2 * m + s2 * z, eps=rho * (q * z - m))

    def network(
        self, schedule: NoiseSchedule, prediction_type: str = "epsilon"
    ) -> Callable[..., Tensor]:
        """The perfect denoiser, called as a network: ``network(x, t, cond=None) -> output``.

        At timesteps ``t`` of shape ``()`` or ``(B,)``, integer or real, it returns the raw output
        of a network of this ``prediction_type``.

        Raises:
            ValueError: for an unknown ``prediction_type``, or a schedule of another dtype or
                device; when called, for a ``cond``: the data have no conditions.
        """
        check_choice(prediction_type, PREDICTION_TYPES, "prediction_type")
        if schedule.dtype != self.dtype or schedule.device != self.device:
            raise ValueError(
                f"the schedule is {schedule.dtype} on {schedule.device}; allowed: that of the "
                f"mixture, {self.dtype} on {self.device}"
            )

        def network(x: Tensor, t: Tensor, cond: None = None) -> Tensor:
            if cond is not None:
                raise ValueError(
                    f"cond is a {type(cond).__name__}; allowed: None (a mixture has no conditions)"
                )
            level = schedule(t)
            return to_output(self.predict(x, level), level, prediction_type)

        return network

    def extra_repr(self) -> str:
        """One line for ``print(mixture)``."""
        low, high = self.std.min().item(), self.std.max().item()
        std = f"{low:.3g}" if low == high else f"{low:.3g}...{high:.3g}"
        return f"components={len(self)}, dim={self.dim}, std={std}, dtype={self.dtype}"

    def _coordinates(self, x: Tensor, level: Level | None) -> tuple[Tensor, Tensor, Tensor]:
        """Check points and level; alpha, z and rho (alpha and rho of shape () or (B, 1))."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (B, {self.dim})")
        if x.dtype != self.dtype or x.device != self.device:
            raise ValueError(
                f"x is {x.dtype} on {x.device}; allowed: that of the mixture, {self.dtype} on "
                f"{self.device}"
            )
        if level is None:
            level = Level.clean(self.means.new_ones(()))
        if self._has_points and not bool((level.sigma > 0).all()):
            raise ValueError(
                "sigma is 0, and so is the std of a component: a point mass has no density; "
                "allowed: sigma > 0, or a mixture whose std is greater than 0"
            )
        for name, value in (("alpha", level.alpha), ("sigma", level.sigma)):
            check_per_sample(value, x, name)
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        return alpha, x / alpha, sigma / alpha

    def _chunks(self, z: Tensor, rho: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Rows in groups whose (rows, K) tables stay small."""
        rows = max((_CHUNK_CPU if self.device.type == "cpu" else _CHUNK_GPU) // len(self), 1)
        if len(z) <= rows:
            return [(z, rho)]
        per_sample = rho.ndim > 0 and len(rho) > 1
        rhos = rho.split(rows) if per_sample else [rho] * -(-len(z) // rows)
        return list(zip(z.split(rows), rhos, strict=True))

    def _variance(self, rho: Tensor) -> Tensor:
        """v_k, of shape (), (K,), (B, 1) or (B, K): no larger than std and level make it."""
        return self.std**2 + rho**2

    def _log_joint(self, z: Tensor, rho: Tensor) -> Tensor:
        """log w_k N(z; mu_k, v_k I) without the constant of 2 pi, shape ``(B, K)``."""
        # Differences first, then squares, one coordinate at a time: expanding the square into a
        # matrix product costs as much, and loses half of float32's digits near a component.
        distance2 = (z[:, 0, None] - self.means[:, 0]).square()  # (B, K)
        for d in range(1, self.dim):
            difference = z[:, d, None] - self.means[:, d]
            distance2 = torch.addcmul(distance2, difference, difference)
        v = self._variance(rho)
        return torch.addcmul(self.weights.log() - self.dim / 2 * v.log(), distance2, -0.5 / v)

    def _sums(self, z: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over k of r_k/v_k times mu_k, 1 and s_k^2: ``(B, D)``, ``(B, 1)``, ``(B, 1)``."""
        ones = torch.ones_like(self.weights)
        table = torch.column_stack([self.means, ones, self.std**2 * ones])  # (K, D + 2)
        rows = []
        for z_part, rho_part in self._chunks(z, rho):
            r = self._log_joint(z_part, rho_part).softmax(dim=1)  # (B, K)
            v = self._variance(rho_part)
            rows.append((r @ table) / v if self.std.ndim == 0 else (r / v) @ table)
        sums = torch.cat(rows)
        return sums[:, :-2], sums[:, -2:-1], sums[:, -1:]

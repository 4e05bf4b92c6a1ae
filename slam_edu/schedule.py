r"""Noise levels, schedules, and the grid of sub-paths.

A **level** is a pair :math:`(\alpha, \sigma)`: a sample at that level is

.. math:: x = \alpha\, x_0 + \sigma\, \epsilon, \qquad \epsilon \sim \mathcal N(0, I).

A **schedule** maps a timestep :math:`t` to a level. Two ratios describe a level up to its scale:
:math:`\rho = \sigma/\alpha` (noise over signal) and :math:`\lambda = -\log\rho` (half the log
signal-to-noise ratio). In :math:`z = x/\alpha` and :math:`\rho`, the probability-flow ODE is
:math:`\mathrm dz/\mathrm d\rho = \epsilon(x, t)`, which is why every solver here works there.

Only this module and the wrapper around a network know what a timestep means; everything else in
the core takes levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slam_edu._validation import check_alike, check_between, check_count, check_per_sample


def expand(value: Tensor, x: Tensor) -> Tensor:
    """``(B,)`` as ``(B, 1, ..., 1)`` with ``x``'s rank, to broadcast over it; ``()`` as it is."""
    return value if value.ndim == 0 else value.reshape(-1, *(1,) * (x.ndim - 1))


@dataclass(frozen=True)
class Level:
    r"""A noise level, :math:`x = \alpha x_0 + \sigma\epsilon`.

    :math:`\alpha > 0` and :math:`\sigma \ge 0` have shape ``(B,)`` (one per sample), ``()`` (one
    for the batch), or ``(n,)`` for a sequence of levels that a solver walks through.
    """

    alpha: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        check_alike(self.sigma, self.alpha, "sigma", "alpha")

    @property
    def rho(self) -> Tensor:
        r"""Noise over signal, :math:`\rho = \sigma/\alpha`: the time in which the PF-ODE runs."""
        return self.sigma / self.alpha

    @property
    def norm(self) -> Tensor:
        r""":math:`\sqrt{\alpha^2 + \sigma^2}`: 1 wherever a schedule is variance-preserving."""
        return (self.alpha**2 + self.sigma**2).sqrt()

    def mix(self, x0: Tensor, eps: Tensor) -> Tensor:
        r"""The sample :math:`\alpha x_0 + \sigma\epsilon`, shapes ``(B, *)``; unchecked."""
        return expand(self.alpha, x0) * x0 + expand(self.sigma, x0) * eps

    def __len__(self) -> int:
        return len(self.alpha)

    def __bool__(self) -> bool:
        return True  # a level of shape () has no length, and an empty sequence is still a level

    def __getitem__(self, index: Any) -> Level:
        return Level(self.alpha[index], self.sigma[index])

    @classmethod
    def from_rho(cls, rho: Tensor) -> Level:
        r"""The variance-preserving level with this ``rho``: :math:`\alpha = 1/\sqrt{1+\rho^2}`."""
        alpha = (1 + rho**2).rsqrt()
        return cls(alpha, rho * alpha)

    @classmethod
    def clean(cls, like: Tensor) -> Level:
        """The level of data, (1, 0), with ``like``'s shape, dtype and device."""
        return cls(torch.ones_like(like), torch.zeros_like(like))

    @classmethod
    def cat(cls, levels: list[Level]) -> Level:
        """Join levels of shape ``()`` or ``(n,)`` into one sequence."""
        alphas, sigmas = ([getattr(v, n).reshape(-1) for v in levels] for n in ("alpha", "sigma"))
        return cls(torch.cat(alphas), torch.cat(sigmas))


@dataclass(frozen=True)
class SubPathGrid:
    r"""N sub-paths ``[s, t]`` of equal length ``k``, in timesteps, that tile a schedule.

    ``t = k-1, 2k-1, ..., T-1`` is the noisy end and ``s = max(t - k, 0)`` the clean end, so that
    the last sub-path is one step shorter and ends at timestep 0; both are integers of shape
    ``(N,)``, increasing. Source: official script, ``DDIMSolver``.
    """

    t: Tensor
    s: Tensor
    k: int

    def __len__(self) -> int:
        return len(self.t)

    def ends(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Ends ``t`` and ``s`` of the sub-paths ``index`` (from 0 to N-1), on its device.

        A real index lies between the grid's: its sub-path is k long too, or ends at 0.
        """
        index = index if index.is_floating_point() else index.long()
        t = (index + 1) * self.k - 1
        return t, (t - self.k).clamp(min=0)


class NoiseSchedule(nn.Module):
    r"""A table of levels, one per integer timestep ``0 ... T-1``, from clean to noisy.

    Calling it gives levels: ``schedule(t) -> Level`` with ``t``'s shape. Between two integers,
    levels are interpolated linearly in :math:`\log\rho` and in the norm :math:`\sqrt{\alpha^2 +
    \sigma^2}`, so that a variance-preserving schedule stays so and :meth:`timestep` is the exact
    inverse. The tables are buffers: ``.to(device)`` moves them. Their dtype is the precision of
    all algebra done with the schedule; networks may run in another one.

    Raises:
        ValueError: unless ``alpha`` and ``sigma`` have one shape ``(T,)``, are finite and
            positive, and :math:`\rho = \sigma/\alpha` increases strictly.
    """

    alpha: Tensor
    sigma: Tensor
    rho: Tensor
    norm: Tensor

    def __init__(self, alpha: Tensor, sigma: Tensor) -> None:
        super().__init__()
        if alpha.ndim != 1 or len(alpha) < 2:
            raise ValueError(f"alpha has shape {tuple(alpha.shape)}; allowed: (T,) with T >= 2")
        level = Level(alpha, sigma)
        for name, table in (("alpha", alpha), ("sigma", sigma)):
            bad = (~(torch.isfinite(table) & (table > 0))).nonzero()
            if len(bad):
                raise ValueError(
                    f"{name}[{bad[0].item()}] is {table[bad[0]].item():g}; allowed: finite and "
                    f"greater than 0"
                )
        rho = level.rho
        falls = (~(rho[1:] > rho[:-1])).nonzero()
        if len(falls):
            i = falls[0].item()
            raise ValueError(
                f"rho = sigma/alpha goes from {rho[i].item():g} to {rho[i + 1].item():g} at "
                f"timestep {i + 1}; allowed: increasing from timestep 0 to T-1"
            )
        for name, table in (
            ("alpha", alpha),
            ("sigma", sigma),
            ("rho", rho),
            ("norm", level.norm),
        ):
            self.register_buffer(name, table)

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Tensor, dtype: torch.dtype = torch.float32
    ) -> NoiseSchedule:
        r"""Variance-preserving: :math:`\alpha_t^2 = \bar\alpha_t`; made in float64, then cast."""
        abar = alphas_cumprod.detach().to("cpu", torch.float64)
        if abar.ndim != 1 or not bool(((abar > 0) & (abar < 1)).all()):
            raise ValueError(
                f"alphas_cumprod has shape {tuple(abar.shape)} and values from {abar.min():g} to "
                f"{abar.max():g}; allowed: shape (T,), every value between 0 and 1, both excluded"
            )
        return cls(abar.sqrt().to(dtype), (1 - abar).sqrt().to(dtype))

    @classmethod
    def stable_diffusion(cls, dtype: torch.dtype = torch.float32) -> NoiseSchedule:
        """Stable Diffusion's schedule: 1000 timesteps, scaled-linear betas 0.00085 to 0.012.

        ``beta_t = linspace(sqrt(0.00085), sqrt(0.012), 1000)[t]**2`` and ``abar_t = prod(1 -
        beta)``. Source: CompVis ``make_beta_schedule``; diffusers' DDPMScheduler.
        """
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        return cls.from_alphas_cumprod(torch.cumprod(1 - beta, dim=0), dtype)

    @classmethod
    def from_scheduler(cls, scheduler: Any, dtype: torch.dtype = torch.float32) -> NoiseSchedule:
        """The schedule of a diffusers scheduler that has ``alphas_cumprod``."""
        abar = getattr(scheduler, "alphas_cumprod", None)
        if abar is None:
            raise ValueError(
                f"{type(scheduler).__name__} has no alphas_cumprod; allowed: a diffusers "
                f"scheduler of the DDPM family (DDPMScheduler, DDIMScheduler, LCMScheduler, ...)"
            )
        return cls.from_alphas_cumprod(torch.as_tensor(abar), dtype)

    def variance_exploding(self) -> NoiseSchedule:
        r"""The same path in the coordinates :math:`z = x/\alpha`: levels :math:`(1, \rho_t)`."""
        return NoiseSchedule(torch.ones_like(self.rho), self.rho.clone())

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the tables, and so of the algebra."""
        return self.alpha.dtype

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.alpha.device

    def __len__(self) -> int:
        return len(self.alpha)

    def forward(self, t: Tensor | int | float) -> Level:
        r"""Level of timestep ``t``: integer or real, of any shape, ``0 <= t <= T-1``."""
        given = isinstance(t, Tensor)
        if not given:
            # A Python float would become float32, whatever the schedule's precision.
            t = torch.as_tensor(t, dtype=self.dtype if isinstance(t, float) else None)
        elif t.device != self.device:
            raise ValueError(f"t is on {t.device} but the schedule is on {self.device}")
        check_between(t, 0, len(self) - 1, "t")
        t = t.to(self.device)
        return self.at(t if t.is_floating_point() else t.long())  # uint8 would index as a mask

    def at(self, t: Tensor) -> Level:
        """Level of timesteps (real or int64, in range, on the schedule's device), unchecked."""
        if not t.is_floating_point():
            return Level(self.alpha[t], self.sigma[t])
        n = t.long()
        i = n.clamp(max=len(self) - 2)
        f = (t - i).to(self.dtype)
        rho = torch.exp((1 - f) * self.rho[i].log() + f * self.rho[i + 1].log())
        level, table, whole = self._at_rho(rho, i, f), self.at(n), f == f.round()
        # At an integer, the table itself, to the last bit.
        return Level(
            torch.where(whole, table.alpha, level.alpha),
            torch.where(whole, table.sigma, level.sigma),
        )

    def timestep(self, level: Level) -> Tensor:
        r"""Real-valued timestep whose :math:`\rho` is the level's (its scale does not matter).

        The inverse of calling the schedule, and exactly an integer where the level is one of the
        table's. Of the schedule's dtype and the level's shape.
        """
        self._check_rho(level)
        i, f, _ = self._locate(level.rho)
        return i + f

    def rescale(self, x: Tensor, level: Level) -> tuple[Tensor, Level, Tensor]:
        r"""Bring samples ``(B, *)`` to the schedule's own scale, at the same :math:`\rho`.

        On a variance-preserving schedule this is :math:`\tilde x = x/\sqrt{\alpha^2 + \sigma^2}`.
        It is how a network that was trained on the schedule is asked about a sub-path point, whose
        :math:`\alpha^2 + \sigma^2` is not 1. Returns the samples, their level, and its real-valued
        timestep.
        """
        check_per_sample(level.alpha, x, "the level")
        self._check_rho(level)
        return self.rescaled(x, level)

    def rescaled(self, x: Tensor, level: Level) -> tuple[Tensor, Level, Tensor]:
        """:meth:`rescale`, unchecked: a level outside the table is taken for its nearest end."""
        own, t = self.locate(level.rho)
        return expand(own.alpha / level.alpha, x) * x, own, t

    def locate(self, rho: Tensor) -> tuple[Level, Tensor]:
        r"""The schedule's level with this :math:`\rho`, and its real-valued timestep, unchecked.

        Outside the table it is the nearest end's.
        """
        i, f, rho = self._locate(rho)
        return self._at_rho(rho, i, f), i + f

    def _check_rho(self, level: Level) -> None:
        if level.alpha.device != self.device:
            raise ValueError(
                f"the level is on {level.alpha.device} but the schedule is on {self.device}"
            )
        if self.device.type == "cpu":
            # A level that was computed (a sub-path point at gamma = 0 or 1) may leave the table
            # by rounding.
            slack = 64 * torch.finfo(self.dtype).eps
            low, high = self.rho[0].item() * (1 - slack), self.rho[-1].item() * (1 + slack)
            check_between(level.rho.to(self.dtype), low, high, "rho")

    def _locate(self, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Table row below rho, fraction of the way to the next, and rho as it was used."""
        rho = rho.to(self.dtype).clamp(self.rho[0], self.rho[-1]).contiguous()
        i = (torch.searchsorted(self.rho, rho, right=True) - 1).clamp(0, len(self) - 2)
        below, above = self.rho[i], self.rho[i + 1]
        f = (rho / below).log() / (above / below).log()
        # Equality first: logarithms of equal numbers may differ in the last bit between code
        # paths.
        f = torch.where(rho == above, torch.ones_like(f), f)
        return i, torch.where(rho == below, torch.zeros_like(f), f), rho

    def _at_rho(self, rho: Tensor, i: Tensor, f: Tensor) -> Level:
        norm = torch.lerp(self.norm[i], self.norm[i + 1], f)
        alpha = norm * (1 + rho**2).rsqrt()
        return Level(alpha, rho * alpha)

    def subpaths(self, n: int) -> SubPathGrid:
        """The grid of ``n`` sub-paths of length ``k = T/n``; ``n`` divides T."""
        steps = len(self)
        check_count(n, "the number of sub-paths", high=steps)
        if steps % n:
            divisors = ", ".join(str(d) for d in range(1, steps + 1) if steps % d == 0)
            raise ValueError(
                f"the number of sub-paths is {n}, which does not divide the {steps} timesteps; "
                f"allowed: {divisors}"
            )
        k = steps // n
        t = torch.arange(1, n + 1, device=self.device) * k - 1
        return SubPathGrid(t=t, s=(t - k).clamp(min=0), k=k)

    def extra_repr(self) -> str:
        """One line for ``print(schedule)``."""
        low, high = self.rho[0].item(), self.rho[-1].item()
        return f"timesteps={len(self)}, rho={low:.3g}...{high:.3g}, dtype={self.dtype}"

r"""One distillation step of SLAM, for any batch shape and any network.

For one sample, with the sub-path's ends t (noisy) and s (clean) and a position :math:`\gamma` on
it:

1. :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`,
2. teacher (no gradient): guided :math:`\hat\epsilon`, then DDIM from t to s gives :math:`x_s`,
3. target network (no gradient): :math:`y = f_{\theta^-}(x_s, s)`,
4. the chord point :math:`x_\gamma = \gamma x_t + (1-\gamma)\,a\,x_s` and its level,
5. student: :math:`p = f_\theta(x_\gamma, \cdot)`, and the loss is a distance between p and y.

With :math:`\gamma = 1` everywhere this is latent consistency distillation.

These are the paper's steps, ``slope="end"``: the chord has the slope of the trajectory at its
noisy end. In ``slope="middle"``, this project's own, it has that of its middle: the teacher is
called once, at the level m with :math:`\rho_m = (\rho_t + \rho_s)/2`, on :math:`x_m = \alpha_m x_0
+ \sigma_m\epsilon`, and DDIM goes to both ends,

.. math:: z_t = z_m + (\rho_t - \rho_m)\,\hat\epsilon, \qquad
    z_s = z_m + (\rho_s - \rho_m)\,\hat\epsilon.

A chord with the slope of the trajectory at :math:`\rho_e` leaves it by
:math:`-\tfrac12 z''(\rho - \rho_e)^2` to leading order. A trajectory that starts on the chord at
:math:`\gamma` keeps its distance there down to s, while :math:`x_s` has the distance at s; so
the student is taught an end that is wrong by their difference. With :math:`h = \rho_t - \rho_s`:

.. math::
    -\tfrac12 h^2 z''\, \gamma\,(2 - \gamma) \ \text{ (end)}, \qquad
    -\tfrac12 h^2 z''\, \gamma\,(1 - \gamma) \ \text{ (middle)}.

The first is largest at :math:`\gamma = 1`, where the student is sampled; the second vanishes there
and leaves an error of third order, the midpoint rule's.
Source: Xu et al. 2024 (SPLAM, arXiv 2404.13903); official script
``train_splam_distill_sd_wds.py``, the training loop.

The distiller draws, computes, and returns: optimiser, moving average, logging and files belong to
the training loop (:mod:`slam_edu.training`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slam_edu._validation import (
    check_alike,
    check_between,
    check_choice,
    check_count,
    check_finite,
    check_generator,
    check_per_sample,
)
from slam_edu.consistency import CONDITIONINGS, ConsistencyFunction
from slam_edu.losses import mse, pseudo_huber
from slam_edu.prediction import PREDICTION_TYPES, Prediction, guided_prediction, read_output
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.subpath import COUPLINGS, chord_level, chord_point

LOSSES = ("l2", "huber")
GAMMAS = ("uniform", "one")
SLOPES = ("end", "middle")
TIMESTEPS = ("real", "integer")
OFFICIAL = {
    "subpaths": 50, "slope": "end", "coupling": "markov", "conditioning": "gamma",
    "gammas": "uniform",
}  # fmt: skip
"""The official script's settings, where they are not :class:`DistillConfig`'s defaults."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    r"""What defines one distillation step, validated.

    The defaults are those that did best in the plane (``data/family/report.md``);
    ``DistillConfig(**OFFICIAL)`` is the official script's step.

    Attributes:
        subpaths: number N of sub-paths; divides the number of timesteps.
        slope: where the chord is tangent to the trajectory, ``"end"`` (official) or ``"middle"``;
            the latter needs ``coupling="linear"``, because only then is the chord's level exact.
        off_grid: the sub-path's noisy end is uniform on the timesteps from 1 to T-1, a real
            number, in place of one of the grid's; it is k long, or ends at 0.
        teacher_timesteps: what the teacher takes: ``"real"`` numbers, or ``"integer"`` where it
            looks its embedding up in a table. m is then the nearest timestep above s, and the
            chord's noisy end moves so that m stays its middle, to the schedule's last level at
            most; under ``"gamma"`` conditioning the student is still called at the sub-path's t.
        guidance: :math:`w` of :math:`\epsilon_c + w(\epsilon_c - \epsilon_u)`; diffusers' scale
            less 1. Used when ``step`` is given ``uncond``.
        coupling: ``"markov"`` (official) or ``"linear"`` (exact); see
            :func:`slam_edu.subpath.sub_level`.
        conditioning: what the student is conditioned on. ``"gamma"`` (official): called at
            :math:`(x_\gamma, t, \gamma)`. ``"level"``: called at the rescaled point and the
            real-valued timestep of its own level, without gamma.
        gammas: how ``draw`` makes gamma of u, uniform on [0, 1): ``"uniform"``, u itself
            (official); ``"one"``, always 1, which makes the step latent consistency distillation;
            or a function from u to gamma, both of shape ``(B,)`` and in [0, 1].
        teacher_steps: M, the teacher's DDIM steps from t to s; divides a sub-path's length. Above
            1, the slope is that of the end and sub-paths are the grid's.
        loss: ``"l2"`` or ``"huber"``, with ``huber_c``.
        teacher_prediction_type: ``"epsilon"``, ``"sample"`` or ``"v_prediction"``.
        student_prediction_type: of student and target; None: the teacher's.
        sigma_data: of the boundary scalings, as ``timestep_scaling``.
    """

    subpaths: int = 20
    slope: str = "middle"
    off_grid: bool = False
    teacher_timesteps: str = "real"
    guidance: float = 8.0
    coupling: str = "linear"
    conditioning: str = "level"
    gammas: str | Callable[[Tensor], Tensor] = "one"
    teacher_steps: int = 1
    loss: str = "l2"
    huber_c: float = 1e-3
    teacher_prediction_type: str = "epsilon"
    student_prediction_type: str | None = None
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        check_count(self.subpaths, "subpaths")
        check_count(self.teacher_steps, "teacher_steps")
        for name, allowed in (
            ("slope", SLOPES),
            ("teacher_timesteps", TIMESTEPS),
            ("coupling", COUPLINGS),
            ("conditioning", CONDITIONINGS),
            ("loss", LOSSES),
            ("teacher_prediction_type", PREDICTION_TYPES),
            ("student_prediction_type", (None, *PREDICTION_TYPES)),
        ):
            check_choice(getattr(self, name), allowed, name)
        if not callable(self.gammas) and self.gammas not in GAMMAS:
            raise ValueError(
                f"gammas is {self.gammas!r}; allowed: 'uniform', 'one', or a function from u to "
                f"gamma"
            )
        for name, fits, bound in (
            ("guidance", self.guidance >= 0, ">= 0"),
            ("huber_c", self.huber_c > 0, "> 0"),
            ("sigma_data", self.sigma_data > 0, "> 0"),
            ("timestep_scaling", self.timestep_scaling > 0, "> 0"),
        ):
            value = getattr(self, name)
            if not (fits and value < float("inf")):
                raise ValueError(f"{name} is {value!r}; allowed: a finite number {bound}")
        if self.slope == "middle" and self.coupling != "linear":
            raise ValueError(
                f"coupling is {self.coupling!r} with slope='middle'; allowed: 'linear', or "
                f"slope='end'"
            )
        if self.teacher_steps > 1 and (self.slope == "middle" or self.off_grid):
            raise ValueError(
                f"teacher_steps is {self.teacher_steps} with slope={self.slope!r}, "
                f"off_grid={self.off_grid}; allowed: 1, or slope='end' and off_grid=False"
            )
        if self.off_grid and self.teacher_timesteps == "integer":
            raise ValueError(
                "off_grid is True with teacher_timesteps='integer'; allowed: 'real', because the "
                "sub-path's ends are real numbers"
            )

    @property
    def output_type(self) -> str:
        """The student's prediction type, the teacher's unless set."""
        return self.student_prediction_type or self.teacher_prediction_type

    def replace(self, **changes: object) -> DistillConfig:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class SubPathSample:
    """The random part of a step, one row per sample."""

    index: Tensor  # which sub-path, integers (B,) in 0 ... N-1; real numbers off the grid
    gamma: Tensor  # where on it, (B,) in [0, 1]
    noise: Tensor  # (B, *)


@dataclass(frozen=True, kw_only=True)
class SubPath:
    """A batch of chords, one point on each, and where they lie."""

    x_t: Tensor  # noisy end of the chord, (B, *)
    x_s: Tensor  # its clean end
    x_gamma: Tensor  # point on the chord
    t: Tensor  # the sub-paths' noisy ends (B,)
    s: Tensor  # clean ends
    gamma: Tensor  # (B,)
    level_t: Level  # of x_t: t's, unless an integer m has moved it
    level_s: Level
    level_gamma: Level  # (alpha_t, sigma_gamma)
    teacher: Prediction  # the teacher's guided prediction at x_t, or at x_m


@dataclass(frozen=True, kw_only=True)
class DistillOutput(SubPath):
    """A step's loss and every quantity on the way to it."""

    loss: Tensor  # scalar; its gradient reaches the student alone
    prediction: Tensor  # the student's p, (B, *)
    target: Tensor  # y, (B, *)


Network = Callable[..., Tensor]


class SubPathDistiller:
    """Draws sub-path samples and computes the distillation loss.

    ``schedule`` is the teacher's; its dtype is the precision of all algebra here. The config's
    ``subpaths`` divide it into sub-paths of two timesteps or more, ``teacher_steps`` those.
    """

    def __init__(self, schedule: NoiseSchedule, config: DistillConfig | None = None) -> None:
        self.schedule = schedule
        self.config = config = config or DistillConfig()
        self.grid = schedule.subpaths(config.subpaths)
        if self.grid.k < 2:
            raise ValueError(
                f"subpaths is {config.subpaths} for {len(schedule)} timesteps; allowed: at "
                f"most half as many, because the lowest sub-path [0, k-1] needs two ends"
            )
        if self.grid.k % config.teacher_steps:
            allowed = [m for m in range(1, self.grid.k + 1) if self.grid.k % m == 0]
            raise ValueError(
                f"teacher_steps is {config.teacher_steps}, which does not divide the "
                f"sub-path's length of {self.grid.k} timesteps; "
                f"allowed: {', '.join(map(str, allowed))}"
            )
        self.consistency = ConsistencyFunction(
            schedule=schedule, conditioning=config.conditioning,
            prediction_type=config.output_type, sigma_data=config.sigma_data,
            timestep_scaling=config.timestep_scaling,
        )  # fmt: skip

    def draw(
        self, x0: Tensor, generator: torch.Generator | Sequence[torch.Generator]
    ) -> SubPathSample:
        """Draw a sub-path, a position on it and noise for every sample, in this order.

        Of ``x0``, ``(B, *)``, only shape, dtype and device count. The generator is on its device;
        of B of them, one a sample, each draws what it would for a batch of its sample alone.
        """
        if not isinstance(generator, torch.Generator):
            if len(generator) != len(x0):
                raise ValueError(
                    f"there are {len(generator)} generators for {len(x0)} samples; allowed: one "
                    f"for all, or one each"
                )
            rows = [self._drawn(x0[:1], one) for one in generator]
            index, u, noise = (torch.cat(parts) for parts in zip(*rows, strict=True))
        else:
            index, u, noise = self._drawn(x0, generator)
        gammas = self.config.gammas
        if callable(gammas):
            gamma = gammas(u)
            check_alike(gamma, u, "gamma", "u")
            check_between(gamma, 0.0, 1.0, "gamma")
        else:
            gamma = u if gammas == "uniform" else torch.ones_like(u)
        return SubPathSample(index=index, gamma=gamma, noise=noise)

    def _drawn(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Index, the uniform draw behind gamma, and noise.

        One draw each whatever the config is, so that methods can be compared on equal noise.
        """
        check_generator(generator, x0, "x0")
        batch, kind = x0.shape[0], {"device": x0.device, "dtype": x0.dtype}
        if self.config.off_grid:
            # In float32, which takes as much of the generator as randint does.
            u = torch.rand(batch, generator=generator, device=x0.device, dtype=torch.float32)
            t = 1 + (len(self.schedule) - 2) * u.to(x0.dtype)
            index = (t + 1) / self.grid.k - 1
        else:
            index = torch.randint(len(self.grid), (batch,), generator=generator, device=x0.device)
        u = torch.rand(batch, generator=generator, **kind)
        return index, u, torch.randn(x0.shape, generator=generator, **kind)

    def step(
        self,
        x0: Tensor,
        sample: SubPathSample,
        *,
        teacher: Network,
        student: Network,
        target: Network,
        cond: object | None = None,
        uncond: object | None = None,
    ) -> DistillOutput:
        r"""The loss of one batch. Draws nothing, and waits for no device.

        Networks return their raw output, in any floating-point dtype: ``teacher(x, t, cond)``,
        and ``student`` and ``target`` as :class:`slam_edu.consistency.ConsistencyFunction` calls
        them, the target at gamma = 1. The student is called last, so that one network with
        switched adapters can play all three.

        Args:
            x0: clean samples, shape ``(B, *)``, in the schedule's dtype and on its device.
            sample: from :meth:`draw`; its values, and x0's, are used as they are; see
                :meth:`check_values`.
            teacher: the diffusion model to distil, called without gradient.
            student: the network to train.
            target: its moving average, called without gradient.
            cond: passed on to all three networks.
            uncond: passed to the teacher for guidance; None: no guidance.

        Raises:
            ValueError: for an ``x0`` or ``sample`` of the wrong dtype, device or shape, or for a
                network whose output has another shape than its input.
        """
        path = self.sub_path(x0, sample, teacher=teacher, cond=cond, uncond=uncond)
        with torch.no_grad():
            ones = torch.ones_like(path.gamma)
            y = self.consistency(target, path.x_s, path.s, path.level_s, cond, ones)
        p = self.consistency(student, path.x_gamma, path.t, path.level_gamma, cond, path.gamma)
        loss = mse(p, y) if self.config.loss == "l2" else pseudo_huber(p, y, self.config.huber_c)
        return DistillOutput(loss=loss, prediction=p, target=y, **vars(path))

    @torch.no_grad()
    def sub_path(
        self,
        x0: Tensor,
        sample: SubPathSample,
        *,
        teacher: Network,
        cond: object | None = None,
        uncond: object | None = None,
    ) -> SubPath:
        """The step's chords: all of :meth:`step` that asks neither student nor target."""
        self._check(x0, sample)
        t, s, gamma = self.ends(sample)
        level_t, level_s = self.schedule.at(t), self.schedule.at(s)
        ask = functools.partial(self._teacher, teacher, cond, uncond)
        if self.config.slope == "middle":
            m, level_m, level_t = self._middle(s, level_t, level_s)
            prediction = ask(level_m.mix(x0, sample.noise), m, level_m)
            x_t, x_s = (level.mix(prediction.x0, prediction.eps) for level in (level_t, level_s))
        else:
            x_t = level_t.mix(x0, sample.noise)
            x_s, prediction = self._teacher_steps(ask, x_t, t, level_t, level_s)
        return SubPath(
            x_t=x_t, x_s=x_s, x_gamma=chord_point(x_t, x_s, level_t, level_s, gamma), t=t, s=s,
            gamma=gamma, level_t=level_t, level_s=level_s,
            level_gamma=chord_level(level_t, level_s, gamma, self.config.coupling),
            teacher=prediction,
        )  # fmt: skip

    def predict(
        self, network: Network, x: Tensor, t: Tensor | int, cond: object | None = None
    ) -> Tensor:
        r"""The consistency function :math:`f_\theta(x, t)` of a student or target, at gamma = 1.

        Samples have shape ``(B, *)`` and the schedule's dtype, timesteps ``(B,)``, or one for all.
        """
        t = torch.as_tensor(t, device=x.device)
        if t.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"t has shape {tuple(t.shape)}; allowed: () or (B,) = {tuple(x.shape[:1])}"
            )
        t = t.expand(x.shape[:1])
        level = self.schedule(t)
        check_per_sample(level.alpha, x, "the level")
        return self.consistency(network, x, t, level, cond)

    def check_values(self, x0: Tensor, sample: SubPathSample) -> None:
        """Look at what ``step`` does not: NaN and Inf, an index or a gamma that is out of range.

        For data and samples that were made by hand; on an accelerator it waits for the values.
        """
        for name, value in (("x0", x0), ("noise", sample.noise)):
            check_finite(value.cpu(), name)
        index = sample.index.cpu()
        # Of t = 1, rounded as draw does it.
        lowest = (index.new_tensor(2) / self.grid.k - 1).item() if self.config.off_grid else 0
        check_between(index, lowest, len(self.grid) - 1, "index")
        check_between(sample.gamma.cpu(), 0.0, 1.0, "gamma")

    def ends(self, sample: SubPathSample) -> tuple[Tensor, Tensor, Tensor]:
        """The step's t and s, and gamma: what a variant of the method may choose otherwise."""
        t, s = self.grid.ends(sample.index)
        return t, s, sample.gamma

    def _check(self, x0: Tensor, sample: SubPathSample) -> None:
        """Shapes, dtypes and devices; the values of another device may not be readable."""
        if x0.dtype != self.schedule.dtype or x0.device != self.schedule.device:
            raise ValueError(
                f"x0 is {x0.dtype} on {x0.device}; allowed: the schedule's {self.schedule.dtype} "
                f"on {self.schedule.device} (keep samples and algebra in it; networks may differ)"
            )
        if x0.ndim < 2:
            raise ValueError(
                f"x0 has shape {tuple(x0.shape)}; allowed: (B, *) with rank 2 or more"
            )
        check_alike(sample.noise, x0, "noise", "x0")
        batch = x0.shape[:1]
        for name, value in (("index", sample.index), ("gamma", sample.gamma)):
            if value.shape != batch or value.device != x0.device:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)} on {value.device}; allowed: (B,) = "
                    f"{tuple(batch)} on x0's {x0.device}"
                )
        if sample.gamma.dtype != x0.dtype:
            raise ValueError(f"gamma has dtype {sample.gamma.dtype}; allowed: x0's {x0.dtype}")
        kind, allowed = sample.index.dtype, "an integer dtype"
        fits = not (kind == torch.bool or kind.is_floating_point)
        if self.config.off_grid:
            fits, allowed = kind == x0.dtype, f"x0's {x0.dtype}, off the grid"
        if not fits:
            raise ValueError(f"index has dtype {kind}; allowed: {allowed}")

    def _teacher(
        self, teacher: Network, cond: object, uncond: object, x: Tensor, t: Tensor, level: Level
    ) -> Prediction:
        """The teacher's prediction at x, guided where there is an ``uncond``."""
        kind = self.config.teacher_prediction_type
        prediction = read_output(teacher(x, t, cond), x, level, kind)
        if uncond is None:
            return prediction
        other = read_output(teacher(x, t, uncond), x, level, kind)
        return guided_prediction(prediction, other, self.config.guidance)

    def _teacher_steps(
        self, ask: Callable[..., Prediction], x: Tensor, t: Tensor, level_t: Level, level_s: Level
    ) -> tuple[Tensor, Prediction]:
        """M DDIM steps from t to s, and the prediction that began them."""
        hop, first = self.grid.k // self.config.teacher_steps, None
        # None is negative: the last of the lowest sub-path is hop - 1.
        times = [t - m * hop for m in range(self.config.teacher_steps)]
        levels = [level_t, *(self.schedule.at(time) for time in times[1:]), level_s]
        for time, level, level_next in zip(times, levels, levels[1:], strict=False):
            prediction = ask(x, time, level)
            first = first or prediction
            x = level_next.mix(prediction.x0, prediction.eps)
        return x, first

    def _middle(self, s: Tensor, level_t: Level, level_s: Level) -> tuple[Tensor, Level, Level]:
        """m, its level, and the level of the chord's noisy end."""
        rho_t, rho_s = level_t.rho, level_s.rho
        level_m, m = self.schedule.locate((rho_t + rho_s) / 2)
        if self.config.teacher_timesteps == "real":
            return m, level_m, level_t
        table = self.schedule.rho
        m = m.round().long()
        m = m - (2 * table[m] - rho_s > table[-1]).long()  # no end is noisier than the schedule
        m = torch.maximum(m, s + 1)
        level_t, _ = self.schedule.locate(2 * table[m] - rho_s)
        return m, self.schedule.at(m), level_t

r"""What all methods of the family share: the problem, counted networks, and jumps.

A **teacher** gives the PF-ODE's slope :math:`\epsilon(x, t)`; every method of the family trains a
student that takes long steps along the same trajectories. All of them can be said with one
operation in :math:`z = x/\alpha`, :math:`\rho = \sigma/\alpha`, the **jump** from t to s along a
straight line,

.. math:: z_s = z_t + (\rho_s - \rho_t)\,\bar\epsilon,

which is a DDIM step. The teacher's :math:`\bar\epsilon` is the slope at t; a student's is to be
the *mean* slope between t and s, so that one jump goes where the trajectory goes. The methods
differ in the s to which they jump, and in how they learn the mean slope.

Networks are called as in the library, and return v. Those of methods that jump to any s are also
given the jump's length, through the input for gamma: :math:`\gamma = 1 - (t - s)/T`. That input is
zero at length 0, where the mean slope is the teacher's, so that every student starts as the same
diffusion model.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from slam_edu.distill import DistillConfig, SubPathDistiller, SubPathSample
from slam_edu.losses import mse, pseudo_huber
from slam_edu.prediction import Prediction, read_output, to_output
from slam_edu.schedule import Level, NoiseSchedule


@dataclass
class Calls:
    """Evaluations of a network, in samples: forward, backward, and forward with a tangent."""

    forward: int = 0
    backward: int = 0
    tangent: int = 0

    def cost(self) -> int:
        """A forward evaluation costs 1, a backward one 2, a tangent (forward-mode AD) 1 more."""
        return self.forward + 2 * self.backward + self.tangent

    def clear(self) -> None:
        """Count from 0 again, for all who hold this count."""
        self.forward = self.backward = self.tangent = 0


class Counted:
    """A network that counts its evaluations; ``frozen`` ones take no gradient.

    It is called, ``network(x, t, cond, gamma)``, and no more: the network itself is in a closure,
    so that nothing can be evaluated past the count.

    Raises:
        AttributeError: for anything else that is asked of it.
        RuntimeError: in the backward pass, if a gradient reaches a frozen network.
    """

    def __init__(
        self, network: Callable[..., Tensor], name: str, *, frozen: bool = False,
        calls: Calls | None = None,
    ) -> None:  # fmt: skip
        self.name, self.frozen, self.calls = name, frozen, calls or Calls()

        def back(gradient: Tensor) -> None:
            if frozen:
                raise RuntimeError(
                    f"a gradient reached the {name}, which is not trained; call it under "
                    f"torch.no_grad()"
                )
            self.calls.backward += len(gradient)

        def evaluate(x: Tensor, t: Tensor, cond: Any, gamma: Tensor | None) -> Tensor:
            extra = {} if gamma is None else {"gamma": gamma}
            output = network(x, t, cond, **extra)
            self.calls.forward += len(x)
            if any(forward_ad.unpack_dual(v).tangent is not None for v in (x, t)):
                self.calls.tangent += len(x)
            if output.requires_grad:
                output.register_hook(back)
            return output

        def frozen_copy() -> Counted:
            made = copy.deepcopy(network)
            if isinstance(made, nn.Module):
                made.requires_grad_(False)
            return Counted(made, f"frozen copy of the {name}", frozen=True, calls=self.calls)

        self._evaluate, self.frozen_copy = evaluate, frozen_copy

    def __call__(
        self, x: Tensor, t: Tensor, cond: Any = None, gamma: Tensor | None = None
    ) -> Tensor:
        """The network's output, counted."""
        return self._evaluate(x, t, cond, gamma)

    def __deepcopy__(self, memo: dict) -> Counted:
        raise TypeError("a counted network cannot be copied; allowed: Trio.freeze")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{name!r} of a counted network cannot be reached; allowed: to call it, as "
            f"network(x, t, cond, gamma), or Trio.freeze for a copy of it"
        )


@dataclass
class Trio:
    """The three networks of a distillation, and how far its budget is used up."""

    teacher: Counted
    student: Counted
    target: Counted  # the moving average of the student
    used: float = 0.0  # from 0 to 1

    def freeze(self, network: Counted) -> Counted:
        """A copy that no longer changes; its evaluations count as the network's."""
        return network.frozen_copy()

    def cost(self) -> int:
        """Of all evaluations so far."""
        return sum(n.calls.cost() for n in (self.teacher, self.student, self.target))


class Method:
    r"""A way to distil: ``draw`` a batch, its ``loss``, and a ``sample`` in n steps.

    Subclasses set ``name`` and, if their network is given the jump's length, ``two_times``; and
    say how they ``draw``, what ``loss`` a batch has, and, unless they jump to data and add noise
    again as consistency models do, how they ``sample``. ``solve`` is their answer to where the
    trajectory through x at t ends.

    Args:
        schedule: the teacher's.
        subpaths: N, of methods with a grid.
        pieces: K, of methods that cut the trajectory into phases or windows.
        loss: ``"l2"`` or ``"huber"``.
        teacher_type: what the teacher predicts.
    """

    name: ClassVar[str]
    two_times: ClassVar[bool] = False
    gamma_input: str | None = None  # of the student; "smooth" where there are two times
    share: float = 1.0  # of the batch that it can afford
    restarts: ClassVar[int] = 1  # how often the learning rate falls from its top
    tuned: ClassVar[tuple[str, ...]] = ()  # beside rate, moving average and loss

    def __init__(
        self, schedule: NoiseSchedule, *, subpaths: int = 50, pieces: int = 4, loss: str = "l2",
        teacher_type: str = "epsilon",
    ) -> None:  # fmt: skip
        self.schedule, self.subpaths, self.loss_name = schedule, subpaths, loss
        self.teacher_type, self.pieces = teacher_type, pieces
        self.gamma_input = "smooth" if self.two_times else type(self).gamma_input
        self.grid, self.T = schedule.subpaths(subpaths), len(schedule)

    # What a method says of itself.

    def draw(self, x0: Tensor, generator: torch.Generator) -> Any:
        """What is random in a batch."""
        raise NotImplementedError

    def loss(self, x0: Tensor, batch: Any, networks: Trio) -> Tensor:
        """The loss of a batch, a scalar."""
        raise NotImplementedError

    def sample(
        self, student: Counted, x: Tensor, steps: int, generator: torch.Generator
    ) -> Tensor:
        """Samples from noise ``(B, D)`` in n steps: jump to data, add fresh noise, jump again.

        At n of the grid's noisy ends, evenly by index, as latent consistency models do; where n is
        more than N, some of them come twice.
        """
        times = self.grid.t.flip(0)[torch.arange(steps) * self.subpaths // steps]
        for i, t in enumerate(times):
            x = self.solve(student, x, t.expand(len(x)))
            if i + 1 < steps:
                noise = torch.randn(x.shape, generator=generator)
                x = self.schedule.at(times[i + 1]).mix(x, noise)
        return x

    def solve(self, student: Counted, x: Tensor, t: Tensor) -> Tensor:
        """Where the trajectory through x ``(B, D)`` at t ``(B,)`` ends at timestep 0."""
        return self.jump(student, x, t, torch.zeros_like(t))

    # What methods are made of.

    def predict(
        self, network: Counted, x: Tensor, t: Tensor, s: Tensor | None = None,
        level: Level | None = None,
    ) -> Prediction:  # fmt: skip
        r""":math:`(\hat x_0, \hat\epsilon)` of student, target or a copy at x and t.

        s is used where there are two times, and the level of t looked up unless it is given.
        """
        gamma = 1 - (t - s).to(x.dtype) / self.T if self.two_times else None
        level = level or self.schedule.at(t)
        return read_output(network(x, t, None, gamma), x, level, "v_prediction")

    def teach(self, networks: Trio, x: Tensor, t: Tensor) -> Prediction:
        """The teacher's prediction, without gradient."""
        with torch.no_grad():
            output = networks.teacher(x, t)
        return read_output(output, x, self.schedule.at(t), self.teacher_type)

    def jump(self, network: Counted, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """From x at t to s, both ``(B,)``, in one evaluation."""
        return self.move(self.predict(network, x, t, s), s)

    def move(self, prediction: Prediction, s: Tensor) -> Tensor:
        """To s along a straight line in z."""
        return self.schedule.at(s).mix(prediction.x0, prediction.eps)

    def line(self, x_t: Tensor, level_t: Level, x_s: Tensor, level_s: Level) -> Prediction:
        """Of the straight line in z through two points: its slope, and its point at rho = 0."""
        rho_t, rho_s = level_t.rho[:, None], level_s.rho[:, None]
        z_t, z_s = x_t / level_t.alpha[:, None], x_s / level_s.alpha[:, None]
        slope = (z_t - z_s) / (rho_t - rho_s)
        return Prediction(x0=z_s - rho_s * slope, eps=slope)

    def v(self, prediction: Prediction, level: Level) -> Tensor:
        """The prediction as v at a level."""
        return to_output(prediction, level, "v_prediction")

    def distance(self, p: Tensor, y: Tensor) -> Tensor:
        """The loss between prediction and target."""
        return mse(p, y) if self.loss_name == "l2" else pseudo_huber(p, y)

    def grid_times(self, steps: int) -> Tensor:
        """``steps + 1`` of the grid's ends, from T-1 to 0, evenly by index."""
        ends = torch.cat([self.grid.s[:1], self.grid.t])
        return ends[torch.linspace(self.subpaths, 0, steps + 1).round().long()]

    def spaced(self, steps: int) -> Tensor:
        """Real timesteps ``steps + 1`` from T-1 to 0, evenly."""
        return torch.linspace(self.T - 1, 0, steps + 1, dtype=self.schedule.dtype)

    def walk(self, student: Counted, x: Tensor, times: Tensor) -> Tensor:
        """Jump from each of the times to the next, adding no noise."""
        for t, s in itertools.pairwise(times):
            x = self.jump(student, x, t.expand(len(x)), s.expand(len(x)))
        return x


class ByDistiller(Method):
    """A method whose step is the library's, with ``settings`` of its ``DistillConfig``."""

    distiller_type: ClassVar[type[SubPathDistiller]] = SubPathDistiller
    settings: ClassVar[dict[str, object]] = {}
    coarser: ClassVar[tuple[int, ...]] = ()  # numbers of sub-paths through which N is reached

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.distiller = self.distil(self.subpaths)
        first = [self.distil(n) for n in self.coarser if n < self.subpaths]
        self.stages = [*first, self.distiller]

    def distil(self, subpaths: int) -> SubPathDistiller:
        """The library's step on a grid."""
        config = DistillConfig(**self.settings | {
            "subpaths": subpaths, "loss": self.loss_name,
            "teacher_prediction_type": self.teacher_type,
            "student_prediction_type": "v_prediction",
        })  # fmt: skip
        return self.distiller_type(self.schedule, config)

    def draw(self, x0: Tensor, generator: torch.Generator) -> SubPathSample:
        """A sub-path, a position on it, and noise for every sample."""
        return self.distiller.draw(x0, generator)

    def loss(self, x0: Tensor, batch: SubPathSample, networks: Trio) -> Tensor:
        """Of :class:`slam_edu.distill.SubPathDistiller`, on the grid of the moment."""
        stage = self.stages[int(networks.used * len(self.stages))]
        if stage is not self.distiller:  # the index was drawn for the finest
            index = batch.index * len(stage.grid) // len(self.distiller.grid)
            batch = SubPathSample(index=index, gamma=batch.gamma, noise=batch.noise)
        return stage.step(
            x0, batch, teacher=networks.teacher, student=networks.student, target=networks.target
        ).loss

    def solve(self, student: Counted, x: Tensor, t: Tensor) -> Tensor:
        """The consistency function."""
        return self.distiller.predict(student, x, t)

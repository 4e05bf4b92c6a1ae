r"""Small denoisers for points in the plane.

A network is called as the core calls all networks, ``network(x, t, cond=None, gamma=None)``, and
returns its raw output. ``t`` may be real-valued, so the same network serves as a learned teacher
and, under ``conditioning="level"``, as student and target.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from slam_edu._validation import check_choice, check_count
from slam_edu.embedding import GAMMA_INPUTS


class LevelMLP(nn.Module):
    r"""A multilayer perceptron conditioned on the noise level through its timestep.

    The timestep enters every hidden layer as a learned projection of
    :math:`[\sin 2^j \pi u/2,\ \cos 2^j \pi u/2]` with :math:`u = t/T` and :math:`j = 0 \dots m-1`.
    A network with a gamma input adds a projection of gamma's features there, zero at first, so
    that it starts as the network without one.

    Args:
        width: units of a hidden layer.
        depth: number of hidden layers.
        frequencies: m, number of octaves of the timestep's features.
        gamma: how the network is given its place on the sub-path. None: it is not, and refuses a
            gamma (``DistillConfig(conditioning="level")``). ``"official"``: by
            :func:`slam_edu.embedding.gamma_embedding`. ``"smooth"``: by
            :math:`\sin(2^j \pi (1-\gamma)/2),\ 1 - \cos(2^j \pi (1-\gamma)/2)`, ``j = 0, 1, 2``,
            which is 0 at :math:`\gamma = 1`.
        octaves: number of octaves of the coordinates' features,
            :math:`\sin, \cos(2^j \pi x/4)`; they help with fine detail.
        timesteps: T, length of the schedule.
        dim: number of coordinates of a point.
        generator: source of the initial weights; required, so that two networks can start alike.

    Raises:
        ValueError: for a size that is not positive, or an unknown kind of gamma input.
    """

    def __init__(
        self,
        width: int = 128,
        depth: int = 4,
        *,
        generator: torch.Generator,
        frequencies: int = 7,
        octaves: int = 0,
        timesteps: int = 1000,
        dim: int = 2,
        gamma: str | None = None,
    ) -> None:
        super().__init__()
        sizes = (("width", width), ("depth", depth), ("frequencies", frequencies), ("dim", dim))
        for name, size in sizes:
            check_count(size, name)
        check_count(timesteps, "timesteps", low=2)
        check_choice(gamma, (None, *GAMMA_INPUTS), "gamma")
        self.timesteps = timesteps
        self.register_buffer(
            "frequency", 2.0 ** torch.arange(frequencies) * (math.pi / 2), persistent=False
        )
        self.register_buffer(
            "octave", math.pi / 4 * 2.0 ** torch.arange(octaves), persistent=False
        )
        self.inputs = _linear(dim * (1 + 2 * octaves), width)
        # One product gives every layer's shift: (B, 2m) -> (B, depth * width).
        self.level = _linear(2 * frequencies, depth * width)
        self.hidden = nn.ModuleList(_linear(width, width) for _ in range(depth - 1))
        self.output = _linear(width, dim)
        self._reset(generator)
        self.gamma_features = GAMMA_INPUTS[gamma] if gamma else None
        if gamma:
            self.gamma = _linear(self.gamma_features(torch.ones(1)).shape[1], depth * width)
            nn.init.zeros_(self.gamma.weight)
            nn.init.zeros_(self.gamma.bias)

    @torch.no_grad()
    def _reset(self, generator: torch.Generator) -> None:
        """PyTorch's default initialisation, from the generator; the output starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.uniform_(-bound, bound, generator=generator)
        self.output.weight.zero_()
        self.output.bias.zero_()

    def forward(
        self, x: Tensor, t: Tensor, cond: object | None = None, gamma: Tensor | None = None
    ) -> Tensor:
        """Raw output at ``x`` of shape ``(B, dim)`` and timesteps ``t`` of shape ``(B,)``.

        Raises:
            ValueError: for a ``cond``, for a ``gamma`` without an input for it, or an input for
                it without a ``gamma``.
        """
        if cond is not None:
            raise ValueError("LevelMLP was given a cond; allowed: None, it has no condition")
        if (gamma is None) != (self.gamma_features is None):
            has = "no input" if self.gamma_features is None else "an input"
            given = "none" if gamma is None else "one"
            wants = "level" if self.gamma_features is None else "gamma"
            raise ValueError(
                f"LevelMLP has {has} for gamma and was given {given}; allowed for this network: "
                f"DistillConfig(conditioning={wants!r})"
            )
        angle = (t.to(x.dtype) / self.timesteps)[:, None] * self.frequency  # (B, m)
        shifts = self.level(torch.cat([angle.sin(), angle.cos()], dim=1))
        if gamma is not None:
            shifts = shifts + self.gamma(self.gamma_features(gamma.to(x.dtype)))
        first, *others = shifts.chunk(len(self.hidden) + 1, dim=1)  # depth of (B, width)
        waves = (x[:, :, None] * self.octave).flatten(1)  # (B, dim * octaves)
        h = nn.functional.silu(
            self.inputs(torch.cat([x, waves.sin(), waves.cos()], dim=1)) + first
        )
        for layer, shift in zip(self.hidden, others, strict=True):
            h = h + nn.functional.silu(layer(h) + shift)
        return self.output(h)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer without weights yet: nn.Linear would draw them from the global generator."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs)

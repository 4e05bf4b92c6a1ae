"""Stable Diffusion: the parts of a diffusers pipeline, as the library's core takes them.

Needs the ``sd`` extra (diffusers and transformers). :class:`LatentDiffusion` is the bridge: what
it hands out, a noise schedule, a network ``network(x, t, cond)`` and predictors, runs through the
same solvers and the same distillation step as the plane of lessons 01 to 05.
"""

from slam_edu.sd.components import LatentDiffusion

__all__ = ["LatentDiffusion"]

"""slam_edu: Sub-Path Linear Approximation Model (SLAM / SPLAM), taught and implemented.

The core, all of it importable from here, needs torch and numpy alone, and safetensors to save
a training run. It takes levels ``(alpha, sigma)`` and batches of any rank, so that 2-D points and
Stable Diffusion's latents run through the same lines:

    schedule     levels, noise schedules, the grid of sub-paths
    prediction   epsilon-, x0- and v-prediction, guidance
    solver       DDIM, Heun, DPM-Solver++ (2M), Runge-Kutta
    subpath      the chord between a sub-path's ends, and its level
    consistency  boundary scalings, the consistency function
    losses       mean squared error, pseudo-Huber
    distill      SubPathDistiller: one distillation step
    embedding    the official student's input of gamma
    ema          moving average of the weights
    sampling     DDIM, DPM-Solver++, multistep consistency sampling
    training     the loop around the step, and stopping and going on

Around it: ``slam_edu.toy`` (exact ground truth in 2-D), ``slam_edu.metrics``, ``slam_edu.sd``
(Stable Diffusion), ``slam_edu.digits`` (the shipped model), and beside it ``slam_course``, what
the lessons show, play with and check.

Method: Xu, Song, Feng, Li, Ge, Zheng and Wang, "Accelerating Image Generation with Sub-path Linear
Approximation Model", ECCV 2024, arXiv 2404.13903.
"""

import importlib

from slam_edu.consistency import boundary_scalings, consistency_output
from slam_edu.distill import (
    OFFICIAL,
    DistillConfig,
    DistillOutput,
    SubPath,
    SubPathDistiller,
    SubPathSample,
)
from slam_edu.ema import ema_copy, update_ema
from slam_edu.embedding import gamma_embedding, guidance_scale_embedding
from slam_edu.losses import mse, pseudo_huber
from slam_edu.prediction import (
    Prediction,
    add_noise,
    guided_prediction,
    network_predictor,
    to_output,
    to_prediction,
)
from slam_edu.sampling import (
    SampleState,
    consistency_timesteps,
    last,
    sample_consistency,
    sample_ddim,
    sample_dpmpp_2m,
    sample_pf_ode,
    spaced_timesteps,
)
from slam_edu.schedule import Level, NoiseSchedule, SubPathGrid
from slam_edu.solver import (
    PFODEState,
    ddim_step,
    dpmpp_2m_step,
    heun_step,
    pf_ode_trajectory,
    rk4_step,
    solve_pf_ode,
)
from slam_edu.subpath import chord, interpolate, sub_level
from slam_edu.training import (
    TrainConfig,
    TrainState,
    load_training,
    save_training,
    train_student,
    train_teacher,
)

__version__ = "0.1.0"

__all__ = [
    "OFFICIAL",
    "DistillConfig",
    "DistillOutput",
    "Level",
    "NoiseSchedule",
    "PFODEState",
    "Prediction",
    "SampleState",
    "Setup",
    "SubPath",
    "SubPathDistiller",
    "SubPathGrid",
    "SubPathSample",
    "TrainConfig",
    "TrainState",
    "add_noise",
    "boundary_scalings",
    "chord",
    "consistency_output",
    "consistency_timesteps",
    "ddim_step",
    "dpmpp_2m_step",
    "ema_copy",
    "gamma_embedding",
    "guidance_scale_embedding",
    "guided_prediction",
    "heun_step",
    "interpolate",
    "last",
    "load_training",
    "mse",
    "network_predictor",
    "pf_ode_trajectory",
    "pseudo_huber",
    "rk4_step",
    "sample_consistency",
    "sample_ddim",
    "sample_dpmpp_2m",
    "sample_pf_ode",
    "save_training",
    "setup",
    "solve_pf_ode",
    "spaced_timesteps",
    "sub_level",
    "to_output",
    "to_prediction",
    "train_student",
    "train_teacher",
    "update_ema",
]


def __getattr__(name: str) -> object:
    """``setup`` and ``Setup``, which the first cell of every lesson asks for, are the course's."""
    if name in ("Setup", "setup"):
        return getattr(importlib.import_module("slam_course.setup"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

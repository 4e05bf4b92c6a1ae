r"""What is measured of a student or of a solver of the teacher, as numbers by name.

The last part of a name is the number of network calls an image takes, n (a student's step is one
call, a guided step of a solver two), or a timestep t:

- ``right_n``: fraction of images that are as asked for; ``digit_n``, ``stroke_n`` and
  ``background_n``, its parts;
- ``frechet_teacher_n``, ``kernel_teacher_n``: distances to the teacher's samples from other noise;
  ``frechet_real_n``, ``kernel_real_n``: to held-out real images;
- ``latent_t``, ``pixel_t``: root mean square of :math:`f_\theta(x_t, t) - f^*(x_t, t)` over all
  elements, in latents and in the pixels they decode to (from -1 to 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slam_edu.digits.evaluate.scores import feature_distances
from slam_edu.digits.evaluate.table import NOISE_SEED, Setting
from slam_edu.digits.students.plan import STEPS
from slam_edu.digits.students.reference import Reference, SolutionMap, teacher_latents
from slam_edu.distill import SubPathDistiller
from slam_edu.sampling import last, sample_consistency
from slam_edu.sd.components import LatentDiffusion, TextCondition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import Networks
from slam_edu.seeding import sample_generator

FRESH_NOISE = 3_000_000
"""Seed of the noise that students add between steps."""

QUALITIES = (
    "right", "digit", "stroke", "background",
    "frechet_teacher", "kernel_teacher", "frechet_real", "kernel_real",
)  # fmt: skip
ERRORS = ("latent", "pixel")

Predict = Callable[[Tensor, int, TextCondition], Tensor]


def quality(reference: Reference, images: Tensor, calls: int) -> dict[str, float]:
    """What an evaluator says of images for the study's prompts.

    Args:
        reference: of the study.
        images: one for each prompt, of shape (n, 3, H, W), in [-1, 1].
        calls: network calls an image took, for the names.
    """
    judge = reference.evaluator
    right, features = judge.right(images), judge.features(images)
    parts = dict(zip(("digit", "stroke", "background"), right.double().mean(0), strict=True))
    found = {"right": right.all(1).double().mean(), **parts}
    for name, others in (("teacher", reference.teacher), ("real", judge.reference)):
        frechet, kernel, _ = feature_distances(others, features)
        found |= {f"frechet_{name}": frechet, f"kernel_{name}": kernel}
    return {f"{name}_{calls}": float(found[name]) for name in QUALITIES}


@torch.no_grad()
def map_errors(
    model: LatentDiffusion, points: SolutionMap, predict: Predict, batch: int = 128
) -> dict[str, float]:
    """``latent_t`` and ``pixel_t`` of a function that says where a point ends.

    Args:
        model: decodes.
        points: the solution map.
        predict: ``predict(x, t, cond)``, clean latents of x's shape.
        batch: points at a time.
    """
    latent, pixel = {}, {}
    for t, x in points.x.items():
        parts = [
            predict(x[i : i + batch], t, points.cond[i : i + batch])
            for i in range(0, len(x), batch)
        ]
        end = torch.cat(parts)
        latent[f"latent_{t}"] = _rms(end - points.end[t])
        pixel[f"pixel_{t}"] = _rms(model.decode(end) - points.pixels[t])
    return latent | pixel


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


# -------------------------------------------------------------------- students


def student_map(networks: Networks, config: SDConfig, model: LatentDiffusion) -> Predict:
    """A student's consistency function, ``f(x, t, cond)``, as :func:`map_errors` takes it.

    Args:
        networks: their moving average is asked, at gamma = 1.
        config: of the run.
        model: the teacher, for its levels.
    """
    distiller = SubPathDistiller(model.schedule, config.distill(model.prediction_type))
    return lambda x, t, cond: distiller.predict(networks.target, x, t, cond)


def study_noise(model: LatentDiffusion, count: int, seed: int) -> Tensor:
    """The noise from which all students of a seed draw, and with seed 0 the solvers.

    Args:
        model: the teacher.
        count: of latents.
        seed: of the run.
    """
    return model.draw_noise(count, sample_generator(NOISE_SEED, seed))


@torch.no_grad()
def student_latents(
    networks: Networks,
    config: SDConfig,
    model: LatentDiffusion,
    cond: TextCondition,
    noise: Tensor,
    steps: int,
    seed: int = 0,
    batch: int = 100,
) -> Tensor:
    """A student's samples as latents, of the noise's shape.

    Args:
        networks: their moving average draws, at gamma = 1.
        config: of the run.
        model: the teacher, for its levels.
        cond: conditions, one for each latent.
        noise: x at t = T-1.
        steps: of consistency sampling.
        seed: of the fresh noise, the same for all students.
        batch: latents at a time.
    """
    generator, drawn = sample_generator(FRESH_NOISE, seed, steps), []
    for i in range(0, len(noise), batch):
        states = sample_consistency(
            networks.target, noise[i : i + batch], model.schedule, steps, generator=generator,
            subpaths=config.distillation.subpaths, conditioning=config.distillation.conditioning,
            prediction_type=model.prediction_type, cond=cond[i : i + batch],
            timestep_scaling=config.distillation.timestep_scaling,
        )  # fmt: skip
        drawn.append(last(states))
    return torch.cat(drawn)


def measure_student(
    networks: Networks,
    config: SDConfig,
    reference: Reference,
    seed: int = 0,
    steps: Sequence[int] = STEPS,
) -> dict[str, float]:
    """All that is measured of a student; see the module.

    Args:
        networks: of the run; their moving average is measured.
        config: of the run.
        reference: of the study.
        seed: of the noise.
        steps: at which samples are drawn.
    """
    model = reference.model
    noise = study_noise(model, len(reference.cond), seed)
    found = {}
    for n in steps:
        latents = student_latents(networks, config, model, reference.cond, noise, n, seed)
        found |= quality(reference, model.decode(latents), n)
    return found | map_errors(model, reference.map, student_map(networks, config, model))


# -------------------------------------------------------------------- the teacher


def measure_solver(setting: Setting, reference: Reference) -> dict[str, float]:
    """What is measured of the teacher with a solver; its error to the map from t = T-1 alone.

    Args:
        setting: sampler, steps and guidance.
        reference: of the study.
    """
    model = reference.model
    noise = study_noise(model, len(reference.cond), 0)
    latents = teacher_latents(model, reference.cond, noise, setting)
    top = len(model.schedule) - 1
    from_top = SolutionMap(
        *({top: part[top]} for part in (reference.map.x, reference.map.end, reference.map.pixels)),
        cond=reference.map.cond,
        change={},
    )

    def ends(x: Tensor, _t: int, cond: TextCondition) -> Tensor:
        return teacher_latents(model, cond, x, setting)

    found = quality(reference, model.decode(latents), setting.calls)
    return found | map_errors(model, from_top, ends)


def measure_real(reference: Reference) -> dict[str, float]:
    """The same of real images, those that the prompts are captions of, as 0 calls."""
    return quality(reference, reference.evaluator.asked.images, 0)

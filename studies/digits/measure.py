r"""What is measured of a student or of a solver of the teacher, as numbers by name.

The names are explained in :mod:`slam_course.lesson_08.students`. Of a student that is conditioned
on gamma it is also asked why it fails where it does. It is trained at :math:`\gamma` uniform on
[0, 1) and used at :math:`\gamma = 1`, where the embedding is :math:`e(0)`: either :math:`e(0)` is
an outlier that the training never saw (:func:`shift_at_one`), or the student hardly listens to
:math:`\gamma`, and is as wrong at every gamma that it is given (:func:`errors_by_gamma`). In the
shipped study the latter is the case.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slam_course.lesson_08.students import DRAWS, STEPS, drawn_gammas, place_among
from slam_edu.digits.evaluate import Setting, teacher_latents
from slam_edu.distill import SubPathDistiller
from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.metrics import feature_distances
from slam_edu.sd.components import LatentDiffusion, TextCondition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import Networks
from slam_edu.sd.sampling import student_latents
from slam_edu.seeding import sample_generator
from studies.digits.reference import SolutionMap, TeacherReference

NOISE_SEED = 2024
"""Of the noise from which students and solvers draw."""

GIVEN = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)
"""Gammas that a student is given of the same point."""

Predict = Callable[[Tensor, int, TextCondition], Tensor]


def study_noise(model: LatentDiffusion, count: int, seed: int) -> Tensor:
    """The noise from which all students of a seed draw, and with seed 0 the solvers."""
    return model.draw_noise(count, sample_generator(NOISE_SEED, seed))


def quality(reference: TeacherReference, images: Tensor, calls: int) -> dict[str, float]:
    """What an evaluator finds in images (n, 3, H, W), one for each of the study's prompts."""
    judge = reference.evaluator
    right, features = judge.right(images), judge.features(images)
    parts = dict(zip(("digit", "stroke", "background"), right.double().mean(0), strict=True))
    found = {"right": right.all(1).double().mean(), **parts}
    for name, others in (("teacher", reference.teacher), ("real", judge.reference)):
        frechet, kernel, _ = feature_distances(others, features)
        found |= {f"frechet_{name}": frechet, f"kernel_{name}": kernel}
    return {f"{name}_{calls}": float(value) for name, value in found.items()}


@torch.no_grad()
def map_errors(
    model: LatentDiffusion, points: SolutionMap, predict: Predict, batch: int = 128
) -> dict[str, float]:
    """``latent_t`` and ``pixel_t`` of ``predict(x, t, cond)``, which gives clean latents."""
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


def measure_student(
    networks: Networks, config: SDConfig, reference: TeacherReference, seed: int = 0
) -> dict[str, float]:
    """All that is measured of a student's moving average."""
    model = reference.model
    noise = study_noise(model, len(reference.cond), seed)
    found = {}
    for n in STEPS:
        latents = student_latents(networks, config, model, reference.cond, noise, n, seed)
        found |= quality(reference, model.decode(latents), n)
    distiller = SubPathDistiller(model.schedule, config.distill(model.prediction_type))
    return found | map_errors(
        model, reference.map, lambda x, t, cond: distiller.predict(networks.target, x, t, cond)
    )


def measure_solver(setting: Setting, reference: TeacherReference) -> dict[str, float]:
    """What is measured of the teacher with a solver; its error to the map from t = T-1 alone."""
    model, points = reference.model, reference.map
    noise = study_noise(model, len(reference.cond), 0)
    latents = teacher_latents(model, reference.cond.states, noise, setting)
    top = len(model.schedule) - 1
    from_top = SolutionMap(
        *({top: part[top]} for part in (points.x, points.end, points.pixels)),
        cond=points.cond,
        change={},
    )
    found = quality(reference, model.decode(latents), setting.calls)
    return found | map_errors(
        model, from_top, lambda x, _t, cond: teacher_latents(model, cond.states, x, setting)
    )


def measure_real(reference: TeacherReference) -> dict[str, float]:
    """The same of real images, those that the prompts are captions of, as 0 calls."""
    return quality(reference, reference.evaluator.asked.images, 0)


# -------------------------------------------------------------------- at gamma = 1


def shift_at_one(networks: Networks, gamma_input: str = "official") -> dict[str, float]:
    r"""Where what a student adds at :math:`\gamma = 1` lies among what it adds below.

    The embedding of gamma is added to the sinusoids of the timestep, which are
    :math:`\sqrt{C/2}` long: ``norm_time``. The other numbers are those of
    :func:`slam_course.lesson_08.students.embedding_at_one`, but ``seen``.
    """
    features, weight = GAMMA_INPUTS[gamma_input], networks.gamma_weight().cpu().double()
    one, zero = features(torch.tensor([1.0, 0.0], dtype=torch.float64)) @ weight.T
    below = features(drawn_gammas(DRAWS)) @ weight.T
    return place_among(below, one, zero) | {"norm_time": (len(weight) / 2) ** 0.5}


def errors_by_gamma(
    networks: Networks, config: SDConfig, model: LatentDiffusion, points: SolutionMap
) -> dict[str, dict[str, float]]:
    """Errors to the solution map of a student that is given other gammas than 1.

    The point and its level stay those of gamma = 1; a student whose embedding carries over from
    its training gives nearly the same end when it is given .99.
    """
    distiller = SubPathDistiller(model.schedule, config.distill(model.prediction_type))

    def ends(gamma: float) -> Predict:
        def network(x: Tensor, t: Tensor, cond: TextCondition, one: Tensor) -> Tensor:
            return networks.target(x, t, cond, torch.full_like(one, gamma))

        return lambda x, t, cond: distiller.predict(network, x, t, cond)

    return {f"{gamma:g}": map_errors(model, points, ends(gamma)) for gamma in GIVEN}

r"""What students are held against: the teacher's own solution map, and its own samples.

**Solution map.** From a point :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`, with :math:`x_0` the
latent of a held-out real image and its caption as the prompt, the teacher's guided PF-ODE ends at
one clean latent, :math:`f^*(x_t, t)`: what a perfect consistency student would give at once. It is
followed by DPM-Solver++(2M) on levels that are even in :math:`\log\rho`; twice as many steps on
some of the points tell how far its ends are from exact.

**Samples.** The teacher's images for the study's prompts in 50 DDIM steps, from noise that no
student is given. A student that were the teacher's equal would be as far from them as the
teacher's samples from other noise are: that is the floor.

Both take minutes, and lie as safetensors in the study's folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slam_course.lesson_08.students import TEACHER_STEPS, TIMES, solved
from slam_edu.digits.evaluate import Evaluator, Setting, teacher_latents
from slam_edu.io import atomic_path, save_tensors
from slam_edu.prediction import add_noise
from slam_edu.sd.components import LatentDiffusion, TextCondition, text_condition
from slam_edu.sd.teacher import load_teacher
from slam_edu.seeding import sample_generator
from studies.digits.students import StudentPlan

MAP_NOISE, TEACHER_NOISE = 1_000_000, 2_000_000
"""Seeds of the noise at the map's points, and of the teacher's samples."""

MAP, SAMPLES = "solution_map.safetensors", "teacher_samples.safetensors"
CHECKED = 32
"""Points on which the solver is checked with twice its steps."""


@dataclass(frozen=True)
class SolutionMap:
    """Points on the way and where the teacher's guided PF-ODE takes them.

    Attributes:
        x: for each timestep, latents there, of shape (n, C, h, w).
        end: the clean latents of those, f*.
        pixels: the images of those, (n, 3, H, W), in [-1, 1].
        cond: conditions of the n prompts.
        change: for each timestep, what twice as many steps of the solver change: root mean square
            over latents of the first ``CHECKED`` points.
    """

    x: dict[int, Tensor]
    end: dict[int, Tensor]
    pixels: dict[int, Tensor]
    cond: TextCondition
    change: dict[int, float]


@dataclass(frozen=True)
class TeacherReference:
    """All that a measurement needs.

    Attributes:
        model: the teacher's parts.
        evaluator: judges images; its prompts are the study's.
        cond: conditions of the prompts.
        map: the solution map.
        teacher: features of the teacher's samples, of shape (n, 128).
    """

    model: LatentDiffusion
    evaluator: Evaluator
    cond: TextCondition
    map: SolutionMap
    teacher: Tensor


def teacher_model(plan: StudentPlan) -> LatentDiffusion:
    """The teacher of a study, the shipped digits model unless the plan's changes name another."""
    pipeline = load_teacher(plan.config(plan.names[0], 0))
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    return LatentDiffusion(pipeline)


def fingerprint(model: LatentDiffusion) -> str:
    """Twelve hexadecimal digits of all weights, as the shipped results have them."""
    digest = hashlib.sha256()
    pipeline = model.pipeline
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def make_reference(
    model: LatentDiffusion, evaluator: Evaluator, plan: StudentPlan, out: Path
) -> TeacherReference:
    """The reference of a study, from its folder, which exists, where it is there."""
    return TeacherReference(
        model=model,
        evaluator=evaluator,
        cond=text_condition(model.pipeline, evaluator.prompts),
        map=solution_map(model, evaluator, plan, out / MAP),
        teacher=teacher_samples(model, evaluator, plan, out / SAMPLES),
    )


def solution_map(
    model: LatentDiffusion, evaluator: Evaluator, plan: StudentPlan, path: Path
) -> SolutionMap:
    """The teacher's solution map, from the file where that is the same one.

    The points are of the evaluator's real images and prompts, the first ``plan.points`` of them.
    """
    guidance, points, steps = plan.guidance, plan.points, plan.solver_steps
    about = {
        "kind": "solution map", "weights": fingerprint(model), "guidance": guidance,
        "points": points, "steps": steps, "times": list(TIMES),
    }  # fmt: skip
    cond = text_condition(model.pipeline, evaluator.prompts[:points])

    def made() -> dict[str, Tensor]:
        x0 = model.encode_images(evaluator.asked.images[:points])
        tensors = {}
        for i, t in enumerate(TIMES):
            noise = torch.randn(x0.shape, generator=sample_generator(MAP_NOISE, i))
            x = add_noise(x0, noise, model.schedule(t))
            end = solved(model, x, t, cond.states, guidance, steps)
            few = slice(min(CHECKED, points))
            finer = solved(model, x[few], t, cond.states[few], guidance, 2 * steps)
            change = (end[few] - finer).square().mean().sqrt()
            tensors |= {f"x_{t}": x, f"end_{t}": end, f"change_{t}": change}
        return tensors

    found = _kept(path, about, made)
    return SolutionMap(
        x={t: found[f"x_{t}"] for t in TIMES},
        end={t: found[f"end_{t}"] for t in TIMES},
        pixels={t: model.decode(found[f"end_{t}"]) for t in TIMES},
        cond=cond,
        change={t: float(found[f"change_{t}"]) for t in TIMES},
    )


def teacher_samples(
    model: LatentDiffusion, evaluator: Evaluator, plan: StudentPlan, path: Path
) -> Tensor:
    """Features of the teacher's samples for the evaluator's prompts in 50 DDIM steps, (n, 128)."""
    n = len(evaluator.prompts)
    about = {
        "kind": "teacher's samples", "weights": fingerprint(model), "guidance": plan.guidance,
        "count": n, "steps": TEACHER_STEPS,
    }  # fmt: skip

    def made() -> dict[str, Tensor]:
        noise = model.draw_noise(n, sample_generator(TEACHER_NOISE))
        states = text_condition(model.pipeline, evaluator.prompts).states
        setting = Setting(steps=TEACHER_STEPS, guidance=plan.guidance)
        latents = teacher_latents(model, states, noise, setting)
        return {"features": evaluator.features(model.decode(latents)), "latents": latents}

    return _kept(path, about, made)["features"]


def _kept(
    path: Path, about: Mapping[str, object], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of the file if it is of this description; else they are made, and written."""
    from safetensors import SafetensorError, safe_open

    text = json.dumps(dict(about), sort_keys=True)
    if path.exists():
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("about") == text:
                    return {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError):
            pass  # damaged: made anew
    tensors = make()
    with atomic_path(path) as temporary:
        save_tensors(tensors, temporary, {"about": text})
    return tensors

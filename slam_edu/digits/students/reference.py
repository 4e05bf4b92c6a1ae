r"""What students are held against: the teacher's own solution map, and its own samples.

**Solution map.** From a point :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`, with :math:`x_0` the
latent of a held-out real image and its caption as the prompt, the teacher's guided PF-ODE ends at
one clean latent, :math:`f^*(x_t, t)`: what a perfect consistency student would say at once. It is
followed by DPM-Solver++(2M) on levels that are even in :math:`\log\rho`; twice as many steps on
some of the points tell how far its ends are from exact.

**Samples.** The teacher's images for the study's prompts in 50 DDIM steps, from noise that no
student is given. A student that were the teacher's equal would be as far from them as the
teacher's samples from other noise are: that is the floor.

Both take minutes, and lie as safetensors in the study's folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slam_edu._validation import check_choice, check_count
from slam_edu.digits.evaluate.scores import Evaluator
from slam_edu.digits.evaluate.table import Setting, fingerprint
from slam_edu.digits.students.plan import GUIDANCE, TEACHER_STEPS, TIMES, Plan
from slam_edu.io import atomic_path, save_tensors
from slam_edu.prediction import add_noise, network_predictor
from slam_edu.sampling import last, sample_pf_ode
from slam_edu.schedule import Level, NoiseSchedule
from slam_edu.sd.components import LatentDiffusion, TextCondition, text_condition
from slam_edu.sd.teacher import load_teacher
from slam_edu.seeding import sample_generator
from slam_edu.solver import solve_pf_ode

MAP_NOISE, TEACHER_NOISE = 1_000_000, 2_000_000
"""Seeds of the noise at the map's points, and of the teacher's samples."""

MAP, SAMPLES = "solution_map.safetensors", "teacher_samples.safetensors"
CHECKED = 32
"""Points on which the solver is checked with twice its steps."""

_BATCH = 100

Show = Callable[[str], None]


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
class Reference:
    """All that a measurement needs.

    Attributes:
        model: the teacher's parts.
        evaluator: judges images; its prompts are the study's.
        cond: conditions of the prompts.
        map: the solution map.
        teacher: features of the teacher's samples, of shape (n, 128).
        latents: those samples, of shape (n, C, h, w).
        guidance: w of all of it.
    """

    model: LatentDiffusion
    evaluator: Evaluator
    cond: TextCondition
    map: SolutionMap
    teacher: Tensor
    latents: Tensor
    guidance: float


def teacher_model(plan: Plan) -> LatentDiffusion:
    """The teacher of a study, the shipped digits model unless the plan's changes say another.

    Args:
        plan: of the study.
    """
    pipeline = load_teacher(plan.config(plan.names[0], 0))
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    return LatentDiffusion(pipeline)


def even_levels(schedule: NoiseSchedule, t: int, steps: int) -> Level:
    r"""``steps + 2`` levels: from timestep t to 0, even in :math:`\log\rho`, then the clean one.

    Args:
        schedule: the levels.
        t: timestep, above 0.
        steps: number of hops from t to 0.

    Raises:
        ValueError: for a number of steps below 1, or a timestep that is not 1 ... T-1.
    """
    check_count(steps, "steps")
    check_count(t, "t", high=len(schedule) - 1)
    ends = schedule(torch.tensor([t, 0], device=schedule.device)).rho.double().log()
    log_rho = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, steps + 1).double()
    rho = log_rho.exp().to(schedule.dtype)
    rho[0], rho[-1] = schedule.rho[t], schedule.rho[0]  # the table's own, to the last bit
    return Level.cat([Level.from_rho(rho), Level.clean(rho[:1])])


@torch.no_grad()
def solved(
    model: LatentDiffusion,
    x: Tensor,
    t: int,
    cond: Tensor,
    guidance: float,
    steps: int,
    batch: int = _BATCH,
) -> Tensor:
    """The ends of the teacher's guided PF-ODE, of ``x``'s shape.

    Args:
        model: the teacher.
        x: latents at timestep t, of shape (n, C, h, w).
        t: timestep.
        cond: text states of shape (n, L, D).
        guidance: w.
        steps: of DPM-Solver++(2M), from t to 0; a last one goes to the clean level.
        batch: latents at a time.
    """
    levels, ends = even_levels(model.schedule, t, steps), []
    empty = model.encode_prompts("") if guidance else None
    for part, states in zip(x.split(batch), cond.split(batch), strict=True):
        predictor = network_predictor(
            model.network, model.schedule, prediction_type=model.prediction_type, cond=states,
            uncond=None if empty is None else empty.expand_as(states), guidance=guidance,
        )  # fmt: skip
        for state in solve_pf_ode(predictor, part, levels, "dpmpp_2m"):
            end = state.x
        ends.append(end)
    return torch.cat(ends)


def solution_map(
    model: LatentDiffusion,
    evaluator: Evaluator,
    *,
    guidance: float = GUIDANCE,
    points: int = 256,
    steps: int = 40,
    times: Sequence[int] = TIMES,
    path: Path | None = None,
    show: Show = lambda text: None,
) -> SolutionMap:
    """The teacher's solution map at some timesteps, from the file where that is the same one.

    Args:
        model: the teacher.
        evaluator: its real images and prompts are used, the first ``points`` of them.
        guidance: w.
        points: n.
        steps: of the solver.
        times: timesteps.
        path: a safetensors file, read or written; None: neither.
        show: is told what is done.

    Raises:
        ValueError: for more points than the evaluator has prompts.
    """
    check_count(points, "points", high=len(evaluator.prompts))
    about = {
        "kind": "solution map", "weights": fingerprint(model), "guidance": guidance,
        "points": points, "steps": steps, "times": list(times),
    }  # fmt: skip
    cond = text_condition(model.pipeline, evaluator.prompts[:points])

    def made() -> dict[str, Tensor]:
        x0 = model.encode_images(evaluator.asked.images[:points])
        tensors = {}
        for i, t in enumerate(times):
            show(f"solution map at t = {t}: {points} points, {steps} steps")
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
        x={t: found[f"x_{t}"] for t in times},
        end={t: found[f"end_{t}"] for t in times},
        pixels={t: model.decode(found[f"end_{t}"]) for t in times},
        cond=cond,
        change={t: float(found[f"change_{t}"]) for t in times},
    )


def teacher_samples(
    model: LatentDiffusion,
    evaluator: Evaluator,
    *,
    guidance: float = GUIDANCE,
    path: Path | None = None,
    show: Show = lambda text: None,
) -> tuple[Tensor, Tensor]:
    """The teacher's samples for the evaluator's prompts in 50 DDIM steps.

    Args:
        model: the teacher.
        evaluator: its prompts, and the classifier's features.
        guidance: w.
        path: a safetensors file, read or written; None: neither.
        show: is told what is done.

    Returns:
        features of their images, of shape (n, 128), and the latents, (n, C, h, w).
    """
    n = len(evaluator.prompts)
    about = {
        "kind": "teacher's samples", "weights": fingerprint(model), "guidance": guidance,
        "count": n, "steps": TEACHER_STEPS,
    }  # fmt: skip

    def made() -> dict[str, Tensor]:
        show(f"the teacher's own samples: {n} prompts, {TEACHER_STEPS} DDIM steps")
        noise = model.draw_noise(n, sample_generator(TEACHER_NOISE))
        latents = teacher_latents(
            model, text_condition(model.pipeline, evaluator.prompts), noise,
            Setting(sampler="ddim", steps=TEACHER_STEPS, guidance=guidance),
        )  # fmt: skip
        return {"features": evaluator.features(model.decode(latents)), "latents": latents}

    found = _kept(path, about, made)
    return found["features"], found["latents"]


@torch.no_grad()
def teacher_latents(
    model: LatentDiffusion,
    cond: TextCondition,
    noise: Tensor,
    setting: Setting,
    batch: int = _BATCH,
) -> Tensor:
    """The teacher's samples as latents, of the noise's shape.

    Args:
        model: the teacher.
        cond: conditions, one for each latent.
        noise: x at t = T-1.
        setting: sampler, steps and guidance.
        batch: latents at a time.
    """
    drawn = []
    empty = model.encode_prompts("") if setting.guidance else None
    for i in range(0, len(noise), batch):
        states = cond.states[i : i + batch]
        drawn.append(
            last(
                sample_pf_ode(
                    model.network, noise[i : i + batch], model.schedule, setting.steps,
                    method=setting.sampler, prediction_type=model.prediction_type, cond=states,
                    uncond=None if empty is None else empty.expand_as(states),
                    guidance=setting.guidance,
                )
            )
        )  # fmt: skip
    return torch.cat(drawn)


def make_part(
    model: LatentDiffusion, evaluator: Evaluator, plan: Plan, part: str, out: Path | None = None,
    show: Show = lambda text: None,
) -> SolutionMap | tuple[Tensor, Tensor]:  # fmt: skip
    """One of the two parts of a reference, ``MAP`` or ``SAMPLES``, from its file if it is there.

    Args:
        model: the teacher.
        evaluator: with the plan's number of prompts.
        plan: of the study.
        part: which.
        out: the study's folder, which exists; None: nothing is kept.
        show: is told what is done.
    """
    check_choice(part, (MAP, SAMPLES), "part")
    options = {"guidance": plan.guidance, "path": out and out / part, "show": show}
    if part == SAMPLES:
        return teacher_samples(model, evaluator, **options)
    return solution_map(model, evaluator, points=plan.points, steps=plan.solver_steps, **options)


def make_reference(
    model: LatentDiffusion,
    evaluator: Evaluator,
    plan: Plan,
    out: Path | None = None,
    show: Show = lambda text: None,
) -> Reference:
    """The reference of a study, from its folder where it is there.

    Args:
        model: the teacher.
        evaluator: with the plan's number of prompts.
        plan: of the study.
        out: the study's folder, which exists; None: nothing is kept.
        show: is told what is done.
    """
    features, latents = make_part(model, evaluator, plan, SAMPLES, out, show)
    return Reference(
        model=model,
        evaluator=evaluator,
        cond=text_condition(model.pipeline, evaluator.prompts),
        map=make_part(model, evaluator, plan, MAP, out, show),
        teacher=features,
        latents=latents,
        guidance=plan.guidance,
    )


def _kept(
    path: Path | None, about: Mapping[str, object], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of the file if it is of this description; else they are made, and written."""
    from safetensors import SafetensorError, safe_open

    text = json.dumps(dict(about), sort_keys=True)
    if path is not None and path.exists():
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("about") == text:
                    return {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError):
            pass  # damaged: made anew
    tensors = make()
    if path is not None:
        with atomic_path(path) as temporary:
            save_tensors(tensors, temporary, {"about": text})
    return tensors

"""The teacher's table: sampler, steps and guidance against scores, kept in a file.

Each setting's row is written when it is measured, so that a stopped run goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slam_edu._validation import check_choice, check_count
from slam_edu.digits.data import CaptionedDigits
from slam_edu.digits.evaluate.scores import HELD_OUT_SEED, Evaluator, Scores
from slam_edu.digits.train.vae import psnr
from slam_edu.io import atomic_path
from slam_edu.sampling import last, sample_pf_ode
from slam_edu.sd.components import LatentDiffusion

SAMPLERS = ("ddim", "dpmpp_2m")
#: Guidance w of the trade-off at 50 DDIM steps; diffusers' guidance_scale is w + 1.
GUIDANCES = (0.0, 0.5, 1.0, 2.0, 3.0)
STEPS = (1, 2, 4, 8, 16)
NOISE_SEED = 2024


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How images are drawn.

    Attributes:
        sampler: ``"ddim"`` or ``"dpmpp_2m"``.
        steps: of the sampler.
        guidance: w; diffusers' ``guidance_scale`` less 1.
    """

    sampler: str = "ddim"
    steps: int = 50
    guidance: float = 2.0

    def __post_init__(self) -> None:
        check_choice(self.sampler, SAMPLERS, "sampler")
        check_count(self.steps, "steps", high=1000)
        if not 0 <= self.guidance <= 100:
            raise ValueError(f"guidance is {self.guidance!r}; allowed: from 0 to 100")

    @property
    def calls(self) -> int:
        """Network calls an image: guidance takes two a step."""
        return self.steps * (2 if self.guidance else 1)


@torch.no_grad()
def draw_images(
    model: LatentDiffusion,
    prompts: Sequence[str],
    setting: Setting,
    noise: Tensor,
    batch: int = 100,
) -> Tensor:
    """Images for prompts, of shape (B, 3, H, W), in [-1, 1].

    Args:
        model: draws.
        prompts: B of them.
        setting: sampler, steps and guidance.
        noise: x at t = T-1, of shape (B, C, h, w).
        batch: images at a time.
    """
    images = []
    for i in range(0, len(prompts), batch):
        cond = model.encode_prompts(prompts[i : i + batch])
        uncond = model.encode_prompts([""] * len(cond)) if setting.guidance else None
        states = sample_pf_ode(
            model.network,
            noise[i : i + batch],
            model.schedule,
            setting.steps,
            method=setting.sampler,
            prediction_type=model.prediction_type,
            cond=cond,
            uncond=uncond,
            guidance=setting.guidance,
        )
        images.append(model.decode(last(states)))
    return torch.cat(images)


def settings(table_guidance: float = 2.0) -> list[Setting]:
    """The table's rows: the trade-off over guidance, then few steps of both samplers.

    Args:
        table_guidance: guidance of the few-step rows.
    """
    trade_off = [Setting(guidance=w) for w in GUIDANCES]
    few = [
        Setting(sampler=sampler, steps=steps, guidance=table_guidance)
        for sampler in SAMPLERS
        for steps in STEPS
    ]
    return [*trade_off, *few]


def measure(
    model: LatentDiffusion,
    evaluator: Evaluator,
    wanted: Iterable[Setting],
    path: Path,
    noise_seed: int = NOISE_SEED,
) -> Iterator[tuple[Setting, Scores]]:
    """Measure settings that the results file lacks, adding a row for each.

    Args:
        model: draws.
        evaluator: judges; its number of prompts is the number of images.
        wanted: the settings.
        path: the results file, made if it is not there.
        noise_seed: of the noise, the same for every setting.

    Yields:
        each setting with its scores, measured now or before.

    Raises:
        ValueError: if the file holds results of another number of images or of other weights, or
            cannot be read.
    """
    results = read_results(path, len(evaluator.prompts))
    weights = fingerprint(model)
    if results.setdefault("weights", weights) != weights:
        raise ValueError(
            f"{str(path)!r} holds results of a model with the fingerprint {results['weights']}, "
            f"this one has {weights}; allowed: the same model, or another file"
        )
    noise = model.draw_noise(len(evaluator.prompts), torch.Generator().manual_seed(noise_seed))
    if "floor" not in results or "parts" not in results:
        results["floor"] = dataclasses.asdict(evaluator.floor())
        results["parts"] = part_scores(model, evaluator)
        _write(path, results)
    known = {Setting(**row["setting"]): Scores(**row["scores"]) for row in results["rows"]}
    for setting in wanted:
        if setting not in known:
            started = time.perf_counter()
            images = draw_images(model, evaluator.prompts, setting, noise)
            known[setting] = evaluator.score(images)
            # Read again: a second process may have added rows.
            results = read_results(path, len(evaluator.prompts))
            results["rows"].append(
                {
                    "setting": dataclasses.asdict(setting),
                    "scores": dataclasses.asdict(known[setting]),
                    "seconds": round(time.perf_counter() - started, 1),
                }
            )
            _write(path, results)
        yield setting, known[setting]


def part_scores(model: LatentDiffusion, evaluator: Evaluator) -> dict[str, float]:
    """What the parts do alone, on held-out images in other colours than the evaluator's.

    Args:
        model: its autoencoder takes 500 images to latents and back.
        evaluator: its classifier reads all 4,000.

    Returns:
        ``psnr`` of the images that come back, in dB, and ``digit``, the fraction read rightly.
    """
    data = CaptionedDigits("test")
    held_out = data.batch(range(len(data)), HELD_OUT_SEED + 1)
    right = evaluator.classifier.read(held_out.images) == held_out.digit
    return {
        "psnr": psnr(model.pipeline.vae, held_out.images[:500]),
        "digit": float(right.double().mean()),
    }


def fingerprint(model: LatentDiffusion) -> str:
    """Twelve hexadecimal digits that tell the weights of one model from those of another."""
    digest = hashlib.sha256()
    pipeline = model.pipeline
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def read_results(path: Path, count: int | None = None) -> dict:
    """A results file's content; without a file, one without rows.

    Args:
        path: of the file.
        count: of images that its rows must have; None allows any.

    Raises:
        ValueError: for a file that cannot be read, or of another count.
    """
    if not path.exists():
        return {"count": count, "rows": []}
    try:
        results = json.loads(path.read_text("utf-8"))
        found, _ = results["count"], results["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); allowed: a results file of "
            f"`python -m slam_edu.digits.evaluate`; move it away to measure anew"
        ) from error
    if count is not None and found != count:
        raise ValueError(
            f"{str(path)!r} holds results of {found} images, {count} were asked for; allowed: the "
            f"same number, or another file"
        )
    return results


def _write(path: Path, results: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def as_text(results: dict) -> str:
    """The table for a terminal, in Markdown.

    Args:
        results: of :func:`read_results`.
    """
    columns = ("digit", "stroke", "background", "all_right")
    floor, parts = Scores(**results["floor"]), results["parts"]
    lines = [
        f"{results['count']:,} images for as many prompts; distances to as many held-out real "
        f"images.",
        f"The autoencoder alone: {parts['psnr']:.1f} dB PSNR on 500 held-out images. "
        f"The classifier alone: {parts['digit']:.4f} of 4,000 held-out digits right.",
        "",
        "| drawn by | steps | guidance w | network calls | digit | stroke | background "
        "| all right | Fréchet | over floor | kernel x 1000 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def row(head: tuple[str, ...], scores: Scores) -> str:
        rates = [f"{getattr(scores, name):.4f}" for name in columns]
        distances = [
            f"{scores.frechet:.2f}",
            f"{scores.frechet / floor.frechet:.1f}",
            f"{1000 * scores.kernel:.1f} ± {1000 * scores.kernel_std:.1f}",
        ]
        return "| " + " | ".join([*head, *rates, *distances]) + " |"

    lines.append(row(("real images (floor)", "", "", ""), floor))
    rows = [(Setting(**r["setting"]), Scores(**r["scores"])) for r in results["rows"]]
    order = {sampler: i for i, sampler in enumerate(SAMPLERS)}
    rows.sort(key=lambda r: (-(r[0].steps == 50), order[r[0].sampler], -r[0].steps, r[0].guidance))
    for setting, scores in rows:
        name = {"ddim": "DDIM", "dpmpp_2m": "DPM-Solver++ 2M"}[setting.sampler]
        head = (name, str(setting.steps), f"{setting.guidance:g}", str(setting.calls))
        lines.append(row(head, scores))
    return "\n".join(lines)

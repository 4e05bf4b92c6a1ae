r"""Figures of any text-to-image pipeline: do images match the prompts, are they like real ones.

A CLIP model judges (Radford et al. 2021), which embeds images and texts in one space.

- CLIP score (Hessel et al. 2021): :math:`100 \cos(\text{image}, \text{prompt})`, mean over the
  prompts. Good images of photographs' captions have about 25 to 35, by the model.
- Fréchet and kernel distance between two sets of images
  (:func:`slam_edu.metrics.feature_distances`) on CLIP's image embeddings. They are **not** the
  "FID" and "KID" of papers, which are measured on features of Inception v3: compare them with each
  other alone. A Fréchet distance needs many more images than an embedding has numbers.

All pipelines draw the prompt number i from the noise of (seed, i), and what is compared is the
number of network calls, which are counted where they happen: guidance takes two a step.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from slam_edu._validation import check_choice, check_count
from slam_edu.io import atomic_path, check_output
from slam_edu.metrics import feature_distances
from slam_edu.sd.components import quiet
from slam_edu.sd.teacher import folder_or_download, load_pipeline_folder, model_folder
from slam_edu.seeding import sample_generator
from slam_edu.shipped import shipped

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from PIL.Image import Image

    Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

#: The default judge, at one commit. ViT-B/32's own repository has its weights as a pickle alone.
CLIP = ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
SAMPLERS = ("lcm", "ddim", "dpmpp_2m")
#: Guidance w of a pipeline that is not distilled, where none is given: diffusers' scale of 7.5.
GUIDANCE = 6.5
STEPS = (1, 2, 4, 8)


class ClipScorer:
    """Judges images by a CLIP model, in float32.

    torchmetrics' CLIPScore keeps no embeddings, which the distances need, and loads no pinned
    commit.

    ``model`` is a folder with the model, its tokenizer and its image processor, or an id on the
    Hugging Face hub with its commit; ``batch`` counts images or texts at a time.

    Raises:
        FileNotFoundError: for a path that is no folder.
        ValueError: for an id without a commit, or a folder that is no CLIP model's.
        ConnectionError: for an id that is not kept on this machine and cannot be downloaded.
    """

    def __init__(
        self, model: str = CLIP[0], revision: str | None = None, *, device: str = "cpu",
        batch: int = 32,
    ) -> None:  # fmt: skip
        if revision is None and model == CLIP[0]:
            revision = CLIP[1]

        def download() -> str:
            from huggingface_hub import snapshot_download

            # No pickles: a repository without safetensors is then one without weights.
            files = ["*.json", "*.txt", "model.safetensors"]
            return snapshot_download(model, revision=revision, allow_patterns=files)

        folder = folder_or_download(model, revision, download)
        self.name = model if revision is None else f"{model}@{revision}"
        self.device, self.batch = device, batch
        with quiet():
            self._load(folder)
        self.model.eval().requires_grad_(False).to(device)

    def _load(self, folder: Path) -> None:
        import transformers
        from safetensors import SafetensorError

        # Pillow's resizing, with and without torchvision; older versions have it by this name.
        processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
        try:
            self.model, found = transformers.CLIPModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True,
                output_loading_info=True,
            )  # fmt: skip
            if found["missing_keys"]:  # they would be drawn at random
                raise ValueError(f"its weights lack {sorted(found['missing_keys'])[0]}")
            self.tokenizer, self.processor = (
                kind.from_pretrained(folder, local_files_only=True)
                for kind in (transformers.CLIPTokenizer, processor)
            )
        except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"{str(folder)!r} cannot be loaded ({error}); allowed: the folder of a CLIP model "
                f"with weights in safetensors"
            ) from error

    def image_features(self, images: Tensor | Sequence[Image]) -> Tensor:
        r"""Embeddings of images, of length :math:`\sqrt D`, on the CPU: (B, D), float32.

        At that length the kernel distance's product a·b/D is the cosine. The images are of shape
        (B, 3, H, W), in [-1, 1], or B of Pillow's.
        """

        def embed(part: Tensor | Sequence[Image]) -> Tensor:
            if isinstance(part, Tensor):
                part = ((part + 1) * 127.5).round().clamp(0, 255).byte()
            pixels = self.processor(images=list(part), return_tensors="pt")["pixel_values"]
            seen = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
            return self.model.visual_projection(seen)

        return self._embedded(images, embed)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of B texts, as :meth:`image_features`; what is too long is cut off."""
        length = self.model.config.text_config.max_position_embeddings

        def embed(part: Sequence[str]) -> Tensor:
            tokens = self.tokenizer(
                list(part), padding=True, truncation=True, max_length=length, return_tensors="pt"
            ).to(self.device)
            return self.model.text_projection(self.model.text_model(**tokens).pooler_output)

        return self._embedded(texts, embed)

    @torch.no_grad()
    def _embedded(self, items: Any, embed: Callable[[Any], Tensor]) -> Tensor:
        parts = [items[i : i + self.batch] for i in range(0, len(items), self.batch)]
        found = torch.cat([embed(part).cpu() for part in parts])
        return functional.normalize(found, dim=1) * math.sqrt(found.shape[1])

    def scores(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """CLIP scores (B,) of :meth:`image_features` (B, D) and their B prompts."""
        return 100 * (features * self.text_features(prompts)).mean(1)


def evaluate_pipeline(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    scorer: ClipScorer,
    steps: Sequence[int] = STEPS,
    sampler: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    reference: Tensor | None = None,
    batch: int = 8,
) -> list[dict[str, Any]]:
    """Draw an image a prompt and judge them, a row a number of steps.

    Args:
        pipeline: draws, by its own call at its own size; on its device, in its dtype.
        sampler: ``"lcm"``, which students need; ``"ddim"`` or ``"dpmpp_2m"`` (DPM-Solver++), both
            from t = T-1 down. Default: ``"lcm"`` for a pipeline that comes with it, else
            ``"ddim"``.
        guidance: w; diffusers' ``guidance_scale`` less 1. Default: 0 with ``"lcm"``, because a
            student has its guidance in its weights, else 6.5.
        reference: the scorer's features (n, D) of real images, or of another pipeline's, to
            measure distances to.

    Returns:
        rows with the sampler, ``steps``, ``guidance``, network ``calls`` an image as counted,
        number of ``images``, ``clip_score`` and its standard error, with a reference ``frechet``,
        ``kernel`` and ``kernel_std``, and seconds an image.

    Raises:
        ValueError: for an unknown sampler, guidance with ``"lcm"`` or out of range, a number of
            steps or a batch below 1, or images with a NaN.
    """
    distilled = type(pipeline.scheduler).__name__ == "LCMScheduler"
    sampler = sampler or ("lcm" if distilled else "ddim")
    check_choice(sampler, SAMPLERS, "sampler")
    w = (0.0 if sampler == "lcm" else GUIDANCE) if guidance is None else float(guidance)
    if not 0 <= w <= 100:
        raise ValueError(f"guidance is {guidance!r}; allowed: from 0 to 100")
    if sampler == "lcm" and w:
        raise ValueError(
            f"guidance is {w:g} with the sampler 'lcm'; allowed: 0, because a student has its "
            f"guidance in its weights"
        )
    check_count(batch, "batch")
    for count in steps:
        check_count(count, "steps", high=1000)
    rows, n = [], len(prompts)
    with _sampled_by(pipeline, sampler):
        for count in steps:
            started = time.perf_counter()
            features, calls = _draw(pipeline, prompts, count, w, seed, batch, scorer)
            seconds = (time.perf_counter() - started) / n
            scores = scorer.scores(features, prompts).double()
            row: dict[str, Any] = {
                "sampler": sampler, "steps": count, "guidance": w, "calls": calls, "images": n,
                "clip_score": float(scores.mean()),
            }  # fmt: skip
            if n > 1:
                row["clip_score_error"] = float(scores.std()) / math.sqrt(n)
            if reference is not None:
                distances = feature_distances(reference, features)
                row |= dict(zip(("frechet", "kernel", "kernel_std"), distances, strict=True))
            rows.append(row | {"seconds_per_image": round(seconds, 3)})
    return rows


def scheduler_levels(scheduler: Any) -> dict[str, Any]:
    """What gives another scheduler of diffusers the same levels and prediction."""
    names = (
        "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
        "prediction_type",
    )  # fmt: skip
    return {name: scheduler.config[name] for name in names if name in scheduler.config}


@contextmanager
def _sampled_by(pipeline: Pipeline, sampler: str) -> Iterator[None]:
    """Another scheduler with the same levels while the block runs."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler

    before, levels = pipeline.scheduler, scheduler_levels(pipeline.scheduler)
    trailing = levels | {"timestep_spacing": "trailing"}
    if sampler == "ddim":
        pipeline.scheduler = DDIMScheduler(
            **trailing, clip_sample=False, set_alpha_to_one=True, steps_offset=1
        )
    elif sampler == "dpmpp_2m":
        pipeline.scheduler = DPMSolverMultistepScheduler(
            **trailing, solver_type="midpoint", final_sigmas_type="zero"
        )
    elif not isinstance(before, LCMScheduler):
        pipeline.scheduler = LCMScheduler(**levels, steps_offset=1)
    try:
        yield
    finally:
        pipeline.scheduler = before


@torch.no_grad()
def _draw(
    pipeline: Pipeline, prompts: Sequence[str], steps: int, guidance: float, seed: int,
    batch: int, scorer: ClipScorer,
) -> tuple[Tensor, float]:  # fmt: skip
    """Features of the images, and network calls an image. Images are not kept: they are large."""
    features, rows = [], []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda _unet, args, kwargs: rows.append(len(args[0] if args else kwargs["sample"])),
        with_kwargs=True,
    )
    try:
        for i in range(0, len(prompts), batch):
            part = list(prompts[i : i + batch])
            images = pipeline(
                part, num_inference_steps=steps, guidance_scale=guidance + 1, output_type="pt",
                generator=[sample_generator(seed, i + j) for j in range(len(part))],
            ).images.float()  # fmt: skip
            if not bool(torch.isfinite(images).all()):
                raise ValueError(
                    f"images of {steps} steps hold a NaN or Inf in {pipeline.vae.dtype}; allowed: "
                    f"a dtype in which the pipeline computes, such as float32"
                )
            features.append(scorer.image_features(2 * images.cpu() - 1))
    finally:
        hook.remove()
    return torch.cat(features), sum(rows) / len(prompts)


def real_features(folder: Path, scorer: ClipScorer) -> Tensor:
    """Features (n, D) of a folder's images and of those in folders below.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for fewer than two images, or one that cannot be read.
    """
    from slam_edu.images import SUFFIXES, RejectedError, list_files, read_image

    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}; allowed: one with images")
    names, left_out = list_files(folder)
    paths = [folder / name for name in names if name.lower().endswith(SUFFIXES)]
    if count := len(names) - len(paths) + left_out.total():
        print(f"{count:,} other files and links in {str(folder)!r} are no images and not used")
    if len(paths) < 2:
        raise ValueError(
            f"{str(folder)!r} holds {len(paths)} images ({', '.join(SUFFIXES)}); allowed: 2 or "
            f"more"
        )

    def read(path: Path) -> Image:
        try:
            return read_image(path)
        except RejectedError as error:
            raise ValueError(f"{str(path)!r} is {error}; allowed: an image") from error

    parts = [paths[i : i + scorer.batch] for i in range(0, len(paths), scorer.batch)]
    return torch.cat([scorer.image_features(list(map(read, part))) for part in parts])


def figures_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as lines of a Markdown table; numbers are rounded."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def text(value: object) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(text(row.get(n)) for n in names) + " |" for row in rows]


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rows that ``slam-edu evaluate --out`` wrote.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is another one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {str(path)!r}; `slam-edu evaluate --out` writes it")
    try:
        return [dict(row) for row in json.loads(path.read_text("utf-8"))["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); allowed: a file of `slam-edu evaluate --out`"
        ) from error


# -------------------------------------------------------------------- slam-edu evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``slam-edu evaluate`` for a pipeline of any kind."""
    for name, options in {
        "model": {"metavar": "MODEL",
                  "help": "a pipeline's folder, or an id on the Hugging Face hub"},
        "--revision": {"help": "the commit of an id"},
        "--variant": {"help": "which of its weight files, such as fp16"},
        "--prompts": {"type": Path, "metavar": "FILE",
                      "help": "one prompt a line; default: the shipped list of everyday things"},
        "--real": {"type": Path, "metavar": "FOLDER",
                   "help": "of images, to measure distances to"},
        "--steps": {"type": int, "nargs": "+", "default": list(STEPS), "metavar": "N"},
        "--sampler": {"choices": SAMPLERS, "help": "default: lcm for a student, ddim for others"},
        "--guidance": {"type": float, "metavar": "W",
                       "help": "diffusers' scale less 1; default: 0 for a student, "
                               f"{GUIDANCE:g} for others"},
        "--seed": {"type": int, "default": 0, "help": "of the noise"},
        "--batch": {"type": int, "default": 8, "help": "images at a time"},
        "--clip": {"default": CLIP[0], "metavar": "MODEL",
                   "help": f"folder or id of the CLIP model that judges; default {CLIP[0]}"},
        "--clip-revision": {"help": "the commit of an id"},
        "--device": {"choices": ("auto", "cpu", "cuda", "mps"), "default": "auto"},
        "--out": {"type": Path, "metavar": "FILE", "help": "write the results as JSON"},
    }.items():  # fmt: skip
        parser.add_argument(name, **options)


def run(options: argparse.Namespace) -> int:
    """Measure and print a pipeline's figures; returns the exit status."""
    from slam_edu.sd.data import read_prompts

    if options.out is not None:
        check_output(options.out)
    prompts, device, folder = read_prompts(options.prompts), options.device, options.model
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    if shipped(folder) is None:
        folder = model_folder(folder, options.revision, options.variant)
    pipeline = load_pipeline_folder(folder, variant=options.variant, dtype=dtype).to(device)
    scorer = ClipScorer(options.clip, options.clip_revision, device=device)
    reference = real_features(options.real, scorer) if options.real is not None else None
    rows = evaluate_pipeline(
        pipeline, prompts, scorer=scorer, steps=options.steps, sampler=options.sampler,
        guidance=options.guidance, seed=options.seed, reference=reference, batch=options.batch,
    )  # fmt: skip
    print("\n".join(figures_table(rows)))
    if reference is not None:
        print(f"\nDistances are on embeddings of {scorer.name}; they are not Inception's FID.")
    if options.out is not None:
        results = {
            "model": str(options.model), "revision": options.revision, "seed": options.seed,
            "prompts": len(prompts), "scorer": scorer.name, "device": device,
            "dtype": str(dtype).removeprefix("torch."),
            "real": None if reference is None else len(reference), "rows": rows,
            "distances": "Fréchet and kernel distance on CLIP embeddings, not Inception's",
        }  # fmt: skip
        with atomic_path(options.out) as temporary:
            text = json.dumps(results, indent=1, ensure_ascii=False)
            temporary.write_text(text + "\n", "utf-8")
    return 0

r"""A Stable Diffusion pipeline taken apart, and its networks as the core calls them.

A latent diffusion model (Rombach et al. 2022) is an autoencoder, images to latents
:math:`x_0 = s\,E(\text{image})` with the scaling factor s and back, a text encoder, prompts to
states, and a diffusion model of the latents given the states. Here x is a latent, of shape
(B, C, H, W), and everything the core does with points of the plane it does with latents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slam_edu._validation import check_count
from slam_edu.prediction import network_predictor
from slam_edu.schedule import NoiseSchedule
from slam_edu.solver import Predictor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers import StableDiffusionXLPipeline as XLPipeline
    from transformers import CLIPTokenizer

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
XL_PARTS = ("text_encoder_2", "tokenizer_2")


@dataclass(frozen=True)
class TextCondition:
    """What a UNet is conditioned on, one row per sample.

    Attributes:
        states: the text encoders' states, (B, L, D).
        pooled: Stable Diffusion XL's pooled embedding, (B, P); else None.
        time_ids: XL's sizes in pixels (original height and width, top and left of the crop, target
            height and width), (B, 6); else None.
    """

    states: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: Any) -> TextCondition:
        """The rows of a slice, a list or a tensor of indices."""
        return self._each(lambda value: value[index])

    def to(self, *args: Any, **options: Any) -> TextCondition:
        """As ``Tensor.to``, for each part."""
        return self._each(lambda value: value.to(*args, **options))

    def expand(self, count: int) -> TextCondition:
        """One row as ``count`` of them, without a copy."""
        return self._each(lambda value: value.expand(count, *value.shape[1:]))

    @classmethod
    def cat(cls, conditions: Sequence[TextCondition]) -> TextCondition:
        """The rows of all, in order."""
        parts = [(c.states, c.pooled, c.time_ids) for c in conditions]
        return cls(*(None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True)))

    def _each(self, change: Any) -> TextCondition:
        parts = (self.states, self.pooled, self.time_ids)
        return TextCondition(*(None if p is None else change(p) for p in parts))


Condition = Tensor | TextCondition
"""Text states alone, or with what Stable Diffusion XL adds."""


def unet_output(
    unet: UNet2DConditionModel,
    x: Tensor,
    t: Tensor,
    cond: Condition,
    timestep_cond: Tensor | None = None,
) -> Tensor:
    """A UNet's raw output, of ``x``'s shape (B, C, h, w), in the UNet's dtype.

    ``t`` (B,) is integer or real; an embedding of gamma receives ``timestep_cond`` (B, D).
    """
    if isinstance(cond, Tensor):
        cond = TextCondition(cond)
    dtype, added = unet.dtype, None
    if cond.pooled is not None:
        added = {"text_embeds": cond.pooled.to(dtype), "time_ids": cond.time_ids}
    return unet(
        x.to(dtype), t, encoder_hidden_states=cond.states.to(dtype), added_cond_kwargs=added,
        timestep_cond=None if timestep_cond is None else timestep_cond.to(dtype),
    ).sample  # fmt: skip


@torch.no_grad()
def text_condition(
    pipeline: StableDiffusionPipeline | XLPipeline,
    prompts: Sequence[str],
    time_ids: Tensor | None = None,
) -> TextCondition:
    """Encode prompts as the pipeline itself does: on its device, what is too long cut off.

    Stable Diffusion XL's ``time_ids`` (B, 6) are by default those of whole images of its own size.
    """
    encoder = pipeline.text_encoder
    if not is_xl(pipeline):
        ids = token_ids(pipeline.tokenizer, prompts)
        return TextCondition(encoder(input_ids=ids.to(encoder.device)).last_hidden_state)
    states, _, pooled, _ = pipeline.encode_prompt(
        list(prompts), device=encoder.device, do_classifier_free_guidance=False
    )
    if time_ids is None:
        time_ids = whole_image_ids(pipeline).expand(len(prompts), 6)
    return TextCondition(states, pooled, time_ids.to(states.device))


def empty_condition(pipeline: StableDiffusionPipeline | XLPipeline) -> TextCondition:
    """Guidance's other prediction: the empty prompt's, or zeros if XL's config says so."""
    empty = text_condition(pipeline, [""])
    if is_xl(pipeline) and pipeline.config.force_zeros_for_empty_prompt:
        zeros = torch.zeros_like
        return TextCondition(zeros(empty.states), zeros(empty.pooled), empty.time_ids)
    return empty


def is_xl(pipeline: StableDiffusionPipeline | XLPipeline) -> bool:
    """Whether this is a Stable Diffusion XL: two text encoders, pooled embeddings, sizes."""
    return getattr(pipeline, "text_encoder_2", None) is not None


def whole_image_ids(pipeline: XLPipeline) -> Tensor:
    """Time ids, (1, 6), of an image of the pipeline's own size that was not cropped."""
    height, width = (side * pipeline.vae_scale_factor for side in latent_shape(pipeline)[1:])
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)


def latent_shape(
    pipeline: StableDiffusionPipeline | XLPipeline, resolution: int | None = None
) -> tuple[int, int, int]:
    """(C, H, W) of one latent, of ``resolution`` pixels a side or of the pipeline's own size."""
    unet = pipeline.unet.config
    size = latent_size(unet.sample_size, pipeline.vae_scale_factor, resolution)
    return (unet.in_channels, *size)


def latent_size(own: Any, factor: int, resolution: int | None = None) -> tuple[int, int]:
    """(H, W) of a latent, from a UNet's ``sample_size`` or a resolution in pixels.

    Raises:
        ValueError: for a resolution that ``factor`` does not divide, or none where the UNet's
            configuration has no size either.
    """
    if resolution is not None:
        if resolution % factor:
            raise ValueError(
                f"resolution is {resolution}; allowed: a multiple of {factor}, by which the "
                f"teacher's autoencoder reduces images"
            )
        own = resolution // factor
    size = list(own) if isinstance(own, list | tuple) else [own, own]
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(
            f"the UNet's sample_size is {own!r}, so that its own resolution is not known; "
            f"allowed: resolution=..., in pixels, or whole numbers > 0 in its config.json"
        )
    return (size[0], size[1])


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor, batch: int = 64) -> Tensor:
    """Latents of images (B, 3, H, W) in [-1, 1]: the posterior's mean, of about unit variance."""
    images = images.to(vae.device, vae.dtype)
    means = [vae.encode(x).latent_dist.mean for x in images.split(batch)]
    scale, shift = _normalisation(vae)
    return (torch.cat(means) - shift) / scale


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor, batch: int = 64) -> Tensor:
    """Images of latents (B, C, h, w), of shape (B, 3, H, W), clipped to [-1, 1]."""
    scale, shift = _normalisation(vae)
    latents = latents.to(vae.device, vae.dtype) * scale + shift
    return torch.cat([vae.decode(x).sample for x in latents.split(batch)]).clamp(-1, 1)


def _normalisation(vae: AutoencoderKL) -> tuple[float | Tensor, float | Tensor]:
    """Factor and shift, from a latent to what the decoder takes; some of XL's are by channel."""
    config, factor = vae.config, 1 / vae.config.scaling_factor
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return factor, 0.0
    mean, std = (
        torch.tensor(config[name], dtype=vae.dtype, device=vae.device).view(1, -1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return std * factor, mean


def token_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Token ids of prompts, (B, model_max_length), cut off and padded as the pipeline does."""
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


class LatentDiffusion:
    """The parts of a pipeline as the core takes them: on their device, in their dtype.

    Attributes:
        schedule: the scheduler's levels, float32, on the UNet's device.
        prediction_type: what the UNet predicts, ``"epsilon"`` or ``"v_prediction"``.
        latent_shape: (C, H, W) of one latent.

    Raises:
        ValueError: for a pipeline that lacks a part.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        missing = [name for name in PARTS if getattr(pipeline, name, None) is None]
        if missing:
            raise ValueError(
                f"a {type(pipeline).__name__} without {', '.join(missing)} was passed in; "
                f"allowed: a pipeline with {', '.join(PARTS)}"
            )
        self.pipeline = pipeline
        self.schedule = NoiseSchedule.from_scheduler(pipeline.scheduler).to(pipeline.unet.device)
        self.prediction_type = pipeline.scheduler.config.prediction_type
        self.latent_shape = latent_shape(pipeline)

    @torch.no_grad()
    def encode_prompts(self, prompts: str | Sequence[str]) -> Tensor:
        """The text encoder's last states, (B, L, D); ``""`` is guidance's empty condition."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        return text_condition(self.pipeline, prompts).states

    def encode_images(self, images: Tensor, batch: int = 64) -> Tensor:
        """As :func:`encode_images`."""
        return encode_images(self.pipeline.vae, images, batch)

    def decode(self, latents: Tensor, batch: int = 64) -> Tensor:
        """As :func:`decode_latents`."""
        return decode_latents(self.pipeline.vae, latents, batch)

    def network(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The UNet's raw output, as :func:`unet_output`."""
        return unet_output(self.pipeline.unet, x, t, cond)

    def predictor(self, prompts: str | Sequence[str], guidance: float = 0.0) -> Predictor:
        r"""The guided prediction as a solver takes it: ``predictor(x, level) -> Prediction``.

        Guidance is :math:`w` of :math:`\epsilon_c + w(\epsilon_c - \epsilon_u)`, diffusers'
        ``guidance_scale`` less 1. At 0 the empty prompt is not asked for.
        """
        cond: Condition
        if is_xl(self.pipeline):
            prompts = [prompts] if isinstance(prompts, str) else list(prompts)
            cond = text_condition(self.pipeline, prompts)
            uncond = empty_condition(self.pipeline).expand(len(cond)) if guidance else None
        else:  # tensors, which go through the network in one call
            cond = self.encode_prompts(prompts)
            uncond = self.encode_prompts([""] * len(cond)) if guidance else None
        return network_predictor(
            self.network, self.schedule, prediction_type=self.prediction_type,
            cond=cond, uncond=uncond, guidance=guidance,
        )  # fmt: skip

    def draw_noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents, (count, C, h, w): x at t = T-1. The generator is on the CPU."""
        check_count(count, "count")
        unet = self.pipeline.unet
        noise = torch.randn((count, *self.latent_shape), generator=generator, dtype=unet.dtype)
        return noise.to(unet.device)


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Keep diffusers' notices, and all bars unless asked for, off standard error; errors stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torchvision, we do not
    try:  # diffusers would miss transformers later, and say less
        from diffusers.utils import logging
        from transformers.utils import logging as transformers_logging
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a pipeline needs {error.name}; install it with `pip install slam_edu[sd]`",
            name=error.name,
        ) from error
    before = logging.get_verbosity()
    libraries = (logging, transformers_logging)
    hidden = [one for one in libraries if one.is_progress_bar_enabled() and not bars]
    logging.set_verbosity_error()
    for library in hidden:
        library.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        for library in hidden:
            library.enable_progress_bar()

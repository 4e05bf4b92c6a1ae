r"""Which word a place of the latent looks at: the UNet's attention to the text.

In a cross-attention layer each place i of the latent has a query :math:`q_i`, each token l of the
prompt a key :math:`k_l` and a value :math:`v_l`, and the place receives the mixture

.. math::
    \sum_l a_{il}\, v_l, \qquad
    a_{il} = \frac{\exp(q_i\cdot k_l/\sqrt d)}{\sum_m \exp(q_i\cdot k_m/\sqrt d)} .

:math:`a_{il}`, read as a picture over i, is the map of token l: how much each place takes from it.
At each place the maps of all tokens, start, end and padding included, add up to 1 (Rombach et al.
2022, section 3.3; maps averaged over heads, layers and steps: Tang et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from slam_edu.sampling import spaced_timesteps
from slam_edu.schedule import Level
from slam_edu.sd.components import LatentDiffusion
from slam_edu.solver import solve_pf_ode

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "[start]", "[end]"


def prompt_tokens(tokenizer: CLIPTokenizer, prompt: str) -> list[str]:
    """The tokens of a prompt as text, ``[start]`` first and ``[end]`` last.

    A piece of a word that goes on in the next token ends with ``-``; what is too long is cut off,
    as the pipeline does.
    """
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    names = tokenizer.convert_ids_to_tokens(ids[1:-1])
    words = [name.removesuffix("</w>") if name.endswith("</w>") else name + "-" for name in names]
    return [START, *words, END]


@contextmanager
def recorded_attention(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the cross-attention layers compute while the block runs.

    The network computes the same as before, by diffusers' plain attention processor; its own
    processors are put back at the end.

    Yields:
        a list that grows by one tensor of shape (B, places, L) for each layer named ``attn2`` and
        each call, the mean over the layer's heads.
    """
    from diffusers.models.attention_processor import AttnProcessor

    layers = [layer for name, layer in network.named_modules() if name.endswith("attn2")]
    maps: list[Tensor] = []
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(AttnProcessor())
        layer.get_attention_scores = _recording(layer, maps)
    try:
        yield maps
    finally:
        for layer, processor in zip(layers, before, strict=True):
            del layer.get_attention_scores  # the class's own is behind it
            layer.set_processor(processor)


def _recording(layer: nn.Module, maps: list[Tensor]) -> Callable[..., Tensor]:
    compute = layer.get_attention_scores

    def get_attention_scores(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = compute(query, key, mask)  # (B heads, places, L)
        maps.append(scores.detach().unflatten(0, (-1, layer.heads)).mean(1))
        return scores

    return get_attention_scores


@torch.no_grad()
def word_attention(
    model: LatentDiffusion,
    prompts: Sequence[str],
    noise: Tensor,
    *,
    guidance: float = 0.0,
    steps: int = 20,
) -> tuple[Tensor, Tensor]:
    """Sample with DDIM and record each token's map on the way.

    Layers that work on a smaller picture are enlarged to the latent's size; all layers count
    alike. With guidance the maps are those of the prompt, not of the empty one.

    Returns:
        the latents at the end, of shape (B, C, H, W), and the maps, of shape (steps, B, L, H, W),
        noisy to clean.
    """
    levels = model.schedule(spaced_timesteps(steps, model.schedule))
    levels = Level.cat([levels, Level.clean(levels.alpha[:1])])
    predictor = model.predictor(prompts, guidance)
    by_step, x = [], noise
    with recorded_attention(model.pipeline.unet) as recorded:
        for state in solve_pf_ode(predictor, noise, levels):
            x = state.x
            if recorded:  # not before the first step
                # The first B rows are the prompts', those of the empty prompt follow.
                maps = [_as_picture(layer[: len(noise)], noise.shape[2:]) for layer in recorded]
                by_step.append(torch.stack(maps).mean(0))
                recorded.clear()
    return x, torch.stack(by_step)


def _as_picture(maps: Tensor, size: torch.Size) -> Tensor:
    """(B, places, L) to (B, L, H, W)."""
    height, width = size
    shrink = round((height * width / maps.shape[1]) ** 0.5)
    picture = maps.transpose(1, 2).unflatten(2, (height // shrink, width // shrink))
    return functional.interpolate(picture, size=(height, width), mode="nearest")

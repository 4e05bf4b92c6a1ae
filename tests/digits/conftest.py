"""What the digits' tests share: a pipeline too small to train, and equal weights."""

from __future__ import annotations

import torch
from torch import nn

from studies.digits.train.networks import (
    TextToLatents,
    build_pipeline,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)


def tiny_pipeline(prediction_type: str = "epsilon", seed: int = 0):
    """An untrained pipeline of 0.4 million parameters whose words and timesteps matter."""
    network = TextToLatents(
        build_unet(seed, (16, 32), text_width=32), build_text_encoder(build_tokenizer(), seed, 32)
    )
    with torch.no_grad():  # as they are drawn, the words hardly change the output
        for name, p in network.unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
                p.mul_(3)
    pipeline = build_pipeline(build_vae(seed, (8, 8, 16)).eval(), network.eval(), prediction_type)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Equal names and equal bits."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

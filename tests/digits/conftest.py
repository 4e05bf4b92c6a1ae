"""A small part of the data, and pipelines too small to train: what the digits' tests share."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from slam_edu.digits.data import CaptionedDigits
from slam_edu.digits.networks import (
    TextToLatents,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)


class FewDigits(CaptionedDigits):
    """The first 96 digits of a split; asked for more, it gives those."""

    def __len__(self) -> int:
        return 96

    def batch(self, indices, seed=0):
        return super().batch([i for i in torch.as_tensor(list(indices)).tolist() if i < 96], seed)


def tiny_pipeline(prediction_type: str = "epsilon", seed: int = 0):
    """An untrained pipeline of 0.4 million parameters whose words and timesteps matter."""
    from slam_edu.digits.train.export import build_pipeline

    tokenizer = build_tokenizer()
    network = TextToLatents(
        build_unet(seed, (16, 32), text_width=32), build_text_encoder(tokenizer, seed, 32)
    )
    with torch.no_grad():  # as they are drawn, the words hardly change the output
        for name, p in network.unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
                p.mul_(3)
    pipeline = build_pipeline(build_vae(seed, (8, 8, 16)).eval(), network.eval(), prediction_type)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def finished_run(folder, **config) -> None:
    """A run folder as a training leaves it, without its checkpoint."""
    folder.mkdir(parents=True)
    about = {"config": config, "torch": torch.__version__}
    (folder / "config.json").write_text(json.dumps(about), "utf-8")
    rows = ["update,loss,grad_norm,lr,seconds", "100,0.5,1.5,0.001,60", "200,0.4,1.2,0.0001,150"]
    (folder / "log.csv").write_text("\n".join(rows) + "\n", "utf-8")


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Equal names and equal bits."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def runs(tmp_path):
    """Folders of finished runs of the three parts, by name."""
    folders = {part: tmp_path / "runs" / part for part in ("vae", "diffusion", "classifier")}
    for part, folder in folders.items():
        finished_run(folder, part=part, updates=200)
    return folders

"""Training the digits' model: it stops and goes on to the last bit, and exports what it made."""

import json

import pytest
import torch

from slam_edu.digits import load_classifier, load_pipeline
from slam_edu.digits.data import CaptionedDigits
from studies.digits.train import parts, training
from studies.digits.train.__main__ import configured, main
from studies.digits.train.parts import DiffusionConfig, VAEConfig, normalise_latents, psnr
from tests.digits.conftest import same_weights

VAE = VAEConfig(channels=(8, 8, 8), batch=4, updates=4, warmup=2, ema_rate=0.5)


class FewDigits(CaptionedDigits):
    """The first 96 digits of a split; asked for more, it gives those."""

    def __len__(self):
        return 96

    def batch(self, indices, seed=0):
        return super().batch([i for i in torch.as_tensor(list(indices)).tolist() if i < 96], seed)


class Stopped(Exception):
    """In place of a power cut."""


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(parts, "CaptionedDigits", FewDigits)
    for name in ("LOG_EVERY", "SAVE_EVERY"):
        monkeypatch.setattr(training, name, 2)


def log(folder):
    """The rows without their seconds."""
    return [line.rsplit(",", 1)[0] for line in (folder / "log.csv").read_text().splitlines()]


def test_a_stopped_run_goes_on_to_the_last_bit(tmp_path, monkeypatch, capsys):
    whole = parts.train_vae(tmp_path / "whole", VAE)
    step, calls = torch.optim.AdamW.step, []

    def failing(self, *arguments, **options):
        calls.append(None)
        if len(calls) == 4:
            raise Stopped
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    with pytest.raises(Stopped):
        parts.train_vae(tmp_path / "stopped", VAE)
    torch.manual_seed(6)
    again = parts.train_vae(tmp_path / "stopped", VAE)
    assert "going on after update 2 of 4" in capsys.readouterr().out
    assert same_weights(again, whole)
    assert again.config.scaling_factor == whole.config.scaling_factor
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")
    other = VAEConfig(**{**vars(VAE), "beta": 1.0})
    with pytest.raises(ValueError, match=r"beta: 0.0001 there, 1.0 here"):
        parts.train_vae(tmp_path / "whole", other)


def test_normalised_latents():
    """Mean 0 and one variance in each channel; the autoencoder computes what it did."""
    images = CaptionedDigits("train").batch(range(64), 2).images
    network = parts.build_vae(0, (8, 8, 8)).eval().requires_grad_(False)
    network.quant_conv.bias.copy_(torch.tensor([0.3, -2.0, 1.0, 0.0] + [-6.0] * 4))
    network.quant_conv.weight[2] *= 5
    before = network.decode(network.encode(images).latent_dist.mean).sample
    quality = psnr(network, images)
    normalise_latents(network, images)
    latents = network.encode(images).latent_dist.mean * network.config.scaling_factor
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3
    again = network.decode(latents / network.config.scaling_factor).sample
    torch.testing.assert_close(again, before, rtol=0, atol=1e-4)
    assert psnr(network, images) == pytest.approx(quality, abs=1e-3)


def test_settings_are_read_as_the_type_of_their_default():
    config = configured(DiffusionConfig, ["channels=8,16", "lr=2e-3", "updates=700", "empty=0"])
    assert config == DiffusionConfig(channels=(8, 16), lr=2e-3, updates=700, empty=0.0)
    for setting, message in (
        ("depth=3", r"'depth=3' is no setting; allowed: updates, .*beta, as name=value"),
        ("updates=1.5", r"'updates=1.5' cannot be read; allowed: updates as int, such as 3600"),
        ("channels=8", r"'channels=8' cannot be read; allowed: channels as tuple"),
        ("lr=fast", r"'lr=fast' cannot be read; allowed: lr as float"),
    ):
        with pytest.raises(ValueError, match=message):
            configured(VAEConfig, [setting])


def test_the_four_commands_in_a_row(tmp_path, capsys):
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--threads", "1"]
    small = ["updates=4", "batch=4", "warmup=2"]

    def run(*arguments):
        return main([*arguments, *places])

    assert run("diffusion") == 2
    assert "there is no finished run in" in capsys.readouterr().err
    assert run("vae", *small, "channels=8,8,8") == 0
    assert run("diffusion", *small, "channels=8,16", "text_width=16", "versions=1") == 0
    assert run("classifier", *small) == 0
    assert run("export") == 0
    said = capsys.readouterr()
    assert "held-out PSNR" in said.out
    assert "held-out digits right" in said.out
    pipeline = load_pipeline(tmp_path / "out" / "digits-sd")
    assert pipeline.unet.config.block_out_channels == [8, 16]
    assert pipeline("a two", num_inference_steps=2).images[0].size == (32, 32)
    load_classifier(tmp_path / "out" / "digits-classifier")
    about = tmp_path / "out" / "digits-sd" / "training" / "diffusion.json"
    assert json.loads(about.read_text("utf-8"))["config"]["updates"] == 4

"""Training runs in folders: they repeat, stop, go on, and refuse what does not fit."""

import csv
import functools
import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from slam_edu import TrainConfig
from slam_edu.digits import load_classifier, load_pipeline
from slam_edu.digits.captions import FULL, caption
from slam_edu.digits.classifier import DigitClassifier
from slam_edu.digits.data import CaptionedDigits
from slam_edu.digits.networks import build_vae
from slam_edu.digits.train import classifier as classifier_training
from slam_edu.digits.train import diffusion as diffusion_training
from slam_edu.digits.train import vae as vae_training
from slam_edu.digits.train.__main__ import configured, main
from slam_edu.digits.train.classifier import ClassifierConfig, train_classifier
from slam_edu.digits.train.diffusion import (
    DiffusionConfig,
    encode_digits,
    encoded_digits,
    train_diffusion,
)
from slam_edu.digits.train.run import CHECKPOINT, CONFIG, LOG, run_training
from slam_edu.digits.train.vae import VAEConfig, normalise_latents, psnr, train_vae
from slam_edu.sd.components import token_ids
from tests.digits.conftest import FewDigits, same_weights

TRAININGS = (vae_training, diffusion_training, classifier_training)
VAE = VAEConfig(channels=(8, 8, 8), batch=4, updates=4, warmup=2, ema_rate=0.5)
DIFFUSION = DiffusionConfig(
    channels=(8, 16),
    text_width=16,
    versions=2,
    batch=8,
    updates=4,
    warmup=2,
    ema_rate=0.5,
)
CLASSIFIER = ClassifierConfig(channels=(8, 8, 8), batch=8, updates=4, warmup=2, ema_rate=0.5)


class Stopped(Exception):
    """In place of a power cut."""


def rows(folder):
    """The log without its seconds."""
    with (folder / LOG).open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert all(float(row.pop("seconds")) >= 0 for row in found)
    return found


# -------------------------------------------------------------------- a run of any network


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str = "points"
    channels: tuple[int, ...] = (1, 2)
    updates: int = 12


def fit(folder, stop=None, settings=None, show=lambda line: None, **options):
    """Train a small network; raise in the loss of update number ``stop``."""
    settings = settings or Settings()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1), nn.BatchNorm1d(1))
    calls = []

    def loss_of_batch(generator):
        calls.append(None)
        x = torch.randn(8, 3, generator=generator)
        loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
        if stop is not None and before + len(calls) == stop:
            raise Stopped
        return loss

    before = int(rows(folder)[-1]["update"]) if (folder / LOG).exists() else 0
    before -= before % options.get("save_every", 4)
    training = TrainConfig(updates=settings.updates, lr=1e-2, warmup=3, ema_rate=0.7)
    options = {"seed": 3, "log_every": 2, "save_every": 4, "show": show, **options}
    return run_training(folder, settings, training, loss_of_batch, network, **options)


def test_a_run_leaves_its_folder(tmp_path):
    said = []
    folder = tmp_path / "a" / "run"
    average = fit(folder, show=said.append, measure=lambda m: f"{type(m).__name__}!",
                  measure_every=5)  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, LOG, CHECKPOINT]
    about = json.loads((folder / CONFIG).read_text("utf-8"))
    assert about["config"] == {"name": "points", "channels": [1, 2], "updates": 12}
    assert about["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads()
    found = rows(folder)
    assert [int(row["update"]) for row in found] == [2, 4, 6, 8, 10, 12]
    config = TrainConfig(updates=12, lr=1e-2, warmup=3)
    for row in found:
        assert float(row["lr"]) == pytest.approx(config.lr_at(int(row["update"]) - 1), rel=1e-5)
    measured = [line for line in said if line.endswith("Sequential!")]
    assert [line.split()[1] for line in measured] == ["5", "10", "12"]
    assert isinstance(average, nn.Module)


def test_the_log_holds_means(tmp_path):
    """A row for each update, against rows over several; the last row may be of fewer."""
    single = fit(tmp_path / "single", log_every=1, save_every=3)
    several = fit(tmp_path / "several", log_every=5, save_every=5)
    assert same_weights(single, several)
    one = [float(row["loss"]) for row in rows(tmp_path / "single")]
    norms = [float(row["grad_norm"]) for row in rows(tmp_path / "single")]
    found = rows(tmp_path / "several")
    assert [int(row["update"]) for row in found] == [5, 10, 12]
    for row, part in zip(found, (slice(0, 5), slice(5, 10), slice(10, 12)), strict=True):
        for name, values in (("loss", one[part]), ("grad_norm", norms[part])):
            assert float(row[name]) == pytest.approx(sum(values) / len(values), rel=1e-4)


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 6, 9, 12])
def test_a_stopped_run_goes_on_to_the_last_bit(stop, tmp_path):
    """Weights, buffers and log are those of a run that was never stopped."""
    whole = fit(tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(tmp_path / "stopped", stop)
    said = []
    average = fit(tmp_path / "stopped", show=said.append)
    saved = (stop - 1) // 4 * 4
    resumed = f"going on after update {saved} of 12"
    assert (resumed in said) == (saved > 0)
    assert same_weights(average, whole)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_a_run_stopped_twice(tmp_path):
    whole = fit(tmp_path / "whole")
    for stop in (6, 10, 11):
        with pytest.raises(Stopped):
            fit(tmp_path / "stopped", stop)
    assert same_weights(fit(tmp_path / "stopped"), whole)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_the_seconds_go_on(tmp_path):
    with pytest.raises(Stopped):
        fit(tmp_path, 6)
    text = (tmp_path / LOG).read_text("utf-8").splitlines()
    text[2] = text[2].rsplit(",", 1)[0] + ",3600"  # the row of the checkpoint
    (tmp_path / LOG).write_text("\n".join(text) + "\n", "utf-8")
    fit(tmp_path)
    last_row = (tmp_path / LOG).read_text("utf-8").splitlines()[-1]
    assert 3600 <= float(last_row.rsplit(",", 1)[1]) < 3660


def test_a_finished_run_is_read(tmp_path):
    whole = fit(tmp_path)
    before = rows(tmp_path)
    assert same_weights(fit(tmp_path, stop=1), whole)  # no loss is asked for
    assert rows(tmp_path) == before


def test_a_run_does_not_depend_on_the_global_generator(tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = fit(tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same_weights(fit(tmp_path / "two"), one)
    assert not same_weights(fit(tmp_path / "three", seed=4), one)


def test_another_configuration_is_refused(tmp_path):
    fit(tmp_path)
    checkpoint = (tmp_path / CHECKPOINT).read_bytes()
    for other, message in (
        (Settings(updates=20), r"updates: 12 there, 20 here"),
        (Settings(channels=(1, 3)), r"channels: \[1, 2\] there, \[1, 3\] here"),
        (Settings(name="x", updates=13), r"name: 'points' there, 'x' here; updates: 12 there, 13"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            fit(tmp_path, settings=other)
        assert str(tmp_path) in str(caught.value)
        assert "allowed: the same settings, or another folder" in str(caught.value)
    assert (tmp_path / CHECKPOINT).read_bytes() == checkpoint


@pytest.mark.parametrize("kept", [0, 0.3, 0.99])
def test_a_damaged_checkpoint(kept, tmp_path):
    fit(tmp_path)
    path = tmp_path / CHECKPOINT
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"cannot be read .*allowed: a whole file of") as caught:
        fit(tmp_path)
    assert str(path) in str(caught.value)


def test_checkpoints_lie_on_rows_of_the_log(tmp_path):
    message = r"save_every is 3; allowed: a multiple of log_every, which is 2"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", save_every=3)
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------- the three parts


@pytest.fixture
def few(monkeypatch):
    """Few digits for each of the parts, and a checkpoint after every second update."""
    for module in TRAININGS:
        monkeypatch.setattr(module, "CaptionedDigits", FewDigits)
        often = functools.partial(run_training, log_every=2, save_every=2)
        monkeypatch.setattr(module, "run_training", often)


@pytest.fixture(scope="module")
def vae():
    """Untrained, its latents far from normalised."""
    network = build_vae(0, (8, 8, 8)).eval().requires_grad_(False)
    network.quant_conv.bias.copy_(torch.tensor([0.3, -2.0, 1.0, 0.0] + [-6.0] * 4))
    network.quant_conv.weight[2] *= 5
    network.register_to_config(scaling_factor=0.7)
    return network


PARTS = {
    "vae": lambda folder, vae: train_vae(folder, VAE),
    "diffusion": lambda folder, vae: train_diffusion(folder, vae, DIFFUSION),
    "v_prediction": lambda folder, vae: train_diffusion(
        folder, vae, DiffusionConfig(**{**vars(DIFFUSION), "prediction_type": "v_prediction"})
    ),
    "classifier": lambda folder, vae: train_classifier(folder, CLASSIFIER),
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_trained_stopped_and_trained_on(part, vae, tmp_path, monkeypatch, capsys):
    train = PARTS[part]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    whole = train(tmp_path / "whole", vae)
    assert torch.equal(torch.get_rng_state(), state)
    assert not whole.training
    assert [row["update"] for row in rows(tmp_path / "whole")] == ["2", "4"]

    calls = []
    step = torch.optim.AdamW.step

    def failing(self, *arguments, **options):
        calls.append(None)
        if len(calls) == 4:
            raise Stopped
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", vae)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    torch.manual_seed(6)
    again = train(tmp_path / "stopped", vae)
    assert "going on after update 2 of 4" in capsys.readouterr().out
    assert same_weights(again, whole)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    if part == "vae":
        assert again.config.scaling_factor == whole.config.scaling_factor


@pytest.mark.usefixtures("few")
def test_the_prediction_type_matters(vae, tmp_path):
    one, other = (PARTS[part](tmp_path / part, vae) for part in ("diffusion", "v_prediction"))
    assert not same_weights(one, other)


def test_the_classifier_learns(monkeypatch, tmp_path, capsys):
    """Among the 96 first digits, after 120 updates, most are told from one another."""
    monkeypatch.setattr(classifier_training, "CaptionedDigits", FewDigits)
    config = ClassifierConfig(
        channels=(8, 16, 16), batch=32, updates=120, lr=5e-3, warmup=10, ema_rate=0.9
    )
    network = train_classifier(tmp_path, config)
    seen = FewDigits("train").batch(range(96), 123)
    assert (network.read(seen.images) == seen.digit).float().mean() > 0.7
    said = capsys.readouterr().out.splitlines()[-1]
    unseen = FewDigits("test").batch(range(96), 1)
    share = (network.read(unseen.images) == unseen.digit).float().mean()
    assert said == f"update 120  held-out digits right {share:.4f}"
    assert isinstance(network, DigitClassifier)


# -------------------------------------------------------------------- the autoencoder


def test_psnr_by_hand():
    """A decoder that is wrong by .2 everywhere: 10 log10(4 / .04) = 20 dB; it clips to [-1, 1]."""
    images = torch.zeros(300, 3, 32, 32)

    def network(decode):
        return SimpleNamespace(
            encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mean=x)),
            decode=lambda z: SimpleNamespace(sample=decode(z)),
        )

    assert psnr(network(lambda z: z + 0.2), images) == pytest.approx(20, abs=1e-4)
    assert psnr(network(lambda z: z + 5), images) == pytest.approx(10 * math.log10(4), abs=1e-4)
    half = images.clone()
    half[:150] = 0.1  # half of the images are wrong by .1, in another batch than the others
    found = psnr(network(torch.zeros_like), half)
    assert found == pytest.approx(10 * math.log10(4 / 0.005), abs=1e-3)


def test_normalised_latents(vae):
    """Mean 0 and one variance in each channel; the autoencoder computes what it did."""
    images = CaptionedDigits("train").batch(range(300), 2).images
    network = build_vae(0, (8, 8, 8)).eval()
    network.load_state_dict(vae.state_dict())
    few = images[:20]
    before = network.encode(few).latent_dist
    reconstructed = network.decode(before.mean).sample
    assert before.mean.mean((0, 2, 3)).abs().max() > 0.5
    state = torch.get_rng_state()
    normalise_latents(network, images)
    assert torch.equal(torch.get_rng_state(), state)

    with torch.no_grad():
        after = network.encode(images).latent_dist
        mean, std = after.mean.mean((0, 2, 3)), after.mean.std((0, 2, 3))
    scale = network.config.scaling_factor
    assert mean.abs().max() * scale < 1e-4
    assert (std * scale - 1).abs().max() < 1e-3
    after = network.encode(few).latent_dist
    again = network.decode(after.mean).sample
    torch.testing.assert_close(again, reconstructed, rtol=0, atol=1e-4)
    # The posterior's width is scaled as its mean is, so that training could go on.
    gain = after.mean.std((0, 2, 3)) / before.mean.std((0, 2, 3))
    torch.testing.assert_close(after.std, before.std * gain[:, None, None], rtol=1e-3, atol=1e-5)
    # Once is enough.
    first = {name: value.clone() for name, value in network.state_dict().items()}
    normalise_latents(network, images)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------- latents and words


def test_encoded_digits_are_scaled_and_in_order(vae, tokenizer):
    latents, ids = encode_digits(vae, tokenizer, FewDigits("train"), 2)
    assert latents.shape == (192, 4, 8, 8)
    assert ids.shape == (192, 24)
    for index, seed, place in ((0, 0, 0), (95, 0, 95), (5, 1, 101)):
        batch = CaptionedDigits("train").batch([index], seed)
        expected = 0.7 * vae.encode(batch.images).latent_dist.mean[0]
        torch.testing.assert_close(latents[place], expected, rtol=1e-4, atol=1e-5)
        assert (
            ids[place].tolist()
            == tokenizer(batch.captions[0], padding="max_length", max_length=24).input_ids
        )


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("empty", [0.0, 0.3, 1.0])
def test_draws_of_encoded_digits(empty, vae, tokenizer, tmp_path, monkeypatch):
    draw = encoded_digits(tmp_path / "run", vae, tokenizer, 2, empty)
    latents, ids = encode_digits(vae, tokenizer, FewDigits("train"), 2)
    generator = torch.Generator().manual_seed(0)
    x, words = draw(1000, generator)
    assert (x.shape, x.dtype) == ((1000, 4, 8, 8), torch.float32)
    assert (words.shape, words.dtype) == ((1000, 24), torch.int64)
    nothing = token_ids(tokenizer, [""])
    left_out = (words == nothing).all(1)
    assert left_out.float().mean().item() == pytest.approx(empty, abs=0.08)
    # Each latent is one of the digits', with its own caption, and all of them are drawn.
    nearest = torch.cdist(x.flatten(1), latents.flatten(1)).min(1)
    assert nearest.values.max() < 0.02 * latents.flatten(1).norm(dim=1).mean()  # half precision
    assert torch.equal(words[~left_out], ids[nearest.indices][~left_out])
    assert len(nearest.indices.unique()) > 180
    # The second time they are read.
    monkeypatch.setattr(diffusion_training, "encode_digits", None)
    again = encoded_digits(tmp_path / "run", vae, tokenizer, 2, empty)
    x2, words2 = again(1000, torch.Generator().manual_seed(0))
    assert torch.equal(x2, x)
    assert torch.equal(words2, words)


# -------------------------------------------------------------------- the command


def test_settings_are_read_as_the_type_of_their_default():
    config = configured(
        DiffusionConfig,
        ["channels=8,16,24", "lr=2e-3", "updates=7", "prediction_type=v_prediction", "empty=0"],
    )
    assert config == DiffusionConfig(
        channels=(8, 16, 24), lr=2e-3, updates=7, prediction_type="v_prediction", empty=0.0
    )
    assert isinstance(config.empty, float)
    assert configured(VAEConfig, []) == VAEConfig()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["depth=3"], r"'depth=3' is no setting; allowed: updates, .*layers, beta, as name=value"),
        (["updates"], r"'updates' is no setting; allowed: .*as name=value"),
        (["=3"], r"'=3' is no setting"),
        (["lr=1e-3", "updates=many"],
         r"'updates=many' cannot be read; allowed: updates as int, such as 3600"),
        (["updates=1.5"], r"'updates=1.5' cannot be read; allowed: updates as int"),
        (["lr=fast"], r"'lr=fast' cannot be read; allowed: lr as float, such as 0.002"),
        (["channels=8,x"],
         r"'channels=8,x' cannot be read; allowed: channels as tuple, such as \(32, 64, 64\)"),
        (["channels="], r"'channels=' cannot be read"),
    ],
)  # fmt: skip
def test_wrong_settings(settings, message, tmp_path, capsys):
    with pytest.raises(ValueError, match=message):
        configured(VAEConfig, settings)
    assert main(["vae", *settings, "--runs", str(tmp_path / "runs")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert settings[-1] in captured.err
    assert captured.out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diffusion"], "there is no finished run in"),
        (["export"], "there is no finished run in"),
        (["export", "updates=3"], "export takes no settings; got 'updates=3'"),
        (["vae", "updates=0"], "updates is 0; allowed: an integer >= 1"),
        (["classifier", "lr=-1"], "lr is -1.0; allowed: a finite number > 0"),
    ],
)
@pytest.mark.usefixtures("few")
def test_the_commands_errors(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    if "no finished" in message:
        assert repr(str(tmp_path / "vae")) in error
        assert f"python -m slam_edu.digits.train vae --runs {tmp_path}" in error
    assert not (tmp_path / "out").exists()


def test_an_unknown_part(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["unet"])
    assert caught.value.code == 2
    assert "invalid choice: 'unet'" in capsys.readouterr().err


@pytest.mark.usefixtures("few")
def test_the_four_commands_in_a_row(tmp_path, capsys):
    """From nothing to the two folders; each may be given again."""
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--threads", "1"]
    small = ["updates=4", "batch=4", "warmup=2"]
    commands = [
        ["vae", *small, "channels=8,8,8"],
        ["diffusion", *small, "channels=8,16", "text_width=16", "versions=1",
         "prediction_type=v_prediction"],
        ["classifier", *small],
        ["export"],
    ]  # fmt: skip
    for command in commands:
        assert main([*command, *places]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "held-out PSNR" in said.out
    assert "held-out digits right" in said.out
    out = tmp_path / "out"
    assert f"wrote {out / 'digits-sd'} and {out / 'digits-classifier'}" in said.out
    pipeline = load_pipeline(out / "digits-sd")
    assert pipeline.unet.config.block_out_channels == [8, 16]
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    prompt = caption(FULL[0], 7, "red", "yellow")
    assert pipeline(prompt, num_inference_steps=2).images[0].size == (32, 32)
    load_classifier(out / "digits-classifier")
    about = json.loads((out / "digits-sd" / "training" / "diffusion.json").read_text("utf-8"))
    assert about["config"]["updates"] == 4
    # Other settings in the same place are refused.
    assert main([*commands[0], "updates=5", *places]) == 2
    assert "updates: 4 there, 5 here" in capsys.readouterr().err

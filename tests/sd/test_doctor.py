"""The machine's check-up, and the full-size run on a size that takes a moment."""

import json
import shutil

import pytest
import torch

from slam_edu.io import data_path
from slam_edu.sd import doctor, full_size
from slam_edu.sd.cli import main
from slam_edu.sd.config import PRESETS, load_config
from slam_edu.sd.doctor import Fit, examine, fitting_presets, recommended
from slam_edu.sd.full_size import (
    FULL_SIZE,
    fill,
    full_size_config,
    record_as_text,
    run_full_size,
    save_record,
)
from slam_edu.sd.memory import GIB
from slam_edu.sd.plan import make_plan
from slam_edu.sd.published import STABLE_DIFFUSION_15, architecture_of
from tests.sd.tiny import tiny_sd_pipeline, tiny_xl_pipeline

SMALL = ["revision=none", "resolution=none", "lora_rank=4", "batch=16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    tiny_sd_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def record(folder):
    return run_full_size(full_size_config([f"teacher={folder}", *SMALL]), show=lambda line: None)


# -------------------------------------------------------------------- the full-size run


def test_full_size_run_is_of_stable_diffusion_15():
    config = full_size_config()
    assert architecture_of(config) is STABLE_DIFFUSION_15
    assert (config.train, config.training.updates, config.resolution, config.training.batch) == ("lora", 2, 512, 1)
    assert config.distillation.guidance > 0
    assert full_size_config(["updates=3"]).updates == 3
    assert len(FULL_SIZE) == len({text.split("=")[0] for text in FULL_SIZE})


def test_small_full_size_run_takes_what_the_plan_says(record):
    assert record["within_15_percent"]
    for stage in record["stages"].values():
        assert stage["measured_over_plan"]["total"] == pytest.approx(1, abs=0.15)
        assert stage["resident_gib"] > sum(stage["measured_gib"].values())
    updates = record["stages"]["updates"]
    for part in ("base UNet", "adapters", "their average", "optimiser's state", "activations"):
        assert updates["measured_over_plan"][part] == pytest.approx(1, abs=0.15)
    assert set(record["stages"]) == {"text encoder", "autoencoder", "updates"}
    assert len(record["updates"]) == 2
    assert record["updates"][0]["loss"] != record["updates"][1]["loss"] > 0


def test_small_full_size_run_changes_the_adapters_alone(record):
    changed = record["changed"]
    assert record["only_adapters_changed"]
    assert changed["base"] == 0 < changed["of_base"]
    assert changed["adapters"] == changed["of_adapters"] > 0
    assert changed["average"] == changed["of_average"] == changed["of_adapters"]


def test_first_update_changes_one_factor_of_each_adapter(folder):
    config = full_size_config([f"teacher={folder}", *SMALL, "updates=1"])
    record = run_full_size(config, show=lambda line: None)
    assert record["only_adapters_changed"]
    assert 2 * record["changed"]["adapters"] == record["changed"]["of_adapters"]


def test_a_base_that_changes_is_noticed(folder, monkeypatch):
    def updates(self):
        for state in run_updates(self):
            with torch.no_grad():
                self.networks.unet.conv_out.bias[0] += 1e-6
            yield state

    run_updates = full_size.Engine.updates
    monkeypatch.setattr(full_size.Engine, "updates", updates)
    config = full_size_config([f"teacher={folder}", *SMALL, "updates=1", "batch=1"])
    record = run_full_size(config, show=lambda line: None)
    assert record["changed"]["base"] == 1
    assert not record["only_adapters_changed"]
    assert "only the adapters changed: NO" in record_as_text(record)


def test_memory_beyond_the_plan_is_noticed():
    stage = {"measured_gib": {"weights": 1.0, "working memory": 1.2}}
    full_size._compare(stage, {"weights": GIB, "working memory": GIB})
    assert not stage["within"]
    assert stage["measured_over_plan"]["total"] == pytest.approx(1.1)
    full_size._compare(stage, {"weights": GIB, "working memory": 1.1 * GIB, "assumed": GIB})
    assert stage["within"]
    assert stage["plan_gib"]["assumed"] == 1


def test_record_is_a_page_and_a_file(record, tmp_path):
    text = record_as_text(record)
    for words in ("base UNet", "ratio", "resident", "update 2: loss", "changed: 0 of"):
        assert words in text
    path = tmp_path / "doctor.json"
    save_record(record, path)
    found = json.loads(path.read_text("utf-8"))
    assert found["stages"]["updates"]["within"] is True
    assert found["config"]["lora_rank"] == 4


def test_random_weights_keep_values_finite_and_repeat():
    architecture = architecture_of(full_size_config(["teacher=digits", *SMALL]))
    one, two, other = (architecture.build_text_encoder() for _ in range(3))
    fill(one, 0)
    fill(two, 0)
    fill(other, 1)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        a, b, c = (m.eval()(input_ids=ids).last_hidden_state for m in (one, two, other))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)
    assert a.isfinite().all()
    # The places count: they are a buffer, which no weights fill.
    with torch.no_grad():
        swapped = one(input_ids=ids.flip(1)).last_hidden_state.flip(1)
    assert not torch.allclose(a, swapped)
    vae = architecture.build_vae()
    fill(vae, 0, torch.float16)
    assert {p.dtype for p in vae.parameters()} == {torch.float16}
    vae.register_buffer("table", torch.zeros(2))
    with pytest.raises(ValueError, match="buffer table"):
        fill(vae, 0)


def test_full_size_run_refuses_what_it_is_not_for(folder, tmp_path, monkeypatch):
    settings = [f"teacher={folder}", *SMALL]
    with pytest.raises(ValueError, match="train is 'full'"):
        run_full_size(full_size_config([*settings, "train=full"]))
    tiny_xl_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="allowed: 'lora' with a Stable Diffusion 1 or 2"):
        run_full_size(full_size_config([*settings, f"teacher={tmp_path}"]))
    monkeypatch.setattr(full_size, "available_bytes", lambda device: GIB // 10)
    with pytest.raises(ValueError, match="does not fit in memory"):
        run_full_size(full_size_config(settings))


def test_shipped_record_is_of_a_run_that_went_well():
    path = data_path("full-size/doctor.json")
    found = json.loads(path.read_text("utf-8"))
    assert found["only_adapters_changed"]
    assert found["within_15_percent"]
    assert found["parameters"]["teacher's UNet"] == 859_520_964
    assert found["stages"]["updates"]["resident_gib"] < 24
    assert len(found["updates"]) == 2
    updates = found["stages"]["updates"]
    planned = sum(updates["plan_gib"].values())
    assert updates["resident_gib"] == pytest.approx(planned, rel=0.15)


# -------------------------------------------------------------------- the machine


def test_machine_is_looked_at_and_nothing_is_asked_of_the_network(tmp_path, monkeypatch):
    import socket

    def refuse(*_arguments, **_options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    findings = {f.name: f for f in examine(tmp_path)}
    for name in ("Python", "torch", "diffusers", "transformers", "digits model", "disk"):
        assert findings[name].ok, findings[name]
    assert "every checksum is right" in findings["digits model"].detail
    assert "hub" not in findings


def test_hub_is_asked_on_request_alone(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    found = list(examine(hub=True))[-1]
    assert (found.name, found.ok) == ("hub", None)
    assert "does not answer" in found.detail


def test_damaged_model_and_missing_package_are_named(tmp_path, monkeypatch):
    shutil.copytree(data_path("digits-sd"), tmp_path / "digits-sd")
    (tmp_path / "digits-sd" / "vae" / "config.json").write_text("{}", "utf-8")
    monkeypatch.setattr("slam_edu.io.data_path", lambda name: tmp_path / name)
    found = doctor._model()
    assert not found.ok
    assert "vae" in found.detail
    monkeypatch.setattr(doctor, "NEEDED", ("no-such-package",))
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-extra": "tracker=none"})
    findings = {f.name: f for f in examine(tmp_path)}
    assert findings["no-such-package"].ok is False
    assert "pip install" in findings["no-such-package"].detail
    assert findings["no-such-extra"].ok is None
    assert "tracker=none needs it" in findings["no-such-extra"].detail


def test_presets_fit_or_say_why_not():
    fits = {fit.preset: fit for fit in fitting_presets("cpu", 8 * GIB, 8 * GIB)}
    assert set(fits) == set(PRESETS)
    assert fits["digits"].fits
    assert not fits["sdxl-a100"].fits
    assert "needs a CUDA GPU" in fits["sdxl-a100"].detail
    [poor] = fitting_presets("cpu", 8 * GIB, 10, ("digits",))
    assert not poor.fits
    assert "of disk are free" in poor.detail
    need = make_plan(load_config("digits"), device="cpu").total()
    [poor] = fitting_presets("cpu", need - 1, 8 * GIB, ("digits",))
    assert not poor.fits
    assert "(batch=" in poor.detail
    with pytest.raises(ValueError, match="device is 'abacus'"):
        list(fitting_presets("abacus", 1, 1))


def test_recommendation_is_the_best_that_fits():
    def fit(name, fits):
        return Fit(preset=name, fits=fits, detail="")

    assert recommended([fit("digits", True), fit("sd15-t4-lora", True)]) == "sd15-t4-lora"
    assert recommended([fit("digits", True), fit("sd15-t4-lora", False)]) == "digits"
    assert recommended([fit("digits", False)]) is None
    assert set(doctor.PREFERRED) <= set(PRESETS)


def test_command_recommends_a_preset(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "PRESETS", {"digits": PRESETS["digits"]})
    assert main(["doctor"]) == 0
    assert "begin with: slam-edu distill --preset digits" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "NEEDED", ("no-such-package",))
    assert main(["doctor"]) == 1
    assert "1 of these must be mended" in capsys.readouterr().out


def test_command_runs_the_full_size(capsys, tmp_path, folder):
    out = tmp_path / "doctor.json"
    settings = [f"teacher={folder}", *SMALL, "updates=1"]
    assert main(["doctor", "--full-size", "--out", str(out), *settings]) == 0
    assert "only the adapters changed: yes" in capsys.readouterr().out
    assert json.loads(out.read_text("utf-8"))["within_15_percent"]
    assert main(["doctor", "--full-size", "--out", str(tmp_path / "no" / "x.json")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["doctor", "--out", str(out)]) == 2
    assert "belong to --full-size" in capsys.readouterr().err

"""The machine's check-up."""

from types import SimpleNamespace

import pytest

from slam_edu.sd import doctor
from slam_edu.sd.cli import main
from slam_edu.sd.config import PRESETS, load_config
from slam_edu.sd.doctor import examine, preset_fit
from slam_edu.sd.plan import GIB, make_plan


def test_machine_is_examined_and_nothing_is_asked_of_the_network(tmp_path, monkeypatch):
    import socket

    def refuse(*_arguments, **_options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    findings = {f.name: f for f in examine(tmp_path)}
    for name in ("Python", "torch", "diffusers", "transformers", "digits model", "disk"):
        assert findings[name].ok, findings[name]
    assert "hub" not in findings


def test_hub_is_asked_on_request_alone(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setattr(doctor, "shipped", lambda name: SimpleNamespace(load_teacher=int))
    found = list(examine(hub=True))[-1]
    assert (found.name, found.ok) == ("hub", None)
    assert "does not answer" in found.detail


def test_damaged_model_and_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("slam_edu.digits.pipeline.data_path", lambda name: tmp_path / name)
    monkeypatch.setattr(doctor, "NEEDED", ("no-such-package",))
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-extra": "tracker=none"})
    assert main(["doctor", "--dir", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "NO no-such-package       missing: pip install" in text
    assert "-  no-such-extra         not installed; tracker=none needs it" in text
    assert "NO digits model" in text
    assert "digits-sd" in text
    assert "2 of these must be mended" in text


def test_presets_fit_or_tell_why_not():
    need = make_plan(load_config("digits"), device="cpu").total()
    assert preset_fit("digits", "cpu", need, 8 * GIB)[0]
    for preset, room, disk, why in (
        ("sdxl-a100", 8 * GIB, 8 * GIB, "needs a CUDA GPU"),
        ("digits", 8 * GIB, 10, "of disk are free"),
        ("digits", need - 1, 8 * GIB, "(batch=31 fits)"),
    ):
        fits, detail = preset_fit(preset, "cpu", room, disk)
        assert not fits
        assert why in detail


@pytest.mark.parametrize(
    ("presets", "best"), [(("digits-lora", "digits"), "digits"), (("sdxl-lora",), None)]
)
def test_command_recommends_the_best_preset_that_fits(capsys, monkeypatch, presets, best):
    assert set(doctor.PREFERRED) <= set(PRESETS)
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: ())
    monkeypatch.setattr(doctor, "PRESETS", {name: PRESETS[name] for name in presets})
    assert main(["doctor"]) == (0 if best else 1)
    text = capsys.readouterr().out
    assert f"begin with: slam-edu distill --preset {best}" in text if best else "no preset" in text

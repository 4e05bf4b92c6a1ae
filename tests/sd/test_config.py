"""A run's configuration: presets, files, settings, and what it refuses."""

import pytest
import yaml

from slam_edu.sd.config import (
    PRESETS,
    RULES,
    SDConfig,
    describe,
    load_config,
    read_config,
    save_config,
)


def test_every_preset_is_a_configuration_and_is_read_again(tmp_path):
    for preset, (_, values) in PRESETS.items():
        config = load_config(preset, settings=["threads=1", "tracker=none"])
        assert values.items() <= config.settings().items()
        assert config.distill() == config.distillation
        assert values["teacher"] == "digits" or len(config.revision) == 40
        save_config(config, tmp_path / "config.yaml")
        assert read_config(tmp_path / "config.yaml") == config


def test_file_and_settings_override_in_turn(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("lr: 3e-4\nbatch: 8\nthreads: null\ncache: false\n")
    config = load_config("digits", file, ["batch=16", "guidance=1.5", "threads=2"])
    assert (config.training.lr, config.training.batch) == (3e-4, 16)
    assert config.distillation.guidance == 1.5
    assert (config.threads, config.cache, config.teacher) == (2, False, "digits")
    (tmp_path / "a.json").write_text('{"lr": 1e-3, "lora_alpha": 8}')
    config = load_config("digits", tmp_path / "a.json")
    assert (config.training.lr, config.lora_alpha) == (1e-3, 8)


def test_every_setting_is_documented_and_printed():
    text = describe(SDConfig())
    for rule in RULES.values():
        assert len(rule.doc) > 10
        assert rule.doc in text
    assert yaml.safe_load(text) == SDConfig().settings()
    assert "# default: 0.0001" in describe(SDConfig(lr=1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lrr=1"], r"'lrr' is no setting; did you mean lr"),
        (["lr"], r"'lr' is no setting; allowed: name=value"),
        (["lr=fast"], r"lr is 'fast'; allowed: a number"),
        (["lr=0"], r"lr is 0.0; allowed: a finite number > 0"),
        (["batch=2.5"], r"batch is '2.5'; allowed: an integer"),
        (["cache=maybe"], r"cache is 'maybe'; allowed: true or false"),
        (["coupling=cubic"], r"coupling is 'cubic'; allowed: 'markov', 'linear'"),
        (["data=folder"], r"data is 'folder' without a data_path"),
        (["data=prompts", "cache=false"], r"cache is False with data='prompts'"),
        (["revision=main"], r"revision is 'main'; allowed: a commit's 40"),
        (["reach=2", "conditioning=gamma"], r"reach is 2.0 with conditioning='gamma'"),
        (["lora_rank=0"], r"lora_rank is 0; allowed: a finite number >= 1"),
        (["max_rejected=2"], r"max_rejected is 2.0; allowed: a finite number >= 0 and <= 1"),
        (["lora_alpha=0"], r"lora_alpha is 0.0; allowed: a finite number > 0"),
    ],
)
def test_what_is_not_allowed_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        load_config("digits", settings=settings)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"preset is 'sd3'; allowed: 'digits'"):
        load_config("sd3")
    for text in ("- lr\n", "lr: [", "\x00", "just text"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"a\.yaml"):
            load_config("digits", tmp_path / "a.yaml")
    with pytest.raises(ValueError, match=r"b\.yaml"):
        load_config("digits", tmp_path / "b.yaml")
    (tmp_path / "a.yaml").write_text("learning_rate: 1e-3\n")
    with pytest.raises(ValueError, match=r"'learning_rate' is no setting"):
        load_config("digits", tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="'bach' is no setting; did you mean batch"):
        SDConfig().replace(bach=3)


def test_latent_consistency_distillation_is_gamma_one():
    wanted = ["method=lcd", "reach=2", "gammas=uniform"]
    config = load_config("digits", settings=wanted)
    distill = config.distill("v_prediction")
    assert (distill.gammas, distill.slope, config.continued) == ("one", "end", False)
    assert load_config("digits", settings=[*wanted, "method=slam"]).continued
    assert distill.teacher_prediction_type == "v_prediction"


def test_files_of_older_runs_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1.0e-3\nhop: full\n")
    assert read_config(tmp_path / "a.yaml").training.lr == 1e-3

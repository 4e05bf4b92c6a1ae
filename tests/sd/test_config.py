"""A run's configuration: presets, files, settings, and what it refuses."""

from pathlib import Path

import pytest

from slam_edu.sd.cli import main
from slam_edu.sd.config import (
    PRESETS,
    RULES,
    SDConfig,
    describe,
    load_config,
    read_config,
    read_settings,
    save_config,
)


def test_every_preset_is_a_configuration_and_is_read_again(tmp_path):
    for preset, (_, values) in PRESETS.items():
        config = load_config(preset, settings=["threads=1", "tracker=none"])
        assert values.items() <= config.settings().items()
        assert config.distill() == config.distillation
        assert values["teacher"] == "digits" or len(config.revision) == 40
        save_config(config, tmp_path / "config.yaml")
        assert read_config(tmp_path / "config.yaml") == config.located()


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


def test_every_setting_is_documented_and_printed(tmp_path):
    text = describe(SDConfig())
    for rule in RULES.values():
        assert len(rule.doc) > 10
        assert rule.doc in text
    (tmp_path / "a.yaml").write_text(text, "utf-8")
    assert read_settings(tmp_path / "a.yaml") == SDConfig().settings()
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
        (["out="], r"out is ''; allowed: text, not empty"),
        (["data_path=a\0b"], r"data_path is 'a\\x00b'; allowed: text"),
        (["teacher=\ud83d"], r"teacher is '\\ud83d'; allowed: text, not empty, that UTF-8"),
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


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.yaml", "mixed_precision: no", {"mixed_precision": "no"}),
        ("a.yaml", f"revision: {'4' * 40}", {"revision": "4" * 40}),
        ("a.yaml", "out: 2024-01-01\nthreads: ~", {"out": "2024-01-01", "threads": None}),
        ("a.yaml", "lr: 1e-3\ncache: False", {"lr": 1e-3, "cache": False}),
        ("a.yaml", '\n{\n\t"lr":\t1e-3\n}', {"lr": 1e-3}),
        (
            "a.json",
            r'{"out": "\ud83d\ude00", "lora_alpha": null}',
            {"out": "😀", "lora_alpha": None},
        ),
        ("a.json", '\ufeff{"batch": 8}', {"batch": 8}),
        ("a.yaml", "lr: 1\nlr: 2", "duplicate key"),
        ("a.json", '{"lr": 1, "lr": 2}', "a name comes twice"),
        ("a.json", "lr: 1", "cannot be read"),
        ("a.json", "[" * 100_000, "recursion"),
        ("a.json", '{"lr": NaN}', "lr is nan; allowed: a finite number"),
        ("a.yaml", "cache: yes", "cache is 'yes'; allowed: true or false"),
        (
            "a.yaml",
            "# slam_edu 9.9\nnew: 1",
            r"is of slam_edu 9\.9, and this is .*'new' is no set",
        ),
        ("a.yaml", "# slam_edu 9.9\ntrain: new", r"of slam_edu 9\.9, .*train is 'new'; allowed"),
    ],
)
def test_json_is_json_and_yaml_is_text_until_it_is_read(name, text, wanted, tmp_path):
    (tmp_path / name).write_text(text, "utf-8")
    if isinstance(wanted, dict):
        assert read_settings(tmp_path / name) == wanted
        return
    with pytest.raises(ValueError, match=wanted) as error:
        read_settings(tmp_path / name)
    assert name in str(error.value)


def test_paths_mean_what_a_shell_means(tmp_path, monkeypatch):
    """Also from another folder, when a run's configuration is read again."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    config = SDConfig(
        out="~/run", data="folder", data_path="imgs", cache_folder="~/c", teacher="tiny"
    )
    assert (config.out, config.cache_folder) == (f"{tmp_path}/run", f"{tmp_path}/c")
    save_config(config, tmp_path / "config.yaml")
    monkeypatch.chdir("/")
    found = read_config(tmp_path / "config.yaml")
    assert (found.teacher, found.data_path) == (str(tmp_path / "tiny"), str(tmp_path / "imgs"))
    for settings in (
        {"data": "datasets", "data_path": "owner/name", "teacher": "owner/model"},
        {"data": "webdataset", "data_path": "https://example.org/{0..9}.tar", "teacher": "digits"},
    ):
        assert settings.items() <= SDConfig(**settings).located().settings().items()


def test_settings_stand_on_both_sides_of_an_option(capsys):
    assert (
        main(["plan", "batch=7", "--processes", "2", "lr=1e-3", "--card=t4", "accumulate=3"]) == 0
    )
    assert "batch 7 x accumulate 3 x 2 processes" in capsys.readouterr().out
    assert main(["plan", "batch=7", "--processes", "2", "bach=1"]) == 2
    assert "'bach' is no setting; did you mean batch" in capsys.readouterr().err


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

"""A run in its folder: whole, stopped, killed, gone on with, refused, on two processes."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slam_edu import SubPathDistiller
from slam_edu.io import locked
from slam_edu.sd.checkpoint import checkpoint_paths
from slam_edu.sd.cli import main
from slam_edu.sd.config import load_config, read_config
from slam_edu.sd.launch import launch
from slam_edu.sd.run import DistillRun, distill, load_run
from slam_edu.sd.tracking import COLUMNS, save_grid
from tests.sd.kill_and_go_on import MOMENTS
from tests.sd.tiny import tiny_sd_pipeline
from tools.bootstrap import ROOT

SETTINGS = (
    "updates=6", "batch=2", "lr=1e-3", "save_every=2", "log_every=2", "sample_count=0",
    "tracker=none", "max_samples=16", "threads=1",
)  # fmt: skip


def quiet(_line):
    pass


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A teacher and a cache that all runs here share."""
    folder = tmp_path_factory.mktemp("shared")
    tiny_sd_pipeline().save_pretrained(folder / "tiny")
    return [*SETTINGS, f"teacher={folder / 'tiny'}", f"cache_folder={folder / 'cache'}"]


@pytest.fixture
def settings(where, tmp_path):
    return [*where, f"out={tmp_path / 'run'}"]


@pytest.fixture
def config(settings):
    return load_config("digits", settings=settings)


@pytest.fixture(scope="module")
def whole(where, tmp_path_factory):
    """A run that was left alone: its folder, and the losses."""
    out = tmp_path_factory.mktemp("whole")
    config = load_config("digits", settings=[*where, "sample_count=1", f"out={out}"])
    return out, [state.loss for state in DistillRun(config, show=quiet)]


def final(folder):
    """The bytes of the newest checkpoint."""
    return checkpoint_paths(folder)[0].read_bytes()


def rows_of(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_what_it_promises_and_is_read_again(whole):
    folder, losses = whole
    assert len(losses) == 6
    assert [p.stem for p in checkpoint_paths(folder)] == ["00000006", "00000004"]
    rows = rows_of(folder)
    assert tuple(rows[0]) == COLUMNS
    assert [row["update"] for row in rows] == ["2", "4", "6"]
    assert float(rows[0]["loss"]) == pytest.approx(sum(losses[:2]) / 2, rel=1e-5)
    assert sorted(p.stem for p in (folder / "samples").iterdir()) == ["00000000", "00000006"]
    found, said, before = load_run(folder), [], final(folder)
    assert (found.update, found.skipped) == (6, 0)
    assert found.config == read_config(folder / "config.yaml")
    assert list(distill(found.config, show=said.append)) == []
    assert final(folder) == before
    assert any("finished: update 6 of 6" in line for line in said)


def test_a_signal_saves_and_ends_it(config, whole, monkeypatch):
    monkeypatch.setattr("slam_edu.sd.run.LOOPS", 0)
    before, said = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], []
    run = DistillRun(config, show=said.append)
    for state in run:
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT)
        if state.update == 2:
            os.kill(os.getpid(), signal.SIGINT)
    assert any("data: each of 16 latents is shown 1 times; more data" in line for line in said)
    assert state.update == 3
    assert run.stopped == signal.SIGINT
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert checkpoint_paths(run.folder)[0].stem == "00000003"
    assert any("stopped after update 3 of 6; the same command goes on" in line for line in said)
    assert [s.loss for s in DistillRun(config, show=said.append)] == whole[1][3:]
    assert final(run.folder) == final(whole[0])
    assert [row["update"] for row in rows_of(run.folder)] == ["2", "3", "4", "6"]


def test_a_damaged_checkpoint_is_passed_over(config, whole):
    said = []
    for state in DistillRun(config, show=said.append):
        if state.update == 5:  # left, at any moment
            break
    newest = checkpoint_paths(Path(config.out))[0]
    assert newest.stem == "00000004"
    newest.write_bytes(newest.read_bytes()[:5000])
    assert [s.update for s in DistillRun(config, show=said.append)] == [3, 4, 5, 6]
    assert any("going back to the one before" in line for line in said)
    assert final(Path(config.out)) == final(whole[0])


def test_the_distiller_can_be_another(config, whole):
    made = []

    class Other(SubPathDistiller):
        def __init__(self, *words):
            super().__init__(*words)
            made.append(self)

        def step(self, *words, **options):
            output = super().step(*words, **options)
            return type(output)(**{**vars(output), "loss": 2 * output.loss})

    state = next(iter(distill(config, show=quiet, distiller=Other)))
    assert state.loss == pytest.approx(2 * whole[1][0])
    assert all(one.config == config.distill() for one in made)


def test_what_cannot_be_is_named(config, tmp_path):
    folder = Path(config.out)
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml"):
        load_run(tmp_path)
    folder.mkdir()
    with locked(folder), pytest.raises(ValueError, match="is in use by another process"):
        next(iter(DistillRun(config, show=quiet)))
    next(iter(DistillRun(config, show=quiet)))
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        load_run(folder)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is 'cuda'; allowed on this machine: 'auto'"):
            next(iter(DistillRun(config.replace(device="cuda"), show=quiet)))
    with pytest.raises(ModuleNotFoundError, match=r"tracker is 'trackio', which is not installed"):
        next(iter(DistillRun(config.replace(tracker="trackio"), show=quiet)))


def test_a_mistake_before_the_first_checkpoint_locks_nothing(config, monkeypatch):
    """Then the settings are fixed, and what is advised works where it is followed."""
    wrong = config.replace(teacher="tyni", lr=0.5)
    with pytest.raises(FileNotFoundError, match="'tyni' is no folder"):
        next(iter(DistillRun(wrong, show=quiet)))
    run = DistillRun(config, show=quiet)
    assert [state.update for state in run] == [1, 2, 3, 4, 5, 6]
    assert read_config(run.folder / "config.yaml") == config
    free = config.replace(log_every=3, keep=5, threads=2, device="cpu")
    assert list(DistillRun(free, show=quiet)) == []
    with pytest.raises(ValueError, match=r"other settings \(lr: 0.001 there, 0.5 here\)"):
        next(iter(DistillRun(config.replace(lr=0.5), show=quiet)))

    def little(*_words, **_options):
        raise ValueError("this does not fit in memory; what fits: batch=1")

    monkeypatch.setattr("slam_edu.sd.plan.check_memory", little)
    with pytest.raises(ValueError, match=r"what fits: batch=1, in another folder \(out=...\)"):
        next(iter(DistillRun(config, show=quiet)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subpaths": 30}, "sub-paths is 30"),
        ({"optimizer": "adamw8bit"}, "optimizer is 'adamw8bit' on cpu|needs bitsandbytes"),
        ({"sample_prompts": "/nowhere/prompts.txt"}, "prompts.txt' is not a file"),
        ({"data": "folder", "data_path": "/nowhere"}, "there is no folder '/nowhere'"),
        ({"data": "prompts", "data_path": "/nowhere"}, "'/nowhere' is not a file"),
    ],
)
def test_what_can_be_seen_at_once_does_not_wait_for_the_data(config, changes, message):
    wrong = config.replace(cache_folder=f"{config.out}/cache", **changes)
    with pytest.raises((ValueError, OSError, ModuleNotFoundError), match=message):
        next(iter(DistillRun(wrong, show=quiet)))
    assert not Path(wrong.cache_folder).exists()


def test_another_teacher_in_the_same_place(config, where, tmp_path):
    """Neither goes on nor is loaded; the run's own does, wherever one is."""
    folder = Path(shutil.copytree(where[-2].partition("=")[2], tmp_path / "tiny"))
    config = config.replace(teacher=str(folder), updates=2)
    list(DistillRun(config, show=quiet))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content, weights = path.read_bytes(), load_file(path)
    weights["conv_in.bias"][3] += 0.5
    save_file(weights, path, {"format": "pt"})
    more = config.replace(log_every=1)
    for again in (lambda: next(iter(DistillRun(more, show=quiet))), lambda: load_run(config.out)):
        with pytest.raises(ValueError, match=r"began with: unet differ; allowed: that teacher"):
            again()
    path.write_bytes(content)
    assert load_run(config.out).update == 2


def test_files_of_others_stay(config):
    """Names that look like the run's own; what a killed write of its own left goes."""
    folder = Path(config.out)
    checkpoints = folder / "checkpoints"
    theirs = [
        checkpoints / name
        for name in ("00000004-good.safetensors", "4.safetensors", "best.safetensors",
                     ".my-copy.safetensors", "00000002.safetensors.bak", "000000001.safetensors")
    ]  # fmt: skip
    left = [checkpoints / ".slam_edu-abcd1234.safetensors", folder / ".slam_edu-a_b_c_d_.yaml"]
    checkpoints.mkdir(parents=True)
    for path in (*theirs, *left):
        path.write_text("kept")
    run = DistillRun(config, show=quiet)
    list(run)
    assert [p.stem for p in checkpoint_paths(folder)] == ["00000006", "00000004"]
    assert [path.read_text() for path in theirs] == ["kept"] * len(theirs)
    assert not any(path.exists() for path in left)
    assert list(DistillRun(config, show=quiet)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.yaml", "lr: 0.1  # the best of 40 runs"), ("config.yaml", "[1"), ("log.csv", "a,b")],
)
def test_a_file_that_no_run_wrote_is_refused(config, name, text):
    folder = Path(config.out)
    folder.mkdir()
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"holds {name}, not as a run writes it"):
        next(iter(DistillRun(config, show=quiet)))
    assert (folder / name).read_text() == text


def test_tensorboard_has_the_log(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = DistillRun(config.replace(tracker="tensorboard", updates=2, sample_count=1), show=quiet)
    losses = [state.loss for state in run]
    [folder] = (run.folder / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    scalars = events.Scalars("loss")
    assert [event.step for event in scalars] == [2]
    assert scalars[0].value == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert [event.step for event in events.Images("samples")] == [0, 2]


def test_a_grid_has_a_row_for_each(tmp_path):
    rows = [torch.zeros(3, 3, 32, 32), torch.ones(3, 3, 32, 32)]
    pixels = save_grid(rows, tmp_path / "a" / "grid.png")
    assert pixels.shape == (2 * 66, 3 * 66, 3)
    assert (pixels[30, 30] == 128).all()
    assert (pixels[96, 30] == 255).all()


# -------------------------------------------------------------------- the command


def test_the_command_finds_the_run_finished_and_samples(settings, capsys, tmp_path, whole):
    assert main(["distill", "--quiet", *settings, f"out={whole[0]}"]) == 0
    assert "done: 6 updates" in capsys.readouterr().out
    picture = tmp_path / "new" / "picture.png"
    words = ["sample", str(whole[0]), "a red two", "a blue one", "--steps", "1", "4"]
    assert main([*words, "--out", str(picture)]) == 0
    assert picture.exists()
    assert main([*words, "--guidance-scale", "3"]) == 2
    assert "its guidance is in its weights" in capsys.readouterr().err


def test_the_command_names_what_is_wrong_and_explains_all_settings(capsys):
    assert main(["distill", "lrr=1"]) == 2
    assert "'lrr' is no setting; did you mean lr" in capsys.readouterr().err
    assert main(["sample", "/nowhere", "a", "--steps", "0"]) == 2
    assert "--steps is 0; allowed: from 1 to 1000" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--preset", "sd15-t4-lora", "--help-config"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "# rank r of the adapters" in out
    assert "train: lora  # default: full" in out


def test_the_cache_command_makes_one_to_train_with(settings, capsys, tmp_path):
    assert main(["cache", "--out", str(tmp_path / "made"), *settings]) == 0
    assert "16 latents" in capsys.readouterr().out
    more = ["data=cache", f"data_path={tmp_path / 'made'}"]
    assert main(["distill", "--quiet", *settings, *more, "updates=1"]) == 0


def test_a_run_of_the_shipped_teacher_is_judged(tmp_path, capsys):
    settings = ["updates=1", "batch=2", "max_samples=4", "sample_count=0", "tracker=none"]
    assert main(["distill", "--quiet", *settings, f"out={tmp_path / 'run'}"]) == 0
    words = ["--steps", "1", "2", "--count", "4", "--out", str(tmp_path / "a.json")]
    assert main(["evaluate", str(tmp_path / "run"), *words]) == 0
    results = json.loads((tmp_path / "a.json").read_text())
    assert [row["steps"] for row in results["rows"]] == [1, 2]
    assert 0 <= results["rows"][0]["digit"] <= 1
    assert "steps   all_right       digit" in capsys.readouterr().out


# -------------------------------------------------------------------- faults, processes


def test_kills_change_nothing(settings, whole, tmp_path):
    """The last checkpoint is that of a run that was left alone, byte for byte."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sd.kill_and_go_on", *settings],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        *([moment, -signal.SIGKILL, newest] for moment, newest in MOMENTS.items()), [None, 0, 6]
    ]  # fmt: skip
    assert final(tmp_path / "run") == final(whole[0])


def test_a_full_disk_leaves_the_older_checkpoints(config, settings, tmp_path, capsys):
    """Files may not grow beyond a size, so that the first write of weights fails."""
    for state in DistillRun(config, show=quiet):
        if state.update == 3:
            break
    [path] = checkpoint_paths(tmp_path / "run")
    before = path.read_bytes()
    limit = 3_000_000
    assert len(before) > limit
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        assert main(["distill", "--quiet", *settings]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    error = capsys.readouterr().err
    assert "00000004.safetensors' cannot be written" in error
    assert "MB are free there. Make room" in error
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_two_processes_are_one_with_twice_the_batch(settings, tmp_path):
    settings = [*settings, "updates=4", "log_every=1", "save_every=4"]
    alone = load_config("digits", settings=[*settings, "batch=4", f"out={tmp_path / 'alone'}"])
    losses = [state.loss for state in DistillRun(alone, show=quiet)]
    launch(["distill", "--quiet", *settings, "device=cpu"], processes=2)
    found = [float(row["loss"]) for row in rows_of(tmp_path / "run")]
    assert found == pytest.approx(losses, rel=1e-3)
    a, b = load_run(tmp_path / "alone"), load_run(tmp_path / "run")
    start = dict(tiny_sd_pipeline().unet.named_parameters())
    for kind in ("trained", "average"):
        ours, theirs = getattr(a.networks, kind), getattr(b.networks, kind)
        assert ours.keys() == theirs.keys() == start.keys()
        # Of all weights together: where a gradient is nearly 0, AdamW follows its rounding.
        moved = sum(float((ours[n] - start[n]).detach().square().sum()) for n in start) ** 0.5
        apart = sum(float((ours[n] - theirs[n]).detach().square().sum()) for n in start) ** 0.5
        assert moved > 0.1
        assert apart < 0.01 * moved

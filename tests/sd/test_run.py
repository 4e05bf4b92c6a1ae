"""A run in its folder: whole, stopped, killed, gone on with, refused, on two processes."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch

from slam_edu.sd import run as run_module
from slam_edu.sd.checkpoint import checkpoint_paths
from slam_edu.sd.cli import main
from slam_edu.sd.config import load_config, read_config
from slam_edu.sd.launch import launch
from slam_edu.sd.run import DistillRun, distill, load_run, locked
from slam_edu.sd.tracking import COLUMNS, save_grid
from tests.digits.conftest import tiny_pipeline
from tools.bootstrap import ROOT

SETTINGS = (
    "updates=6", "batch=2", "lr=1e-3", "save_every=2", "log_every=2", "sample_count=2",
    "tracker=none", "max_samples=16", "threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(teacher, cache, tmp_path):
    where = [f"teacher={teacher}", f"cache_folder={cache}", f"out={tmp_path / 'run'}"]
    return [*SETTINGS, *where]


@pytest.fixture
def config(settings):
    return load_config("digits", settings=settings)


@pytest.fixture(scope="module")
def whole(teacher, cache, tmp_path_factory):
    """A run that was left alone: its folder, and the losses."""
    out = tmp_path_factory.mktemp("whole")
    where = [f"teacher={teacher}", f"cache_folder={cache}", f"out={out}"]
    config = load_config("digits", settings=[*SETTINGS, *where])
    return out, [state.loss for state in DistillRun(config, show=lambda line: None)]


def final(folder):
    """The bytes of the newest checkpoint."""
    return checkpoint_paths(folder)[0].read_bytes()


def command(*words, **environ):
    """``slam-edu`` in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", **environ}
    return [sys.executable, "-m", "slam_edu.sd", *map(str, words)], {"cwd": ROOT, "env": env}


def test_a_run_leaves_what_it_promises(whole):
    folder, losses = whole
    assert len(losses) == 6
    assert [p.stem for p in checkpoint_paths(folder)] == ["00000006", "00000004"]
    assert read_config(folder / "config.yaml").training.updates == 6
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["update"] for row in rows] == ["2", "4", "6"]
    assert float(rows[0]["loss"]) == pytest.approx(sum(losses[:2]) / 2, rel=1e-5)
    assert sorted(p.name for p in (folder / "samples").iterdir()) == [
        "00000000.png", "00000006.png",
    ]  # fmt: skip


def test_it_is_read_again(whole):
    found = load_run(whole[0])
    assert (found.update, found.skipped) == (6, 0)
    assert found.config == read_config(whole[0] / "config.yaml")
    from safetensors.torch import load_file

    tensors = load_file(checkpoint_paths(whole[0])[0])
    for name, value in found.networks.average.items():
        assert torch.equal(value, tensors[f"average/{name}"])


def test_finished_it_does_nothing(whole):
    before, said = final(whole[0]), []
    config = read_config(whole[0] / "config.yaml")
    assert list(distill(config, show=said.append)) == []
    assert final(whole[0]) == before
    assert any("finished: update 6 of 6" in line for line in said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_it(config, whole, number):
    before = signal.getsignal(number)
    said = []
    run = DistillRun(config, show=said.append)
    for state in run:
        if state.update == 2:
            os.kill(os.getpid(), number)
    assert state.update == 3
    assert run.stopped == number
    assert signal.getsignal(number) == before
    assert checkpoint_paths(run.folder)[0].stem == "00000003"
    assert any("stopped after update 3 of 6; the same command goes on" in line for line in said)
    assert [s.loss for s in DistillRun(config, show=said.append)] == whole[1][3:]
    assert final(run.folder) == final(whole[0])
    with (run.folder / "log.csv").open() as file:
        assert [row["update"] for row in csv.DictReader(file)] == ["2", "3", "4", "6"]


def test_a_loop_that_is_left_goes_on_from_the_last_checkpoint(config, whole):
    for state in DistillRun(config, show=lambda line: None):
        if state.update == 3:
            break
    assert [s.update for s in DistillRun(config, show=lambda line: None)] == [3, 4, 5, 6]
    assert final(run_module.Path(config.out)) == final(whole[0])


def test_a_damaged_checkpoint_is_passed_over(config, whole):
    said = []
    for state in DistillRun(config, show=said.append):
        if state.update == 4:
            break
    newest = checkpoint_paths(run_module.Path(config.out))[0]
    assert newest.stem == "00000004"
    newest.write_bytes(newest.read_bytes()[:5000])
    assert [s.update for s in DistillRun(config, show=said.append)] == [3, 4, 5, 6]
    assert any("going back to the one before" in line for line in said)
    assert final(run_module.Path(config.out)) == final(whole[0])


def test_other_settings_in_the_folder_are_refused(config, whole):
    list(DistillRun(config, show=lambda line: None))
    with pytest.raises(ValueError, match=r"other settings \(lr: 0.001 there, 0.5 here\)"):
        next(iter(DistillRun(config.replace(lr=0.5), show=lambda line: None)))
    free = config.replace(log_every=3, keep=5, sample_count=1, threads=2)
    assert list(DistillRun(free, show=lambda line: None)) == []


def test_a_second_run_in_the_folder_is_refused(config):
    folder = run_module.Path(config.out)
    folder.mkdir()
    with locked(folder), pytest.raises(ValueError, match="is in use by another run"):
        next(iter(DistillRun(config, show=lambda line: None)))
    with locked(folder):  # let go again
        pass


def test_what_is_not_there_is_named(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml"):
        load_run(tmp_path)
    folder = run_module.Path(config.out)
    folder.mkdir()
    run_module.keep_config(config, folder)
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        load_run(folder)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is 'cuda'; allowed on this machine: 'auto'"):
            next(iter(DistillRun(config.replace(device="cuda"), show=lambda line: None)))
    with pytest.raises(ModuleNotFoundError, match=r"tracker is 'trackio', which is not installed"):
        next(iter(DistillRun(config.replace(tracker="trackio"), show=lambda line: None)))


def test_tensorboard_is_told(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = DistillRun(config.replace(tracker="tensorboard"), show=lambda line: None)
    losses = [state.loss for state in run]
    [folder] = (run.folder / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    scalars = events.Scalars("loss")
    assert [event.step for event in scalars] == [2, 4, 6]
    assert scalars[0].value == pytest.approx(sum(losses[:2]) / 2, rel=1e-4)
    assert [event.step for event in events.Images("samples")] == [0, 6]


def test_a_grid_has_a_row_for_each(tmp_path):
    rows = [torch.zeros(3, 3, 32, 32), torch.ones(3, 3, 32, 32)]
    pixels = save_grid(rows, tmp_path / "a" / "grid.png")
    assert pixels.shape == (2 * 66, 3 * 66, 3)
    assert (pixels[30, 30] == 128).all()
    assert (pixels[96, 30] == 255).all()
    assert (tmp_path / "a" / "grid.png").stat().st_size > 100


# ---- the command


def test_the_command_distils_and_samples(settings, capsys, tmp_path, whole):
    assert main(["distill", "--quiet", *settings]) == 0
    assert final(tmp_path / "run") == final(whole[0])
    assert "done: 6 updates" in capsys.readouterr().out
    picture = tmp_path / "new" / "picture.png"
    words = ["sample", str(tmp_path / "run"), "a red two", "a blue one", "--steps", "1", "4"]
    assert main([*words, "--out", str(picture)]) == 0
    assert picture.exists()
    assert main([*words, "--guidance-scale", "3"]) == 2
    assert "its guidance is in its weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill", "lrr=1"], "'lrr' is no setting; did you mean lr"),
        (["distill", "teacher=/nowhere/at/all"], "/nowhere/at/all"),
        (["sample", "/nowhere", "a", "--steps", "0"], "--steps is 0; allowed: from 1 to 1000"),
    ],
)
def test_the_command_says_what_is_wrong(words, message, capsys, tmp_path):
    if words[0] == "distill":
        words = [*words, f"out={tmp_path / 'run'}", "tracker=none"]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_all_settings_are_explained(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--preset", "sd15-t4-lora", "--help-config"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "# rank r of the adapters" in out
    assert "train: lora  # default: full" in out


def test_the_cache_command_makes_one_to_train_with(settings, capsys, tmp_path):
    assert main(["cache", "--out", str(tmp_path / "made"), *settings]) == 0
    assert "16 latents" in capsys.readouterr().out.replace(",", "")
    more = ["data=cache", f"data_path={tmp_path / 'made'}"]
    assert main(["distill", "--quiet", *settings, *more, "updates=1"]) == 0


# ---- faults that need a process of their own


def test_twenty_kills_change_nothing(teacher, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.sd.kill_and_go_on", str(tmp_path), str(teacher)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == 20
    assert all(kill["equal"] for kill in kills)
    assert len({kill["checkpoint"] for kill in kills}) >= 3


def test_a_full_disk_leaves_the_older_checkpoints(settings, tmp_path, whole):
    """Files may not grow beyond a size, so that the first write of weights fails."""
    words, options = command("distill", "--quiet", *settings)
    limit = 3_000_000

    def no_large_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    config = load_config("digits", settings=settings)
    for state in DistillRun(config, show=lambda line: None):
        if state.update == 2:
            break
    [path] = checkpoint_paths(tmp_path / "run")
    before = path.read_bytes()
    assert len(before) > limit
    done = subprocess.run(
        words, **options, preexec_fn=no_large_files, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "MB could not be written to" in done.stderr
    assert "MB are free there" in done.stderr
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [path.name]
    assert path.read_bytes() == before
    assert main(["distill", "--quiet", *settings]) == 0
    assert final(tmp_path / "run") == final(whole[0])


def test_two_processes_are_one_with_twice_the_batch(settings, tmp_path, teacher, cache):
    alone = load_config("digits", settings=[*settings, "batch=4", f"out={tmp_path / 'alone'}"])
    losses = [state.loss for state in DistillRun(alone, show=lambda line: None)]
    launch(["distill", "--quiet", *settings, "device=cpu", "log_every=1"], processes=2)
    with (tmp_path / "run" / "log.csv").open() as file:
        found = [float(row["loss"]) for row in csv.DictReader(file)]
    assert found == pytest.approx(losses, rel=1e-3)
    a, b = load_run(tmp_path / "alone"), load_run(tmp_path / "run")
    start = dict(tiny_pipeline().unet.named_parameters())
    for kind in ("trained", "average"):
        ours, theirs = getattr(a.networks, kind), getattr(b.networks, kind)
        assert ours.keys() == theirs.keys() == start.keys()
        # Of all weights together: where a gradient is nearly 0, AdamW follows its rounding.
        moved = sum(float((ours[n] - start[n]).detach().square().sum()) for n in start) ** 0.5
        apart = sum(float((ours[n] - theirs[n]).detach().square().sum()) for n in start) ** 0.5
        assert moved > 0.1
        assert apart < 0.01 * moved

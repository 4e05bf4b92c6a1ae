"""The loop: draws, accumulation, precision, skipped updates, going on bit by bit, processes."""

import copy

import pytest
import torch

from slam_edu import NoiseSchedule, SubPathDistiller
from slam_edu.sd.checkpoint import (
    Progress,
    checkpoint_paths,
    load_checkpoint,
    load_newest,
    readable,
    save_checkpoint,
)
from slam_edu.sd.components import empty_condition, text_condition
from slam_edu.sd.config import load_config
from slam_edu.sd.engine import BINS, Engine, make_autocast, make_optimizer
from slam_edu.sd.networks import build_networks
from slam_edu.seeding import sample_generator
from tests.digits.conftest import tiny_pipeline

PIPELINE = tiny_pipeline()
PROMPTS = ["a red two", "a blue seven on a white background", "the number 3", "a green digit"]


class Memory:
    """Sixteen latents and prompts, by number."""

    def __init__(self, spoil=()):
        self.x = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        self.cond = text_condition(PIPELINE, PROMPTS * 4)
        self.empty = empty_condition(PIPELINE)
        self.spoil, self.asked = set(spoil), []

    def get(self, numbers):
        self.asked.append(list(numbers))
        rows = [n % 16 for n in numbers]
        x = self.x[rows].clone()
        for place, n in enumerate(numbers):
            if n in self.spoil:  # finite, so that the step takes it, and too large to train on
                x[place] = 1e30
        return x, self.cond[rows]


def engine(settings=(), batches=None, **changes):
    config = load_config("digits", settings=["updates=6", "batch=4", "lr=1e-3", *settings])
    config = config.replace(**changes)
    schedule = NoiseSchedule.from_scheduler(PIPELINE.scheduler)
    networks = build_networks(
        config, copy.deepcopy(PIPELINE.unet), make_autocast(config, torch.device("cpu"))
    )
    return Engine(config, schedule, networks, batches or Memory())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def equal_engines(a, b):
    return same(a.networks.trained, b.networks.trained) and same(
        a.networks.average, b.networks.average
    )


KINDS = {
    "level": [],
    "official": ["conditioning=gamma", "coupling=markov"],
    "lora": ["train=lora", "lora_rank=4"],
    "lora gamma": ["train=lora", "lora_rank=4", "conditioning=gamma", "gamma_input=smooth"],
    "lcd": ["method=lcd"],
    "huber": ["loss=huber", "optimizer=adamw", "weight_decay=0.01"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_goes_on_to_the_bit(kind, tmp_path):
    whole = engine(KINDS[kind])
    start = {k: v.detach().clone() for k, v in whole.networks.trained.items()}
    losses = [state.loss for state in whole.updates()]
    assert len(losses) == 6
    assert not same(start, whole.networks.trained)
    assert not same(whole.networks.average, whole.networks.trained)
    for stop in (1, 4):
        first = engine(KINDS[kind])
        for state in first.updates():
            if state.update == stop:
                break
        save_checkpoint(
            tmp_path, first.progress, first.networks.trained, first.networks.average,
            first.optimizer,
        )  # fmt: skip
        second = engine(KINDS[kind])
        found = load_newest(
            tmp_path, second.networks.trained, second.networks.average, second.optimizer
        )
        assert found.update == stop
        second.restore(found)
        assert [state.loss for state in second.updates()] == losses[stop:]
        assert equal_engines(whole, second)
        for a, b in zip(
            whole.networks.trained.values(), second.networks.trained.values(), strict=True
        ):
            ours, theirs = whole.optimizer.state[a], second.optimizer.state[b]
            assert same(ours, theirs)


def test_the_step_is_the_distillers():
    one = engine(batches=(batches := Memory()))
    state = next(one.updates())
    config = one.config
    fresh = engine()
    numbers = list(range(4))
    x0, cond = batches.get(numbers)
    distiller = SubPathDistiller(one.distiller.schedule, config.distill())
    rows = [distiller.draw(x0[i : i + 1], sample_generator(config.seed, n))
            for i, n in enumerate(numbers)]  # fmt: skip
    sample = type(rows[0])(
        **{k: torch.cat([getattr(r, k) for r in rows]) for k in ("index", "gamma", "noise")}
    )
    networks = fresh.networks
    output = distiller.step(
        x0, sample, teacher=networks.teacher, student=networks.student, target=networks.target,
        cond=cond, uncond=batches.empty.expand(4),
    )  # fmt: skip
    assert state.loss == output.loss.item()


def test_batches_that_are_accumulated_are_one_large_batch():
    large = engine(batch=8)
    parts = engine(batch=4, accumulate=2)
    assert large.batch == parts.batch == 8
    a = [(s.loss, s.grad_norm) for s in large.updates()]
    b = [(s.loss, s.grad_norm) for s in parts.updates()]
    assert a == [pytest.approx(pair, rel=1e-4) for pair in b]
    assert a[0] != a[1]
    for name, value in large.networks.trained.items():
        torch.testing.assert_close(parts.networks.trained[name], value, rtol=1e-3, atol=1e-4)


def test_every_sample_is_taken_once_and_in_order():
    batches = Memory()
    for _ in engine(batches=batches, batch=2, accumulate=3).updates():
        pass
    assert [n for asked in batches.asked for n in asked] == list(range(6 * 6))


def test_seeds_differ():
    losses = {seed: next(engine(seed=seed).updates()).loss for seed in (0, 1)}
    assert losses[0] != losses[1]
    assert losses[0] == next(engine(seed=0).updates()).loss


def test_errors_are_counted_by_timestep():
    states = list(engine(batch=8).updates())
    for state in states:
        assert state.bins.shape == state.counts.shape == (BINS,)
        assert state.counts.sum() == 8
        assert float(state.bins.sum()) / 8 == pytest.approx(state.loss, rel=1e-5)
        wanted = torch.bincount(state.output.t // 100, minlength=BINS)
        assert torch.equal(state.counts, wanted.double())


def test_without_guidance_the_empty_condition_is_not_asked_for():
    batches = Memory()
    batches.empty = None
    assert next(engine(["guidance=0"], batches).updates()).loss > 0


def test_an_update_that_is_not_finite_changes_nothing():
    spoilt = engine(batches=Memory(spoil=range(8, 12)))  # the third update's samples
    plain = engine()
    before = None
    for state in spoilt.updates():
        if state.update == 2:
            before = (
                copy.deepcopy(dict(spoilt.networks.average)),
                {k: v.detach().clone() for k, v in spoilt.networks.trained.items()},
            )
        if state.update == 3:
            assert state.skipped == 1
            assert state.loss in (float("inf"), float("-inf")) or state.loss != state.loss
            assert same(before[0], spoilt.networks.average)
            assert same(before[1], spoilt.networks.trained)
    assert spoilt.progress.skipped == 1
    assert spoilt.progress.in_a_row == 0
    assert all(torch.isfinite(v).all() for v in spoilt.networks.trained.values())
    list(plain.updates())
    assert plain.progress.skipped == 0


def test_too_many_in_a_row_end_the_run():
    spoilt = engine(batches=Memory(spoil=range(4, 100)), max_skipped=2)
    with pytest.raises(FloatingPointError, match=r"the last 3 updates up to number 4 had"):
        for _ in spoilt.updates():
            pass
    assert spoilt.progress.update == 4
    assert spoilt.progress.skipped == 3


def test_half_precision_is_for_the_networks_alone():
    whole, half = engine(), engine(mixed_precision="bf16")
    a, b = next(whole.updates()), next(half.updates())
    assert b.loss == pytest.approx(a.loss, rel=0.1)
    assert b.loss != a.loss
    for name in ("x_t", "x_s", "x_gamma", "prediction", "target"):
        assert getattr(b.output, name).dtype == torch.float32
    assert torch.equal(a.output.x_t, b.output.x_t)
    assert all(p.dtype == torch.float32 for p in half.networks.trained.values())


def test_the_gamma_embedding_has_its_own_rate():
    official = ["conditioning=gamma", "coupling=markov"]
    name = next(n for n in engine(official).networks.trained if "cond_proj" in n)
    still = engine([*official, "gamma_lr=0"])
    slow, fast = engine([*official, "gamma_lr=0.1"]), engine(official)
    for each in (still, slow, fast):
        next(each.updates())
    moved = [float(e.networks.trained[name].detach().abs().max()) for e in (still, slow, fast)]
    assert moved[0] == 0
    assert moved[1] == pytest.approx(0.1 * moved[2], rel=1e-3)


def test_eight_bit_adam_says_what_it_needs():
    with pytest.raises(ValueError, match=r"'adamw8bit' on cpu; allowed there: 'adamw'"):
        engine(optimizer="adamw8bit")


def test_adam_is_pytorchs():
    one = engine(weight_decay=0.1)
    [group] = make_optimizer(one.config, one.networks, torch.device("cpu")).param_groups
    assert (group["lr"], group["weight_decay"]) == (one.config.training.lr, 0.1)


# ---- checkpoints


def saved(folder, update=1, keep=2, seed=0):
    one = engine(seed=seed)
    for state in one.updates():
        if state.update == update:
            break
    n = one.networks
    return one, save_checkpoint(folder, one.progress, n.trained, n.average, one.optimizer, keep)


def load(folder, show=print):
    one = engine()
    return one, load_newest(
        folder, one.networks.trained, one.networks.average, one.optimizer, show
    )


def test_the_newest_few_stay(tmp_path):
    one = engine()
    for state in one.updates():
        n = one.networks
        save_checkpoint(tmp_path, one.progress, n.trained, n.average, one.optimizer, keep=2)
        assert checkpoint_paths(tmp_path)[0].stem == f"{state.update:08d}"
    assert [p.stem for p in checkpoint_paths(tmp_path)] == ["00000006", "00000005"]


def test_no_checkpoint_is_none(tmp_path):
    assert load(tmp_path)[1] is None


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other"])
def test_one_that_cannot_be_read_is_named_and_passed_over(tmp_path, damage):
    good, _ = saved(tmp_path, 1)
    _, path = saved(tmp_path, 2)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(2)}, path)
    assert not readable(path)
    said = []
    one, found = load(tmp_path, said.append)
    assert found.update == 1
    assert equal_engines(one, good)
    assert len(said) == 1
    assert "00000002.safetensors" in said[0]
    assert "going back to the one before" in said[0]


def test_when_none_can_be_read_it_is_an_error(tmp_path):
    _, path = saved(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"00000001\.safetensors.*no older checkpoint is left"):
        load(tmp_path)


def test_one_of_another_student_changes_nothing(tmp_path):
    _, path = saved(tmp_path)
    other = engine(KINDS["lora"])
    before = {k: v.detach().clone() for k, v in other.networks.trained.items()}
    with pytest.raises(ValueError, match="is of another student: they differ in"):
        load_checkpoint(path, other.networks.trained, other.networks.average)
    assert same(before, other.networks.trained)


def test_a_write_that_fails_leaves_the_older_ones(tmp_path, monkeypatch):
    good, _ = saved(tmp_path, 1)
    import safetensors.torch

    def full(tensors, path, metadata=None):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"MB could not be written to .* MB are free there"):
        saved(tmp_path, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000001.safetensors"]
    one, found = load(tmp_path)
    assert found.update == 1
    assert equal_engines(one, good)


def test_counts_are_kept(tmp_path):
    one = engine(batches=Memory(spoil=range(4, 8)))
    list(one.updates())
    n = one.networks
    path = save_checkpoint(tmp_path, one.progress, n.trained, n.average, one.optimizer)
    other = engine()
    found = load_checkpoint(path, other.networks.trained, other.networks.average)
    assert found == Progress(update=6, skipped=1, in_a_row=0, scaler={})

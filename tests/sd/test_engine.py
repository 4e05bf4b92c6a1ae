"""The loop: draws, accumulation, precision, skipped updates, going on bit by bit, checkpoints."""

import copy
import itertools

import pytest
import torch
from safetensors.torch import save as serialized

from slam_edu import NoiseSchedule, SubPathDistiller
from slam_edu.sd.checkpoint import checkpoint_paths, load_newest, save_checkpoint, updates_done
from slam_edu.sd.components import empty_condition, text_condition
from slam_edu.sd.config import load_config
from slam_edu.sd.engine import BINS, Engine, make_autocast
from slam_edu.sd.networks import build_networks
from slam_edu.seeding import sample_generator
from slam_edu.training import load_training
from tests.sd.tiny import tiny_sd_pipeline

PIPELINE = tiny_sd_pipeline()
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
            if n in self.spoil:  # finite, so that the step accepts it, and too large to train on
                x[place] = 1e30
        return x, self.cond[rows]


def engine(settings=(), batches=None, **changes):
    config = load_config("digits", settings=["updates=4", "batch=2", "lr=1e-3", *settings])
    config = config.replace(**changes)
    schedule = NoiseSchedule.from_scheduler(PIPELINE.scheduler)
    networks = build_networks(
        config, copy.deepcopy(PIPELINE.unet), make_autocast(config, torch.device("cpu"))
    )
    return Engine(config, schedule, networks, batches or Memory())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def equal_engines(a, b):
    a, b = a.networks, b.networks
    return same(a.trained, b.trained) and same(a.average, b.average)


KINDS = {
    "level": ["weight_decay=0.01"],
    "lora gamma": ["train=lora", "lora_rank=4", "conditioning=gamma", "gamma_input=smooth"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_goes_on_to_the_bit(kind, tmp_path):
    whole = engine(KINDS[kind])
    start = {k: v.detach().clone() for k, v in whole.networks.trained.items()}
    losses = [state.loss for state in whole.updates()]
    assert len(losses) == 4
    assert not same(start, whole.networks.trained)
    assert not same(whole.networks.average, whole.networks.trained)
    first = engine(KINDS[kind])
    state = next(itertools.islice(first.updates(), 1, None))
    save_checkpoint(tmp_path, state, first.networks)
    second = engine(KINDS[kind])
    found = load_newest(tmp_path, second.networks)
    assert found.update == updates_done(tmp_path) == 2
    assert [state.loss for state in second.updates(resume=found)] == losses[2:]
    assert equal_engines(whole, second)
    for name, p in whole.networks.trained.items():
        ours, theirs = whole.optimizer.state[p], second.optimizer.state
        assert same(ours, theirs[second.networks.trained[name]])


def test_the_step_is_the_distillers():
    one = engine(batches=(batches := Memory()))
    state = next(one.updates())
    networks, x0, cond = engine().networks, *batches.get([0, 1])
    distiller = SubPathDistiller(one.distiller.schedule, one.config.distill())
    sample = distiller.draw(x0, [sample_generator(one.config.seed, n) for n in range(2)])
    output = distiller.step(
        x0, sample, teacher=networks.teacher, student=networks.student, target=networks.target,
        cond=cond, uncond=batches.empty.expand(2),
    )  # fmt: skip
    assert state.loss == output.loss.item()


def test_batches_that_are_accumulated_are_one_large_batch():
    large = engine(batch=4, updates=2)
    parts = engine(batches=(batches := Memory()), accumulate=2, updates=2)
    assert large.batch == parts.batch == 4
    a, b = ([(s.loss, s.grad_norm) for s in one.updates()] for one in (large, parts))
    assert a == [pytest.approx(pair, rel=1e-4) for pair in b]
    assert [n for asked in batches.asked for n in asked] == list(range(2 * 4))


def test_seeds_differ_and_errors_are_counted_by_timestep():
    one = next(engine(batch=8).updates())
    assert next(engine(batch=8, seed=1).updates()).loss != one.loss
    assert one.bins.shape == one.counts.shape == (BINS,)
    assert float(one.bins.sum()) / 8 == pytest.approx(one.loss, rel=1e-5)
    assert torch.equal(one.counts, torch.bincount(one.output.t // 100, minlength=BINS).double())


def test_an_update_that_is_not_finite_changes_nothing():
    spoilt = engine(batches=Memory(spoil=range(4, 6)))  # the third update's samples
    for state in spoilt.updates():
        if state.update == 2:
            before = copy.deepcopy([dict(spoilt.networks.average), dict(spoilt.networks.trained)])
        if state.update == 3:
            assert (state.skipped, state.in_a_row) == (1, 1)
            assert not torch.isfinite(torch.tensor(state.loss))
            assert same(before[0], spoilt.networks.average)
            assert same(before[1], spoilt.networks.trained)
    assert (state.skipped, state.in_a_row) == (1, 0)
    assert not same(before[1], spoilt.networks.trained)
    with pytest.raises(FloatingPointError, match=r"the last 1 updates up to number 1 had"):
        next(engine(batches=Memory(spoil=range(2)), max_skipped=0).updates())
    broken = engine(max_skipped=0)
    broken.networks.teacher = lambda x, *_words: x * float("nan")
    with pytest.raises(FloatingPointError, match="teacher's output is not finite either"):
        next(broken.updates())


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
    slow, fast = engine([*official, "gamma_lr=0.1"]), engine(official)
    for each in (slow, fast):
        next(each.updates())
    moved = [float(e.networks.trained[name].detach().abs().max()) for e in (slow, fast)]
    assert moved[0] == pytest.approx(0.1 * moved[1], rel=1e-3)
    with pytest.raises(ValueError, match=r"'adamw8bit' on cpu; allowed there: 'adamw'"):
        engine(optimizer="adamw8bit")


# -------------------------------------------------------------------- checkpoints


def test_the_newest_readable_one_is_taken(tmp_path):
    one, said, before = engine(), [], []
    assert load_newest(tmp_path, one.networks) is None
    for state in itertools.islice(one.updates(), 3):
        save_checkpoint(tmp_path, state, one.networks, keep=2)
        before.append(copy.deepcopy(dict(one.networks.trained)))
    newest, first = checkpoint_paths(tmp_path)
    assert (newest.stem, first.stem) == ("00000003", "00000002")
    content = newest.read_bytes()
    for damaged in (b"", content[:-1000], serialized({"a": torch.zeros(2)})):
        newest.write_bytes(damaged)
        found = load_newest(tmp_path, one.networks, said.append)
        assert found.update == updates_done(tmp_path) == 2
        assert same(one.networks.trained, before[1])
        assert "00000003.safetensors" in said[-1]
        assert "going back to the one before" in said[-1]
    assert len(said) == 3
    other = engine(KINDS["lora gamma"]).networks
    trained = {k: v.detach().clone() for k, v in other.trained.items()}
    with pytest.raises(ValueError, match="is of another network: they differ in"):
        load_training(first, other.trained, other.average)
    assert same(trained, other.trained)
    first.write_bytes(b"")
    with pytest.raises(ValueError, match=r"00000002\.safetensors.*no older checkpoint is left"):
        load_newest(tmp_path, one.networks, said.append)

"""Operations, bytes, days and money: against counts by hand, networks that run, and identities."""

import math

import pytest
import torch

from slam_edu.sd.config import SDConfig
from slam_course.cost import (
    AUTOENCODER,
    BACKWARD,
    FORWARD,
    TARGET,
    TEACHER,
    TEXT,
    reduced_bytes,
    run_cost,
    sample_parts,
    samples_bought,
    text_flops,
)
from slam_edu.sd.memory import LiveBytes
from slam_edu.sd.plan import make_plan
from slam_edu.sd.published import STABLE_DIFFUSION_15, STABLE_DIFFUSION_XL, architecture_of
from slam_edu.sd.tiny import tiny_pipeline

# -------------------------------------------------------------------- operations


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return SDConfig(teacher=str(folder))


def sample_flops(config):
    return sample_parts(make_plan(config, device="cpu"))


def test_parts_add_up_to_the_plans_count(teacher):
    for config in (teacher, teacher.replace(guidance=0.0), teacher.replace(teacher_steps=2)):
        parts = sample_flops(config)
        encoded = parts[AUTOENCODER] + parts[TEXT]
        assert sum(parts.values()) - encoded == make_plan(config, device="cpu").sample_flops


def test_calls_of_the_teacher(teacher):
    guided, plain = sample_flops(teacher), sample_flops(teacher.replace(guidance=0.0))
    assert guided[TEACHER] == 2 * plain[TEACHER]
    assert sample_flops(teacher.replace(teacher_steps=3))[TEACHER] == 6 * plain[TEACHER]
    assert {k: v for k, v in guided.items() if k != TEACHER} == {
        k: v for k, v in plain.items() if k != TEACHER
    }
    assert list(guided) == [AUTOENCODER, TEXT, TEACHER, TARGET, FORWARD, BACKWARD]


def test_a_full_student_costs_as_much_as_its_teacher_and_twice_as_much_backward(teacher):
    found = sample_flops(teacher.replace(guidance=0.0))
    assert found[TARGET] == found[FORWARD] == found[TEACHER]
    # Two products for each of the forward pass; fused attention computes its weights once more.
    assert found[BACKWARD] == pytest.approx(2 * found[FORWARD], rel=0.05)


def test_checkpointing_computes_most_of_the_forward_pass_again(teacher):
    plain = sample_flops(teacher)
    again = sample_flops(teacher.replace(gradient_checkpointing=True))
    more = again[BACKWARD] - plain[BACKWARD]
    assert 0.5 * plain[FORWARD] < more <= plain[FORWARD]


def test_counts_are_those_of_networks_that_run(teacher):
    pipeline = tiny_pipeline()
    ids = torch.zeros(1, pipeline.tokenizer.model_max_length, dtype=torch.int64)
    live = LiveBytes()
    with torch.no_grad(), live:
        pipeline.text_encoder(input_ids=ids)
    assert text_flops(architecture_of(teacher)) == live.flops
    live = LiveBytes()
    with torch.no_grad(), live:
        pipeline.vae.encode(torch.zeros(1, 3, 32, 32))
    assert sample_flops(teacher)[AUTOENCODER] == live.flops


def test_a_text_encoder_is_about_two_operations_a_weight_and_token():
    """Its embeddings are looked up, not multiplied; attention comes on top."""
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert text_flops(STABLE_DIFFUSION_15) == pytest.approx(2 * 77 * weights, rel=0.03)
    assert text_flops(STABLE_DIFFUSION_XL) > 8 * text_flops(STABLE_DIFFUSION_15)


# -------------------------------------------------------------------- gradients


def test_gradients_around_a_ring():
    assert reduced_bytes(1000, 1) == 0
    assert reduced_bytes(1000, 2) == 4000
    assert reduced_bytes(1000, 8) == 7000
    assert reduced_bytes(1000, 2, size=2) == 2000
    assert reduced_bytes(1000, 10_000) == pytest.approx(8000, rel=1e-3)


# -------------------------------------------------------------------- days and money


def test_a_run_by_hand():
    """One card, one sample an update, a second a sample, a day of updates."""
    found = run_cost(1e14, gpus=1, batch=1, updates=86_400, speed=1e14, price=2.5)
    assert (found.samples, found.days, found.gpu_days, found.money) == (86_400, 1, 1, 60)


def test_more_cards_make_the_batch_larger_not_the_run_shorter():
    one, eight = (
        run_cost(5e12, gpus=n, batch=16, updates=1000, speed=1e14, price=2.0) for n in (1, 8)
    )
    assert eight.days == one.days
    assert eight.samples == 8 * one.samples
    assert eight.money == pytest.approx(8 * one.money)
    shared = run_cost(5e12, gpus=8, batch=2, updates=1000, speed=1e14, price=2.0)
    assert shared.samples == one.samples
    assert shared.days == pytest.approx(one.days / 8)
    assert shared.money == pytest.approx(one.money)


def test_what_is_bought_costs_what_was_paid():
    n = samples_bought(5.6e12, 6, 1e14)
    found = run_cost(5.6e12, gpus=1, batch=1, updates=math.floor(n), speed=1e14)
    assert found.gpu_days == pytest.approx(6, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 0}, "gpus is 0; allowed"),
        ({"batch": 1.5}, "batch is 1.5; allowed"),
        ({"updates": 0}, "updates is 0"),
        ({"speed": 0.0}, r"speed is 0\.0; allowed: a finite number > 0"),
        ({"speed": math.inf}, "speed is inf"),
        ({"flops": math.nan}, "flops is nan"),
        ({"price": -1.0}, r"price is -1\.0; allowed: a finite number >= 0"),
    ],
)
def test_wrong_numbers(changes, message):
    right = {"flops": 1e12, "gpus": 1, "batch": 1, "updates": 1, "speed": 1e14, "price": 0.0}
    with pytest.raises(ValueError, match=message):
        run_cost(**{**right, **changes})
    with pytest.raises(ValueError, match="processes is 0"):
        reduced_bytes(10, 0)

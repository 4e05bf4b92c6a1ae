"""Counting what goes through a pipeline's networks."""

import pytest
import torch

from slam_edu.distill import SubPathDistiller
from slam_edu.schedule import NoiseSchedule
from slam_course.lesson_07.budget import count_samples
from slam_edu.sd.components import (
    decode_latents,
    empty_condition,
    encode_images,
    text_condition,
)
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import build_networks
from tests.sd.tiny import tiny_sd_pipeline, tiny_xl_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return tiny_sd_pipeline()


def test_each_part_is_counted_by_its_samples(pipeline):
    images = torch.zeros(5, 3, 32, 32)
    with torch.no_grad(), count_samples() as counts:
        latents = encode_images(pipeline.vae, images, batch=2)
        decode_latents(pipeline.vae, latents[:3])
        cond = text_condition(pipeline, ["a one"] * 4)
        pipeline.unet(latents[:4], 3, encoder_hidden_states=cond.states)
    assert counts == {"unet": 4, "vae encoder": 5, "vae decoder": 3, "text encoder": 4}


@pytest.mark.parametrize(
    ("guidance", "train", "calls"), [(3.0, "full", 4), (0.0, "full", 3), (3.0, "lora", 4)]
)
def test_a_step_calls_the_teacher_twice_with_guidance(guidance, train, calls):
    pipeline = tiny_sd_pipeline()
    config = SDConfig(guidance=guidance, train=train, lora_rank=2)
    networks = build_networks(config, pipeline.unet)
    distiller = SubPathDistiller(
        NoiseSchedule.from_scheduler(pipeline.scheduler), config.distill()
    )
    x0, cond = torch.zeros(6, 4, 8, 8), text_condition(pipeline, ["a one"] * 6)
    empty = empty_condition(pipeline).expand(6) if guidance else None
    sample = distiller.draw(x0, torch.Generator().manual_seed(0))
    with count_samples() as counts:
        distiller.step(
            x0, sample, teacher=networks.teacher, student=networks.student,
            target=networks.target, cond=cond, uncond=empty,
        ).loss.backward()  # fmt: skip
    assert counts["unet"] == 6 * calls


def test_two_text_encoders_count_as_one_part_twice():
    pipeline = tiny_xl_pipeline()
    with count_samples() as counts:
        text_condition(pipeline, ["a one", "a two"])
    assert counts["text encoder"] == 4


def test_nothing_is_counted_after_the_block(pipeline):
    with count_samples() as counts:
        pass
    text_condition(pipeline, ["a one"])
    assert set(counts.values()) == {0}


def test_a_network_that_raised_does_not_hide_the_next(pipeline):
    with count_samples() as counts:
        with pytest.raises(RuntimeError):
            pipeline.unet(torch.zeros(1, 3, 8, 8), 3, encoder_hidden_states=torch.zeros(1, 2, 32))
        text_condition(pipeline, ["a one"])
    assert counts == {"unet": 0, "vae encoder": 0, "vae decoder": 0, "text encoder": 1}


def test_the_hook_goes_with_an_error(pipeline):
    with pytest.raises(KeyError), count_samples() as counts:
        raise KeyError
    text_condition(pipeline, ["a one"])
    assert set(counts.values()) == {0}

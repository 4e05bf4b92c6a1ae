"""Which preset a machine gets, and what a run will take."""

import pytest

from slam_course.lesson_07.budget import Budget, budget, choose_preset, data_samples
from slam_edu.sd.config import PRESETS, load_config
from slam_course.cost import sample_parts
from slam_edu.sd.data import default_prompts, read_prompts
from slam_edu.sd.plan import GIB, make_plan


@pytest.mark.parametrize(
    ("memory", "preset"),
    [
        (None, "digits"),
        (0.0, "digits"),
        (7.9, "digits"),
        (13.99, "digits"),
        (14.0, "sd15-t4-lora"),
        (14.6, "sd15-t4-lora"),  # a T4, as CUDA reports it
        (80, "sd15-t4-lora"),
    ],
)
def test_the_card_decides(memory, preset):
    assert choose_preset(memory) == preset
    assert preset in PRESETS


@pytest.mark.parametrize("memory", [-1.0, float("nan"), float("inf")])
def test_wrong_memory(memory):
    with pytest.raises(ValueError, match=r"device_memory is .*; allowed: a finite number of GiB"):
        choose_preset(memory)


# -------------------------------------------------------------------- what it will take


DIGITS = load_config("digits", settings=["max_samples=320", "updates=10", "batch=16"])


def test_a_budget_is_what_the_plan_counts():
    plan, found = make_plan(DIGITS, device="cpu"), budget(DIGITS, device="cpu", tflops=0.04)
    disk = plan.disk()
    assert found.memory == plan.total() / GIB
    assert found.disk * GIB == pytest.approx(
        disk["teacher"] + disk["checkpoints"] + 320 * disk["cache of a sample"]
    )
    flops = sample_parts(plan)
    assert found.minutes * 60 == pytest.approx(
        plan.seconds(0.04) + 320 * (flops["autoencoder"] + flops["text encoders"]) / 0.04e12
    )
    assert found.device == "cpu"


def test_half_the_speed_takes_twice_as_long():
    fast, slow = (budget(DIGITS, device="cpu", tflops=v).minutes for v in (0.04, 0.02))
    assert slow == pytest.approx(2 * fast)


def test_drawn_data_cost_the_teachers_calls():
    config = DIGITS.replace(data="prompts", draw_steps=5)
    plan = make_plan(config, device="cpu")
    found = budget(config, device="cpu", tflops=0.04)
    drawn = 320 * plan.drawing_seconds(0.04)
    assert found.minutes * 60 == pytest.approx(plan.seconds(0.04) + drawn)


def test_without_a_cache_nothing_is_kept_of_the_data():
    config = DIGITS.replace(cache=False)
    disk = make_plan(config, device="cpu").disk()
    found = budget(config, device="cpu", tflops=0.04)
    assert found.disk * GIB == pytest.approx(disk["teacher"] + disk["checkpoints"])


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ((), 16_000),
        (("max_samples=99",), 99),
        (("max_samples=99999",), 16_000),
        (("data=prompts", "draw_count=3"), 3 * len(default_prompts("digits"))),
        (("data=prompts", "max_samples=7"), 7),
        (("data=folder", "data_path=x", "max_samples=12"), 12),
    ],
)
def test_samples_of_a_run(settings, count):
    assert count_samples(load_config("digits", settings=settings)) == count


def test_prompts_of_a_file_are_counted(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# three\na one\na two\na one\n", "utf-8")
    config = load_config("digits", settings=["data=prompts", f"data_path={path}"])
    assert data_samples(config) == len(read_prompts(path)) == 3


def test_a_number_that_is_not_known():
    config = load_config("digits", settings=["data=folder", "data_path=x"])
    with pytest.raises(ValueError, match="data is 'folder' without max_samples"):
        data_samples(config)


@pytest.mark.parametrize("tflops", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_speed(tflops):
    with pytest.raises(ValueError, match=r"tflops is .*; allowed: a finite number > 0"):
        budget(DIGITS, device="cpu", tflops=tflops)


def test_in_words():
    found = Budget(memory=7.12, disk=5.04, minutes=86.6, device="cuda")
    assert str(found) == "7.1 GiB of the GPU's memory, 5.0 GiB of disk, about 87 min"
    quick = Budget(memory=0.8, disk=0.2, minutes=0.2, device="cpu")
    assert str(quick) == "0.8 GiB of memory, 0.2 GiB of disk, about 1 min"

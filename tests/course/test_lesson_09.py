"""Lesson 09: its checks, what runs cost, its figures and its explorer."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

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
from slam_course.lesson_09 import explorer, figures
from slam_course.lesson_09.checks import KNOWN, cost, kept_bytes, sample_numbers
from slam_edu.sd.config import load_config
from slam_edu.sd.plan import make_plan
from slam_edu.sd.published import STABLE_DIFFUSION_15
from slam_edu.sd.tiny import tiny_pipeline
from tests.course import trying

# -------------------------------------------------------------------- checks


def numbers(update, rank, processes, batch, accumulate):
    """By counting, as the run does."""
    n, found = 0, []
    for u in range(update + 1):
        for _ in range(accumulate):
            for process in range(processes):
                for _ in range(batch):
                    if u == update and process == rank:
                        found.append(n)
                    n += 1
    return found


def by_cutting(update, rank, processes, batch, accumulate):
    size = accumulate * processes * batch
    whole = torch.arange(update * size, (update + 1) * size)
    return whole.reshape(accumulate, processes, batch)[:, rank].flatten()


OF = "(lambda of: {})(lambda place: [place(p, k) for p in range(a) for k in range(b)])"
NUMBERS = trying.formulas("u, r, w, b, a", globals(), {
    **{OF.format(text): words for text, words in KNOWN["numbers"]},
    "numbers(u, r, w, b, a)[::-1]": "their order is not",
    "numbers(u, r, w, b, a)[1:]": "has 7 numbers",
    "[numbers(u, r, w, b, a)[:4], numbers(u, r, w, b, a)[4:]]": "holds lists",
    "[n / 1 for n in numbers(u, r, w, b, a)]": "whole number",
    "[3 * n for n in numbers(u, r, w, b, a)]": "For update 3",
    "numbers(u, r, w, b, min(a, 2))": "Right in one case",
    "numbers(u, r, w, b, a).sort()": "is a `return` missing",
    "7": "return a list",
    "...": "no answer yet",
})  # fmt: skip


def kept(n, m, dtype, optimizer, text="n * s + m * (12 + o)"):
    """Bytes by a formula."""
    names = {
        "n": n,
        "m": m,
        "dtype": dtype,
        "torch": torch,
        "s": dtype.itemsize,
        "o": 8 if optimizer == "adamw" else 2,
    }
    return eval(text, names)


def by_tensors(frozen, trained, frozen_dtype, optimizer):
    moments = torch.uint8 if optimizer == "adamw8bit" else torch.float32
    kinds = (torch.float32, torch.float32, torch.float32, moments, moments)
    total = torch.empty(frozen, dtype=frozen_dtype, device="meta").nbytes
    return total + sum(torch.empty(trained, dtype=d, device="meta").nbytes for d in kinds)


KEPT = [
    *KNOWN["kept"][:-4],
    ("(n * s + m * (12 + o)) / 2**30", "right in GiB"),
    ("8 * (n * s + m * (12 + o))", "right in bits"),
    ("(n * (2 if s == 2 and dtype == torch.float16 else 4)) + m * (12 + o)", "bfloat16"),
    ("n * s + m * (12 + o) + 1000", "Wrong for frozen weights in"),
    ("n * s * (n != m) + m * (12 + o)", "the teacher stays"),
    ("(n * s + m * (12 + o)) % 2**32", "more than 32 bits"),
    ("'18 GB'", "is a str"),
    ("float('inf')", "is inf"),
    ("...", "no answer yet"),
    *KNOWN["kept"][-4:],
]


def run(f, g, b, n, v, p, days="d", money="m"):
    """Days and money, or what formulas make of them."""
    d = f * b * n / v / 86_400
    names = {"f": f, "g": g, "b": b, "n": n, "p": p, "d": d, "m": d * 24 * g * p}
    return eval(days, names), eval(money, names)


def by_gpu_hours(flops, gpus, batch, updates, speed, price):
    gpu_hours = torch.tensor(gpus * batch * updates * flops / speed / 3600, dtype=torch.float64)
    return [gpu_hours / gpus / 24, gpu_hours * price]


DAYS = [*KNOWN["days"], ("3 * d", "The days are wrong")]
MONEY = [*KNOWN["money"], ("0.9 * m", "the money is not")]
COSTS = trying.formulas("f, g, b, n, v, p", globals(), {
    **{f"run(f, g, b, n, v, p, days='{text}')": words for text, words in DAYS},
    **{f"run(f, g, b, n, v, p, money='{text}')": words for text, words in MONEY},
    "run(f, g, b, n, v, p)[::-1]": "in each other's place",
    "run(f, g, b, n, 9e13, p)": "use the arguments",
    "run(f, g, b, n, v, p)[0]": "Return two numbers",
    "(1.0, ...)": "no answer yet",
})  # fmt: skip
GROUPS = [
    (sample_numbers, [numbers, by_cutting, lambda *case: np.array(numbers(*case))], NUMBERS),
    (kept_bytes, [kept, by_tensors],
     [(lambda *c, t=text: kept(*c, text=t), words) for text, words in KEPT]),
    (cost, [run, by_gpu_hours, lambda *case: torch.tensor(run(*case))],
     [*COSTS, ((1.0, 2.0), "give it your function")]),
]  # fmt: skip


test_accepts, test_rejects = trying.tests(GROUPS)


# -------------------------------------------------------------------- what runs cost


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    tiny_pipeline().save_pretrained(folder)

    def made(*settings):
        config = load_config("digits", settings=[f"teacher={folder}", *settings])
        return make_plan(config, device="cpu")

    return made


def test_the_exercises_bytes_are_those_of_a_plan(plan):
    found = plan()
    parameters = found.trace.parameters
    whole = sum(found.trace.weights.values()) + found.gradient_bytes + found.optimizer_bytes
    assert whole == kept(parameters["teacher"], parameters["trained"], torch.float32, "adamw")


def test_parts_of_a_sample(plan):
    guided, plain = (sample_parts(plan(f"guidance={w}")) for w in (3.0, 0.0))
    assert guided[TEACHER] == 2 * plain[TEACHER]
    assert plain[TARGET] == plain[FORWARD] == plain[TEACHER]
    # Two products for each of the forward pass; fused attention computes its weights once more.
    assert plain[BACKWARD] == pytest.approx(2 * plain[FORWARD], rel=0.05)
    step = sum(guided.values()) - guided[AUTOENCODER] - guided[TEXT]
    assert step == plan("guidance=3.0").sample_flops


def test_a_text_encoder_is_about_two_operations_a_weight_and_token():
    """Its embeddings are looked up, not multiplied; attention comes on top."""
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert text_flops(STABLE_DIFFUSION_15) == pytest.approx(2 * 77 * weights, rel=0.03)


def test_gradients_around_a_ring():
    assert [reduced_bytes(1000, n) for n in (1, 2, 8)] == [0, 4000, 7000]


def test_a_run_by_hand():
    """One card, one sample an update, a second a sample, a day of updates."""
    found = run_cost(1e14, gpus=1, batch=1, updates=86_400, speed=1e14, price=2.5)
    assert (found.samples, found.days, found.gpu_days, found.money) == (86_400, 1, 1, 60)
    eight = run_cost(1e14, gpus=8, batch=1, updates=86_400, speed=1e14, price=2.5)
    assert (eight.days, eight.gpu_days, eight.money) == (1, 8, 480)
    n = samples_bought(5.6e12, 6, 1e14)
    six = run_cost(5.6e12, gpus=1, batch=1, updates=math.floor(n), speed=1e14)
    assert six.gpu_days == pytest.approx(6, rel=1e-6)
    with pytest.raises(ValueError, match=r"speed is 0\.0; allowed: a finite number > 0"):
        run_cost(1e12, gpus=1, batch=1, updates=1, speed=0.0)


# -------------------------------------------------------------------- figures and explorer

GIB = 2**30


def test_bars_stand_on_each_other_and_end_at_the_sum():
    names = [names[0] for _, names in figures.GROUPS.values()]
    parts = dict.fromkeys(names, 2 * GIB)
    made = SimpleNamespace(update=lambda: SimpleNamespace(parts=parts), total=lambda: 20 * GIB)
    fig = figures.memory_bars({"one": made}, {"T4": 14.7}, alt="A bar of memory.")
    bars = [bar for bar in fig.axes[0].patches if bar.get_width()]
    assert [bar.get_x() for bar in bars] == pytest.approx([2 * i for i in range(len(names))])
    assert [text.get_text() for text in fig.axes[0].texts] == ["20", "T4"]
    trying.described(fig)


def test_other_figures_are_described():
    shares = dict(zip(figures.PARTS, (1e12, 0.1e12, 2e12, 1e12, 1e12, 2e12), strict=True))
    bar = figures.operation_shares({"SD": shares}, alt="A bar of shares.")
    assert sum(patch.get_width() for patch in bar.axes[0].patches) == pytest.approx(100)
    owners = {"one": [0] * 8, "two": [0, 0, 1, 1] * 2}
    rows = figures.who_draws(owners, 4, alt="Two rows of eight numbers.")
    assert [text.get_text() for text in rows.axes[0].texts] == [*"00000000", *"00110011"]
    trying.described(bar)
    trying.described(rows)


def test_the_dot_is_on_the_line_of_its_speed_or_at_the_edge():
    values = {"gpus": 8, "batch": 16, "updates": 10_000, "speed": 1e14, "price": 2.0}
    fig = figures.run_chart(run_cost(5.4e12, **values), 5.4e12, 1e14, 128, title="A run")
    line, *_ = fig.axes[0].lines
    dot = next(each for each in fig.axes[0].lines if each.get_marker() == "o")
    (x,), (y,) = dot.get_data()
    assert x == 8 * 16 * 10_000
    assert y / x == pytest.approx(line.get_ydata()[0] / line.get_xdata()[0])
    trying.described(fig)
    values |= {"gpus": 1, "batch": 1, "updates": 1}
    small = figures.run_chart(run_cost(5.4e12, **values), 5.4e12, 1e14, 1, title="A run")
    dot = next(each for each in small.axes[0].lines if each.get_marker() == "o")
    assert [float(v[0]) for v in dot.get_data()] == [1e4, 1e-2]


def test_short_numbers():
    shown = [figures._short(value) for value in (0, 0.00123, 999.9, 9.5e6)]
    assert shown == ["0", "0.001", "1 k", "9.5 M"]


def test_the_calculator():
    box = explorer.calculator({"SD 1.5": 5.35e12, "SDXL": 44e12})
    start = [control.value for control in box.children[:-2]]
    assert start == ["SD 1.5", 8, 100, 16, 10_000, 2.0]
    assert "SD 1.5, 8 GPUs at 100 TFLOP/s: samples an update 128" in box.children[-1].value
    trying.walk(box)

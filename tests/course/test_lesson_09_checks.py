"""The checks of lesson 09: each usual mistake is told apart, differently written answers pass."""

import pytest
import torch

from slam_course.lesson_09 import checks as checks

# -------------------------------------------------------------------- exercise 1


def numbers(update, rank, processes, batch, accumulate):
    found = []
    for part in range(accumulate):
        first = ((update * accumulate + part) * processes + rank) * batch
        found += range(first, first + batch)
    return found


def numbers_by_cutting(update, rank, processes, batch, accumulate):
    """All numbers of the update as a tensor of rounds, processes, places."""
    size = accumulate * processes * batch
    whole = torch.arange(update * size, (update + 1) * size)
    return whole.reshape(accumulate, processes, batch)[:, rank].flatten()


def numbers_by_counting(update, rank, processes, batch, accumulate):
    """Deal the numbers out from the first one on, as the run does."""
    n, found = 0, ()
    for u in range(update + 1):
        for _ in range(accumulate):
            for process in range(processes):
                for _ in range(batch):
                    if u == update and process == rank:
                        found += (n,)
                    n += 1
    return found


def numbers_by_filter(update, rank, processes, batch, accumulate):
    size = accumulate * processes * batch
    return (n for n in range(update * size, (update + 1) * size) if n // batch % processes == rank)


@pytest.mark.parametrize(
    "answer", [numbers, numbers_by_cutting, numbers_by_counting, numbers_by_filter]
)
def test_right_numbers(answer):
    verdict = checks.sample_numbers(answer)
    assert verdict.passed, verdict.message


def places(first):
    """A wrong answer from where each round's batch begins."""

    def answer(u, r, w, b, a):
        return [first(u, r, w, b, a, part) + k for part in range(a) for k in range(b)]

    return answer


def interleaved(u, r, w, b, a):
    return [((u * a + p) * b + k) * w + r for p in range(a) for k in range(b)]


def rounds_reversed(u, r, w, b, a):
    return [n for p in reversed(range(a)) for n in numbers(u * a + p, r, w, b, 1)]


def only_right_without_accumulation(u, r, w, b, a):
    found = numbers(u, r, w, b, a)
    return found if a < 3 else found[:b]


WRONG_NUMBERS = {
    "first round": (lambda u, r, w, b, a: numbers(u, r, w, b, a)[:b], "the first round alone"),
    "whole update": (
        lambda u, r, w, b, a: list(range(u * a * w * b, (u + 1) * a * w * b)), "whole update",
    ),
    "in one piece": (
        places(lambda u, r, w, b, a, p: u * a * w * b + (r * a + p) * b), "in one piece",
    ),
    "one by one": (interleaved, "deal the numbers out one by one"),
    "always update 0": (lambda u, *more: numbers(0, *more), "update 0, whatever"),
    "always rank 0": (lambda u, r, *more: numbers(u, 0, *more), "process 0, whatever"),
    "updates without rounds": (
        places(lambda u, r, w, b, a, p: u * w * b + (p * w + r) * b), "forget the rounds",
    ),
    "rounds as updates": (
        places(lambda u, r, w, b, a, p: (u + p) * w * b + r * b), "forget the rounds",
    ),
    "no other processes": (
        places(lambda u, r, w, b, a, p: (u * a + p) * b + r * b), "forget the other processes",
    ),
    "alone": (places(lambda u, r, w, b, a, p: (u * a + p) * b), "one process alone"),
    "batches overlap": (
        places(lambda u, r, w, b, a, p: (u * a + p) * w + r), "batches overlap",
    ),
    "from 1": (lambda *case: [n + 1 for n in numbers(*case)], "one too large"),
    "updates from 1": (lambda u, *more: numbers(u - 1, *more), "updates count from 0"),
    "ranks from 1": (lambda u, r, *more: numbers(u, r - 1, *more), "the process before"),
    "next rank": (lambda u, r, *more: numbers(u, r + 1, *more), "the process after"),
    "order": (rounds_reversed, "their order is not"),
    "too few": (lambda *case: numbers(*case)[1:], "has 7 numbers"),
    "nested": (lambda *case: [numbers(*case)[:4], numbers(*case)[4:]], "holds lists"),
    "nested tensors": (
        lambda *case: list(torch.tensor(numbers(*case)).reshape(2, 4)), "holds lists",
    ),
    "fractions": (lambda *case: [n / 2 for n in numbers(*case)], "integers"),
    "other numbers": (lambda *case: [3 * n for n in numbers(*case)], "For update 3"),
    "one case": (only_right_without_accumulation, "Right in one case"),
    "one number": (lambda *case: 7, "return a list"),
    "text": (lambda *case: "0, 1", "return a list"),
    "stub": (lambda *case: ..., "no answer yet"),
    "no function": ([1, 2], "give it your function"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "sentence"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_wrong_numbers(answer, sentence):
    verdict = checks.sample_numbers(answer)
    assert not verdict.passed
    assert sentence in verdict.message


# -------------------------------------------------------------------- exercise 2


def kept(frozen, trained, frozen_dtype, optimizer):
    state = {"adamw": 8, "adamw8bit": 2}[optimizer]
    return frozen * frozen_dtype.itemsize + trained * (4 + 4 + 4 + state)


def kept_by_tensors(frozen, trained, frozen_dtype, optimizer):
    total = torch.empty(frozen, dtype=frozen_dtype, device="meta").nbytes
    moments = torch.uint8 if optimizer == "adamw8bit" else torch.float32
    for dtype in (torch.float32, torch.float32, torch.float32, moments, moments):
        total += torch.empty(trained, dtype=dtype, device="meta").nbytes
    return total


def kept_as_tensor(frozen, trained, frozen_dtype, optimizer):
    each = torch.tensor([4, 4, 4, 4, 4] if optimizer == "adamw" else [4, 4, 4, 1, 1])
    base = frozen * torch.finfo(frozen_dtype).bits // 8
    return base + (trained * each).sum()


@pytest.mark.parametrize("answer", [kept, kept_by_tensors, kept_as_tensor])
def test_right_bytes(answer):
    verdict = checks.kept_bytes(answer)
    assert verdict.passed, verdict.message


def keeps(formula):
    """A wrong answer from the counts, the frozen weights' bytes and the optimiser's."""

    def answer(n, m, dtype, optimizer):
        return formula(n, m, dtype.itemsize, 8 if optimizer == "adamw" else 2)

    return answer


def eight_bits_alone(formula):
    """Right with AdamW, wrong with 8-bit AdamW."""

    def answer(n, m, dtype, optimizer):
        right = kept(n, m, dtype, optimizer)
        return right if optimizer == "adamw" else formula(n, m, dtype.itemsize)

    return answer


WRONG_BYTES = {
    "no frozen": (keeps(lambda n, m, s, o: m * (12 + o)), "frozen weights are missing"),
    "no average": (keeps(lambda n, m, s, o: n * s + m * (8 + o)), "One of the three"),
    "weights alone": (keeps(lambda n, m, s, o: n * s + m * (4 + o)), "Two of the three"),
    "no state": (keeps(lambda n, m, s, o: n * s + m * 12), "optimiser's state is missing"),
    "one moment": (keeps(lambda n, m, s, o: n * s + m * (12 + o // 2)), "you count one"),
    "four moments": (keeps(lambda n, m, s, o: n * s + m * (12 + 2 * o)), "twice as much"),
    "all in half": (keeps(lambda n, m, s, o: n * s + m * (3 * s + o)), "stays in float32"),
    "weights in half": (
        keeps(lambda n, m, s, o: n * s + m * (s + 8 + o)), "stays in float32",
    ),
    "frozen in float32": (keeps(lambda n, m, s, o: 4 * n + m * (12 + o)), "not in float32"),
    "all trained": (keeps(lambda n, m, s, o: (n + m) * (12 + o)), "They are not trained"),
    "frozen gradient": (
        keeps(lambda n, m, s, o: n * (s + 4) + m * (12 + o)), "keep a gradient for the frozen",
    ),
    "frozen state": (
        keeps(lambda n, m, s, o: n * (s + o) + m * (12 + o)), "state for the frozen parameters",
    ),
    "two copies": (keeps(lambda n, m, s, o: 2 * n * s + m * (12 + o)), "counted twice"),
    "three copies": (keeps(lambda n, m, s, o: 3 * n * s + m * (12 + o)), "three times"),
    "replaced": (keeps(lambda n, m, s, o: (n - m) * s + m * (12 + o)), "do not replace"),
    "itemsize forgotten": (keeps(lambda n, m, s, o: n + m * (12 + o)), "itemsize bytes"),
    "8-bit ignored": (eight_bits_alone(lambda n, m, s: n * s + m * 20), "in one byte"),
    "8 bytes a byte": (eight_bits_alone(lambda n, m, s: n * s + m * 28), "8 bits, which is one"),
    "one 8-bit moment": (eight_bits_alone(lambda n, m, s: n * s + m * 13), "you count one"),
    "everything 8-bit": (eight_bits_alone(lambda n, m, s: n * s + m * 5), "alone; weights"),
    "GiB": (lambda *case: kept(*case) / 2**30, "right in GiB"),
    "GB": (lambda *case: kept(*case) / 1e9, "right in GB"),
    "bits": (lambda *case: 8 * kept(*case), "right in bits"),
    "another value": (lambda *case: kept(*case) + 1000, "Wrong for frozen weights in"),
    "text": (lambda *case: "18 GB", "is a str"),
    "infinite": (lambda *case: float("inf"), "is inf"),
    "stub": (lambda *case: ..., "no answer yet"),
    "no function": (20.0, "give it your function"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "sentence"), WRONG_BYTES.values(), ids=WRONG_BYTES)
def test_wrong_bytes(answer, sentence):
    verdict = checks.kept_bytes(answer)
    assert not verdict.passed
    assert sentence in verdict.message


def test_the_right_bytes_are_those_of_a_plan():
    """What the exercise counts is what is in memory in the engine's own accounts."""
    from slam_edu.sd.config import load_config
    from slam_edu.sd.plan import make_plan

    plan = make_plan(load_config("digits"), device="cpu")
    trace = plan.trace.parameters
    whole = sum(plan.trace.weights.values()) + plan.gradient_bytes + plan.optimizer_bytes
    assert whole == kept(trace["teacher"], trace["trained"], torch.float32, "adamw")


# -------------------------------------------------------------------- exercise 3


def cost(flops, gpus, batch, updates, speed, price):
    days = flops * batch * updates / speed / 86_400
    return days, days * 24 * gpus * price


def cost_by_gpu_hours(flops, gpus, batch, updates, speed, price):
    samples = gpus * batch * updates
    gpu_hours = samples * flops / speed / 3600
    return [gpu_hours / gpus / 24, gpu_hours * price]


def cost_as_tensors(flops, gpus, batch, updates, speed, price):
    seconds = torch.tensor(flops / speed, dtype=torch.float64) * batch * updates
    return seconds / (24 * 60 * 60), gpus * price * seconds / 3600


@pytest.mark.parametrize("answer", [cost, cost_by_gpu_hours, cost_as_tensors])
def test_right_cost(answer):
    verdict = checks.cost(answer)
    assert verdict.passed, verdict.message


def days_times(factor):
    """Days that are wrong by a factor of (flops, gpus, batch, updates, speed)."""

    def answer(flops, gpus, batch, updates, speed, price):
        days, money = cost(flops, gpus, batch, updates, speed, price)
        return days * factor(flops, gpus, batch, updates, speed), money

    return answer


def money_times(factor):
    """The right days, and money that is wrong by a factor of (gpus, price)."""

    def answer(flops, gpus, batch, updates, speed, price):
        days, money = cost(flops, gpus, batch, updates, speed, price)
        return days, money * factor(gpus, price)

    return answer


def inverted(flops, gpus, batch, updates, speed, price):
    return speed / (flops * batch * updates * 86_400), 0.0


def the_lessons_own(flops, gpus, batch, updates, speed, price):
    return cost(flops, gpus, batch, updates, 9e13, price)


WRONG_COSTS = {
    "divided by cards": (days_times(lambda f, g, b, u, v: 1 / g), "divided by the number of GPUs"),
    "GPU-days": (days_times(lambda f, g, b, u, v: g), "of all cards together"),
    "seconds": (days_times(lambda f, g, b, u, v: 86_400), "are seconds"),
    "hours": (days_times(lambda f, g, b, u, v: 24), "are hours"),
    "hour for day": (days_times(lambda f, g, b, u, v: 1 / 24), "too few by a factor of 24"),
    "no batch": (days_times(lambda f, g, b, u, v: 1 / b), "takes `batch` samples"),
    "no updates": (days_times(lambda f, g, b, u, v: 1 / u), "days of one update"),
    "no operations": (days_times(lambda f, g, b, u, v: 1 / f), "takes `flops` operations"),
    "batch divides": (days_times(lambda f, g, b, u, v: 1 / b**2), "longer, not shorter"),
    "upside down": (inverted, "work divided by speed is time"),
    "other days": (days_times(lambda f, g, b, u, v: 3), "The days are wrong"),
    "swapped": (lambda *case: cost(*case)[::-1], "in each other's place"),
    "one card's money": (money_times(lambda g, p: 1 / g), "of one card, and all are paid"),
    "price a day": (money_times(lambda g, p: 1 / 24), "you pay it once a day"),
    "price a day, one card": (money_times(lambda g, p: 1 / 24 / g), "and for one card"),
    "cards twice": (money_times(lambda g, p: g), "counted twice"),
    "24 twice": (money_times(lambda g, p: 24), "count them twice"),
    "GPU-hours": (money_times(lambda g, p: 1 / p), "these are GPU-hours"),
    "GPU-days as money": (money_times(lambda g, p: 1 / p / 24), "these are GPU-days"),
    "divided by price": (money_times(lambda g, p: 1 / p**2), "multiplied, not divided"),
    "price a second": (money_times(lambda g, p: 3600), "not for a second"),
    "other money": (money_times(lambda g, p: 0.9), "the money is not"),
    "fixed numbers": (the_lessons_own, "use the arguments"),
    "one number": (lambda *case: cost(*case)[0], "Return two numbers"),
    "text": (lambda *case: ("a day", 3.0), "is a str"),
    "stub": (lambda *case: ..., "no answer yet"),
    "half a stub": (lambda *case: (cost(*case)[0], ...), "no answer yet"),
    "no function": ((1.0, 2.0), "give it your function"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "sentence"), WRONG_COSTS.values(), ids=WRONG_COSTS)
def test_wrong_costs(answer, sentence):
    verdict = checks.cost(answer)
    assert not verdict.passed
    assert sentence in verdict.message

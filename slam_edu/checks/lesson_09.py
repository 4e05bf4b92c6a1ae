"""Checks of lesson 09: who draws which samples, what a training keeps, what a run costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from slam_edu.checks.base import Wrong, exercise, require, require_function

# -------------------------------------------------------------------- exercise 1


def _numbers(answer: object) -> list[int]:
    """What the learner's function returned, as a list of integers."""
    if answer is ... or answer is None:
        raise NotImplementedError
    if isinstance(answer, Tensor):
        answer = answer.flatten().tolist()
    require(
        isinstance(answer, Iterable) and not isinstance(answer, (str, dict)),
        f"Your function returns a {type(answer).__name__}; return a list of numbers.",
    )
    found = list(answer)
    require(
        not any(isinstance(n, (list, tuple, range, Tensor)) and _long(n) for n in found),
        "Your list holds lists. Put the numbers of all rounds one after the other into one list.",
    )
    require(
        all(float(n).is_integer() for n in found),
        f"Your list holds {next((n for n in found if not float(n).is_integer()), None)!r}; "
        f"numbers of samples are integers.",
    )
    return [int(n) for n in found]


def _long(value: object) -> bool:
    return not isinstance(value, Tensor) or value.ndim > 0


@exercise("Exercise 1, who draws what")
def sample_numbers(answer: Callable[..., Sequence[int]]) -> str:
    """``answer(update, rank, processes, batch, accumulate)``: a list of sample numbers."""
    require_function(answer)

    def of(place: Callable[[int, int], int], u: int, r: int, w: int, b: int, a: int) -> list[int]:
        return [place(part, k) for part in range(a) for k in range(b)]

    # update, rank, processes, batch, accumulate: no two products of them alike
    case = u, r, w, b, a = 3, 1, 5, 4, 2
    right = of(lambda p, k: ((u * a + p) * w + r) * b + k, *case)
    got = _numbers(answer(*case))
    first = u * a * w * b
    mistakes: tuple[tuple[list[int], str], ...] = (
        (right[:b], "These are the numbers of the first round alone; a process takes `accumulate` "
         "batches an update."),
        (list(range(first, first + a * w * b)), "These are the numbers of the whole update, all "
         "processes together."),
        (of(lambda p, k: first + (r * a + p) * b + k, *case), "You give a process all its rounds "
         "in one piece. In a round every process takes one batch; only then the next round "
         "begins, behind the last process's batch."),
        (of(lambda p, k: first + (p * b + k) * w + r, *case), "You deal the numbers out one by "
         "one. A process takes `batch` of them that follow each other."),
        (of(lambda p, k: (p * w + r) * b + k, *case), "These are the numbers of update 0, "
         "whatever the update."),
        (of(lambda p, k: (u * a + p) * w * b + k, *case), "These are the numbers of process 0, "
         "whatever the rank."),
        (of(lambda p, k: (u + p) * w * b + r * b + k, *case), "Where an update begins, you forget "
         "the rounds: one before it took processes x batch x accumulate samples."),
        (of(lambda p, k: u * w * b + (p * w + r) * b + k, *case), "Where an update begins, you "
         "forget the rounds: one before it took processes x batch x accumulate samples."),
        (of(lambda p, k: (u * a + p) * b + r * b + k, *case), "Where a round begins, you forget "
         "the other processes: the one before it took processes x batch samples."),
        (of(lambda p, k: u * a * b + p * b + k, *case), "This is one process alone: neither the "
         "rank nor the other processes have a say."),
        (of(lambda p, k: (u * a + p) * w + r + k, *case), "The size of a batch is missing where a "
         "process's batch begins, so batches overlap."),
        ([n + 1 for n in right], "All numbers are one too large: the samples count from 0."),
        ([n - a * w * b for n in right], "These are the numbers of the update before: updates "
         "count from 0."),
        ([n - b for n in right], "These are the numbers of the process before: ranks count from "
         "0."),
        ([n + b for n in right], "These are the numbers of the process after: ranks count from "
         "0."),
        (of(lambda p, k: (u * a + p) * w * b + p * b + r * b + k, *case), "The second round "
         "begins behind the last process's batch of the first."),
    )  # fmt: skip
    for wrong, sentence in mistakes:
        if got == wrong:
            raise Wrong(sentence)
    require(
        len(got) == a * b,
        f"Your list has {len(got)} numbers; with a batch of {b} and {a} rounds a process takes "
        f"{a * b} an update.",
    )
    require(
        sorted(got) != right or got == right,
        "The numbers are right, their order is not: round after round, and rising within a batch.",
    )
    require(
        got == right,
        f"For update {u}, process {r} of {w}, a batch of {b} and {a} rounds you return {got}. How "
        f"many samples were taken before this update, before this round, before this process?",
    )
    for case in ((0, 0, 1, 3, 1), (7, 2, 3, 2, 4), (2, 3, 4, 1, 3)):
        u, r, w, b, a = case
        require(
            _numbers(answer(*case)) == of(lambda p, k: ((u * a + p) * w + r) * b + k, *case),  # noqa: B023
            f"Right in one case, wrong for update {u}, process {r} of {w}, a batch of {b}, {a} "
            f"round{'s' * (a > 1)}.",
        )
    return "Whichever process takes a sample, the sample is the same."


# -------------------------------------------------------------------- exercise 2

_GIB = 2**30


def _number(answer: object, what: str) -> float:
    if answer is ... or answer is None:
        raise NotImplementedError
    if isinstance(answer, Tensor) and answer.numel() == 1:
        answer = answer.item()
    require(
        isinstance(answer, (int, float)) and not isinstance(answer, bool),
        f"{what} is a {type(answer).__name__}; it should be a number.",
    )
    require(math.isfinite(answer), f"{what} is {answer}.")
    return float(answer)


def _near(x: float, y: float, rtol: float = 1e-9) -> bool:
    return math.isclose(x, y, rel_tol=rtol)


@exercise("Exercise 2, what a training keeps")
def kept_bytes(answer: Callable[..., float]) -> str:
    """``answer(frozen, trained, frozen_dtype, optimizer) -> bytes``; see the lesson."""
    require_function(answer)
    n, m = 1_000_003, 70_001
    for dtype, optimizer in (
        (torch.float16, "adamw"),
        (torch.float16, "adamw8bit"),
        (torch.float32, "adamw"),
        (torch.bfloat16, "adamw8bit"),
    ):
        size, state = dtype.itemsize, 8 if optimizer == "adamw" else 2
        got = _number(answer(n, m, dtype, optimizer), "What your function returns")
        where = f"With {dtype} and {optimizer!r}: "
        right = n * size + m * (12 + state)
        mistakes = _kept_mistakes(n, m, size, state)
        for wrong, sentence in mistakes.items():
            if _near(got, wrong) and not _near(wrong, right):
                raise Wrong(where + sentence)
        for unit, factor in (("GiB", _GIB), ("GB", 1e9), ("MiB", 2**20), ("MB", 1e6),
                             ("bits", 1 / 8)):  # fmt: skip
            if _near(got, right / factor, 1e-6):
                raise Wrong(where + f"the value is right in {unit}; return bytes.")
        require(
            _near(got, right),
            where + "the value is wrong. Two sums: for each frozen parameter its weight alone; "
            "for each trained one all that an update reads or writes. List that first.",
        )
    return "One formula for both kinds of student: only the two counts differ."


def _kept_mistakes(n: int, m: int, size: int, state: int) -> Mapping[float, str]:
    """Wrong values and what each of them leaves out or counts twice."""
    base = n * size
    right = base + m * (12 + state)
    eight_bit = state == 2
    mistakes = {
        m * (12 + state): "the frozen weights are missing: teacher or base are in memory too.",
        base + m * (8 + state): "one of the three float32 numbers of a trained parameter is "
        "missing: its weight, its gradient, its moving average.",
        base + m * (4 + state): "two of the three float32 numbers of a trained parameter are "
        "missing: its weight, its gradient, its moving average.",
        base + m * 12: "the optimiser's state is missing.",
        base + m * (12 + state // 2): "AdamW keeps two averages a parameter, of the gradient and "
        "of its square; you count one.",
        base + m * (12 + 2 * state): "AdamW keeps two averages a parameter, of the gradient and "
        "of its square; you count twice as much.",
        base + m * (3 * size + state): "what is trained stays in float32, whatever the frozen "
        "weights are in; so do its gradient and its average.",
        base + m * (size + 8 + state): "what is trained stays in float32, whatever the frozen "
        "weights are in.",
        base + m * (8 + size + state): "the gradient and the average of a float32 weight are "
        "float32, too.",
        4 * n + m * (12 + state): "the frozen weights are in the dtype you were given, not in "
        "float32.",
        (n + m) * (12 + state): "you keep a gradient, an average and an optimiser's state for the "
        "frozen parameters, too. They are not trained.",
        base + n * (4 + state) + m * (12 + state): "you keep a gradient and an optimiser's state "
        "for the frozen parameters, too. They are not trained.",
        base + n * state + m * (12 + state): "you keep an optimiser's state for the frozen "
        "parameters, too.",
        base + n * 4 + m * (12 + state): "you keep a gradient for the frozen parameters, too.",
        2 * base + m * (12 + state): "the frozen weights are counted twice. They are in memory "
        "once, however many networks use them.",
        3 * base + m * (12 + state): "the frozen weights are counted three times. They are in "
        "memory once, however many networks use them.",
        (n - m) * size + m * (12 + state): "the trained parameters do not replace frozen ones: "
        "the teacher, or the base, stays whole.",
        (n + m) * size + m * (12 + state): "the trained weights are counted twice, once in the "
        "frozen ones' dtype.",
        base / size + m * (12 + state): "the frozen weights take itemsize bytes each, not one.",
    }
    if eight_bit:
        mistakes |= {
            base + m * 20: "8-bit AdamW keeps each of its two averages in one byte.",
            base + m * 14 * 8: "bytes, not bits.",
            base + m * 5: "the 8 bits are those of the optimiser's averages alone; weights, "
            "gradients and the moving average stay in float32.",
            base + m * 28: "8-bit means 8 bits, which is one byte, for each of the two averages.",
        }
    return {wrong: text for wrong, text in mistakes.items() if not _near(wrong, right)}


# -------------------------------------------------------------------- exercise 3


@exercise("Exercise 3, days and money")
def cost(answer: Callable[..., Sequence[float]]) -> str:
    """``answer(flops, gpus, batch, updates, speed, price) -> (days, money)``; see the lesson."""
    require_function(answer)
    flops, gpus, batch, updates, speed, price = 5e12, 7, 12, 40_000, 9e13, 1.9
    got = answer(flops, gpus, batch, updates, speed, price)
    if got is ... or got is None:
        raise NotImplementedError
    require(
        isinstance(got, (tuple, list)) and len(got) == 2,
        "Return two numbers: days from begin to end, and money.",
    )
    days, money = (_number(value, what) for value, what in zip(got, ("days", "money"), strict=True))
    seconds = batch * updates * flops / speed
    right = seconds / 86_400
    paid = right * 24 * gpus * price
    require(
        not (_near(days, paid) and _near(money, right)),
        "The two numbers are in each other's place: days first.",
    )
    for wrong, sentence in (
        (right / gpus, "The days are divided by the number of GPUs. Each of them takes `batch` "
         "samples an update of its own, at the same time: how long does one of them work?"),
        (right * gpus, "These are GPU-days, of all cards together. They work at the same time."),
        (seconds, "These are seconds, not days."),
        (seconds / 3600, "These are hours, not days."),
        (right / batch, "Each update takes `batch` samples on a card, not one."),
        (right / updates, "These are the days of one update."),
        (right / flops, "A sample takes `flops` operations, not one."),
        (speed / (batch * updates * flops) / 86_400, "Upside down: work divided by speed is time."),
        (1 / right, "Upside down: work divided by speed is time."),
        (updates * flops / speed / batch / 86_400, "A larger batch makes an update longer, not "
         "shorter."),
        (right * 24, "There are 24 hours in a day; these are too many by a factor of 24."),
        (right / 24, "These days are too few by a factor of 24."),
    ):  # fmt: skip
        if _near(days, wrong):
            raise Wrong(sentence)
    require(
        _near(days, right),
        "The days are wrong. How many samples does one card take in the whole run, how many "
        "operations are they, and how many seconds at its speed?",
    )
    for wrong, sentence in (
        (paid / gpus, "The days are right; the money is that of one card, and all are paid."),
        (paid / 24, "The days are right; the price is for an hour, and you pay it once a day."),
        (paid / 24 / gpus, "The days are right; the price is for an hour of one card: you pay it "
         "once a day, and for one card."),
        (paid * gpus, "The days are right; in the money the number of cards is counted twice."),
        (paid * 24, "The days are right; a day has 24 hours, and you count them twice."),
        (right * gpus * 24, "The days are right; these are GPU-hours. What does one cost?"),
        (right * gpus, "The days are right; these are GPU-days. What does an hour cost?"),
        (right * gpus * 24 / price, "The days are right; the price is multiplied, not divided "
         "by."),
        (right * 86_400 * gpus * price, "The days are right; the price is for an hour, not for a "
         "second."),
    ):  # fmt: skip
        if _near(money, wrong):
            raise Wrong(sentence)
    require(
        _near(money, paid),
        "The days are right, the money is not: hours of all cards, times the price of one hour.",
    )
    other = answer(2 * flops, 1, 3, 10, speed / 3, 0.0)
    require(
        _near(float(other[0]), 2 * flops * 30 / (speed / 3) / 86_400) and float(other[1]) == 0,
        "Right in one case, wrong in another: use the arguments, not numbers of the lesson.",
    )
    return "Cards that take a batch each of their own enlarge the batch; the days stay."

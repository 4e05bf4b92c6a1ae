"""Checks of lesson 09: who draws which samples, what a training keeps, what a run costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from slam_course.checks import Wrong, exercise, number, refuse_numbers, require, require_function

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
    case = u, r, w, b, a = 3, 2, 5, 4, 2
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


def _near(x: float, y: float, rtol: float = 1e-9) -> bool:
    return math.isclose(x, y, rel_tol=rtol)


@exercise("Exercise 2, what a training keeps")
def kept_bytes(answer: Callable[..., float]) -> str:
    """``answer(frozen, trained, frozen_dtype, optimizer) -> bytes``; see the lesson."""
    require_function(answer)
    n, m = 1_000_003, 70_001
    cases = [
        (dtype, name)
        for dtype in (torch.float16, torch.float32)
        for name in ("adamw", "adamw8bit")
    ]
    got = [number(answer(n, m, *case)) for case in cases]
    # size: bytes of a frozen weight; state: of the optimiser's averages of one parameter
    sizes = [(dtype.itemsize, 8 if name == "adamw" else 2) for dtype, name in cases]

    def gives(formula: Callable[[int, int], float], factor: float = 1.0) -> bool:
        pairs = zip(got, sizes, strict=True)
        return all(_near(x, factor * formula(*size)) for x, size in pairs)

    def right(size: int, state: int) -> int:
        return n * size + m * (12 + state)

    for formula, sentence in _kept_mistakes(n, m):
        if gives(formula):
            raise Wrong(sentence)
    for unit, factor in (("GiB", 2**-30), ("GB", 1e-9), ("MiB", 2**-20), ("MB", 1e-6),
                         ("bits", 8.0)):  # fmt: skip
        if gives(right, factor):
            raise Wrong(f"The value is right in {unit}; return bytes.")
    for x, size, (dtype, name) in zip(got, sizes, cases, strict=True):
        require(
            _near(x, right(*size)),
            f"Wrong for frozen weights in {dtype} and {name!r}. Two sums: for each frozen "
            f"parameter its weight alone; for each trained one all that an update reads or "
            f"writes. List that first.",
        )
    return "One formula for both kinds of student: only the two counts differ."


def _kept_mistakes(n: int, m: int) -> tuple[tuple[Callable[[int, int], float], str], ...]:
    """Wrong formulas of (bytes of a frozen weight, bytes of the optimiser's averages)."""

    def right(size: int, state: int) -> int:
        return n * size + m * (12 + state)

    def with_8_bits(formula: Callable[[int], float]) -> Callable[[int, int], float]:
        """Right with AdamW, the formula with 8-bit AdamW."""
        return lambda size, state: right(size, state) if state == 8 else formula(size)

    missing = "its weight, its gradient, its moving average."
    return (
        (lambda s, o: m * (12 + o), "The frozen weights are missing: teacher or base are in "
         "memory, too."),
        (lambda s, o: n * s + m * (8 + o), "One of the three float32 numbers of a trained "
         f"parameter is missing: {missing}"),
        (lambda s, o: n * s + m * (4 + o), "Two of the three float32 numbers of a trained "
         f"parameter are missing: {missing}"),
        (lambda s, o: n * s + m * 12, "The optimiser's state is missing."),
        (lambda s, o: n * s + m * (12 + o // 2), "AdamW keeps two averages a parameter, of the "
         "gradient and of its square; you count one."),
        (lambda s, o: n * s + m * (12 + 2 * o), "AdamW keeps two averages a parameter, of the "
         "gradient and of its square; you count twice as much."),
        (lambda s, o: n * s + m * (3 * s + o), "What is trained stays in float32, whatever the "
         "frozen weights are in; so do its gradient and its average."),
        (lambda s, o: n * s + m * (s + 8 + o), "What is trained stays in float32, whatever the "
         "frozen weights are in."),
        (lambda s, o: 4 * n + m * (12 + o), "The frozen weights are in the dtype that you were "
         "given, not in float32."),
        (lambda s, o: (n + m) * (12 + o), "You keep a gradient, an average and an optimiser's "
         "state for the frozen parameters, too. They are not trained."),
        (lambda s, o: n * (s + 4 + o) + m * (12 + o), "You keep a gradient and an optimiser's "
         "state for the frozen parameters, too. They are not trained."),
        (lambda s, o: n * (s + 8 + o) + m * (12 + o), "You keep a gradient, an average and an "
         "optimiser's state for the frozen parameters, too. They are not trained."),
        (lambda s, o: n * (s + o) + m * (12 + o), "You keep an optimiser's state for the frozen "
         "parameters, too."),
        (lambda s, o: n * (s + 4) + m * (12 + o), "You keep a gradient for the frozen parameters, "
         "too."),
        (lambda s, o: 2 * n * s + m * (12 + o), "The frozen weights are counted twice. They are "
         "in memory once, however many networks use them."),
        (lambda s, o: 3 * n * s + m * (12 + o), "The frozen weights are counted three times. They "
         "are in memory once, however many networks use them."),
        (lambda s, o: (n - m) * s + m * (12 + o), "The trained parameters do not replace frozen "
         "ones: the teacher, or the base, stays whole."),
        (lambda s, o: (n + m) * s + m * (12 + o), "The trained weights are counted twice, once in "
         "the frozen ones' dtype."),
        (lambda s, o: n + m * (12 + o), "The frozen weights take itemsize bytes each, not one."),
        (with_8_bits(lambda s: n * s + m * 20), "8-bit AdamW keeps each of its two averages in "
         "one byte."),
        (with_8_bits(lambda s: n * s + m * 28), "8-bit means 8 bits, which is one byte, for each "
         "of the two averages."),
        (with_8_bits(lambda s: n * s + m * 13), "8-bit AdamW keeps two averages a parameter, too; "
         "you count one."),
        (with_8_bits(lambda s: n * s + m * 5), "The 8 bits are those of the optimiser's averages "
         "alone; weights, gradients and the moving average stay in float32."),
    )  # fmt: skip


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
    days, money = number(got[0], "The number of days"), number(got[1], "The money")
    seconds = batch * updates * flops / speed
    right = seconds / 86_400
    paid = right * 24 * gpus * price
    require(
        not (_near(days, paid) and _near(money, right)),
        "The two numbers are in each other's place: days first.",
    )
    wrong_days = (
        (right / gpus, "The days are divided by the number of GPUs. Each of them takes `batch` "
         "samples an update of its own, at the same time: how long does one of them work?"),
        (right * gpus, "These are GPU-days, of all cards together. They work at the same time."),
        (seconds, "These are seconds, not days."),
        (seconds / 3600, "These are hours, not days."),
        (right / batch, "Each update takes `batch` samples on a card, not one."),
        (right / updates, "These are the days of one update."),
        (right / flops, "A sample takes `flops` operations, not one."),
        (1 / right, "Upside down: work divided by speed is time."),
        (1 / seconds, "Upside down: work divided by speed is time."),
        (1 / seconds / 86_400, "Upside down: work divided by speed is time."),
        (updates * flops / speed / batch / 86_400, "A larger batch makes an update longer, not "
         "shorter."),
        (right * 24, "There are 24 hours in a day; these are too many by a factor of 24."),
        (right / 24, "These days are too few by a factor of 24."),
    )  # fmt: skip
    refuse_numbers(days, wrong_days)
    require(
        _near(days, right),
        "The days are wrong. How many samples does one card take in the whole run, how many "
        "operations are they, and how many seconds at its speed?",
    )
    wrong_money = (
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
    )  # fmt: skip
    refuse_numbers(money, wrong_money)
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

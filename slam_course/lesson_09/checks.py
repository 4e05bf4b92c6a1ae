"""Checks of lesson 09: who draws which samples, what a training keeps, what a run costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from slam_course.checks import (
    exercise,
    known_mistakes,
    listed,
    number,
    refuse_numbers,
    require,
    whole,
    worked_out,
)

KNOWN = known_mistakes(__file__)

# -------------------------------------------------------------------- exercise 1


def _numbers(answer: object) -> list[int]:
    """What the learner's function returned, as a list of integers."""
    sentence = f"Your function returns a {type(answer).__name__}; return a list."
    found = listed(answer, sentence)
    ordered = hasattr(answer, "__getitem__") and hasattr(answer, "__len__")
    require(ordered, sentence)  # a generator can be read once, a set has no order
    require(
        not any(isinstance(n, (list, tuple, range)) for n in found),
        "Your list holds lists. Put the numbers of all rounds one after the other into one list.",
    )
    return [whole(n, "A sample's number in your list") for n in found]


@exercise("Exercise 1, who draws what")
def sample_numbers(answer: Callable[..., Sequence[int]]) -> str:
    """``answer(update, rank, processes, batch, accumulate)``: a list of sample numbers."""

    def numbers(u: int, r: int, w: int, b: int, a: int) -> list[int]:
        return [((u * a + p) * w + r) * b + k for p in range(a) for k in range(b)]

    # update, rank, processes, batch, accumulate: no two products of them alike
    case = u, r, w, b, a = 3, 2, 5, 4, 2
    right, got = numbers(*case), _numbers(answer(*case))
    require(
        got == _numbers(answer(*case)),
        "Two calls with the same arguments give other numbers. Compute them from the arguments "
        "alone: a run that resumes has no memory of earlier calls.",
    )

    def of(place: Callable[[int, int], int]) -> list[int]:
        return [place(part, k) for part in range(a) for k in range(b)]

    known = worked_out(KNOWN["numbers"], u=u, r=r, w=w, b=b, a=a, numbers=numbers, of=of)
    for wrong, sentence in known:
        require(got != wrong, sentence)
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
            _numbers(answer(*case)) == numbers(*case),
            f"Right in one case, wrong for update {u}, process {r} of {w}, a batch of {b}, {a} "
            f"round{'s' * (a > 1)}.",
        )
    return "Whichever process takes a sample, the sample is the same."


# -------------------------------------------------------------------- exercise 2


def _near(x: float, y: float) -> bool:
    return math.isclose(x, y, rel_tol=1e-6)  # a float32 tensor of numbers will do


@exercise("Exercise 2, what a training keeps")
def kept_bytes(answer: Callable[..., float]) -> str:
    """``answer(frozen, trained, frozen_dtype, optimizer) -> bytes``; see the lesson."""
    n, m = 1_000_003, 70_001
    cases = [
        (dtype, name)
        for dtype in (torch.float16, torch.float32, torch.bfloat16)
        for name in ("adamw", "adamw8bit")
    ]
    got = [number(answer(n, m, *case)) for case in cases]
    # s: bytes of a frozen weight; o: of the optimiser's averages of one parameter
    sizes = [(dtype.itemsize, 8 if name == "adamw" else 2) for dtype, name in cases]
    right = [n * s + m * (12 + o) for s, o in sizes]
    tables = [worked_out(KNOWN["kept"], n=n, m=m, s=s, o=o) for s, o in sizes]
    known = [([value for value, _ in row], row[0][1]) for row in zip(*tables, strict=True)]
    for unit, factor in (("GiB", 2**-30), ("GB", 1e-9), ("MiB", 2**-20), ("MB", 1e-6),
                         ("bits", 8.0)):  # fmt: skip
        sentence = f"The value is right in {unit}; return bytes."
        known.append(([factor * value for value in right], sentence))
    for wrong, sentence in known:
        require(not all(map(_near, got, wrong)), sentence)
    for x, value, (dtype, name) in zip(got, right, cases, strict=True):
        require(
            _near(x, value),
            f"Wrong for frozen weights in {dtype} and {name!r}. Two sums: for each frozen "
            f"parameter its weight alone; for each trained one all that an update reads or "
            f"writes. List that first.",
        )
    for size, sentence in (
        (n, "Right for a network that is trained in part. Where all of it is, the teacher stays "
            "beside its student."),
        (859_520_964, "Right for a small network; the bytes of Stable Diffusion's are more than "
                      "32 bits can count."),
    ):  # fmt: skip
        require(_near(number(answer(size, size, torch.float16, "adamw")), size * 22), sentence)
    return "One formula for both kinds of student: only the two counts differ."


# -------------------------------------------------------------------- exercise 3


@exercise("Exercise 3, days and money")
def cost(answer: Callable[..., Sequence[float]]) -> str:
    """``answer(flops, gpus, batch, updates, speed, price) -> (days, money)``; see the lesson."""
    flops, gpus, batch, updates, speed, price = 5e12, 5, 12, 40_000, 9e13, 1.9

    def asked(*case: float) -> tuple[float, float]:
        sentence = "Return two numbers: days from begin to end, and money."
        days, money = listed(answer(*case), sentence, 2)
        return number(days, "The number of days"), number(money, "The money")

    days, money = asked(flops, gpus, batch, updates, speed, price)
    right = batch * updates * flops / speed / 86_400
    paid = right * 24 * gpus * price
    require(
        not (_near(days, paid) and _near(money, right)),
        "The two numbers are in each other's place: days first.",
    )
    names = {"f": flops, "g": gpus, "b": batch, "n": updates, "p": price, "d": right, "m": paid}
    refuse_numbers(days, worked_out(KNOWN["days"], **names))
    require(
        _near(days, right),
        "The days are wrong. How many samples does one card take in the whole run, how many "
        "operations are they, and how many seconds at its speed?",
    )
    refuse_numbers(money, worked_out(KNOWN["money"], **names))
    require(
        _near(money, paid),
        "The days are right, the money is not: hours of all cards, times the price of one hour.",
    )
    days, money = asked(2 * flops, 1, 3, 10, speed / 3, 0.0)
    require(
        _near(days, 2 * flops * 30 / (speed / 3) / 86_400) and money == 0,
        "Right in one case, wrong in another: use the arguments, not numbers of the lesson.",
    )
    return "Cards that take a batch each of their own enlarge the batch; the days stay."

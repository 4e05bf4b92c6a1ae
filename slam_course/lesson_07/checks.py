"""Checks of lesson 07: what a run costs, what its log says, and gamma = 1 folded into a layer."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from slam_course.checks import (
    Asked,
    Wrong,
    exercise,
    given,
    hold,
    known_mistakes,
    number,
    refuse_numbers,
    require,
    worked_out,
)
from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.sd.tracking import BIN_COLUMNS

KNOWN = known_mistakes(__file__)

# -------------------------------------------------------------------- exercise 1


@exercise("Exercise 1, what a run costs")
def cost(answer: Callable[..., float]) -> str:
    """``answer(updates, batch, w, image, text, samples) -> forward passes``; see the lesson.

    ``samples`` is the size of the cache, or None without one.
    """
    u, b, i, t = 7, 3, 1.53, 0.19
    n = u * b
    for part, w, s, right, what in (
        ("no cache", 3.0, None, n * (6 + i + t), "What your function returns"),
        ("small cache", 3.0, 11, n * 6 + 11 * (i + t), "With a cache, what it returns"),
        ("large cache", 3.0, 50, n * 6 + 50 * (i + t), "With a large cache, it"),
        ("no guidance", 0.0, None, n * (5 + i + t), "At w = 0, what it returns"),
    ):
        found = number(answer(u, b, w, i, t, s), what)
        if not math.isclose(found, right, rel_tol=1e-6):
            refuse_numbers(found, worked_out(KNOWN[part], n=n, u=u, i=i, t=t, s=s))
            raise Wrong(
                f"Your function returns {found:g} here, and that is neither right nor a mistake "
                f"this check knows. Write down for one sample who is called, and how often; then "
                f"for all."
            )
    small = number(answer(u, b, 0.5, i, t, None), "At w = 0.5, what it returns")
    require(
        math.isclose(small, n * (6 + i + t), rel_tol=1e-6),
        "Right at w = 3 and w = 0. At w = 0.5 there is guidance as well, and it costs as much as "
        "at w = 3: the number of calls does not depend on how large w is.",
    )
    return "Teacher twice, target, student, and a backward pass worth two; the cache, once."


# -------------------------------------------------------------------- exercise 2

DIAGNOSES = ("healthy", "skips updates", "learning rate too high", "one tenth dominates")
"""What exercise 2 chooses from."""

#: Mean squared error in each tenth of the timesteps, as a healthy run of the digits has it.
_TENTHS = (0.0002, 0.0002, 0.0004, 0.0006, 0.0012, 0.0022, 0.0035, 0.007, 0.014, 0.034)

Row = dict[str, float]
Errors = Callable[[float], Sequence[float]]


def _tenths(place: int, early: float, late: float | None = None, until: float = 0.2) -> Errors:
    """A healthy run's errors, of which one tenth holds a share, another one in its early part.

    The sum stays.
    """
    rest = sum(_TENTHS) - _TENTHS[place]

    def errors(done: float) -> list[float]:
        share = late if late and done >= until else early
        return [
            (share if i == place else (1 - share) * error / rest) * sum(_TENTHS)
            for i, error in enumerate(_TENTHS)
        ]

    return errors


def _log(
    seed: int,
    rows: int = 48,
    *,
    trend: Callable[[float], float] = lambda done: 1.0,
    scale: float = 0.03,
    norm: float = 5.0,
    luck: float = 0.2,
    tenths: Errors = lambda done: _TENTHS,
    empty: Callable[[int], float] = lambda place: 0.0,
    skipped: Callable[[float], int] = lambda done: 0,
    missing: Callable[[int], bool] = lambda row: False,
) -> list[Row]:
    """A log as a run writes it, with the noise that small batches bring.

    ``trend``, the loss without its noise, ``tenths`` and ``skipped`` are functions of the share of
    the run that is done; ``luck`` is the noise's size, ``empty`` how often a tenth of the
    timesteps has no sample in a row, and ``missing`` rows have a loss of NaN, because an update
    was not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, 12, generator=generator).mul(luck).exp().tolist()
    holes = torch.rand(rows, 10, generator=generator).tolist()
    found: list[Row] = []
    for i in range(rows):
        done = i / (rows - 1)
        level = scale * trend(done)
        row: Row = {
            "update": 10.0 * (i + 1),
            "loss": math.nan if missing(i) else level * noise[i][0],
            "grad_norm": math.nan if missing(i) else norm * noise[i][1],
            "lr": 1e-4 * (1 + math.cos(math.pi * done)) / 2,
            "skipped": float(skipped(done)),
            "samples_per_second": 30.0,
            "seconds": 5.0 * (i + 1),
        }
        for place, (name, error) in enumerate(zip(BIN_COLUMNS, tenths(done), strict=True)):
            hole = 0 < i and holes[i][place] < empty(place)  # no tenth is without any sample
            row[name] = math.nan if hole else 10 * level * error * noise[i][2 + place]
        found.append(row)
    return found


def _at(high: float, start: float = 0.0, stop: float = 2.0) -> Callable[[float], float]:
    """A loss that is higher in one part of a run, or all along."""
    return lambda done: high if start <= done < stop else 1.0


def _settles(done: float) -> float:
    """A healthy run's loss without a warm-up: the first updates throw it high."""
    return 1 + 11 * math.exp(-14 * done)


_SICK = {"skipped": lambda done: int(30 * done), "missing": lambda row: row % 3 == 2}


def _patients() -> list[tuple[str, list[Row], list[Row], str]]:
    """Name of a log, its rows, those of a healthy run with the same loss, and what it has.

    They are made from ``logs.csv``. Beside each threshold stands a log on either side; a last
    third, a second half and a mean over all rows are told from what is near to them; some logs
    have two signs, of which the first counts.
    """
    names = {"at": _at, "tenths": _tenths, "settles": _settles, "sick": _SICK}
    usual = {scale: _log(0, 60, trend=_settles, scale=scale, luck=0.02) for scale in (0.03, 30.0)}
    with Path(__file__).with_name("logs.csv").open(encoding="utf-8", newline="") as file:
        cases = [(row, eval(f"dict({row['log']})", names)) for row in csv.DictReader(file)]
    return [
        (row["name"], _log(seed, **case), usual[case.get("scale", 0.03)], row["diagnosis"])
        for seed, (row, case) in enumerate(cases, start=1)
    ]


def sick_log() -> list[Row]:
    """A log of a run that skips updates, to try an answer on."""
    return _log(7, **_SICK)


_LOOK = {
    ("healthy", "skips updates"): "Compare `skipped` in the second half of the log: does it "
    "grow there?",
    ("healthy", "learning rate too high"): "Is the mean loss of its last third more than five "
    "times that of the reference's last third? Its own first rows say nothing.",
    ("healthy", "one tenth dominates"): "Compare the largest mean of a tenth with the sum of all "
    "ten; any tenth can be the one, and NaN must be left out.",
    ("learning rate too high", "healthy"): "Its last third is what counts, beside the last third "
    "of the reference. Single rows are noisy and first rows may be high: compare means.",
    ("one tenth dominates", "healthy"): "A healthy run has most of its error where the noise is, "
    "about half in the last tenth. Take means over the rows, NaN left out, and compare with "
    "nine tenths of the sum.",
    ("skips updates", "healthy"): "How many were skipped does not matter, but whether they still "
    "are, in the second half of the log.",
}
_OTHERWISE = "Which signs are there, and which of them stands first in the table?"


@exercise("Exercise 2, is my run healthy?")
def diagnosis(answer: Callable[..., str]) -> str:
    """``answer(rows, reference) -> diagnosis``, one of :data:`DIAGNOSES`."""
    patients = _patients()
    for name, rows, reference, right in patients:
        found = given(answer(rows, reference))
        require(
            isinstance(found, str) and found in DIAGNOSES,
            f"For {name} your function returns {found!r}; it should return one of "
            f"{', '.join(map(repr, DIAGNOSES))}.",
        )
        require(
            found == right,
            f"Your function calls this one {found!r}: {name}. "
            f"{_LOOK.get((found, right), _OTHERWISE)}",
        )
    return f"{len(patients)} logs, and no healthy run was sent to the doctor."


# -------------------------------------------------------------------- exercise 3


@exercise("Exercise 3, gamma = 1 folded in")
def fold(answer: Callable[..., Tensor]) -> str:
    """``answer(W, b, P, features) -> new b``; see the lesson."""
    generator = torch.Generator().manual_seed(73)
    official, width = GAMMA_INPUTS["official"], 256

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight, bias, into = drawn(7, 5), drawn(7), 0.1 * drawn(5, width)

    def exact(gamma: Tensor) -> Tensor:
        return official(gamma.double())

    def features_of(gamma: Tensor) -> Tensor:
        gamma = torch.as_tensor(gamma)
        if gamma.ndim != 1 or not gamma.is_floating_point():
            raise ValueError(
                f"features was given a {gamma.dtype} tensor of shape {tuple(gamma.shape)}; "
                f"allowed: gammas of shape (B,), such as torch.ones(1)"
            )
        if not bool(((gamma >= 0) & (gamma <= 1)).all()):
            raise Wrong(
                f"You ask for the features of gamma = {_listed(gamma)}. `features` takes gamma "
                f"itself, from 0 to 1; the 10 - 10 gamma is its own business."
            )
        return exact(gamma)

    def shift(gamma: float) -> Tensor:
        return weight @ (into @ exact(torch.tensor([gamma]))[0])

    def otherwise() -> str:
        met = torch.cat([torch.as_tensor(call["gamma"]).double() for call in features.calls])
        if bool((met != 1).any()):
            return (
                f"You ask for the features of gamma = {_listed(met)}. Where on the chord is a "
                f"student at inference?"
            )
        return (
            "The shape fits, the values do not. Put the sum tau + P e into the layer, multiply "
            "out, and see which terms do not depend on tau. `features` returns a row for each "
            "gamma, and a bias has none."
        )

    features = Asked(features_of)
    known = worked_out(
        KNOWN["fold"], W=weight, b=bias, P=into, f=exact, s=shift, silu=torch.nn.functional.silu
    )
    hold(
        answer, lambda W, b, P, f: b + shift(1.0) + 0 * f(torch.ones(9)).sum(),
        {"W": weight, "b": bias, "P": into, "features": features}, known, otherwise,
        what="Your bias", gradient=(), rtol=1e-5, atol=1e-7,
    )  # fmt: skip
    return "One vector less to feed, and stock diffusers needs to know nothing of gamma."


def _listed(gamma: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in gamma.tolist())

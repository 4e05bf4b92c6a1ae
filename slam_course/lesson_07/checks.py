"""Checks of lesson 07: what a run costs, what its log says, and gamma = 1 folded into a layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slam_course.checks import (
    Wrong,
    exercise,
    given,
    known_mistakes,
    number,
    refuse,
    refuse_numbers,
    require,
    require_function,
    require_shape,
    unchanged,
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
    require_function(answer)
    u, b, i, t = 7, 3, 0.53, 0.19
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
        math.isclose(small, n * (6 + i + t)),
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


def _log(
    seed: int,
    rows: int = 24,
    *,
    trend: Callable[[float], float] = lambda done: 1.0,
    scale: float = 0.03,
    norm: float = 5.0,
    tenths: Sequence[float] = _TENTHS,
    empty: float = 0.0,
    skipped: Callable[[float], int] = lambda done: 0,
    missing: Callable[[int], bool] = lambda row: False,
) -> list[Row]:
    """A log as a run writes it, with the noise that small batches bring.

    ``trend``, the loss without its noise, and ``skipped`` are functions of the share of the run
    that is done; ``empty`` is how often a tenth of the timesteps has no sample in a row, and
    ``missing`` rows have a loss of NaN, because an update was not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, 2 + len(tenths), generator=generator).mul(0.22).exp().tolist()
    gone = (torch.rand(rows, len(tenths), generator=generator) < empty).tolist()
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
        each = zip(BIN_COLUMNS, tenths, noise[i][2:], gone[i], strict=True)
        for name, error, luck, hole in each:
            row[name] = math.nan if hole else 10 * level * error * luck
        found.append(row)
    return found


def _settles(done: float) -> float:
    """A healthy run's loss without a warm-up: the first updates throw it high."""
    return 1 + 11 * math.exp(-14 * done)


def _jumps(done: float) -> float:
    """Of a learning rate that is too high: at once far up, and then not back."""
    return 14.0 if done else 1.0


def _climbs(done: float) -> float:
    return 0.7 + 25 * done


def _tenth(place: int, share: float) -> list[float]:
    """Errors of which one tenth of the timesteps holds a share."""
    rest = sum(_TENTHS) - _TENTHS[place]
    return [rest * share / (1 - share) if i == place else error for i, error in enumerate(_TENTHS)]


def _patients() -> list[tuple[str, list[Row], list[Row], str]]:
    """Name of a log, its rows, those of a healthy run with the same loss, and what it has."""
    healthy, skips, high, one = DIAGNOSES
    usual, large = _log(0, 50, trend=_settles), _log(17, 40, trend=_settles, scale=30.0)
    return [
        ("a healthy run, level from the first row to the last", _log(1), usual, healthy),
        ("a healthy run without a warm-up, whose first rows are twelve times as high",
         _log(2, trend=_settles), usual, healthy),
        ("a healthy run whose batches are small, so that some tenths have no sample in a row "
         "(NaN)", _log(3, empty=0.35), usual, healthy),
        ("a healthy run in half precision, whose first two updates were skipped while the loss "
         "scaler found its scale", _log(4, skipped=lambda done: 2), usual, healthy),
        ("a healthy run with another loss, a thousand times as large, beside a reference with "
         "that loss", _log(5, scale=30.0), large, healthy),
        ("a healthy run whose gradient norm is large all along, and clipped", _log(6, norm=400.0),
         usual, healthy),
        ("a healthy run at twice the reference's loss, for its batches are smaller",
         _log(16, 9, scale=0.06), usual, healthy),
        ("a run that skips updates to the end", sick_log(), usual, skips),
        ("a run that begins to skip updates in its last quarter", _log(
            8, skipped=lambda done: int(40 * max(0.0, done - 0.75))), usual, skips),
        ("a run that skips updates, with many tenths that had no sample", _log(
            9, empty=0.35, skipped=lambda done: int(20 * done), missing=lambda row: row > 3),
         usual, skips),
        ("a run whose learning rate is too high, which jumps up after the first row and stays "
         "there", _log(10, trend=_jumps), usual, high),
        ("a run whose learning rate is too high, which is up there in its first row already",
         _log(11, trend=lambda done: 14.0, norm=0.02), usual, high),
        ("a run whose learning rate is too high, of ten rows, slowly climbing", _log(
            12, 10, trend=_climbs), usual, high),
        ("a run whose learning rate is too high, with another loss, beside a reference with that "
         "loss", _log(18, trend=_jumps, scale=30.0), large, high),
        ("a run of which the noisiest tenth holds 97 % of the error", _log(
            13, tenths=_tenth(9, 0.97)), usual, one),
        ("a run of which the fourth tenth holds 96 % of the error", _log(
            14, tenths=_tenth(3, 0.96)), usual, one),
        ("a run of which the noisiest tenth holds 97 % of the error, with tenths that had no "
         "sample", _log(15, tenths=_tenth(9, 0.97), empty=0.25), usual, one),
    ]  # fmt: skip


def sick_log() -> list[Row]:
    """One of the check's logs, of a run that skips updates, to try an answer on."""
    return _log(7, skipped=lambda done: int(30 * done), missing=lambda row: row % 3 == 2)


_LOOK = {
    ("healthy", "skips updates"): "Compare `skipped` in the second half of the log: does it "
    "grow there?",
    ("healthy", "learning rate too high"): "Compare the mean loss of its last third with that of "
    "the reference's last third. Its own first rows say nothing: they may be as bad.",
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
_OTHERWISE = "Which sign is there, and which one did your function see first?"


@exercise("Exercise 2, is my run healthy?")
def diagnosis(answer: Callable[..., str]) -> str:
    """``answer(rows, reference) -> diagnosis``, one of :data:`DIAGNOSES`."""
    require_function(answer)
    patients = _patients()
    for name, rows, reference, right in patients:
        copies = copy.deepcopy((rows, reference))
        found = given(answer(*copies))
        require(
            isinstance(found, str) and found in DIAGNOSES,
            f"For {name} your function returns {found!r}; it should return one of "
            f"{', '.join(map(repr, DIAGNOSES))}.",
        )
        require(
            repr(copies) == repr((rows, reference)),  # NaN is not equal to itself
            "Your function changes the rows that it is given; work on copies.",
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
    require_function(answer)
    generator = torch.Generator().manual_seed(73)
    official, width = GAMMA_INPUTS["official"], 256

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight, bias, into = drawn(7, 5), drawn(7), 0.1 * drawn(5, width)
    asked: list[Tensor] = []

    def features(gamma: Tensor) -> Tensor:
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
        asked.append(gamma.detach().double())
        return official(gamma.double())

    found = unchanged(
        "Your function changes one of its inputs; make a new tensor, without `+=`. Called twice, "
        "it would add the shift twice.",
        answer, weight, bias, into, features,
    )  # fmt: skip
    if isinstance(found, Tensor) and tuple(found.shape) in ((1, 7), (7, 1)):
        raise Wrong(
            f"Your bias has shape {tuple(found.shape)}; features returns one row for each gamma, "
            f"and a bias has none: it should have shape (7,)."
        )
    found = require_shape(found, (7,), "Your bias").detach().double()

    def exact(gamma: Tensor) -> Tensor:
        return official(gamma.double())

    def shift(gamma: float) -> Tensor:
        return weight @ (into @ exact(torch.tensor([gamma]))[0])

    known = worked_out(
        KNOWN["fold"], W=weight, b=bias, P=into, f=exact, s=shift, silu=torch.nn.functional.silu
    )
    refuse(found, known, rtol=1e-5, atol=1e-7)
    if not torch.allclose(found, bias + shift(1.0), rtol=1e-4, atol=1e-5):
        if asked and not all(bool((gamma == 1).all()) for gamma in asked):
            met = _listed(torch.cat(asked))
            raise Wrong(
                f"You ask for the features of gamma = {met}. Where on the chord is a student at "
                f"inference?"
            )
        raise Wrong(
            "The shape fits, the values do not. Put the sum tau + P e into the layer, multiply "
            "out, and see which terms do not depend on tau."
        )
    return "One vector less to feed, and stock diffusers needs to know nothing of gamma."


def _listed(gamma: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in gamma.tolist())

"""The checks of lesson 07: right answers in several styles pass, plausible mistakes are named."""

import math
import statistics

import numpy as np
import pytest
import torch

from slam_course.lesson_07 import checks as checks
from slam_edu.sd.tracking import BIN_COLUMNS, COLUMNS

# -------------------------------------------------------------------- exercise 1


def cost(updates, batch, w, image, text, samples):
    unet = (2 if w > 0 else 1) + 1 + 1 + 2
    encoded = updates * batch if samples is None else samples
    return updates * batch * unet + encoded * (image + text)


def cost_by_parts(updates, batch, w, image, text, samples):
    n = updates * batch
    teacher = n if w == 0 else 2 * n
    target, student, backward = n, n, 2 * n
    if samples is None:
        samples = n
    return teacher + target + student + backward + samples * image + samples * text


def cost_in_a_loop(updates, batch, w, image, text, samples):
    total = torch.zeros(()) if samples is None else torch.tensor(samples * (image + text))
    total = total.double()
    for _ in range(updates * batch):
        total = total + (image + text if samples is None else 0) + 5 + bool(w)
    return total


@pytest.mark.parametrize("answer", [cost, cost_by_parts, cost_in_a_loop])
def test_right_costs(answer):
    verdict = checks.cost(answer)
    assert verdict.passed, verdict.message


def costs(unet=lambda w: 6 if w else 5, *, each=None, kept=None, n=lambda u, b: u * b):
    """A wrong cost: of the UNet a sample, of encoding without a cache, and of filling one."""
    each = each or (lambda n, u, i, t: n * (i + t))
    kept = kept or (lambda s, n, u, i, t: s * (i + t))

    def answer(updates, batch, w, image, text, samples):
        count = n(updates, batch)
        encoding = (
            each(count, updates, image, text)
            if samples is None
            else kept(samples, count, updates, image, text)
        )
        return count * unet(w) + encoding

    return answer


WRONG_COSTS = {
    "one sample an update": (costs(n=lambda u, b: u), "one sample an update"),
    "one sample": (costs(n=lambda u, b: 1), "one sample's share"),
    "teacher once": (costs(lambda w: 5), "one forward pass of the UNet a sample is missing"),
    "backward once": (costs(lambda w: 5 if w else 4), "one forward pass of the UNet"),
    "no backward": (costs(lambda w: 4 if w else 3), "two forward passes a sample are missing"),
    "teacher once, no backward": (costs(lambda w: 3), "three forward passes"),
    "everybody learns": (costs(lambda w: 12), "Who is trained?"),
    "target learns": (costs(lambda w: 8 if w else 7), "Who has a backward pass"),
    "guided target": (costs(lambda w: 7 if w else 5), "somebody guided who is not"),
    "no encoding": (costs(each=lambda n, u, i, t: 0), "through their encoders in every update"),
    "no captions": (costs(each=lambda n, u, i, t: n * i), "the captions are missing"),
    "no images": (costs(each=lambda n, u, i, t: n * t), "the images are missing"),
    "empty prompt each time": (
        costs(each=lambda n, u, i, t: n * (i + 2 * t)), "the empty prompt is the same",
    ),
    "cache ignored": (
        costs(kept=lambda s, n, u, i, t: n * (i + t)), "still encode every sample of every",
    ),
    "free cache": (costs(kept=lambda s, n, u, i, t: 0), "filling it is not free"),
    "filled each update": (
        costs(kept=lambda s, n, u, i, t: u * s * (i + t)), "filled once, not in every update",
    ),
    "filled each sample": (
        costs(kept=lambda s, n, u, i, t: n * s * (i + t)), "not for every sample",
    ),
    "one of it": (costs(kept=lambda s, n, u, i, t: i + t), "it has more"),
    "cache without text": (costs(kept=lambda s, n, u, i, t: s * i), "the captions are missing"),
    "text not cached": (
        costs(kept=lambda s, n, u, i, t: s * i + n * t), "text states lie in it, too",
    ),
    "latents not cached": (
        costs(kept=lambda s, n, u, i, t: s * t + n * i), "latents lie in it, too",
    ),
    "only what is used": (
        costs(kept=lambda s, n, u, i, t: min(s, n) * (i + t)), "filled with all 50",
    ),
    "unet for the cache": (
        lambda u, b, w, i, t, s: (u * b if s is None else s) * (6 + i + t),
        "not called for the cache's samples",
    ),
    "guidance always": (costs(lambda w: 6), "who is called once less"),
    "no teacher at 0": (costs(lambda w: 6 if w else 4), "still called for the prompt"),
    "guidance by its size": (
        costs(lambda w: 6 if w >= 1 else 5), "does not depend on how large w is",
    ),
    "text": (lambda *given: "126", "it should be a number"),
    "infinite": (lambda *given: math.inf, "a finite number"),
    "odd": (lambda *given: 12345.0, "neither right nor a mistake"),
    "stub": (lambda *given: ..., "no answer yet"),
    "no function": (126.0, "give it your function"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "sentence"), WRONG_COSTS.values(), ids=WRONG_COSTS)
def test_wrong_costs(answer, sentence):
    verdict = checks.cost(answer)
    assert not verdict.passed
    assert sentence in verdict.message


# -------------------------------------------------------------------- exercise 2

HEALTHY, SKIPS, HIGH, ONE = checks.DIAGNOSES


def mean(values):
    there = [v for v in values if v == v]
    return sum(there) / len(there)


def means(rows, columns=BIN_COLUMNS):
    return [mean(row[name] for row in rows) for name in columns]


def losses(rows, last=3):
    """Losses of the last third, or of all rows."""
    return [row["loss"] for row in rows[-(len(rows) // last) :]]


def diagnose(rows, reference):
    if rows[-1]["skipped"] > rows[len(rows) // 2]["skipped"]:
        return SKIPS
    if mean(losses(rows)) > 5 * mean(losses(reference)):
        return HIGH
    tenths = means(rows)
    return ONE if max(tenths) > 0.9 * sum(tenths) else HEALTHY


def diagnose_with_numpy(rows, reference):
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    late = table["skipped"][len(rows) // 2 :]
    if late.max() > late.min():
        return SKIPS
    mine = np.array_split(table["loss"], 3)[-1]
    theirs = np.array_split([row["loss"] for row in reference], 3)[-1]
    if np.nanmean(mine) / np.nanmean(theirs) > 5:
        return HIGH
    tenths = np.nanmean([table[f"loss_bin{i}"] for i in range(10)], axis=1)
    return ONE if tenths.max() / tenths.sum() > 0.9 else HEALTHY


def diagnose_by_medians(rows, reference):
    """Other statistics and another order of the questions, on the same signs."""
    tenths = []
    for name in BIN_COLUMNS:
        tenths.append(statistics.median([r[name] for r in rows if not math.isnan(r[name])]))
    if max(tenths) / sum(tenths) > 0.9:
        return ONE
    if rows[-1]["skipped"] - rows[len(rows) // 2 - 1]["skipped"] >= 1:
        return SKIPS
    mine, theirs = (
        statistics.median([loss for loss in losses(part) if not math.isnan(loss)])
        for part in (rows, reference)
    )
    return HIGH if mine > 5 * theirs else HEALTHY


@pytest.mark.parametrize("answer", [diagnose, diagnose_with_numpy, diagnose_by_medians])
def test_right_diagnoses(answer):
    verdict = checks.diagnosis(answer)
    assert verdict.passed, verdict.message


def differs(skips=None, high=None, one=None):
    """The right answer with one of its signs replaced."""

    def answer(rows, reference):
        half = len(rows) // 2
        tenths = means(rows)
        if (skips or (lambda rows: rows[-1]["skipped"] > rows[half]["skipped"]))(rows):
            return SKIPS
        if (high or (lambda a, b: mean(losses(a)) > 5 * mean(losses(b))))(rows, reference):
            return HIGH
        sign = one or (lambda rows: max(tenths) > 0.9 * sum(tenths))
        return ONE if sign(rows) else HEALTHY

    return answer


def plain_means(rows):
    return [sum(row[name] for row in rows) / len(rows) for name in BIN_COLUMNS]


def in_place(rows, reference):
    for row in rows:
        row["loss"] = 0.0 if math.isnan(row["loss"]) else row["loss"]
    return diagnose(rows, reference)


def reverses(rows, reference):
    reference.reverse()
    return HEALTHY


def shares(rows):
    """The largest share that a tenth has of a row's error, for each row."""
    found = []
    for row in rows:
        there = [row[name] for name in BIN_COLUMNS if not math.isnan(row[name])]
        found.append(max(there) / sum(there))
    return found


WRONG_DIAGNOSES = {
    "all healthy": (lambda rows, ref: HEALTHY, "does it grow there"),
    "all sick": (lambda rows, ref: HIGH, "Its last third is what counts"),
    "any skipped": (
        differs(skips=lambda rows: rows[-1]["skipped"] > 0), "in half precision",
    ),
    "many skipped": (
        differs(skips=lambda rows: rows[-1]["skipped"] > 15), "begins to skip updates",
    ),
    "a NaN loss": (
        differs(skips=lambda rows: any(math.isnan(r["loss"]) for r in rows)), "last quarter",
    ),
    "NaN is divergence": (
        differs(
            skips=lambda rows: False,
            high=lambda rows, ref: any(math.isnan(r["loss"]) for r in rows),
        ),
        "calls this one 'learning rate too high': a run that skips updates",
    ),
    "must fall": (
        differs(high=lambda rows, ref: mean(losses(rows)) > 0.5 * mean(losses(rows[:8], 1))),
        "level from the first row",
    ),
    "its own first row": (
        differs(high=lambda rows, ref: mean(losses(rows)) > 5 * rows[0]["loss"]),
        "in its first row already",
    ),
    "its own first third": (
        differs(high=lambda rows, ref: mean(losses(rows))
                > 2 * mean(losses(rows[: len(rows) // 3], 1))),
        "Its own first rows say nothing",
    ),
    "whole logs": (
        differs(high=lambda rows, ref: mean(losses(rows, 1)) > 1.5 * mean(losses(ref))),
        "twelve times as high",
    ),
    "the highest row": (
        differs(high=lambda rows, ref: max(losses(rows, 1)) > 5 * mean(losses(ref))),
        "twelve times as high",
    ),
    "highest against highest": (
        differs(high=lambda rows, ref: max(losses(rows, 1)) > 5 * max(losses(ref, 1))),
        "Compare the mean loss",
    ),
    "the first rows": (
        differs(high=lambda rows, ref: rows[0]["loss"] > 5 * ref[0]["loss"]), "jumps up after",
    ),
    "any more": (
        differs(high=lambda rows, ref: mean(losses(rows)) > 1.2 * mean(losses(ref))),
        "at twice the reference's loss",
    ),
    "an absolute loss": (
        differs(high=lambda rows, ref: rows[-1]["loss"] > 0.1), "a thousand times as large",
    ),
    "the gradient's norm": (
        differs(high=lambda rows, ref: rows[-1]["grad_norm"] > 100), "norm is large all along",
    ),
    "half in one tenth": (
        differs(one=lambda rows: max(means(rows)) > 0.4 * sum(means(rows))), "about half",
    ),
    "noise alone": (
        differs(one=lambda rows: means(rows)[9] > 0.9 * sum(means(rows))), "fourth tenth",
    ),
    "NaN not left out": (
        differs(one=lambda rows: max(plain_means(rows)) > 0.9 * sum(plain_means(rows))),
        "with tenths that had no sample",
    ),
    "one row": (differs(one=lambda rows: max(shares(rows)) > 0.7), "means over the rows"),
    "an absolute error": (
        differs(one=lambda rows: max(means(rows)) > 10), "NaN left out",
    ),
    "no third sign": (differs(one=lambda rows: False), "NaN must be left out"),
    "no second sign": (differs(high=lambda rows, ref: False), "Compare the mean loss"),
    "no first sign": (differs(skips=lambda rows: False), "in the second half of the log"),
    "true or false": (lambda rows, ref: diagnose(rows, ref) == HEALTHY, "should return one of"),
    "another word": (
        lambda rows, ref: diagnose(rows, ref).replace("healthy", "fine"), "'fine'",
    ),
    "in place": (in_place, "changes the rows"),
    "reference in place": (reverses, "changes the rows"),
    "stub": (lambda rows, ref: ..., "no answer yet"),
    "no function": ("healthy", "give it your function"),
    "raises": (lambda rows, ref: rows["loss"], "Your code raised TypeError"),
    "one argument": (lambda rows: HEALTHY, "Your code raised TypeError"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "sentence"), WRONG_DIAGNOSES.values(), ids=WRONG_DIAGNOSES)
def test_wrong_diagnoses(answer, sentence):
    verdict = checks.diagnosis(answer)
    assert not verdict.passed
    assert sentence in verdict.message, verdict.message


def test_logs_have_the_columns_of_a_run():
    assert tuple(checks.sick_log()[0]) == COLUMNS
    for _, rows, reference, _ in checks._patients():
        assert all(tuple(row) == COLUMNS for row in [*rows, *reference])
    assert {right for *_, right in checks._patients()} == set(checks.DIAGNOSES)


def test_the_references_are_healthy():
    for _, _, reference, _ in checks._patients():
        assert diagnose(reference, reference) == HEALTHY


def test_the_log_to_try_is_one_that_skips():
    assert diagnose(checks.sick_log(), checks.sick_log()) == SKIPS


# -------------------------------------------------------------------- exercise 3


def fold(W, b, P, features):
    e = features(torch.ones(1))[0]
    return b + W @ (P @ e)


def fold_with_linear(W, b, P, features):
    shift = torch.nn.functional.linear(features(torch.ones(1, dtype=torch.float64)), P)
    return torch.nn.functional.linear(shift, W, b).squeeze(0)


def fold_by_difference(W, b, P, features):
    tau = torch.randn(W.shape[1], dtype=W.dtype)
    e = features(torch.tensor([1.0, 1.0]))[1]
    with_gamma = W @ (tau + P @ e) + b
    return with_gamma - W @ tau


def fold_as_one_matrix(W, b, P, features):
    return b.clone().add_((features(torch.ones(3)) @ (W @ P).T).mean(0))


RIGHT_FOLDS = [fold, fold_with_linear, fold_by_difference, fold_as_one_matrix]


@pytest.mark.parametrize("answer", RIGHT_FOLDS)
def test_right_folds(answer):
    verdict = checks.fold(answer)
    assert verdict.passed, verdict.message


def folds(change):
    """A wrong answer from the layer and the shift of a gamma."""

    def answer(W, b, P, features):
        return change(W, b, P, lambda gamma: W @ (P @ features(torch.full((1,), gamma))[0]))

    return answer


def fold_in_place(W, b, P, features):
    b += W @ (P @ features(torch.ones(1))[0])
    return b


def silu(x):
    return torch.nn.functional.silu(x)


WRONG_FOLDS = {
    "old bias": (folds(lambda W, b, P, s: b.clone()), "nothing is folded in"),
    "shift alone": (folds(lambda W, b, P, s: s(1.0)), "the old bias is still needed"),
    "minus": (folds(lambda W, b, P, s: b - s(1.0)), "wrong sign"),
    "twice": (folds(lambda W, b, P, s: b + 2 * s(1.0)), "added twice"),
    "gamma 0": (folds(lambda W, b, P, s: b + s(0.0)), "the clean end"),
    "gamma a half": (folds(lambda W, b, P, s: b + s(0.5)), "gamma = 0.5"),
    "gamma 10": (folds(lambda W, b, P, s: b + s(10.0)), "gamma = 10. `features` takes gamma"),
    "e of gamma": (folds(lambda W, b, P, s: b + s(-9.0)), "gamma = -9. `features` takes gamma"),
    "another gamma": (folds(lambda W, b, P, s: b + s(0.35)), "the features of gamma = 0.35"),
    "mean over gammas": (
        lambda W, b, P, f: b + W @ (P @ f(torch.linspace(0, 1, 3)).mean(0)),
        "gamma = 0, 0.5, 1",
    ),
    "activation between": (
        lambda W, b, P, f: b + W @ silu(P @ f(torch.ones(1))[0]), "no activation between",
    ),
    "activation after": (folds(lambda W, b, P, s: silu(b + s(1.0))), "after this layer"),
    "multiplied": (folds(lambda W, b, P, s: b * s(1.0)), "not multiplied"),
    "row kept": (
        lambda W, b, P, f: b + f(torch.ones(1)) @ (W @ P).T, "has shape (1, 7)",
    ),
    "only P": (lambda W, b, P, f: P @ f(torch.ones(1))[0], "has shape (5,)"),
    "P beside b": (lambda W, b, P, f: b + P @ f(torch.ones(1))[0], "Your code raised"),
    "no W": (
        lambda W, b, P, f: b + torch.ones_like(W) @ (P @ f(torch.ones(1))[0]), "multiply out",
    ),
    "scalar gamma": (lambda W, b, P, f: b + W @ (P @ f(torch.ones(()))[0]), "shape (B,)"),
    "integer gamma": (lambda W, b, P, f: b + W @ (P @ f(torch.tensor([1]))[0]), "such as"),
    "in place": (fold_in_place, "changes one of its inputs"),
    "a number": (lambda W, b, P, f: 0.0, "is a float"),
    "stub": (lambda W, b, P, f: ..., "no answer yet"),
    "no function": (torch.zeros(7), "give it your function"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "sentence"), WRONG_FOLDS.values(), ids=WRONG_FOLDS)
def test_wrong_folds(answer, sentence):
    verdict = checks.fold(answer)
    assert not verdict.passed
    assert sentence in verdict.message, verdict.message

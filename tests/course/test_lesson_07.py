"""Lesson 07: its checks, what a machine can run, its figures and its explorer."""

import math
import statistics
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from slam_course.images import mosaic
from slam_course.lesson_07 import budget as module
from slam_course.lesson_07 import checks, explorer, figures
from slam_course.lesson_07.budget import Budget, choose_preset, count_samples, data_samples
from slam_edu.distill import SubPathDistiller
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import (
    decode_latents,
    empty_condition,
    encode_images,
    text_condition,
)
from slam_edu.sd.config import load_config
from slam_edu.sd.networks import build_networks
from slam_edu.sd.plan import GIB
from slam_edu.sd.tiny import tiny_pipeline
from slam_edu.sd.tracking import BIN_COLUMNS, COLUMNS
from tests.course import trying

# -------------------------------------------------------------------- exercise 1


def costs(text="", at=""):
    """The right cost, or in one part of the check that of a formula."""

    def answer(u, b, w, i, t, s):
        n = u * b
        cache = "no cache" if s is None else "small cache" if s < n else "large cache"
        if at in (cache if w else "no guidance", f"w = {w}"):
            return eval(text)
        return n * (5 + (w > 0)) + (n if s is None else s) * (i + t)

    return answer


def cost_in_a_loop(updates, batch, w, image, text, samples):
    total = torch.tensor(0.0 if samples is None else samples * (image + text)).double()
    for _ in range(updates * batch):
        total = total + (image + text if samples is None else 0) + 5 + bool(w)
    return total


KNOWN = {part: [(costs(text, part), words) for text, words in checks.KNOWN[part]]
         for part in checks.KNOWN}  # fmt: skip
COSTS = [
    *KNOWN["no cache"],
    *KNOWN["small cache"][:-1],
    *KNOWN["large cache"],
    *KNOWN["small cache"][-1:],
    *KNOWN["no guidance"][:2],
    (costs("n * (5 + i + t)", "w = 0.5"), "does not depend on how large w is"),
    (lambda *given: "126", "it should be one number"),
    (lambda *given: math.inf, "should be finite"),
    (lambda *given: 12345.0, "neither right nor a mistake"),
    (lambda *given: ..., "no answer yet"),
    (126.0, "give it your function"),
]

# -------------------------------------------------------------------- exercise 2

HEALTHY, SKIPS, HIGH, ONE = checks.DIAGNOSES


def mean(values):
    there = [v for v in values if v == v]
    return sum(there) / len(there)


def means(rows):
    return [mean(row[name] for row in rows) for name in BIN_COLUMNS]


def losses(rows, last=3):
    """Losses of the last third, or of all rows."""
    return [row["loss"] for row in rows[-(len(rows) // last) :]]


def late(rows):
    return rows[-1]["skipped"] > rows[len(rows) // 2]["skipped"]


def diagnoses(skips=late, high=lambda a, b: mean(losses(a)) > 5 * mean(losses(b)),
              one=lambda rows: max(means(rows)) > 0.9 * sum(means(rows))):  # fmt: skip
    """The right answer, or with one of its signs replaced."""

    def answer(rows, reference):
        if skips(rows):
            return SKIPS
        if high(rows, reference):
            return HIGH
        return ONE if one(rows) else HEALTHY

    return answer


def diagnose_with_numpy(rows, reference):
    """All three signs first, by numpy's means, which leave NaN out."""
    with warnings.catch_warnings(action="ignore"):  # of a mean over nothing, which is NaN
        tenths = [np.nanmean([row[name] for row in rows]) for name in BIN_COLUMNS]
        late_rows, late_others = (
            np.nanmean([row["loss"] for row in part[-max(1, round(len(part) / 3)) :]])
            for part in (rows, reference)
        )
    grows = rows[-1]["skipped"] - rows[(len(rows) - 1) // 2]["skipped"]
    signs = (grows > 0, late_rows / late_others > 5, max(tenths) / sum(tenths) > 0.9)
    return next(
        (name for name, sign in zip(checks.DIAGNOSES[1:], signs, strict=True) if sign), HEALTHY
    )


def median(values):
    return statistics.median(v for v in values if v == v)


def sums(rows):
    return [sum(row[n] for row in rows if row[n] == row[n]) for n in BIN_COLUMNS]


def maxima(rows):
    return [max(row[n] for row in rows if row[n] == row[n]) for n in BIN_COLUMNS]


def tail(rows, share):
    return [row["loss"] for row in rows[-max(1, int(len(rows) * share)) :]]


def shares(rows):
    """The largest share that a tenth has of a row's error, for each row."""
    tenths = [[row[n] for n in BIN_COLUMNS if not math.isnan(row[n])] for row in rows]
    return [max(there) / sum(there) for there in tenths]


def plain_means(rows):
    return [sum(row[name] for row in rows) / len(rows) for name in BIN_COLUMNS]


def nan_loss(rows):
    return any(math.isnan(row["loss"]) for row in rows)


right_diagnosis = diagnoses()


def turned(order):
    """The right signs in another order."""
    signs = [
        (lambda a, b: late(a), SKIPS),
        (lambda a, b: mean(losses(a)) > 5 * mean(losses(b)), HIGH),
        (lambda a, b: max(means(a)) > 0.9 * sum(means(a)), ONE),
    ]
    return lambda a, b: next((signs[i][1] for i in order if signs[i][0](a, b)), HEALTHY)


SKIP_SIGNS = {
    "r[-1]['skipped'] > 0": "in half precision",
    "r[-1]['skipped'] > 15": "begins to skip updates",
    "nan_loss(r)": "until two fifths",
    "r[-1]['skipped'] > r[0]['skipped']": "until two fifths",
    "r[-1]['skipped'] > r[2 * len(r) // 3]['skipped']": "early in its second half",
    "r[-1]['skipped'] > r[len(r) // 2]['skipped'] + 1": "skips one update",
    "r[-2]['skipped'] > r[len(r) // 2]['skipped']": "in its last row",
    "r[-1]['skipped'] > 1.5 * r[len(r) // 2]['skipped']": "and one more late",
    "False": "in the second half of the log",
}
HIGH_SIGNS = {
    "mean(losses(r)) > 0.5 * mean(losses(r[:8], 1))": "level from the first row",
    "mean(losses(r)) > 5 * r[0]['loss']": "in its first row already",
    "mean(losses(r)) > 2 * mean(losses(r[: len(r) // 3], 1))": "first rows may be high",
    "mean(losses(r, 1)) > 1.5 * mean(losses(ref))": "twelve times as high",
    "max(losses(r, 1)) > 5 * mean(losses(ref))": "twelve times as high",
    "max(losses(r, 1)) > 5 * max(losses(ref, 1))": "of 12 rows",
    "r[0]['loss'] > 5 * ref[0]['loss']": "jumps up after",
    "mean(losses(r)) > 1.2 * mean(losses(ref))": "at 4.6 times",
    "mean(losses(r)) > 4.5 * mean(losses(ref))": "at 4.6 times",
    "mean(losses(r)) > 5.5 * mean(losses(ref))": "at 5.4 times",
    "median(losses(r)) > 5 * median(losses(ref))": "begin of its last third",
    "mean(tail(r, 0.5)) > 5 * mean(tail(ref, 0.5))": "just before its last third",
    "mean(tail(r, 0.25)) > 5 * mean(tail(ref, 0.25))": "begin of its last third",
    "r[-1]['loss'] > 5 * ref[-1]['loss']": "very last row",
    "mean(losses(r)) > 5 * mean(losses(ref, 1))": "at 5.4 times",
    "mean(row['loss'] for row in r[-(len(ref) // 3):]) > 5 * mean(losses(ref))": "just before",
    "r[-1]['loss'] > 0.1": "a thousand times as large",
    "r[-1]['grad_norm'] > 100": "norm is large all along",
    "False": "Is the mean loss",
}
ONE_SIGNS = {
    "max(means(r)) > 0.4 * sum(means(r))": "about half",
    "means(r)[9] > 0.9 * sum(means(r))": "fourth tenth",
    "max(plain_means(r)) > 0.9 * sum(plain_means(r))": "few rows where it has a sample",
    "max(shares(r)) > 0.7": "means over the rows",
    "max(means(r)) > 10": "NaN left out",
    "max(means(r)) > 0.86 * sum(means(r))": "holds 87 %",
    "max(means(r)) > 0.94 * sum(means(r))": "first tenth holds 93 %",
    "max(means(r)[1:]) > 0.9 * sum(means(r))": "first tenth holds 93 %",
    "max(means(r[len(r) // 2:])) > 0.9 * sum(means(r[len(r) // 2:]))": "means over all rows",
    "max(maxima(r)) > 0.9 * sum(maxima(r))": "in the first row alone",
    "max(sums(r)) > 0.9 * sum(sums(r))": "others often have no sample",
    "False": "NaN must be left out",
}
DIAGNOSES = [
    *[(diagnoses(skips=f), w) for f, w in trying.formulas("r", globals(), SKIP_SIGNS)],
    *[(diagnoses(high=f), w) for f, w in trying.formulas("r, ref", globals(), HIGH_SIGNS)],
    *[(diagnoses(one=f), w) for f, w in trying.formulas("r", globals(), ONE_SIGNS)],
    *[(turned(order), "with two signs") for order in ((1, 0, 2), (2, 0, 1), (0, 2, 1))],
    *trying.formulas("rows, ref", globals(), {
        "HEALTHY": "does it grow there",
        "HIGH": "Its last third is what counts",
        "right_diagnosis(rows, ref) == HEALTHY": "should return one of",
        "right_diagnosis(rows, ref).replace('healthy', 'fine')": "'fine'",
        "(rows[0].update(loss=0.0), right_diagnosis(rows, ref))[1]": "itself; make a new one",
        "(ref.reverse(), HEALTHY)[1]": "itself; make a new one",
        "...": "no answer yet",
        "rows['loss']": "Your code raised TypeError",
    }),
    ("healthy", "give it your function"),
]  # fmt: skip


def test_the_logs_are_a_runs_and_the_references_healthy():
    assert tuple(checks.sick_log()[0]) == COLUMNS
    assert right_diagnosis(checks.sick_log(), checks.sick_log()) == SKIPS
    for _, rows, reference, _ in checks._patients():
        assert all(tuple(row) == COLUMNS for row in [*rows, *reference])
        assert right_diagnosis(reference, reference) == HEALTHY


# -------------------------------------------------------------------- exercise 3


def silu(x):
    return torch.nn.functional.silu(x)


def fold_by_difference(W, b, P, features):
    tau = torch.randn(W.shape[1], dtype=W.dtype)
    return W @ (tau + P @ features(torch.tensor([1.0, 1.0]))[1]) + b - W @ tau


SHIFT = "(lambda s: {})(lambda g: W @ (P @ f(torch.full((1,), g))[0]))"
FOLDED = [(SHIFT.format(text), words) for text, words in checks.KNOWN["fold"]]
FOLDS = trying.formulas("W, b, P, f", globals(), {
    **dict(FOLDED[:6]),
    SHIFT.format("b + s(10.0)"): "gamma = 10. `features` takes gamma",
    SHIFT.format("b + s(0.35)"): "the features of gamma = 0.35",
    **dict(FOLDED[6:]),
    "b + f(torch.ones(1)) @ (W @ P).T": "has shape (1, 7)",
    "P @ f(torch.ones(1))[0]": "has shape (5,)",
    "b + P @ f(torch.ones(1))[0]": "Your code raised",
    "b + torch.ones_like(W) @ (P @ f(torch.ones(1))[0])": "multiply out",
    "b + W @ (P @ f(torch.ones(()))[0])": "shape (B,)",
    "b + W @ (P @ f(torch.tensor([1]))[0])": "such as",
    "b.add_(W @ (P @ f(torch.ones(1))[0]))": "changes b itself",
    "0.0": "is a float",
    "...": "no answer yet",
})  # fmt: skip
RIGHT_FOLDS = [
    lambda W, b, P, f: b + W @ (P @ f(torch.ones(1))[0]),
    lambda W, b, P, f: b.clone().add_((f(torch.ones(3)) @ (W @ P).T).mean(0)),
    fold_by_difference,
]
GROUPS = [
    (checks.cost, [costs(), cost_in_a_loop], COSTS),
    (checks.diagnosis, [right_diagnosis, diagnose_with_numpy], DIAGNOSES),
    (checks.fold, RIGHT_FOLDS, FOLDS),
]


test_accepts, test_rejects = trying.tests(GROUPS)


# -------------------------------------------------------------------- budget and calls

DIGITS = load_config("digits", settings=["max_samples=320", "updates=10", "batch=16"])


def test_the_card_decides():
    chosen = [choose_preset(memory) for memory in (None, 13.99, 14.0)]
    assert chosen == ["digits", "digits", "sd15-t4-lora"]


def test_a_budget_adds_up_what_the_plan_counts(monkeypatch):
    plan = SimpleNamespace(
        total=lambda: 3 * GIB,
        disk=lambda: {"teacher": GIB, "checkpoints": 2 * GIB, "cache of a sample": GIB / 320},
        seconds=lambda tflops: 1 / tflops,
        drawing_seconds=lambda tflops: 2.0,
    )
    monkeypatch.setattr(module, "make_plan", lambda config, device: plan)
    parts = {"autoencoder": 0.5e12, "text encoders": 0.1e12, "teacher": 9e12}
    monkeypatch.setattr(module, "sample_parts", lambda plan: parts)

    def found(**changes):
        it = module.budget(DIGITS.replace(**changes), device="cpu", tflops=0.1)
        return it.memory, it.disk, it.minutes * 60

    assert found() == pytest.approx((3, 4, 10 + 320 * 6))
    assert found(cache=False) == pytest.approx((3, 3, 10))
    assert found(data="prompts") == pytest.approx((3, 4, 10 + 320 * 2))
    with pytest.raises(ValueError, match=r"tflops is 0\.0; allowed: a finite number > 0"):
        module.budget(DIGITS, device="cpu", tflops=0.0)
    words = Budget(memory=7.12, disk=5.04, minutes=86.6, device="cuda")
    assert str(words) == "7.1 GiB of the GPU's memory, 5.0 GiB of disk, about 87 min"


def test_samples_of_a_run():
    counts = {
        "max_samples=99": 99,
        "data=prompts draw_count=3": 3 * 512,
        "data=folder data_path=x max_samples=12": 12,
    }
    for settings, count in counts.items():
        assert data_samples(load_config("digits", settings=settings.split())) == count
    with pytest.raises(ValueError, match="data is 'folder' without max_samples"):
        data_samples(load_config("digits", settings=["data=folder", "data_path=x"]))


def test_each_part_is_counted_by_its_samples():
    pipeline = tiny_pipeline()
    with torch.no_grad(), count_samples() as counts:
        latents = encode_images(pipeline.vae, torch.zeros(5, 3, 32, 32), batch=2)
        decode_latents(pipeline.vae, latents[:3])
        cond = text_condition(pipeline, ["a one"] * 4)
        pipeline.unet(latents[:4], 3, encoder_hidden_states=cond.states)
    text_condition(pipeline, ["a one"])  # after the block
    assert counts == {"unet": 4, "vae encoder": 5, "vae decoder": 3, "text encoder": 4}


def test_a_step_calls_the_teacher_twice_with_guidance():
    pipeline = tiny_pipeline()
    config = load_config("digits", settings=["guidance=3"])
    networks = build_networks(config, pipeline.unet)
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    distiller = SubPathDistiller(schedule, config.distill())
    x0, cond = torch.zeros(6, 4, 8, 8), text_condition(pipeline, ["a one"] * 6)
    three = {name: getattr(networks, name) for name in ("teacher", "student", "target")}
    empty = empty_condition(pipeline).expand(6)
    sample = distiller.draw(x0, torch.Generator().manual_seed(0))
    with count_samples() as counts:
        distiller.step(x0, sample, **three, cond=cond, uncond=empty).loss.backward()
    assert counts["unet"] == 6 * 4


# -------------------------------------------------------------------- figures and explorer


def log(seed, rows=12, holes=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(rows):
        luck = torch.randn(12, generator=generator).mul(0.1).exp().tolist()
        row = {"update": 10.0 * (i + 1), "loss": 0.2 * luck[0] / (i + 1), "grad_norm": luck[1]}
        row |= {name: 10.0 ** (k / 3 - 4) * luck[k + 2] for k, name in enumerate(BIN_COLUMNS)}
        found.append(row | dict.fromkeys(BIN_COLUMNS[:holes], math.nan))
    return found


def test_logs_stand_beside_the_references_band():
    mine, references = log(0, 5), [log(2, holes=2), log(3, holes=1)]
    mine[3]["loss"] = math.nan
    fig = figures.beside({"mine": mine, "sick": log(1, 7)}, references)
    lines = {line.get_label(): line for line in fig.axes[0].lines}
    assert np.array_equal(lines["mine"].get_ydata(), [r["loss"] for r in mine], equal_nan=True)
    a, b = (np.array([row["loss"] for row in rows]) for rows in references)
    assert np.allclose(lines["healthy runs"].get_ydata(), np.sqrt(a * b))
    # The first tenth has no sample in any reference.
    assert fig.axes[2].lines[0].get_xdata()[0] == 150
    assert fig.alt.endswith("of mine, sick, over a grey band of 2 healthy runs.")
    trying.described(fig)
    trying.described(figures.beside({"mine": mine}))


def test_late_errors_are_means_of_the_last_third_without_nan():
    rows = log(4, 7)
    rows[-1]["loss_bin4"] = math.nan
    found = figures.late_errors(rows)
    assert found[0] == pytest.approx(mean(row["loss_bin0"] for row in rows[-3:]))
    assert found[4] == pytest.approx(mean(row["loss_bin4"] for row in rows[-3:-1]))


def test_other_figures_are_described(tmp_path):
    t, error = torch.tensor([999, 950, 519, 19]), torch.tensor([0.1, 0.3, 0.01, 0.001])
    batch = figures.errors_by_timestep(t, error, "Errors fall to the right.")
    middles = [line.get_segments()[0][0][1] for line in batch.axes[0].collections[1:]]
    assert middles == pytest.approx([0.001, 0.01, 0.2])
    rates = figures.rates(
        {"teacher, DDIM": {4: 0.1, 8: 0.9}, "after": {1: 0.5}}, "Two lines that rise."
    )
    paths = [tmp_path / "00000000.png", tmp_path / "00001250.png"]
    for path in paths:
        Image.new("RGB", (1800, 40), "red").save(path)
    grids = figures.sample_grids(paths, "Two grids of red.")
    assert [ax.get_title(loc="left") for ax in grids.axes][1] == "after 1,250 updates"
    assert grids.axes[0].images[0].get_array().shape == (20, 900, 3)
    for fig in (batch, rates, grids):
        trying.described(fig)


def test_the_explorer_draws_every_network_from_the_seeds_noise():
    calls = []

    def painter(level):
        def draw(prompts, noise, steps):
            calls.append((prompts, noise))
            shade = noise.mean((1, 2, 3)) * 8 + level + steps / 10 + len(prompts[0]) / 50
            return torch.tanh(shade)[:, None, None, None].expand(-1, 3, 32, 32)

        return draw

    box = explorer.few_steps({"teacher": painter(0), "student": painter(1)}, first=2)
    assert [c.value for c in box.children[:-2]] == ["teacher", "zero", 2, 0]
    trying.walk(box)
    prompts, noise = calls[0]
    assert prompts == ["a red zero on a yellow background"] * 8
    wanted = torch.randn((8, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise, wanted)
    fig = explorer.steps_figure(painter(0), "student", "a red two", 2, 5, (4, 8, 8))
    shown = torch.as_tensor(fig.axes[0].images[0].get_array())
    assert torch.equal(shown, mosaic(painter(0)(["a red two"], calls[-1][1], 2), 4))
    assert fig.alt == 'Eight images for "a red two": student, 2 steps, seed 5.'

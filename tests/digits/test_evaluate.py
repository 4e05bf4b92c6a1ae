"""The judge: what is right, how far two sets of images are apart, and a table that goes on."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from slam_edu.digits import CaptionedDigits, DigitClassifier, read_prompt
from slam_edu.digits.colours import NAMES
from slam_edu.digits.evaluate import (
    Evaluator,
    Scores,
    Setting,
    draw_images,
    feature_distances,
    measure,
    scores,
    table,
)
from slam_edu.digits.evaluate.__main__ import main
from slam_edu.digits.evaluate.table import as_text, part_scores, read_results, settings
from slam_edu.sampling import last, sample_ddim, sample_dpmpp_2m
from slam_edu.sd import LatentDiffusion
from tests.digits.conftest import tiny_pipeline

COUNT = 12
PARTS = {"psnr": 31.25, "digit": 0.5}


class Oracle(DigitClassifier):
    """Reads any image of the held-out digits right, by looking it up; else 0."""

    def __init__(self) -> None:
        super().__init__((8, 8, 8))
        self.known = {}

    def learn(self, images, digits):
        for image, digit in zip(images, digits.tolist(), strict=True):
            self.known[image.numpy().tobytes()] = digit

    def read(self, images, batch=256):
        return torch.tensor([self.known.get(image.numpy().tobytes(), 0) for image in images])


@pytest.fixture(scope="module")
def evaluator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        oracle = Oracle().eval()
    made = Evaluator(COUNT, classifier=oracle)
    oracle.learn(made.asked.images, made.asked.digit)
    return made


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny_pipeline())


def features(count, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(128, 128, generator=torch.Generator().manual_seed(99)) / 11
    return (torch.randn(count, 128, generator=generator) @ mixing + shift).float()


# -------------------------------------------------------------------- distances


def test_the_frechet_distance_is_the_closed_formula():
    a, b = features(400, 1), 1.3 * features(300, 2, shift=0.2)
    x, y = a.double().numpy(), b.double().numpy()
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c @ d)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root.real)
    assert feature_distances(a, b)[0] == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance_is_the_unbiased_mean_discrepancy():
    """As large as the subsets are, every subset is the whole set."""
    a, b = features(60, 1), 1.3 * features(60, 2, shift=0.2)

    def kernel(p, q):
        return (p.double() @ q.double().T / 128 + 1) ** 3

    n = len(a)
    same = [(k.sum() - k.trace()) / (n * (n - 1)) for k in (kernel(a, a), kernel(b, b))]
    expected = sum(same) - 2 * kernel(a, b).mean()
    _, found, spread = feature_distances(a, b)
    assert found == pytest.approx(float(expected), rel=1e-9)
    assert spread < 1e-12
    _, found, spread = feature_distances(features(700, 1), 1.3 * features(600, 2, shift=0.2))
    assert found == pytest.approx(float(expected), rel=0.2)
    assert spread > 0


def test_no_distance_to_the_same_set_and_more_with_a_shift():
    a = features(600)
    same, kernel, _ = feature_distances(a, a)
    assert same == pytest.approx(0, abs=1e-6)
    # Two subsets share members, which the unbiased estimate does not know: a little below 0.
    assert -0.04 < kernel <= 0
    floor = feature_distances(a, features(600, 1))
    found = [feature_distances(a, features(600, 1, shift)) for shift in (0.1, 0.2, 0.4)]
    assert floor[0] < found[0][0] < found[1][0] < found[2][0]
    assert floor[1] < found[0][1] < found[1][1] < found[2][1]
    # Of 128 features, each is .4 away.
    assert found[2][0] - floor[0] == pytest.approx(128 * 0.4**2, rel=0.1)


def test_distances_repeat_and_leave_the_global_generator_alone():
    a, b = features(700), features(600, 1, 0.1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = feature_distances(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert feature_distances(a, b) == first


def test_a_small_distance_survives_large_features():
    """Sums of squares in float32 would lose it."""
    a, b = features(500, 1), features(500, 2)
    near = feature_distances(a, b)[0]
    assert feature_distances(a + 300, b + 300)[0] == pytest.approx(near, rel=1e-2)


# -------------------------------------------------------------------- the evaluator


def test_prompts_ask_for_what_the_held_out_images_show(evaluator):
    batch = CaptionedDigits("test").batch(range(0, 2 * COUNT, 2), scores.HELD_OUT_SEED)
    assert torch.equal(evaluator.asked.images, batch.images)
    for i, prompt in enumerate(evaluator.prompts):
        asked = read_prompt(prompt)
        assert asked.digit == batch.digit[i]
        assert asked.stroke == NAMES[batch.stroke[i]]
        assert asked.background == NAMES[batch.background[i]]
    # The other side of the distances is of other digits.
    other = CaptionedDigits("test").batch(range(1, 2 * COUNT, 2), scores.HELD_OUT_SEED)
    with torch.no_grad():
        expected = evaluator.classifier.features(other.images)
    assert evaluator.reference.shape == (COUNT, 128)
    torch.testing.assert_close(evaluator.reference, expected, rtol=1e-4, atol=1e-5)


def test_right(evaluator):
    asked = evaluator.asked
    assert evaluator.right(asked.images).all()
    assert evaluator.right(asked.images[:5]).shape == (5, 3)
    # Exchanged images: each column is judged for itself.
    order = torch.arange(COUNT).roll(1)
    found = evaluator.right(asked.images[order])
    for column, name in enumerate(("digit", "stroke", "background")):
        value = getattr(asked, name)
        assert torch.equal(found[:, column], value[order] == value)
        assert not found[:, column].all()
    # Images of something else are wrong in all.
    noise = torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = evaluator.right(noise)
    assert not found[:, 1:].any()
    assert torch.equal(found[:, 0], asked.digit == 0)
    # With other wishes than the prompts'.
    other = CaptionedDigits("test").batch(range(0, 2 * COUNT, 2), 8)
    found = evaluator.right(asked.images, other)
    assert found[:, 0].all()
    assert torch.equal(found[:, 1], other.stroke == asked.stroke)
    assert not found[:, 1].all()


def test_scores(evaluator):
    images = evaluator.asked.images.clone()
    images[:3] = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    digits = evaluator.asked.digit[:3]
    found = evaluator.score(images)
    assert found.count == COUNT
    assert found.digit == pytest.approx((9 + int((digits == 0).sum())) / COUNT)
    assert found.stroke == found.background == found.all_right == 9 / COUNT
    expected = feature_distances(evaluator.reference, evaluator.features(images))
    assert (found.frechet, found.kernel, found.kernel_std) == expected
    floor = evaluator.floor()
    assert (floor.digit, floor.stroke, floor.background, floor.all_right) == (1, 1, 1, 1)
    assert floor.frechet < found.frechet
    itself = evaluator.score(images, reference=evaluator.features(images))
    assert itself.frechet == pytest.approx(0, abs=1e-6)
    assert itself.all_right == found.all_right


def test_all_right_is_of_one_image(evaluator, monkeypatch):
    """Each of three images has one thing wrong: none of them is right in all."""
    right = torch.ones(COUNT, 3, dtype=torch.bool)
    right[0, 0] = right[1, 1] = right[2, 2] = right[3, 2] = False
    monkeypatch.setattr(evaluator, "right", lambda images: right)
    found = evaluator.score(evaluator.asked.images)
    assert found.digit == found.stroke == 11 / COUNT
    assert found.background == 10 / COUNT
    assert found.all_right == 8 / COUNT


@pytest.mark.parametrize("count", [0, 1, 2001, 2.0, True])
def test_a_wrong_count(count, evaluator):
    with pytest.raises(ValueError, match=rf"count is {count}; allowed: an integer from 2 to 2000"):
        Evaluator(count, classifier=evaluator.classifier)


def test_another_number_of_images(evaluator):
    for images in (evaluator.asked.images[:5], evaluator.asked.images.repeat(2, 1, 1, 1)):
        with pytest.raises(ValueError) as caught:
            evaluator.score(images)
        assert f"there are {len(images)} images for 12 prompts; allowed: one" in str(caught.value)


# -------------------------------------------------------------------- drawing


@pytest.mark.parametrize(
    ("sampler", "sample"), [("ddim", sample_ddim), ("dpmpp_2m", sample_dpmpp_2m)]
)
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_images_are_the_samplers(sampler, sample, guidance, model, evaluator):
    setting = Setting(sampler=sampler, steps=3, guidance=guidance)
    prompts = evaluator.prompts[:5]
    noise = model.draw_noise(5, torch.Generator().manual_seed(1))
    images = draw_images(model, prompts, setting, noise, batch=2)
    uncond = model.encode_prompts([""] * 5) if guidance else None
    with torch.no_grad():
        expected = last(
            sample(
                model.network, noise, model.schedule, 3, prediction_type="epsilon",
                cond=model.encode_prompts(prompts), uncond=uncond, guidance=guidance,
            )
        )  # fmt: skip
    assert images.shape == (5, 3, 32, 32)
    assert not images.requires_grad
    torch.testing.assert_close(images, model.decode(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_network_calls(sampler, guidance, model):
    """What a setting says of its cost is what an image costs."""
    setting = Setting(sampler=sampler, steps=4, guidance=guidance)
    images = []
    handle = model.pipeline.unet.register_forward_pre_hook(
        lambda module, inputs: images.append(len(inputs[0]))
    )
    try:
        draw_images(model, ["a seven"], setting, model.draw_noise(1, torch.Generator()))
    finally:
        handle.remove()
    assert sum(images) == setting.calls == (8 if guidance else 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "euler"}, r"sampler is 'euler'; allowed: 'ddim', 'dpmpp_2m'"),
        ({"steps": 0}, r"steps is 0; allowed: an integer from 1 to 1000"),
        ({"steps": 1001}, r"steps is 1001; allowed"),
        ({"steps": 2.5}, r"steps is 2\.5; allowed: an integer"),
        ({"guidance": -0.1}, r"guidance is -0\.1; allowed: from 0 to 100"),
        ({"guidance": float("nan")}, r"guidance is nan; allowed: from 0 to 100"),
        ({"guidance": 101.0}, r"guidance is 101\.0; allowed"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        Setting(**change)


def test_the_tables_settings():
    wanted = settings(3.0)
    assert len(wanted) == len(set(wanted))
    trade_off = [s for s in wanted if s.steps == 50]
    assert {s.sampler for s in trade_off} == {"ddim"}
    assert [s.guidance for s in trade_off] == sorted(s.guidance for s in trade_off)
    assert trade_off[0].guidance == 0
    few = {(s.sampler, s.steps) for s in wanted if s.steps < 50}
    assert few == {(name, n) for name in ("ddim", "dpmpp_2m") for n in (1, 2, 4, 8, 16)}
    assert {s.guidance for s in wanted if s.steps < 50} == {3.0}


# -------------------------------------------------------------------- the results file

WANTED = [Setting(steps=2, guidance=w) for w in (0.0, 2.0)] + [
    Setting(sampler="dpmpp_2m", steps=1, guidance=2.0)
]


@pytest.fixture
def drawn(monkeypatch, evaluator):
    """Settings that were drawn; the images are the real ones, with noise."""
    found = []

    def draw(model, prompts, setting, noise, batch=100):
        assert prompts == evaluator.prompts
        assert noise.shape == (COUNT, 4, 8, 8)
        found.append((setting, noise))
        return evaluator.asked.images + 0.01 * len(found)

    monkeypatch.setattr(table, "draw_images", draw)
    monkeypatch.setattr(table, "part_scores", lambda model, evaluator: dict(PARTS))
    return found


def test_measured_rows_are_not_measured_again(drawn, model, evaluator, tmp_path):
    path = tmp_path / "results" / "teacher.json"
    states = measure(model, evaluator, WANTED, path)
    first = next(states)
    assert [setting for setting, _ in drawn] == WANTED[:1]  # one at a time
    kept = json.loads(path.read_text("utf-8"))
    assert kept["count"] == COUNT
    assert Scores(**kept["floor"]) == evaluator.floor()
    assert kept["parts"] == PARTS
    [row] = kept["rows"]
    assert Setting(**row["setting"]) == WANTED[0]
    assert Scores(**row["scores"]) == first[1]
    assert row["seconds"] >= 0
    states.close()  # stopped

    again = list(measure(model, evaluator, WANTED, path))
    assert [setting for setting, _ in drawn] == WANTED
    assert [setting for setting, _ in again] == WANTED
    assert again[0] == first
    assert list(measure(model, evaluator, WANTED[::-1], path)) == again[::-1]
    assert len(drawn) == 3
    assert [Setting(**row["setting"]) for row in read_results(path)["rows"]] == WANTED
    # All settings start from the same noise.
    assert all(torch.equal(noise, drawn[0][1]) for _, noise in drawn)
    assert [path.name for path in path.parent.iterdir()] == ["teacher.json"]


@pytest.mark.usefixtures("drawn")
def test_rows_of_another_process_are_kept(model, evaluator, tmp_path):
    path = tmp_path / "a.json"
    states = measure(model, evaluator, WANTED[:2], path)
    next(states)
    list(measure(model, evaluator, WANTED[2:], path))
    list(states)
    found = [Setting(**row["setting"]) for row in read_results(path)["rows"]]
    assert found == [WANTED[0], WANTED[2], WANTED[1]]


@pytest.mark.usefixtures("drawn")
def test_results_of_another_count_are_refused(model, evaluator, tmp_path):
    path = tmp_path / "a.json"
    list(measure(model, evaluator, WANTED[:1], path))
    results = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**results, "count": 2000}), "utf-8")
    with pytest.raises(ValueError, match="holds results of 2000 images, 12 were asked for"):
        next(measure(model, evaluator, WANTED, path))
    assert read_results(path)["count"] == 2000
    assert read_results(path, 2000)["count"] == 2000


@pytest.mark.usefixtures("drawn")
def test_results_of_another_model_are_refused(model, evaluator, tmp_path):
    path = tmp_path / "a.json"
    list(measure(model, evaluator, WANTED[:1], path))
    kept = path.read_bytes()
    weight = next(model.pipeline.unet.parameters())
    with torch.no_grad():
        weight.flatten()[0] += 1
        try:
            with pytest.raises(ValueError, match=r"a model with the fingerprint .*, this one has"):
                next(measure(model, evaluator, WANTED, path))
        finally:
            weight.flatten()[0] -= 1
    assert path.read_bytes() == kept


def test_the_parts_are_measured_alone(model, evaluator):
    data = CaptionedDigits("test")
    held_out = data.batch(range(4000), scores.HELD_OUT_SEED + 1)
    found = part_scores(model, evaluator)
    # Of these images, the oracle knows none: it says 0.
    assert found["digit"] == pytest.approx(float((held_out.digit == 0).double().mean()))
    with torch.no_grad():
        vae = model.pipeline.vae
        back = vae.decode(vae.encode(held_out.images[:500]).latent_dist.mean).sample.clamp(-1, 1)
    error = (back - held_out.images[:500]).double().square().mean()
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / error), abs=1e-3)


def test_the_shipped_results_are_not_measured_into(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--run"])
    assert error.value.code == 2
    assert "--run needs --results with a file of your own" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"count": 12}', '{"rows": []}'])
def test_a_damaged_results_file(text, drawn, model, evaluator, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"cannot be read .*; allowed: a results file") as caught:
        next(measure(model, evaluator, WANTED, path))
    assert repr(str(path)) in str(caught.value)
    assert drawn == []
    assert path.read_text("utf-8") == text
    assert main(["--results", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {str(path)!r} cannot be read")


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert read_results(tmp_path / "none.json", 5) == {"count": 5, "rows": []}
    assert main(["--results", str(tmp_path / "none.json")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    path = str(tmp_path / "none.json")
    assert captured.err == f"error: there is no {path!r}; --run measures it\n"


def results():
    floor = Scores(count=2000, digit=0.995, stroke=1, background=1, all_right=0.995, frechet=0.5,
                   kernel=0.0001, kernel_std=0.0002)  # fmt: skip
    rows = [
        (Setting(sampler="dpmpp_2m", steps=1, guidance=2), 40.0),
        (Setting(steps=50, guidance=2), 4.0),
        (Setting(steps=4, guidance=2), 20.0),
        (Setting(steps=8, guidance=2), 10.0),
        (Setting(steps=50, guidance=0), 1.25),
    ]
    return {
        "count": 2000,
        "floor": dataclasses.asdict(floor),
        "parts": {"psnr": 31.2, "digit": 0.5},
        "rows": [
            {
                "setting": dataclasses.asdict(setting),
                "scores": {**dataclasses.asdict(floor), "digit": 0.98765, "frechet": frechet},
                "seconds": 1.0,
            }
            for setting, frechet in rows
        ],
    }


def test_the_table_has_a_line_for_each_row(tmp_path, capsys):
    text = as_text(results())
    lines = text.splitlines()
    assert lines[0].startswith("2,000 images for as many prompts")
    assert "31.2 dB PSNR" in lines[1]
    assert "0.5000 of 4,000" in lines[1]
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    columns = [cell.strip() for cell in lines[start - 1].strip("|").split("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 1 :]]
    assert len(cells) == 6
    assert all(len(row) == len(columns) == lines[start].count("---") for row in cells)
    assert cells[0][0] == "real images (floor)"
    assert [row[:4] for row in cells[1:]] == [
        ["DDIM", "50", "0", "50"],
        ["DDIM", "50", "2", "100"],
        ["DDIM", "8", "2", "16"],
        ["DDIM", "4", "2", "8"],
        ["DPM-Solver++ 2M", "1", "2", "2"],
    ]
    of = dict(zip(columns, cells[2], strict=True))
    assert of["digit"] == "0.9877"
    assert of["all right"] == "0.9950"
    assert of["Fréchet"] == "4.00"
    assert of["over floor"] == "8.0"
    assert of["kernel x 1000"] == "0.1 ± 0.2"
    path = tmp_path / "a.json"
    path.write_text(json.dumps(results()), "utf-8")
    assert main(["--results", str(path)]) == 0
    assert capsys.readouterr().out == text + "\n"

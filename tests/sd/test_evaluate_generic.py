"""Figures of any pipeline, by a tiny random CLIP model and tiny pipelines."""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from slam_edu.sd import evaluate
from slam_edu.sd.components import quiet
from slam_edu.sd.evaluate import ClipScorer, evaluate_pipeline, read_results, real_features
from slam_edu.sd.tiny import tiny_pipeline, tiny_tokenizer, tiny_xl_pipeline
from slam_edu.seeding import sample_generator, seeded

PROMPTS = ["a red seven on a yellow background", "handwritten 3", "a green four", "a blue zero",
           "a white one on black"]  # fmt: skip
# diffusers' DPMSolverMultistepScheduler, under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP model of random weights, as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    config = CLIPConfig(
        text_config={
            **sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 24,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**sizes, "image_size": 24, "patch_size": 8},
        projection_dim=12,
    )  # fmt: skip
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    folder = tmp_path_factory.mktemp("clip")
    with quiet():
        seeded(lambda: CLIPModel(config), 0).save_pretrained(folder)
        CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    if not (folder / "preprocessor_config.json").exists():  # where older versions have it
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(clip_folder):
    return ClipScorer(str(clip_folder), batch=2)


@pytest.fixture(scope="module")
def teacher():
    return tiny_xl_pipeline()


@pytest.fixture(scope="module")
def student():
    """As an export comes: another UNet, and the scheduler of students."""
    from diffusers import LCMScheduler

    pipeline = tiny_pipeline(seed=1)
    pipeline.scheduler = LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        original_inference_steps=25,
    )  # fmt: skip
    return pipeline


def some_images(count=5, size=(40, 32), seed=0):
    """Smooth random images in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") * 2 - 1


def as_pillow(images):
    from PIL import Image

    values = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(value)) for value in values]


# -------------------------------------------------------------------- the judge


def test_the_scores_are_clips(clip_folder, scorer):
    """What the model itself gives for images and texts that its processor prepared."""
    from transformers import CLIPModel, CLIPProcessor

    images, prompts = some_images(), [*PROMPTS[:4], "red " * 60]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPProcessor.from_pretrained(clip_folder)
    inputs = processor(
        images=as_pillow(images), text=prompts, padding=True, truncation=True, max_length=24,
        return_tensors="pt",
    )  # fmt: skip
    assert inputs["pixel_values"].shape == (5, 3, 24, 24)
    with torch.no_grad():
        said = model(**inputs)
    features = scorer.image_features(images)
    assert features.shape == (5, 12)
    torch.testing.assert_close(features, said.image_embeds * math.sqrt(12), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.norm(dim=1), torch.full((5,), math.sqrt(12)))
    cosines = (said.image_embeds * said.text_embeds).sum(1)
    scores = scorer.scores(features, prompts)
    torch.testing.assert_close(scores, 100 * cosines, rtol=1e-3, atol=1e-3)
    assert scores.std() > 1e-2  # and they tell pairs apart
    assert not torch.allclose(scorer.scores(features.flip(0), prompts), scores, atol=1e-2)
    torch.testing.assert_close(scorer.image_features(as_pillow(images)), features)


def test_a_folder_that_is_no_clip(clip_folder, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be loaded .* allowed: .* in safetensors"):
        ClipScorer(str(tmp_path))
    with pytest.raises(ValueError, match="needs a pinned commit"):
        ClipScorer("somebody/clip")
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["visual_projection.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"cannot be loaded \(its weights lack visual_proj"):
        ClipScorer(str(folder))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cannot be loaded"):
        ClipScorer(str(folder))


# -------------------------------------------------------------------- pipelines


def own_features(student, scorer):
    images = student(
        PROMPTS, num_inference_steps=2, guidance_scale=1.0, output_type="pt",
        generator=[sample_generator(0, i) for i in range(5)],
    ).images  # fmt: skip
    return scorer.image_features(2 * images - 1)


def test_a_students_figures(student, scorer):
    """Calls are counted, and the images are those of the pipeline itself."""
    rows = evaluate_pipeline(student, PROMPTS, scorer=scorer, steps=(1, 2, 5), batch=2)
    assert [row["calls"] for row in rows] == [1, 2, 5]
    assert {(row["sampler"], row["guidance"], row["images"]) for row in rows} == {("lcm", 0.0, 5)}
    assert all("frechet" not in row for row in rows)
    scores = scorer.scores(own_features(student, scorer), PROMPTS)
    assert rows[1]["clip_score"] == pytest.approx(float(scores.mean()), rel=1e-4)
    error = float(scores.double().std()) / math.sqrt(5)
    assert rows[1]["clip_score_error"] == pytest.approx(error, rel=1e-2)
    assert len({round(row["clip_score"], 3) for row in rows}) == 3
    other = evaluate_pipeline(student, PROMPTS, scorer=scorer, steps=(2,), seed=1)
    assert other[0]["clip_score"] != pytest.approx(rows[1]["clip_score"], rel=1e-3)
    again = evaluate_pipeline(student, PROMPTS, scorer=scorer, steps=(2,), batch=4)
    assert again[0]["clip_score"] == pytest.approx(rows[1]["clip_score"], rel=1e-4)


def test_a_teachers_figures(teacher, scorer):
    """Guidance counts two; the samplers are those that start at t = T-1."""
    before = teacher.scheduler
    times = []
    hook = teacher.unet.register_forward_pre_hook(lambda _unet, args: times.append(int(args[1])))
    try:
        guided, plain = (
            evaluate_pipeline(
                teacher, PROMPTS[:2], scorer=scorer, steps=(1, 4), sampler="dpmpp_2m", guidance=w,
            )
            for w in (None, 0.0)
        )  # fmt: skip
    finally:
        hook.remove()
    assert [row["calls"] for row in guided] == [2, 8]
    assert [row["guidance"] for row in guided] == [6.5, 6.5]
    assert [row["calls"] for row in plain] == [1, 4]
    assert times[1:5] == [999, 749, 499, 249]
    assert guided[1]["clip_score"] != pytest.approx(plain[1]["clip_score"], rel=1e-4)
    assert teacher.scheduler is before


def test_all_draw_from_the_same_noise(teacher, student, scorer):
    """Prompt i's first latent is that of (seed, i), with guidance and without."""
    noise = torch.stack([torch.randn(4, 8, 8, generator=sample_generator(3, i)) for i in range(5)])
    seen = []
    for pipeline, options in (
        (student, {}),
        (teacher, {"guidance": 2.0}),
        (teacher, {"guidance": 0.0, "sampler": "dpmpp_2m"}),
    ):
        hook = pipeline.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        evaluate_pipeline(pipeline, PROMPTS, scorer=scorer, steps=(1,), seed=3, **options)
        hook.remove()
        assert torch.equal(seen[-1][-5:], noise)  # guidance's other half is the same


def test_distances(student, scorer):
    """To the same images nothing, to others more, and the kernel is of cosines."""
    own, other = own_features(student, scorer), scorer.image_features(some_images())
    near, far = (
        evaluate_pipeline(student, PROMPTS, scorer=scorer, steps=(2,), reference=reference)[0]
        for reference in (own, other)
    )
    assert abs(near["frechet"]) < 1e-3 * far["frechet"]
    a, b = (x.double() / math.sqrt(12) for x in (other, own))
    one, two, both = ((x @ y.T + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    # All five are in each subset.
    off = [(k.sum() - k.diag().sum()) / 20 for k in (one, two)]
    assert far["kernel"] == pytest.approx(float(sum(off) - 2 * both.mean()), rel=1e-3)


def test_wrong_settings(student, teacher, scorer):
    def fails(message, pipeline=student, prompts=PROMPTS, **options):
        with pytest.raises(ValueError, match=message):
            evaluate_pipeline(pipeline, prompts, scorer=scorer, **options)

    before = student.scheduler
    fails("guidance is 2 with the sampler 'lcm'; allowed: 0", guidance=2)
    fails("sampler is 'euler'; allowed: 'lcm', 'ddim', 'dpmpp_2m'", sampler="euler")
    fails("guidance is -1; allowed: from 0 to 100", teacher, guidance=-1)
    fails("steps is 0; allowed: an integer from 1", steps=(2, 0))
    fails("batch is 0; allowed", batch=0)
    bias = student.vae.decoder.conv_out.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(float("nan"))
    fails("images of 1 steps hold a NaN", steps=(1,))
    with torch.no_grad():
        bias.copy_(kept)
    assert student.scheduler is before
    assert not student.unet._forward_pre_hooks


# -------------------------------------------------------------------- the command


def command(*arguments):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args([str(a) for a in arguments]))


def test_the_command(student, clip_folder, tmp_path, capsys):
    with quiet():
        student.save_pretrained(tmp_path / "student")
    (tmp_path / "prompts.txt").write_text("# some\n" + "\n".join(PROMPTS), "utf-8")
    (tmp_path / "real" / "below").mkdir(parents=True)
    for i, image in enumerate(as_pillow(some_images(6))):
        image.save(tmp_path / "real" / ("below" if i % 2 else "") / f"{i}.png")
    out = tmp_path / "results" / "a.json"
    assert command(
        tmp_path / "student", "--prompts", tmp_path / "prompts.txt", "--clip", clip_folder,
        "--real", tmp_path / "real", "--device", "cpu", "--steps", 1, 4, "--out", out,
    ) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "| sampler | steps | guidance | calls |" in printed
    assert "not Inception's FID" in printed
    results = json.loads(out.read_text("utf-8"))
    assert (results["real"], results["prompts"]) == (6, 5)
    assert results["scorer"] == str(clip_folder)
    rows = read_results(out)
    assert rows == results["rows"]
    assert [row["steps"] for row in rows] == [1, 4]
    assert rows[1]["frechet"] > 0


def test_the_commands_errors(tmp_path, scorer):
    (tmp_path / "prompts.txt").write_text("a cat", "utf-8")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        command(tmp_path / "none", "--prompts", tmp_path / "prompts.txt")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        command("digits", "--prompts", tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        real_features(tmp_path / "none", scorer)
    as_pillow(some_images(1))[0].save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds 1 images"):
        real_features(tmp_path, scorer)
    (tmp_path / "b.png").write_text("no image", "utf-8")
    with pytest.raises(ValueError, match=r"b\.png' is not an image"):
        real_features(tmp_path, scorer)
    with pytest.raises(FileNotFoundError, match="slam-edu evaluate --out` writes it"):
        read_results(tmp_path / "none.json")
    for text in ("", '{"rows": 1}'):
        (tmp_path / "a.json").write_text(text, "utf-8")
        with pytest.raises(ValueError, match="cannot be read"):
            read_results(tmp_path / "a.json")

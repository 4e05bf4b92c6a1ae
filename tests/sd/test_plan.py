"""What a plan counts, against what the same networks take when they are real."""

import pytest
import torch

from slam_edu.sd import plan
from slam_edu.sd.cli import main
from slam_edu.sd.components import TextCondition
from slam_edu.sd.config import SDXL, SDConfig, load_config
from slam_edu.sd.engine import make_autocast
from slam_edu.sd.networks import build_networks
from slam_edu.sd.plan import CARDS, GIB, check_fits, check_memory, make_plan
from slam_edu.sd.published import STABLE_DIFFUSION_15, STABLE_DIFFUSION_XL, architecture_of
from slam_edu.sd.trace import (
    COPIES,
    GRADIENTS,
    REST,
    ROWS,
    LiveBytes,
    count_parameters,
    network_parts,
    trace_step,
)
from tests.sd.tiny import PIPELINES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tiny pipelines, by kind."""
    made = {}
    for kind, build in PIPELINES.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        build().save_pretrained(made[kind])
    return made


def count(module):
    return sum(p.numel() for p in module.parameters())


# -------------------------------------------------------------------- architectures


def test_published_architectures_have_the_published_parameters():
    one, xl = STABLE_DIFFUSION_15, STABLE_DIFFUSION_XL
    assert count(one.build_unet()) == 859_520_964
    assert count_parameters(one) == {"autoencoder": 83_653_863, "text encoders": 123_060_480}
    assert count(xl.build_text_encoder(1)) == 694_659_840
    assert (one.latent_shape(), one.text_shape, one.pooled_width) == ((4, 64, 64), (77, 768), None)
    assert (xl.latent_shape(), xl.text_shape, xl.pooled_width) == ((4, 128, 128), (77, 2048), 1280)
    assert xl.latent_shape(512) == (4, 64, 64)
    with pytest.raises(ValueError, match="resolution is 500; allowed: a multiple of 8"):
        xl.latent_shape(500)


def test_folder_gives_the_architecture_of_its_pipeline(folders):
    pipeline, found = PIPELINES["xl"](), architecture_of(SDConfig(teacher=str(folders["xl"])))
    pairs = [
        (found.build_unet(), pipeline.unet), (found.build_vae(), pipeline.vae),
        (found.build_text_encoder(), pipeline.text_encoder),
        (found.build_text_encoder(1), pipeline.text_encoder_2),
    ]  # fmt: skip
    for ours, theirs in pairs:
        assert type(ours) is type(theirs)
        shapes = {name: p.shape for name, p in theirs.named_parameters()}
        assert {name: p.shape for name, p in ours.named_parameters()} == shapes


def test_architectures_that_cannot_be_known(tmp_path):
    assert architecture_of(SDConfig(teacher=SDXL[0], revision=SDXL[1])) is STABLE_DIFFUSION_XL
    with pytest.raises(ValueError, match=r"'someone/model' is not known .* allowed: 'digits'"):
        architecture_of(SDConfig(teacher="someone/model", revision="0" * 40))
    config = SDConfig(teacher=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="unet"):
        architecture_of(config)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match="cannot be read"):
        architecture_of(config)


# -------------------------------------------------------------------- live bytes


def test_live_bytes_follow_tensors_from_birth_to_death():
    with LiveBytes() as live:
        a = torch.ones(100)
        view = a[10:]
        b = a * 2
        live.own("named", [b])
        assert live.live == {REST: 400, "named": 400}
        del a
        assert live.live[REST] == 400  # the view keeps it
        del view, b
    assert live.live == {REST: 0, "named": 0}
    assert sum(live.peak.values()) == 800


def test_gradients_are_a_part_of_their_own_and_operations_are_counted():
    weight = torch.ones(10, 10, requires_grad=True)
    x = torch.ones(5, 10)
    with LiveBytes() as live:
        live.own("weights", [weight])
        live.own("data", [x])
        live.own_gradients([weight])
        (x @ weight).sum().backward()
    assert live.live == {"weights": 400, "data": 200, GRADIENTS: 400, REST: 0}
    assert live.flops == 2 * (2 * 5 * 10 * 10)


def test_container_s_limit_counts_less_what_is_taken(tmp_path):
    files = {"max": "1000\n", "current": "700\n", "stat": "x 1\ninactive_file 200\n"}
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert plan._container_room(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert plan._container_room(tmp_path) == float("inf")


# -------------------------------------------------------------------- a step


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sd", {"train": "full", "mixed_precision": "bf16", "frozen_dtype": "bfloat16",
                "conditioning": "gamma"}),
        ("xl", {"train": "full", "gradient_checkpointing": True}),
        ("xl", {"train": "lora", "conditioning": "gamma"}),
    ],
)  # fmt: skip
def test_traced_step_takes_what_a_real_one_takes(folders, kind, settings):
    from diffusers import UNet2DConditionModel

    config = SDConfig(teacher=str(folders[kind]), lora_rank=4, **settings)
    architecture, batch = architecture_of(config), 24
    traced = trace_step(config, architecture, cuda=False)
    unet = UNet2DConditionModel(**architecture.unet)
    networks = build_networks(config, unet, make_autocast(config, CPU))
    x, t = torch.ones(batch, *architecture.latent_shape()), torch.full((batch,), 500.0)
    cond = TextCondition(torch.ones(batch, *architecture.text_shape))
    if architecture.pooled_width is not None:
        pooled = torch.ones(batch, architecture.pooled_width)
        cond = TextCondition(cond.states, pooled, torch.ones(batch, 6))
    gamma = torch.ones(batch) if config.gamma_conditioned else None
    parts = network_parts(networks)
    with LiveBytes() as live:
        for name, tensors in parts.items():
            live.own(name, tensors)
        live.own_gradients(parts["trained"])
        y = networks.teacher(x, t, cond).float()
        y = networks.target(x, t, cond, gamma).float()
        p = networks.student(x, t, cond, gamma)
        (p.float() - y).square().mean().backward()
    assert traced.weights == {part: live.live[part] for part in parts}
    assert traced.parameters["trained"] == sum(p.numel() for p in networks.trained.values())
    # Real autocast's copies of weights cannot be told from activations; the sum can.
    moments = [sum(v for k, v in m.items() if k not in parts) for m in live.moments]
    assert sum(traced.fullest(batch).values()) == pytest.approx(max(moments), rel=0.05)
    assert batch * sum(traced.flops.values()) == pytest.approx(live.flops, rel=0.001)
    optimizer = torch.optim.AdamW(networks.trained.values())
    optimizer.step()
    state = sum(s.nbytes for of in optimizer.state.values() for s in of.values())
    planned = make_plan(config, device="cpu")
    assert planned.optimizer_bytes == pytest.approx(state, rel=0.01)
    assert planned.gradient_bytes == live.live[GRADIENTS]


def test_cuda_s_autocast_keeps_norms_in_float32_and_copies_of_weights(folders):
    config = SDConfig(teacher=str(folders["sd"]), mixed_precision="fp16")
    here, there = (trace_step(config, architecture_of(config), cuda) for cuda in (False, True))
    full = trace_step(config.replace(mixed_precision="no"), architecture_of(config), True)
    assert here.each.max() < there.each.max() < full.each.max()
    copies = there.fixed[:, ROWS.index(COPIES)].max()
    assert copies == pytest.approx(there.weights["trained"] / 2, rel=0.02)


# -------------------------------------------------------------------- plans


def test_largest_batch_is_the_largest():
    planned = make_plan(load_config("digits"), device="cpu")
    batch = planned.largest_batch(4.0)
    assert planned.total(batch) <= 4 * GIB < planned.total(batch + 1)
    assert planned.largest_batch(0.1) == 0
    assert planned.largest_batch(10_000.0) == plan.MOST


def test_more_processes_keep_gradients_twice_and_accumulating_keeps_them_all():
    config = load_config("digits")
    one, two = (make_plan(config, device="cpu", processes=n) for n in (1, 2))
    extra = set(two.update().parts) - set(one.update().parts)
    assert {two.update().parts[name] for name in extra} == {one.gradient_bytes}
    more = make_plan(config.replace(accumulate=2), device="cpu")
    assert more.update().parts[GRADIENTS] == one.gradient_bytes
    assert more.update_flops == 2 * one.update_flops
    with pytest.raises(ValueError, match="processes is 0"):
        make_plan(config, processes=0)


def test_encoders_stay_in_memory_where_they_share_it_or_are_used():
    config = load_config("digits")
    assert "autoencoder" in make_plan(config, device="cpu").update().parts
    cached = make_plan(config, device="cuda")
    assert "autoencoder" not in cached.update().parts
    uncached = make_plan(config.replace(cache=False), device="cuda")
    assert "autoencoder" in uncached.update().parts
    assert uncached.sample_flops > cached.sample_flops
    eight = make_plan(config.replace(optimizer="adamw8bit"), device="cuda")
    assert 0.25 < eight.optimizer_bytes / cached.optimizer_bytes < 0.26
    names = [phase.name for phase in uncached.phases()]
    assert sorted(names) == ["an update", "decoding 4 samples", "encoding 32 images"]
    small = config.replace(sample_count=0, data="cache", data_path="x")
    assert [p.name for p in make_plan(small, device="cpu").phases()] == ["an update"]


# -------------------------------------------------------------------- what cannot fit


def test_too_little_memory_is_refused_with_the_numbers():
    config = load_config("digits", settings=["device=cpu"])
    planned = make_plan(config)
    check_fits(planned, planned.total())
    with pytest.raises(ValueError, match="does not fit") as error:
        check_fits(planned, planned.total() - 1)
    text = str(error.value)
    assert f"needs about {planned.total() / GIB:.2f} GiB on cpu" in text
    for part in planned.phases()[0].parts:
        assert part in text
    batch = int(text.split("batch=")[1].split()[0])
    assert batch == planned.largest_batch((planned.total() - 1) / GIB)
    assert batch == config.training.batch - 1
    assert "accumulate=2" in text


def test_what_is_suggested_fits():
    base = ["batch=1", "device=cpu"]
    config = load_config("digits", settings=base)
    room = make_plan(config.replace(train="lora", gradient_checkpointing=True)).total()
    with pytest.raises(ValueError, match=r"what fits: .*train=lora") as error:
        check_fits(make_plan(config), room)
    settings = str(error.value).split("what fits: ")[1].split()
    better = load_config("digits", settings=[*base, *settings])
    check_fits(make_plan(better), room)
    with pytest.raises(ValueError, match="no setting makes it fit"):
        check_fits(make_plan(config), 1000)


def test_distillation_is_refused_before_anything_is_loaded(monkeypatch):
    config = load_config("digits")
    need = check_memory(config, CPU, processes=2).total()
    monkeypatch.setattr(plan, "available_bytes", lambda device: 2 * need - 2)
    check_memory(config, CPU, processes=2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # they share the machine's memory
    with pytest.raises(ValueError, match="does not fit"):
        check_memory(config, CPU, processes=2)
    unknown = config.replace(teacher="someone/model", revision="0" * 40)
    assert check_memory(unknown, CPU) is None


# -------------------------------------------------------------------- text, disk, command


def test_command_prints_the_plan_and_whether_it_fits(capsys):
    assert main(["plan", "data=prompts", "batch=16", "--card", "t4"]) == 0
    text = capsys.readouterr().out
    for words in (
        "4,283,012", "batch 16", "optimiser's state", "activations", "ESTIMATE", "checkpoints",
        "1,000 latents drawn", "t4: fits, up to batch=", *(card.name for card in CARDS.values()),
    ):  # fmt: skip
        assert words in text
    assert main(["plan", "--card", "0.7"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main(["plan", "--card", "abacus"]) == 2
    assert "card is 'abacus'; allowed: 't4'" in capsys.readouterr().err


def test_disk_counts_the_files_that_are_written(folders):
    config = SDConfig(teacher=str(folders["sd"]), keep=1)
    planned = make_plan(config, device="cpu")
    disk, trained = planned.disk(), 4 * planned.trace.parameters["trained"]
    assert disk["checkpoints"] == 2 * 4 * trained  # weights, average, two moments
    files = list(folders["sd"].rglob("*.safetensors"))
    assert disk["teacher"] == pytest.approx(sum(f.stat().st_size for f in files), rel=0.05)
    assert disk["cache of a sample"] == 2 * (4 * 8 * 8 + 24 * 32)

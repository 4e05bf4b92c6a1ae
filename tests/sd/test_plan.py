"""What a plan says, against what the same networks take when they are real."""

import json
import time

import pytest
import torch

from slam_edu.schedule import NoiseSchedule
from slam_edu.sd import memory, plan, trace
from slam_edu.sd.components import TextCondition
from slam_edu.sd.config import SD15, SDXL, SDConfig, load_config
from slam_edu.sd.engine import Engine, make_autocast, make_optimizer
from slam_edu.sd.memory import GIB, REST, LiveBytes
from slam_edu.sd.networks import build_networks
from slam_edu.sd.plan import CARDS, check_fits, check_memory, make_plan
from slam_edu.sd.published import (
    STABLE_DIFFUSION_15,
    STABLE_DIFFUSION_XL,
    architecture_of,
    read_architecture,
)
from slam_edu.sd.trace import COPIES, GRADIENTS, trace_step
from tests.sd.tiny import tiny_sd_pipeline, tiny_xl_pipeline, train_state
from tests.speed import slowness

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tiny pipelines, by kind."""
    made = {}
    for kind, build in (("sd", tiny_sd_pipeline), ("xl", tiny_xl_pipeline)):
        made[kind] = tmp_path_factory.mktemp(kind)
        build().save_pretrained(made[kind])
    return made


def inputs(architecture, batch, gamma=False):
    """As the engine hands them to the networks."""
    pooled = architecture.pooled_width
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(batch, *shape, generator=generator)

    cond = TextCondition(
        draw(*architecture.text_shape),
        None if pooled is None else draw(pooled),
        None if pooled is None else draw(6),
    )
    return (
        draw(*architecture.latent_shape()), torch.full((batch,), 500.0), cond,
        torch.rand(batch, generator=generator) if gamma else None,
    )  # fmt: skip


# -------------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("architecture", "unet", "encoders"),
    [
        (STABLE_DIFFUSION_15, 859_520_964, [123_060_480]),
        (STABLE_DIFFUSION_XL, 2_567_463_684, [123_060_480, 694_659_840]),
    ],
)
def test_published_architectures_have_the_published_parameters(architecture, unet, encoders):
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(architecture.build_unet()) == unet
    assert count(architecture.build_vae()) == 83_653_863
    numbers = range(len(architecture.text_encoders))
    assert [count(architecture.build_text_encoder(i)) for i in numbers] == encoders
    assert architecture.factor == 8


def test_published_latents_and_conditions():
    sd, xl = STABLE_DIFFUSION_15, STABLE_DIFFUSION_XL
    assert (sd.latent_shape(), sd.text_shape, sd.pooled_width) == ((4, 64, 64), (77, 768), None)
    assert (xl.latent_shape(), xl.text_shape, xl.pooled_width) == ((4, 128, 128), (77, 2048), 1280)
    assert xl.latent_shape(512) == (4, 64, 64)
    with pytest.raises(ValueError, match="resolution is 500; allowed: a multiple of 8"):
        sd.latent_shape(500)


def test_official_student_has_the_embedding_s_parameters():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**STABLE_DIFFUSION_15.unet, time_cond_proj_dim=256)
    assert sum(p.numel() for p in unet.parameters()) == 859_602_884


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_folder_gives_the_architecture_of_its_pipeline(folders, kind):
    pipeline = {"sd": tiny_sd_pipeline, "xl": tiny_xl_pipeline}[kind]()
    found = architecture_of(SDConfig(teacher=str(folders[kind])))
    shapes = {name: p.shape for name, p in pipeline.unet.named_parameters()}
    assert {n: p.shape for n, p in found.build_unet().named_parameters()} == shapes
    names = ["text_encoder", "text_encoder_2"][: len(found.text_encoders)]
    for number, name in enumerate(names):
        ours, theirs = found.build_text_encoder(number), getattr(pipeline, name)
        assert type(ours) is type(theirs)
        shapes = [p.shape for p in theirs.parameters()]
        assert [p.shape for p in ours.parameters()] == shapes
    assert len(found.text_encoders) == (2 if kind == "xl" else 1)


def test_architectures_that_cannot_be_known(tmp_path):
    with pytest.raises(ValueError, match=r"'someone/model' is not known .* allowed: 'digits'"):
        architecture_of(SDConfig(teacher="someone/model", revision="0" * 40))
    with pytest.raises(FileNotFoundError, match="unet"):
        read_architecture(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match="cannot be read"):
        read_architecture(tmp_path)


def test_hub_ids_are_known_without_a_network():
    assert architecture_of(SDConfig(teacher=SD15[0], revision=SD15[1])) is STABLE_DIFFUSION_15
    assert architecture_of(SDConfig(teacher=SDXL[0], revision=SDXL[1])) is STABLE_DIFFUSION_XL


# -------------------------------------------------------------------- live bytes


def test_live_bytes_follow_tensors_from_birth_to_death():
    with LiveBytes() as live:
        a = torch.ones(100)
        view = a[10:]
        b = a * 2
        assert live.live[REST] == 800
        live.own("named", [b, None])
        assert (live.live[REST], live.live["named"], live.total) == (400, 400, 800)
        del a
        assert live.live[REST] == 400  # the view keeps it
        del view, b
    assert live.total == 0
    assert sum(live.peak.values()) == 800
    live.forget_peak()
    assert sum(live.peak.values()) == 0


def test_gradients_are_a_part_of_their_own():
    weight = torch.ones(10, 10, requires_grad=True)
    x = torch.ones(5, 10)
    with LiveBytes() as live:
        live.own("weights", [weight])
        live.own("data", [x])
        live.own_gradients(GRADIENTS, [weight])
        (x @ weight).sum().backward()
    assert live.live == {"weights": 400, "data": 200, GRADIENTS: 400, REST: 0}
    assert live.flops == 2 * (2 * 5 * 10 * 10)
    weight.grad = None
    (x @ weight).sum().backward()
    assert live.live[GRADIENTS] == 0  # the hooks are gone


@pytest.mark.parametrize("version", [1, 2])
def test_container_s_limit_counts_less_what_is_taken(tmp_path, version):
    names = {
        1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
        2: ("memory.max", "memory.current", "memory.stat"),
    }[version]
    key = {1: "total_inactive_file", 2: "inactive_file"}[version]
    (tmp_path / "memory").mkdir()
    for name, text in zip(names, ("1000\n", "700\n", f"x 1\n{key} 200\n"), strict=True):
        (tmp_path / name).write_text(text)
    assert memory._container_room(tmp_path) == 500
    (tmp_path / names[0]).write_text("max\n")
    assert memory._container_room(tmp_path) is None


# -------------------------------------------------------------------- the trace is the truth


def measure(config, architecture, batch):
    """Live bytes of the same calls on real tensors, and the bytes that autograd kept."""
    from diffusers import UNet2DConditionModel

    networks = build_networks(
        config, UNet2DConditionModel(**architecture.unet), make_autocast(config, CPU)
    )
    live, saved = LiveBytes(record=True), {}

    def keep(tensor):
        if live.part_of(tensor) == REST:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage.nbytes()
        return tensor

    x, t, cond, gamma = inputs(architecture, batch, config.gamma_conditioned)
    with live:
        for name, tensors in trace._parts(networks).items():
            live.own(name, tensors)
        live.own_gradients(GRADIENTS, networks.trained.values())
        y = networks.teacher(x, t, cond).float()
        y = networks.target(x, t, cond, gamma).float()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            p = networks.student(x, t, cond, gamma)
        (p.float() - y).square().mean().backward()
    return networks, live, sum(saved.values())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sd", {"train": "full"}),
        ("sd", {"train": "lora", "gradient_checkpointing": True}),
        ("sd", {"train": "full", "mixed_precision": "bf16", "frozen_dtype": "bfloat16",
                "conditioning": "gamma"}),
        ("sd", {"train": "lora", "mixed_precision": "bf16", "frozen_dtype": "bfloat16",
                "gradient_checkpointing": True}),
        ("xl", {"train": "lora", "lora_targets": "attention", "conditioning": "gamma"}),
        ("xl", {"train": "full", "gradient_checkpointing": True}),
    ],
)  # fmt: skip
def test_traced_step_takes_what_a_real_one_takes(folders, kind, settings):
    config = SDConfig(teacher=str(folders[kind]), lora_rank=4, **settings)
    architecture, batch = architecture_of(config), 24
    traced = trace_step(config, architecture, cuda=False)
    networks, live, saved = measure(config, architecture, batch)
    parts = ("teacher", "trained", "average")
    assert traced.weights == {part: live.live[part] for part in parts}
    assert traced.parameters["trained"] == sum(p.numel() for p in networks.trained.values())
    # Real autocast's copies of weights cannot be told from activations; the sum can.
    moments = [sum(v for k, v in m.items() if k not in parts) for m in live.moments]
    assert sum(traced.fullest(batch).values()) == pytest.approx(max(moments), rel=0.05)
    if config.mixed_precision == "no":
        assert batch * traced.saved == pytest.approx(saved, rel=0.05)
        assert traced.fullest(batch)[COPIES] == 0
    flops = dict(traced.flops)
    assert batch * sum(flops.values()) == pytest.approx(live.flops, rel=0.001)


def test_checkpointing_keeps_less_and_computes_more(folders):
    config = SDConfig(teacher=str(folders["sd"]))
    plain, kept = (
        trace_step(config.replace(gradient_checkpointing=on), architecture_of(config), False)
        for on in (False, True)
    )
    assert kept.saved < plain.saved / 2
    assert sum(kept.fullest(32).values()) < 0.8 * sum(plain.fullest(32).values())
    assert kept.flops["backward"] > 1.2 * plain.flops["backward"]
    assert make_plan(config).saved() == (plain.saved, kept.saved)


def test_cuda_s_autocast_keeps_norms_in_float32(folders):
    config = SDConfig(teacher=str(folders["sd"]), mixed_precision="fp16")
    here, there = (trace_step(config, architecture_of(config), cuda) for cuda in (False, True))
    full = trace_step(config.replace(mixed_precision="no"), architecture_of(config), True)
    assert here.saved < there.saved < full.saved
    # The copies of trained weights, all of those of layers, are there at the end of the forward.
    copies = there.fixed[:, trace.ROWS.index(COPIES)].max()
    assert copies == pytest.approx(there.weights["trained"] / 2, rel=0.02)


# -------------------------------------------------------------------- plans


class OneBatch:
    """The same samples for every number."""

    def __init__(self, architecture):
        self.architecture = architecture
        cond = inputs(architecture, 1)[2]
        self.empty = cond

    def get(self, numbers):
        x, _, cond, _ = inputs(self.architecture, len(numbers))
        return x, cond


@pytest.mark.parametrize(
    "settings",
    [
        {"train": "full", "batch": 24},
        {"train": "full", "batch": 1, "accumulate": 2},
        {"train": "lora", "batch": 12, "accumulate": 2, "gradient_checkpointing": True},
    ],
)
def test_plan_is_what_the_engine_takes(folders, settings):
    from diffusers import UNet2DConditionModel

    config = SDConfig(teacher=str(folders["sd"]), updates=2, lora_rank=4, device="cpu", **settings)
    planned = make_plan(config)
    networks = build_networks(config, UNet2DConditionModel(**planned.architecture.unet))
    live = LiveBytes()
    with live:
        for name, tensors in trace._parts(networks).items():
            live.own(name, tensors)
        live.own_gradients(GRADIENTS, networks.trained.values())
        engine = Engine(
            config, NoiseSchedule.stable_diffusion(), networks, OneBatch(planned.architecture)
        )
        for state in engine.updates():
            moments = [s for of in engine.optimizer.state.values() for s in of.values()]
            live.own("optimiser's state", moments)
            assert state.skipped == 0
    parts = dict(planned.update().parts)
    for part in ("autoencoder", "text encoders", "libraries and allocator (assumed)"):
        del parts[part]
    assert sum(live.peak.values()) == pytest.approx(sum(parts.values()), rel=0.1)
    measured = live.largest["optimiser's state"]
    assert parts["optimiser's state"] == pytest.approx(measured, rel=0.01)


def test_optimiser_of_adapters_is_counted_from_the_true_adapters(folders):
    from diffusers import UNet2DConditionModel

    config = SDConfig(teacher=str(folders["sd"]), train="lora", lora_rank=4)
    planned = make_plan(config)
    unet = UNet2DConditionModel(**planned.architecture.unet)
    networks = build_networks(config, unet)
    optimizer = make_optimizer(config, networks, CPU)
    for p in networks.trained.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = [s for of in optimizer.state.values() for s in of.values() if s.ndim]
    assert planned.optimizer_bytes == sum(s.numel() * s.element_size() for s in state)
    adapters = sum(p.numel() for name, p in unet.named_parameters() if ".online." in name)
    assert planned.parameters["adapters, trained"] == adapters
    assert planned.update().parts["adapters"] == 4 * adapters
    eight = make_plan(config.replace(optimizer="adamw8bit"), device="cuda")
    assert 0.25 * planned.optimizer_bytes < eight.optimizer_bytes < 0.26 * planned.optimizer_bytes


def test_largest_batch_is_the_largest():
    planned = make_plan(load_config("digits"), device="cpu")
    for gib in (0.8, 1.5, 4.0):
        batch = planned.largest_batch(gib)
        assert planned.total(batch) <= gib * GIB < planned.total(batch + 1)
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
    assert "autoencoder" not in make_plan(config, device="cuda").update().parts
    uncached = make_plan(config.replace(cache=False), device="cuda")
    assert "autoencoder" in uncached.update().parts
    assert uncached.sample_flops > make_plan(config, device="cuda").sample_flops
    names = [phase.name for phase in uncached.phases()]
    assert sorted(names) == ["an update", "decoding 4 samples", "encoding 32 images"]
    small = config.replace(sample_count=0, data="cache", data_path="x")
    assert [p.name for p in make_plan(small, device="cpu").phases()] == ["an update"]


def test_digits_are_planned_at_once():
    import diffusers
    import peft  # noqa: F401 - reading the libraries is not the planning

    assert diffusers.UNet2DConditionModel
    for cached in (trace._trace_step, trace._coding, trace._count):
        cached.cache_clear()
    begin = time.process_time()
    check_memory(load_config("digits"), "cpu")
    assert time.process_time() - begin < 2 * slowness()


def test_stable_diffusion_xl_is_planned_at_its_true_size():
    begin = time.process_time()
    planned = make_plan(load_config("sdxl-a100"))
    assert time.process_time() - begin < 20 * slowness()
    assert planned.device == "cuda"
    assert planned.parameters["teacher's UNet"] == 2_567_463_684
    assert planned.parameters["text encoders"] == 817_720_320
    parts = planned.update().parts
    assert parts["student's UNet"] == 2 * parts["teacher's UNet"] == 4 * 2_567_463_684
    flops = planned.trace.flops
    # 5.98 without attention; with it, 4 places^2 width for each of 10 and 60 self-attentions.
    attention = 4 * (10 * 4096**2 * 640 + 60 * 1024**2 * 1280)
    attention += 4 * 77 * (10 * 4096 * 640 + 60 * 1024 * 1280)
    assert flops["teacher"] == pytest.approx(5.98e12 + attention, rel=0.01)
    # the forward pass once more, and the gradients of inputs and weights
    assert flops["forward"] == flops["teacher"]
    assert 2.5 * flops["forward"] < flops["backward"] < 3.5 * flops["forward"]
    assert 0.5 * GIB < planned.trace.each.max() < 4 * GIB


# -------------------------------------------------------------------- what cannot fit


def test_too_little_memory_is_refused_with_the_numbers():
    config = load_config("digits", settings=["device=cpu"])
    planned = make_plan(config)
    check_fits(config, planned, planned.total())
    with pytest.raises(ValueError, match="does not fit") as error:
        check_fits(config, planned, planned.total() - 1)
    text = str(error.value)
    assert f"needs about {planned.total() / GIB:.2f} GiB on cpu" in text
    for part in planned.phases()[0].parts:
        assert part in text
    batch = int(text.split("batch=")[1].split()[0])
    assert batch == planned.largest_batch((planned.total() - 1) / GIB) == config.training.batch - 1
    assert f"accumulate={2}" in text


def test_what_is_suggested_fits():
    base = ["batch=1", "device=cpu"]
    config = load_config("digits", settings=base)
    room = make_plan(config.replace(train="lora", gradient_checkpointing=True)).total()
    with pytest.raises(ValueError, match=r"what fits: .*train=lora") as error:
        check_fits(config, make_plan(config), room)
    settings = str(error.value).split("what fits: ")[1].split()
    better = load_config("digits", settings=[*base, *settings])
    check_fits(better, make_plan(better), room)
    with pytest.raises(ValueError, match="no setting makes it fit"):
        check_fits(config, make_plan(config), 1000)


def test_distillation_is_refused_before_anything_is_loaded(monkeypatch):
    config = load_config("digits")
    assert check_memory(config, CPU).total() > 0
    monkeypatch.setattr(plan, "available_bytes", lambda device: GIB // 10)
    with pytest.raises(ValueError, match=r"0.10 GiB are available"):
        check_memory(config, CPU)
    unknown = config.replace(teacher="someone/model", revision="0" * 40)
    assert check_memory(unknown, CPU) is None


def test_processes_on_one_machine_share_its_memory(monkeypatch):
    config = load_config("digits")
    need = make_plan(config, device="cpu", processes=2).total()
    monkeypatch.setattr(plan, "available_bytes", lambda device: 2 * need - 2)
    check_memory(config, CPU, processes=2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="does not fit"):
        check_memory(config, CPU, processes=2)


# -------------------------------------------------------------------- words and command


def command(*arguments):
    from slam_edu.sd.cli import main

    return main(["plan", *arguments])


def test_command_prints_the_plan_and_says_whether_it_fits(capsys):
    assert command("--preset", "digits") == 0
    text = capsys.readouterr().out
    for words in ("4,283,012", "optimiser's state", "activations", "ESTIMATE", "checkpoints"):
        assert words in text
    assert command("--card", "t4", "batch=16") == 0
    text = capsys.readouterr().out
    assert "batch 16" in text
    assert "t4: fits, up to batch=" in text
    assert all(card.name in text for card in CARDS.values())
    assert command("--card", "0.7") == 1
    assert "does not fit" in capsys.readouterr().out
    assert command("--card", "abacus") == 2
    assert "card is 'abacus'; allowed: 't4'" in capsys.readouterr().err


def test_drawing_latents_is_estimated(capsys, tmp_path):
    assert command("data=prompts", "--card", "t4") == 0
    assert "1,000 latents drawn" in capsys.readouterr().out
    planned = make_plan(load_config("digits", settings=["data=prompts"]), device="cpu")
    calls = planned.config.draw_steps * 2
    assert planned.drawing_seconds(1.0) == calls * planned.trace.flops["teacher"] / 1e12
    assert planned.seconds(2.0) == pytest.approx(
        planned.config.training.updates * planned.update_flops / 2e12
    )


def test_disk_counts_the_files_that_are_written(folders, tmp_path):
    from slam_edu.sd.checkpoint import save_checkpoint

    config = SDConfig(teacher=str(folders["sd"]), keep=1)
    planned = make_plan(config, device="cpu")
    networks = build_networks(config, tiny_sd_pipeline().unet)
    optimizer = make_optimizer(config, networks, CPU)
    for p in networks.trained.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    path = save_checkpoint(tmp_path, train_state(optimizer, update=0), networks)
    disk = planned.disk()
    assert disk["checkpoints"] == pytest.approx(2 * path.stat().st_size, rel=0.05)
    files = list(folders["sd"].rglob("*.safetensors"))
    assert disk["teacher"] == pytest.approx(sum(f.stat().st_size for f in files), rel=0.05)
    values = 4 * 8 * 8 + 24 * 32
    assert disk["cache of a sample"] == 2 * values
    assert json.loads(planned.architecture.key)[0]["cross_attention_dim"] == 32

"""A distillation at full size on a CPU, as far as it can be had: ``slam-edu doctor --full-size``.

The true networks of Stable Diffusion 1.5, with random weights because nothing is downloaded, go
through the engine's own pieces: a prompt through the text encoder, an image of 512 x 512 pixels
through the autoencoder, then some updates with adapters. What comes of it is no model. It shows
that shapes, dtypes and the order of things hold at the size that counts, that memory is what
``slam-edu plan`` says, and that nothing but the adapters is changed.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slam_edu.io import atomic_path
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import TextCondition, encode_images
from slam_edu.sd.config import RULES, SD15, SDConfig, load_config
from slam_edu.sd.engine import Engine, make_autocast
from slam_edu.sd.memory import GIB, REST, LiveBytes, available_bytes, resident_bytes
from slam_edu.sd.networks import DTYPES, LoraNetworks, build_networks
from slam_edu.sd.plan import Plan, check_fits, make_plan
from slam_edu.sd.published import Architecture, architecture_of
from slam_edu.sd.trace import GRADIENTS, trace_coding
from slam_edu.seeding import sample_generator

#: What is run: adapters on Stable Diffusion 1.5, one sample at a time. In float32, which most
#: processors compute faster than half precision.
FULL_SIZE = (
    f"teacher={SD15[0]}", f"revision={SD15[1]}", "guidance=8", "train=lora", "lora_rank=64",
    "gradient_checkpointing=true", "batch=1", "updates=2", "loss=huber", "resolution=512",
    "sample_count=0", "tracker=none", "device=cpu",
)  # fmt: skip

#: How far what is measured may be from the plan.
TOLERANCE = 0.15
WEIGHTS, WORKING = "weights", "working memory"


def full_size_config(settings: Iterable[str] = ()) -> SDConfig:
    """The configuration of the full-size run.

    Args:
        settings: each ``name=value``, over :data:`FULL_SIZE`.

    Raises:
        ValueError: as :func:`slam_edu.sd.config.load_config`.
    """
    return load_config(settings=(*FULL_SIZE, *settings))


def run_full_size(
    config: SDConfig | None = None, *, show: Callable[[str], None] = print
) -> dict[str, Any]:
    """Some updates at a teacher's true size, with random weights.

    Args:
        config: default :func:`full_size_config`. The teacher's architecture is used, not its
            weights.
        show: takes the lines that are said.

    Returns:
        the record, as :func:`save_record` writes it: times, losses, memory by part beside the
        plan's, and what was changed.

    Raises:
        ValueError: for a configuration that is not of adapters on a Stable Diffusion 1 or 2, or
            too little memory.
        FloatingPointError: if no update had a finite loss and gradient.
    """
    config = config or full_size_config()
    architecture = architecture_of(config)
    if config.train != "lora" or architecture.pooled_width is not None:
        raise ValueError(
            f"train is {config.train!r} with {architecture.name}; allowed: 'lora' with a Stable "
            f"Diffusion 1 or 2"
        )
    plan = make_plan(config, device="cpu")
    check_fits(config, plan, available_bytes("cpu"))
    begin = _now()
    before = resident_bytes()
    stages: dict[str, dict[str, Any]] = {}
    cond, empty = _encode_prompts(config, architecture, plan, stages, show)
    latents = _encode_image(config, architecture, plan, stages, show)
    changed, states = _distill(config, architecture, plan, stages, show, latents, cond, empty)
    within = all(stage["within"] for stage in stages.values())
    differing = {
        name: value for name, value in config.settings().items() if value != RULES[name].default
    }
    return {
        "what": architecture.name,
        "machine": {
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "diffusers", "transformers", "peft")},
        },
        "config": differing,
        "parameters": dict(plan.parameters),
        **_since(begin),
        "resident_gib_before": round(before / GIB, 3),
        "stages": stages,
        "updates": states,
        "changed": changed,
        # An adapter's second factor starts at 0, so the first update changes that one alone.
        "only_adapters_changed": changed["base"] == 0
        and changed["adapters"] > 0
        and changed["average"] > 0,
        "within_15_percent": within,
    }


def _encode_prompts(
    config: SDConfig, architecture: Architecture, plan: Plan, stages: dict, show: Callable
) -> tuple[TextCondition, TextCondition]:
    """States of a prompt and of an empty one, and what they took."""
    show("text encoder: two prompts ...")
    values = architecture.text_encoders[0][1]
    length = values["max_position_embeddings"]
    with _stage(stages, "text encoder", show) as live:
        encoder = architecture.build_text_encoder()
        fill(encoder, config.seed)
        live.own(WEIGHTS, encoder.parameters())
        live.forget_peak()  # tensors of the meta device were counted too
        # There is no tokenizer here; a prompt is some tokens between start and end.
        ids = torch.randint(
            values["vocab_size"] - 2, (2, length), generator=sample_generator(config.seed, 0, 1)
        )
        ids[:, 0], ids[0, 9:], ids[1, 1:] = (values["vocab_size"] - n for n in (2, 1, 1))
        with torch.no_grad():
            states = encoder.eval()(input_ids=ids).last_hidden_state
    _compare(stages["text encoder"], {WEIGHTS: 4 * plan.parameters["text encoders"]})
    _check_finite(states, "the text encoder's states")
    return TextCondition(states[:1].clone()), TextCondition(states[1:].clone())


def _encode_image(
    config: SDConfig, architecture: Architecture, plan: Plan, stages: dict, show: Callable
) -> Tensor:
    """Latents of a random image, and what they took."""
    _channels, height, width = architecture.latent_shape(config.resolution)
    size = (height * architecture.factor, width * architecture.factor)
    show(f"autoencoder: an image of {size[0]} x {size[1]} pixels ...")
    with _stage(stages, "autoencoder", show) as live:
        vae = architecture.build_vae()
        fill(vae, config.seed + 1)
        live.own(WEIGHTS, vae.parameters())
        live.forget_peak()
        image = torch.rand(1, 3, *size, generator=sample_generator(config.seed, 0, 2)) * 2 - 1
        latents = encode_images(vae.eval(), image)
    working = trace_coding(architecture, "encode", 1, config.resolution)[0]
    _compare(stages["autoencoder"], {
        WEIGHTS: 4 * plan.parameters["autoencoder"], WORKING: working,
    })  # fmt: skip
    _check_finite(latents, "the latents")
    return latents / latents.std()  # what a trained autoencoder's scaling is for


def _distill(
    config: SDConfig, architecture: Architecture, plan: Plan, stages: dict, show: Callable,
    latents: Tensor, cond: TextCondition, empty: TextCondition,
) -> tuple[dict[str, int], list[dict[str, float]]]:  # fmt: skip
    """The updates, and what they took and changed."""
    show(f"UNet: {config.training.updates} updates with adapters of rank {config.lora_rank} ...")
    with _stage(stages, "updates", show) as live:
        unet = architecture.build_unet()
        fill(unet, config.seed + 2, DTYPES[config.frozen_dtype])
        device = torch.device("cpu")
        networks = build_networks(config, unet, make_autocast(config, device))
        names = ("base UNet", "adapters", "their average")
        parts = dict(zip(names, _parts(networks), strict=True))
        for name, tensors in parts.items():
            live.own(name, tensors.values())
        live.own_gradients(GRADIENTS, parts["adapters"].values())
        engine = Engine(
            config, NoiseSchedule.stable_diffusion(), networks,
            _Repeated(latents, cond, empty),
        )  # fmt: skip
        sums = {name: checksums(tensors) for name, tensors in parts.items()}
        states, begin = [], _now()
        live.forget_peak()
        for state in engine.updates():
            moments = [s for of in engine.optimizer.state.values() for s in of.values()]
            live.own("optimiser's state", [m for m in moments if isinstance(m, Tensor)])
            took = {"loss": state.loss, "grad_norm": state.grad_norm, **_since(begin)}
            states.append(took)
            show(_update_line(state.update, took))
            if not state.skipped < state.update:
                raise FloatingPointError("no update had a finite loss and gradient")
            del state, moments
            begin = _now()
        after = {name: checksums(tensors) for name, tensors in parts.items()}
    wanted = plan.update(config.training.batch).parts
    _compare(
        stages["updates"],
        {k: v for k, v in wanted.items() if k not in ("autoencoder", "text encoders")},
    )
    changed = {
        name: sum(a != b for a, b in zip(sums[name], after[name], strict=True)) for name in names
    }
    return {
        "base": changed["base UNet"], "of_base": len(sums["base UNet"]),
        "adapters": changed["adapters"], "of_adapters": len(sums["adapters"]),
        "average": changed["their average"], "of_average": len(sums["their average"]),
    }, states  # fmt: skip


class _Repeated:
    """The same sample for every number."""

    def __init__(self, latents: Tensor, cond: TextCondition, empty: TextCondition) -> None:
        self.latents, self.cond, self.empty = latents, cond, empty

    def get(self, numbers: list[int]) -> tuple[Tensor, TextCondition]:
        """As the engine asks for them."""
        count = len(numbers)
        return self.latents.expand(count, *self.latents.shape[1:]), self.cond.expand(count)


def _parts(networks: LoraNetworks) -> list[dict[str, Tensor]]:
    """The frozen parameters, the trained ones and their average, by name."""
    taken = {id(p) for p in (*networks.trained.values(), *networks.average.values())}
    base = {n: p for n, p in networks.unet.named_parameters() if id(p) not in taken}
    return [base, dict(networks.trained), dict(networks.average)]


# -------------------------------------------------------------------- weights


@torch.no_grad()
def fill(module: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> None:
    r"""Give a module of the meta device memory on the CPU and random weights, in place.

    Matrices and convolutions are normal with variance 1 over the number of inputs, so that values
    keep their size from layer to layer; biases are 0, weights of normalisations 1.

    Args:
        module: as :class:`slam_edu.sd.published.Architecture` builds it.
        seed: of the weights.
        dtype: of them.

    Raises:
        ValueError: for a module with buffers whose values are not known.
    """
    generator = torch.Generator().manual_seed(seed)
    nn.Module.to(module, dtype)
    module.to_empty(device="cpu")
    for name, p in module.named_parameters():
        if p.ndim > 1:
            inputs = p[0].numel()
            p.normal_(0, inputs**-0.5, generator=generator)
        else:
            p.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, buffer in module.named_buffers():
        if not name.endswith("position_ids"):
            raise ValueError(f"a {type(module).__name__} has a buffer {name}; allowed: "
                             f"position_ids")  # fmt: skip
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))


def checksums(tensors: Mapping[str, Tensor]) -> list[str]:
    """The SHA-256 of each tensor's bytes, in the mapping's order."""
    return [
        hashlib.sha256(t.detach().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        for t in tensors.values()
    ]


# -------------------------------------------------------------------- memory and times


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(begin: tuple[float, float]) -> dict[str, float]:
    """Seconds by the clock, and of the processor: a machine may be shared."""
    wall, cpu = (now - then for now, then in zip(_now(), begin, strict=True))
    return {"seconds": round(wall, 1), "processor_seconds": round(cpu, 1)}


@contextlib.contextmanager
def _stage(stages: dict, name: str, show: Callable[[str], None]) -> Iterator[LiveBytes]:
    """Measure what the block needs; the most is noted when it ends."""
    gc.collect()
    live, begin = LiveBytes(), _now()
    with live, _resident_peak() as resident:
        yield live
    stages[name] = {
        **_since(begin),
        "measured_gib": {
            (WORKING if part == REST and name != "updates" else part): size / GIB
            for part, size in live.peak.items() if size
        },
        "resident_gib": max(resident) / GIB,
    }  # fmt: skip


@contextlib.contextmanager
def _resident_peak(every: float = 0.02) -> Iterator[list[int]]:
    """The process's resident bytes, the largest so far as the list's only value."""
    most, done = [resident_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            most[0] = max(most[0], resident_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def _compare(stage: dict[str, Any], wanted: Mapping[str, int]) -> None:
    """Put the plan's figures beside what was measured."""
    measured = stage["measured_gib"]
    assumed = {name: size for name, size in wanted.items() if name not in measured}
    counted = {name: wanted[name] / GIB for name in wanted if name in measured}
    ratios = {name: measured[name] / counted[name] for name in counted}
    total = sum(measured[name] for name in counted) / sum(counted.values())
    stage["plan_gib"] = {**counted, **{name: size / GIB for name, size in assumed.items()}}
    stage["measured_over_plan"] = {**ratios, "total": total}
    stage["within"] = all(abs(r - 1) <= TOLERANCE for r in (*ratios.values(), total))


def _check_finite(values: Tensor, name: str) -> None:
    if not bool(values.isfinite().all()):
        raise FloatingPointError(f"{name} are not all finite")


def processor_name() -> str:
    """What the processor is called; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


# -------------------------------------------------------------------- words and file


def record_as_text(record: Mapping[str, Any]) -> str:
    """The record as a page of text: each part's memory beside the plan's, times, changes."""
    lines = [
        f"{record['what']}, random weights, {record['machine']['threads']} thread(s) of "
        f"{record['machine']['processor']}, {record['seconds']:.0f} s in all, "
        f"{record['processor_seconds']:.0f} s of the processor",
        f"  {'':<36}{'measured':>10}{'plan':>10}{'ratio':>8}   GiB",
    ]
    for name, stage in record["stages"].items():
        lines.append(f"  {name}, {stage['processor_seconds']:.0f} s of the processor")
        for part, planned in stage["plan_gib"].items():
            got = stage["measured_gib"].get(part)
            ratio = stage["measured_over_plan"].get(part)
            lines.append(
                f"    {part:<34}{'' if got is None else f'{got:.3f}':>10}{planned:>10.3f}"
                f"{'' if ratio is None else f'{ratio:.2f}':>8}"
            )
        measured = sum(stage["measured_gib"].values())
        total = sum(stage["plan_gib"].values())
        lines.append(
            f"    {'total':<34}{measured:>10.3f}{total:>10.3f}"
            f"{stage['measured_over_plan']['total']:>8.2f}  (parts that are measured)"
        )
        lines.append(f"    {'resident, all included':<34}{stage['resident_gib']:>10.3f}")
    lines += [_update_line(i, update) for i, update in enumerate(record["updates"], 1)]
    of = record["changed"]
    lines += [
        f"  changed: {of['base']} of {of['of_base']} weights of the base, {of['adapters']} of "
        f"{of['of_adapters']} adapters, {of['average']} of {of['of_average']} averages",
        f"  only the adapters changed: {_yes(record['only_adapters_changed'])}; memory within "
        f"{100 * TOLERANCE:.0f} % of the plan in every part: "
        f"{_yes(record['within_15_percent'])}",
    ]
    return "\n".join(lines)


def save_record(record: Mapping[str, Any], path: str | Path) -> None:
    """Write the record as JSON.

    Args:
        record: of :func:`run_full_size`.
        path: of the file, in a folder that exists.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_rounded(record), indent=1) + "\n", "utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_rounded(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value


def _update_line(number: int, took: Mapping[str, float]) -> str:
    return (
        f"  update {number}: loss {took['loss']:.4f}, gradient norm {took['grad_norm']:.3f}, "
        f"{took['seconds']:.0f} s, {took['processor_seconds']:.0f} s of the processor"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "NO"

"""Updates at true size with random weights, measured on this machine beside what `plan` says.

    python -m studies.full_size sd15-t4-lora sd15-a100,optimizer=adamw --out full-size.json

A preset may carry settings after commas. Seconds and memory do not depend on the weights; what a
student learns does, so nothing is learnt here. With CUDA the peak is that of torch's allocator,
without the libraries and gaps that `plan` assumes on top.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from slam_edu.io import atomic_path, check_output
from slam_edu.schedule import NoiseSchedule
from slam_edu.sd.components import TextCondition
from slam_edu.sd.config import load_config
from slam_edu.sd.engine import Engine, make_autocast
from slam_edu.sd.networks import build_networks
from slam_edu.sd.plan import make_plan
from slam_edu.sd.published import Architecture, architecture_of

UPDATES, GIB = 4, 2**30


class RandomBatches:
    """The same random latents and text states for every update."""

    def __init__(self, architecture: Architecture, batch: int) -> None:
        draw = torch.Generator().manual_seed(0)

        def condition(count: int) -> TextCondition:
            states = torch.randn(count, *architecture.text_shape, generator=draw)
            if architecture.pooled_width is None:
                return TextCondition(states)
            pooled = torch.randn(count, architecture.pooled_width, generator=draw)
            return TextCondition(states, pooled, torch.full((count, 6), 512.0))

        self.x0 = torch.randn(batch, *architecture.latent_shape(), generator=draw)
        self.cond, self.empty = condition(batch), condition(1)

    def get(self, numbers: list[int]) -> tuple[torch.Tensor, TextCondition]:
        """Latents and conditions, whatever the samples' numbers."""
        return self.x0, self.cond


def measure(preset: str, settings: list[str], device: torch.device) -> dict[str, object]:
    """Seconds of each update and the allocator's peak, in GiB, beside the plan's."""
    config = load_config(preset, settings=[*settings, f"updates={UPDATES}", "warmup=0"])
    architecture = architecture_of(config)
    draw = torch.Generator(device).manual_seed(0)
    unet = architecture.build_unet().to_empty(device=device)
    with torch.no_grad():
        for path, p in unet.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 0.02, generator=draw)
            else:
                p.fill_(path.endswith("weight"))
    networks = build_networks(config, unet, make_autocast(config, device))
    del unet
    schedule = NoiseSchedule.stable_diffusion().to(device)
    engine = Engine(config, schedule, networks, RandomBatches(architecture, config.training.batch))
    cuda, seconds, begin = device.type == "cuda", [], time.perf_counter()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in engine.updates():  # the loop reads every loss, which waits for the device
        seconds.append(round(time.perf_counter() - begin, 2))
        begin = time.perf_counter()
    parts = make_plan(config, device=device.type).update().parts
    planned = sum(size for part, size in parts.items() if "assumed" not in part)
    return {
        "preset": preset, "settings": settings, "batch": engine.batch, "seconds": seconds,
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if cuda else None,
        "planned_gib": round(planned / GIB, 2),
        "planned_with_overhead_gib": round(sum(parts.values()) / GIB, 2),
    }  # fmt: skip


def main() -> None:
    """Measure the presets that are named, one after the other, and print a row each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("presets", nargs="+", help="such as sd15-t4-lora,batch=4")
    parser.add_argument("--out", type=Path, help="a JSON file of the rows")
    options = parser.parse_args()
    if options.out:
        check_output(options.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "processor"
    rows = []
    for preset, *settings in (text.split(",") for text in options.presets):
        rows.append(measure(preset, settings, device))
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        with atomic_path(options.out) as path:
            record = {"device": name, "torch": torch.__version__, "rows": rows}
            path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

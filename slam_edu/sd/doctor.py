"""What this machine can run: ``slam-edu doctor``.

Looks at versions, memory, disk and the shipped model, plans the presets that the device allows
(:mod:`slam_edu.sd.plan`), and recommends one. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from slam_edu.environment import check_environment
from slam_edu.sd.config import PRESETS, load_config
from slam_edu.sd.plan import GIB, available_bytes, free_disk, make_plan
from slam_edu.shipped import shipped

NEEDED = (
    "diffusers", "transformers", "accelerate", "peft", "safetensors", "ruamel.yaml", "filelock"
)  # fmt: skip
#: Package to what it is for.
OPTIONAL = {
    "bitsandbytes": "optimizer=adamw8bit",
    "tensorboard": "tracker=tensorboard",
    "datasets": "data=datasets",
    "torchmetrics": "slam-edu evaluate",
}
MARKS = {True: "ok", False: "NO", None: "-"}
#: What is recommended, the first that fits.
PREFERRED = ("sd15-a100", "sd15-24gb", "sd15-t4-lora", "digits", "digits-lora")


class Finding(NamedTuple):
    """One thing that was looked at; ``ok`` is None where it need not be there."""

    name: str
    ok: bool | None
    detail: str


def examine(out: str | os.PathLike[str] = ".", *, hub: bool = False) -> Iterator[Finding]:
    """Look at the machine, at the disk of the folder ``out``, and with ``hub`` at the network."""
    machine = check_environment()
    yield Finding("Python", sys.version_info >= (3, 10), machine.python)
    yield Finding("torch", True, f"{machine.torch}, {torch.get_num_threads()} thread(s)")
    for package in NEEDED:
        found = _version(package)
        yield Finding(package, found is not None, found or "missing: pip install slam_edu[sd]")
    for package, what in OPTIONAL.items():
        found = _version(package)
        yield Finding(package, found and True, found or f"not installed; {what} needs it")
    yield Finding("processor", True, f"{machine.cores} cores")
    free, disk = available_bytes("cpu") / GIB, free_disk(out) / GIB
    memory = f"{free:.1f} GiB free of {machine.memory:.1f}; the digits take 1 to 2"
    yield Finding("memory", free >= 2, memory)
    gpu = "none: the digits' presets run on the processor"
    if machine.device == "cuda":
        half = "bf16 and fp16" if torch.cuda.is_bf16_supported() else "fp16 alone"
        gpu = (
            f"{machine.accelerator}, {available_bytes('cuda') / GIB:.1f} GiB free of "
            f"{machine.accelerator_memory:.1f}, {half}"
        )
    elif machine.device == "mps":
        gpu = f"{machine.accelerator}, which shares the machine's memory"
    yield Finding("GPU", True if machine.device == "cuda" else None, gpu)
    yield Finding("disk", disk >= 1, f"{disk:.1f} GiB free at {str(Path(out).resolve())!r}")
    try:
        shipped("digits").load_teacher()
        yield Finding("digits model", True, "every checksum is right")
    except (FileNotFoundError, ValueError, ModuleNotFoundError) as error:
        yield Finding("digits model", False, str(error))
    if hub:
        import urllib.request

        address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        try:
            urllib.request.urlopen(f"{address}/robots.txt", timeout=10).close()
            yield Finding("hub", True, f"{address} answers")
        except (OSError, ValueError) as error:
            yield Finding("hub", None, f"{address} does not answer ({error})")


def preset_fit(preset: str, device: str, room: int, disk: int) -> tuple[bool, str]:
    """Whether a preset fits a device with so many free bytes of memory and of disk, and why."""
    config = load_config(preset)
    if device != "cuda" and config.mixed_precision != "no":
        return False, "needs a CUDA GPU"
    plan = make_plan(config, device=device)
    need, files = plan.total(), plan.disk()
    kept = files["checkpoints"] + (0 if shipped(config.teacher) else files["teacher"])
    details = [f"needs {need / GIB:.1f} GiB of memory, {kept / GIB:.1f} GiB of disk"]
    if need > room:
        batch = plan.largest_batch(room / GIB)
        more = f" (batch={batch} fits)" if batch else ""
        details.append(f"{room / GIB:.1f} GiB of memory are free{more}")
    if kept > disk:
        details.append(f"{disk / GIB:.1f} GiB of disk are free")
    if config.optimizer == "adamw8bit" and _version("bitsandbytes") is None:
        details.append("bitsandbytes is not installed")
    return len(details) == 1, "; ".join(details)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``slam-edu doctor``."""
    parser.add_argument(
        "--dir", default=".", metavar="DIR", help="where runs will be, for the disk (default: .)"
    )
    parser.add_argument(
        "--hub", action="store_true", help="also see whether the Hugging Face hub answers"
    )


def run(options: argparse.Namespace) -> int:
    """Print what was found; returns the exit status, 1 where something needed is missing."""
    missing = 0
    for name, ok, detail in examine(options.dir, hub=options.hub):
        print(f"{MARKS[ok]:<3}{name:<22}{detail}", flush=True)
        missing += ok is False
    if missing:
        print(f"\n{missing} of these must be mended first")
        return 1
    device = check_environment().device
    room, disk = available_bytes(device), free_disk(options.dir)
    print(f"\npresets on this machine ({device})")
    good = []
    for preset in PRESETS:
        fits, detail = preset_fit(preset, device, room, disk)
        print(f"{'yes' if fits else 'no':<4}{preset:<18}{detail}", flush=True)
        good += [preset] * fits
    name = next((name for name in PREFERRED if name in good), None)
    if name is None:
        print("\nno preset fits; `slam-edu plan --preset digits batch=8` tells what would")
        return 1
    print(f"\nbegin with: slam-edu distill --preset {name}")
    return 0

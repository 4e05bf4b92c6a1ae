"""What this machine can run: ``slam-edu doctor``.

Looks at versions, memory, disk and the shipped model, plans the presets that the device allows
(:mod:`slam_edu.sd.plan`), and recommends one. Nothing is downloaded, and no address is asked for
anything unless that is wanted (``--hub``). ``--full-size`` goes further: it takes some updates at
the size of Stable Diffusion 1.5 (:mod:`slam_edu.sd.full_size`).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from slam_edu._validation import check_choice
from slam_edu.environment import Environment, check_environment
from slam_edu.sd.config import PRESETS, SDConfig, load_config
from slam_edu.sd.memory import GIB, available_bytes, free_disk

NEEDED = ("diffusers", "transformers", "accelerate", "peft", "safetensors", "PyYAML", "filelock")
#: Package to what it is for.
OPTIONAL = {
    "bitsandbytes": "optimizer=adamw8bit",
    "tensorboard": "tracker=tensorboard",
    "webdataset": "data=webdataset",
    "datasets": "data=datasets",
    "torchmetrics": "slam-edu evaluate",
}
#: What is recommended, the first that fits.
PREFERRED = ("sd15-a100", "sd15-24gb", "sd15-t4-lora", "digits", "digits-lora")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of it.
        ok: whether it is as it should be; None: it need not be.
        detail: what was found, and what to do.
    """

    name: str
    ok: bool | None
    detail: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "NO", None: "-"}[self.ok]
        return f"{mark:<3}{self.name:<22}{self.detail}"


def examine(out: str | os.PathLike[str] = ".", *, hub: bool = False) -> Iterator[Finding]:
    """Look at the machine, one finding after the other.

    Args:
        out: folder whose disk counts.
        hub: also see whether the Hugging Face hub answers.
    """
    machine = check_environment()
    yield Finding("Python", sys.version_info >= (3, 10), machine.python)
    yield Finding("torch", True, f"{machine.torch}, {torch.get_num_threads()} thread(s)")
    for package in NEEDED:
        found = _version(package)
        yield Finding(package, found is not None, found or "missing: pip install slam_edu[sd]")
    for package, what in OPTIONAL.items():
        found = _version(package)
        wanted = None if found is None else True
        yield Finding(package, wanted, found or f"not installed; {what} needs it")
    yield Finding("processor", True, f"{machine.cores} cores, {_processor()}")
    free = available_bytes("cpu") / GIB
    yield Finding(
        "memory", free >= 2, f"{free:.1f} GiB free of {machine.memory:.1f}; the digits take 1 to 2"
    )
    yield _gpu(machine)
    disk = free_disk(out) / GIB
    yield Finding("disk", disk >= 1, f"{disk:.1f} GiB free at {str(Path(out).resolve())!r}")
    yield _model()
    if hub:
        yield _hub()


def _gpu(machine: Environment) -> Finding:
    if machine.accelerator is None:
        return Finding("GPU", None, "none: the digits' presets run on the processor")
    if machine.device == "mps":
        return Finding("GPU", None, f"{machine.accelerator}, which shares the machine's memory")
    free = available_bytes("cuda") / GIB
    half = "bf16 and fp16" if torch.cuda.is_bf16_supported() else "fp16 alone"
    return Finding(
        "GPU", True,
        f"{machine.accelerator}, {free:.1f} GiB free of {machine.accelerator_memory:.1f}, {half}",
    )  # fmt: skip


def _model() -> Finding:
    """Whether the shipped model's files are those that were shipped."""
    from slam_edu.digits.pipeline import PIPELINE, check_files
    from slam_edu.io import data_path

    try:
        folder = data_path(PIPELINE)
        check_files(folder)
    except (FileNotFoundError, ValueError) as error:
        return Finding("digits model", False, str(error))
    return Finding("digits model", True, f"{str(folder)!r}, every checksum is right")


def _hub() -> Finding:
    import urllib.error
    import urllib.request

    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(f"{address}/robots.txt", timeout=10).close()
    except (urllib.error.URLError, TimeoutError, OSError, ValueError) as error:
        return Finding("hub", None, f"{address} does not answer ({error})")
    return Finding("hub", True, f"{address} answers")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a preset fits a machine.

    Attributes:
        preset: its name.
        fits: whether memory, disk and packages are enough.
        detail: the numbers, or why not.
    """

    preset: str
    fits: bool
    detail: str

    def __str__(self) -> str:
        return f"{'yes' if self.fits else 'no':<4}{self.preset:<18}{self.detail}"


def fitting_presets(
    device: str, room: int, disk: int, presets: tuple[str, ...] | None = None
) -> Iterator[Fit]:
    """Which presets fit, one after the other.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        room: its free memory in bytes.
        disk: free bytes where runs and downloads are kept.
        presets: which of them; None: all.

    Raises:
        ValueError: for another device or an unknown preset.
    """
    check_choice(device, ("cpu", "cuda", "mps"), "device")
    for name in presets or PRESETS:
        config = load_config(name)
        if device != "cuda" and config.mixed_precision != "no":
            yield Fit(preset=name, fits=False, detail="needs a CUDA GPU")
        else:
            yield _fit(name, config, device, room, disk)


def _fit(name: str, config: SDConfig, device: str, room: int, disk: int) -> Fit:
    from slam_edu.sd.plan import make_plan

    plan = make_plan(config, device=device)
    need, files = plan.total(), plan.disk()
    kept = files["checkpoints"] + (0 if config.teacher == "digits" else files["teacher"])
    detail = f"{need / GIB:.1f} GiB of memory, {kept / GIB:.1f} GiB of disk"
    lacking = []
    if need > room:
        batch = plan.largest_batch(room / GIB)
        more = f" (batch={batch} fits)" if batch else ""
        lacking.append(f"{room / GIB:.1f} GiB of memory are free{more}")
    if kept > disk:
        lacking.append(f"{disk / GIB:.1f} GiB of disk are free")
    if config.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        lacking.append("bitsandbytes is not installed")
    return Fit(preset=name, fits=not lacking, detail="; ".join([f"needs {detail}", *lacking]))


def recommended(fits: list[Fit]) -> str | None:
    """The preset to begin with; None if none fits.

    Args:
        fits: of :func:`fitting_presets`.
    """
    good = {fit.preset for fit in fits if fit.fits}
    return next((name for name in PREFERRED if name in good), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    from slam_edu.sd.full_size import processor_name

    return processor_name() or platform.machine()


# -------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument(
        "--dir", default=".", metavar="DIR", help="where runs will be, for the disk (default: .)"
    )
    parser.add_argument(
        "--hub", action="store_true", help="also see whether the Hugging Face hub answers"
    )
    parser.add_argument(
        "--full-size", action="store_true",
        help="take two updates with adapters at the size of Stable Diffusion 1.5, random weights, "
        "on this processor: about 8 GiB of memory and some minutes",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the full-size record as JSON"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="name=value",
        help="settings of the full-size run, such as updates=4 frozen_dtype=bfloat16",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Print what was found; returns the exit status, 1 where something needed is missing."""
    if options.full_size:
        return _full_size(options)
    if options.out is not None or options.settings:
        raise ValueError("--out and settings belong to --full-size; allowed: both with it")
    missing = 0
    for finding in examine(options.dir, hub=options.hub):
        print(finding, flush=True)
        missing += finding.ok is False
    if missing:
        print(f"\n{missing} of these must be mended first")
        return 1
    device = check_environment().device
    print(f"\npresets on this machine ({device})")
    fits = []
    for fit in fitting_presets(device, available_bytes(device), free_disk(options.dir)):
        print(fit, flush=True)
        fits.append(fit)
    name = recommended(fits)
    if name is None:
        print("\nno preset fits; `slam-edu plan --preset digits batch=8` says what would")
        return 1
    print(f"\nbegin with: slam-edu distill --preset {name}")
    return 0


def _full_size(options: argparse.Namespace) -> int:
    from slam_edu.sd.full_size import full_size_config, record_as_text, run_full_size, save_record

    if options.out is not None and not options.out.resolve().parent.is_dir():
        raise ValueError(
            f"the folder of {str(options.out)!r} does not exist; allowed: an existing one"
        )
    record = run_full_size(full_size_config(options.settings), show=lambda s: print(s, flush=True))
    print(record_as_text(record))
    if options.out is not None:
        save_record(record, options.out)
    return 0 if record["only_adapters_changed"] and record["within_15_percent"] else 1

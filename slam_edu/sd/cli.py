"""The command ``slam-edu``: distil a Stable Diffusion, and what comes before and after.

    slam-edu distill     train a student; the same command goes on with a run that was stopped
    slam-edu cache       encode a data set, or draw one from the teacher, before the training
    slam-edu sample      draw images with a run's student, or any pipeline, as one picture
    slam-edu evaluate    figures of a run's student, or of a pipeline
    slam-edu export      a stock diffusers folder, or a LoRA file, of a run's student
    slam-edu plan        parameters, memory and time, before anything is loaded
    slam-edu doctor      what this machine can run

With several GPUs: ``accelerate launch --num_processes 4 -m slam_edu.sd distill ...``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from slam_edu.sd.config import PRESETS, SDConfig, describe, load_config

#: Name to (module with ``add_arguments`` and ``run``, what it does).
COMMANDS = {
    "distill": ("slam_edu.sd.cli_distill", "train a student"),
    "cache": ("slam_edu.sd.cli_cache", "encode a data set before the training"),
    "sample": ("slam_edu.sd.cli_sample", "draw images, as one picture"),
    "evaluate": ("slam_edu.sd.cli_evaluate", "figures of a student or a pipeline"),
    "export": ("slam_edu.sd.export", "write a stock diffusers folder, or a LoRA file"),
    "plan": ("slam_edu.sd.plan", "parameters, memory and time, before anything is loaded"),
    "doctor": ("slam_edu.sd.doctor", "what this machine can run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torchvision, we do not
    parser = argparse.ArgumentParser(
        prog="slam-edu",
        description="Distil a Stable Diffusion into a student that draws in 2 to 4 steps.",
        epilog="`slam-edu COMMAND --help` says more of each.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, what) in COMMANDS.items():
        sub = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        # The others' modules, and what they import, are not needed.
        if name in argv[:1]:
            importlib.import_module(module).add_arguments(sub)
    options = parser.parse_args(argv)
    try:
        return importlib.import_module(COMMANDS[options.command][0]).run(options)
    except (
        ValueError, OSError, FloatingPointError, ModuleNotFoundError, MemoryError
    ) as error:  # fmt: skip
        print(f"slam-edu: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("slam-edu: interrupted", file=sys.stderr)
        return 130


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command takes that needs a configuration: preset, file, settings."""
    listed = "; ".join(f"{name}: {what}" for name, (what, _) in PRESETS.items())
    parser.add_argument(
        "--preset", default="digits", choices=list(PRESETS), metavar="NAME",
        help=f"settings to begin with (default: digits). {listed}".replace("%", "%%"),
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML or JSON with settings, over the preset's"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="name=value",
        help="settings over both, such as lr=2e-4 (--help-config explains all)",
    )  # fmt: skip
    parser.add_argument(
        "--help-config", action=_HelpConfig, nargs=0,
        help="print every setting of the preset with its meaning, and stop",
    )  # fmt: skip


def chosen_config(options: argparse.Namespace) -> SDConfig:
    """The configuration that the arguments of :func:`add_config_arguments` say."""
    return load_config(options.preset, options.config, options.settings)


class _HelpConfig(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Print the settings as a configuration file; the preset is the one named before."""
        print(describe(load_config(getattr(namespace, "preset", None) or "digits")), end="")
        parser.exit()

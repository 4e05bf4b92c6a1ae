"""Writes the student that comes with the course: its UNet, its scheduler, what made it.

The other parts of the pipeline are the teacher's, and lie in ``data/digits-sd``;
:func:`slam_edu.digits.load_student` puts them together.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slam_edu._validation import check_choice
from slam_edu.digits.pipeline import STUDENT, write_checksums
from slam_edu.digits.students.plan import SETTINGS, STEPS, TEACHER_STEPS, TIMES
from slam_edu.digits.students.results import Results
from slam_edu.io import data_path, replaced_folder

LARGEST = 12_000_000
"""Bytes that the folder may have."""

_CARD, _OWN = "README.md", ("unet", "scheduler")


def ship(results: Results, out: Path, name: str, seed: int = 0, to: Path | None = None) -> Path:
    """Write a student of the study as ``data/digits-student`` is: in half precision.

    The folder is written beside its place and then moved there.

    Args:
        results: of the study; the model card has the student's numbers.
        out: the study's folder, with the run.
        name: of the student.
        seed: of the run.
        to: the folder; default the course's own. One that is there must be an earlier one.

    Returns:
        the folder.

    Raises:
        FileNotFoundError: without the run.
        ValueError: for an unknown student, one that was not measured, a ``to`` that holds
            something else, or weights that take more than 12 MB.
    """
    from slam_edu.sd.export import export_pipeline
    from slam_edu.sd.run import load_run
    from slam_edu.sd.tracking import LOG

    check_choice(name, SETTINGS, "the name of a student")
    to = data_path("digits-sd").with_name(STUDENT) if to is None else Path(to)
    if to.is_dir() and any(to.iterdir()) and not (to / "unet" / "config.json").is_file():
        raise ValueError(
            f"{str(to)!r} is a folder with other files, which would be lost; allowed: a new "
            f"folder, or that of an earlier student"
        )
    rows = results.student(name)
    if seed not in rows:
        raise ValueError(
            f"{name}, seed {seed}, is not among the results; allowed: "
            f"{', '.join(map(str, rows)) or 'no seed yet'}"
        )
    config, run = results.plan.config(name, seed), results.plan.config(name, seed, out)
    found = load_run(run.out)
    with tempfile.TemporaryDirectory() as whole, replaced_folder(to) as folder:
        export_pipeline(found.networks, found.pipeline, config, Path(whole) / "student")
        for part in _OWN:
            shutil.copytree(Path(whole) / "student" / part, folder / part)
        (folder / "training").mkdir()
        shutil.copyfile(Path(run.out) / LOG, folder / "training" / LOG)
        about = {"student": name, **_settings(config)}
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        (folder / "training" / "config.json").write_text(text, "utf-8")
        (folder / _CARD).write_text(_card(results, name, seed, about), "utf-8")
        write_checksums(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > LARGEST:
            raise ValueError(
                f"the student takes {size:,} bytes; allowed: at most {LARGEST:,}, as files that "
                f"come with the course"
            )
    return to


def _settings(config: Any) -> dict[str, Any]:
    """The configuration without what a machine or a folder is."""
    local = ("out", "cache_folder", "data_path", "threads", "device", "tracker")
    return {k: v for k, v in config.settings().items() if k not in local}


def _card(results: Results, name: str, seed: int, about: Mapping[str, Any]) -> str:
    """The model card, in Markdown."""
    from slam_edu.sd.export import figures_table

    row = results.student(name)[seed]
    one, many = row.measured, {s.steps: r for s, r in results.solvers() if s.sampler == "ddim"}

    def rates(whose: Mapping[str, float], calls: int, who: str) -> dict[str, Any]:
        return {
            "": who,
            "network calls": calls,
            "as asked for": f"{whose[f'right_{calls}']:.1%}",
            "Fréchet to the teacher": whose[f"frechet_teacher_{calls}"],
            "Fréchet to real images": whose[f"frechet_real_{calls}"],
        }

    table = [rates(one, n, f"this student, {n} step{'s' * (n > 1)}") for n in STEPS]
    for steps in (4, TEACHER_STEPS):
        if steps in many:
            table.append(
                rates(many[steps].measured, 2 * steps, f"the teacher, DDIM, {steps} steps")
            )
    errors = ", ".join(f"{one[f'latent_{t}']:.3f} at t = {t}" for t in TIMES)
    shown = (
        "updates", "batch", "lr", "ema_rate", "guidance", "subpaths", "method", "conditioning",
        "coupling", "gammas", "hop", "reach", "seed",
    )  # fmt: skip
    lines = [
        "---", "license: mit", "library_name: diffusers", "pipeline_tag: text-to-image", "---", "",
        "# A few-step student of digits-sd", "",
        f"The course's digits model, [digits-sd](../digits-sd/README.md), distilled by \"{name}\" "
        f"(seed {seed}): the UNet in half precision and its scheduler. All other parts are the "
        f"teacher's.", "",
        "```python", "from slam_edu.digits import load_student", "", "pipeline = load_student()",
        'prompt = "a red seven on a yellow background"',
        "image = pipeline(prompt, num_inference_steps=4, guidance_scale=1.0).images[0]", "```", "",
        f"`guidance_scale` stays at 1: the guidance of w = {about['guidance']:g} is in the "
        f"weights, and every step is one network call.", "",
        "## Figures", "", f"{results.plan.prompts:,} prompts of the held-out digits.", "",
        *figures_table(table), "",
        f"Error to the teacher's guided solution map, root mean square in latents: {errors}.", "",
        "## How it was made", "",
        f"`python -m slam_edu.digits.students`, {row.training / 60:.1f} minutes on one thread; "
        f"settings and log are in `training/`.", "", "| setting | value |", "|---|---|",
        *(f"| {key} | {about[key]} |" for key in shown), "",
        "## Limits", "",
        "It draws one digit in two of eight colours at 32 by 32 pixels, and nothing else. "
        "Licence: MIT, as the teacher's.", "",
    ]  # fmt: skip
    return "\n".join(lines)

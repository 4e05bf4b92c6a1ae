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

from slam_course.lesson_08.students import STEPS, TEACHER_STEPS, TIMES, DigitResults
from slam_edu.digits.pipeline import STUDENT
from slam_edu.io import data_path, replaced_folder
from slam_edu.sd.export import export_pipeline
from slam_edu.sd.run import load_run
from slam_edu.sd.tracking import LOG
from studies.digits.report import plan_of
from studies.digits.students import ABLATED
from studies.harness import table

LARGEST = 12_000_000
"""Bytes that the folder may have."""

_CARD, _OWN = "README.md", ("unet", "scheduler")
_LOCAL = ("out", "cache_folder", "data_path", "threads", "device", "tracker")


def ship(
    content: Mapping[str, Any], out: Path, name: str, seed: int = 0, to: Path | None = None
) -> Path:
    """Write a student of the study as ``data/digits-student`` is: in half precision.

    An earlier one is replaced when all is written.

    Args:
        content: of the results file; the model card has the student's numbers.
        out: the study's folder, with the run.
        name: of the student.
        seed: of the run.
        to: the folder; default the course's own. One that is there must be an earlier one.

    Raises:
        FileNotFoundError: without the run.
        ValueError: for one that was not measured, a ``to`` that holds something else, or weights
            that take more than 12 MB.
    """
    plan, results = plan_of(content), DigitResults(dict(content))
    to = data_path("digits-sd").with_name(STUDENT) if to is None else Path(to)
    seeds = results.student(name)
    if seed not in seeds:
        raise ValueError(
            f"{name}, seed {seed}, is not among the results; allowed: "
            f"{', '.join(map(str, seeds)) or 'no seed yet'}"
        )
    config, run = plan.config(name, seed), plan.config(name, seed, out).out
    found = load_run(run)
    parts = (_CARD, *_OWN, "training")
    with tempfile.TemporaryDirectory() as whole, replaced_folder(to, parts) as folder:
        export_pipeline(found.networks, found.pipeline, config, Path(whole) / "student")
        for part in _OWN:
            shutil.copytree(Path(whole) / "student" / part, folder / part)
        (folder / "training").mkdir()
        shutil.copyfile(Path(run) / LOG, folder / "training" / LOG)
        settings = {k: v for k, v in config.settings().items() if k not in _LOCAL}
        about = {"student": name, **settings, **ABLATED.get(name, {})}
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        (folder / "training" / "config.json").write_text(text, "utf-8")
        card = _card(results, name, seed, about)
        (folder / _CARD).write_text(card, "utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > LARGEST:
            raise ValueError(
                f"the student takes {size:,} bytes; allowed: at most {LARGEST:,}, as files that "
                f"come with the course"
            )
    return to


def _card(results: DigitResults, name: str, seed: int, about: Mapping[str, Any]) -> str:
    """The model card, in Markdown."""
    row = results.student(name)[seed]
    one, many = row.measured, {s.steps: r for s, r in results.solvers() if s.sampler == "ddim"}

    def line(who: str, whose: Mapping[str, float], calls: int) -> list[str]:
        distances = [whose[f"frechet_{of}_{calls}"] for of in ("teacher", "real")]
        rate = f"{whose[f'right_{calls}']:.1%}"
        return [who, str(calls), rate, *(f"{value:.4g}" for value in distances)]

    rows = [line(f"this student, {n} step{'s' * (n > 1)}", one, n) for n in STEPS]
    rows += [
        line(f"the teacher, DDIM, {steps} steps", many[steps].measured, 2 * steps)
        for steps in (4, TEACHER_STEPS)
        if steps in many
    ]
    head = [
        "",
        "network calls",
        "as asked for",
        "Fréchet to the teacher",
        "Fréchet to real images",
    ]
    errors = ", ".join(f"{one[f'latent_{t}']:.3f} at t = {t}" for t in TIMES)
    shown = (
        "updates", "batch", "lr", "ema_rate", "guidance", "subpaths", "method", "conditioning",
        "coupling", "gammas", "reach", "seed",
    )  # fmt: skip
    settings = "\n".join(f"| {key} | {about[key]} |" for key in shown)
    return f"""---
license: mit
library_name: diffusers
pipeline_tag: text-to-image
---

# A few-step student of digits-sd

The course's digits model, [digits-sd](../digits-sd/README.md), distilled by "{name}" \
(seed {seed}): the UNet in half precision and its scheduler. All other parts are the teacher's.

```python
from slam_edu.digits import load_student

pipeline = load_student()
prompt = "a red seven on a yellow background"
image = pipeline(prompt, num_inference_steps=4, guidance_scale=1.0).images[0]
```

`guidance_scale` stays at 1: the guidance of w = {about["guidance"]:g} is in the weights, and \
every step is one network call.

## Figures

{results.prompts:,} prompts of the held-out digits.

{table(head, rows)}
Error to the teacher's guided solution map, root mean square in latents: {errors}.

## How it was made

`python -m studies.digits`, {row.training / 60:.1f} minutes on one thread; settings and log are \
in `training/`.

| setting | value |
|---|---|
{settings}

## Limits

It draws one digit in two of eight colours at 32 by 32 pixels, and nothing else. Licence: MIT, as \
the teacher's.
"""

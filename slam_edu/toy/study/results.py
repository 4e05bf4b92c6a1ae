"""The study's results file, written as a whole; :mod:`slam_course.results` reads it."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable
from pathlib import Path

from slam_course.results import ToyRow, toy_header
from slam_edu.io import atomic_path


def write(path: Path, rows: Iterable[ToyRow]) -> None:
    """Replace the results file as a whole, its rows in a fixed order."""
    text = io.StringIO()
    out = csv.DictWriter(text, toy_header(), lineterminator="\n")
    out.writeheader()
    for row in sorted(rows, key=lambda row: (row.data, str(row.setting), row.seed, row.after)):
        settings = {k: "" if v is None else v for k, v in dataclasses.asdict(row.setting).items()}
        measured = {
            k: "" if math.isnan(v) else f"{v:.5g}" for k, v in row.measured.items()
        }  # fmt: skip
        out.writerow(
            {"data": row.data, "seed": row.seed, "after": row.after, **settings, **measured,
             "seconds": f"{row.seconds:.1f}", "skipped": row.skipped}
        )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")

"""The study's results file: one row per measured student, kept whole while runs come in.

A row holds every field of :class:`~slam_edu.toy.study.run.Setting`, the data set, the seed, the
number of updates ``after`` which it was measured, the measured numbers (see
:func:`~slam_edu.toy.study.run.measure`; empty where there is none), and the wall time.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slam_edu.io import atomic_path, data_path
from slam_edu.toy.study.run import Setting, columns

_FIELDS = {field.name: field for field in dataclasses.fields(Setting)}
_KINDS = {"int": int, "float": float, "str": str, "str | None": lambda word: word or None}


@dataclass(frozen=True)
class Row:
    """One measured student.

    Attributes:
        setting: what it was.
        data: name of the data set.
        seed: of everything random.
        after: updates after which it was measured; ``setting.updates`` at the end of a run.
        measured: numbers by name; NaN where there is none.
        seconds: wall time of the training so far.
        skipped: updates that were not finite.
    """

    setting: Setting
    data: str
    seed: int
    after: int
    measured: dict[str, float]
    seconds: float = 0.0
    skipped: int = 0

    @property
    def key(self) -> tuple[Setting, str, int, int]:
        """What identifies the row."""
        return self.setting, self.data, self.seed, self.after


def shipped() -> list[Row]:
    """The rows that come with the course.

    Raises:
        FileNotFoundError: if the installation lacks the file.
    """
    return read(data_path("study/runs.csv"))


def read(path: Path) -> list[Row]:
    """All rows of a results file; none if the file is not there.

    Raises:
        ValueError: for a file whose header is another one, or a row that cannot be read; it names
            the file and the line.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if lines.fieldnames != _header():
            odd = sorted(set(lines.fieldnames or ()) ^ set(_header()))
            raise ValueError(
                f"{path} has other columns than this version writes (they differ in {odd}); "
                f"allowed: a file of this version, or an empty folder (--out) to start anew"
            )
        rows = []
        for line in lines:
            try:
                rows.append(_row(line))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {lines.line_num}: {error}") from error
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    """Replace the results file as a whole, its rows in a fixed order."""
    text = io.StringIO()
    out = csv.DictWriter(text, _header(), lineterminator="\n")
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


def _header() -> list[str]:
    return ["data", "seed", "after", *_FIELDS, *columns(), "seconds", "skipped"]


def _row(line: dict[str, str]) -> Row:
    setting = Setting(**{name: _KINDS[f.type](line[name]) for name, f in _FIELDS.items()})
    measured = {name: float(line[name] or "nan") for name in columns()}
    return Row(
        setting, line["data"], int(line["seed"]), int(line["after"]), measured,
        float(line["seconds"]), int(line["skipped"]),
    )  # fmt: skip

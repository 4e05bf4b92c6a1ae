"""The log of a training run: ``log.csv``, one row per so many updates."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from slam_edu.files import atomic_path


def append_row(path: Path, columns: Sequence[str], row: Sequence[float]) -> None:
    """Add a row; the first makes the file.

    Args:
        path: of the log.
        columns: names; the first is ``update``.
        row: the number of updates, then one value for each other column.
    """
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(columns)
        writer.writerow([row[0], *(f"{value:.6g}" for value in row[1:])])


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a log; none where there is no file.

    A last row that was cut off, by a process that was killed while writing it, is left out.

    Args:
        path: of the log.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    rows = []
    for number, row in enumerate(found):
        try:
            rows.append({name: float(value) for name, value in row.items()})
        except (TypeError, ValueError):
            if number + 1 < len(found):
                raise ValueError(
                    f"{str(path)!r}, row {number + 2}, cannot be read: {row}; allowed: numbers"
                ) from None
    return rows


def shorten(path: Path, columns: Sequence[str], update: int) -> float:
    """Drop rows after an update; returns the seconds of the last row that stays, or 0.

    Args:
        path: of the log.
        columns: its names.
        update: of the checkpoint that a run goes on from.
    """
    if not path.exists():
        return 0.0
    kept = [row for row in read_rows(path) if row["update"] <= update]
    with atomic_path(path) as temporary:
        temporary.unlink()
        for row in kept:
            append_row(temporary, columns, [int(row["update"]), *(row[c] for c in columns[1:])])
        if not kept:
            temporary.write_text(",".join(columns) + "\n", "utf-8")
    return kept[-1]["seconds"] if kept else 0.0

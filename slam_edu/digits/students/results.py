"""The study's results file: JSON, a row per measured student and solver, whole while they come in.

``about`` says what all rows share (the plan's changes, the numbers of prompts and points, the
teacher's weights); ``floor`` is what real images score, ``change`` how exact the solution map is,
and ``rows`` are :class:`Row`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slam_course.results import Ratio, paired_ratio
from slam_edu.digits.evaluate.table import Setting
from slam_edu.digits.students.plan import SETTINGS, START, Plan, identity
from slam_edu.io import atomic_path, data_path

FILE = "students.json"
SHIPPED = f"digits-results/{FILE}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured student or solver.

    Attributes:
        name: of the student, or the solver's sampler.
        settings: of :func:`slam_edu.digits.students.plan.identity`.
        measured: numbers by name, see :mod:`slam_edu.digits.students.measure`.
        seed: of the run; 0 for a solver.
        gamma: for a student that is told gamma, the numbers of
            :mod:`slam_edu.digits.students.gamma`: ``shift``, and ``told``, by gamma; else empty.
        training: seconds of the training, 0 for a solver.
        measuring: seconds of the measurement.
        skipped: updates that were not finite.
    """

    name: str
    settings: dict[str, Any]
    measured: dict[str, float]
    seed: int = 0
    gamma: dict[str, Any] = field(default_factory=dict)
    training: float = 0.0
    measuring: float = 0.0
    skipped: int = 0

    @property
    def key(self) -> tuple[str, int, str]:
        """What identifies the row."""
        return key_of(self.name, self.seed, self.settings)


def key_of(name: str, seed: int, settings: dict[str, Any]) -> tuple[str, int, str]:
    """What identifies a row.

    Args:
        name: of the student or the sampler.
        seed: of the run.
        settings: of :func:`slam_edu.digits.students.plan.identity`.
    """
    return name, seed, json.dumps(settings, sort_keys=True)


class Results:
    """A results file that is read, looked up by the plan's names.

    Rows with other settings than the plan has now are passed over.

    Args:
        content: of the file, see :func:`read`.

    Attributes:
        plan: with the changes and counts of the file.
        floor: what real images score, with ``_0`` behind the names.
        change: what twice the solver's steps change of the map's ends, by timestep.
        rows: all of them.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        about = content["about"]
        self.plan = Plan(
            changes=tuple(about["changes"]), prompts=about["prompts"], points=about["points"],
            solver_steps=about["solver_steps"],
        )  # fmt: skip
        self.floor: dict[str, float] = content.get("floor", {})
        self.change = {int(t): value for t, value in content.get("change", {}).items()}
        self.rows = [Row(**row) for row in content["rows"]]
        self._by_key = {row.key: row for row in self.rows}
        self._settings = {
            name: json.dumps(self.plan.settings(name), sort_keys=True)
            for name in (START, *SETTINGS)
        }

    def student(self, name: str) -> dict[int, Row]:
        """The rows of a student by seed.

        Args:
            name: of the plan's settings, or the one that is not distilled.
        """
        wanted = (name, self._settings[name])
        found = {key[1]: row for key, row in self._by_key.items() if key[::2] == wanted}
        return dict(sorted(found.items()))

    @property
    def names(self) -> list[str]:
        """The students that were measured, in the plan's order; first the not distilled one."""
        return [name for name in self._settings if self.student(name)]

    def solvers(self) -> list[tuple[Setting, Row]]:
        """The measured solvers of the plan, in its order."""
        found = []
        for setting in self.plan.solvers:
            row = self._by_key.get(key_of(setting.sampler, 0, identity(setting)))
            if row is not None:
                found.append((setting, row))
        return found

    def values(self, name: str, metric: str) -> dict[int, float]:
        """A measured number of a student by seed.

        Args:
            name: of the student.
            metric: a name of :mod:`slam_edu.digits.students.measure`; or ``wrong_n``, the fraction
                of images that are not as asked for, counted as (wrong + 1/2)/(prompts + 1) so
                that it has a logarithm.
        """
        kind, _, number = metric.rpartition("_")
        found = {}
        for seed, row in self.student(name).items():
            if kind == "wrong":
                right, n = row.measured[f"right_{number}"], self.plan.prompts
                found[seed] = (n * (1 - right) + 0.5) / (n + 1)
            elif metric in row.measured:
                found[seed] = row.measured[metric]
        return found

    def mean(self, name: str, metric: str) -> float:
        """Mean of a number over the seeds; NaN if there is none."""
        values = list(self.values(name, metric).values())
        return float(np.mean(values)) if values else math.nan

    def ratio(self, above: str, below: str, metric: str) -> Ratio | None:
        """The paired ratio of two students over the seeds that both have.

        The geometric mean over seeds, with the 95 % interval of Student's t of its logarithm. None
        where a value is not positive, as an unbiased kernel distance near 0 may be, or no seed is
        shared.

        Args:
            above: the numerator's name.
            below: the denominator's.
            metric: as for :meth:`values`.
        """
        a, b = self.values(above, metric), self.values(below, metric)
        shared = [seed for seed in a if seed in b]
        if not shared or any(a[i] <= 0 or b[i] <= 0 for i in shared):
            return None
        data = "digits"
        return paired_ratio(
            {(data, i): a[i] for i in shared}, {(data, i): b[i] for i in shared}, [data]
        )


# -------------------------------------------------------------------- the file


def about(plan: Plan, weights: str) -> dict[str, Any]:
    """What all rows of a file share.

    Args:
        plan: of the study.
        weights: fingerprint of the teacher.
    """
    return {
        "changes": list(plan.changes), "prompts": plan.prompts, "points": plan.points,
        "solver_steps": plan.solver_steps, "weights": weights,
    }  # fmt: skip


def read(path: Path, wanted: dict[str, Any] | None = None) -> dict[str, Any]:
    """A results file's content; without a file, one without rows.

    Args:
        path: of the file.
        wanted: of :func:`about`, which the file must have; None allows any.

    Raises:
        FileNotFoundError: without a file, if any is allowed.
        ValueError: for a file that cannot be read, or of another study.
    """
    if not path.exists():
        if wanted is None:
            raise FileNotFoundError(
                f"there is no {str(path)!r}; `python -m slam_edu.digits.students` measures it"
            )
        return {"about": wanted, "rows": []}
    try:
        content = json.loads(path.read_text("utf-8"))
        Results(content)  # all that is looked up is there
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); allowed: a results file of `python -m "
            f"slam_edu.digits.students`; move it away to measure anew"
        ) from error
    there = content["about"]
    if wanted is not None and there != wanted:
        names = wanted.keys() | there.keys()
        odd = sorted(name for name in names if there.get(name) != wanted.get(name))
        differ = "; ".join(
            f"{name}: {there.get(name)!r} there, {wanted.get(name)!r} here" for name in odd
        )
        raise ValueError(
            f"{str(path)!r} is of another study ({differ}); allowed: the same, or another folder "
            f"(--out)"
        )
    return content


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the results file as a whole, its rows in a fixed order, numbers to six digits."""
    rows = sorted(content["rows"], key=lambda row: Row(**row).key)
    with atomic_path(path) as temporary:
        text = json.dumps(_rounded({**content, "rows": rows}), indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", "utf-8")


def add(path: Path, wanted: dict[str, Any], rows: Sequence[Row]) -> None:
    """Add rows to a results file, which is read again: another process may have added some.

    Args:
        path: of the file.
        wanted: of :func:`about`.
        rows: a row with the key of one that is there replaces it.
    """
    content = read(path, wanted)
    by_key = {Row(**row).key: row for row in content["rows"]}
    by_key |= {row.key: dataclasses.asdict(row) for row in rows}
    write(path, {**content, "rows": list(by_key.values())})


def shipped() -> Results:
    """The results that come with the course.

    Raises:
        FileNotFoundError: if the installation lacks the file.
    """
    return Results(read(data_path(SHIPPED)))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        kept = ("settings", "about")  # they are compared
        return {key: part if key in kept else _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value

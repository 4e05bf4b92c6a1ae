r"""A picture becomes a density, the density an exact teacher, the teacher two 2-step students.

    python -m slam_course.demo [PICTURE]

reads a picture (dark pixels are where the density is), makes the Gaussian mixture whose score is
known exactly, distils it by consistency distillation and by SLAM with the slope of the middle,
and writes one figure: the teacher at 50 evaluations and at 2, and both students at 2, with their
sliced Wasserstein distances to the data and their shares of points off its support.

Setting: multilayer perceptrons that predict v, each method at the number N of sub-paths that was
best for it in the study; the same initial weights, updates, and network evaluations an update.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from slam_course.figures import COLORS, CourseFigure, figure, plane, points
from slam_edu._validation import check_count
from slam_edu.distill import DistillConfig, SubPathDistiller
from slam_edu.ema import ema_copy
from slam_edu.io import check_output
from slam_edu.metrics import sliced_wasserstein
from slam_edu.sampling import last, sample_consistency, sample_ddim
from slam_edu.schedule import NoiseSchedule
from slam_edu.toy import GaussianMixture, from_image, picture
from slam_edu.toy.networks import LevelMLP
from slam_edu.training import TrainConfig, TrainState, progress, train_student


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes of the demonstration; the defaults need about a minute on a laptop.

    Raises:
        ValueError: for a size that is not positive.
    """

    components: int = 1000  # at most, of the mixture made from the picture
    updates: int = 4000  # of each student
    batch: int = 256
    lr: float = 7e-3  # at its peak
    ema_rate: float = 0.95  # of the target network
    width: int = 192
    depth: int = 3  # hidden layers
    points: int = 4000  # drawn for the figure and the distances
    seed: int = 0  # of everything random

    def __post_init__(self) -> None:
        for name in ("components", "updates", "batch", "width", "depth", "points"):
            check_count(getattr(self, name), name)


@dataclass(frozen=True)
class DemoRow:
    """Samples, what drew them, and how."""

    name: str
    evaluations: int  # of the network, per sample
    samples: Tensor  # (points, 2)
    distance: float  # sliced Wasserstein, to the data
    off: float  # share where the data's density is below its 0.1 % quantile
    seconds: float  # to draw all of them


@dataclass(frozen=True)
class DemoResult:
    """The teacher at 50 and at 2 evaluations, the students at 2, and their networks by name."""

    rows: tuple[DemoRow, ...]
    floor: float  # distance between two samples of the data: no method can be closer
    students: dict[str, nn.Module]  # their moving averages
    seconds: float  # to distil both


STUDENTS = {
    "consistency distillation": DistillConfig(
        slope="end", subpaths=50, student_prediction_type="v_prediction"
    ),
    "SLAM": DistillConfig(student_prediction_type="v_prediction"),
}
"""What is distilled, in this order."""


def sample_student(
    student: Callable[..., Tensor], noise: Tensor, schedule: NoiseSchedule, steps: int, seed: int,
    name: str = "SLAM",
) -> Tensor:  # fmt: skip
    """Draw with a student of ``STUDENTS`` from noise ``(B, 2)`` in ``steps`` evaluations."""
    config = STUDENTS[name]
    with torch.no_grad():
        return last(sample_consistency(
            student, noise, schedule, steps, generator=torch.Generator().manual_seed(seed),
            subpaths=config.subpaths, prediction_type=config.output_type,
        ))  # fmt: skip


def run(
    source: str | Path | GaussianMixture | None = None,
    config: DemoConfig | None = None,
    on_update: Callable[[str, TrainState, nn.Module], None] | None = None,
    bar: bool = False,
) -> DemoResult:
    """Make the teacher, distil the students, draw with all.

    ``source`` is a PNG or JPEG file, a mixture, or None for the shipped picture;
    ``on_update(name, state, student)`` is called after every update, for a live picture.

    Raises:
        ValueError: for a picture that cannot be used; it says why.
        FileNotFoundError: for a file that is not there.
    """
    config, mixture = config or DemoConfig(), source
    if not isinstance(mixture, GaussianMixture):
        make = picture if source is None else partial(from_image, source)
        mixture = make(components=config.components)
    schedule = NoiseSchedule.stable_diffusion()
    teacher = mixture.network(schedule)
    fields = ("updates", "batch", "lr", "ema_rate")
    training = TrainConfig(**{name: getattr(config, name) for name in fields})
    students, start = {}, time.perf_counter()
    for name, distillation in STUDENTS.items():
        generator = torch.Generator().manual_seed(config.seed)
        student = LevelMLP(config.width, config.depth, octaves=5, generator=generator)
        target = students[name] = ema_copy(student)
        states = train_student(
            SubPathDistiller(schedule, distillation), mixture.sample, teacher=teacher,
            student=student, target=target, generator=generator, config=training,
        )  # fmt: skip
        for state in progress(states, config.updates, name) if bar else states:
            if on_update is not None:
                on_update(name, state, target)
    seconds = time.perf_counter() - start

    generator = torch.Generator().manual_seed(config.seed + 1)
    data, other = (mixture.sample(config.points, generator) for _ in range(2))
    least = mixture.log_density(mixture.sample(100_000, generator)).quantile(1e-3)
    noise = torch.randn(config.points, 2, generator=generator)

    def distance(samples: Tensor) -> float:
        projections = torch.Generator().manual_seed(config.seed)
        return sliced_wasserstein(samples, data, generator=projections)

    def row(name: str, evaluations: int, draw: Callable[[], Tensor]) -> DemoRow:
        begin = time.perf_counter()
        samples = draw()
        spent = time.perf_counter() - begin
        off = (mixture.log_density(samples) < least).double().mean().item()
        return DemoRow(name, evaluations, samples, distance(samples), off, spent)

    def drawn(name: str) -> DemoRow:
        draw = partial(sample_student, students[name], noise, schedule, 2, config.seed, name)
        return row(name, 2, draw)

    rows = (
        row("teacher, DDIM", 50, lambda: last(sample_ddim(teacher, noise, schedule, 50))),
        row("teacher, DDIM", 2, lambda: last(sample_ddim(teacher, noise, schedule, 2))),
        *map(drawn, students),
    )
    return DemoResult(rows, distance(other), students, seconds)


def table(result: DemoResult, times: bool = True) -> str:
    """The result as lines of text; without ``times`` it is equal in every run."""
    columns = f"{'evaluations':>12s}{'distance to data':>18s}{'off support':>13s}"
    lines = [f"{'':24s}{columns}" + f"{'time':>9s}" * times]
    for row in result.rows:
        line = f"{row.name:24s}{row.evaluations:12d}{row.distance:18.3f}{row.off:13.1%}"
        lines.append(line + f"{row.seconds:8.2f}s" * times)
    lines.append(f"{'data again':24s}{'':12s}{result.floor:18.3f}{0.001:13.1%}")
    return "\n".join(lines)


def plot(result: DemoResult, times: bool = True) -> CourseFigure:
    """All of them side by side; without ``times`` the figure is equal in every run."""
    fig, axes = figure(
        4,
        size=(2.7, 3.3 + 0.6 * times),
        alt="Four scatter plots. The exact teacher draws the picture with 50 evaluations and a "
        "blob with 2; both students, consistency distillation and SLAM, draw it with 2.",
    )
    colors = ("data", "teacher", "#56B4E9", "student")  # as in lesson 05
    for ax, row, color in zip(axes, result.rows, colors, strict=True):
        # Pictures of unit variance fill a square of about this half-width.
        points(plane(ax, limit=2.6), row.samples, color, size=1.6, alpha=0.55)
        title = f"{row.name}\n{row.evaluations} evaluations"
        ax.set_title(title, fontsize=11, color=COLORS.get(color, color), fontweight="bold")
        s = row.seconds
        duration = f"\ndrawn in {1000 * s:.0f} ms" if s < 1 else f"\ndrawn in {s:.1f} s"
        note = f"distance {row.distance:.2f}, off the support {row.off:.0%}"
        ax.set_xlabel(note + duration * times, fontsize=9)
    if times:
        words = f"both distilled in {result.seconds:.0f} s; distance: sliced Wasserstein, "
        words += f"{result.floor:.2f} between two samples of the data"
        fig.supxlabel(words, fontsize=8.5, color="#555555")
    return fig


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    defaults = DemoConfig()
    parser = argparse.ArgumentParser(
        prog="python -m slam_course.demo",
        description="Distil the exact diffusion model of a picture; draw it in 2 steps.",
    )
    parser.add_argument("picture", nargs="?", help="a PNG or JPEG file (default: the shipped cat)")
    for name, default, words in (
        ("out", Path("slam_demo.png"), "figure to write: .png, .pdf or .svg"),
        ("updates", defaults.updates, "of the student"),
        ("seed", defaults.seed, "of everything random"),
        ("threads", 1, "CPU threads of torch; small networks are fastest with one"),
    ):
        help_text = f"{words} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=type(default), default=default, help=help_text)
    arguments = parser.parse_args(argv)
    out = arguments.out
    try:
        torch.set_num_threads(arguments.threads)
        # What may be wrong is looked at before the minute of training.
        if out.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise ValueError(f"--out is '{out}'; allowed: a name ending in .png, .pdf or .svg")
        check_output(out)
        config = DemoConfig(updates=arguments.updates, seed=arguments.seed)
        result = run(arguments.picture, config, bar=True)
        plot(result).save(out)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"slam_course.demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nslam_course.demo: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(table(result))
    print(f"distilled in {result.seconds:.0f} s; figure: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

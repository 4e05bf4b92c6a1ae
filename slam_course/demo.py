r"""A picture becomes a density, the density an exact teacher, the teacher a 2-step student.

    python -m slam_course.demo [PICTURE]

reads a picture (dark pixels are where the density is), makes the Gaussian mixture whose score is
known exactly, distils a SLAM student from it, and writes one figure: the teacher at 50
evaluations, the teacher at 2, and the student at 2, with their sliced Wasserstein distances to the
data and the time of each.

Setting: a level-conditioned multilayer perceptron that predicts v, coupling ``"linear"``, N = 50
sub-paths, one DDIM step of the exact teacher a sub-path.
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
    updates: int = 9000
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
    seconds: float  # to draw all of them


@dataclass(frozen=True)
class DemoResult:
    """The teacher at 50 and at 2 evaluations, the student at 2, and the distilled network."""

    rows: tuple[DemoRow, ...]
    floor: float  # distance between two samples of the data: no method can be closer
    student: nn.Module  # its moving average
    seconds: float  # to distil it


def sample_student(
    student: Callable[..., Tensor], noise: Tensor, schedule: NoiseSchedule, steps: int, seed: int
) -> Tensor:
    """Draw with a distilled student from initial noise ``(B, 2)`` in ``steps`` evaluations."""
    settings = {"conditioning": "level", "prediction_type": "v_prediction"}
    settings["generator"] = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return last(sample_consistency(student, noise, schedule, steps, **settings))


def run(
    source: str | Path | GaussianMixture | None = None,
    config: DemoConfig | None = None,
    on_update: Callable[[TrainState, nn.Module], None] | None = None,
    bar: bool = False,
) -> DemoResult:
    """Make the teacher, distil the student, draw with both.

    ``source`` is a PNG or JPEG file, a mixture, or None for the shipped picture;
    ``on_update(state, student)`` is called after every update, for a live picture.

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
    generator = torch.Generator().manual_seed(config.seed)
    student = LevelMLP(config.width, config.depth, octaves=5, generator=generator)
    target = ema_copy(student)
    distillation = DistillConfig(
        subpaths=50, coupling="linear", conditioning="level",
        teacher_prediction_type="epsilon", student_prediction_type="v_prediction",
    )  # fmt: skip
    names = ("updates", "batch", "lr", "ema_rate")
    training = TrainConfig(**{name: getattr(config, name) for name in names})
    networks = {"teacher": teacher, "student": student, "target": target}
    start = time.perf_counter()
    states = train_student(
        SubPathDistiller(schedule, distillation), mixture.sample, **networks,
        generator=generator, config=training,
    )  # fmt: skip
    for state in progress(states, config.updates, "distilling") if bar else states:
        if on_update is not None:
            on_update(state, target)
    seconds = time.perf_counter() - start

    generator = torch.Generator().manual_seed(config.seed + 1)
    data, other = (mixture.sample(config.points, generator) for _ in range(2))
    noise = torch.randn(config.points, 2, generator=generator)

    def distance(samples: Tensor) -> float:
        projections = torch.Generator().manual_seed(config.seed)
        return sliced_wasserstein(samples, data, generator=projections)

    def row(name: str, evaluations: int, draw: Callable[[], Tensor]) -> DemoRow:
        begin = time.perf_counter()
        samples = draw()
        spent = time.perf_counter() - begin
        return DemoRow(name, evaluations, samples, distance(samples), spent)

    rows = (
        row("teacher, DDIM", 50, lambda: last(sample_ddim(teacher, noise, schedule, 50))),
        row("teacher, DDIM", 2, lambda: last(sample_ddim(teacher, noise, schedule, 2))),
        row("student, SLAM", 2, lambda: sample_student(target, noise, schedule, 2, config.seed)),
    )
    return DemoResult(rows, distance(other), target, seconds)


def table(result: DemoResult, times: bool = True) -> str:
    """The result as lines of text; without ``times`` it is equal in every run."""
    lines = [f"{'':16s}{'evaluations':>12s}{'distance to data':>18s}" + f"{'time':>9s}" * times]
    for row in result.rows:
        line = f"{row.name:16s}{row.evaluations:12d}{row.distance:18.3f}"
        lines.append(line + f"{row.seconds:8.2f}s" * times)
    lines.append(f"{'data again':16s}{'':12s}{result.floor:18.3f}   (two samples of the data)")
    return "\n".join(lines)


def plot(result: DemoResult, times: bool = True) -> CourseFigure:
    """The three side by side; without ``times`` the figure is equal in every run."""
    fig, axes = figure(
        3,
        size=(3.2, 3.75),
        alt="Three scatter plots. The exact teacher draws the picture with 50 evaluations and a "
        "blob with 2; the distilled student draws the picture with 2.",
    )
    colors = ("data", "teacher", "student")
    names = ("exact teacher", "exact teacher", "distilled student")
    for ax, row, color, name in zip(axes, result.rows, colors, names, strict=True):
        # Pictures of unit variance fill a square of about this half-width.
        points(plane(ax, limit=2.6), row.samples, color, size=1.6, alpha=0.55)
        title = f"{name}: {row.evaluations} evaluations"
        ax.set_title(title, fontsize=11, color=COLORS[color], fontweight="bold")
        s = row.seconds
        duration = f"   drawn in {1000 * s:.0f} ms" if s < 1 else f"   drawn in {s:.1f} s"
        note = f"distance to the data {row.distance:.2f}"
        ax.set_xlabel(note + duration * times, fontsize=9)
    if times:
        words = f"distilled in {result.seconds:.0f} s; distance: sliced Wasserstein, "
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
        if out.suffix.lower() not in (".png", ".pdf", ".svg") or not out.resolve().parent.is_dir():
            raise ValueError(
                f"--out is '{out}'; allowed: a name ending in .png, .pdf or .svg in a folder that "
                f"exists"
            )
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

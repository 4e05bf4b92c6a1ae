r"""A picture becomes a density, the density an exact teacher, the teacher a 2-step student.

    python -m slam_course.demo [PICTURE]

takes a picture (dark pixels are where the density is), makes the Gaussian mixture whose score is
known exactly, distils a SLAM student from it, and writes one figure: the teacher at 50
evaluations, the teacher at 2, and the student at 2, with their sliced Wasserstein distances to the
data and the time each took.

Setting: a level-conditioned multilayer perceptron that predicts v, coupling ``"linear"``, N = 50
sub-paths, one DDIM step of the exact teacher a sub-path.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

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
    """Sizes of the demonstration; the defaults take about a minute on a laptop.

    Attributes:
        components: most components of the mixture made from the picture.
        updates: optimiser steps.
        batch: points per update.
        lr: peak learning rate.
        ema_rate: of the target network.
        width: units of a hidden layer.
        depth: hidden layers.
        points: samples drawn for the figure and the distances.
        seed: of everything random.

    Raises:
        ValueError: for a size that is not positive.
    """

    components: int = 1000
    updates: int = 9000
    batch: int = 256
    lr: float = 7e-3
    ema_rate: float = 0.95
    width: int = 192
    depth: int = 3
    points: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("components", "updates", "batch", "width", "depth", "points"):
            check_count(getattr(self, name), name)


@dataclass(frozen=True)
class DemoRow:
    """One way to draw samples.

    Attributes:
        name: what drew them.
        evaluations: network evaluations per sample.
        samples: shape ``(points, 2)``.
        distance: sliced Wasserstein distance to the data.
        seconds: time to draw all of them.
    """

    name: str
    evaluations: int
    samples: Tensor
    distance: float
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """All that the demonstration made.

    Attributes:
        mixture: the picture's density, and so the exact teacher.
        data: samples of it, shape ``(points, 2)``.
        floor: sliced Wasserstein distance between two such samples: no method can be closer.
        rows: the teacher at 50 and at 2 evaluations, the student at 2.
        student: the distilled network (its moving average).
        seconds: time to distil it.
    """

    mixture: GaussianMixture
    data: Tensor
    floor: float
    rows: tuple[DemoRow, ...]
    student: nn.Module
    seconds: float


def distiller(schedule: NoiseSchedule) -> SubPathDistiller:
    """The distillation step of the demonstration; see the module's last paragraph."""
    return SubPathDistiller(
        schedule,
        DistillConfig(
            subpaths=50, coupling="linear", conditioning="level",
            teacher_prediction_type="epsilon", student_prediction_type="v_prediction",
        ),
    )  # fmt: skip


def sample_student(
    student: Callable[..., Tensor], noise: Tensor, schedule: NoiseSchedule, steps: int, seed: int
) -> Tensor:
    """Draw with a distilled student from initial noise ``(B, 2)`` in ``steps`` evaluations."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return last(
            sample_consistency(
                student, noise, schedule, steps, generator=generator,
                conditioning="level", prediction_type="v_prediction",
            )
        )  # fmt: skip


def density(source: str | Path | GaussianMixture | None, config: DemoConfig) -> GaussianMixture:
    """The mixture made of a picture file, of the shipped picture for None, or given as it is.

    Raises:
        ValueError: for a picture that cannot be used; it says why.
        FileNotFoundError: for a file that is not there.
    """
    if isinstance(source, GaussianMixture):
        return source
    if source is None:
        return picture(components=config.components)
    return from_image(source, components=config.components)


def run(
    source: str | Path | GaussianMixture | None = None,
    config: DemoConfig | None = None,
    on_update: Callable[[TrainState, nn.Module], None] | None = None,
    bar: bool = False,
) -> DemoResult:
    """Make the teacher, distil the student, draw with both.

    Args:
        source: a PNG or JPEG file, a mixture, or None for the shipped picture.
        config: sizes and seed.
        on_update: called as ``on_update(state, student)`` after every update, for a live picture.
        bar: show a progress bar on standard error; needs tqdm.

    Raises:
        ValueError: for a picture that cannot be used; it says why.
        FileNotFoundError: for a file that is not there.
    """
    config = config or DemoConfig()
    mixture = density(source, config)
    schedule = NoiseSchedule.stable_diffusion()
    teacher = mixture.network(schedule)
    generator = torch.Generator().manual_seed(config.seed)
    student = LevelMLP(config.width, config.depth, octaves=5, generator=generator)
    target = ema_copy(student)
    start = time.perf_counter()
    states = train_student(
        distiller(schedule),
        mixture.sample,
        teacher=teacher,
        student=student,
        target=target,
        generator=generator,
        config=TrainConfig(
            updates=config.updates, batch=config.batch, lr=config.lr, ema_rate=config.ema_rate
        ),
    )
    for state in progress(states, config.updates, "distilling") if bar else states:
        if on_update is not None:
            on_update(state, target)
    seconds = time.perf_counter() - start

    generator = torch.Generator().manual_seed(config.seed + 1)
    data, other = (
        mixture.sample(config.points, generator),
        mixture.sample(config.points, generator),
    )
    noise = torch.randn(config.points, 2, generator=generator)

    def row(name: str, evaluations: int, draw: Callable[[], Tensor]) -> DemoRow:
        begin = time.perf_counter()
        samples = draw()
        took = time.perf_counter() - begin
        return DemoRow(name, evaluations, samples, distance(samples), took)

    def distance(samples: Tensor) -> float:
        projections = torch.Generator().manual_seed(config.seed)
        return sliced_wasserstein(samples, data, generator=projections)

    rows = (
        row("teacher, DDIM", 50, lambda: last(sample_ddim(teacher, noise, schedule, 50))),
        row("teacher, DDIM", 2, lambda: last(sample_ddim(teacher, noise, schedule, 2))),
        row("student, SLAM", 2, lambda: sample_student(target, noise, schedule, 2, config.seed)),
    )
    return DemoResult(mixture, data, distance(other), rows, target, seconds)


def table(result: DemoResult, times: bool = True) -> str:
    """The result as lines of text; without ``times`` it is equal in every run."""
    header = f"{'':16s}{'evaluations':>12s}{'distance to data':>18s}" + f"{'time':>9s}" * times
    lines = [header]
    for row in result.rows:
        line = f"{row.name:16s}{row.evaluations:12d}{row.distance:18.3f}"
        lines.append(line + f"{row.seconds:8.2f}s" * times)
    lines.append(f"{'data again':16s}{'':12s}{result.floor:18.3f}   (two samples of the data)")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    defaults = DemoConfig()
    parser = argparse.ArgumentParser(
        prog="python -m slam_course.demo",
        description="Distil the exact diffusion model of a picture; draw it in 2 steps.",
    )
    parser.add_argument("picture", nargs="?", help="a PNG or JPEG file (default: the shipped cat)")
    parser.add_argument(
        "--out", default="slam_demo.png", help="figure to write (default: %(default)s)"
    )
    parser.add_argument(
        "--updates", type=int, default=defaults.updates, help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="default: %(default)s")
    parser.add_argument(
        "--threads", type=int, default=1,
        help="CPU threads of torch (default: %(default)s; small networks are fastest with one)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        torch.set_num_threads(arguments.threads)
        out = Path(arguments.out)
        if out.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise ValueError(
                f"--out is {arguments.out!r}; allowed: a name ending in .png, .pdf or .svg"
            )
        if not out.resolve().parent.is_dir():
            raise ValueError(
                f"--out is {arguments.out!r}; allowed: a name in a folder that exists"
            )
        config = DemoConfig(updates=arguments.updates, seed=arguments.seed)
        # What may be missing is asked for before the minute of training: picture, then matplotlib.
        mixture = density(arguments.picture, config)
        from slam_course.lesson_00.figures import plot_demo

        result = run(mixture, config, bar=True)
        plot_demo(result).save(out)
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

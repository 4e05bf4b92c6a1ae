"""What the library costs over the bare computation: ``python -m slam_edu.bench core`` or ``toy``.

Prints a table of ratios. Both sides of a row run in turn, on one thread of one process, and the
medians of its CPU time are compared, so that others on the machine count little.

``core``: trajectories of 2,000 points through 200 levels on the exact score of a 40-component
mixture, against as many bare calls of the score; one :meth:`SubPathDistiller.step`, forward and
backward, on a (512, 2) batch, against :func:`inlined_step`, the same formulas for this case alone;
``import slam_edu`` against ``import torch, numpy``, in fresh processes.

``toy``: one update of the library's training loops, a ``LevelMLP`` of 4 x 128 on batches of 512
points of a spiral, against :func:`bare_update`, the same passes, optimiser step and moving average
without data, noise, levels, loss, clipping and records; and SLAM's against another method's.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from slam_edu.distill import OFFICIAL, DistillConfig, SubPathDistiller, SubPathSample
from slam_edu.ema import ema_copy
from slam_edu.schedule import NoiseSchedule
from slam_edu.solver import pf_ode_trajectory
from slam_edu.subpath import COUPLINGS
from slam_edu.toy import GaussianMixture, spiral
from slam_edu.toy.networks import LevelMLP
from slam_edu.training import TrainConfig, TrainState, train_student, train_teacher

POINTS, LEVELS, COMPONENTS, BATCH = 2000, 200, 40, 512
EVALUATIONS = {"ddim": 1, "heun": 2, "rk4": 4}
STEPS = 50  # per measurement
# What is trained, and how gamma is drawn.
TRAININGS = {"teacher": None, "consistency distillation": "one", "SLAM": "uniform"}

Row = tuple[str, float, float]  # name, seconds of the bare computation and of the library


def compare(
    bare: Callable[[], object], ours: Callable[[], object], repeat: int, number: int = STEPS
) -> tuple[float, float]:
    """Median CPU seconds of two functions that take turns, ``number`` calls each at a time."""
    timers = [Timer("f()", globals={"f": f}, timer=time.process_time) for f in (bare, ours)]
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeat):
        # Who goes first changes, in case the first is at a disadvantage.
        for side in (0, 1) if i % 2 else (1, 0):
            times[side].append(timers[side].timeit(number).mean)
    return statistics.median(times[0]), statistics.median(times[1])


def trajectories(repeat: int) -> Iterator[Row]:
    """Solvers on the exact score of a spiral, against the score alone."""
    mixture, schedule = spiral(COMPONENTS), NoiseSchedule.stable_diffusion()
    levels = schedule(torch.linspace(len(schedule) - 1, 0, LEVELS).round().long())
    x = torch.randn(POINTS, 2, generator=torch.Generator().manual_seed(0))
    points = pf_ode_trajectory(mixture.predict, x, levels)
    for method, calls in EVALUATIONS.items():

        def bare(calls: int = calls) -> None:
            for i in range(LEVELS - 1):
                for _ in range(calls):
                    mixture.score(points[i], levels[i])

        ours = functools.partial(pf_ode_trajectory, mixture.predict, x, levels, method)
        name = f"trajectories of {POINTS} points, {LEVELS} levels, {method}"
        yield name, *compare(bare, ours, repeat, number=1)


class BenchMLP(nn.Module):
    """The step's network: 3 hidden layers of 128 on ``(x, t/1000, gamma)``, gamma 1 if None."""

    def __init__(self) -> None:
        super().__init__()
        layers = [m for i in (4, 128, 128) for m in (nn.Linear(i, 128), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 2))

    def forward(
        self, x: Tensor, t: Tensor, cond: object | None = None, gamma: Tensor | None = None
    ) -> Tensor:
        """Raw output, shape ``(B, 2)``."""
        gamma = torch.ones_like(t, dtype=x.dtype) if gamma is None else gamma
        return self.layers(torch.cat([x, t.to(x.dtype)[:, None] / 1000, gamma[:, None]], dim=1))


def inlined_step(
    tables: Sequence[Tensor], x0: Tensor, sample: SubPathSample, networks: dict[str, nn.Module],
    level_conditioned: bool, linear: bool,
) -> Tensor:  # fmt: skip
    """The loss of one step for points, noise prediction, no guidance, the l2 loss and N = 50.

    As one would write it for this case alone, from Stable Diffusion's alpha, sigma, log(rho).
    """
    alpha, sigma, log_rho = tables
    t = sample.index * 20 + 19
    s = (t - 20).clamp(min=0)
    g = sample.gamma[:, None]
    alpha_t, sigma_t = alpha[t][:, None], sigma[t][:, None]
    alpha_s, sigma_s = alpha[s][:, None], sigma[s][:, None]
    x_t = alpha_t * x0 + sigma_t * sample.noise
    with torch.no_grad():
        eps = networks["teacher"](x_t, t)
        x_s = alpha_s * (x_t - sigma_t * eps) / alpha_t + sigma_s * eps
        one = None if level_conditioned else torch.ones_like(sample.gamma)
        t_s = s.to(x0.dtype) if level_conditioned else s
        clean = (x_s - sigma_s * networks["target"](x_s, t_s, None, one)) / alpha_s
        tau, a = 10.0 * s[:, None], alpha_t / alpha_s
        total = tau**2 + 0.25
        y = 0.25 / total * x_s + tau / total.sqrt() * clean
        x = g * x_t + (1 - g) * a * x_s
        if linear:
            sigma_g = g * sigma_t + (1 - g) * a * sigma_s
        else:
            variance = (a * sigma_s) ** 2
            sigma_g = (variance + g**2 * (sigma_t**2 - variance)).sqrt()
        gamma, t_x = sample.gamma, t
        if level_conditioned:
            n = (alpha_t**2 + sigma_g**2).sqrt()
            x, here = x / n, (sigma_g / alpha_t).log()[:, 0]
            alpha_t, sigma_g, gamma = alpha_t / n, sigma_g / n, None
            i = (torch.searchsorted(log_rho, here, right=True) - 1).clamp(0, 998)
            t_x = i + (here - log_rho[i]) / (log_rho[i + 1] - log_rho[i])
        tau = 10.0 * t_x[:, None]
        total = tau**2 + 0.25
        c_skip, c_out = 0.25 / total, tau / total.sqrt()
    clean = (x - sigma_g * networks["student"](x, t_x, None, gamma)) / alpha_t
    return (c_skip * x + c_out * clean - y).square().mean()


def step_problem(
    conditioning: str, coupling: str
) -> tuple[Callable[[], Tensor], Callable[[], Tensor], nn.Module]:
    """The inlined loss, the library's, and the student that both of them train."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {"teacher": BenchMLP().requires_grad_(False), "student": BenchMLP()}
    networks["target"] = ema_copy(networks["student"])
    config = DistillConfig(**OFFICIAL | {"conditioning": conditioning, "coupling": coupling})
    distiller = SubPathDistiller(NoiseSchedule.stable_diffusion(), config)
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(BATCH, 2, generator=generator)
    sample = distiller.draw(x0, generator)
    schedule, case = distiller.schedule, (conditioning == "level", coupling == "linear")
    tables = (schedule.alpha, schedule.sigma, schedule.rho.log())
    return (
        lambda: inlined_step(tables, x0, sample, networks, *case),
        lambda: distiller.step(x0, sample, **networks).loss,
        networks["student"],
    )


def steps(repeat: int) -> Iterator[Row]:
    """One distillation step, forward and backward, against the same formulas written out."""
    for conditioning, coupling in itertools.product(("gamma", "level"), COUPLINGS):
        bare, ours, student = step_problem(conditioning, coupling)

        def run(loss: Callable[[], Tensor], student: nn.Module = student) -> None:
            student.zero_grad(set_to_none=True)
            loss().backward()

        seconds = compare(lambda: run(bare), lambda: run(ours), 4 * repeat)  # noqa: B023
        yield f"step on ({BATCH}, 2), {conditioning} + {coupling}", *seconds


def imports(repeat: int) -> Iterator[Row]:
    """``import torch, numpy``, and ``import slam_edu`` after it, each in a process of its own."""
    code = (
        "from time import process_time as now; a = now(); import torch, numpy; b = now(); "
        "import slam_edu; print(b - a, now() - a)"
    )
    runs = []
    for _ in range(repeat + 1):  # the first fills the file cache
        out = subprocess.check_output([sys.executable, "-c", code], text=True)
        runs.append([float(word) for word in out.split()])
    bare, ours = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    yield "import", bare, ours


def toy_problem() -> tuple[GaussianMixture, NoiseSchedule, LevelMLP, nn.Module, torch.Generator]:
    """Data, schedule, a network and its moving average, and a generator."""
    generator = torch.Generator().manual_seed(0)
    network = LevelMLP(128, 4, generator=generator)
    schedule = NoiseSchedule.stable_diffusion()
    return spiral(COMPONENTS), schedule, network, ema_copy(network), generator


def training(what: str) -> Iterator[TrainState]:
    """A loop of the library that trains one of ``TRAININGS``, for as long as it is asked."""
    mixture, schedule, network, average, generator = toy_problem()
    options = {"generator": generator, "config": TrainConfig(updates=10**9, batch=BATCH)}
    if what == "teacher":
        return train_teacher(schedule, mixture.sample, network=network, average=average, **options)
    distill = DistillConfig(
        subpaths=50, slope="end", gammas=TRAININGS[what],
        student_prediction_type="v_prediction",
    )  # fmt: skip
    return train_student(
        SubPathDistiller(schedule, distill), mixture.sample, teacher=mixture.network(schedule),
        student=network, target=average, **options,
    )  # fmt: skip


def bare_update(what: str) -> Callable[[], None]:
    """The passes of one update of :func:`training`, always on one batch, as a function.

    A student's begins with a forward pass of teacher and target, without gradient.
    """
    mixture, schedule, network, average, generator = toy_problem()
    teacher = mixture.network(schedule)
    x, wanted = (torch.randn(BATCH, 2, generator=generator) for _ in range(2))
    t = torch.randint(len(schedule), (BATCH,), generator=generator)
    weights, averages = list(network.parameters()), list(average.parameters())
    optimizer = torch.optim.AdamW(weights, lr=TrainConfig().lr, weight_decay=0.0, fused=True)

    def update() -> None:
        if what != "teacher":
            with torch.no_grad():
                teacher(x, t, None)
                average(x, t, None)
        optimizer.zero_grad(set_to_none=True)
        (network(x, t, None) - wanted).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 0.05)

    return update


def loops(repeat: int) -> Iterator[Row]:
    """One update of each training loop against its bare passes, and SLAM's against another's."""
    for what in TRAININGS:
        bare, states = bare_update(what), training(what)
        yield f"update of {what}", *compare(bare, lambda: next(states), 4 * repeat)  # noqa: B023
    plain, slam = training("consistency distillation"), training("SLAM")
    seconds = compare(lambda: next(plain), lambda: next(slam), 4 * repeat)
    yield "update of SLAM over one of cons. distillation", *seconds


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m slam_edu.bench", description="Ratios of costs.")
    parser.add_argument("what", choices=["core", "toy"], help="which table")
    parser.add_argument("--repeat", type=int, default=5, help="measurements per row (default: 5)")
    options = parser.parse_args(argv)
    if options.repeat < 1:
        parser.error(f"--repeat is {options.repeat}; allowed: an integer >= 1")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, medians of CPU time")
    header = f"{'':<50}{'bare (ms)':>11}{'ours (ms)':>11}{'ratio':>8}"
    print(header, "-" * len(header), sep="\n")
    parts = {"core": (trajectories, steps, imports), "toy": (loops,)}[options.what]
    for name, bare, ours in itertools.chain.from_iterable(part(options.repeat) for part in parts):
        print(f"{name:<50}{1e3 * bare:>11.2f}{1e3 * ours:>11.2f}{ours / bare:>8.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

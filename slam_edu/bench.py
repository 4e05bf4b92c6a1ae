"""What the library costs over the bare computation: ``python -m slam_edu.bench core`` and others.

Prints a table of ratios. Both sides of a row run in turn, in one process, and the medians are
compared, so that a busy machine slows both alike. A row's target is what the project promises;
nothing fails when it is missed, because a machine shared with others may miss any.

``core``

- **trajectories**: 2,000 points through the 1,000 levels of Stable Diffusion's schedule on the
  exact score of a 40-component mixture, against as many bare calls of ``GaussianMixture.score``;
- **steps**: one :meth:`SubPathDistiller.step`, forward and backward, on a (512, 2) batch, against
  :func:`inlined_step`, the same formulas for this case alone, without checks and records;
- **import**: ``import slam_edu`` against ``import torch, numpy``, in fresh processes.

``toy``, all with a ``LevelMLP`` of 4 x 128 on batches of 512 points of a 40-component spiral

- **loops**: one update of :func:`slam_edu.training.train_teacher`, and of
  :func:`slam_edu.training.train_student` as consistency distillation and as SLAM from the exact
  teacher, against :func:`bare_update`: the same forward and backward passes, optimiser step and
  moving average, without data, noise, levels, loss, clipping and records;
- **method**: one update of SLAM against one of consistency distillation, both by the library.

``digits``: what made the training of :mod:`slam_edu.digits` fast. One update of the digits' UNet
and text encoder (batch 64, one thread unless ``--threads`` says more) in other ways, against the
way that was chosen; a ratio below 1 says that the other way is faster. There is no target.

``sd``: one update of :class:`slam_edu.sd.engine.Engine`, with latents and text states at hand and
without, against a transcription of the official script's update (:mod:`slam_edu.sd.bench`); then
the memory that both take, and where the time of ours goes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slam_edu.distill import DistillConfig, SubPathDistiller, SubPathSample
from slam_edu.ema import ema_copy
from slam_edu.schedule import NoiseSchedule
from slam_edu.solver import solve_pf_ode
from slam_edu.subpath import COUPLINGS
from slam_edu.training import TrainConfig, TrainState, train_student, train_teacher

POINTS, COMPONENTS, BATCH = 2000, 40, 512
# Score evaluations per hop; the last one too, for it ends at timestep 0 and not at sigma = 0.
EVALUATIONS = {"ddim": 1, "heun": 2, "rk4": 4}
STEPS_PER_MEASUREMENT = 5  # few, so that the two sides take turns often
WIDTH, DEPTH = 128, 4
# What is trained, and how gamma is drawn.
TRAININGS = {"teacher": None, "consistency distillation": "one", "SLAM": "uniform"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was measured.
        bare: seconds of the bare computation, the median.
        ours: seconds of the library, the median.
        target: largest ratio that the project promises.
        rate: what there are so many of per second; None: no rate is printed.
    """

    name: str
    bare: float
    ours: float
    target: float
    rate: str | None = None

    @property
    def ratio(self) -> float:
        """How many times the bare computation's time the library takes."""
        return self.ours / self.bare


def compare(
    bare: Callable[[], object], ours: Callable[[], object], repeat: int
) -> tuple[float, float]:
    """Median seconds of two functions that run in turn, after one run each that does not count."""
    bare(), ours()
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeat):
        # Who goes first changes, in case the first is at a disadvantage.
        for which in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            (bare, ours)[which]()
            times[which].append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


# -------------------------------------------------------------------- trajectories


def trajectories(repeat: int) -> Iterator[Row]:
    """Solvers on the exact score of a spiral, against the score alone."""
    from slam_edu.toy import spiral

    mixture, schedule = spiral(COMPONENTS), NoiseSchedule.stable_diffusion()
    levels = schedule(torch.arange(len(schedule) - 1, -1, -1))
    x = torch.randn(POINTS, 2, generator=torch.Generator().manual_seed(0))
    points = [state.x for state in solve_pf_ode(mixture.predict, x, levels)]
    for method, calls in EVALUATIONS.items():

        def ours(method: str = method) -> list[Tensor]:
            return [state.x for state in solve_pf_ode(mixture.predict, x, levels, method)]

        def bare(calls: int = calls) -> None:
            for i, point in enumerate(points[:-1]):
                for _ in range(calls):
                    mixture.score(point, levels[i])

        seconds = compare(bare, ours, repeat)
        yield Row(
            name=f"trajectories of {POINTS} points, {len(levels)} levels, {method}",
            bare=seconds[0], ours=seconds[1], target=3.0,
        )  # fmt: skip


# -------------------------------------------------------------------- steps


class BenchMLP(nn.Module):
    """The step's network: 3 hidden layers of 128 on ``(x, t/1000, gamma)``, gamma 1 if None."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (4, 128, 128, 128)
        layers = [m for i, o in itertools.pairwise(sizes) for m in (nn.Linear(i, o), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 2))

    def forward(
        self, x: Tensor, t: Tensor, cond: object | None = None, gamma: Tensor | None = None
    ) -> Tensor:
        """Raw output, shape ``(B, 2)``."""
        gamma = torch.ones_like(t, dtype=x.dtype) if gamma is None else gamma
        u = t.to(x.dtype) / 1000
        return self.layers(torch.cat([x, u[:, None], gamma[:, None]], dim=1))


def inlined_step(
    tables: tuple[Tensor, Tensor, Tensor],
    x0: Tensor,
    sample: SubPathSample,
    networks: dict[str, nn.Module],
    *,
    level_conditioned: bool,
    linear: bool,
) -> Tensor:
    """The loss of one step for points, noise prediction, no guidance, the l2 loss and N = 50.

    The formulas of :meth:`SubPathDistiller.step` as one would write them for this case alone.

    Args:
        tables: alpha, sigma and log(sigma/alpha) of Stable Diffusion's schedule.
        x0: clean samples, shape ``(B, 2)``.
        sample: the step's draws.
        networks: ``teacher``, ``student`` and ``target``.
        level_conditioned: the student is told its level and not gamma.
        linear: the linear coupling, else the Markov one.
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
        t_s, one = (
            (s.to(x0.dtype), None) if level_conditioned else (s, torch.ones_like(sample.gamma))
        )
        clean = (x_s - sigma_s * networks["target"](x_s, t_s, None, one)) / alpha_s
        tau = 10.0 * s[:, None]
        total = tau**2 + 0.25
        y = 0.25 / total * x_s + tau / total.sqrt() * clean
        a = alpha_t / alpha_s
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
    config = DistillConfig(conditioning=conditioning, coupling=coupling)
    distiller = SubPathDistiller(NoiseSchedule.stable_diffusion(), config)
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(BATCH, 2, generator=generator)
    sample = distiller.draw(x0, generator)
    schedule = distiller.schedule
    tables = (schedule.alpha, schedule.sigma, schedule.rho.log())

    def bare() -> Tensor:
        return inlined_step(
            tables, x0, sample, networks,
            level_conditioned=conditioning == "level", linear=coupling == "linear",
        )  # fmt: skip

    def ours() -> Tensor:
        return distiller.step(x0, sample, **networks).loss

    return bare, ours, networks["student"]


def steps(repeat: int) -> Iterator[Row]:
    """One distillation step, forward and backward, against the same formulas written out."""
    for conditioning in ("gamma", "level"):
        for coupling in COUPLINGS:
            bare, ours, student = step_problem(conditioning, coupling)

            def run(loss: Callable[[], Tensor], student: nn.Module = student) -> None:
                for _ in range(STEPS_PER_MEASUREMENT):
                    student.zero_grad(set_to_none=True)
                    loss().backward()

            seconds = compare(lambda: run(bare), lambda: run(ours), 20 * repeat)  # noqa: B023
            yield Row(
                name=f"step on ({BATCH}, 2), {conditioning} + {coupling}",
                bare=seconds[0] / STEPS_PER_MEASUREMENT,
                ours=seconds[1] / STEPS_PER_MEASUREMENT,
                target=1.3,
            )


# -------------------------------------------------------------------- import


def imports(repeat: int) -> Iterator[Row]:
    """``import torch, numpy``, and ``import slam_edu`` after it, each in a process of its own."""
    code = (
        "import time; a = time.perf_counter(); import torch, numpy; b = time.perf_counter(); "
        "import slam_edu; c = time.perf_counter(); print(b - a, c - a)"
    )
    runs = []
    for _ in range(repeat + 1):  # the first fills the file cache
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        runs.append([float(word) for word in out.stdout.split()])
    bare, ours = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    yield Row(name="import", bare=bare, ours=ours, target=1.05)


# -------------------------------------------------------------------- training loops


def training(what: str) -> Iterator[TrainState]:
    """A loop of the library that trains one of ``TRAININGS``, for as long as it is asked."""
    from slam_edu.toy import spiral
    from slam_edu.toy.networks import LevelMLP

    mixture, schedule = spiral(COMPONENTS), NoiseSchedule.stable_diffusion()
    generator = torch.Generator().manual_seed(0)
    network = LevelMLP(WIDTH, DEPTH, generator=generator)
    average = ema_copy(network)
    config = TrainConfig(updates=10**9, batch=BATCH)
    if what == "teacher":
        return train_teacher(
            schedule, mixture.sample,
            network=network, average=average, generator=generator, config=config,
        )  # fmt: skip
    distill = DistillConfig(
        gammas=TRAININGS[what], conditioning="level", coupling="linear",
        student_prediction_type="v_prediction",
    )  # fmt: skip
    return train_student(
        SubPathDistiller(schedule, distill), mixture.sample, teacher=mixture.network(schedule),
        student=network, target=average, generator=generator, config=config,
    )  # fmt: skip


def bare_update(what: str) -> Callable[[], None]:
    """The passes of one update of :func:`training`, always on one batch, as a function.

    A student's update has a forward pass of teacher and target, without gradient; then, as a
    teacher's, a forward and a backward pass of the trained network, AdamW's step and the moving
    average. The loss is a squared distance to fixed numbers.
    """
    from slam_edu.toy import spiral
    from slam_edu.toy.networks import LevelMLP

    mixture, schedule = spiral(COMPONENTS), NoiseSchedule.stable_diffusion()
    generator = torch.Generator().manual_seed(0)
    network = LevelMLP(WIDTH, DEPTH, generator=generator)
    average = ema_copy(network)
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


def _updates(update: Callable[[], object]) -> None:
    for _ in range(STEPS_PER_MEASUREMENT):
        update()


def loops(repeat: int) -> Iterator[Row]:
    """One update of each training loop, against its bare passes."""
    for what in TRAININGS:
        bare, states = bare_update(what), training(what)
        seconds = compare(
            lambda: _updates(bare),  # noqa: B023
            lambda: _updates(lambda: next(states)),  # noqa: B023
            20 * repeat,
        )
        yield Row(
            name=f"update of {what}",
            bare=seconds[0] / STEPS_PER_MEASUREMENT,
            ours=seconds[1] / STEPS_PER_MEASUREMENT,
            target=1.25,
            rate="updates",
        )


def method(repeat: int) -> Iterator[Row]:
    """An update of SLAM against one of consistency distillation, both by the library."""
    baseline, states = training("consistency distillation"), training("SLAM")
    seconds = compare(
        lambda: _updates(lambda: next(baseline)),
        lambda: _updates(lambda: next(states)),
        20 * repeat,
    )
    yield Row(
        name="update of SLAM over one of cons. distillation",
        bare=seconds[0] / STEPS_PER_MEASUREMENT,
        ours=seconds[1] / STEPS_PER_MEASUREMENT,
        target=1.1,
    )


# -------------------------------------------------------------------- the digits' teacher


def digits_update(
    *,
    channels: tuple[int, int] = (64, 128),
    batch: int = 64,
    channels_last: bool = False,
    bfloat16: bool = False,
    attention: tuple[bool, bool] = (True, True),
    compiled: bool = False,
) -> Callable[[], None]:
    """One update of the digits' diffusion model, on one batch, as a function.

    Args:
        channels: of the UNet's two levels.
        batch: latents.
        channels_last: memory format of the weights and latents.
        bfloat16: the forward pass under autocast.
        attention: whether the 8 x 8 and the 4 x 4 level attend to the text.
        compiled: the forward pass through torch.compile.
    """
    from slam_edu.digits.networks import (
        TextToLatents,
        build_text_encoder,
        build_tokenizer,
        build_unet,
    )
    from slam_edu.sd.components import token_ids

    tokenizer = build_tokenizer()
    unet = build_unet(channels=channels)
    if not all(attention):
        down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention)
        up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention))
        blocks = {"down_block_types": down, "up_block_types": up}
        with torch.random.fork_rng(devices=[]):
            unet = unet.from_config({**unet.config, **blocks})
    network = TextToLatents(unet, build_text_encoder(tokenizer))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, 8, 8, generator=generator)
    if channels_last:
        network, x = (v.to(memory_format=torch.channels_last) for v in (network, x))
    t = torch.randint(1000, (batch,), generator=generator)
    ids = token_ids(tokenizer, ["a red seven on a yellow background"] * batch)
    average = ema_copy(network)
    weights, averages = list(network.parameters()), list(average.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0, fused=True)
    forward = torch.compile(network) if compiled else network

    def update() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            output = forward(x, t, ids)
        optimizer.zero_grad(set_to_none=True)
        (output.float() - x).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 0.001)

    return update


#: Other ways to make an update of the digits' teacher, by name.
DIGITS_VARIANTS: dict[str, dict] = {
    "channels last": {"channels_last": True},
    "bfloat16 autocast": {"bfloat16": True},
    "torch.compile": {"compiled": True},
    "attention on 4 x 4 alone": {"attention": (False, True)},
    "channels (96, 192)": {"channels": (96, 192)},
    "batch 128, for twice the images": {"batch": 128},
}


def digits(repeat: int) -> Iterator[Row]:
    """All rows of ``digits``, as they are measured; what cannot be compiled here is left out."""
    chosen = digits_update()
    for name, variant in DIGITS_VARIANTS.items():
        if variant.get("compiled") and shutil.which("c++") is None:
            continue
        bare, ours = compare(chosen, digits_update(**variant), repeat)
        yield Row(name=f"update with {name}", bare=bare, ours=ours, target=math.inf)


# -------------------------------------------------------------------- Stable Diffusion


def sd(repeat: int) -> Iterator[Row | str]:
    """All rows of ``sd``, then lines on memory and on where an update's time goes."""
    from slam_edu.sd import bench as sd_bench

    for make in (sd_bench.digits_problem, sd_bench.random_problem):
        problem = make()
        official = sd_bench.OfficialStep(problem)
        cached, encoding = (sd_bench.our_update(problem, each) for each in (True, False))
        for ours, name, target in (
            (cached, "cached", sd_bench.TARGET_CACHED),
            (encoding, "encoding", sd_bench.TARGET_ENCODING),
        ):
            bare, seconds = compare(official, ours, 3 * repeat)
            yield Row(
                name=f"{problem.name}: update, {name}", bare=bare, ours=seconds, target=target
            )
        peaks = [sd_bench.peak_bytes(update) / 1e6 for update in (official, cached, encoding)]
        yield (
            f"{problem.name}: peak of what an update makes: official {peaks[0]:.1f} MB, cached "
            f"{peaks[1]:.1f} MB, encoding {peaks[2]:.1f} MB"
        )
        times = {}
        for name, part in sd_bench.parts(problem):
            times[name], _ = compare(part, lambda: None, repeat)
        each = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in times.items())
        yield f"{problem.name}: ms of {each}"


# -------------------------------------------------------------------- the table


def core(repeat: int) -> Iterator[Row]:
    """All rows of ``core``, as they are measured."""
    yield from trajectories(repeat)
    yield from steps(repeat)
    yield from imports(repeat)


def toy(repeat: int) -> Iterator[Row]:
    """All rows of ``toy``, as they are measured."""
    yield from loops(repeat)
    yield from method(repeat)


def line(row: Row) -> str:
    """One line of the table."""
    verdict = "yes" if row.ratio <= row.target else "NO"
    target = f"{row.target:>9.2f}  {verdict:<3}" if math.isfinite(row.target) else ""
    rate = f"{1 / row.ours:>6.0f} {row.rate}/s" if row.rate else ""
    return (
        f"{row.name:<50}{1e3 * row.bare:>11.2f}{1e3 * row.ours:>11.2f}"
        f"{row.ratio:>8.2f}{target}{rate}"
    ).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m slam_edu.bench",
        description="What the library costs over the bare computation.",
    )
    parser.add_argument("what", choices=["core", "toy", "digits", "sd"], help="which table")
    parser.add_argument("--repeat", type=int, default=5, help="measurements per row (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    options = parser.parse_args(argv)
    for name in ("repeat", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; allowed: an integer >= 1")
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), medians of {options.repeat}")
    header = f"{'':<50}{'bare (ms)':>11}{'ours (ms)':>11}{'ratio':>8}{'target':>9}  met"
    print(header, "-" * len(header), sep="\n")
    # Looked up by name, so that a test can put another table there.
    tables = {"core": core, "toy": toy, "digits": digits, "sd": sd}
    for row in tables[options.what](options.repeat):
        print(row if isinstance(row, str) else line(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

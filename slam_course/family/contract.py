"""What a method must keep to, so that its place in the table means something.

:func:`load` reads a learner's file, :func:`setting_of` the options that its class sets, and
:func:`check` rehearses it on small networks, in less than a second: a few batches, their losses
and gradients, and samples. Every error is a :class:`Broken`; it says what is wrong and what is
allowed. Evaluations are counted twice, as :class:`slam_course.family.base.Counted` does and at the
networks themselves, so that none can be made past the count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import random
import sys
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from slam_course.family import METHODS
from slam_course.family.base import Counted, Method, Networks
from slam_course.family.results import Setting
from slam_course.family.training import STEPS, TIMES, make
from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.schedule import NoiseSchedule
from slam_edu.toy.networks import LevelMLP

ATTRIBUTES = {"lr": "lr", "ema_rate": "ema_rate", "subpaths": "subpaths", "pieces": "pieces",
              "loss": "loss_name"}  # fmt: skip
"""Options, and the class attributes by which a method sets its own defaults for them."""

BATCH, LEAST_UPDATES = 64, 10


class Broken(ValueError):
    """A method that does not keep to the contract."""


def load(path: Path) -> type[Method]:
    """The one subclass of Method that a file defines.

    Raises:
        Broken: without a file, for one that cannot be imported, or with no or two such classes.
    """
    allowed = "a Python file with one class that subclasses slam_course.family.base.Method"
    if not path.is_file():
        raise Broken(f"{str(path)!r} is not a file; allowed: {allowed}")
    module = types.ModuleType(f"mine_{path.stem}")
    sys.modules[module.__name__] = module  # where dataclasses look for it
    try:
        exec(compile(path.read_text("utf-8"), str(path), "exec"), vars(module))
    except SyntaxError as error:
        raise Broken(f"{path}, line {error.lineno}: {error.msg}; allowed: {allowed}") from error
    except Exception as error:
        raise Broken(f"{path} cannot be imported: {error!r}; allowed: {allowed}") from error
    own = [v for v in vars(module).values() if isinstance(v, type)]
    own = [v for v in own if v.__module__ == module.__name__]
    methods = [v for v in own if issubclass(v, Method)]
    if len(methods) != 1:
        raise Broken(
            f"{path} has the classes {[v.__name__ for v in own]}, {len(methods)} of which are "
            f"methods; allowed: {allowed}"
        )
    return methods[0]


def setting_of(method_type: type[Method], **options: object) -> Setting:
    """The method's setting: its class's attributes, and options that are not None over them.

    Raises:
        Broken: for something else than a Method, a name that is missing or taken, or an option of
            a wrong value.
    """
    if not (isinstance(method_type, type) and issubclass(method_type, Method)):
        raise Broken(f"{method_type!r} is not a method; allowed: a subclass of Method")
    name = getattr(method_type, "name", None)
    if not (isinstance(name, str) and name.strip()):
        raise Broken(f"name of {method_type.__name__} is {name!r}; allowed: a text, set in it")
    if METHODS.get(name, method_type) is not method_type:
        raise Broken(f"name is {name!r}, which is taken; allowed: any but {', '.join(METHODS)}")
    own = {k: getattr(method_type, a) for k, a in ATTRIBUTES.items() if hasattr(method_type, a)}
    values = own | {k: v for k, v in options.items() if v is not None}
    T = len(NoiseSchedule.stable_diffusion())
    rules = {
        "lr": (lambda v: _is(v, Real) and 0 < v < math.inf, "a finite number > 0"),
        "ema_rate": (lambda v: _is(v, Real) and 0 <= v < 1, "0 <= ema_rate < 1"),
        "subpaths": (lambda v: _is(v, Integral) and v > 0 and T % v == 0, f"a divisor of {T}"),
        "pieces": (lambda v: _is(v, Integral) and v > 0, "an integer >= 1"),
        "loss": (lambda v: v in ("l2", "huber"), "'l2', 'huber'"),
        "cost": (lambda v: _is(v, Real) and 0 < v < math.inf, "a finite number > 0"),
        "teacher": (lambda v: v in ("exact", "learned"), "'exact', 'learned'"),
    }
    for key, value in values.items():
        fits, allowed = rules.get(key, (lambda v: False, f"one of {', '.join(rules)}"))
        if not fits(value):
            raise Broken(f"{key} is {value!r}; allowed: {allowed}")
    return Setting(method=name, **values)


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def options_of(setting: Setting) -> dict[str, object]:
    """A method's own options, in the form in which it takes them."""
    pieces = {"pieces": setting.pieces} if setting.pieces else {}
    return {"subpaths": setting.subpaths, "loss": setting.loss, **pieces}


def check(method_type: type[Method], setting: Setting) -> None:
    """Rehearse a method: once, once more, and with other data, draws and weights.

    Raises:
        Broken: for whatever is wrong with it.
    """
    losses, samples = _Rehearsal(method_type, setting).all()
    again = _Rehearsal(method_type, setting).all()
    if not (torch.equal(losses, again[0]) and torch.equal(samples, again[1])):
        raise Broken(
            "a second run with the same seed differs from the first; allowed: state in the "
            "instance alone, none in the class or the module, and draws from the given generator"
        )
    if torch.equal(losses, _Rehearsal(method_type, setting, data=1).all()[0]):
        raise Broken("loss is the same for other data; allowed: one that depends on x0")
    if torch.equal(losses, _Rehearsal(method_type, setting, draws=1).all()[0]):
        raise Broken("loss is the same for another seed; allowed: a batch drawn in draw")
    other = _Rehearsal(method_type, setting, weights=1).all()[1]
    for n, mine, theirs in zip(STEPS, samples, other, strict=True):
        if torch.equal(mine, theirs):
            raise Broken(
                f"sample in {n} steps ignores its student: other weights draw the same samples; "
                f"allowed: samples of the network that is passed"
            )


class _Watched(nn.Module):
    """A network that reports the samples of every call; a module, so that it can be copied."""

    def __init__(self, network, report) -> None:
        super().__init__()
        self.network, self.report = network, report

    def forward(self, x: Tensor, *args, **options) -> Tensor:
        self.report(len(x))
        return self.network(x, *args, **options)


class _Rehearsal:
    """A method with networks of its own; seeds of data, draws and weights."""

    def __init__(
        self, method_type: type[Method], setting: Setting, data: int = 0, draws: int = 0,
        weights: int = 0,
    ) -> None:  # fmt: skip
        self.module, self.cost = method_type.__module__, setting.cost
        self.mixture, schedule = make("ring"), NoiseSchedule.stable_diffusion()
        with self.during("__init__"):
            self.method = method_type(schedule, **options_of(setting))
        self.data, self.draws = (torch.Generator().manual_seed(seed) for seed in (data, draws))
        share, kind = self.method.share, self.method.gamma_input
        if not 0 < share <= 1:
            raise Broken(f"share is {share!r}; allowed: 0 < share <= 1")
        if kind not in (None, *GAMMA_INPUTS):
            raise Broken(f"gamma_input is {kind!r}; allowed: None, {', '.join(GAMMA_INPUTS)}")
        self.size = round(BATCH * share)
        made = {"teacher": self.mixture.network(schedule)}
        for name, seed in (("student", 2), ("target", 3 + weights)):
            made[name] = LevelMLP(16, 2, gamma=kind, generator=torch.Generator().manual_seed(seed))
            for p in made[name].parameters():  # the output would start at zero
                nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(seed))
        made["target"].requires_grad_(False)
        self.modules = {n: _Watched(net, self._reporter(n)) for n, net in made.items()}
        self.networks = Networks(**{
            n: Counted(net, n, frozen=n != "student") for n, net in self.modules.items()
        })  # fmt: skip

    def all(self) -> tuple[Tensor, Tensor]:
        """Three losses, ``(3,)``, and samples at every number of steps, ``(4, B, 2)``."""
        losses = torch.stack([self.update(used) for used in (0.0, 0.5, 0.999)])
        with torch.no_grad():
            return losses, self.samples()

    def update(self, used: float) -> Tensor:
        """The loss of a batch, and its gradient."""
        self.networks.used, generator = used, self.draws
        x0 = self.mixture.sample(self.size, self.data)
        most = self.cost / LEAST_UPDATES * BATCH
        why = (
            f"an update costs so many evaluations that {self.cost:g} pay for fewer than "
            f"{LEAST_UPDATES}; allowed: {self.cost / LEAST_UPDATES:g} a sample, or a higher cost"
        )
        self.begin("loss", most, why)
        with self.during("draw"), self.unchanged("draw", {"x0": x0}):
            batch = self.method.draw(x0, generator)
        fixed = {"x0": x0, "the batch": batch} | {
            f"a weight of the {name}": list(module.parameters())
            for name, module in self.modules.items()
        }
        with self.during("loss"), self.unchanged("loss", fixed):
            loss = self.method.loss(x0, batch, self.networks)
        if not isinstance(loss, Tensor) or loss.shape != ():
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise Broken(f"loss has shape {shape}; allowed: (), a scalar, the mean over the batch")
        if not loss.isfinite():
            raise Broken(f"loss is {loss.item()} after {used:.0%} of the budget; allowed: finite")
        if not loss.requires_grad:
            called = "without gradient" if self.seen["student"] else "never"
            raise Broken(f"loss calls networks.student {called}; allowed: with gradient")
        with self.during("loss, in its gradient,"):
            loss.backward()
        for name, module in self.modules.items():
            there = [p.grad for p in module.parameters() if p.grad is not None]
            if name != "student" and there:
                raise Broken(f"loss has a gradient for the {name}; allowed: for the student alone")
            if name == "student" and not any(bool((g != 0).any()) for g in there):
                raise Broken("loss has no gradient for the student; allowed: one that trains it")
            if not all(bool(g.isfinite().all()) for g in there):
                raise Broken("loss has a gradient that is not finite; allowed: finite")
            module.zero_grad()
        if self.networks.cost() > most:
            raise Broken(why)
        self.compare("loss")
        return loss.detach()

    def samples(self) -> Tensor:
        """Samples in 1, 2, 4, 8 steps; f* is asked for too."""
        found, target = [], self.networks.target
        x = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(9))
        for n in STEPS:
            what = f"sample in {n} steps"
            self.begin(what, n * BATCH, f"{what} calls the student more than {n} times; allowed: "
                       f"once a step", teacher=False)  # fmt: skip
            with self.during(what), self.unchanged(what, {"x": x}):
                drawn = self.method.sample(target, x, n, torch.Generator().manual_seed(8))
            if not self.seen:
                raise Broken(f"{what} never calls the student; allowed: once a step")
            found.append(self.points(drawn, x, what))
        for t in TIMES:
            self.begin("solve", math.inf, "", teacher=False)
            with self.during("solve"), self.unchanged("solve", {"x": x}):
                end = self.method.solve(target, x, torch.full((BATCH,), t))
            self.points(end, x, "solve")
        return torch.stack(found)

    def points(self, y: Tensor, x: Tensor, what: str) -> Tensor:
        """y, which must be finite and like x."""
        if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
            form = (tuple(y.shape), y.dtype) if isinstance(y, Tensor) else type(y).__name__
            raise Broken(f"{what} gives {form}; allowed: {(tuple(x.shape), x.dtype)}, that of x")
        if not y.isfinite().all():
            raise Broken(f"{what} gives NaN or Inf; allowed: finite points")
        self.compare(what)
        return y

    # Counting.

    def begin(self, what: str, most: float, why: str, *, teacher: bool = True) -> None:
        """Count from 0; so many evaluations are allowed."""
        self.what, self.most, self.why, self.teacher = what, most, why, teacher
        self.seen: Counter[str] = Counter()
        for name in self.modules:
            getattr(self.networks, name).calls.clear()

    def _reporter(self, name: str):
        def report(count: int) -> None:  # a function, because those are not copied
            self.seen[name] += count
            if name == "teacher" and not self.teacher:
                raise Broken(f"{self.what} calls the teacher; allowed: the student alone")
            if self.seen.total() > self.most:
                raise Broken(self.why)

        return report

    def compare(self, what: str) -> None:
        """Both counts must agree."""
        for name in self.modules:
            counted = getattr(self.networks, name).calls.forward
            if counted != self.seen[name]:
                raise Broken(
                    f"{what} evaluates the {name} for {self.seen[name]} samples, of which "
                    f"{counted} are counted; allowed: networks.{name}(x, t, cond, gamma) alone"
                )

    # What must not happen on the side.

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """What is raised, printed or drawn elsewhere is an error of the method."""
        before, said = _global_generators(), io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                yield
        except Broken:
            raise
        except Exception as error:
            at, line = error.__traceback__, ""
            while at:
                if at.tb_frame.f_globals.get("__name__") == self.module:
                    line = f" in line {at.tb_lineno}"
                at = at.tb_next
            raise Broken(f"{what} raises {type(error).__name__}{line}: {error}") from error
        if said.getvalue():
            raise Broken(f"{what} prints {said.getvalue()[:40]!r}; allowed: nothing")
        if _global_generators() != before:
            raise Broken(f"{what} draws from a global generator; allowed: the one it is given")

    @contextlib.contextmanager
    def unchanged(self, what: str, values: Mapping[str, object]) -> Iterator[None]:
        """Tensors that must stay as they are."""
        tensors = [
            (name, x, x.detach().clone()) for name in values for x in _tensors(values[name])
        ]
        yield
        for name, x, before in tensors:
            if not torch.equal(x, before):
                raise Broken(f"{what} changes {name} in place; allowed: new tensors")


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in tuples, lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif dataclasses.is_dataclass(value):
        yield from _tensors([getattr(value, field.name) for field in dataclasses.fields(value)])


def _global_generators() -> tuple:
    state = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), state[1].tobytes(), state[2]

"""What a method must keep to, so that its place in the table means something.

:func:`load` reads a learner's file, :func:`setting_of` the options that its class sets, and
:func:`check` rehearses it on small networks, in less than a second: a few batches, their losses
and gradients, and samples. Every error is a :class:`Broken`; it says what is wrong and what is
allowed. Evaluations are counted twice, as :class:`slam_course.family.base.Counted` does and at the
networks themselves, so that none can be made past the count.
"""

from __future__ import annotations

import io
import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import is_dataclass
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor, nn

from slam_course.family import METHODS
from slam_course.family.base import Calls, Counted, Method, Trio
from slam_course.family.results import Choice
from slam_course.family.training import STEPS, TIMES, make
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


def setting_of(method_type: type[Method], **options: object) -> Choice:
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
    return Choice(method=name, **values)


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def options_of(setting: Choice) -> dict[str, object]:
    """A method's own options, in the form in which it takes them."""
    pieces = {"pieces": setting.pieces} if setting.pieces else {}
    return {"subpaths": setting.subpaths, "loss": setting.loss, **pieces}


def check(method_type: type[Method], setting: Choice) -> None:
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
    """A network that reports what Counted should; a module, so that it can be copied."""

    def __init__(self, network: Callable[..., Tensor], report: Callable[..., None]) -> None:
        super().__init__()
        self.network, self.report = network, report

    def forward(self, x: Tensor, *args: object, **options: object) -> Tensor:
        self.report(forward=len(x))
        output = self.network(x, *args, **options)
        if output.requires_grad:
            output.register_hook(lambda gradient: self.report(backward=len(gradient)))
        return output


class _Rehearsal:
    """A method with small networks of its own; data, draws and weights are seeds."""

    def __init__(
        self, method_type: type[Method], setting: Choice, data: int = 0, draws: int = 0,
        weights: int = 0,
    ) -> None:  # fmt: skip
        self.module, self.cost = method_type.__module__, setting.cost
        self.mixture, schedule = make("ring"), NoiseSchedule.stable_diffusion()
        self.data, self.draws = (torch.Generator().manual_seed(seed) for seed in (data, draws))
        made, self.nets = {"teacher": self.mixture.network(schedule)}, {}
        with self.during("__init__"):
            self.method = method_type(schedule, **options_of(setting))
            for name, seed in (("student", 2), ("target", 3 + weights)):
                generator = torch.Generator().manual_seed(seed)
                made[name] = LevelMLP(16, 2, gamma=self.method.gamma_input, generator=generator)
                for p in made[name].parameters():  # the output would start at zero
                    nn.init.normal_(p, std=0.2, generator=generator)
        made["target"].requires_grad_(False)
        self.nets = {name: _Watched(net, self.reporter(name)) for name, net in made.items()}
        self.networks = Trio(**{
            name: Counted(net, name, frozen=name != "student") for name, net in self.nets.items()
        })  # fmt: skip

    def all(self) -> tuple[Tensor, Tensor]:
        """Three losses, ``(3,)``, and samples at every number of steps, ``(4, B, 2)``."""
        losses = torch.stack([self.update(used) for used in (0.0, 0.5, 0.999)])
        with torch.no_grad():
            return losses, self.samples()

    def update(self, used: float) -> Tensor:
        """The loss of a batch, and its gradient."""
        self.networks.used = used
        x0 = self.mixture.sample(round(BATCH * self.method.share), self.data)
        least = self.cost / LEAST_UPDATES
        why = (
            f"loss costs so much that {self.cost:g} pay for fewer than {LEAST_UPDATES} updates; "
            f"allowed: {least:g} evaluations a sample, backward ones counted twice"
        )
        with self.during("draw", {"x0": x0}):
            batch = self.method.draw(x0, self.draws)
        weights = {f"a weight of the {n}": list(net.parameters()) for n, net in self.nets.items()}
        with self.during("loss", {"x0": x0, "the batch": batch} | weights, least * BATCH, why):
            loss = self.method.loss(x0, batch, self.networks)
            self.check_loss(loss, used)
            loss.backward()
        gradients = [p.grad for p in self.nets["student"].parameters() if p.grad is not None]
        if not all(bool(g.isfinite().all()) for g in gradients):
            raise Broken("the gradient of loss is not finite; allowed: finite")
        if not any(bool(g.any()) for g in gradients):
            raise Broken("the gradient of loss is 0; allowed: one that trains the student")
        self.nets["student"].zero_grad()
        return loss.detach()

    def check_loss(self, loss: object, used: float) -> None:
        """A finite scalar with a gradient for the student."""
        if not isinstance(loss, Tensor) or loss.shape != ():
            raise Broken(f"loss is {_form(loss)}; allowed: a scalar, the mean over the batch")
        if not loss.isfinite():
            raise Broken(f"loss is {loss.item()} after {used:.0%} of the budget; allowed: finite")
        if not loss.requires_grad:
            called = "without gradient" if self.seen["student"].forward else "never"
            raise Broken(f"loss calls networks.student {called}; allowed: with gradient")

    def samples(self) -> Tensor:
        """Samples in 1, 2, 4 and 8 steps; and what solve answers is looked at."""
        found, target = [], self.networks.target
        x = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(9))
        for n in STEPS:
            what = f"sample in {n} steps"
            why = f"{what} calls the student more than {n} times; allowed: once a step"
            with self.during(what, {"x": x}, n * BATCH, why, teacher=False):
                found.append(self.method.sample(target, x, n, torch.Generator().manual_seed(8)))
            if not self.spent:
                raise Broken(f"{what} never calls the student; allowed: once a step")
            _check_points(found[-1], x, what)
        for t in TIMES:
            with self.during("solve", {"x": x}, teacher=False):
                end = self.method.solve(target, x, torch.full((BATCH,), t))
            _check_points(end, x, "solve")
        return torch.stack(found)

    def reporter(self, name: str) -> Callable[..., None]:
        """Counts at a network itself, and stops at once what may not be."""

        def report(forward: int = 0, backward: int = 0) -> None:
            self.seen[name].forward += forward
            self.seen[name].backward += backward
            if name == "teacher" and not self.teacher:
                raise Broken(f"{self.what} calls the teacher; allowed: the student alone")
            if self.spent > self.most:
                raise Broken(self.why)

        return report

    @property
    def spent(self) -> int:
        """What the call has cost."""
        return sum(calls.cost() for calls in self.seen.values())

    @contextmanager
    def during(
        self, what: str, fixed: dict[str, object] | None = None, most: float = math.inf,
        why: str = "", *, teacher: bool = True,
    ) -> Iterator[None]:  # fmt: skip
        """Watch over a call of the method's.

        Nothing in ``fixed`` may change, evaluations may cost ``most`` (else ``why``) and are all
        counted; nothing may be printed, or drawn from the global generator.
        """
        self.what, self.most, self.why, self.teacher = what, most, why, teacher
        self.seen = {name: Calls() for name in self.nets}
        for name in self.nets:
            getattr(self.networks, name).calls.clear()
        before = [
            (k, x, x.detach().clone()) for k, v in (fixed or {}).items() for x in _tensors(v)
        ]
        state, said = torch.get_rng_state(), io.StringIO()
        try:
            with redirect_stdout(said):
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
        if not torch.equal(torch.get_rng_state(), state):
            raise Broken(f"{what} draws from the global generator; allowed: the one it is given")
        for name, x, was in before:
            if not torch.equal(x, was):
                raise Broken(f"{what} changes {name} in place; allowed: new tensors")
        for name, seen in self.seen.items():
            calls = getattr(self.networks, name).calls
            if (calls.forward, calls.backward) != (seen.forward, seen.backward):
                raise Broken(
                    f"{what} evaluates the {name} for {seen.forward} samples and {seen.backward} "
                    f"backward, but {calls.forward} and {calls.backward} are counted; allowed: "
                    f"calls of networks.{name}(x, t) alone"
                )


def _check_points(y: object, x: Tensor, what: str) -> None:
    if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
        raise Broken(f"{what} gives {_form(y)}; allowed: {_form(x)}, as x is")
    if not y.isfinite().all():
        raise Broken(f"{what} gives NaN or Inf; allowed: finite points")


def _form(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    return f"a {type(value).__name__}"


def _tensors(value: object) -> list[Tensor]:
    """All tensors in tuples, lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    value = getattr(value, "__dict__", value) if is_dataclass(value) else value
    value = list(value.values()) if isinstance(value, dict) else value
    return [x for v in value for x in _tensors(v)] if isinstance(value, (list, tuple)) else []

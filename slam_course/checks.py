"""What all checks share: the verdict, the contract of a learner's function, and the guard.

The contract is the same in all lessons. A call leaves its inputs and PyTorch's switches as they
were (:func:`_held`, through which every call goes); the value has the shape, the dtype and the
gradient of the right one, and costs no more evaluations (:func:`hold`).

The guard ends what takes too long and puts back what was changed. It protects from accidents: code
that means harm runs in the same process and can undo all of it (docs/teaching.md, "Untrusted
code").
"""

from __future__ import annotations

import _thread
import contextlib
import csv
import dis
import functools
import inspect
import math
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import slam_edu
from slam_edu.schedule import NoiseSchedule

LIMIT = 20.0  # seconds for one check; on two slow cores the slowest takes about one
NO_ANSWER = "There is no answer yet: replace the `...`."
NOTHING = "There is no answer yet: what the check was given is None. Store in it what you found."

# Files of these folders are not the learner's: the course, the library, packages, Python.
_LIBRARIES = tuple(
    str(Path(module.__file__).parents[up])
    for module, up in ((sys.modules[__name__], 0), (slam_edu, 0), (torch, 1), (random, 0))
)
_AGAIN = 1.0  # seconds after which a bell that was swallowed rings again
# A signal that nobody else needs: Windows has no alarm.
_BELL = getattr(signal, "SIGALRM", None) or getattr(signal, "SIGBREAK", None)


class Wrong(Exception):
    """Raised inside a check; its sentence becomes the verdict."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check."""

    exercise: str
    passed: bool
    message: str  # one or two sentences: what is right, or what is wrong and where to look

    def __repr__(self) -> str:
        return f"{self.exercise}: {'right' if self.passed else 'not yet'}. {self.message}"


# The last verdict on each exercise in this process, for `summary`.
_LAST: dict[str, Verdict] = {}


def exercise(
    name: str, changes: Sequence[int] = ()
) -> Callable[[Callable[..., str]], Callable[..., Verdict]]:
    """Turn ``check(*answers) -> praise`` into a check that always returns a :class:`Verdict`.

    The check raises :class:`Wrong` for a wrong answer. Whatever the learner's code raises, an exit
    included, is reported by its type, message and line. An answer of ``...`` or None, or code that
    returns ``...`` or raises ``NotImplementedError``, counts as not given yet. What does not end
    within :data:`LIMIT` seconds is broken off; Jupyter's stop button (``KeyboardInterrupt``) stops
    the cell as ever. Each call of an answer is held to the contract (:func:`_held`); ``changes``
    are the places of inputs that it may change. Random states are afterwards what they were. What
    the learner's code prints is shown, warnings too, but not as an error: nbgrader counts anything
    on stderr as a failure.
    """

    def decorate(check: Callable[..., str]) -> Callable[..., Verdict]:
        @functools.wraps(check)
        def guarded(*answers: object) -> Verdict:
            if any(answer is ... or answer is None for answer in answers):
                empty = any(answer is ... for answer in answers)
                passed, message = False, NO_ANSWER if empty else NOTHING
            else:
                with _random_states_kept(), contextlib.redirect_stderr(sys.stdout):
                    passed, message = _judge(check, answers, changes)
            _LAST[name] = Verdict(name, passed, message)
            return _LAST[name]

        guarded.exercise = name
        return guarded

    return decorate


def _judge(
    check: Callable[..., str], answers: Sequence[object], changes: Sequence[int]
) -> tuple[bool, str]:
    """(passed, message) of a check, whatever the learner's code does."""
    limit, signature = LIMIT, inspect.signature(check)
    wanted = signature.bind(*answers).arguments  # a check that is called wrongly raises
    try:
        with time_limit(limit), torch.enable_grad():  # whatever the notebook has switched off
            for name, answer in wanted.items():
                kind = str(signature.parameters[name].annotation)
                require(
                    callable(answer) or not kind.startswith("Callable"),
                    f"The check was given a {type(answer).__name__}; give it your function, by "
                    f"name alone.",
                )
            return True, check(*(_held(answer, changes) for answer in answers))
    except KeyboardInterrupt:
        raise
    except Wrong as wrong:
        functions = (
            answer for name, answer in wanted.items()
            if str(signature.parameters[name].annotation).startswith("Callable")
        )  # fmt: skip
        return False, str(wrong) + "".join(dict.fromkeys(map(_outside, functions)))
    except TooSlow:
        return False, (
            f"Your code did not end within {limit:g} seconds, and was stopped. Is there a loop "
            f"that never ends, or far more work than the exercise asks for?"
        )
    except BaseException:  # of the check, and what was raised says nothing to a learner
        return False, (
            "The check cannot read your answer. Give it, and return, what the stub asks for: "
            "plain tensors, numbers, lists or dictionaries of them."
        )


def _held(answer: Any, changes: Sequence[int] = ()) -> Any:
    """A learner's function, each call of which is held to what all have to keep; else the answer.

    It raises :class:`Wrong` where a call raises, changes an input (tensors, networks, lists,
    levels), or leaves one of PyTorch's switches changed. Those are put back after each call,
    because the rest of a check would otherwise compute under them. The random states are not: two
    calls that draw must differ, so that a check can see that something is drawn.
    """

    if not callable(answer) or isinstance(answer, type):
        return answer

    @functools.wraps(answer)
    def held(*inputs: object) -> Any:
        images = [_image(value) for value in inputs]
        try:
            with _switches_kept() as upset:
                returned = answer(*inputs)
        except (KeyboardInterrupt, TooSlow, Wrong):
            raise
        except BaseException as error:  # it may raise anything, SystemExit as well
            empty = isinstance(error, NotImplementedError) and not error.args
            raise Wrong(NO_ANSWER if empty else _told(error)) from None
        require(
            not upset,
            f"Your function changes {' and '.join(upset)} for everything that runs after it, the "
            f"rest of the notebook too. {_LEAVE_ALONE.get(' '.join(upset), 'Leave that alone.')}",
        )
        for i, (value, image) in enumerate(zip(inputs, images, strict=True)):
            require(
                i in changes or _image(value) == image,
                f"Your function changes {_name(answer, i)} itself; "
                + ("leave its parameters, their gradients and their `requires_grad` as they are."
                   if isinstance(value, nn.Module)
                   else "make a new one, without `+=`, `mul_` or `pop`."),
            )  # fmt: skip
        return returned

    return held


def _name(answer: Callable[..., Any], place: int) -> str:
    try:
        return list(inspect.signature(answer).parameters)[place]
    except (IndexError, TypeError, ValueError):  # not all that can be called says
        return "an input"


def _image(value: object) -> object:
    """What of an input must be the same after a call, to the last bit; None of most objects."""
    match value:
        case float() | int() | str():
            return value  # NaN, too: in a list, one object is equal to itself
        case list() | tuple():
            return [_image(each) for each in value]
        case dict():
            return [(name, _image(each)) for name, each in value.items()]
        case Tensor():
            gradient = _image(value.grad) if value.is_leaf else None
            bits = value.detach().numpy().tobytes()
            return tuple(value.shape), value.dtype, bits, value.requires_grad, gradient
        case nn.Module():
            return [_image(each) for each in (*value.parameters(), *value.buffers())]
    return _image(vars(value)) if is_dataclass(value) else None


def _told(error: BaseException) -> str:
    """What the learner's code raised, and in which of the learner's lines."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be shown)"
    where = "when it was called: keep the stub's arguments"
    if theirs:
        where = f"in {theirs[-1].name}, line {theirs[-1].lineno}: {theirs[-1].line}"
    return f"Your code raised {type(error).__name__}: {text} ({where})."


def _outside(answer: Any) -> str:
    """A sentence that names the notebook's tensors and networks that a function reads, or ""."""
    inner = inspect.unwrap(answer) if isinstance(answer, FunctionType) else None
    if not isinstance(inner, FunctionType):
        return ""
    usual = (FunctionType, BuiltinFunctionType, type, ModuleType, int, float, str, NoiseSchedule)
    names = [i.argval for i in dis.get_instructions(inner) if i.opname == "LOAD_GLOBAL"]
    read = [
        f"`{name}`"
        for name in dict.fromkeys(names)
        if not isinstance(inner.__globals__.get(name, 0), usual)
    ]
    return f" It reads {', '.join(read)} of the notebook beside its arguments." if read else ""


@dataclass(frozen=True)
class Summary:
    """How far a learner has come; its text is a table, for handing in."""

    # For each exercise its name, "right", "not yet" or "not checked", points, maximum.
    rows: tuple[tuple[str, str, float, float], ...]

    @property
    def points(self) -> float:
        """The points reached."""
        return sum(points for _, _, points, _ in self.rows)

    def __repr__(self) -> str:
        total = ("", "in all", self.points, sum(most for *_, most in self.rows))
        width = max(len(name) for name, *_ in (*self.rows, total))
        return "\n".join(
            f"{name:<{width}}  {word:<11}  {points:g} of {most:g} points"
            for name, word, points, most in (*self.rows, total)
        )


def summary(points: Mapping[Callable[..., Verdict], float]) -> Summary:
    """The last verdict on each exercise since the kernel started, with its points.

    ``points`` are those of each check, such as ``{checks.denoiser: 4, checks.euler_step: 4}``.
    """
    rows = []
    for check, most in points.items():
        verdict = _LAST.get(check.exercise)
        word = "not checked" if verdict is None else "right" if verdict.passed else "not yet"
        rows.append((check.exercise, word, most if word == "right" else 0, most))
    return Summary(tuple(rows))


def require(condition: bool, sentence: str) -> None:
    """Raise :class:`Wrong` with the sentence unless the condition holds."""
    if not condition:
        raise Wrong(sentence)


def given(answer: Any, what: str = "What your function returns") -> Any:
    """What the learner's function returned; ``...`` counts as no answer yet."""
    require(answer is not ..., NO_ANSWER)
    require(answer is not None, f"{what} is None: is a `return` missing?")
    return answer


def require_shape(
    answer: object, shape: tuple[int, ...], what: str = "What your function returns"
) -> Tensor:
    """Require a tensor of a shape with finite values, and return it."""
    given(answer, what)
    if not isinstance(answer, Tensor):
        raise Wrong(f"{what} is a {type(answer).__name__}; it should be a torch.Tensor.")
    if tuple(answer.shape) != tuple(shape):
        raise Wrong(f"{what} has shape {tuple(answer.shape)}; it should have {tuple(shape)}.")
    if not bool(torch.isfinite(answer).all()):
        raise Wrong(f"{what} has NaN or infinite values.")
    return answer


class Asked:
    """A function that a learner's function is given, which notes what it is asked.

    Attributes:
        calls: the arguments of each call, by name.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function, self.calls = function, []

    def __call__(self, *inputs: object, **named: object) -> Tensor:
        """What the function says."""
        bound = inspect.signature(self.function).bind(*inputs, **named)
        self.calls.append(bound.arguments)
        try:
            return self.function(*bound.args)
        except (AttributeError, IndexError, RuntimeError, TypeError):
            given = ", ".join(
                f"{name}: {type(value).__name__}"
                + (f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "")
                for name, value in bound.arguments.items()
            )
            raise TypeError(
                f"this function cannot take what it was called with ({given})"
            ) from None

    def samples(self) -> list[int]:
        """How many samples it was shown in each call."""
        return [len(next(iter(call.values()))) for call in self.calls]

    def met(self) -> list[int]:
        """The timesteps that it was called at, each once, as they came."""
        return list(dict.fromkeys(int(torch.as_tensor(call["t"]).max()) for call in self.calls))


def hold(
    answer: Callable[..., Tensor],
    right: Callable[..., Tensor],
    inputs: Mapping[str, Any],
    mistakes: Sequence[tuple[Tensor, str]] = (),
    otherwise: str | Callable[[], str] = "",
    *,
    what: str = "What your function returns",
    gradient: Sequence[str] | Mapping[str, Sequence[Tensor]] | None = None,
    waste: str = "Keep what it said in a variable.",
    **tolerance: float,
) -> Tensor:
    """Hold a learner's function against the right one, on inputs in this order and not by name.

    Shape, values, dtype and gradient have to be the right one's, and what is an :class:`Asked` may
    be shown no more samples, in at most ten times as many calls. Each of the ``mistakes`` is what
    it gives on these inputs, and the sentence to say then; ``otherwise`` is the sentence for any
    other wrong value, or makes it, and ``waste`` is said of too many evaluations. ``gradient``
    names the inputs by which both are differentiated, or has parameters behind them: by default
    all networks, and tensors that are not single numbers. Returns what the learner's function did.
    """
    asked = {name: value for name, value in inputs.items() if isinstance(value, Asked)}

    def run(function: Callable[..., Any]) -> tuple[Any, dict[str, list[int]]]:
        for each in asked.values():
            each.calls.clear()
        returned = function(*inputs.values())
        return returned, {name: each.samples() for name, each in asked.items()}

    expected, enough = run(right)
    returned, shown = run(answer)
    require_shape(returned, expected.shape, what)
    refuse(returned, mistakes, **tolerance)
    for name in asked:
        require(
            bool(shown[name]) or not enough[name],
            f"Your function never calls `{name}`, which it is given.",
        )
    if not _close(returned, expected, **tolerance):
        sentence = otherwise() if callable(otherwise) else otherwise
        again = require_shape(answer(*inputs.values()), expected.shape, what)
        require(
            torch.equal(again, returned),
            "Two calls with the same inputs gave two answers, so fresh noise is drawn. Use what "
            "your function is given, and nothing else.",
        )
        raise Wrong(sentence)
    require_close(returned, expected, "", **tolerance)
    if gradient is None or gradient:
        _require_gradient(answer, right, inputs, gradient)
    require(
        expected.requires_grad or not returned.requires_grad,
        f"{what} asks for a gradient of its own (`requires_grad`); it should be a plain tensor.",
    )
    for name in asked:
        count, least = sum(shown[name]), sum(enough[name])
        require(
            count <= least,
            f"The values are right, but `{name}` was shown {count} samples; {least} are enough. "
            f"{waste}",
        )
        require(
            len(shown[name]) <= 10 * len(enough[name]),
            f"The values are right, but `{name}` was called {len(shown[name])} times. Give it the "
            f"whole batch at once: that is far faster.",
        )
    return returned


def _require_gradient(
    answer: Callable[..., Tensor],
    right: Callable[..., Tensor],
    inputs: Mapping[str, Any],
    names: Sequence[str] | Mapping[str, Sequence[Tensor]] | None,
) -> None:
    """Require the gradient of the right function, by networks and tensors among the inputs."""
    given, leaves = dict(inputs), dict(names) if isinstance(names, Mapping) else {}
    for name, value in inputs.items():
        if isinstance(value, nn.Module):
            leaves[name] = list(value.parameters())
        elif isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
            leaves[name] = [value.clone().requires_grad_()]
            given[name] = leaves[name][0]
    leaves = {name: each for name, each in leaves.items() if each and name in (names or leaves)}
    flat = [leaf for each in leaves.values() for leaf in each]

    def gradients(function: Callable[..., Tensor]) -> Iterator[Tensor]:
        nothing = 0 * torch.stack([leaf.sum() for leaf in flat]).sum()  # each is part of a graph
        try:
            value = function(*given.values()).square().sum() + nothing
            found = iter(torch.autograd.grad(value, flat))
        except (Wrong, RuntimeError):  # such as numpy's: it takes none that needs a gradient
            found = iter(torch.autograd.grad(nothing, flat))
        for each in leaves.values():
            yield torch.cat([next(found).flatten() for _ in each])

    for name, theirs, ours in zip(leaves, gradients(answer), gradients(right), strict=True):
        if not _close(theirs, ours, rtol=1e-3, atol=1e-4 * float(ours.abs().max()) or 1e-9):
            require(
                bool(ours.any()),
                f"The values are right, but gradient flows into {name}, which is held fixed here: "
                f"compute that part under `torch.no_grad()`, or detach it.",
            )
            raise Wrong(
                f"The values are right, but no gradient, or a wrong one, comes back to {name}: "
                f"`torch.no_grad()`, `detach`, `item`, numpy or a `backward` within cut it off."
            )


def _close(answer: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-6) -> bool:
    answer = answer.detach().real if answer.is_complex() else answer.detach()
    if answer.is_floating_point():  # half precision is told from wrong values
        rtol = max(rtol, 4 * torch.finfo(answer.dtype).eps)
    return torch.allclose(answer.to(other), other, rtol=rtol, atol=atol)


def refuse(answer: Tensor, mistakes: Sequence[tuple[Tensor, str]], **tolerance: float) -> None:
    """Raise :class:`Wrong` with the sentence of the mistake that gives exactly this answer."""
    for wrong, sentence in mistakes:
        require(not _close(answer, wrong, **tolerance), sentence)


def require_close(answer: Tensor, expected: Tensor, sentence: str, **tolerance: float) -> None:
    """Raise :class:`Wrong` with the sentence unless the two agree within the tolerance.

    The dtype has to agree, too: a cell that goes on with another one fails or loses digits.
    """
    require(_close(answer, expected, **tolerance), sentence)
    require(
        answer.dtype == expected.dtype,
        f"The values are right, but in {answer.dtype}; your function should return "
        f"{expected.dtype} here, as it is given.",
    )


def number(answer: object, what: str = "What your function returns") -> float:
    """One finite number: Python's, numpy's, or a tensor's of shape ()."""
    return float(_scalar(answer, what))


def whole(answer: object, what: str = "What your function returns") -> int:
    """One whole number: Python's, numpy's, or an integer tensor's of shape ()."""
    value = _scalar(answer, what)
    require(
        isinstance(value, Integral),
        f"{what} is a {type(value).__name__}, {value:g}; it should be a whole number, an int.",
    )
    return int(value)


def _scalar(answer: Any, what: str) -> Any:
    value = given(answer, what)
    if hasattr(answer, "item") and hasattr(answer, "shape"):  # of torch and numpy
        shape = tuple(answer.shape)
        require(shape == (), f"{what} has shape {shape}; it should be one number.")
        value = answer.item()
    require(
        not isinstance(value, complex),
        f"{what} is a complex number; it should be real. If its imaginary part is only rounding, "
        f"take `.real`.",
    )
    if isinstance(value, bool) or not isinstance(value, Real):
        raise Wrong(f"{what} is a {type(value).__name__}; it should be one number.")
    require(math.isfinite(value), f"{what} is {value}; it should be finite.")
    return value


def listed(answer: Any, sentence: str, count: int | None = None) -> list[Any]:
    """A list of what a list, tuple, tensor or array holds; :class:`Wrong` with the sentence."""
    given(answer)
    answer = answer.tolist() if hasattr(answer, "tolist") else answer
    require(isinstance(answer, Iterable) and not isinstance(answer, (str, dict)), sentence)
    found = list(answer)
    require(count in (None, len(found)), sentence)
    return found


def refuse_numbers(
    value: float, mistakes: Sequence[tuple[float, str]], *, rtol: float = 1e-6
) -> None:
    """Raise :class:`Wrong` with the sentence of the mistake that gives exactly this number."""
    for wrong, sentence in mistakes:
        require(not math.isclose(value, wrong, rel_tol=rtol), sentence)


def known_mistakes(checks: str) -> dict[str, list[tuple[str, str]]]:
    """The mistakes that a lesson's checks know, by part: (formula, sentence).

    They stand in ``mistakes.csv`` beside the file ``checks``. A formula gives what the mistake
    gives, in names that the check has (:func:`worked_out`); a test gives each as an answer.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    with Path(checks).with_name("mistakes.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["part"], []).append((row["formula"], row["sentence"]))
    return found


def worked_out(mistakes: Sequence[tuple[str, str]], **names: object) -> list[tuple[Any, str]]:
    """What each known mistake gives where its names have these values, and its sentence."""
    names = {"torch": torch, **names}
    return [(eval(formula, names), sentence) for formula, sentence in mistakes]


class TooSlow(BaseException):
    """Raised inside code that does not end; `except Exception` does not catch it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TooSlow` inside the block when it lasts longer than `seconds`.

    Python runs signal handlers in the main thread alone, which is where Jupyter runs cells; in
    any other thread there is no limit. One call into compiled code cannot be broken off: the
    limit has its effect when it returns. Code that catches everything, ``except:`` in an endless
    loop, cannot be stopped from inside its process.
    """
    if _BELL is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    running = True

    def ring(number: int, frame: object) -> None:
        if running:
            raise TooSlow

    before = signal.signal(_BELL, ring)
    stop = _start_bell(seconds)
    try:
        yield
    finally:
        running = False  # first: a bell that rings from here on is not heard
        stop()
        signal.signal(_BELL, before)


def _start_bell(seconds: float) -> Callable[[], None]:
    """Ring after `seconds` and then again and again; returns what ends it."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
        return lambda: signal.setitimer(signal.ITIMER_REAL, 0)
    over = threading.Event()

    def wait() -> None:
        delay = seconds
        while not over.wait(delay):
            _thread.interrupt_main(_BELL)
            delay = _AGAIN

    threading.Thread(target=wait, daemon=True).start()
    return over.set


# How PyTorch's switches are called, read and put back.
_SWITCHES = (
    ("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("the default device", torch.get_default_device,
     lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
    ("the number of threads", torch.get_num_threads, torch.set_num_threads),
    ("whether gradients are computed", torch.is_grad_enabled, torch.set_grad_enabled),
    ("whether algorithms are deterministic", torch.get_deterministic_debug_mode,
     torch.set_deterministic_debug_mode),
    ("the random seed", torch.initial_seed, torch.manual_seed),
)  # fmt: skip


_LEAVE_ALONE = {
    "whether gradients are computed": "Use a block that ends, such as `with torch.no_grad():`.",
    "the random seed": "Nothing has to be drawn here: use what your function is given.",
}


@contextlib.contextmanager
def _switches_kept() -> Iterator[list[str]]:
    """Put PyTorch's switches back after the block; the list then names those that had changed.

    Nothing is written unless it changed: setting a default device, even the usual one, makes every
    later call slower.
    """
    before, upset = [read() for _, read, _ in _SWITCHES], []
    try:
        yield upset
    finally:
        for (name, read, put_back), then in zip(_SWITCHES, before, strict=True):
            if read() != then:
                put_back(then)
                upset.append(name)


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Put the random states of torch (and its GPUs), numpy and Python back after the block."""
    own = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002 - the state of the functions that learners call
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy)  # noqa: NPY002

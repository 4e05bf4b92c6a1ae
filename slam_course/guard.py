"""What a learner's code may not do to a notebook: last for ever, and leave its switches changed.

The guard ends what takes too long and puts back what was changed. It protects from accidents: code
that means harm runs in the same process and can undo all of it (docs/teaching.md, "Untrusted
code").
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import random
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch

LIMIT = 20.0  # seconds for one check; on two slow cores the slowest takes about one
_AGAIN = 1.0  # seconds after which a bell that was swallowed rings again
# A signal that nobody else needs: Windows has no alarm.
_BELL = getattr(signal, "SIGALRM", None) or getattr(signal, "SIGBREAK", None)


class TooSlow(BaseException):
    """Raised inside code that does not end; `except Exception` does not catch it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TooSlow` inside the block when it takes longer than `seconds`.

    Python runs signal handlers in the main thread alone, which is where Jupyter runs cells; in
    any other thread there is no limit. One call into compiled code cannot be broken off: the
    limit takes effect when it returns. Code that catches everything, ``except:`` in an endless
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


@contextlib.contextmanager
def switches_kept() -> Iterator[None]:
    """Put PyTorch's switches back after the block: dtype, device, threads, gradients, determinism.

    Nothing is written unless it changed: setting a default device, even the usual one, makes every
    later call slower.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    exact = _determinism()
    try:
        yield
    finally:
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.is_grad_enabled() != gradients:
            torch.set_grad_enabled(gradients)
        if _determinism() != exact:
            torch.use_deterministic_algorithms(exact[0], warn_only=exact[1])


def _determinism() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Put the random states of torch (and its GPUs), numpy and Python back after the block."""
    own, cpu = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002 - the state of the functions that learners call
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(own)
        torch.set_rng_state(cpu)
        np.random.set_state(numpy)  # noqa: NPY002
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)


def tidy(answer: object) -> object:
    """The learner's function with the switches put back after each call; other answers as is.

    After each call and not only at the end, because the rest of a check would otherwise compute
    under the learner's switches, and call a right answer wrong. The random states are not put
    back here: two calls that draw must differ, so that a check can see that something is drawn.
    """
    if not callable(answer):
        return answer

    @functools.wraps(answer)
    def called(*args: object, **kwargs: object) -> object:
        with switches_kept():
            return answer(*args, **kwargs)

    return called

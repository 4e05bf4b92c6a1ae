r"""What is in memory while a network computes, in bytes, by part.

:class:`LiveBytes` sees every operation, forward and backward, and follows each tensor's storage
from its birth to its death, so that it knows at each moment what is alive. It works alike on real
tensors, where it measures, and on tensors of the meta device, which have shapes and no data, where
it tells what a computation would need.

It does not see what an operation allocates for itself and frees before it returns (a convolution's
workspace), nor the interpreter and its libraries: for those there is :func:`resident_bytes`.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

GIB = 2**30
#: What no part was named for.
REST = "activations"


class LiveBytes(TorchDispatchMode):
    """Within the block, the bytes of live tensors.

    Tensors that were there before must be named (:meth:`own`); new ones belong to "activations"
    until they are given to another part.

    Args:
        record: keep what was alive after each new tensor, as :attr:`moments`.

    Attributes:
        live: bytes of each part now.
        peak: bytes of each part when their sum was largest.
        largest: largest bytes of each part, each at its own moment.
        moments: of each new tensor, the bytes of each part.
        flops: of matrix products, convolutions and attention so far; a multiplication and an
            addition are two.
    """

    def __init__(self, record: bool = False) -> None:
        super().__init__()
        self.live: dict[str, int] = {REST: 0}
        self.peak: dict[str, int] = {}
        self.largest: dict[str, int] = {}
        self.moments: list[dict[str, int]] = []
        self.flops = 0
        self._record = record
        self._known: dict[int, tuple[str, int]] = {}  # storage to part and bytes
        self._hooks: list[Any] = []

    @property
    def total(self) -> int:
        """Bytes that are alive now."""
        return sum(self.live.values())

    def own(self, part: str, tensors: Iterable[Tensor | None]) -> None:
        """Count tensors to a part, whether they are new or of another part so far.

        Args:
            part: its name.
            tensors: None among them is passed over.
        """
        for tensor in tensors:
            if tensor is not None:
                self._count(tensor, part)
        self._look()

    def part_of(self, tensor: Tensor) -> str | None:
        """The part that a tensor is counted to; None for one that is not known."""
        found = self._known.get(tensor.untyped_storage()._cdata)
        return None if found is None else found[0]

    def own_gradients(self, part: str, parameters: Iterable[Tensor]) -> None:
        """Count the gradients of these to a part, each when it is complete; within the block.

        Args:
            part: its name.
            parameters: leaves that require a gradient.
        """
        for p in parameters:
            hook = p.register_post_accumulate_grad_hook(lambda p: self.own(part, [p.grad]))
            self._hooks.append(hook)

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        super().__exit__(*error)

    def forget_peak(self) -> None:
        """Let the largest so far be what is alive now."""
        self.peak, self.largest = {}, {}
        self._look()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Call the operation, and look at what came of it."""
        out = self._call(func, args, kwargs or {})
        count = FLOPS.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        new = False
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                new |= self._count(leaf)
        if new:
            self._look()
        return out

    def _call(self, func: Any, args: tuple, kwargs: dict) -> Any:
        return func(*args, **kwargs)

    def _new(self, size: int) -> str:
        """The part of a new tensor of so many bytes."""
        return REST

    def _count(self, tensor: Tensor, part: str | None = None) -> bool:
        """Add a tensor's storage, once for all its views; a part given takes it from another."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        before = self._known.get(key)
        if before is not None and part is None:
            return False
        size = storage.nbytes()
        part = part or self._new(size)
        if before is None:
            weakref.finalize(storage, self._drop, key).atexit = False
        else:
            self.live[before[0]] -= before[1]
        self._known[key] = (part, size)
        self.live[part] = self.live.get(part, 0) + size
        return True

    def _drop(self, key: int) -> None:
        part, size = self._known.pop(key)
        self.live[part] -= size

    def _look(self) -> None:
        if self._record:
            self.moments.append(dict(self.live))
        for part, size in self.live.items():
            if size > self.largest.get(part, 0):
                self.largest[part] = size
        if self.total > sum(self.peak.values()):
            self.peak = dict(self.live)


def _attention(query: Any, key: Any, value: Any, *_args: Any, **_more: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *_args: Any, **_more: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_aten = torch.ops.aten
#: Operation to its number of multiplications and additions; torch's own list has no attention on
#: a CPU.
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


# -------------------------------------------------------------------- of the machine


def resident_bytes() -> int:
    """What this process holds in memory, all included."""
    import psutil

    return psutil.Process().memory_info().rss


def available_bytes(device: torch.device | str) -> int:
    """What can still be taken on a device without pushing others out.

    Args:
        device: a GPU, whose free memory counts, or what uses the machine's, of which the operating
            system's estimate counts, and a container's limit where there is one.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    found = psutil.virtual_memory().available
    limit = _container_room()
    return found if limit is None else min(found, limit)


def _container_room(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves, of version 2 or 1 of Linux's control groups."""
    for most, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes",
            "memory/memory.stat", "total_inactive_file",
        ),
    ):  # fmt: skip
        try:
            limit, taken = (int((folder / name).read_text()) for name in (most, used))
            stats = dict(line.split() for line in (folder / stat).read_text().splitlines())
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
        # Files that were read count as taken, and are given up when memory is asked for.
        return max(0, limit - taken + int(stats.get(cached, 0)))
    return None


def free_disk(folder: str | os.PathLike[str]) -> int:
    """Free bytes where a folder is, or will be."""
    import shutil

    path = Path(folder).expanduser().resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free

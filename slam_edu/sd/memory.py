"""What is in memory while networks compute, and what a machine has left.

:class:`LiveBytes` sees every operation, forward and backward, and follows each tensor's storage
from its birth to its death. On real tensors it measures; on tensors of the meta device, which have
shapes and no data, it predicts. It does not see what an operation allocates and frees before it
returns (a convolution's workspace), nor the interpreter and its libraries.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterable
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

_aten = torch.ops.aten
#: torch's own list has no attention on a CPU.
_FLOPS = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g.shape, q.shape, k.shape, v.shape)
    ),
}


class LiveBytes(TorchDispatchMode):
    """Within the block, the bytes of live tensors by part.

    Tensors that were there before must be named (:meth:`own`); new ones are "activations" until
    they are given to another part.

    Attributes:
        live: bytes of each part now.
        moments: the same after each new tensor.
        flops: of matrix products, convolutions and attention; a multiplication and an addition
            are two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[str, int] = {REST: 0}
        self.moments: list[dict[str, int]] = []
        self.flops = 0
        self._known: dict[int, tuple[str, int]] = {}  # storage to part and bytes
        self._hooks: list[Any] = []

    @property
    def peak(self) -> dict[str, int]:
        """Bytes of each part at the moment when their sum is largest."""
        return max(self.moments, key=lambda parts: sum(parts.values()), default={})

    def own(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Count tensors to a part, whether they are new or of another part so far."""
        for tensor in tensors:
            self._count(tensor, part)
        self.moments.append(dict(self.live))

    def own_gradients(self, part: str, parameters: Iterable[Tensor]) -> None:
        """Count the gradients of parameters to a part, each when it is complete."""
        for p in parameters:
            hook = p.register_post_accumulate_grad_hook(lambda p: self.own(part, [p.grad]))
            self._hooks.append(hook)

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Call the operation, and look at what came of it."""
        kwargs = kwargs or {}
        out = self._call(func, args, kwargs)
        count = _FLOPS.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        new = [self._count(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if any(new):
            self.moments.append(dict(self.live))
        return out

    def _call(self, func: Any, args: tuple, kwargs: dict) -> Any:
        return func(*args, **kwargs)

    def _part_of_new(self, size: int) -> str:
        return REST

    def _count(self, tensor: Tensor, part: str | None = None) -> bool:
        """Add a tensor's storage, once for all its views; a part given takes it from another."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        before = self._known.get(key)
        if before is not None and part is None:
            return False
        part = part or self._part_of_new(size)
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


def available_bytes(device: torch.device | str) -> int:
    """What can still be taken on a device: a GPU's free memory, or the machine's.

    Of the machine's, the operating system's estimate counts, and a container's limit (Linux's
    control groups, version 2) where there is one.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    found = psutil.virtual_memory().available
    limit = _container_room()
    return found if limit is None else min(found, limit)


def _container_room(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    try:
        limit, taken = (int((folder / f"memory.{n}").read_text()) for n in ("max", "current"))
        stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # there is none, or it is "max"
        return None
    # Files that were read count as taken, and are given up when memory is asked for.
    return max(0, limit - taken + int(stats.get("inactive_file", 0)))


def free_disk(folder: str | os.PathLike[str]) -> int:
    """Free bytes where a folder is, or will be."""
    path = Path(folder).expanduser().resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free

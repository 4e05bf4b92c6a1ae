r"""What a distillation step takes, from the networks' shapes alone.

:class:`LiveBytes` sees every operation, forward and backward, and follows each tensor's storage
from its birth to its death. On real tensors it measures; on tensors of the meta device, which have
shapes and no data, it predicts. It does not see what an operation allocates and frees before it
returns (a convolution's workspace), nor the interpreter and its libraries.

:func:`trace_step` has it watch the true networks, built on the meta device, in a step: a call
without a gradient, the student's, and its backward pass. Every tensor of it is either of one size
for all batches or proportional to the batch B, and which of the two shows at a batch that is a
large prime. So one trace knows each moment i of the step for all B, :math:`m_i(B) = a_i + b_i B`,
and the step needs :math:`\max_i m_i(B)`. The meta device has neither autocast nor fused attention;
:class:`_StandIn` has both.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from slam_edu.sd.components import TextCondition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import GammaUNet, Networks, build_networks
from slam_edu.sd.published import Architecture

#: The batch of the trace: a prime that divides the size of no tensor but those of the batch.
BATCH = 1009
#: Parts of a step's memory; activations are what no other part was named for.
GRADIENTS, COPIES, REST = "gradients", "half-precision copies of weights", "activations"
ROWS, EACH = (GRADIENTS, COPIES, REST), "of each sample"
HALF = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
#: Settings that a trace depends on.
SETTINGS = (
    "train", "lora_rank", "lora_targets", "conditioning", "gamma_input", "frozen_dtype",
    "gradient_checkpointing", "mixed_precision", "resolution",
)  # fmt: skip

_aten = torch.ops.aten
_CONVOLUTION = _aten.convolution.default
#: torch's own list has no attention on a CPU.
_FLOPS = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}


class LiveBytes(TorchDispatchMode):
    """Within the block, the bytes of live tensors by part.

    Tensors that were there before must be named (:meth:`own`); new ones are "activations" until
    they are given to another part, or "of each sample" if ``batch`` divides their size.

    Attributes:
        live: bytes of each part now.
        moments: the same after each new tensor.
        flops: of matrix products, convolutions and attention; a multiplication and an addition
            are two.
    """

    def __init__(self, batch: int | None = None) -> None:
        super().__init__()
        self.live: dict[str, int] = {REST: 0}
        self.moments: list[dict[str, int]] = []
        self.flops, self._batch = 0, batch
        self._known: dict[int, tuple[str, int]] = {}  # storage to part and bytes

    @property
    def peak(self) -> dict[str, int]:
        """Bytes of each part at the moment when their sum is largest."""
        return max(self.moments, key=lambda parts: sum(parts.values()))

    def own(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Count tensors to a part, whether they are new or of another part so far."""
        for tensor in tensors:
            self._count(tensor, part)
        self.moments.append(dict(self.live))

    def own_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Count the gradients of parameters as such, each when it is complete."""
        for p in parameters:
            p.register_post_accumulate_grad_hook(lambda p: self.own(GRADIENTS, [p.grad]))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Call the operation, and look at what came of it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._batch and func is _CONVOLUTION and any(map(_channels_last, args[:2])):
            # The layout that a real convolution chooses; on the meta device it does not.
            out = out.contiguous(memory_format=torch.channels_last)
        count = _FLOPS.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        leaves = (out,) if isinstance(out, Tensor) else tree_leaves(out)
        new = [self._count(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        if any(new):
            self.moments.append(dict(self.live))
        return out

    def _count(self, tensor: Tensor, part: str | None = None) -> bool:
        """Add a tensor's storage, once for all its views; a part given takes it from another."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        before = self._known.get(key)
        if before is not None and part is None:
            return False
        part = part or (EACH if self._batch and size % self._batch == 0 else REST)
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


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """A step's needs as functions of the batch.

    Attributes:
        parameters: number of parameters of each part: teacher or base, trained, average.
        weights: bytes of each part's weights.
        fixed: bytes at each moment that do not depend on the batch, (moments, parts of ROWS).
        each: bytes at each moment that each sample adds, all of them activations, (moments,).
        flops: of one sample: one call of the ``teacher``, one of the ``target``, the student's
            ``forward`` and ``backward`` pass.
    """

    parameters: dict[str, int]
    weights: dict[str, int]
    fixed: np.ndarray
    each: np.ndarray
    flops: dict[str, int]

    def fullest(self, batch: int, gradients: int | None = None) -> dict[str, int]:
        """Bytes of gradients, weight copies and activations when their sum is largest.

        ``gradients`` are bytes that are there all the time, because batches are accumulated;
        None: gradients come one by one in the backward pass.
        """
        moments = self.fixed.copy()
        moments[:, -1] += batch * self.each
        if gradients is not None:
            moments[:, 0] = gradients
        row = moments[moments.sum(1).argmax()]
        return dict(zip(ROWS, map(int, row), strict=True))


def trace_step(config: SDConfig, architecture: Architecture, cuda: bool) -> StepTrace:
    """Trace a step, once for all configurations that take the same.

    ``cuda`` tells whether autocast is CUDA's, which keeps normalisations in float32.

    Raises:
        ValueError: for a resolution that the autoencoder cannot reduce, or a UNet that cannot be
            distilled.
    """
    part = SDConfig(**{name: config.settings()[name] for name in SETTINGS})
    return _trace_step(part, architecture, cuda and config.mixed_precision != "no")


@functools.lru_cache(maxsize=64)
def _trace_step(config: SDConfig, architecture: Architecture, cuda: bool) -> StepTrace:
    live = LiveBytes(BATCH)
    stand_in = functools.partial(_StandIn, HALF[config.mixed_precision], cuda, live)
    with torch.device("meta"):  # adapters, too
        networks = build_networks(config, architecture.build_unet(), stand_in)
    if config.gradient_checkpointing:
        from torch.utils.checkpoint import checkpoint

        networks.student_module.unet.enable_gradient_checkpointing(
            functools.partial(
                checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), stand_in())
            )
        )
    parts, empty = network_parts(networks), functools.partial(torch.empty, BATCH, device="meta")
    # Latents, timesteps, conditions and gamma, as the distiller hands them over.
    x, t = empty(*architecture.latent_shape(config.resolution)), empty()
    cond, pooled = TextCondition(empty(*architecture.text_shape)), architecture.pooled_width
    if pooled is not None:
        cond = TextCondition(cond.states, empty(pooled), empty(6))
    gamma = empty() if config.gamma_conditioned else None
    flops = [0]
    with live:
        for name, parameters in parts.items():
            live.own(name, parameters)
        live.own_gradients(parts["trained"])
        # The larger of the two calls without a gradient: adapters compute something of their own;
        # of float32 copies autocast makes half-precision ones.
        y = networks.teacher(x, t, cond) if config.train == "lora" else (
            networks.target(x, t, cond, gamma)
        )  # fmt: skip
        flops.append(live.flops)
        p = networks.student(x, t, cond, gamma)
        flops.append(live.flops)
        (p.float() - y.float()).square().mean().backward()
        flops.append(live.flops)
    frozen, forward, backward = (int(n) // BATCH for n in np.diff(flops))
    return StepTrace(
        parameters={name: sum(p.numel() for p in ps) for name, ps in parts.items()},
        weights={name: sum(p.nbytes for p in ps) for name, ps in parts.items()},
        fixed=np.array([[m.get(part, 0) for part in ROWS] for m in live.moments]),
        each=np.array([m.get(EACH, 0) // BATCH for m in live.moments]),
        flops={
            "teacher": frozen, "target": forward if config.train == "lora" else frozen,
            "forward": forward, "backward": backward,
        },
    )  # fmt: skip


def network_parts(networks: Networks) -> dict[str, list[Tensor]]:
    """The parameters of the teacher or base, the trained ones, and their average."""
    trained, average = list(networks.trained.values()), list(networks.average.values())
    modules = [value for value in vars(networks).values() if isinstance(value, GammaUNet)]
    rest = {id(p): p for module in modules for p in module.parameters()}
    for p in (*trained, *average):
        rest.pop(id(p), None)
    return {"teacher": list(rest.values()), "trained": trained, "average": average}


def _channels_last(x: Tensor) -> bool:
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return last and not x.is_contiguous()


class _StandIn(TorchFunctionMode):
    """Fused attention and autocast, for the meta device.

    Under autocast, to the dtype ``half`` (None: without), layers compute in half precision from
    half-precision copies of float32 weights, and the copies of trained weights are kept to the end
    of the forward pass, which ``live`` counts.
    """

    #: What autocast computes in half precision.
    LOWER = (functional.linear, functional.conv2d, torch.matmul, torch.bmm, torch.baddbmm)
    NORMS = (functional.group_norm, functional.layer_norm)

    def __init__(self, half: torch.dtype | None, norms_in_float32: bool, live: LiveBytes) -> None:
        super().__init__()
        self.half, self.norms_in_float32, self.live = half, norms_in_float32, live
        self._copies: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Call the function, or what stands in for it."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            args = tuple(map(self._lower, args))
            return _aten._scaled_dot_product_flash_attention_for_cpu(*args, **kwargs)[0]
        if self.half is not None:
            if func in self.LOWER:
                args, kwargs = tree_map_only(Tensor, self._lower, (args, kwargs))
            elif self.norms_in_float32 and func in self.NORMS:
                args, kwargs = tree_map_only(
                    Tensor, lambda x: x.float() if x.dtype == self.half else x, (args, kwargs)
                )
        return func(*args, **kwargs)

    def _lower(self, value: Tensor) -> Tensor:
        if self.half is None or value.dtype == self.half or not value.is_floating_point():
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.half)
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(self.half)
            self.live.own(COPIES, [self._copies[id(value)]])
        return self._copies[id(value)]


@functools.lru_cache(maxsize=64)
def trace_coding(
    architecture: Architecture, kind: str, batch: int, resolution: int | None
) -> tuple[int, int]:
    """What the autoencoder takes to ``"encode"`` or ``"decode"`` images, in float32.

    Bytes of working memory at most, for the batch, and operations of one image.
    """
    vae, live = architecture.build_vae(), LiveBytes()
    channels, height, width = architecture.latent_shape(resolution)
    if kind == "encode":
        f = architecture.factor
        channels, height, width = architecture.vae["in_channels"], f * height, f * width
    x = torch.empty(batch, channels, height, width, device="meta")
    with _StandIn(None, False, live), torch.no_grad(), live:
        live.own("weights", vae.parameters())
        live.own(REST, [x])
        vae.encode(x) if kind == "encode" else vae.decode(x)
    return live.peak[REST], live.flops // batch


@functools.lru_cache(maxsize=16)
def count_parameters(architecture: Architecture) -> dict[str, int]:
    """Parameters of the autoencoder and of the text encoders together."""
    numbers = range(len(architecture.text_encoders))
    encoders = [architecture.build_text_encoder(i) for i in numbers]
    return {
        "autoencoder": sum(p.numel() for p in architecture.build_vae().parameters()),
        "text encoders": sum(p.numel() for m in encoders for p in m.parameters()),
    }

r"""What a distillation step would take, from the networks' shapes alone.

The true networks, built on the meta device (shapes without data), run a step: a call without a
gradient, the student's, and its backward pass. :class:`slam_edu.sd.memory.LiveBytes` watches, so
that activations are counted as autograd keeps them and not by a formula. Every tensor of it is
either of one size for all batches or proportional to the batch B, and which of the two shows at a
batch that is a large prime. So one trace knows each moment i of the step for all B,

.. math:: m_i(B) = a_i + b_i B,

and the step needs :math:`\max_i m_i(B)`.

The meta device has no autocast and no fused attention. :class:`_StandIn` does what they do: under
autocast, layers compute in half precision from half-precision copies of float32 weights, those of
trained weights are kept to the end of the forward pass, and CUDA computes normalisations in
float32.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from slam_edu.sd.components import TextCondition
from slam_edu.sd.config import SDConfig
from slam_edu.sd.memory import REST, LiveBytes
from slam_edu.sd.networks import GammaUNet, Networks, build_networks
from slam_edu.sd.published import Architecture

#: The batch of the trace: a prime that divides the size of no tensor but those of the batch.
BATCH = 1009
GRADIENTS, COPIES = "gradients", "half-precision copies of weights"
ROWS = (GRADIENTS, COPIES, REST)
EACH = "of each sample"

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}

#: Settings that a trace depends on; the others may be anything.
SETTINGS = (
    "train", "lora_rank", "lora_targets", "conditioning", "gamma_input", "frozen_dtype",
    "gradient_checkpointing", "mixed_precision", "resolution",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """A step's needs as functions of the batch.

    Attributes:
        parameters: number of parameters of each part: teacher or base, trained, average.
        weights: bytes of each part's weights.
        fixed: bytes at each moment that do not depend on the batch, (moments, parts of ROWS).
        each: bytes at each moment that each sample adds, all of them activations, (moments,).
        saved: bytes that autograd keeps of a sample between the student's forward and backward
            pass.
        flops: of one sample, each part of a step: one call of the ``teacher``, one of the
            ``target``, the student's ``forward`` and ``backward`` pass.
    """

    parameters: dict[str, int]
    weights: dict[str, int]
    fixed: np.ndarray
    each: np.ndarray
    saved: int
    flops: dict[str, int]

    def fullest(self, batch: int, gradients: int | None = None) -> dict[str, int]:
        """Bytes of gradients, weight copies and activations when their sum is largest.

        Args:
            batch: samples.
            gradients: bytes of them where they are there all the time, because batches are
                accumulated; None: they come one by one in the backward pass.
        """
        moments = self.fixed.copy()
        moments[:, -1] += batch * self.each
        if gradients is not None:
            moments[:, 0] = gradients
        row = moments[moments.sum(1).argmax()]
        return dict(zip(ROWS, map(int, row), strict=True))


def trace_step(config: SDConfig, architecture: Architecture, cuda: bool) -> StepTrace:
    """Trace a step; the same question is answered at once the second time.

    Args:
        config: of the run.
        architecture: of its teacher.
        cuda: whether autocast is CUDA's, which keeps normalisations in float32.

    Raises:
        ValueError: for a resolution that the autoencoder cannot reduce, or a UNet that cannot be
            distilled.
    """
    settings = {name: config.settings()[name] for name in SETTINGS}
    cuda = cuda and config.mixed_precision != "no"
    return _trace_step(SDConfig(**settings), architecture.key, cuda)


@functools.lru_cache(maxsize=64)
def _trace_step(config: SDConfig, key: str, cuda: bool) -> StepTrace:
    architecture = _architecture(key)

    def stand_in(live: LiveBytes | None = None) -> _StandIn:
        return _StandIn(HALF.get(config.mixed_precision), cuda, live)

    networks = build_networks(config, architecture.build_unet(), stand_in)
    parts = _parts(networks)
    live = _MetaBytes(record=True)
    for unet in _gamma_unets(networks):
        unet.autocast = functools.partial(stand_in, live)
    if config.gradient_checkpointing:
        _checkpoint(networks.student_module.unet, functools.partial(stand_in, live))
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if live.part_of(tensor) == EACH:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage.nbytes()
        return tensor

    flops = [0]
    x, t, cond, gamma = _inputs(config, architecture)
    with live:
        for name, parameters in parts.items():
            live.own(name, parameters)
        live.own_gradients(GRADIENTS, networks.trained.values())
        # The networks without a gradient need less than the student. Adapters' computations differ
        # between teacher and target; that of trained float32 copies in memory does.
        without = networks.teacher(x, t, cond) if config.train == "lora" else (
            networks.target(x, t, cond, gamma)
        )  # fmt: skip
        flops.append(live.flops)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            p = networks.student(x, t, cond, gamma)
        flops.append(live.flops)
        loss = (p.float() - without.float()).square().mean()
        torch.autograd.backward(loss)
        flops.append(live.flops)
    teacher, forward, backward = (int(n) // BATCH for n in np.diff(flops))
    return StepTrace(
        parameters={name: sum(p.numel() for p in ps) for name, ps in parts.items()},
        weights={name: _bytes(ps) for name, ps in parts.items()},
        fixed=np.array([[m.get(part, 0) for part in ROWS] for m in live.moments]),
        each=np.array([m.get(EACH, 0) // BATCH for m in live.moments]),
        saved=sum(saved.values()) // BATCH,
        flops={
            "teacher": teacher, "target": forward if config.train == "lora" else teacher,
            "forward": forward, "backward": backward,
        },
    )  # fmt: skip


def _inputs(
    config: SDConfig, architecture: Architecture
) -> tuple[Tensor, Tensor, TextCondition, Tensor | None]:
    """Latents, timesteps, conditions and gamma, as the distiller hands them over."""
    pooled = architecture.pooled_width

    def empty(*shape: int) -> Tensor:
        return torch.empty(BATCH, *shape, device="meta")

    cond = TextCondition(
        empty(*architecture.text_shape),
        None if pooled is None else empty(pooled),
        None if pooled is None else empty(6),
    )
    gamma = empty() if config.gamma_conditioned else None
    return empty(*architecture.latent_shape(config.resolution)), empty(), cond, gamma


def _parts(networks: Networks) -> dict[str, list[Tensor]]:
    """Each part's parameters; one that belongs to several is the first's."""
    modules = _gamma_unets(networks)
    frozen = [p for module in modules for p in module.parameters()]
    taken = {id(p) for p in (*networks.trained.values(), *networks.average.values())}
    rest = {id(p): p for p in frozen if id(p) not in taken}
    return {
        "teacher": list(rest.values()),
        "trained": list(networks.trained.values()),
        "average": list(networks.average.values()),
    }


def _gamma_unets(networks: Networks) -> list[GammaUNet]:
    found = [value for value in vars(networks).values() if isinstance(value, GammaUNet)]
    for unet in found:
        if unet.features is not None:  # its checks look at values, and here there are none
            unet.features = _features_like(unet.unet)
    return found


def _features_like(unet: nn.Module) -> Callable[[Tensor], Tensor]:
    width = unet.config.time_cond_proj_dim
    return lambda gamma: gamma.new_empty(len(gamma), width)


def _checkpoint(unet: nn.Module, stand_in: Callable[[], _StandIn]) -> None:
    """Gradient checkpointing whose second computation also goes by the stand-in."""
    from torch.utils.checkpoint import checkpoint

    unet.enable_gradient_checkpointing(
        functools.partial(
            checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), stand_in())
        )
    )


class _MetaBytes(LiveBytes):
    """Live bytes of one batch and of each sample; some operations are taken for their shapes.

    torch computes those shapes by way of other operations, in milliseconds each.
    """

    def _new(self, size: int) -> str:
        return REST if size % BATCH else EACH

    def _call(self, func: Any, args: tuple, kwargs: dict) -> Any:
        rule = _SHAPES.get(func._overloadpacket)
        out = None if rule is None or "out" in kwargs else rule(*args, **kwargs)
        return func(*args, **kwargs) if out is None else out


def _like(x: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return torch.empty_like(x)


def _like_second(_grad: Tensor, x: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return torch.empty_like(x)


def _both(x: Any, y: Any, **_options: Any) -> Tensor | None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    if isinstance(y, Tensor) and y.ndim and (x.shape, x.dtype) != (y.shape, y.dtype):
        return None
    return torch.empty_like(x)


def _product(bias: Tensor, x: Tensor, weight: Tensor, **_options: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def _convolution(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
    """torch's own shape, in the order that a real convolution would choose."""
    out = torch.ops.aten.convolution(x, weight, *rest, **options)
    last = any(
        t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last)
        and not t.is_contiguous()
        for t in (x, weight)
    )  # fmt: skip
    return torch.empty_like(out, memory_format=torch.channels_last) if last else out


def _group_norm(
    x: Tensor, _weight: Tensor, _bias: Tensor, n: int, _c: int, _hw: int, groups: int, _eps: float
) -> tuple[Tensor, ...]:
    return torch.empty_like(x), x.new_empty(n, groups), x.new_empty(n, groups)


def _layer_norm(
    x: Tensor, shape: list[int], _weight: Tensor, _bias: Tensor, _eps: float
) -> tuple[Tensor, ...]:
    moments = (*x.shape[: -len(shape)], *(1,) * len(shape))
    return _contiguous(x), x.new_empty(moments), x.new_empty(moments)


def _group_norm_backward(
    _grad: Tensor, x: Tensor, _mean: Tensor, _rstd: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor | None, ...]:
    return _where(rest[-1], _contiguous(x), weight)


def _layer_norm_backward(
    _grad: Tensor, x: Tensor, _shape: Any, _mean: Tensor, _rstd: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor | None, ...]:
    return _where(rest[-1], _contiguous(x), weight)


def _where(mask: list[bool], x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight and bias, those that are asked for."""
    asked = zip(mask, (x, weight, weight), strict=True)
    return tuple(torch.empty_like(like) if wanted else None for wanted, like in asked)


def _contiguous(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


_aten = torch.ops.aten
#: Operation to its outputs, new and without values; None: ask torch.
_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten.silu: _like,
    _aten.gelu: _like,
    _aten.silu_backward: _like_second,
    _aten.gelu_backward: _like_second,
    _aten.add: _both,
    _aten.sub: _both,
    _aten.mul: _both,
    _aten.div: _both,
    _aten.addmm: _product,
    _aten.convolution: _convolution,
    _aten.native_group_norm: _group_norm,
    _aten.native_layer_norm: _layer_norm,
    _aten.native_group_norm_backward: _group_norm_backward,
    _aten.native_layer_norm_backward: _layer_norm_backward,
}


class _StandIn(TorchFunctionMode):
    """Fused attention and autocast, for the meta device.

    Args:
        half: dtype of autocast; None: without.
        norms_in_float32: as CUDA has it.
        live: is told of the copies of weights.
    """

    #: What autocast computes in half precision.
    LOWER = (functional.linear, functional.conv2d, torch.matmul, torch.bmm, torch.baddbmm)
    NORMS = (functional.group_norm, functional.layer_norm)

    def __init__(
        self, half: torch.dtype | None, norms_in_float32: bool, live: LiveBytes | None = None
    ) -> None:
        super().__init__()
        self.half, self.norms_in_float32, self.live = half, norms_in_float32, live
        self._copies: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Call the function, or what stands in for it."""
        kwargs = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if self.half is not None:
            if func in self.LOWER:
                args = tuple(map(self._lower, args))
                kwargs = {name: self._lower(value) for name, value in kwargs.items()}
            elif self.norms_in_float32 and func in self.NORMS:
                args = tuple(map(_float32, args))
                kwargs = {name: _float32(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, **options: Any,
    ) -> Tensor:  # fmt: skip
        query, key, value = map(self._lower, (query, key, value))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask,
            scale=options.get("scale"),
        )[0]  # fmt: skip

    def _lower(self, value: Any) -> Any:
        if self.half is None or not isinstance(value, Tensor) or value.dtype == self.half:
            return value
        if not value.is_floating_point():
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.half)
        # autocast keeps the copies of what is trained until it ends
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(self.half)
            if self.live is not None:
                self.live.own(COPIES, [self._copies[id(value)]])
        return self._copies[id(value)]


def _float32(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in HALF.values()
    return value.float() if half else value


# -------------------------------------------------------------------- before and beside the step


@functools.lru_cache(maxsize=64)
def _coding(key: str, kind: str, size: tuple[int, ...]) -> tuple[int, int]:
    vae, live = _architecture(key).build_vae(), LiveBytes()
    with _fused(), torch.no_grad(), live:
        x = torch.empty(size, device="meta")
        live.own("weights", vae.parameters())
        vae.encode(x) if kind == "encode" else vae.decode(x)
    return live.largest[REST], live.flops


def trace_coding(
    architecture: Architecture, kind: str, batch: int, resolution: int | None
) -> tuple[int, int]:
    """Working memory and multiplications and additions of the autoencoder, in float32.

    Args:
        architecture: of the teacher.
        kind: ``"encode"`` or ``"decode"``.
        batch: images at a time.
        resolution: pixels of a side; None: the teacher's own.

    Returns:
        bytes at most, for the batch, and floating-point operations of one image.
    """
    channels, height, width = architecture.latent_shape(resolution)
    if kind == "encode":
        f = architecture.factor
        size = (batch, architecture.vae["in_channels"], f * height, f * width)
    else:
        size = (batch, channels, height, width)
    bytes_, flops = _coding(architecture.key, kind, size)
    return bytes_, flops // batch


@contextmanager
def _fused() -> Iterator[None]:
    with _StandIn(None, False):
        yield


@functools.lru_cache(maxsize=16)
def _count(key: str, part: str) -> int:
    architecture = _architecture(key)
    kind, _, number = part.partition(":")
    module = architecture.build_vae() if kind == "vae" else (
        architecture.build_text_encoder(int(number))
    )  # fmt: skip
    return sum(p.numel() for p in module.parameters())


def count_parameters(architecture: Architecture) -> dict[str, int]:
    """Parameters of the autoencoder and of the text encoders together.

    Args:
        architecture: of the teacher.
    """
    key, encoders = architecture.key, range(len(architecture.text_encoders))
    return {
        "autoencoder": _count(key, "vae"),
        "text encoders": sum(_count(key, f"text:{i}") for i in encoders),
    }


def _architecture(key: str) -> Architecture:
    unet, vae, encoders = json.loads(key)
    return Architecture(
        name="", unet=unet, vae=vae, text_encoders=tuple((k, v) for k, v in encoders)
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)

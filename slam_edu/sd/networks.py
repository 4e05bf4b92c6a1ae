r"""Teacher, student and target of a distillation, from the teacher's UNet.

- :class:`FullNetworks`: three UNets, all of the student's weights trained;
- :class:`LoraNetworks`: one UNet with two sets of low-rank adapters (Hu et al. 2021), ``student``
  and ``target``; the teacher is the UNet with both switched off.

With ``conditioning="gamma"`` the student has an embedding of gamma where diffusers has one for
latent consistency models, ``time_embedding.cond_proj``. It starts at zero, so that the student
starts as the teacher; the official script draws it at random.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.sd.components import Condition, unet_output
from slam_edu.sd.config import SDConfig
from slam_edu.seeding import seeded

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

ONLINE, TARGET = "student", "target"

#: Ends of the names of layers that get an adapter.
ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
ALL_LAYERS = (
    *ATTENTION_LAYERS, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip

#: Of the weights: the networks' convolutions are faster so, a tenth of a pass on a CPU.
FORMAT = torch.channels_last

DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}

Autocast = Callable[[], AbstractContextManager]


class GammaUNet(nn.Module):
    """A UNet as the distiller calls it, a module so that what wraps it (DDP) sees each call.

    ``features`` of gamma go from ``(B,)`` to ``(B, F)``; None for a UNet without an input for it.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        features: Callable[[Tensor], Tensor] | None = None,
        autocast: Autocast = nullcontext,
    ) -> None:
        super().__init__()
        self.unet, self.features, self.autocast = unet, features, autocast

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition, gamma: Tensor | None = None
    ) -> Tensor:
        """The UNet's raw output; gamma has shape (B,)."""
        features = None if gamma is None or self.features is None else self.features(gamma)
        with self.autocast():
            return unet_output(self.unet, x, t, cond, features)


class Networks:
    """The three networks of a step, and the tensors that are trained.

    ``teacher``, ``student`` and ``target`` return a UNet's raw output, all but the student without
    a gradient.

    Attributes:
        student_module: the student's module, for a wrapper such as DistributedDataParallel;
            ``wrapped`` is what :meth:`student` calls.
        trained: the trained parameters by name, float32.
        average: their moving averages, by the same names.
    """

    student_module: nn.Module
    wrapped: Callable[..., Tensor]
    trained: dict[str, nn.Parameter]
    average: dict[str, Tensor]

    @torch.no_grad()
    def teacher(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The frozen network."""
        return self._call(None, x, t, cond)

    def student(
        self, x: Tensor, t: Tensor, cond: Condition, gamma: Tensor | None = None
    ) -> Tensor:
        """The trained network. Call it last: with adapters, its own must be active then."""
        return self.wrapped(x, t, cond, gamma)

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, cond: Condition, gamma: Tensor | None = None) -> Tensor:
        """The moving average."""
        return self._call(TARGET, x, t, cond, gamma)

    def plain_unet(self, weights: str = TARGET, fold: bool = True) -> UNet2DConditionModel:
        """A float32 UNet of its own, on the CPU, that is the ``"target"`` or ``"student"``.

        ``fold`` puts gamma = 1 into the weights, which gives the teacher's architecture; else an
        official embedding is kept. Adapters are always merged.
        """
        unet = copy.deepcopy(self._unet(weights)).cpu()
        unet.disable_gradient_checkpointing()
        nn.Module.to(unet, torch.float32, memory_format=torch.contiguous_format)
        self._merge(unet, weights)
        unet.requires_grad_(False).eval()
        # No pipeline knows another embedding than the official one.
        if unet.time_embedding.cond_proj is None or (self._gamma_input == "official" and not fold):
            return unet
        one = torch.ones(1, dtype=torch.float64)
        return fold_gamma(unet, GAMMA_INPUTS[self._gamma_input](one)[0])

    def gamma_weight(self, weights: str = TARGET) -> Tensor | None:
        """The gamma embedding's weight, of shape (C, F); None without one."""
        layer = self._unet(weights).time_embedding.cond_proj
        if isinstance(layer, _Switch):
            layer = layer.parts[weights]
        return None if layer is None else layer.weight.detach()

    def _merge(self, unet: UNet2DConditionModel, weights: str) -> None:
        """Put into a copy of the UNet what is beside its weights."""


class FullNetworks(Networks):
    """Three UNets: the teacher's, a copy that is trained, and a copy that is its average."""

    def __init__(
        self, config: SDConfig, unet: UNet2DConditionModel, autocast: Autocast = nullcontext
    ) -> None:
        student = copy.deepcopy(unet).float().requires_grad_(True)
        nn.Module.to(student, memory_format=FORMAT)
        features = _add_gamma(config, student)
        target = copy.deepcopy(student).requires_grad_(False).eval()
        if config.gradient_checkpointing:
            student.enable_gradient_checkpointing()
        _freeze(unet, config)
        self._teacher = GammaUNet(unet, None, autocast)
        self._target = GammaUNet(target, features, autocast)
        self.wrapped = self.student_module = GammaUNet(student.train(), features, autocast)
        self._gamma_input = config.gamma_input
        self.trained = dict(student.named_parameters())
        self.average = dict(target.named_parameters())

    def _call(self, which: str | None, *inputs: Any) -> Tensor:
        return (self._teacher if which is None else self._target)(*inputs)

    def _unet(self, weights: str) -> UNet2DConditionModel:
        return (self._target if weights == TARGET else self.student_module).unet


class LoraNetworks(Networks):
    """One UNet, with adapters for the student and for its average.

    The adapters' second factor starts at zero, so that student and target start as the teacher.
    An embedding of gamma, where there is one, is trained whole, and averaged with them.
    """

    def __init__(
        self, config: SDConfig, unet: UNet2DConditionModel, autocast: Autocast = nullcontext
    ) -> None:
        from peft import LoraConfig
        from peft.tuners.tuners_utils import BaseTunerLayer

        _freeze(unet, config)
        layers = ALL_LAYERS if config.lora_targets == "all" else ATTENTION_LAYERS
        rank, alpha = config.lora_rank, config.lora_alpha or config.lora_rank
        self.lora_config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(layers))
        with warnings.catch_warnings():
            # Two sets of adapters are what is wanted here.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            for name in (ONLINE, TARGET):  # one seed: both start alike
                seeded(lambda name=name: unet.add_adapter(self.lora_config, name), config.seed)
        nn.Module.to(unet, memory_format=FORMAT)
        self._layers = [m for m in unet.modules() if isinstance(m, BaseTunerLayer)]
        features = _add_gamma(config, unet)
        self._switch = None
        if features is not None:
            self._switch = unet.time_embedding.cond_proj = _Switch(unet.time_embedding.cond_proj)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.unet, self._gamma_input = unet, config.gamma_input
        self.wrapped = self.student_module = GammaUNet(unet, features, autocast)
        self.trained, self.average = {}, {}
        for name, p in unet.named_parameters():
            for adapter, found in ((ONLINE, self.trained), (TARGET, self.average)):
                if f".{adapter}." in name:
                    p.data = p.data.float()
                    found[name.replace(f".{adapter}.", ".")] = p
        self._activate(ONLINE)

    def _call(self, which: str | None, *inputs: Any) -> Tensor:
        self._activate(which)
        try:
            return self.student_module(*inputs)
        finally:
            self._activate(ONLINE)

    def _unet(self, _weights: str) -> UNet2DConditionModel:
        return self.unet

    def _merge(self, unet: UNet2DConditionModel, weights: str) -> None:
        gamma = self.gamma_weight(weights)
        unet.time_embedding.cond_proj = None
        unet.fuse_lora(adapter_names=[weights])
        unet.unload_lora()
        if gamma is not None:
            unet.time_embedding.cond_proj = _linear(gamma.cpu())
            unet.register_to_config(time_cond_proj_dim=gamma.shape[1])

    def _activate(self, adapter: str | None) -> None:
        for layer in self._layers:
            if adapter is None:
                layer.enable_adapters(False)
            else:
                layer.set_adapter([adapter], inference_mode=adapter != ONLINE)
                layer._disable_adapters = False  # enable_adapters(True) would set them once more
        if self._switch is not None and adapter is not None:
            self._switch.active = adapter


class _Switch(nn.Module):
    """The gamma embedding and its average, one of which is active."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        average = copy.deepcopy(layer).requires_grad_(False)
        self.parts = nn.ModuleDict({ONLINE: layer, TARGET: average})
        self.active = ONLINE

    def forward(self, features: Tensor) -> Tensor:
        layer = self.parts[self.active]
        return layer(features.to(layer.weight.dtype)).to(features.dtype)


def build_networks(
    config: SDConfig, unet: UNet2DConditionModel, autocast: Autocast = nullcontext
) -> Networks:
    """The networks of a run; the teacher's UNet is changed in place (frozen, dtype, adapters)."""
    kind = FullNetworks if config.train == "full" else LoraNetworks
    return kind(config, unet, autocast)


def fold_gamma(unet: UNet2DConditionModel, features: Tensor) -> UNet2DConditionModel:
    r"""Put the embedding of one gamma into the UNet's weights, in place.

    The embedding is added before the first time layer, :math:`W_1(\tau + P e) + b_1`, so that
    :math:`b_1 \leftarrow b_1 + W_1 P e` makes it a plain UNet with the same output; e (F,).
    """
    embedding = unet.time_embedding
    with torch.no_grad():
        shift = embedding.cond_proj.weight.double() @ features.double()
        first = embedding.linear_1
        first.bias += (first.weight.double() @ shift).to(first.bias.dtype)
    embedding.cond_proj = None
    unet.register_to_config(time_cond_proj_dim=None)
    return unet


def _add_gamma(config: SDConfig, unet: UNet2DConditionModel) -> Callable[[Tensor], Tensor] | None:
    """Give the UNet an embedding of gamma that starts at zero, if it is to have one."""
    if not config.gamma_conditioned:
        return None
    features = GAMMA_INPUTS[config.gamma_input]
    width = features(torch.ones(1)).shape[1]
    first = unet.time_embedding.linear_1
    weight = torch.zeros(first.in_features, width, device=first.weight.device)
    unet.time_embedding.cond_proj = _linear(weight)
    unet.register_to_config(time_cond_proj_dim=width)
    return features


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.clone())
    return layer


def _freeze(unet: UNet2DConditionModel, config: SDConfig) -> None:
    unet.requires_grad_(False).eval()
    nn.Module.to(unet, DTYPES[config.frozen_dtype])  # diffusers' own `to` warns about nothing
    nn.Module.to(unet, memory_format=FORMAT)

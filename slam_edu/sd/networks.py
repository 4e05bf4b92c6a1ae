r"""Teacher, student and target of a distillation, from the teacher's UNet.

:class:`slam_edu.distill.SubPathDistiller` takes three networks. Here they are made, in one of two
ways:

- :class:`FullNetworks`: three UNets, all of the student's weights trained;
- :class:`LoraNetworks`: one UNet with two sets of low-rank adapters (Hu et al. 2021), ``online``
  and ``target``; the teacher is the UNet with both switched off.

With ``conditioning="gamma"`` the student has an embedding of gamma where diffusers has one for
latent consistency models, ``time_embedding.cond_proj``. It starts at zero, so that the student
starts as the teacher; the official script draws it at random.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from slam_edu.embedding import GAMMA_INPUTS
from slam_edu.sd.components import Condition, unet_output
from slam_edu.sd.config import SDConfig
from slam_edu.seeding import seeded

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

ONLINE, TARGET = "online", "target"

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
    """A UNet as the distiller calls it: ``network(x, t, cond, gamma)``.

    A module of its own, so that what wraps it (DistributedDataParallel) sees each call.
    ``features`` of gamma go from ``(B,)`` to ``(B, F)``; None for a UNet without an input for it.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        features: Callable[[Tensor], Tensor] | None = None,
        autocast: Autocast = nullcontext,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.features = features
        self.autocast = autocast

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition, gamma: Tensor | None = None
    ) -> Tensor:
        """The UNet's raw output; gamma has shape (B,)."""
        features = None if gamma is None or self.features is None else self.features(gamma)
        with self.autocast():
            return unet_output(self.unet, x, t, cond, features)


class Networks:
    """The three networks of a step, and the tensors that are trained.

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

    def teacher(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The teacher's raw output; never with a gradient."""
        raise NotImplementedError

    def student(
        self, x: Tensor, t: Tensor, cond: Condition, gamma: Tensor | None = None
    ) -> Tensor:
        """The student's raw output. Call it last: with adapters, its own must be active then."""
        return self.wrapped(x, t, cond, gamma)

    def target(self, x: Tensor, t: Tensor, cond: Condition, gamma: Tensor | None = None) -> Tensor:
        """The moving average's raw output; never with a gradient."""
        raise NotImplementedError

    def plain_unet(self, weights: str = TARGET, fold: bool = True) -> UNet2DConditionModel:
        """A UNet of its own, on the CPU, that is the student at gamma = 1.

        Args:
            weights: ``"target"``, the moving average, or ``"student"``.
            fold: put gamma = 1 into the weights, which gives the teacher's architecture; else an
                official embedding is kept. Adapters are always merged.
        """
        raise NotImplementedError

    def gamma_weight(self, weights: str = TARGET) -> Tensor | None:
        """The gamma embedding's weight, of shape (C, F); None without one."""
        raise NotImplementedError


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

    @torch.no_grad()
    def teacher(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The frozen UNet's raw output."""
        return self._teacher(x, t, cond)

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, cond: Condition, gamma: Tensor | None = None) -> Tensor:
        """The averaged UNet's raw output."""
        return self._target(x, t, cond, gamma)

    def plain_unet(self, weights: str = TARGET, fold: bool = True) -> UNet2DConditionModel:
        """A copy of the student's or the target's UNet."""
        unet = copy.deepcopy(self._of(weights)).cpu().requires_grad_(False).eval()
        nn.Module.to(unet, memory_format=torch.contiguous_format)
        unet.disable_gradient_checkpointing()
        return _without_gamma(unet, self._gamma_input, fold)

    def gamma_weight(self, weights: str = TARGET) -> Tensor | None:
        """The weight of ``time_embedding.cond_proj``."""
        layer = self._of(weights).time_embedding.cond_proj
        return None if layer is None else layer.weight.detach()

    def _of(self, weights: str) -> UNet2DConditionModel:
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
        self.lora_config = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or config.lora_rank,
            target_modules=list(layers),
        )
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
            self._switch = _Switch(unet.time_embedding.cond_proj)
            unet.time_embedding.cond_proj = self._switch
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

    @torch.no_grad()
    def teacher(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The UNet's raw output, adapters switched off."""
        with self._active(None):
            return self.student_module(x, t, cond)

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, cond: Condition, gamma: Tensor | None = None) -> Tensor:
        """The UNet's raw output with the averaged adapters."""
        with self._active(TARGET):
            return self.student_module(x, t, cond, gamma)

    def plain_unet(self, weights: str = TARGET, fold: bool = True) -> UNet2DConditionModel:
        """A float32 UNet with the adapters merged into its weights."""
        adapter = TARGET if weights == TARGET else ONLINE
        gamma = self.gamma_weight(weights)
        unet = copy.deepcopy(self.unet).cpu()
        unet.disable_gradient_checkpointing()
        unet.time_embedding.cond_proj = None
        nn.Module.to(unet, torch.float32)
        nn.Module.to(unet, memory_format=torch.contiguous_format)
        unet.fuse_lora(adapter_names=[adapter])
        unet.unload_lora()
        unet.requires_grad_(False).eval()
        if gamma is None:
            return unet
        unet.time_embedding.cond_proj = _linear(gamma.cpu()).requires_grad_(False)
        unet.register_to_config(time_cond_proj_dim=gamma.shape[1])
        return _without_gamma(unet, self._gamma_input, fold)

    def gamma_weight(self, weights: str = TARGET) -> Tensor | None:
        """The weight of the trained or the averaged embedding."""
        if self._switch is None:
            return None
        part = self._switch.parts[TARGET if weights == TARGET else ONLINE]
        return part.weight.detach()

    @contextmanager
    def _active(self, adapter: str | None) -> Iterator[None]:
        """Another adapter, or none, while the block runs; then the trained one again."""
        self._activate(adapter)
        try:
            yield
        finally:
            self._activate(ONLINE)

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
    """Two linear layers, one of which is active: the gamma embedding and its average."""

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
    """The networks of a run; the teacher's UNet is changed in place (frozen, dtype, adapters).

    The networks, and nothing else, are called in a context that ``autocast`` makes.
    """
    kind = FullNetworks if config.train == "full" else LoraNetworks
    return kind(config, unet, autocast)


def fold_gamma(unet: UNet2DConditionModel, features: Tensor) -> UNet2DConditionModel:
    r"""Put the embedding of one gamma into the UNet's weights, in place.

    The embedding is added before the first time layer, :math:`W_1(\tau + P e) + b_1`, so that
    :math:`b_1 \leftarrow b_1 + W_1 P e` makes it a plain UNet with the same output.

    Args:
        unet: with ``time_embedding.cond_proj``, P.
        features: e, of shape (F,).
    """
    embedding = unet.time_embedding
    with torch.no_grad():
        shift = embedding.cond_proj.weight.double() @ features.double()
        first = embedding.linear_1
        first.bias += (first.weight.double() @ shift).to(first.bias.dtype)
    embedding.cond_proj = None
    unet.register_to_config(time_cond_proj_dim=None)
    return unet


def _without_gamma(
    unet: UNet2DConditionModel, gamma_input: str, fold: bool
) -> UNet2DConditionModel:
    """The UNet at gamma = 1, folded, or as a latent consistency pipeline calls it."""
    if unet.time_embedding.cond_proj is None:
        return unet
    if fold or gamma_input != "official":  # no pipeline knows another embedding
        one = GAMMA_INPUTS[gamma_input](torch.ones(1, dtype=torch.float64))[0]
        return fold_gamma(unet, one)
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
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.clone())
    return layer


def _freeze(unet: UNet2DConditionModel, config: SDConfig) -> None:
    unet.requires_grad_(False).eval()
    nn.Module.to(unet, DTYPES[config.frozen_dtype])  # diffusers' own `to` warns about nothing
    nn.Module.to(unet, memory_format=FORMAT)

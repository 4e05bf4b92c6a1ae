"""What networks a teacher has, from their configurations alone: no weights are read.

Those of Stable Diffusion 1.5 and XL (base) are in ``data/architectures.json``: the values of their
``config.json`` files at the commits :data:`slam_edu.sd.config.SD15` and
:data:`~slam_edu.sd.config.SDXL`. Other teachers are read from their folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slam_edu.io import data_path
from slam_edu.sd.components import latent_size, quiet
from slam_edu.sd.config import SD15, SDXL, SDConfig
from slam_edu.shipped import shipped

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False, kw_only=True)
class Architecture:
    """The networks of a Stable Diffusion, as their configurations; equal whatever their name.

    Attributes:
        name: for messages.
        unet: of ``UNet2DConditionModel``.
        vae: of ``AutoencoderKL``.
        text_encoders: class name and ``CLIPTextConfig`` of each.
    """

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: Sequence[tuple[str, Mapping[str, Any]]]

    def _key(self) -> str:
        return json.dumps([self.unet, self.vae, self.text_encoders], sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    def latent_shape(self, resolution: int | None = None) -> tuple[int, int, int]:
        """(C, h, w) of a latent, at a resolution in pixels or the teacher's own.

        Raises:
            ValueError: as :func:`slam_edu.sd.components.latent_size`.
        """
        size = latent_size(self.unet.get("sample_size"), self.factor, resolution)
        return (self.unet["in_channels"], *size)

    @property
    def text_shape(self) -> tuple[int, int]:
        """(L, D) of a prompt's states."""
        length = self.text_encoders[0][1]["max_position_embeddings"]
        return length, self.unet["cross_attention_dim"]

    @property
    def pooled_width(self) -> int | None:
        """Of Stable Diffusion XL's pooled embedding; None for others."""
        if self.unet.get("addition_embed_type") != "text_time":
            return None
        widths = self.unet["projection_class_embeddings_input_dim"]
        return widths - 6 * self.unet["addition_time_embed_dim"]

    @contextmanager
    def _building(self, what: str) -> Iterator[None]:
        try:
            with quiet(), torch.device("meta"):
                yield
        except Exception as error:  # the libraries have many kinds
            raise ValueError(
                f"the {what} of {self.name} cannot be built as its config.json says ({error}); "
                f"allowed: what diffusers' save_pretrained writes"
            ) from error

    def build_unet(self) -> UNet2DConditionModel:
        """The UNet, on the meta device."""
        from diffusers import UNet2DConditionModel

        with self._building("UNet"):  # entries that it does not know are left out
            return UNet2DConditionModel.from_config(self.unet)

    def build_vae(self) -> AutoencoderKL:
        """The autoencoder, on the meta device."""
        from diffusers import AutoencoderKL

        with self._building("autoencoder"):
            return AutoencoderKL.from_config(self.vae)

    def build_text_encoder(self, number: int = 0) -> PreTrainedModel:
        """A text encoder, on the meta device; Stable Diffusion XL has numbers 0 and 1."""
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torchvision
        import transformers

        kind, values = self.text_encoders[number]
        with self._building("text encoder"):
            return getattr(transformers, kind)(transformers.CLIPTextConfig(**values))


#: Hub ids whose architecture is here, at any commit.
PUBLISHED = {
    id_: Architecture(**networks)
    for id_, networks in json.loads(data_path("architectures.json").read_text("utf-8")).items()
}
STABLE_DIFFUSION_15, STABLE_DIFFUSION_XL = PUBLISHED[SD15[0]], PUBLISHED[SDXL[0]]


def architecture_of(config: SDConfig) -> Architecture:
    """The architecture of a configuration's teacher.

    Raises:
        FileNotFoundError: for a folder without one of the configurations.
        ValueError: for an id that is not of :data:`PUBLISHED`, or a configuration that cannot be
            read.
    """
    folder = Path(config.teacher).expanduser()
    name = str(folder)
    if shipped(config.teacher) is not None:
        folder, name = data_path(f"{config.teacher}-sd"), "the digits' Stable Diffusion"
    elif config.teacher in PUBLISHED and not folder.is_dir():
        return PUBLISHED[config.teacher]
    elif not folder.is_dir():
        raise ValueError(
            f"the architecture of {config.teacher!r} is not known before it is loaded; allowed: "
            f"'digits', a pipeline's folder, {', '.join(map(repr, PUBLISHED))}"
        )
    encoders = [("CLIPTextModel", "text_encoder")]
    if (folder / "text_encoder_2").is_dir():
        encoders.append(("CLIPTextModelWithProjection", "text_encoder_2"))
    return Architecture(
        name=name,
        unet=_read(folder / "unet", "in_channels", "cross_attention_dim"),
        vae=_read(folder / "vae", "in_channels", "block_out_channels"),
        text_encoders=[
            (kind, _read(folder / part, "max_position_embeddings")) for kind, part in encoders
        ],
    )


#: Entries of a config.json that are of the file, not of the network.
_OF_THE_FILE = ("architectures", "model_type", "dtype", "torch_dtype", "transformers_version")


def _read(folder: Path, *needed: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is missing; allowed: a pipeline's folder, as diffusers' "
            f"save_pretrained writes it"
        )
    try:
        values = json.loads(path.read_text("utf-8"))
        values = {k: v for k, v in values.items() if k[:1] != "_" and k not in _OF_THE_FILE}
        if missing := [name for name in needed if values.get(name) is None]:
            raise ValueError(f"it has no {', '.join(missing)}")
        return values
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); allowed: a network's configuration, as "
            f"diffusers' save_pretrained writes it"
        ) from error

r"""Eight named colours, and the reader that finds stroke and background in an image.

A digit's image is a mixture of two colours: with the ink :math:`m \in [0, 1]` of a pixel,

.. math:: \text{pixel} = \text{background} + m\,(\text{stroke} - \text{background}).

:func:`read_colours` asks of each of the 56 pairs of different colours how well the image fits this
line, each pixel with its best :math:`m`, and answers with the pair that fits best. Images of the
data set fit exactly; an image that fits no pair is read as no colour at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Name to RGB, 0 to 255: the cube's corners, a little softened, so that all lie far apart.
COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (16, 16, 16),
    "white": (245, 245, 245),
    "red": (214, 32, 32),
    "green": (24, 150, 60),
    "blue": (32, 64, 214),
    "yellow": (250, 210, 20),
    "cyan": (64, 208, 224),
    "purple": (168, 40, 184),
}
NAMES: tuple[str, ...] = tuple(COLOURS)
#: All ordered pairs (stroke, background) of different colours, as indices into ``NAMES``.
PAIRS: tuple[tuple[int, int], ...] = tuple(
    (i, j) for i in range(len(NAMES)) for j in range(len(NAMES)) if i != j
)
#: The root mean square by which an image may miss its pair's line, in units of [-1, 1]. The data's
#: own images miss it by rounding alone, noise and blurred colours by .3 and more.
LARGEST_MISFIT = 0.2


def palette(dtype: torch.dtype = torch.float32) -> Tensor:
    """The colours in [-1, 1], of shape (8, 3), in the order of ``NAMES``."""
    return torch.tensor(list(COLOURS.values()), dtype=dtype) / 127.5 - 1


def colour_index(name: str) -> int:
    """A colour's place in ``NAMES``; a ``ValueError`` lists them."""
    if name not in COLOURS:
        raise ValueError(f"{name!r} is no colour of the digits; allowed: {', '.join(NAMES)}")
    return NAMES.index(name)


def read_colours(images: Tensor) -> tuple[Tensor, Tensor]:
    r"""The colours of stroke and background, as indices into ``NAMES``.

    For each pair the ink is the projection onto the line between the two colours, kept in [0, 1];
    the pair whose line is nearest in the mean square wins. Two pairs with exchanged colours fit
    alike; the background is the one that most pixels of the image's outermost ring are nearer to.

    Images are of shape (B, 3, H, W), in [-1, 1]. Returns stroke and background, of shape (B,),
    int64; -1 both where no pair fits to ``LARGEST_MISFIT``.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; allowed: (B, 3, H, W)")
    colours = palette(images.dtype).to(images.device)
    pixels = images.flatten(2).transpose(1, 2)  # (B, HW, 3)
    misfits, inks = [], []
    for stroke, background in PAIRS:
        line = colours[stroke] - colours[background]
        ink = ((pixels - colours[background]) @ line / (line @ line)).clamp(0, 1)  # (B, HW)
        miss = pixels - colours[background] - ink[..., None] * line
        misfits.append(miss.square().mean((1, 2)))
        inks.append(_ring(ink.unflatten(1, images.shape[2:])))
    misfit = torch.stack(misfits, 1)  # (B, 56)
    # Of a pair and its exchange the first is found or the second, by rounding: the ring decides.
    best = misfit.argmin(1)
    pairs = torch.tensor(PAIRS, device=images.device)
    stroke, background = pairs[best].unbind(1)
    ring = torch.stack(inks, 1)[torch.arange(len(images), device=images.device), best]
    exchanged = ring > 0.5
    stroke, background = (
        torch.where(exchanged, background, stroke),
        torch.where(exchanged, stroke, background),
    )
    fits = misfit.min(1).values.sqrt() <= LARGEST_MISFIT
    return torch.where(fits, stroke, -1), torch.where(fits, background, -1)


def _ring(ink: Tensor) -> Tensor:
    """The median ink of the outermost ring of pixels, of shape (B,)."""
    edges = (ink[:, 0], ink[:, -1], ink[:, 1:-1, 0], ink[:, 1:-1, -1])
    return torch.cat(edges, 1).median(1).values

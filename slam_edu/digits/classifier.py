"""A small convolutional network that reads digits in any two colours, to judge images by.

Trained apart from the generator, on the same 16,000 training digits. Its features, 128 numbers
before the last layer, are what Fréchet and kernel distances are measured in
(:mod:`slam_edu.digits.evaluate`): Inception's, made for photographs of 299 pixels, say little
about digits of 32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES = 128


class DigitClassifier(nn.Module):
    """Images (B, 3, 32, 32) in [-1, 1] to ten logits (B, 10).

    Three stages of two 3 x 3 convolutions with batch normalisation, each followed by max pooling;
    a 4 x 4 convolution over what is left is the feature vector.
    """

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 96)) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        before = 3
        for width in channels:
            for _ in range(2):
                stages += [
                    nn.Conv2d(before, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                before = width
            stages.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*stages)
        self.to_features = nn.Sequential(
            nn.Conv2d(before, FEATURES, 4, bias=False), nn.BatchNorm2d(FEATURES), nn.ReLU()
        )
        self.to_logits = nn.Linear(FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        """The features, of shape (B, 128), none below 0.

        Raises:
            ValueError: for images of another shape than (B, 3, 32, 32).
        """
        if images.ndim != 4 or images.shape[1:] != (3, 32, 32):
            raise ValueError(f"images have shape {tuple(images.shape)}; allowed: (B, 3, 32, 32)")
        return self.to_features(self.stages(images)).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (B, 10)."""
        return self.to_logits(self.features(images))

    @torch.no_grad()
    def read(self, images: Tensor, batch: int = 256) -> Tensor:
        """The likeliest digit of each image, of shape (B,), int64."""
        return torch.cat([self(x).argmax(1) for x in images.split(batch)])

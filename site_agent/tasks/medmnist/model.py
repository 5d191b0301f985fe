"""The small network, what it takes, and the head for ready-made features. No BatchNorm: DP-SGD cannot bound it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cipherward.site_agent.tasks.medmnist.files import FEATURES, Values

if TYPE_CHECKING:
    from torch import nn

SIDE = 28
CHANNELS = (32, 64, 64)
_GROUPS = 8


def network(outputs: int) -> nn.Module:
    """Three convolutions with GroupNorm, each followed by pooling, and a linear layer: 56,705 parameters for one
    output. Takes (n, 3, 28, 28), 0 to 255 of any type; gives (n, outputs).

    The last layer starts from zero: a model that knows nothing says so, whatever the seed.
    """
    import torch
    from torch import nn

    class Scale(nn.Module):
        """0..255 to -1..1, by constants: a mean over patients would be a release."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.to(torch.float32) / 127.5 - 1.0

    layers: list[nn.Module] = [Scale()]
    before = 3
    for channels in CHANNELS:
        layers += [
            nn.Conv2d(before, channels, 3, padding=1),
            nn.GroupNorm(_GROUPS, channels),
            nn.ReLU(),
            nn.MaxPool2d(2) if channels is not CHANNELS[-1] else nn.AdaptiveAvgPool2d(1),
        ]
        before = channels
    return nn.Sequential(*layers, nn.Flatten(), _zero(nn.Linear(before, outputs)))


def head(outputs: int) -> nn.Module:
    """A linear layer on features, (n, 1280) to (n, outputs), from zero: the loss is convex.

    Without a bias: the features, means of what a ReLU let through, are all positive and serve for one, and under
    privacy a further coordinate costs more than it gives (measured: docs/imaging.md).
    """
    from torch import nn

    return _zero(nn.Linear(FEATURES, outputs, bias=False))


def shrink(images: Values) -> Values:
    """Images as the network takes them, (n, 3, 28, 28) uint8: grey three times, larger ones averaged over areas.

    ``images``: (n, size, size) or (n, size, size, 3), uint8, size >= 28.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    planes = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    if planes.shape[2] != SIDE and len(planes):
        pooled = adaptive_avg_pool2d(torch.from_numpy(planes.astype(np.float32)), SIDE)
        planes = pooled.round_().to(torch.uint8).numpy()
    elif planes.shape[2] != SIDE:
        planes = np.zeros((0, planes.shape[1], SIDE, SIDE), np.uint8)
    return np.broadcast_to(planes, (len(planes), 3, SIDE, SIDE))


def _zero(layer: nn.Linear) -> nn.Linear:
    from torch import nn

    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer

"""Encoders of amortised models, from images ``[B, *input_shape]`` to [B, S K], S numbers for each neuron.

After those of the authors' Poisson VAE (arXiv 2405.14473, ``main/vae.py`` of its code), written anew and
without what would make a result depend on the batch or on torch's generator (dropout, batch statistics):

* "linear": one matrix, no bias;
* "mlp": a residual block of ``encoder_width`` hidden units, normalised by layer, then a matrix;
* "conv": residual blocks of two 3 x 3 convolutions with squeeze-and-excitation (Hu et al. 2018, arXiv
  1709.01507); between two of them a convolution of stride 2 halves the sides and doubles the channels, until
  no side is above 4; then a matrix. Theirs besides normalises weights and ends with a pooled average.
"""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn

from .config import AmortisedConfig

_SMALLEST_SIDE = 4
# Channels over hidden units of a squeeze-and-excitation, and the least of the latter, as released.
_SQUEEZE, _LEAST = 16, 4


def make_encoder(config: AmortisedConfig, outputs: int) -> nn.Module:
    """The encoder that a configuration names, other than "module"; weights are torch's own.

    Args:
        config: of the model.
        outputs: numbers for each input, S K.
    """
    m, width = config.n_inputs, config.encoder_width
    if config.encoder == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(m, outputs, bias=False))
    if config.encoder == "mlp":
        block = Residual(nn.Linear(m, width), nn.SiLU(), nn.Linear(width, m))
        return nn.Sequential(nn.Flatten(), block, nn.LayerNorm(m), nn.Linear(m, outputs))
    channels, *sides = config.shape
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), _block(width)]
    while max(sides) > _SMALLEST_SIDE:
        layers += [nn.SiLU(), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), _block(2 * width)]
        width, sides = 2 * width, [(side + 1) // 2 for side in sides]
    return nn.Sequential(*layers, nn.SiLU(), nn.Flatten(), nn.Linear(width * math.prod(sides), outputs))


class Residual(nn.Module):
    """x plus what the layers make of it; shapes are kept."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        return x + cast(Tensor, self.layers(x))


class SqueezeExcite(nn.Module):
    """Scales each channel of [B, C, H, W] by a function, in (0, 1), of the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // _SQUEEZE, _LEAST)
        self.scale = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """The scaled images."""
        scale: Tensor = self.scale(x.mean(dim=(2, 3)))
        return x * scale[:, :, None, None]


def _block(channels: int) -> nn.Module:
    convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
    return Residual(nn.SiLU(), convolutions[0], nn.SiLU(), convolutions[1], SqueezeExcite(channels))

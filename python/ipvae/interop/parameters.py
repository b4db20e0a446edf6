"""The parameters of a layer under the names of the released code, ours or theirs, as the ops take them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ipvae_kernels import GaussianParams, PoissonParams


def poisson_params(layer: Any, dictionary: Tensor | None, log_sigma: Tensor) -> PoissonParams:
    """The parameters of a Poisson layer as `ipvae_kernels` takes them; gradients flow through.

    Args:
        layer: of this package or of the released code, with the names of `ipvae.models.layer`.
        dictionary: [M, K], or None beside another decoder.
        log_sigma: soft-clamped, [M].
    """
    return PoissonParams(dictionary, log_sigma, layer.log_bias[0], layer.log_lr[0][0], layer.u_init[0][0])


def gaussian_params(
    layer: Any, dictionary: Tensor | None, log_sigma: Tensor, activation: Literal["identity", "relu"]
) -> GaussianParams:
    """The same of a Gaussian layer; a gain is part of the dictionary."""
    log_lr, start = torch.cat(list(layer.log_lr)), torch.cat(list(layer.u_init))
    return GaussianParams(dictionary, log_sigma, layer.log_bias[0], log_lr, start, activation)

"""The inputs of a run, flattened and checked."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..inputs import KINDS, Source, gather, refuse_pixels
from ..models.base import VAE


class Splits(Protocol):
    """What `train` needs of a data set: inputs [N, ...], flattened or not, of any kind in `ipvae.inputs`."""

    @property
    def train(self) -> Source:
        """[N, ...]."""

    @property
    def validation(self) -> Source | None:
        """[V, ...], or None or empty for no validation."""


def training_inputs(
    model: VAE, splits: Splits | Source, validation_samples: int
) -> tuple[Tensor, Tensor | None]:
    """Training and validation inputs, flattened and checked."""
    like = model.like
    inputs: Source
    validation: Source | None = None
    if isinstance(splits, (Tensor, np.ndarray, Dataset, DataLoader)):
        inputs = splits
    elif hasattr(splits, "train") and hasattr(splits, "validation"):
        inputs, validation = splits.train, splits.validation
    else:
        raise TypeError(
            f"splits: expected {KINDS}, or an object with such in train and validation, "
            f"found {type(splits).__name__}"
        )
    x = model.flatten(gather("splits", inputs, like)[0])
    refuse_pixels("splits", x)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(
            f"splits: expected training inputs [N, {model.config.n_inputs}], found {list(x.shape)}"
        )
    if not torch.isfinite(x).all():
        raise ValueError("splits: expected finite training inputs, found NaN or infinite ones")
    if validation is None or (hasattr(validation, "__len__") and len(validation) == 0):
        return x, None
    held_out = model.flatten(gather("splits.validation", validation, like)[0])
    refuse_pixels("splits.validation", held_out)
    return x, held_out[:validation_samples]

"""Data sets of the experiments: those of `load_dataset`, others brought to 28x28 pixels, known features."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..data import DataSplits, load_dataset
from .worlds import MINILM, SIZES, minilm, world

SIDE = 28


def digits_28() -> DataSplits:
    """The digits of scikit-learn, 8x8, enlarged."""
    return load_dataset("digits").changed(enlarged, (1, SIDE, SIDE), "digits-28")


def natural_28() -> DataSplits:
    """Natural patches, not whitened, each stretched from 0 to 1."""
    return _natural(SIDE).changed(stretched, (1, SIDE, SIDE), "natural-28")


def natural_8() -> DataSplits:
    """The same of the size of the digits, for quick presets."""
    return _natural(8).changed(stretched, (1, 8, 8), "natural-8")


def _natural(side: int) -> DataSplits:
    return load_dataset("patches", size=side, n_train=10_000, f0=None, contrast="none")


def patches_32() -> DataSplits:
    """Whitened patches larger than those that models are trained on, to move within."""
    return load_dataset("patches", size=32, n_train=1000)


SETS: dict[str, Callable[[], DataSplits]] = {
    "digits-28": digits_28, "natural-28": natural_28, "natural-8": natural_8, "patches-32": patches_32,
    MINILM: minilm,
}  # fmt: skip


@cache
def load_set(name: str, folder: Path | None = None) -> DataSplits:
    """A data set of `SETS`, of a world of known features, or of `load_dataset`, once a process."""
    if name in SIZES:
        return world(name).splits
    return SETS[name]() if name in SETS else load_dataset(name, data_dir=folder)


def enlarged(images: Tensor) -> Tensor:
    """Images [N, 64] of 8x8 pixels, bilinearly to 28x28."""
    wide = F.interpolate(images.reshape(-1, 1, 8, 8), (SIDE, SIDE), mode="bilinear")
    return wide.clamp(0.0, 1.0).flatten(1)


def stretched(patches: Tensor) -> Tensor:
    """Patches [N, M], each from 0 to 1."""
    low, high = patches.min(1, keepdim=True).values, patches.max(1, keepdim=True).values
    return (patches - low) / (high - low)
